"""IndexIVFDPQ.search of the probed lists is exact, whatever the selector, the threads and the blocks."""

import copy
from concurrent.futures import ThreadPoolExecutor

import faiss
import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ivf_model import Model, assert_finds, filled, probed, sa_codes
from naive import FLT_MAX, METRICS, normal

import faiss_dpq
from faiss_dpq.codec import levels as levels_module
from faiss_dpq.search import lists as _lists

# ---- search ---------------------------------------------------------------------------------------------------------


@given(
    metric=st.sampled_from(METRICS),
    n=st.integers(0, 400),
    d=st.integers(1, 20),
    nlist=st.integers(1, 9),
    nprobe=st.integers(1, 10),
    M=st.integers(1, 7),
    nbits=st.integers(1, 12),
    nq=st.integers(0, 20),
    k=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_search_is_exact(simd, metric, n, d, nlist, nprobe, M, nbits, nq, k, seed):
    rng = np.random.default_rng(seed)
    M = min(M, 2) if nbits > 8 else M
    index, model = filled(rng, n, d, nlist, M, nbits, metric)
    index.nprobe = nprobe
    xq = normal(rng, nq, d)
    D, I = index.search(xq, k)
    assert (D.dtype, I.dtype, D.shape, I.shape) == (np.float32, np.int64, (nq, k), (nq, k))
    if nq:
        assert_finds(
            np.abs(D) if not n else D, I, model, xq, probed(index, xq, min(nprobe, nlist)), metric
        ) if n else None
        assert n or (I == -1).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("M", "nbits"), [(4, 8), (8, 8), (5, 8), (16, 4), (9, 4), (6, 6), (2, 8)])
@pytest.mark.parametrize("k", [1, 10, 300])
def test_search_of_long_lists_is_exact(simd, metric, M, nbits, k):
    rng = np.random.default_rng(M * k)
    index, model = filled(rng, 6000, 24, 7, M, nbits, metric)
    index.nprobe = 5
    xq = normal(rng, 40, 24)
    assert_finds(*index.search(xq, k), model, xq, probed(index, xq), metric)
    one_by_one = [index.search(xq[q : q + 1], k) for q in range(3)]
    for q, (D, I) in enumerate(one_by_one):
        assert_finds(D, I, model, xq[q : q + 1], probed(index, xq[q : q + 1]), metric)


def test_search_far_from_the_origin(simd):
    rng = np.random.default_rng(0)
    index, model = filled(rng, 4000, 16, 5, 4, 8, offset=300.0)
    index.nprobe = 5
    xq = normal(rng, 20, 16) + 300
    assert_finds(*index.search(xq, 20), model, xq, probed(index, xq))


def test_unequal_lists(simd):
    # One list of outliers, one of a single vector, empty ones: every list has a step and a limit of its own.
    rng = np.random.default_rng(1)
    index, model = filled(rng, 3000, 8, 6, 4, 8)
    codes = rng.integers(0, 256, (601, 4)).astype(np.uint16)
    lists = np.append(np.full(600, 2), 5)
    index.remove_ids(np.array([i for i, number in model.lists.items() if number in (1, 5)]))
    model.drop([i for i, number in list(model.lists.items()) if number in (1, 5)])
    index.add_sa_codes(sa_codes(index, lists, codes), np.arange(5000, 5601))
    centres = index.quantizer.reconstruct_n(0, 6).astype(np.float64)
    model.put(np.arange(5000, 5601), lists, centres[lists] + naive.decode(index.codebooks, codes))
    index.nprobe = 6
    xq = np.concatenate([normal(rng, 20, 8), 50 * normal(rng, 20, 8)])
    assert_finds(*index.search(xq, 15), model, xq, probed(index, xq))


