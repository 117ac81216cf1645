"""What a training reports."""

from dataclasses import dataclass, field

import numpy as np

from .. import _kernels
from ..codec import Floats, Layout


@dataclass
class TrainStats:
    """What training did.

    Attributes
    ----------
    n : int
        Vectors used.
    mse : list of float
        Mean squared error of the training vectors at every prefix length, 1 to M levels, with the final codebooks
        before `shrinkage`.
    history : list of float
        Mean squared error, at full length, of vectors that were held out, after the k-means initialisation and after
        every alternation. The codebooks of the least are kept. Empty without alternations. With blocks, those of the
        blocks' levels, which come last.
    iterations : int
        Alternations done: fewer than `Effort` says if the error of the vectors held out stopped falling, none if there
        were fewer than 2 M K vectors.
    structure : "additive", "blocks" or "product"
        "blocks" if some levels lie in blocks of dimensions, "product" if each codebook ended up with dimensions of its
        own; see `train_codebooks`.
    layout : Layout
        The subspace of each level that was asked for, or chosen by d, M, nbits and the number of vectors.
    seconds : float
        Wall time, without the choice of `shrinkage`.
    shrinkage : float
        The factor that the codebooks were multiplied by in the end.
    parallel_weight : float
        What errors along a vector count for in the encoder.
    """

    n: int
    mse: list[float] = field(default_factory=list)
    history: list[float] = field(default_factory=list)
    iterations: int = 0
    structure: str = "additive"
    layout: Layout | None = None
    seconds: float = 0.0
    shrinkage: float = 1.0
    parallel_weight: float = 0.0


def mean_square(errors: Floats) -> float:
    """Mean of the squared norms of the rows."""
    norms = np.empty(len(errors), np.float32)
    _kernels.squared_norms(errors, norms)
    return float(norms.mean(dtype=np.float64))
