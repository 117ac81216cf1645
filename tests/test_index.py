"""IndexDPQ has the surface of faiss.IndexPQ, and its search is exact."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import faiss
import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import faiss_dpq
from faiss_dpq import _kernels, training
from faiss_dpq.codec import quantizer as quantizer_module
from faiss_dpq.search import flat as _scan

FLT_MAX = np.finfo(np.float32).max
METRICS = [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT]


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


@pytest.fixture(scope="module")
def trained(digits):
    index = faiss_dpq.IndexDPQ(64, 4, 6)
    index.train(digits)
    index.add(digits[:1000])
    return index


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
    monkeypatch.setattr(quantizer_module, "MAX_CROSS_TABLE_BYTES", -1)
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


def test_truncate_keeps_the_original(trained, digits):
    before = faiss.serialize_index(trained).tobytes()
    short = trained.truncate(2)
    np.testing.assert_array_equal(short.codebooks, trained.codebooks[:2])
    short.add(digits[:10])
    assert (trained.ntotal, short.ntotal) == (1000, 1010)
    assert faiss.serialize_index(trained).tobytes() == before


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


@pytest.mark.parametrize("d, M, nbits", [(64, 4, 8), (64, 8, 4), (60, 5, 6), (24, 3, 12), (64, 1, 1), (70, 10, 5)])
def test_code_size_is_that_of_index_pq(d, M, nbits):
    index = faiss_dpq.IndexDPQ(d, M, nbits)
    assert index.code_size == index.sa_code_size() == faiss.IndexPQ(d, M, nbits).code_size


def test_any_d_and_m(digits):
    x = np.ascontiguousarray(digits[:, :37])
    index = faiss_dpq.IndexDPQ(37, 6, 4)
    index.train(x)
    index.add(x)
    assert (index.search(x[:200], 1)[1][:, 0] == np.arange(200)).mean() > 0.5


def test_it_is_a_faiss_index(trained):
    assert isinstance(trained, faiss.Index)
    assert isinstance(trained, faiss.IndexResidualQuantizer)
    assert (trained.d, trained.ntotal, trained.is_trained) == (64, 1000, True)


def test_stock_wrappers_take_it(trained, digits):
    wrapped = faiss.IndexIDMap2(empty(trained))
    wrapped.add_with_ids(digits[:50], np.arange(1000, 1050))
    D, I = wrapped.search(digits[:50], 3)
    inner = faiss_dpq.downcast_index(wrapped.index)
    assert type(inner) is faiss_dpq.IndexDPQ
    np.testing.assert_array_equal(I, inner.search(digits[:50], 3)[1] + 1000)
    np.testing.assert_allclose(D, inner.search(digits[:50], 3)[0], rtol=1e-4)


def test_reconstruct_and_codec(trained, digits):
    codes = trained.sa_encode(digits[:1000])
    assert (codes.dtype, codes.shape) == (np.uint8, (1000, trained.sa_code_size()))
    decoded = trained.sa_decode(codes)
    np.testing.assert_array_equal(trained.reconstruct_n(0, 1000), decoded)
    np.testing.assert_array_equal(trained.reconstruct(17), decoded[17])
    np.testing.assert_array_equal(trained.reconstruct_batch(np.array([5, 3])), decoded[[5, 3]])
    out = np.empty_like(codes)
    assert trained.sa_encode(digits[:1000], out) is out
    np.testing.assert_array_equal(out, codes)
    quantizer = trained.residual_quantizer
    encoded = quantizer.encode(digits[:1000], prefix_weight=trained.prefix_weight)
    np.testing.assert_allclose(quantizer.decode(encoded), decoded, atol=1e-4)


def test_search_and_reconstruct_and_assign(trained, digits):
    D, I = trained.search(digits[:5], 3)
    D2, I2, R = trained.search_and_reconstruct(digits[:5], 3)
    np.testing.assert_array_equal((D2, I2), (D, I))
    np.testing.assert_array_equal(R, trained.reconstruct_batch(I.ravel()).reshape(5, 3, 64))
    np.testing.assert_array_equal(trained.assign(digits[:5], 3), I)
    labels = np.empty((5, 3), np.int64)
    assert trained.assign(digits[:5], 3, labels) is labels
    np.testing.assert_array_equal(labels, I)
    few = trained.truncate(4)
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
    # Halfway between two distances, so that rounding decides nothing.
    ordered = np.unique(all_D[:, members].round(4))
    at = min(int(quantile * len(ordered)), len(ordered) - 1)
    thresh = float(ordered[at] + 5e-5)
    lims, D, I = index.range_search(xq, thresh, params=params)
    assert (lims.dtype, D.dtype, I.dtype, lims[-1]) == (np.uint64, np.float32, np.int64, len(D))
    within = (all_D > thresh if metric == faiss.METRIC_INNER_PRODUCT else all_D < thresh) & members
    for q in range(7):
        part = slice(lims[q], lims[q + 1])
        assert set(I[part]) == set(np.flatnonzero(within[q]))
        np.testing.assert_allclose(D[part], all_D[q, I[part]], rtol=1e-4, atol=1e-4)
        assert (np.diff(D[part]) * (-1 if metric == faiss.METRIC_INNER_PRODUCT else 1) >= 0).all()


def test_range_search_of_nothing(trained, digits):
    lims, D, I = trained.range_search(digits[:0], 1.0)
    assert (lims.tolist(), len(D), len(I)) == ([0], 0, 0)
    lims, D, I = empty(trained).range_search(digits[:2], 1.0)
    assert (lims.tolist(), len(D), len(I)) == ([0, 0, 0], 0, 0)


def test_memory_usage_counts_what_is_held(trained, digits):
    index = trained.truncate(4)
    before = index.memory_usage()
    assert before["codes"] == 1000 * index.code_size
    assert before["codebooks"] >= index.codebooks.nbytes
    index.search(digits[:1], 1)
    after = index.memory_usage()
    assert 1000 <= after["derived"] - before["derived"] <= 2000
    assert after["tables"] > before["tables"]


def test_results_go_into_given_arrays(trained, digits):
    D, I = np.empty((5, 3), np.float32), np.empty((5, 3), np.int64)
    result = trained.search(digits[:5], 3, D=D, I=I)
    assert result[0] is D and result[1] is I
    np.testing.assert_array_equal((D, I), trained.search(digits[:5], 3))


def test_add_does_not_depend_on_blocks_or_threads(trained, digits, threads, monkeypatch):
    codes = set()
    for n_threads in (1, 2, 3):
        threads(n_threads)
        for block in (100, 1 << 16):
            monkeypatch.setattr("faiss_dpq.index.flat._ADD_BLOCK", block)
            index = trained.truncate(4)
            index.reset()
            index.add(digits[:333])
            index.add(digits[333:1000])
            codes.add(index.sa_encode(digits[:1000]).tobytes())
            codes.add(faiss.vector_to_array(index.codes).tobytes())
    assert len(codes) == 1


def test_beam_size_trades_time_for_accuracy(trained, digits):
    index = trained.truncate(4)

    def error():
        return ((index.sa_decode(index.sa_encode(digits)) - digits) ** 2).sum(1).mean()

    errors = []
    for index.beam_size in (1, 4, 32):
        errors.append(error())
    assert errors[0] > errors[1] > errors[2]
    assert index.beam_size == index.rq.max_beam_size == 32


def test_reset_then_reuse(trained, digits):
    index = trained.truncate(4)
    index.reset()
    assert index.ntotal == 0
    assert (index.search(digits[:2], 3)[1] == -1).all()
    index.add(digits[:5])
    assert set(index.search(digits[:1], 9)[1][0]) == {0, 1, 2, 3, 4, -1}


@pytest.mark.parametrize("how", [copy.deepcopy, copy.copy, lambda index: pickle.loads(pickle.dumps(index))])
def test_copies(trained, digits, how):
    trained.levels = 2
    try:
        twin = how(trained)
        assert type(twin) is faiss_dpq.IndexDPQ
        assert (twin.levels, twin.beam_size, twin.train_stats) == (
            2,
            trained.beam_size,
            trained.train_stats,
        )
        np.testing.assert_array_equal(twin.search(digits[:9], 5), trained.search(digits[:9], 5))
        twin.add(digits[:1])
        assert (twin.ntotal, trained.ntotal) == (1001, 1000)
    finally:
        trained.levels = 4


def test_codebooks_is_a_copy(trained, digits):
    before = trained.search(digits[:3], 5)
    trained.codebooks[:] = 0
    np.testing.assert_array_equal(trained.search(digits[:3], 5), before)


def test_from_codebooks(digits):
    trained = faiss_dpq.IndexDPQ(64, 4, 4)
    trained.train(digits, effort="fast", shrinkage=1)  # codebooks alone do not tell of another
    trained.add(digits[:1000])
    index = faiss_dpq.IndexDPQ.from_codebooks(trained.codebooks.astype(np.float64))
    assert index.is_trained and index.ntotal == 0
    index.add(digits[:1000])
    np.testing.assert_array_equal(index.search(digits[:9], 5), trained.search(digits[:9], 5))
    np.testing.assert_array_equal(index.codebooks, trained.codebooks)


def test_codebooks_changed_by_faiss_are_noticed(digits):
    index, _ = filled_index(np.random.default_rng(0), 100, 64, 2, 4)
    index.search(digits[:1], 1)
    index.reset()
    faiss.IndexIDMap(index).train(digits[:900])  # C++ trains the same object behind our back
    index.add(digits[:100])
    D, _ = index.search(digits[:5], 3)
    expected = naive.search(
        index.codebooks, faiss_dpq._kernels.unpack_codes(index._packed_codes(), 2, 4), digits[:5], 3
    )
    np.testing.assert_allclose(D, expected[0], rtol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("tables", ["cross tables", "no cross tables"])
def test_any_change_of_the_codes_is_noticed(metric, tables, monkeypatch):
    """Bins and radii are derived from the codes: no way of changing these may leave the old ones in use."""
    if tables == "no cross tables":
        monkeypatch.setattr(quantizer_module, "MAX_CROSS_TABLE_BYTES", -1)
    rng = np.random.default_rng(0)
    n = 20_000
    index, _ = filled_index(rng, n, 9, 4, 8, metric)
    stock = faiss.downcast_index(index)
    xq = rng.standard_normal((3, 9)).astype(np.float32)

    def check():
        codes = faiss_dpq._kernels.unpack_codes(index._packed_codes(), 4, 8)
        for some in (xq, xq[:1]):
            expected = naive.search(index.codebooks, codes, some, 5, metric == faiss.METRIC_INNER_PRODUCT)
            assert_same_neighbours(*index.search(some, 5), *expected)

    def overwrite(rows):
        view = faiss.rev_swig_ptr(stock.codes.data(), stock.codes.size()).reshape(-1, 4)
        view[rows] = rng.integers(0, 256, (len(rows), 4))

    check()
    for change in (
        lambda: index.add(10 * rng.standard_normal((100, 9)).astype(np.float32)),
        lambda: overwrite(np.array([7])),
        lambda: overwrite(np.array([index.ntotal - 1])),
        lambda: overwrite(np.arange(9000)),
        lambda: stock.remove_ids(np.arange(500)),
        lambda: stock.permute_entries(rng.permutation(stock.ntotal)),
        lambda: stock.add(rng.standard_normal((50, 9)).astype(np.float32)),
        lambda: (stock.reset(), index.add(rng.standard_normal((n, 9)).astype(np.float32))),
        lambda: stock.remove_ids(np.arange(n - 9)),
    ):
        change()
        check()


def test_a_query_is_repeated_if_its_bins_were_of_other_codes(monkeypatch):
    """Also where another thread has brought the bins up to date before the query looks again."""
    rng = np.random.default_rng(0)
    index, _ = filled_index(rng, 20_000, 9, 4, 8)
    xq = rng.standard_normal((1, 9)).astype(np.float32)
    index.search(xq, 5)
    view = faiss.rev_swig_ptr(index.codes.data(), index.codes.size())
    view[:] = rng.integers(0, 256, view.size)
    scans, scan_block = [], _scan._scan_block

    def scan_then_update(derived, *arguments):
        scan_block(derived, *arguments)
        scans.append(derived)
        derived.update(index._packed_codes())

    monkeypatch.setattr(_scan, "_scan_block", scan_then_update)
    found = index.search(xq, 5)
    assert len(scans) == 2
    codes = faiss_dpq._kernels.unpack_codes(index._packed_codes(), 4, 8)
    assert_same_neighbours(*found, *naive.search(index.codebooks, codes, xq, 5))


def test_concurrent_searches_on_one_index(threads):
    threads(2)
    rng = np.random.default_rng(0)
    index, _ = filled_index(rng, 30_000, 16, 4, 8)
    xq = rng.standard_normal((64, 16)).astype(np.float32)
    alone = faiss_dpq.clone_index(index)
    jobs = [(xq[i % 7 : i % 7 + 1 + 9 * (i % 5)], 1 + i % 4) for i in range(60)]
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda job: index.search(job[0], 9, params=faiss_dpq.SearchParametersDPQ(levels=job[1])), jobs)
        )
    for (x, levels), result in zip(jobs, found, strict=True):
        expected = alone.search(x, 9, params=faiss_dpq.SearchParametersDPQ(levels=levels))
        np.testing.assert_array_equal(result[1], expected[1])
        np.testing.assert_array_equal(result[0], expected[0])


def test_any_real_dtype_and_layout(trained, digits):
    expected = trained.search(digits[:7], 3)
    for x in (
        digits[:7].astype(np.float64),
        digits[:7].astype(np.float16),
        digits[:7].astype(np.uint8),
    ):
        np.testing.assert_array_equal(trained.search(x, 3), expected)
    np.testing.assert_array_equal(trained.search(np.asfortranarray(digits[:7]), 3), expected)
    np.testing.assert_array_equal(trained.search(digits[:14:2], 3)[0][0], expected[0][0])


def test_nan_queries_find_nothing(trained, digits):
    x = digits[:3].copy()
    x[1, 0] = np.nan
    D, I = trained.search(x, 2)
    np.testing.assert_array_equal(I[1], -1)
    np.testing.assert_array_equal(D[1], FLT_MAX)
    np.testing.assert_array_equal(I[[0, 2]], trained.search(digits[[0, 2]], 2)[1])


bad_calls = {
    "d": (lambda i, x: faiss_dpq.IndexDPQ(0, 4), ValueError, "IndexDPQ: d is 0"),
    "M": (lambda i, x: faiss_dpq.IndexDPQ(8, 0), ValueError, "IndexDPQ: M is 0"),
    "nbits": (lambda i, x: faiss_dpq.IndexDPQ(8, 4, 13), ValueError, "IndexDPQ: nbits is 13"),
    "metric": (
        lambda i, x: faiss_dpq.IndexDPQ(8, 4, 8, faiss.METRIC_L1),
        ValueError,
        "IndexDPQ: metric is",
    ),
    "codebooks shape": (
        lambda i, x: faiss_dpq.IndexDPQ.from_codebooks(np.zeros((2, 3, 4))),
        ValueError,
        "K=3 codewords",
    ),
    "codebooks ndim": (
        lambda i, x: faiss_dpq.IndexDPQ.from_codebooks(np.zeros((2, 4))),
        ValueError,
        r"\(2, 4\)",
    ),
    "codebooks nan": (
        lambda i, x: faiss_dpq.IndexDPQ.from_codebooks(np.full((1, 2, 4), np.nan)),
        ValueError,
        "NaN or infinite",
    ),
    "search columns": (
        lambda i, x: i.search(x[:, :9], 1),
        AssertionError,
        "search: x has 9 columns, .* d=64",
    ),
    "search ndim": (lambda i, x: i.search(x[0], 1), ValueError, "search: x has 1 dimensions"),
    "search dtype": (
        lambda i, x: i.search(x.astype(complex), 1),
        TypeError,
        "search: x has dtype complex",
    ),
    "search text": (
        lambda i, x: i.search(np.array([["a"] * 64]), 1),
        TypeError,
        "search: x has dtype",
    ),
    "range_search columns": (lambda i, x: i.range_search(x[:, :9], 1), AssertionError, "range_search: x has 9 columns"),
    "search k": (lambda i, x: i.search(x, 0), AssertionError, "search: k is 0"),
    "search D": (
        lambda i, x: i.search(x, 2, D=np.empty((1, 1), "f4")),
        AssertionError,
        "search: D has shape",
    ),
    "search levels": (
        lambda i, x: i.search(x, 2, params=faiss_dpq.SearchParametersDPQ(levels=5)),
        ValueError,
        "params.levels is 5, the index has M=4",
    ),
    "levels": (lambda i, x: setattr(i, "levels", 0), ValueError, "levels is 0"),
    "truncate": (lambda i, x: i.truncate(9), ValueError, "levels is 9"),
    "beam_size": (lambda i, x: setattr(i, "beam_size", 0), ValueError, "beam_size is 0"),
    "unknown attribute": (lambda i, x: setattr(i, "beamsize", 3), AttributeError, "beamsize"),
    "add columns": (lambda i, x: i.add(x[:, :9]), AssertionError, "add: x has 9 columns"),
    "sa_encode out": (
        lambda i, x: i.sa_encode(x, np.empty((1, 1), "u1")),
        AssertionError,
        "codes has shape",
    ),
    "train twice": (lambda i, x: i.train(x), RuntimeError, "holds 1000 vectors"),
    "train few": (
        lambda i, x: empty(i).train(x[:10]),
        RuntimeError,
        r"10 vectors, at least 2\*\*nbits = 64",
    ),
    "train nan": (lambda i, x: empty(i).train(x * np.nan), RuntimeError, "NaN or infinite"),
    "train inf": (
        lambda i, x: empty(i).train(x + np.float32(np.inf)),
        RuntimeError,
        "NaN or infinite",
    ),
    "reconstruct": (lambda i, x: i.reconstruct(1000), RuntimeError, "ntotal"),
}


def empty(index):
    """An empty index sharing nothing with `index`, of the same shape."""
    twin = index.truncate(4)
    twin.reset()
    return twin


@pytest.mark.parametrize("call, error, message", bad_calls.values(), ids=bad_calls.keys())
def test_bad_input_is_named_and_changes_nothing(trained, digits, call, error, message):
    before = faiss.serialize_index(trained).tobytes()
    with pytest.raises(error, match=message):
        call(trained, digits)
    assert faiss.serialize_index(trained).tobytes() == before
    assert trained.levels == 4


@pytest.mark.parametrize(
    "call",
    [
        lambda i, x: i.add(x),
        lambda i, x: i.search(x, 1),
        lambda i, x: i.sa_encode(x),
        lambda i, x: i.codebooks,
        lambda i, x: i.truncate(1),
    ],
)
def test_an_untrained_index_refuses(digits, call):
    index = faiss_dpq.IndexDPQ(64, 4)
    with pytest.raises(RuntimeError, match="not trained"):
        call(index, digits)
    assert (index.ntotal, index.is_trained) == (0, False)


def test_failed_training_leaves_the_index_as_it_was(trained, digits):
    index = empty(trained)
    index.add(digits[:0])
    before = faiss.serialize_index(index).tobytes()
    with pytest.raises(RuntimeError):
        index.train(digits * np.nan)
    assert faiss.serialize_index(index).tobytes() == before
    untrained = faiss_dpq.IndexDPQ(64, 4)
    with pytest.raises(RuntimeError):
        untrained.train(digits[:5])
    assert not untrained.is_trained


def test_prefix_weight_favours_the_prefixes_of_codes(digits):
    index = faiss_dpq.IndexDPQ(64, 4, 4)
    index.train(digits)
    by_default = index.sa_encode(digits)
    index.prefix_weight = 0
    plain = index.sa_encode(digits)
    index.prefix_weight = 0.5
    favoured = index.sa_encode(digits)

    def error(codes, levels):
        decoded = index.residual_quantizer.decode(_kernels.unpack_codes(codes, levels, 4))
        return ((decoded - digits) ** 2).sum(1).mean()

    assert error(favoured, 1) < error(by_default, 1) < error(plain, 1)
    assert error(favoured, 2) < error(by_default, 2) < error(plain, 2)
    assert error(plain, 4) < error(favoured, 4) < 1.2 * error(plain, 4)
    assert error(by_default, 4) < 1.01 * error(plain, 4)
    copies = (copy.deepcopy(index), pickle.loads(pickle.dumps(index)), faiss_dpq.clone_index(index), index.truncate(2))
    assert [other.prefix_weight for other in copies] == [0.5] * 4
    for bad in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="prefix_weight"):
            index.prefix_weight = bad
    assert index.prefix_weight == 0.5


@pytest.mark.parametrize("kind", ["flat", "lists"])
def test_parallel_weight_ranks_unit_vectors_better_by_inner_products(digits, kind):
    x = digits / np.linalg.norm(digits, axis=1, keepdims=True)
    products = x @ x.T
    np.fill_diagonal(products, -1)
    nearest = products.argmax(1)
    index = faiss_dpq.IndexDPQ(64, 8, 4, faiss.METRIC_INNER_PRODUCT)
    if kind == "lists":
        index = faiss_dpq.IndexIVFDPQ(faiss.IndexFlatIP(64), 64, 4, 8, 4, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = 4
    index.rq.cp.seed = 1
    index.prefix_weight = 0
    index.train(x, effort=training.Effort(0, 4, 256))  # it is the encoder that is looked at

    def found(index):
        index.reset()
        index.add(x)
        return (index.search(x, 10)[1] == nearest[:, None]).any(1).mean()

    by_default = found(index)
    index.parallel_weight = 0
    assert found(index) < by_default - 0.04


def test_parallel_weight_is_the_metrics_unless_set(digits, tmp_path):
    assert faiss_dpq.IndexDPQ(64, 4, 4).parallel_weight == 0
    index = faiss_dpq.IndexDPQ(64, 4, 4, faiss.METRIC_INNER_PRODUCT)
    index.train(digits)
    default = index.parallel_weight
    assert default > 0
    for bad in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="parallel_weight"):
            index.parallel_weight = bad
    by_default = index.sa_encode(digits)
    index.parallel_weight = 0.25
    assert not np.array_equal(index.sa_encode(digits), by_default)
    copies = copy.deepcopy(index), pickle.loads(pickle.dumps(index)), faiss_dpq.clone_index(index), index.truncate(2)
    for other in copies:
        assert other.parallel_weight == 0.25
    faiss.write_index(index, str(tmp_path / "index"))
    other = faiss_dpq.read_index(tmp_path / "index")
    assert other.parallel_weight == default
    np.testing.assert_array_equal(other.sa_encode(digits), by_default)
