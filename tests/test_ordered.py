"""Searches of one query through codes in an order of their own give what a plain scan gives, bit for bit."""

import faiss
import numpy as np
import pytest

import faiss_dpq
from faiss_dpq import _kernels

WARM = 24  # searches after which codes are in order


def filled(n=20_000, d=16, M=8, metric=faiss.METRIC_L2, seed=0, scale=0.8):
    rng = np.random.default_rng(seed)
    codebooks = rng.standard_normal((M, 256, d)).astype(np.float32)
    codebooks *= (scale ** np.arange(M, dtype=np.float32))[:, None, None]
    index = faiss_dpq.IndexDPQ.from_codebooks(codebooks, metric)
    index.add_sa_codes(rng.integers(0, 256, (n, M)).astype(np.uint8))
    queries = (index.reconstruct_n(0, 40) + rng.standard_normal((40, d)) / 2).astype(np.float32)
    return index, queries


def one_by_one(index, queries, k, params=None):
    found = [index.search(query[None], k, params=params) for query in queries]
    return np.concatenate([D for D, _ in found]), np.concatenate([I for _, I in found])


def warmed(index, queries, params=None):
    one_by_one(index, np.resize(queries, (WARM, queries.shape[1])), 3, params)
    _kernels.reset_counters()


def assert_equals_plain(index, queries, k, params=None):
    """Of the warmed index, beside one that has never been searched."""
    D, I = one_by_one(index, queries, k, params)
    levels = (params.levels if isinstance(params, faiss_dpq.SearchParametersDPQ) else 0) or index.rq.M
    assert (_kernels.counters()["ordered"] > 0) == (levels <= _kernels.most_ordered())
    fresh = faiss_dpq.clone_index(index)
    for query, d, i in zip(queries, D, I, strict=True):
        D1, I1 = fresh.search(query[None], k, params=params)
        fresh.invalidate()
        np.testing.assert_array_equal(d, D1[0])
        np.testing.assert_array_equal(i, I1[0])
        if len(queries) > 1:
            fresh = faiss_dpq.clone_index(index)


@pytest.mark.usefixtures("simd")
@pytest.mark.parametrize("metric", [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT])
@pytest.mark.parametrize("M", [2, 3, 4, 7, 8, 12, 16])
def test_results_are_those_of_a_plain_scan(M, metric):
    index, queries = filled(M=M, metric=metric)
    warmed(index, queries)
    for k in (1, 10, 50, 700):
        assert_equals_plain(index, queries[:4], k)


@pytest.mark.usefixtures("simd")
def test_results_equal_a_float64_loop():
    index, queries = filled()
    warmed(index, queries)
    x = index.codebooks.astype(np.float64)[np.arange(8), faiss.vector_to_array(index.codes).reshape(-1, 8)].sum(1)
    D, I = one_by_one(index, queries[:10], 10)
    for query, d, i in zip(queries, D, I, strict=False):
        exact = ((x - query) ** 2).sum(1)
        np.testing.assert_allclose(d, np.sort(exact)[:10], rtol=1e-4)
        np.testing.assert_allclose(d, exact[i], rtol=1e-4)


