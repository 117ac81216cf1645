"""Learning codebooks from plain vectors: no labels, no torch.

- codebooks.py: `train_codebooks`, which puts the rest together. Start here.
- kmeans.py: residual k-means, where every training starts.
- structure.py: the method "least-squares": codebooks of all dimensions, of blocks, or product codebooks.
- alternation.py: alternation of encoding and solving for the codebooks (least_squares.py).
- blocks.py: codebooks of long codes.
- product.py: codebooks of product quantization, where these generalise better.
- shrinkage.py: a factor for the codebooks and a weight for the encoder that make distances rank better.
- outliers.py: what becomes of the few training vectors that are far from all others.
- effort.py: how much work is done, and the checks of arguments; stats.py: what is reported.
- registry.py: training methods by name; a method of a package above, such as "sgd", registers itself there.
- progress.py: the progress bars of the whole package.
"""

from .codebooks import train_codebooks
from .effort import EFFORTS, Effort, check_arguments, check_values
from .shrinkage import Ranking
from .stats import TrainStats

__all__ = ["EFFORTS", "Effort", "Ranking", "TrainStats", "check_arguments", "check_values", "train_codebooks"]
