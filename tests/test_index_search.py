"""IndexDPQ.search and range_search are exact, whatever the prefix, the selector, the threads and the blocks."""

import faiss
import naive
import numpy as np
import pytest
from flat_index import assert_same_neighbours, empty, filled_index
from hypothesis import given
from hypothesis import strategies as st
from naive import FLT_MAX, METRICS

import faiss_dpq
from faiss_dpq.codec import levels as levels_module
from faiss_dpq.search import flat as _scan


@given(
    metric=st.sampled_from(METRICS),
    n=st.integers(0, 300),
    d=st.integers(1, 20),
    M=st.integers(1, 7),
    nbits=st.integers(1, 12),
    nq=st.integers(0, 40),
    k=st.integers(1, 50),
    seed=st.integers(0, 1000),
)
def test_search_is_exact(simd, metric, n, d, M, nbits, nq, k, seed):
    rng = np.random.default_rng(seed)
    M = min(M, 2) if nbits > 8 else M  # the reference is slow
    index, codes = filled_index(rng, n, d, M, nbits, metric)
    xq = rng.standard_normal((nq, d)).astype(np.float32)
    D, I = index.search(xq, k)
    assert (D.dtype, I.dtype, D.shape, I.shape) == (np.float32, np.int64, (nq, k), (nq, k))
    if n < k:
        np.testing.assert_array_equal(I[:, n:], -1)
        np.testing.assert_array_equal(D[:, n:], FLT_MAX if metric == faiss.METRIC_L2 else -FLT_MAX)
    if n and nq:
        expected = naive.search(index.codebooks, codes, xq, k, metric == faiss.METRIC_INNER_PRODUCT)
        width = min(n, k)
        assert_same_neighbours(D[:, :width], I[:, :width], *(a[:, :width] for a in expected[:2]), expected[2])


@pytest.mark.parametrize("metric", METRICS)
def test_search_without_cross_tables(metric, monkeypatch):
    monkeypatch.setattr(levels_module, "MAX_CROSS_TABLE_BYTES", -1)
    rng = np.random.default_rng(0)
    index, codes = filled_index(rng, 5000, 7, 3, 5, metric)
    xq = rng.standard_normal((5, 7)).astype(np.float32)
    expected = naive.search(index.codebooks, codes, xq, 10, metric == faiss.METRIC_INNER_PRODUCT)
    assert_same_neighbours(*index.search(xq, 10), *expected)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("nq", [1, 3, 100])
@pytest.mark.parametrize("most_vectors", [1 << 31, 4096])
def test_search_does_not_depend_on_threads_or_blocks(metric, nq, most_vectors, threads, monkeypatch):
    monkeypatch.setattr(_scan, "_WORTH_A_THREAD", 1)
    monkeypatch.setattr(_scan, "_MOST_VECTORS", most_vectors)
    rng = np.random.default_rng(nq)
    index, _ = filled_index(rng, 9001, 12, 4, 3, metric)  # 4,096 different codes: many ties
    xq = rng.standard_normal((nq, 12)).astype(np.float32)
    results = []
    for n_threads in (1, 2, 5):
        threads(n_threads)
        for table_bytes in (1, 64 << 20):
            monkeypatch.setattr(_scan, "_TABLE_BYTES", table_bytes)
            results.append(index.search(xq, 20))
    one_by_one = [index.search(xq[i : i + 1], 20) for i in range(nq)]
    results.append(tuple(np.concatenate(part) for part in zip(*one_by_one, strict=True)))
    for D, I in results:
        np.testing.assert_array_equal(D, results[0][0])
        np.testing.assert_array_equal(I, results[0][1])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("levels", [1, 3, 5])
