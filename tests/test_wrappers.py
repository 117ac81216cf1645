"""What each wrapper does by itself, and what it refuses."""

import faiss
import numpy as np
import pytest
from naive import FLT_MAX, METRICS
from nestings import (
    DIM,
    IDS,
    NESTINGS,
    XQ,
    N,
    X,
    assert_same_ranges,
    assert_same_result,
    dpq,
    filled,
    refine,
    rotation,
    sharded,
    takes_ids,
)

import faiss_dpq


def test_refine_parameters_of_one_search():
    ours = filled("IDMap2 of RefineFlat of PreTransform")
    exact = faiss.IndexFlatL2(DIM)
    exact.add(X)
    everything = faiss.IndexRefineSearchParameters(k_factor=N / 5)
    D, I = ours.search(XQ, 5, params=everything)
    np.testing.assert_allclose(D, exact.search(XQ, 5)[0], rtol=1e-4)
    np.testing.assert_array_equal(I, IDS[exact.search(XQ, 5)[1]])
    # The parameters for the searched index go through the transform to IndexDPQ.
    within = faiss_dpq.SearchParametersDPQ(levels=1, sel=faiss.IDSelectorRange(10, 20))
    for base_params in (within, faiss.SearchParametersPreTransform(index_params=within)):
        params = faiss.IndexRefineSearchParameters(k_factor=2, base_index_params=base_params)
        D, I = ours.search(XQ, 8, params=params)
        np.testing.assert_array_equal(np.sort(I, axis=1)[:, 0] >= 0, True)
        assert set(I.ravel()) <= set(IDS[10:20])
        distances = ((XQ[:, None] - X[(I - 1000) // 7]) ** 2).sum(2)
        np.testing.assert_allclose(D, distances, rtol=1e-4)
        assert (np.diff(D, axis=1) >= 0).all()
        D, I = ours.search(XQ, 12, params=params)  # there are ten
        np.testing.assert_array_equal(I[:, 10:], -1)
        np.testing.assert_array_equal(D[:, 10:], FLT_MAX)


def test_refine_finds_more_than_it_searches():
    coarse, refined = dpq(), filled("RefineFlat")
    coarse.add(X)
    exact = faiss.IndexFlatL2(DIM)
    exact.add(X)
    truth = exact.search(XQ, 5)[1]
    hits = [
        sum(len(set(a) & set(b)) for a, b in zip(index.search(XQ, 5)[1], truth, strict=True))
        for index in (coarse, refined)
    ]
    assert hits[1] > hits[0]


def test_refine_over_vectors_that_are_there():
    base = dpq()
    base.add(X)
    ours = faiss_dpq.IndexRefineFlat(base, faiss.swig_ptr(X))
    ours.k_factor = N
    assert (ours.ntotal, ours.refine_index.ntotal) == (N, N)
    np.testing.assert_array_equal(ours.search(X[:20], 1)[1][:, 0], np.arange(20))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("block", [1, 16 << 20])
def test_refine_by_an_index_that_has_no_distance_computer(metric, block, monkeypatch):
    monkeypatch.setattr("faiss_dpq.index.wrappers.refine._RECONSTRUCTED_BYTES", block)
    ours = refine(faiss_dpq, dpq(metric).truncate(1), dpq(metric))
    ours.add(X)
    ours.k_factor = N
    alone = dpq(metric)
    alone.add(X)
    assert_same_result(ours.search(XQ, 10), alone.search(XQ, 10))
    assert_same_result(ours.search(XQ, 2 * N), alone.search(XQ, 2 * N))
    if metric == faiss.METRIC_L2:
        assert_same_ranges(ours.range_search(XQ, 8.0), alone.range_search(XQ, 8.0), 8.0)


@pytest.mark.parametrize("name", ["RefineFlat", "Refine by SQ8"])
def test_refine_refuses_what_stock_refuses(name):
    ours = filled(name)
    for index in (ours, faiss.downcast_index(ours)):
        with pytest.raises(RuntimeError, match="params have incorrect type"):
            index.search(XQ, 3, params=faiss.SearchParameters())
        with pytest.raises(RuntimeError, match="params have incorrect type"):
            index.range_search(XQ, 3.0, params=faiss.SearchParameters())
        with pytest.raises(RuntimeError, match="k_base >= k"):
            index.search(XQ, 3, params=faiss.IndexRefineSearchParameters(k_factor=0.5))
        with pytest.raises(RuntimeError, match="remove_ids not implemented"):
            index.remove_ids(np.arange(3))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("threaded", [False, True])
def test_successive_shards_are_one_index_in_parts(metric, threaded):
    ours = sharded(faiss_dpq.IndexShards(DIM, threaded, True), dpq(metric), dpq(metric), dpq(metric))
    whole = dpq(metric)
    for index in (ours, whole):
        index.add(X)
    assert [ours.at(i).ntotal for i in range(3)] == [100, 100, 100]
    for k in (3, N + 2):
        for a, b in zip(ours.search(XQ, k), whole.search(XQ, k), strict=True):
            np.testing.assert_array_equal(a, b)
    thresh = 9.0 if metric == faiss.METRIC_L2 else 2.0
    assert ours.range_search(XQ, thresh)[0][-1] > 20
    for a, b in zip(ours.range_search(XQ, thresh), whole.range_search(XQ, thresh), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(RuntimeError, match="single pass"):
        ours.add(X)
    with pytest.raises(RuntimeError, match="makes no sense"):
        ours.add_with_ids(X, IDS)
    gone = ours.at(1)
    ours.remove_shard(gone)
    assert ours.count() == 2 and ours.ntotal == 200 and ours.search(XQ, N)[1].max() == 199


def test_shards_number_vectors_that_come_without_ids():
    ours = sharded(faiss_dpq.IndexShards(DIM, False, False), *(faiss_dpq.IndexIDMap2(dpq()) for _ in range(2)))
    for start in range(0, N, 100):
        ours.add(X[start : start + 100])
    whole = dpq()
    whole.add(X)
    assert_same_result(ours.search(XQ, 10), whole.search(XQ, 10))


@pytest.mark.parametrize("threaded", [False, True])
def test_errors_of_shards(threaded):
    ours = sharded(faiss_dpq.IndexShards(DIM, threaded, False), dpq(), dpq())
    with pytest.raises(RuntimeError, match=r"Exception thrown from index 0(.|\n)*Exception thrown from index 1"):
        ours.add(X)  # IndexDPQ takes no ids
    ours = sharded(faiss_dpq.IndexShards(DIM, threaded), dpq(), dpq())
    ours.add(X)
    with pytest.raises(RuntimeError, match=r"params\.levels is 7"):
        ours.search(XQ, 3, params=faiss_dpq.SearchParametersDPQ(levels=7))
    ours.at(0).levels = 2
    one_fails = sharded(faiss_dpq.IndexShards(DIM, threaded), dpq(), dpq().truncate(2))
    with pytest.raises(ValueError, match=r"params\.levels is 3"):
        one_fails.search(XQ, 3, params=faiss_dpq.SearchParametersDPQ(levels=3))
    for method, argument in [("search", 3), ("range_search", 3.0)]:
        with pytest.raises(RuntimeError, match="no shards in index"):
            getattr(faiss_dpq.IndexShards(DIM), method)(XQ, argument)
        with pytest.raises(RuntimeError, match="no replicas in index"):
            getattr(faiss_dpq.IndexReplicas(DIM), method)(XQ, argument)
    with pytest.raises(RuntimeError, match="already in the collection"):
        ours.add_shard(ours.at(0))


@pytest.mark.parametrize("nq", [0, 1, 2, 9])
@pytest.mark.parametrize("threaded", [False, True])
def test_replicas_share_the_queries(nq, threaded, calls):
    ours = sharded(faiss_dpq.IndexReplicas(DIM, threaded), dpq(), dpq(), dpq())
    ours.add(X)
    assert ours.ntotal == N and all(ours.at(i).ntotal == N for i in range(3))
    whole = ours.at(2)
    for a, b in zip(ours.search(XQ[:nq], 4), whole.search(XQ[:nq], 4), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(ours.range_search(XQ[:nq], 9.0), whole.range_search(XQ[:nq], 9.0), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(RuntimeError, match="same number of vectors"):
        ours.add_replica(dpq())


def test_removed_replicas_are_forgotten():
    ours = sharded(faiss_dpq.IndexReplicas(DIM), dpq(), dpq())
    ours.add(X)
    ours.remove_replica(ours.at(0))
    assert ours.count() == 1 and len(ours._kept) == 1
    assert_same_result(ours.search(XQ, 3), ours.at(0).search(XQ, 3))


def test_the_same_id_twice():
    ours = faiss_dpq.IndexIDMap2(dpq())
    ours.add_with_ids(X[:3], np.array([5, 5, 6]))
    stock = faiss.downcast_index(ours)
    assert sorted(ours.search(X[:1], 3)[1][0]) == sorted(stock.search(X[:1], 3)[1][0]) == [5, 5, 6]
    assert ours.remove_ids(np.array([5])) == 2 and ours.ntotal == 1


def test_an_id_map_says_so_if_vectors_were_added_past_it():
    ours = faiss_dpq.IndexIDMap(dpq())
    ours.add_with_ids(X[:3], IDS[:3])
    ours.index.add(X)
    with pytest.raises(RuntimeError, match="id_map 3, index"):
        ours.search(XQ, 10)


@pytest.mark.parametrize("name", NESTINGS)
def test_bad_input_is_refused_and_changes_nothing(name):
    ours = filled(name)
    before = ours.search(XQ, 5)
    wide = np.zeros((4, DIM + 1), np.float32)
    add = (lambda x: ours.add_with_ids(x, np.arange(len(x)))) if takes_ids(name) else ours.add
    for call in (
        lambda x: ours.search(x, 3),
        lambda x: ours.range_search(x, 3.0),
        lambda x: ours.search_and_reconstruct(x, 3),
        lambda x: ours.assign(x, 3),
        lambda x: ours.train(x),
        add,
    ):
        with pytest.raises(AssertionError, match=r"13 columns, the index has d=12"):
            call(wide)
        with pytest.raises(ValueError, match="expected 2"):
            call(X[0])
        with pytest.raises(TypeError, match="dtype"):
            call(np.zeros((4, DIM), complex))
    for k in (0, -1):
        with pytest.raises(AssertionError, match=f"k is {k}"):
            ours.search(XQ, k)
    with pytest.raises(AssertionError, match="D has shape"):
        ours.search(XQ, 3, D=np.empty((9, 4), np.float32))
    with pytest.raises(AssertionError, match="I has shape"):
        ours.search(XQ, 3, I=np.empty((8, 3), np.int64))
    if takes_ids(name):
        with pytest.raises(AssertionError, match="not same nb of vectors as ids"):
            ours.add_with_ids(X, np.arange(3))
    assert ours.ntotal == N
    for a, b in zip(ours.search(XQ, 5), before, strict=True):
        np.testing.assert_array_equal(a, b)
    # What FAISS's wrapper converts is converted.
    for x in (XQ.astype(np.float64), np.asfortranarray(XQ), XQ.tolist()):
        np.testing.assert_array_equal(ours.search(x, 5)[1], before[1])
    D, I = ours.search(XQ.astype(np.float16), 5)
    assert (I.dtype, D.dtype) == (np.int64, np.float32)
    D, I = ours.search(XQ[:0], 5)
    assert D.shape == I.shape == (0, 5)
    if name != "Shards":  # to which FAISS adds but once
        add(X[:0])
    assert ours.ntotal == N


def test_id_maps_refuse_what_stock_ones_refuse():
    full = dpq()
    full.add(X)
    for classes in (faiss, faiss_dpq):
        with pytest.raises(RuntimeError, match="index must be empty on input"):
            classes.IndexIDMap2(full)
        with pytest.raises(RuntimeError, match="use add_with_ids"):
            classes.IndexIDMap2(dpq()).add(X)
        with pytest.raises(RuntimeError, match="key 5 not found"):
            classes.IndexIDMap2(dpq()).reconstruct(5)
        with pytest.raises(RuntimeError, match="d_out"):
            classes.IndexPreTransform(rotation(9), dpq())
        with pytest.raises(RuntimeError, match="base_index->d"):
            classes.IndexRefine(dpq(), faiss.IndexFlatL2(DIM + 1))
        with pytest.raises(RuntimeError, match="dimension"):
            classes.IndexShards(DIM).add_shard(faiss.IndexFlatL2(DIM + 1))


def test_ids_of_any_size_and_order():
    ids = np.random.default_rng(0).permutation(N) - 2**60
    ids[0] = 2**62
    ours, stock = faiss_dpq.IndexIDMap2(dpq()), faiss.IndexIDMap2(dpq())
    for index in (ours, stock):
        for start in range(0, N, 75):
            index.add_with_ids(X[start : start + 75], ids[start : start + 75])
        index.check_consistency()
    np.testing.assert_array_equal(faiss.vector_to_array(ours.id_map), faiss.vector_to_array(stock.id_map))
    np.testing.assert_allclose(ours.reconstruct(2**62), stock.reconstruct(2**62), atol=2)
    sel = faiss.SearchParameters(sel=faiss.IDSelectorRange(2**61, 2**63 - 1))
    np.testing.assert_array_equal(ours.search(XQ, 2, params=sel)[1], [[2**62, -1]] * 9)


def test_searches_in_threads_share_parameters():
    from concurrent.futures import ThreadPoolExecutor

    ours = filled("IDMap2 of PreTransform")
    params = faiss_dpq.SearchParametersDPQ(levels=2, sel=faiss.IDSelectorBatch(IDS[::3]))
    expected = ours.search(XQ, 4, params=params)
    with ThreadPoolExecutor(8) as pool:
        for D, I in pool.map(lambda _: ours.search(XQ, 4, params=params), range(64)):
            np.testing.assert_array_equal(D, expected[0])
            np.testing.assert_array_equal(I, expected[1])
