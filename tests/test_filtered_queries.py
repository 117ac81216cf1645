"""One query with a selector: found at once, exact whatever the number of vectors, and without work for the others."""

import faiss
import naive
import numpy as np
import pytest
from filtered_index import N, bitmap, counted, index_of
from flat_index import assert_same_neighbours
from naive import METRICS, normal

import faiss_dpq
from faiss_dpq import _kernels


def test_one_query_with_a_selector_goes_to_the_kernels_at_once():
    index, _, xq = index_of(8, 8, faiss.METRIC_L2)
    few = bitmap(np.arange(N) % 20 == 0)
    for query in np.resize(xq, (30, index.d)):  # codes are put in order meanwhile
        index.search(query[None], 5)
    for selector in (few, bitmap(np.arange(N) % 2 == 0), faiss.IDSelectorRange(5, 9000), faiss_dpq.Filter(few)):
        params = faiss.SearchParameters(sel=selector)
        index.search(xq[:1], 5, params=params)
        assert counted(lambda params=params: index.search(xq[:1], 5, params=params))["direct"] == 1


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 30, 5000])
def test_vectors_here_and_there_whatever_their_number(simd, metric, k):
    """From none to all of a chunk of the mask, and numbers around those at which another way is taken."""
    n = 40_000
    index, codes, xq = index_of(8, 8, metric, n)
    rng = np.random.default_rng(4)
    inner_product = metric == faiss.METRIC_INNER_PRODUCT
    for few in (1, 1023, 1024, 1025, 2047, 2048, 2049, 8191, 8192, 8193, 15_000):
        members = np.zeros(n, bool)
        members[rng.permutation(n)[:few]] = True
        expected = naive.search(index.codebooks, codes, xq[:1], k, inner_product, members)
        params = faiss.SearchParameters(sel=bitmap(members))
        assert_same_neighbours(*index.search(xq[:1], k, params=params), *expected)


def test_of_few_hardly_any_but_results_are_rescored():
    """All of them have an upper bound before any distance is computed: a filter of few, and an index of few."""
    index, _, xq = index_of(8, 8, faiss.METRIC_L2)
    params = faiss.SearchParameters(sel=bitmap(np.random.default_rng(0).random(N) < 0.1))
    D = index.search(xq, 10, params=params)[0]
    counts = counted(lambda: index.search(xq[:1], 10, params=params))
    assert counts["floated"] < 2048 and counts["bounded"] == 0
    np.testing.assert_array_equal(index.search(xq[:1], 10, params=params)[0], D[:1])


