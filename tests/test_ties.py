"""Results stand in the order of (distance, id), of the distances that are returned.

The constant of a query is added to sums that differ, and makes some of them equal: those are ties too.
"""

import faiss
import naive
import numpy as np
import pytest
from one_query import flat, inverted

import faiss_dpq
from faiss_dpq.search import flat as _scan

METRICS = [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT]


def merging_queries(rng, nq, d, far):
    """Far from all vectors: float32 gives many of these the same distance."""
    return (far * (1 + rng.random((nq, d)))).astype(np.float32)


def offset_flat(rng, n, metric):
    """Of codebooks away from the origin, so that products have a constant, too."""
    index = faiss_dpq.IndexDPQ.from_codebooks(naive.random_codebooks(rng, 3, 256, 9, offset=500.0), metric)
    index.add_sa_codes(rng.integers(0, 256, (n, 3)).astype(np.uint8))
    return index


def assert_ordered(D, I, metric):
    """By (distance, id); returns how many neighbours in the results are equal."""
    key = D if metric == faiss.METRIC_L2 else -D
    for row in range(len(D)):
        np.testing.assert_array_equal(np.lexsort((I[row], key[row])), np.arange(len(key[row])))
    return int((np.diff(key, axis=1) == 0).sum())


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("n", "k"), [(3000, 3000), (20_000, 15_000), (20_000, 100)])
@pytest.mark.parametrize("nq", [1, 3, 70])
def test_equal_distances_stand_by_id(simd, metric, n, k, nq, threads, monkeypatch):
    monkeypatch.setattr(_scan, "_WORTH_A_THREAD", 5000)  # parts of the vectors are merged
    rng = np.random.default_rng(0)
    index, xq = offset_flat(rng, n, metric), merging_queries(rng, nq, 9, 1e4)
    every = index.search(xq, n)
    assert assert_ordered(*every, metric) > 20 * nq
    for n_threads in (1, 3):
        threads(n_threads)
        D, I = index.search(xq, k)
        np.testing.assert_array_equal(I, every[1][:, :k])  # the k-th place too is decided by the id
        np.testing.assert_array_equal(D, every[0][:, :k])
        one = index.search(xq[:1], k)
        np.testing.assert_array_equal(one[1], I[:1])
        np.testing.assert_array_equal(one[0], D[:1])


@pytest.mark.parametrize("metric", METRICS)
def test_equal_distances_of_a_range_search_stand_by_id(metric):
    rng = np.random.default_rng(1)
    index, xq = offset_flat(rng, 3000, metric), merging_queries(rng, 5, 9, 1e4)
    D, _ = index.search(xq, 2000)
    lims, D, I = index.range_search(xq, float(np.median(D[:, -1])))
    assert len(D)
    for begin, end in zip(lims[:-1].astype(int), lims[1:].astype(int), strict=True):
        assert_ordered(D[None, begin:end], I[None, begin:end], metric)


def test_vectors_at_the_query_itself_stand_by_id(simd):
    """Their distances are 0, whatever the sums round to, and tie there."""
    rng = np.random.default_rng(2)
    codebooks = naive.random_codebooks(rng, 4, 16, 24, offset=3.0)
    index = faiss_dpq.IndexDPQ.from_codebooks(codebooks)
    codes = rng.integers(0, 16, (40, 4)).astype(np.uint16)
    index.add_sa_codes(naive.pack(np.tile(codes, (500, 1)), 4))
    xq = index.reconstruct_n(0, 40)
    for queries in (xq, xq[:1]):
        D, I = index.search(queries, 500)
        assert_ordered(D, I, faiss.METRIC_L2)
    expected = 40 * np.arange(500)
    D, I = index.search(xq, 500)
    zero = (D == 0).all(1)
    assert zero.any()
    np.testing.assert_array_equal(I[zero], np.flatnonzero(zero)[:, None] + expected)


@pytest.mark.parametrize("metric", METRICS)
def test_of_equal_distances_in_lists_the_nearer_list_comes_first(simd, metric):
    rng = np.random.default_rng(3)
    index = inverted(rng, n=3000, metric=metric)
    xq = merging_queries(rng, 20, 9, 1e4)
    index.nprobe = index.nlist
    _, keys = index.quantizer.search(xq, index.nlist)
    D, I = index.search(xq, index.ntotal)
    order = {}
    for number in range(index.nlist):
        size = index.invlists.list_size(number)
        for offset, i in enumerate(faiss.rev_swig_ptr(index.invlists.get_ids(number), size).tolist()):
            order[i] = number, offset
    key = D if metric == faiss.METRIC_L2 else -D
    equal = 0
    for row in range(len(xq)):
        rank = {number: place for place, number in enumerate(keys[row].tolist())}
        places = [(float(key[row, j]), rank[order[i][0]], order[i][1]) for j, i in enumerate(I[row].tolist())]
        assert places == sorted(places)
        equal += int((np.diff(key[row]) == 0).sum())
    assert equal > 100
    few = index.search(xq, 50)
    np.testing.assert_array_equal(few[1], I[:, :50])
    one = index.search(xq[:1], 50)
    np.testing.assert_array_equal(one[1], I[:1, :50])


@pytest.mark.parametrize("make", [flat, inverted])
def test_queries_that_are_infinite_or_overflow_find_nothing(simd, make):
    rng = np.random.default_rng(4)
    index = make(rng, n=20_000)
    xq = naive.normal(rng, 70, 9)
    xq[3, 0], xq[5, 2], xq[7], xq[9] = np.inf, -np.inf, np.inf, 1e20
    bad = np.array([3, 5, 7, 9])
    D, I = index.search(xq, 5)
    for row in bad:
        one = index.search(xq[row : row + 1], 5)
        np.testing.assert_array_equal(one[1], -1)
        np.testing.assert_array_equal(one[0], naive.FLT_MAX)
    np.testing.assert_array_equal(I[bad], -1)
    np.testing.assert_array_equal(D[bad], naive.FLT_MAX)
    good = np.setdiff1d(np.arange(70), bad)
    np.testing.assert_array_equal(I[good], index.search(xq[good], 5)[1])
