"""How much work training does, and what is checked of the arguments of a training."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..codec import Floats
from . import registry


@dataclass(frozen=True)
class Effort:
    """How much work training does.

    Attributes
    ----------
    iterations : int
        Alternations of encoding and solving, at most, for up to 8 levels; above, it shrinks as 1 / M.
    beam_size : int
        Of the encoding between solves, for up to 8 levels; above, it shrinks as 1 / M², as the cost of an entry grows.
        For 16 levels on GloVe, half of the turns and a quarter of the beam did as well as all of both (mean squared
        error .01923 and .01921).
    max_points_per_centroid : int
        At most this many times 2**nbits vectors are used, a random choice; for codes with blocks, a fourth of it.
    kmeans_iterations : int
        Of the k-means that training starts from, in each of its six numbers of dimensions; in blocks, at most 4.
    """

    iterations: int
    beam_size: int
    max_points_per_centroid: int
    kmeans_iterations: int = 10

    def of_levels(self, M: int) -> tuple[int, int]:
        """Iterations and beam size for M levels."""
        share = min(1, 8 / M)
        beam_size = max(2, round(self.beam_size * share**2))
        return round(self.iterations * share), min(self.beam_size, beam_size)

    def of_blocks(self) -> tuple[int, int]:
        """Iterations for the global levels, and beam size, of codes with blocks.

        For 8 global levels of sentence embeddings, 16 turns left 5 % less error than 8 did, and so did all levels; 20
        turns another 1 %, and 25 another .5 %.
        """
        return max(1, round(self.iterations * 3 / 4)), min(self.beam_size, 5)


#: The efforts that have names.
EFFORTS = {
    "fast": Effort(iterations=4, beam_size=4, max_points_per_centroid=256),
    "default": Effort(iterations=32, beam_size=16, max_points_per_centroid=1024),
    "best": Effort(iterations=96, beam_size=32, max_points_per_centroid=4096),
}


def check_arguments(
    x: Floats,
    M: int,
    nbits: int,
    effort: str | Effort,
    weights: npt.ArrayLike | None,
    trainer: str = "least-squares",
) -> tuple[Effort, npt.NDArray[np.float64]]:
    """Raise what `train_codebooks` raises for its arguments; return effort and weights as it uses them."""
    if len(x) < 1 << nbits:
        raise RuntimeError(
            f"train: x has {len(x)} vectors, at least 2**nbits = {1 << nbits} are needed for the codewords of a level"
        )
    check_values(x)
    registry.method(trainer)  # raises for want of torch, too: before the work, not after it
    return _checked_effort(effort), _checked_weights(weights, M)


def check_values(x: Floats, call: str = "train") -> None:
    """Raise RuntimeError, naming the call, unless all values are finite and squared distances fit into float32."""
    low, high = float(x.min()), float(x.max())
    if not np.isfinite([low, high]).all():
        raise RuntimeError(f"{call}: x has NaN or infinite values")
    largest = max(-low, high)
    # Two vectors are at most twice as far apart as the longer one is long. The sum is taken only where it may matter.
    limit = float(np.finfo(np.float32).max) / 4
    if largest**2 * x.size > limit and np.einsum("ij,ij->", x, x, dtype=np.float64) > limit:
        raise RuntimeError(
            f"{call}: x has values of up to {largest:.3g}, whose squared distances overflow float32; scale x down"
        )


def _checked_effort(effort: str | Effort) -> Effort:
    if isinstance(effort, Effort):
        return effort
    if effort not in EFFORTS:
        raise ValueError(f"train: effort is {effort!r}, expected one of {', '.join(map(repr, EFFORTS))}")
    return EFFORTS[effort]


def _checked_weights(weights: npt.ArrayLike | None, M: int) -> npt.NDArray[np.float64]:
    if weights is None:
        return np.arange(M, 0, -1, dtype=np.float64)
    w = np.asarray(weights, np.float64)
    if w.shape != (M,) or not np.isfinite(w).all() or w.min() < 0 or w[-1] == 0:
        raise ValueError(f"train: weights is {weights!r}, expected M={M} finite numbers >= 0, the last > 0")
    return w
