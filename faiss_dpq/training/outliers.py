"""The few training vectors that are far from all others: they cost codewords of the first level, and nothing else.

k-means and least squares minimise squared errors, of which a far vector has more than thousands of others: they would
spend most codewords on it, and choose among codebooks by how well these code it.
"""

import faiss
import numpy as np

from ..codec import Floats, ProgressiveQuantizer, is_far

_MOST = 0.05  # more of the vectors are no outliers: they are learned like others
_SHARE = 1 / 16  # of the first level's codewords, that outliers have at most


def set_apart(x: Floats, K: int) -> tuple[Floats, Floats]:
    """The vectors to learn from, at least K, and the outliers."""
    far = is_far(x)
    if not 0 < far.sum() <= min(_MOST * len(x), len(x) - K):
        return x, x[:0]
    return x[~far], x[far]


def given_codewords(codebooks: Floats, x: Floats, far: Floats, seed: int) -> Floats:
    """The codebooks, in which the first level's codewords that fewest vectors use are given to outliers."""
    K = codebooks.shape[1]
    n_given = min(len(far), int(_SHARE * K))
    if not n_given:
        return codebooks
    centroids = far
    if len(far) > n_given:
        kmeans = faiss.Kmeans(far.shape[1], n_given, seed=seed, min_points_per_centroid=1)
        kmeans.train(np.ascontiguousarray(far))
        centroids = kmeans.centroids
    used = ProgressiveQuantizer(codebooks[:1]).encode(x)[:, 0]
    codebooks = codebooks.copy()
    codebooks[0, np.argsort(np.bincount(used, minlength=K), kind="stable")[:n_given]] = centroids
    return codebooks