@pytest.mark.parametrize(("M", "nbits"), [(8, 8), (3, 6), (20, 8)])
def test_of_a_slice_no_other_codes_are_looked_at(simd, M, nbits):
    """One query and many, with what lies around the slice, and the end of all codes, left alone."""
    index, codes, xq = index_of(M, nbits, faiss.METRIC_L2)
    for query in np.resize(xq, (30, index.d)):  # codes are put in order meanwhile
        index.search(query[None], 5)
    for begin, end in ((0, 1), (N - 1, N), (700, 701), (3, 5003), (N - 4000, N), (100, N - 100), (0, N), (50, 50)):
        members = (np.arange(N) >= begin) & (np.arange(N) < end)
        expected = naive.search(index.codebooks, codes, xq, 15, members=members)
        for selector in (faiss.IDSelectorRange(begin, end), bitmap(members)):
            params = faiss.SearchParameters(sel=selector)
            assert_same_neighbours(*index.search(xq, 15, params=params), *expected)
            for _ in range(2):
                counts = counted(lambda params=params: index.search(xq[:1], 15, params=params))
                assert_same_neighbours(*index.search(xq[:1], 15, params=params), *(each[:1] for each in expected))
            if end - begin < N / 2:
                assert counts["bounded"] + counts["floated"] <= end - begin + 1024 and counts["ordered"] == 0


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("M", [3, 8, 20])
def test_a_bitmap_that_comes_once_is_read_in_place(simd, metric, M):
    """Of few a list is made; by one that lets many through, codes in their order are scanned. Nothing is kept of it."""
    n = 40_003
    index, codes, xq = index_of(M, 8, metric, n)
    index = faiss_dpq.clone_index(index)  # what is derived depends on the instruction set
    for query in np.resize(xq, (30, index.d)):  # codes are put in order meanwhile
        index.search(query[None], 5)
    in_order = _kernels.most_ordered() >= M
    rng, alive = np.random.default_rng(5), []
    for share in (0, 0.001, 0.02, 0.06, 0.12, 0.5, 1):
        # A bitmap may have more bits than there are vectors, which are set here, and may begin anywhere.
        members = rng.random(n) < share
        bits = np.full(n // 8 + 30, 255, np.uint8)
        begin = 8 * int(rng.integers(3))
        bits[begin : begin + n // 8 + 1] = np.packbits(np.append(members, np.ones(5, bool)), bitorder="little")
        few = share < 0.01 or (share == 0.02 and M != 3)  # where terms are not stored, fewer are few
        for k in (1, 30, 700):
            before = index.memory_usage()["masks"]
            alive.append(bits[begin:].copy())
            params = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(alive[-1]))
            _kernels.reset_counters()
            D, I = index.search(xq[:1], k, params=params)
            counts = dict(_kernels.counters())
            inner_product = metric == faiss.METRIC_INNER_PRODUCT
            assert_same_neighbours(D, I, *naive.search(index.codebooks, codes, xq[:1], k, inner_product, members))
            assert counts["direct"] == 1 or share in (0, 1)
            if few:
                assert (counts["floated"], counts["bounded"], counts["ordered"]) == (members.sum(), 0, 0)
                assert counts["listed"] == members.sum()
            if share > 0.1 and in_order:
                assert counts["ordered"] == n
            if few or (share > 0.1 and in_order):
                assert index.memory_usage()["masks"] <= before


def test_a_bitmap_is_read_in_place_where_sums_have_no_bound(simd):
    """Entries so large that bytes tell nothing are added up as floats."""
    rng = np.random.default_rng(0)
    n = 20_000
    codebooks = np.ones((4, 256, 3), np.float32)
    codebooks[:, :, 0] = rng.random((4, 256))
    index = faiss_dpq.IndexDPQ.from_codebooks(codebooks, faiss.METRIC_INNER_PRODUCT)
    codes = rng.integers(0, 256, (n, 4)).astype(np.uint8)
    index.add_sa_codes(codes)
    xq = normal(rng, 1, 3)
    for _ in range(30):
        index.search(xq, 5)
    members = rng.random(n) < 0.5
    far = np.r_[[[3e31, -4e31, 1e31]]].astype(np.float32)
    params = faiss.SearchParameters(sel=bitmap(members))
    counts = counted(lambda: index.search(far, 9, params=params))
    assert counts["ordered"] == 0 and counts["floated"] == n
    again = faiss.SearchParameters(sel=bitmap(members))
    D, I = index.search(far, 9, params=again)
    expected = index.search(np.repeat(far, 40, 0), 9, params=faiss_dpq.SearchParametersDPQ(sel=bitmap(members)))
    np.testing.assert_array_equal(I[0], expected[1][0])
    np.testing.assert_array_equal(D[0], expected[0][0])


def test_few_that_are_searched_again_are_copied():
    index, _, xq = index_of(8, 8, faiss.METRIC_L2)
    few, half = (faiss.SearchParameters(sel=bitmap(np.arange(N) % step == 1)) for step in (20, 2))
    for params in (few, half, few, half):  # a bitmap is copied when it comes a second time
        index.search(xq[:1], 5, params=params)
    held = [index.memory_usage()["masks"]]
    for params in (few, few, few, half):
        index.search(xq[:1], 5, params=params)
        held.append(index.memory_usage()["masks"])
    of_copies = N / 20 * (8 + 8 + 1)  # codes, numbers, bins of terms
    assert held == [held[0], held[0], held[0] + of_copies, held[0] + of_copies, held[0]]


def test_memory_of_masks_that_are_forgotten_is_not_that_of_others():
    """Masks of one size take turns in the memory that the one before has left."""
    rng = np.random.default_rng(0)
    index, _, xq = index_of(4, 8, faiss.METRIC_L2, 300_000)
    members = [rng.random(300_000) < share for share in rng.uniform(0.0001, 0.01, 12)]
    params = [faiss.SearchParameters(sel=bitmap(each)) for each in members]
    first = [index.search(xq[:1], 10, params=each) for each in params]
    for turn in rng.permutation(np.repeat(np.arange(12), 4)).tolist():
        D, I = index.search(xq[:1], 10, params=params[turn])
        assert members[turn][I[I >= 0]].all()
        np.testing.assert_array_equal(I, first[turn][1])
        np.testing.assert_array_equal(D, first[turn][0])
