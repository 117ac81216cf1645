"""Scans begin with a threshold that is guessed from a sample; where it leaves neighbours out, they are done again."""

import faiss
import naive
import numpy as np
import pytest

import faiss_dpq
from faiss_dpq import _kernels

METRICS = [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT]
N, D, NQ, K = 17_003, 24, 21, 200


def sampled(n, size, of=N):
    """The first n of `size` vectors that a scan samples of N; see scan_sample.h."""
    stride, i = of // size, np.arange(n, dtype=np.uint64)
    random = (i * 0x9E3779B1).astype(np.uint32)
    random = ((random ^ (random >> 15)).astype(np.uint64) * 0x85EBCA6B).astype(np.uint32)
    random = (random ^ (random >> 13)).astype(np.uint64)
    return (i * stride + (random * stride >> 32)).astype(int)


def made(metric, M, near):
    """An index, and a query that the vectors in places `near` are much nearer to than all others."""
    rng = np.random.default_rng(M)
    codebooks = rng.standard_normal((M, 256, D)).astype(np.float32)
    codebooks[-1] *= 0.1
    codes = rng.integers(0, 256, (N, M))
    codes[near, :-1] = 7
    index = faiss_dpq.IndexDPQ.from_codebooks(codebooks, metric)
    index.add_sa_codes(naive.pack(codes, 8))
    x = naive.decode(codebooks, codes).astype(np.float64)
    xq = np.repeat(x[near[:1]], NQ, axis=0)
    distances = -(x @ xq[0]) if metric == faiss.METRIC_INNER_PRODUCT else ((x - xq[0]) ** 2).sum(axis=1)
    return index, xq.astype(np.float32), np.sort(distances)[:K]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("M", [8, 20])
def test_neighbours_that_the_guess_leaves_out(simd, metric, M, threads):
    """The sample has more of the neighbours than it should, so that the guess is too near."""
    threads(1)  # several take parts of the vectors, each too small for a sample
    index, xq, nearest = made(metric, M, np.union1d(sampled(70, 2304), sampled(50, 512 if M > 16 else 1024)))
    for queries in (xq, xq[:1]):
        _kernels.reset_counters()
        found = index.search(queries, K)[0]
        counts = _kernels.counters()
        assert counts["bounded"] + counts["floated"] == 2 * len(queries) * N
        for row in found if metric == faiss.METRIC_L2 else -found:
            np.testing.assert_allclose(row, nearest, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("M", [8, 20])
def test_guesses_leave_little_to_rescore(M, threads):
    """A threshold that a sample proves would let through 7 (one query: 17) times as many as are found, at first."""
    threads(1)
    index, xq, _ = made(faiss.METRIC_L2, M, np.random.default_rng(0).integers(0, N, 30))
    xq += np.random.default_rng(1).standard_normal(xq.shape, dtype=np.float32)
    for queries in (xq, xq[:1]):
        _kernels.reset_counters()
        index.search(queries, K)
        counts = _kernels.counters()
        assert counts["bounded"] + counts["floated"] == len(queries) * N
        assert counts["rescored"] < 5 * K * len(queries)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("M", [8, 20])
def test_neighbours_that_all_stand_in_early_chunks(simd, metric, M, threads):
    """One chunk of eight is scanned first, and its share of the results is guessed: here it has all of them."""
    threads(1)
    chunks = sampled(8, 8, of=64)
    index, xq, nearest = made(metric, M, np.sort((chunks[:, None] * 256 + np.arange(0, 256, 8)).ravel()))
    _kernels.reset_counters()
    found = index.search(xq, K)[0]
    counts = _kernels.counters()
    assert counts["bounded"] + counts["floated"] == 2 * NQ * N
    for row in found if metric == faiss.METRIC_L2 else -found:
        np.testing.assert_allclose(row, nearest, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("M", "nbits"), [(8, 8), (17, 5), (30, 8)])
def test_hits_are_noted_again_and_again(simd, metric, M, nbits, threads):
    """A query has room for some hundred hits, whose codes are copied; here there are several times as many."""
    threads(1)
    rng = np.random.default_rng(M)
    codebooks = rng.standard_normal((M, 1 << nbits, D)).astype(np.float32)
    codes = rng.integers(0, 1 << nbits, (N, M))
    index = faiss_dpq.IndexDPQ.from_codebooks(codebooks, metric)
    index.add_sa_codes(naive.pack(codes, nbits))
    x = naive.decode(codebooks, codes).astype(np.float64)
    xq = 3 * rng.standard_normal((NQ, D)).astype(np.float32)
    products = xq.astype(np.float64) @ x.T
    l2 = (x**2).sum(axis=1) - 2 * products + (xq.astype(np.float64) ** 2).sum(axis=1)[:, None]
    distances = l2 if metric == faiss.METRIC_L2 else -products
    for k in (40, 1200):
        found, I = index.search(xq, k)
        sign = 1 if metric == faiss.METRIC_L2 else -1
        np.testing.assert_allclose(sign * found, np.sort(distances, axis=1)[:, :k], rtol=1e-4, atol=1e-2)
        np.testing.assert_allclose(np.take_along_axis(distances, I, 1), sign * found, rtol=1e-4, atol=1e-2)