@pytest.mark.parametrize("metric", METRICS)
def test_search_without_cross_tables(metric, monkeypatch):
    monkeypatch.setattr(levels_module, "MAX_CROSS_TABLE_BYTES", -1)
    rng = np.random.default_rng(0)
    index, model = filled(rng, 5000, 7, 4, 3, 5, metric)
    index.nprobe = 3
    xq = normal(rng, 5, 7)
    assert_finds(*index.search(xq, 10), model, xq, probed(index, xq), metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("nq", [1, 3, 150])
def test_search_does_not_depend_on_threads_or_blocks(metric, nq, threads, monkeypatch):
    monkeypatch.setattr(_lists, "_WORTH_A_THREAD", 1)
    rng = np.random.default_rng(nq)
    index, _ = filled(rng, 5001, 12, 6, 4, 4, metric)  # 65,536 different codes: ties
    index.nprobe = 4
    xq = normal(rng, nq, 12)
    results = []
    for n_threads in (1, 2, 5):
        threads(n_threads)
        for table_bytes in (1, 64 << 20):
            monkeypatch.setattr(_lists, "_TABLE_BYTES", table_bytes)
            results.append(index.search(xq, 20))
    one_by_one = [index.search(xq[i : i + 1], 20) for i in range(nq)]
    results.append(tuple(np.concatenate(part) for part in zip(*one_by_one, strict=True)))
    for D, I in results:
        np.testing.assert_array_equal(D, results[0][0])
        np.testing.assert_array_equal(I, results[0][1])


def test_searches_from_several_threads():
    rng = np.random.default_rng(0)
    index, _ = filled(rng, 8000, 16, 40, 4, 8)
    xq = normal(rng, 64, 16)
    expected = [copy.deepcopy(index).search(xq, 10, params=faiss.SearchParametersIVF(nprobe=p)) for p in range(1, 9)]
    for _ in range(3):
        index._known = None
        with ThreadPoolExecutor(4) as pool:
            found = pool.map(lambda p: index.search(xq, 10, params=faiss.SearchParametersIVF(nprobe=p)), range(1, 9))
            for (D, I), (D0, I0) in zip(found, expected, strict=True):
                np.testing.assert_array_equal(D, D0)
                np.testing.assert_array_equal(I, I0)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("levels", [1, 3, 5])
@pytest.mark.parametrize("nbits", [4, 8])
def test_levels_compare_a_prefix(metric, levels, nbits):
    rng = np.random.default_rng(1)
    index, _ = filled(rng, 0, 10, 4, 5, nbits, metric)
    lists, codes = rng.integers(0, 4, 2000), rng.integers(0, 1 << nbits, (2000, 5)).astype(np.uint16)
    index.add_sa_codes(sa_codes(index, lists, codes))
    model = Model()
    prefix = naive.decode(index.codebooks[:levels], codes[:, :levels])
    model.put(np.arange(2000), lists, index.quantizer.reconstruct_n(0, 4)[lists] + prefix)
    xq = normal(rng, 6, 10)
    params = faiss_dpq.SearchParametersIVFDPQ(levels=levels, nprobe=3)
    assert_finds(*index.search(xq, 7, params=params), model, xq, probed(index, xq, 3), metric)
    assert index.levels == 5
    index.levels, index.nprobe = levels, 3
    short = index.truncate(levels)
    assert (short.rq.M, short.code_size, short.nprobe) == (levels, -(-levels * nbits // 8), 3)
    for other in (index, short):
        assert_finds(*other.search(xq, 7), model, xq, probed(index, xq, 3), metric)


def test_max_codes():
    rng = np.random.default_rng(2)
    index, model = filled(rng, 900, 6, 5, 3, 4)
    xq = normal(rng, 10, 6)
    keys = probed(index, xq, 4)
    contents = [faiss.rev_swig_ptr(index.invlists.get_ids(i), index.invlists.list_size(i)).tolist() for i in range(5)]
    for max_codes in (1, 100, 250, 10_000):
        params = faiss.SearchParametersIVF(nprobe=4, max_codes=max_codes)
        D, I = index.search(xq, 10, params=params)
        for q in range(10):
            members = [i for key in keys[q] for i in contents[key]][:max_codes]
            assert_finds(D[q : q + 1], I[q : q + 1], model, xq[q : q + 1], keys[q : q + 1], members=members)
    index.nprobe, index.max_codes = 4, 250
    for found, by_params in zip(
        index.search(xq, 10),
        index.search(xq, 10, params=faiss.SearchParametersIVF(nprobe=4, max_codes=250)),
        strict=True,
    ):
        np.testing.assert_array_equal(found, by_params)


# ---- selectors ------------------------------------------------------------------------------------------------------


def selectors():
    some = np.array([3, 1, 4, 900, 70_000, 1_000_000_007], np.int64)
    third = np.packbits(np.arange(1000) % 3 == 0, bitorder="little")
    in_range = faiss.IDSelectorRange(100, 400)
    yield in_range, lambda i: 100 <= i < 400
    yield faiss.IDSelectorArray(some), lambda i: i in some
    yield faiss.IDSelectorBatch(some), lambda i: i in some
    yield faiss.IDSelectorBitmap(third), lambda i: i < 1000 and i % 3 == 0
    yield faiss.IDSelectorNot(in_range), lambda i: not 100 <= i < 400
    yield faiss.IDSelectorAll(), lambda i: True
    evens = faiss.IDSelectorBitmap(np.packbits(np.arange(1000) % 2 == 0, bitorder="little"))
    yield faiss.IDSelectorAnd(in_range, evens), lambda i: 100 <= i < 400 and i % 2 == 0
    yield faiss.IDSelectorOr(in_range, evens), lambda i: 100 <= i < 400 or (i < 1000 and i % 2 == 0)
    yield faiss.IDSelectorXOr(in_range, evens), lambda i: (100 <= i < 400) != (i < 1000 and i % 2 == 0)
    yield faiss.IDSelectorRange(2000, 3000), lambda i: False


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("number", range(10))
def test_selectors(metric, number):
    selector, admits = list(selectors())[number]
    rng = np.random.default_rng(number)
    index, model = filled(rng, 1000, 8, 4, 4, 8, metric)
    extra = np.array([70_000, 1_000_000_007], np.int64)  # ids are any numbers
    x = normal(rng, 2, 8)
    index.add_with_ids(x, extra)
    codes = index.sa_encode(x)
    model.put(extra, codes[:, 0].astype(np.int64), index.sa_decode(codes).astype(np.float64))
    xq = normal(rng, 9, 8)
    params = faiss_dpq.SearchParametersIVFDPQ(nprobe=3, sel=selector)
    members = [i for i in model.x if admits(i)]
    assert_finds(*index.search(xq, 12, params=params), model, xq, probed(index, xq, 3), metric, members)
    lims, _, I = index.range_search(xq, FLT_MAX if metric == faiss.METRIC_L2 else -FLT_MAX, params=params)
    ids, expected = model.distances(xq, probed(index, xq, 3), metric, members)
    for q in range(9):
        assert set(I[lims[q] : lims[q + 1]].tolist()) == set(ids[np.isfinite(expected[q])].tolist())


def test_callback_selector_sees_ids():
    rng = np.random.default_rng(0)
    index, model = filled(rng, 300, 5, 3, 2, 4)
    asked = []
    selector = faiss.IDSelectorPyCallback if hasattr(faiss, "IDSelectorPyCallback") else faiss.PyCallbackIDSelector
    params = faiss.SearchParametersIVF(nprobe=3, sel=selector(lambda i: asked.append(i) or i % 5 == 0))
    xq = normal(rng, 4, 5)
    D, I = index.search(xq, 10, params=params)
    assert_finds(D, I, model, xq, probed(index, xq, 3), members=[i for i in model.x if i % 5 == 0])
    assert sorted(asked) == list(range(300))


# ---- range search, reconstruction -----------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_range_search(metric):
    rng = np.random.default_rng(3)
    index, model = filled(rng, 3000, 6, 4, 3, 6, metric)
    index.nprobe = 3
    xq = normal(rng, 8, 6)
    ids, expected = model.distances(xq, probed(index, xq), metric)
    for share in (0.0, 0.01, 0.5, 1.0):  # the last two are more than are looked for at first
        sign = 1 if metric == faiss.METRIC_L2 else -1
        thresh = sign * np.quantile(expected[np.isfinite(expected)], share) + sign * 1e-3
        lims, D, I = index.range_search(xq, thresh)
        assert (lims.dtype, D.dtype, I.dtype) == (np.uint64, np.float32, np.int64)
        for q in range(len(xq)):
            part = slice(lims[q], lims[q + 1])
            inside = {
                i
                for i, e in zip(ids.tolist(), sign * expected[q], strict=True)
                if np.isfinite(e) and sign * (thresh - e) > 1e-4
            }
            close = {i for i, e in zip(ids.tolist(), sign * expected[q], strict=True) if abs(thresh - e) <= 1e-4}
            assert inside <= set(I[part].tolist()) <= inside | close
            assert (np.diff(sign * D[part]) >= 0).all()
    lims, D, I = index.range_search_preassigned(xq, thresh, probed(index, xq), None)
    np.testing.assert_array_equal(lims, index.range_search(xq, thresh)[0])


def test_reconstruct_and_search():
    rng = np.random.default_rng(4)
    index, model = filled(rng, 700, 9, 6, 3, 5)
    index.nprobe = 2
    xq = normal(rng, 7, 9)
    for i, x in enumerate(index.reconstruct_n(0, 700)):
        np.testing.assert_allclose(x, model.x[i], rtol=1e-4, atol=1e-5)
    _, I, R = index.search_and_reconstruct(xq, 400)
    assert (I < 0).any() and (I >= 0).any()
    np.testing.assert_array_equal(np.isnan(R).all(2), I < 0)
    np.testing.assert_allclose(R[I >= 0], np.stack([model.x[i] for i in I[I >= 0]]), rtol=1e-4, atol=1e-5)
    _, I2, codes = index.search_and_return_codes(xq, 400, include_listnos=True)
    np.testing.assert_array_equal(I2, I)
    assert codes.shape == (7, 400, index.sa_code_size())
    np.testing.assert_allclose(index.sa_decode(codes[I >= 0]), R[I >= 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(index.search_and_return_codes(xq, 400)[2][I >= 0], codes[I >= 0][:, 1:])
    index.make_direct_map()
    np.testing.assert_allclose(index.reconstruct(5), model.x[5], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(index.reconstruct_batch([3, 8])[1], model.x[8], rtol=1e-4, atol=1e-5)


def test_preassigned_search():
    rng = np.random.default_rng(5)
    index, model = filled(rng, 600, 5, 7, 3, 4)
    xq = normal(rng, 6, 5)
    keys = rng.permuted(np.tile(np.arange(7), (6, 1)), axis=1)[:, :4]
    keys[2, 1:] = -1
    keys[3] = -1
    D, I = index.search_preassigned(xq, 20, keys, None)
    assert_finds(D, I, model, xq, keys)
    index.nprobe = 4
    Dq, Iq = index.quantizer.search(xq, 4)
    np.testing.assert_array_equal(index.search_preassigned(xq, 20, Iq, Dq)[1], index.search(xq, 20)[1])
    for bad, error in ((keys[:3], AssertionError), (keys[0], AssertionError), (keys + 7, RuntimeError)):
        with pytest.raises(error, match="Iq"):
            index.search_preassigned(xq, 20, bad, None)
