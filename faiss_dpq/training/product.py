"""Product codebooks, for data on which additive ones generalise worse.

A codeword of product quantization has d / M dimensions. As one of d dimensions it is zero elsewhere, so that product
codebooks are additive ones with fewer numbers to learn. Where few training vectors have many independent dimensions,
additive codebooks fit the training vectors and code others worse than product codebooks do.
"""

import faiss
import numpy as np

from ..codec import Floats

ITERATIONS = 25  # of k-means, and 256 vectors a codeword at most, as in faiss.ProductQuantizer


def product_codebooks(x: Floats, M: int, K: int, seed: int, iterations: int = ITERATIONS) -> Floats:
    """Codebooks, shape (M, K, d), of which each is zero outside a block of dimensions; M <= d.

    The blocks' means are in the first codebook, so that its centre is that of the vectors.
    """
    d = x.shape[1]
    codebooks = np.zeros((M, K, d), np.float32)
    means = np.zeros(d, np.float32)
    for level, block in enumerate(np.array_split(np.arange(d), M)):
        part = np.ascontiguousarray(x[:, block])
        kmeans = faiss.Kmeans(len(block), K, niter=iterations, seed=seed + level, min_points_per_centroid=1)
        kmeans.train(part)
        means[block] = kmeans.centroids.mean(axis=0, dtype=np.float64)
        codebooks[level][:, block] = kmeans.centroids - means[block]
    codebooks[0] += means
    return codebooks