@pytest.mark.parametrize("nbits", [4, 5, 8])
def test_levels_compare_a_prefix(metric, levels, nbits):
    rng = np.random.default_rng(1)
    index, codes = filled_index(rng, 500, 10, 5, nbits, metric)
    xq = rng.standard_normal((4, 10)).astype(np.float32)
    expected = naive.search(index.codebooks[:levels], codes[:, :levels], xq, 7, metric == faiss.METRIC_INNER_PRODUCT)
    by_params = index.search(xq, 7, params=faiss_dpq.SearchParametersDPQ(levels=levels))
    assert_same_neighbours(*by_params, *expected)
    assert index.levels == 5
    index.levels = levels
    short = index.truncate(levels)
    assert (short.rq.M, short.ntotal, short.levels) == (levels, 500, levels)
    assert short.code_size == (levels * nbits + 7) // 8
    for D, I in (index.search(xq, 7), short.search(xq, 7)):
        np.testing.assert_array_equal(D, by_params[0])
        np.testing.assert_array_equal(I, by_params[1])
    # Parameters of one search go before the index's own.
    full = naive.search(index.codebooks, codes, xq, 7, metric == faiss.METRIC_INNER_PRODUCT)
    assert_same_neighbours(*index.search(xq, 7, params=faiss_dpq.SearchParametersDPQ(levels=5)), *full)


@pytest.mark.parametrize(
    "make_selector",
    [
        lambda: None,
        lambda: faiss.IDSelectorAll(),
        lambda: faiss.IDSelectorRange(100, 650),
        lambda: faiss.IDSelectorRange(-5, 10**9),
        lambda: faiss.IDSelectorRange(300, 200),
        lambda: faiss.IDSelectorArray(np.array([5, 3, 699, 10_000])),
        lambda: faiss.IDSelectorBatch(np.arange(0, 700, 3)),
        lambda: faiss.IDSelectorBitmap(np.packbits(np.arange(700) % 5 == 0, bitorder="little")),
        lambda: faiss.IDSelectorNot(faiss.IDSelectorRange(100, 650)),
        lambda: faiss.PyCallbackIDSelector(lambda i: i % 7 == 2),
        lambda: faiss.IDSelectorAnd(faiss.IDSelectorRange(100, 400), faiss.IDSelectorBatch(np.arange(0, 700, 2))),
        lambda: faiss.IDSelectorOr(faiss.IDSelectorRange(0, 40), faiss.IDSelectorArray(np.arange(600, 680))),
        lambda: faiss.IDSelectorXOr(faiss.IDSelectorRange(0, 400), faiss.IDSelectorNot(faiss.IDSelectorRange(9, 600))),
    ],
)
def test_selectors_restrict_the_search(make_selector, monkeypatch):
    monkeypatch.setattr("faiss_dpq.search.selection._CHUNK", 256)
    rng = np.random.default_rng(3)
    index, codes = filled_index(rng, 700, 9, 4, 4)
    xq = rng.standard_normal((3, 9)).astype(np.float32)
    selector = make_selector()
    members = np.array([selector is None or selector.is_member(i) for i in range(700)])
    params = faiss_dpq.SearchParametersDPQ(levels=3, sel=selector)
    expected = naive.search(index.codebooks[:3], codes[:, :3], xq, 12, members=members)
    assert_same_neighbours(*index.search(xq, 12, params=params), *expected)
    stock_params = faiss.SearchParameters(sel=selector)
    expected = naive.search(index.codebooks, codes, xq, 12, members=members)
    assert_same_neighbours(*index.search(xq, 12, params=stock_params), *expected)


@pytest.mark.parametrize("n", [0, 9, 20_000])
def test_a_selector_of_all_ids_and_one_query(n):
    rng = np.random.default_rng(0)
    index, _ = filled_index(rng, n, 9, 4, 8)
    xq = rng.standard_normal((1, 9)).astype(np.float32)
    params = faiss.SearchParameters(sel=faiss.IDSelectorNot(faiss.IDSelectorRange(-9, 0)))
    for _ in range(2):  # before and after the bins are made
        np.testing.assert_array_equal(index.search(xq, 5, params=params), index.search(xq, 5))


def test_search_and_reconstruct_and_assign(trained_dpq, digits):
    D, I = trained_dpq.search(digits[:5], 3)
    D2, I2, R = trained_dpq.search_and_reconstruct(digits[:5], 3)
    np.testing.assert_array_equal((D2, I2), (D, I))
    np.testing.assert_array_equal(R, trained_dpq.reconstruct_batch(I.ravel()).reshape(5, 3, 64))
    np.testing.assert_array_equal(trained_dpq.assign(digits[:5], 3), I)
    labels = np.empty((5, 3), np.int64)
    assert trained_dpq.assign(digits[:5], 3, labels) is labels
    np.testing.assert_array_equal(labels, I)
    few = trained_dpq.truncate(4)
    few.reset()
    few.add(digits[:2])
    _, I, R = few.search_and_reconstruct(digits[:1], 4)
    np.testing.assert_array_equal(np.isnan(R).all(2), I < 0)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("quantile", [0.0, 0.001, 0.3, 1.0])