@pytest.mark.usefixtures("simd")
def test_selectors():
    index, queries = filled()
    allowed = np.random.default_rng(1).random(index.ntotal) < 0.3
    warmed(index, queries)
    for sel in (faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little")), faiss.IDSelectorRange(5000, 13000)):
        assert_equals_plain(index, queries[:3], 20, faiss_dpq.SearchParametersDPQ(sel=sel))


@pytest.mark.usefixtures("simd")
@pytest.mark.parametrize(("k", "share"), [(10, 0.1), (100, 0.1), (100, 0.3), (5000, 0.2), (5000, 0.5)])
def test_the_first_blocks_hold_fewer_than_k_of_those_admitted(k, share):
    index, queries = filled(n=40_000)
    allowed = np.random.default_rng(1).random(index.ntotal) < share
    warmed(index, queries)
    params = faiss_dpq.SearchParametersDPQ(sel=faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little")))
    assert_equals_plain(index, queries[:3], k, params)


@pytest.mark.usefixtures("simd")
def test_prefixes_have_an_order_each():
    for levels in (2, 5):
        index, queries = filled()
        params = faiss_dpq.SearchParametersDPQ(levels=levels)
        warmed(index, queries, params)
        assert_equals_plain(index, queries[:3], 10, params)


@pytest.mark.usefixtures("simd")
@pytest.mark.parametrize("more", [1, 300, 15_000])
def test_what_is_added_later_is_found(more):
    index, queries = filled(n=100_000 if more > 1000 else 20_000)
    warmed(index, queries)
    index.add_sa_codes(np.random.default_rng(2).integers(0, 256, (more, 8)).astype(np.uint8))
    assert_equals_plain(index, queries[:3], 10)
    index.add(queries)
    D, I = index.search(queries[7:8], 10)
    assert I[0, 0] >= index.ntotal - len(queries) or D[0, 0] <= index.search(queries, 1)[0][7, 0]


@pytest.mark.usefixtures("simd")
def test_removal_and_change_of_codebooks():
    index, queries = filled()
    warmed(index, queries)
    index.remove_ids(np.arange(0, 5000, 3))
    warmed(index, queries)
    assert_equals_plain(index, queries[:3], 10)
    other, _ = filled(seed=5)
    index.rq.codebooks = other.rq.codebooks
    index.invalidate()
    warmed(index, queries)
    assert_equals_plain(index, queries[:3], 10)


@pytest.mark.usefixtures("simd")
@pytest.mark.parametrize("kind", ["one code", "two codes", "far codeword", "zeros", "skewed"])
def test_awkward_codes(kind):
    rng = np.random.default_rng(3)
    codebooks = rng.standard_normal((6, 256, 8)).astype(np.float32)
    codes = rng.integers(0, 256, (20_000, 6)).astype(np.uint8)
    if kind == "one code":
        codes[:] = 7
    elif kind == "two codes":
        codes[:] = rng.integers(0, 2, (20_000, 1))
    elif kind == "far codeword":
        codebooks[1, 4] = 1e6
    elif kind == "zeros":
        codebooks[2:] = 0
    else:
        codes[:18_000, :4] = 3
    index = faiss_dpq.IndexDPQ.from_codebooks(codebooks)
    index.add_sa_codes(codes)
    queries = rng.standard_normal((20, 8)).astype(np.float32)
    warmed(index, queries)
    for k in (1, 40):
        assert_equals_plain(index, queries[:3], k)


@pytest.mark.usefixtures("simd")
@pytest.mark.parametrize("value", [1e20, np.inf, np.nan, 0.0])
def test_awkward_queries(value):
    index, queries = filled()
    warmed(index, queries)
    assert_equals_plain(index, np.full((1, 16), value, np.float32), 10)


def test_two_threads_give_the_same():
    index, queries = filled(n=600_000)
    warmed(index, queries)
    before = faiss.omp_get_max_threads()
    results = []
    try:
        for n_threads in (1, 2):
            faiss.omp_set_num_threads(n_threads)
            results.append(one_by_one(index, queries, 10))
    finally:
        faiss.omp_set_num_threads(before)
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)


def test_few_searches_make_no_order_and_small_indexes_have_none():
    index, queries = filled()
    _kernels.reset_counters()
    one_by_one(index, queries[:15], 3)
    small, _ = filled(n=5000)
    one_by_one(small, queries, 3)
    assert _kernels.counters()["ordered"] == 0
    before = index.memory_usage()["derived"]
    one_by_one(index, queries, 3)
    assert before + 16 * index.ntotal <= index.memory_usage()["derived"] <= before + 20 * index.ntotal


@pytest.mark.parametrize("metric", [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT])
@pytest.mark.parametrize("M", [1, 8, 20])
def test_results_do_not_depend_on_what_is_derived(M, metric):
    index, queries = filled(n=70_000, M=M, metric=metric)
    allowed = np.random.default_rng(1).random(index.ntotal) < 0.01
    few = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
    asked = [
        lambda: index.search(queries, 5),
        lambda: one_by_one(index, np.resize(queries, (WARM, 16)), 5),
        lambda: index.search(queries[:2], 700, params=faiss_dpq.SearchParametersDPQ(sel=few, levels=min(M, 3))),
        lambda: index.range_search(queries[:3], float(np.abs(index.search(queries, 9)[0][:, -1]).mean()))[1:],
    ]
    expected = [ask() for ask in asked]
    for most in (0, 1, 5.5, 12):
        index.derived_bytes_per_vector = most
        for ask, one in zip(asked, expected, strict=True):
            for a, b in zip(ask(), one, strict=True):
                np.testing.assert_array_equal(a, b)
            assert index.memory_usage()["derived"] <= most * index.ntotal
    assert faiss_dpq.clone_index(index).derived_bytes_per_vector == 12
    index.derived_bytes_per_vector = None
    assert index.derived_bytes_per_vector == M + 16


def test_what_is_derived_stays_within_the_default():
    index, queries = filled(n=60_000)
    for levels in range(1, 9):
        one_by_one(index, np.resize(queries, (WARM, 16)), 3, faiss_dpq.SearchParametersDPQ(levels=levels))
        assert index.memory_usage()["derived"] <= 24 * index.ntotal
    _kernels.reset_counters()
    one_by_one(index, queries, 3, faiss_dpq.SearchParametersDPQ(levels=2))
    assert _kernels.counters()["ordered"]
    for value in (-1, "8", float("nan"), True):
        with pytest.raises(ValueError, match="derived_bytes_per_vector"):
            index.derived_bytes_per_vector = value


@pytest.mark.parametrize(("M", "stored"), [(4, False), (8, True), (16, True)])
def test_terms_of_many_pairs_are_stored_where_there_is_room(M, stored):
    """By which a search for many results looks up no cross terms; beside the order, which counts for more."""
    index, queries = filled(n=20_000, M=M)
    D, I = index.search(queries, 50)
    bytes_of_order = M + 9
    for most, has_terms in ((None, stored), (M + 5 + 9, stored), (M + 4 + 9, False), (3, False)):
        index.derived_bytes_per_vector = most
        for found, expected in zip(index.search(queries, 50), (D, I), strict=True):
            np.testing.assert_array_equal(found, expected)
        assert index.memory_usage()["derived"] == (5 if has_terms else 1) * index.ntotal
        one_by_one(index, np.resize(queries, (WARM, 16)), 5)
        has_order = index.memory_usage()["derived"] > bytes_of_order * index.ntotal
        assert has_order == (most != 3)
    # What other prefix lengths take leaves no room any more.
    index.derived_bytes_per_vector = M + 5 + 9
    index.search(queries, 50)
    for levels in range(2, M):
        one_by_one(index, np.resize(queries, (WARM, 16)), 5, faiss_dpq.SearchParametersDPQ(levels=levels))
        for found, expected in zip(index.search(queries, 50), (D, I), strict=True):
            np.testing.assert_array_equal(found, expected)
        assert index.memory_usage()["derived"] <= index.derived_bytes_per_vector * index.ntotal


@pytest.mark.usefixtures("simd")
@pytest.mark.parametrize("mapped", [False, True])
def test_random_changes_and_filters(mapped):
    """Whatever happened before, results are those of a copy for which nothing is derived."""
    rng = np.random.default_rng(8)
    inner, queries = filled(n=20_000, d=8, M=4)
    inner.beam_size = 1
    index, ids = inner, np.arange(20_000)
    if mapped:
        ids, x = rng.permutation(90_000)[:20_000], inner.reconstruct_n(0, 20_000)
        inner.reset()
        index = faiss_dpq.IndexIDMap2(inner)
        index.add_with_ids(x, ids)
    _kernels.reset_counters()
    for turn in range(12):
        if turn % 3 == 0:
            new = rng.permutation(np.setdiff1d(np.arange(90_000), ids))[:700] if mapped else len(ids) + np.arange(700)
            x = rng.standard_normal((700, 8)).astype(np.float32)
            index.add_with_ids(x, new) if mapped else index.add(x)
            ids = np.append(ids, new)
        elif turn % 3 == 1:
            gone = rng.permutation(ids)[: 1 if turn < 6 else 400]
            assert index.remove_ids(gone) == len(gone)
            ids = np.setdiff1d(ids, gone) if mapped else np.arange(index.ntotal)
        elif mapped:
            index.update_vectors(rng.permutation(ids)[:60], rng.standard_normal((60, 8)).astype(np.float32))
        one_by_one(index, np.resize(queries, (WARM, 8)), 3)
        plain = faiss_dpq.clone_index(index)
        (plain.index if mapped else plain).derived_bytes_per_vector = 0
        half = faiss.IDSelectorArray(rng.permutation(ids)[: len(ids) // 2])
        for params in (None, faiss.SearchParameters(sel=half)):
            D, I = one_by_one(index, queries[:3], 10, params)
            assert np.isin(I, ids).all()
            for found, expected in zip((D, I), plain.search(queries[:3], 10, params=params), strict=True):
                np.testing.assert_array_equal(found, expected)
    assert _kernels.counters()["ordered"] > 0
