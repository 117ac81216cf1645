"""An IndexDPQ of random codes, and what a search of it must equal."""

import faiss
import naive
import numpy as np

import faiss_dpq


def filled_index(rng, n, d, M, nbits, metric=faiss.METRIC_L2):
    """An index of random codebooks and codes, and those codes."""
    index = faiss_dpq.IndexDPQ.from_codebooks(naive.random_codebooks(rng, M, 1 << nbits, d), metric)
    codes = rng.integers(0, 1 << nbits, (n, M)).astype(np.uint16)
    if n:
        index.add_sa_codes(naive.pack(codes, nbits))
    return index, codes


def assert_same_neighbours(D, I, expected_D, expected_I, all_D):
    """Equal up to rounding, and up to the order of vectors whose distances are equal up to rounding."""
    scale = np.abs(all_D[np.isfinite(all_D)]).max(initial=1.0)
    found = expected_I >= 0
    np.testing.assert_array_equal(I >= 0, found)
    np.testing.assert_allclose(D[found], expected_D[found], rtol=1e-5, atol=2e-6 * scale)
    rows = np.broadcast_to(np.arange(len(I))[:, None], I.shape)
    np.testing.assert_allclose(all_D[rows, I][found], expected_D[found], rtol=1e-5, atol=2e-6 * scale)
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in I)


def empty(index):
    """An empty index sharing nothing with `index`, of the same shape."""
    twin = index.truncate(4)
    twin.reset()
    return twin