@pytest.mark.parametrize("selector", [None, faiss.IDSelectorRange(100, 900), faiss.IDSelectorBatch(np.arange(40))])
def test_range_search_finds_all_within(metric, quantile, selector, monkeypatch):
    monkeypatch.setattr(_scan, "_FIRST_RANGE_K", 8)
    monkeypatch.setattr(_scan, "_RANGE_RESULTS", 2000)
    rng = np.random.default_rng(4)
    index, codes = filled_index(rng, 1000, 9, 4, 5, metric)
    xq = rng.standard_normal((7, 9)).astype(np.float32)
    params = faiss_dpq.SearchParametersDPQ(levels=3, sel=selector)
    members = np.array([selector is None or selector.is_member(i) for i in range(1000)])
    *_, all_D = naive.search(index.codebooks[:3], codes[:, :3], xq, 1, metric == faiss.METRIC_INNER_PRODUCT)
    # Halfway between two distances that are 1e-4 apart, so that rounding decides nothing.
    ordered = np.sort(all_D[:, members].ravel())
    gaps = np.append(np.flatnonzero(np.diff(ordered) > 1e-4), len(ordered) - 1)
    at = gaps[min(int(quantile * len(gaps)), len(gaps) - 1)]
    thresh = float(ordered[at : at + 2].mean() + (5e-5 if at == len(ordered) - 1 else 0))
    lims, D, I = index.range_search(xq, thresh, params=params)
    assert (lims.dtype, D.dtype, I.dtype, lims[-1]) == (np.uint64, np.float32, np.int64, len(D))
    within = (all_D > thresh if metric == faiss.METRIC_INNER_PRODUCT else all_D < thresh) & members
    for q in range(7):
        part = slice(lims[q], lims[q + 1])
        assert set(I[part]) == set(np.flatnonzero(within[q]))
        np.testing.assert_allclose(D[part], all_D[q, I[part]], rtol=1e-4, atol=1e-4)
        assert (np.diff(D[part]) * (-1 if metric == faiss.METRIC_INNER_PRODUCT else 1) >= 0).all()


def test_range_search_of_nothing(trained_dpq, digits):
    lims, D, I = trained_dpq.range_search(digits[:0], 1.0)
    assert (lims.tolist(), len(D), len(I)) == ([0], 0, 0)
    lims, D, I = empty(trained_dpq).range_search(digits[:2], 1.0)
    assert (lims.tolist(), len(D), len(I)) == ([0, 0, 0], 0, 0)


def test_results_go_into_given_arrays(trained_dpq, digits):
    D, I = np.empty((5, 3), np.float32), np.empty((5, 3), np.int64)
    result = trained_dpq.search(digits[:5], 3, D=D, I=I)
    assert result[0] is D and result[1] is I
    np.testing.assert_array_equal((D, I), trained_dpq.search(digits[:5], 3))


def test_any_real_dtype_and_layout(trained_dpq, digits):
    expected = trained_dpq.search(digits[:7], 3)
    for x in (
        digits[:7].astype(np.float64),
        digits[:7].astype(np.float16),
        digits[:7].astype(np.uint8),
    ):
        np.testing.assert_array_equal(trained_dpq.search(x, 3), expected)
    np.testing.assert_array_equal(trained_dpq.search(np.asfortranarray(digits[:7]), 3), expected)
    np.testing.assert_array_equal(trained_dpq.search(digits[:14:2], 3)[0][0], expected[0][0])


def test_nan_queries_find_nothing(trained_dpq, digits):
    x = digits[:3].copy()
    x[1, 0] = np.nan
    D, I = trained_dpq.search(x, 2)
    np.testing.assert_array_equal(I[1], -1)
    np.testing.assert_array_equal(D[1], FLT_MAX)
    np.testing.assert_array_equal(I[[0, 2]], trained_dpq.search(digits[[0, 2]], 2)[1])
