"""The parallel weight and the shrinkage by which training vectors rank each other best."""

from collections.abc import Sequence
from typing import NamedTuple

import faiss
import numpy as np
import numpy.typing as npt

from ..codec import Floats, ProgressiveQuantizer

#: The factors that `Ranking.choice` chooses from.
SHRINKAGES = (1.0, 0.975, 0.95, 0.925, 0.9, 0.875, 0.85, 0.8, 0.75, 0.7)
#: The weights that `Ranking.choice` chooses from, those first that others have to be clearly better than. In blocks 4
#: gained up to two points of R@1 on unseen vectors where training vectors saw no difference between 2 and 4.
PARALLEL_WEIGHTS = (0.0, 0.5, 1.0, 2.0)
BLOCKS_PARALLEL_WEIGHTS = (4.0, 2.0, 0.0)

_RANKED = 1 << 16  # training vectors that are ranked for the shrinkage
_QUERIES = 2048
_RANKED_BY_WEIGHT = 12_288  # and for every parallel weight, each of which needs them encoded
_QUERIES_BY_WEIGHT = 1024
_JUDGED = 2048  # vectors whose errors along them are averaged
# On sentence embeddings in 48 bytes, codes of the least error leave .11 along vectors. With a weight of 8, R@1 was .799
# for a rest of 0, .804 for .08 and .807 for .12.
_MORE_REST = 1.1
# Standard errors that another choice has to be better by. Training vectors, which codes with blocks fit better than
# others, see less gain in weights. Among them 4 was 0.6 standard errors behind 2 on sentence embeddings in 48 bytes,
# 1.9 in 32, 1.1 on Gaussian vectors, and found a point, .3 and .6 points of R@1 more among others; 2.5 behind, it found
# .1 less.
_SURE = 0.5
_SURE_IN_BLOCKS = 1.0
_SURE_OF_WEIGHTS_IN_BLOCKS = 2.0
_BLOCK = 64  # queries at a time: 16 MiB of distances
# Two distances that differ by less than this share of their terms are a tie: rounding alone tells them apart.
_TIE = 1e-5


