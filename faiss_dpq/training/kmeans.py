"""Residual k-means: FAISS's k-means, level after level, on what the levels before leave of the training vectors.

The codes so far are found by beam search, so a level is trained on the residuals that it will really meet. Where there
are few vectors, it is trained on the residuals of several beam entries of each vector: a level that has as many
codewords as there are vectors would leave residuals of 0, from which the next level could learn nothing.
"""

import faiss
import numpy as np

from ..codec import Floats, ProgressiveQuantizer, centre_of
from .progress import Steps

_RESIDUALS = 256  # per codeword: the most that FAISS's k-means uses, and what beam entries fill up to


def residual_kmeans(
    x: Floats,
    M: int,
    K: int,
    seed: int,
    beam_size: int,
    progress: Steps | None = None,
    iterations: int = 10,
    per_codeword: int = _RESIDUALS,
) -> Floats:
    """Codebooks, shape (M, K, d), of vectors (n, d).

    iterations : of k-means, in each of six numbers of dimensions.
    per_codeword : residuals that beam entries fill up to.
    """
    n, d = x.shape
    width = min(beam_size, per_codeword * K // n)
    codebooks = np.empty((M, K, d), np.float32)
    mean, axes = _principal_axes(x)
    x = np.asarray((x - mean) @ axes, np.float32)
    residuals = x
    for level in range(M):
        codebooks[level] = _kmeans(residuals, K, seed + level, iterations)
        if progress:
            progress.step(f"k-means of level {level + 1} of {M}")
        if level + 1 < M and width > 1:
            residuals = _beam_residuals(residuals.reshape(n, -1, d), codebooks[level], width).reshape(-1, d)
        elif level + 1 < M:
            prefix = ProgressiveQuantizer(codebooks[: level + 1])
            residuals = x - prefix.decode(prefix.encode(x, beam_size))
    codebooks = np.asarray(codebooks @ axes.T, np.float32)
    codebooks[0] += mean
    return codebooks


def _principal_axes(x: Floats) -> tuple[Floats, Floats]:
    """The vectors' centre, and orthogonal axes, shape (d, d), one a column, the axis of the most variance first.

    They are numpy's, since FAISS's own depend on its number of threads.
    """
    mean = centre_of(x)
    centred = x - mean
    _, axes = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    return mean, np.ascontiguousarray(axes[:, ::-1], np.float32)


def _kmeans(x: Floats, K: int, seed: int, iterations: int) -> Floats:
    """K centroids by FAISS's progressive-dimension clustering: in few of the first dimensions, then in more and more.

    In many dimensions, k-means from a random choice of vectors is much worse: it had a tenth more error for 8 levels of
    Fashion-MNIST, and found a sixth fewer of the nearest neighbours.
    """
    x = np.ascontiguousarray(x)
    parameters = faiss.ProgressiveDimClusteringParameters()
    parameters.seed = seed
    parameters.niter = iterations
    parameters.progressive_dim_steps = 6  # FAISS's default, 10, takes half as long again
    parameters.min_points_per_centroid = 1  # no warning about few vectors: at least K are there
    parameters.max_points_per_centroid = _RESIDUALS
    parameters.apply_pca = False
    clustering = faiss.ProgressiveDimClustering(x.shape[1], K, parameters)
    clustering.train(len(x), faiss.swig_ptr(x), faiss.ProgressiveDimIndexFactory())
    return faiss.vector_to_array(clustering.centroids).reshape(K, -1)


def _beam_residuals(residuals: Floats, codebook: Floats, width: int) -> Floats:
    """Residuals of a beam after one more level: (n, entries, d) to (n, min(`width`, entries * K), d)."""
    n, entries, d = residuals.shape
    K = len(codebook)
    extended = np.empty((n, min(width, entries * K), d), np.float32)
    rows = max(1, (1 << 22) // (entries * K))  # 16 MiB of scores
    for start in range(0, n, rows):
        block = residuals[start : start + rows]
        scores = faiss.pairwise_distances(block.reshape(-1, d), codebook).reshape(len(block), -1)
        least = np.argpartition(scores, extended.shape[1] - 1, axis=1)[:, : extended.shape[1]]
        parents = np.take_along_axis(block, least[..., None] // K, axis=1)
        extended[start : start + rows] = parents - codebook[least % K]
    return extended
