"""Deep quantization in torch: networks trained together with the codebooks that FAISS indexes then use.

`DPQ` (Gao et al., IJCAI 2019) exports to IndexDPQ; `PQN`, `RPQN` and `TPQN` (Yu et al., IJCV 2020) to FAISS's product
quantizers. Needs the extra ``deep``: nothing outside this subpackage imports torch.
"""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ImportError("faiss_dpq.nn needs torch, which is not installed: pip install 'faiss-dpq[deep]'") from error

from .backbones import IMAGENET_MEAN, IMAGENET_STD, AlexNet, SmallCNN
from .base import DeepQuantizer, embed_dataset
from .config import ABLATIONS, TrainConfig
from .dpq import DPQ
from .image_index import ImageIndex
from .labels import label_embeddings, load_word_vectors
from .pqn import PQN, RPQN, ProductQuantization
from .qblock import ProgressiveQuantization, QBlock
from .tpqn import TPQN
from .trainer import Trainer
from .unlabelled import train_codebooks_sgd

#: The first name of ImageIndex, which says less: it stores and searches, too.
Encoder = ImageIndex

__all__ = [
    "ABLATIONS",
    "DPQ",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "PQN",
    "RPQN",
    "TPQN",
    "AlexNet",
    "DeepQuantizer",
    "Encoder",
    "ImageIndex",
    "ProductQuantization",
    "ProgressiveQuantization",
    "QBlock",
    "SmallCNN",
    "TrainConfig",
    "Trainer",
    "embed_dataset",
    "label_embeddings",
    "load_word_vectors",
    "train_codebooks_sgd",
]