class Ranking(NamedTuple):
    """Training vectors that rank each other by their reconstructions.

    Some of the vectors are queries, whose nearest neighbours are looked for among the others. What is chosen finds them
    about as well as the best choice does, within half a standard error of the mean reciprocal rank, and changes least.
    So a shrinkage of 1 is chosen where all find the same. Shrinkages of codes with blocks may be a whole standard error
    behind, and weights two.

    Attributes
    ----------
    x : array, shape (n, d), float32
    metric : int
        By which neighbours are nearest.
    beam_size : int
        Of the encoder.
    seed : int
        Of the choice of vectors.
    origins : array, shape (n, d), float32, optional
        What x are residuals to, such as centres of lists. For inner products, errors then count along whole vectors.
    """

    x: Floats
    metric: int
    beam_size: int
    seed: int
    origins: Floats | None = None

    def choice(
        self, quantizer: ProgressiveQuantizer, shrinkage: float | None, parallel_weight: float | None
    ) -> tuple[float, float, float]:
        """Shrinkage and parallel weight, of which those are chosen that are None, and the parallel rest.

        The shrinkage is the factor by which to multiply reconstructions, after centring, so that distances to them rank
        best. The near neighbours of a vector lie mostly on the side where vectors are dense, towards the centre. Seen
        from there, the part of the vector's quantization error that points away from the centre counts too much in the
        distance, and this part makes up much of the differences between the errors of vectors. Moving reconstructions
        inwards takes from it. On unit vectors, where the best factor is the cosine between a query and its neighbour,
        that is worth more recall than a tenth less error. On other vectors it may be worth nothing. For inner products
        it is 1: no factor changes their order.

        The parallel weight makes this part of the error smaller and others larger. The parallel rest is a little more
        than what codes of the least squared error leave.
        """
        if self.metric != faiss.METRIC_L2:
            shrinkage = 1.0
        rest = self._parallel_rest(quantizer) if quantizer.compact and parallel_weight != 0 else 0.0
        if parallel_weight is None:
            weights = BLOCKS_PARALLEL_WEIGHTS if quantizer.compact else PARALLEL_WEIGHTS
            ranks = [
                self._reciprocal_ranks(quantizer, w, rest, shrinkage, _RANKED_BY_WEIGHT, _QUERIES_BY_WEIGHT)
                for w in weights
            ]
            best = np.array([of_weight[of_weight.mean(axis=1).argmax()] for of_weight in ranks])
            chosen = _first_of_the_best(best, _SURE_OF_WEIGHTS_IN_BLOCKS if quantizer.compact else _SURE)
            parallel_weight = weights[chosen]
            if shrinkage is None and quantizer.compact:  # encoding many vectors once more takes seconds
                shrinkage = SHRINKAGES[_first_of_the_best(ranks[chosen], _SURE_IN_BLOCKS)]
        if shrinkage is None:
            ranks_by_factor = self._reciprocal_ranks(quantizer, parallel_weight, rest, None, _RANKED, _QUERIES)
            shrinkage = SHRINKAGES[_first_of_the_best(ranks_by_factor)]
        return shrinkage, parallel_weight, rest

    def _parallel_rest(self, quantizer: ProgressiveQuantizer) -> float:
        x = self.x[:: -(-len(self.x) // _JUDGED)]
        errors = x - quantizer.decode(quantizer.encode(x, self.beam_size))
        from_centre = x - quantizer.centre
        length = np.einsum("ij,ij->", from_centre, from_centre, dtype=np.float64)
        along = np.einsum("ij,ij->", errors, from_centre, dtype=np.float64)
        return max(0.0, float(_MORE_REST * along / length)) if length else 0.0

    def _reciprocal_ranks(
        self,
        quantizer: ProgressiveQuantizer,
        parallel_weight: float,
        rest: float,
        shrinkage: float | None,
        n: int,
        nq: int,
    ) -> npt.NDArray[np.float64]:
        """Of the nearest neighbours of some vectors, by this or else every factor: shape (factors, queries)."""
        chosen = np.random.default_rng(self.seed).permutation(len(self.x))[:n]
        base = self.x[chosen]
        origins = self.origins[chosen] if self.origins is not None else None
        whole = None
        if self.metric != faiss.METRIC_L2:
            whole = base if origins is None else base + origins
        codes = quantizer.encode(base, self.beam_size, 0.0, parallel_weight, rest, whole)
        centred = quantizer.decode(codes) - quantizer.centre
        if origins is not None:
            centred += origins
            base = base + origins
        is_l2 = self.metric == faiss.METRIC_L2
        norms = np.einsum("ij,ij->i", centred, centred) if is_l2 else np.zeros(len(centred), np.float32)
        factors = SHRINKAGES if shrinkage is None else (shrinkage,)
        blocks = [
            _ranks_of_nearest(
                base, start, min(start + _BLOCK, nq), self.metric, centred, quantizer.centre, norms, factors
            )
            for start in range(0, min(len(base), nq), _BLOCK)
        ]
        return 1 / np.concatenate(blocks, axis=1)


def _ranks_of_nearest(
    base: Floats,
    start: int,
    end: int,
    metric: int,
    centred: Floats,
    centre: Floats,
    norms: Floats,
    factors: Sequence[float],
) -> npt.NDArray[np.intp]:
    """The ranks of the nearest neighbours of base[start:end] by reconstructions: shape (factors, queries)."""
    queries = base[start:end]
    rows = np.arange(len(queries))
    exact = faiss.pairwise_distances(queries, base, metric)
    if metric != faiss.METRIC_L2:
        np.negative(exact, out=exact)
    exact[rows, start + rows] = np.inf  # a vector is not its own neighbour
    nearest = exact.argmin(axis=1)
    if metric == faiss.METRIC_L2:
        queries = queries - centre
    products = 2 * queries @ centred.T
    products[rows, start + rows] = -np.inf
    # ||q - s r||^2 = ||q||^2 + s (s ||r||^2 - 2 <q, r>), all of them centred
    s = np.array(factors, np.float32)[:, None]
    of_nearest = s * norms[nearest] - products[rows, nearest]
    tie = _TIE * (np.einsum("ij,ij->i", centred, centred)[nearest] + np.einsum("ij,ij->i", queries, queries))
    return np.array(
        [
            1 + (factor * norms - products < bound[:, None]).sum(axis=1)
            for factor, bound in zip(s[:, 0], of_nearest - tie, strict=True)
        ]
    )


def _first_of_the_best(scores: npt.NDArray[np.float64], standard_errors: float = _SURE) -> int:
    """The first row of scores, shape (choices, queries), whose mean is within so many standard errors of the best's."""
    behind = scores[scores.mean(axis=1).argmax()] - scores
    allowed = standard_errors * behind.std(axis=1) / np.sqrt(behind.shape[1])
    return int((behind.mean(axis=1) <= allowed).argmax())
