"""The factor by which reconstructions are moved towards their centre so that distances to them rank best."""

import faiss
import numpy as np

from ..codec import Floats, ProgressiveQuantizer

#: The factors that `ranking_shrinkage` chooses from.
SHRINKAGES = (1.0, 0.975, 0.95, 0.925, 0.9, 0.875, 0.85, 0.8, 0.75, 0.7)

_RANKED = 1 << 16  # training vectors that are ranked
_QUERIES = 2048
_BLOCK = 64  # queries at a time: 16 MiB of distances
# Two distances that differ by less than this share of their terms are a tie: rounding alone tells them apart.
_TIE = 1e-5


def ranking_shrinkage(x: Floats, quantizer: ProgressiveQuantizer, beam_size: int, seed: int) -> float:
    """The factor by which to multiply reconstructions, after centring, so that distances to them rank best.

    The near neighbours of a vector lie mostly on the side where vectors are dense, towards the centre. Seen from there,
    the part of the vector's quantization error that points away from the centre counts too much in the distance, and
    this part makes up much of the differences between the errors of vectors. Moving reconstructions inwards takes from
    it. On unit vectors, where the best factor is the cosine between a query and its neighbour, that is worth more
    recall than a tenth less error. On other vectors it may be worth nothing.

    Some of the training vectors are queries, whose nearest neighbours are looked for among the others by their
    reconstructions, at every factor. Of the factors that find them about as well as the best one does, within one
    standard error of the mean reciprocal rank, the one that changes least is chosen; so it is 1 where all find the
    same.

    Parameters
    ----------
    x : array, shape (n, d), float32
    quantizer : ProgressiveQuantizer
    beam_size : int
        Of the encoder.
    seed : int
        Of the choice of vectors.

    Returns
    -------
    shrinkage : float
        One of `SHRINKAGES`.
    """
    base = x[np.random.default_rng(seed).permutation(len(x))[:_RANKED]]
    centred = quantizer.decode(quantizer.encode(base, beam_size)) - quantizer.centre
    norms = np.einsum("ij,ij->i", centred, centred)
    factors = np.array(SHRINKAGES, np.float32)
    scores = []
    for start in range(0, min(len(base), _QUERIES), _BLOCK):
        queries = base[start : min(start + _BLOCK, _QUERIES)]
        rows = np.arange(len(queries))
        exact = faiss.pairwise_distances(queries, base)
        queries = queries - quantizer.centre
        products = 2 * queries @ centred.T
        exact[rows, start + rows] = np.inf  # a vector is not its own neighbour
        products[rows, start + rows] = -np.inf
        nearest = exact.argmin(axis=1)
        # ||q - s r||^2 = ||q||^2 + s (s ||r||^2 - 2 <q, r>), all of them centred
        of_nearest = factors[:, None] * norms[nearest] - products[rows, nearest]
        tie = _TIE * (norms[nearest] + np.einsum("ij,ij->i", queries, queries))
        nearer = [
            (s * norms - products < bound[:, None]).sum(axis=1)
            for s, bound in zip(factors, of_nearest - tie, strict=True)
        ]
        scores.append(1 / (1 + np.array(nearer)))
    by_factor = np.concatenate(scores, axis=1)
    behind = by_factor[by_factor.mean(axis=1).argmax()] - by_factor
    allowed = behind.std(axis=1) / np.sqrt(behind.shape[1])
    return SHRINKAGES[int((behind.mean(axis=1) <= allowed).argmax())]
