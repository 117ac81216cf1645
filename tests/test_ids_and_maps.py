"""Ids through every wrapper: right, whatever was removed or merged before; selectors, direct maps, limits of lists."""

import copy

import faiss
import numpy as np
import pytest

import faiss_dpq

D = 16
RNG = np.random.default_rng(0)
X = RNG.standard_normal((900, D)).astype(np.float32)
IDS = RNG.permutation(10_000)[: len(X)].astype(np.int64)
AROUND_LISTS = [
    "IDMap2,IVF4,DPQ4x6",
    "IDMap,IVF4,DPQ4x6",
    "IDMap2,PCA12,IVF4,DPQ4x6",
    "IDMap2,L2norm,IVF4,DPQ4x6",
    "IDMap2,L2norm,PCA12,IVF4,DPQ4x6",
]
_trained = {}


def ivf_of(index):
    while not isinstance(index, faiss.IndexIVF):
        index = index.base_index if isinstance(index, faiss.IndexRefine) else index.index
    return index


def empty(description):
    if description not in _trained:
        index = faiss_dpq.index_factory(D, description)
        index.train(X, effort="fast")
        _trained[description] = index
    index = copy.deepcopy(_trained[description])
    if "IVF" in description:
        ivf_of(index).nprobe = 4
    return index


def holding(description, rows):
    index = empty(description)
    index.add_with_ids(X[rows], IDS[rows])
    return index


def assert_same_search(index, expected, k=5):
    assert index.ntotal == expected.ntotal == index.index.ntotal
    (D_found, I), (D_expected, I_expected) = index.search(X, k), expected.search(X, k)
    np.testing.assert_array_equal(D_found, D_expected)
    tied = np.diff(D_expected, axis=1, append=np.inf) == 0
    alone = ~(tied | np.roll(tied, 1, axis=1))
    np.testing.assert_array_equal(I[alone], I_expected[alone])


@pytest.mark.parametrize("kind", [faiss.DirectMap.NoMap, faiss.DirectMap.Array, faiss.DirectMap.Hashtable])
@pytest.mark.parametrize("description", AROUND_LISTS)
def test_ids_are_right_after_a_removal_and_an_addition(description, kind):
    index = holding(description, slice(0, 500))
    ivf_of(index).set_direct_map_type(kind)
    assert index.remove_ids(IDS[100:300]) == 200
    assert index.remove_ids(faiss.IDSelectorBatch(IDS[100:301])) == 1
    if kind == faiss.DirectMap.Array:  # FAISS's lists with a map by place take no ids, and need none here
        assert ivf_of(index).direct_map.type == kind
    index.add_with_ids(X[500:], IDS[500:])
    rows = np.r_[0:100, 301:900]
    assert_same_search(index, holding(description, rows))
    if "IDMap2" in description and kind != faiss.DirectMap.NoMap:
        expected = holding(description, rows)
        ivf_of(expected).make_direct_map()
        for row in rows[::40]:
            np.testing.assert_array_equal(index.reconstruct(int(IDS[row])), expected.reconstruct(int(IDS[row])))
        with pytest.raises(RuntimeError):
            index.reconstruct(int(IDS[150]))


@pytest.mark.parametrize("description", AROUND_LISTS)
def test_ids_are_right_after_a_merge(description):
    index, other = holding(description, slice(0, 300)), holding(description, slice(300, 700))
    index.remove_ids(IDS[:50])
    index.merge_from(other)
    assert other.ntotal == other.index.ntotal == ivf_of(other).ntotal == 0
    assert (other.search(X[:3], 2)[1] == -1).all()
    assert_same_search(index, holding(description, slice(50, 700)))
    other.add_with_ids(X[700:], IDS[700:])
    index.merge_from(other, 20_000)
    found = index.search(X, 3)[1]
    assert set(found[found >= 20_000]) <= set(IDS[700:] + 20_000) and (found >= 20_000).any()


def test_indexes_of_faiss_within():
    """Its own transforms and lists under our map: Python knows what is within only as a faiss.Index."""
    lists = faiss.index_factory(D, "PCA12,IVF4,PQ4x4")
    lists.train(X)
    faiss.extract_index_ivf(lists).nprobe = 4
    index, expected = (faiss_dpq.IndexIDMap2(faiss.clone_index(lists)) for _ in range(2))
    for each in (index, expected):
        faiss.extract_index_ivf(each.index).nprobe = 4
    index.add_with_ids(X[:300], IDS[:300])
    assert index.remove_ids(IDS[:100]) == 100
    index.add_with_ids(X[300:], IDS[300:])
    expected.add_with_ids(X[100:], IDS[100:])
    D_found, I = index.search(X, 3)
    D_expected, I_expected = expected.search(X, 3)
    np.testing.assert_allclose(D_found, D_expected, atol=1e-4)
    assert (I_expected == I).mean() > 0.95


def test_an_id_that_is_there_twice():
    index = empty("IDMap2,IVF4,DPQ4x6")
    index.add_with_ids(X[:50], np.r_[np.arange(25), np.arange(25)])
    assert index.remove_ids(np.array([3, 3, 99])) == 2
    assert index.ntotal == 48 and 3 not in index.search(X[:50], 48)[1]


def test_vectors_of_no_list_keep_their_place():
    index = empty("IDMap2,IVF4,DPQ4x6")
    x = X[:60].copy()
    x[10] = np.nan
    ivf_of(index).make_direct_map()
    index.add_with_ids(x, IDS[:60])
    assert index.ntotal == 60
    assert index.remove_ids(IDS[8:12]) == 4
    index.add_with_ids(X[60:100], IDS[60:100])
    assert_same_search(index, holding("IDMap2,IVF4,DPQ4x6", np.r_[0:8, 12:100]))


@pytest.mark.parametrize("description", ["IDMap2,IVF4,DPQ4x6,RFlat", "IDMap2,PCA12,IVF4,DPQ4x6,RFlat"])
def test_what_cannot_keep_ids_right_is_refused_and_nothing_changes(description):
    index, other = holding(description, slice(0, 300)), holding(description, slice(300, 400))
    before = index.search(X, 5)
    with pytest.raises(RuntimeError):
        index.remove_ids(IDS[:50])
    with pytest.raises(RuntimeError):
        index.merge_from(other)
    assert (index.ntotal, other.ntotal) == (300, 100)
    for found, expected in zip(index.search(X, 5), before, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_lists_that_cannot_be_renumbered_are_refused(tmp_path):
    index = holding("IDMap2,IVF4,DPQ4x6", slice(0, 300))
    ivf = index.index
    lists = faiss.OnDiskInvertedLists(ivf.nlist, ivf.code_size, str(tmp_path / "lists"))
    lists.merge_from_1(ivf.invlists)
    ivf.replace_invlists(lists, False)
    with pytest.raises(RuntimeError, match="OnDiskInvertedLists"):
        index.remove_ids(IDS[:50])
    assert index.ntotal == 300


@pytest.mark.parametrize("description", ["IDMap2,DPQ4x6", "PCA12,DPQ4x6", "IDMap2,IVF4,DPQ4x6", "PCA12,IVF4,DPQ4x6"])
def test_other_codebooks_are_not_merged(description):
    index, other = empty(description), faiss_dpq.index_factory(D, description)
    other.train(-X[::-1] * 3, effort="fast")
    for each in (index, other):
        each.add_with_ids(X[:50], IDS[:50]) if "IDMap" in description else each.add(X[:50])
    with pytest.raises(RuntimeError):
        index.merge_from(other)
    assert (index.ntotal, other.ntotal) == (50, 50)


@pytest.mark.parametrize(
    "description", ["DPQ4x6", "IVF4,DPQ4x6", "IDMap2,DPQ4x6", "PCA12,DPQ4x6", "IDMap2,IVF4,DPQ4x6"]
)
def test_an_index_is_not_merged_into_itself(description):
    index = empty(description)
    index.add_with_ids(X[:50], IDS[:50]) if "IDMap" in description else index.add(X[:50])
    before = index.search(X[:20], 3)
    with pytest.raises(RuntimeError, match="itself"):
        index.merge_from(index)
    for found, expected in zip(index.search(X[:20], 3), before, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("description", ["IDMap2,IVF4,DPQ4x6", "IDMap2,PCA12,DPQ4x6"])
def test_a_stock_wrapper_is_merged_with_right_ids(description):
    index, other = holding(description, slice(0, 300)), holding(description, slice(300, 700))
    stock = faiss.deserialize_index(faiss.serialize_index(other))
    index.merge_from(stock)
    assert stock.ntotal == 0 and stock.id_map.size() == 0
    assert_same_search(index, holding(description, slice(0, 700)))


# ---- selectors ------------------------------------------------------------------------------------------------------

STACKS = [
    "DPQ4x6,RFlat",
    "IDMap2,DPQ4x6,RFlat",
    "IVF4,DPQ4x6,RFlat",
    "PCA12,DPQ4x6,RFlat",
    "IDMap2,PCA12,IVF4,DPQ4x6,RFlat",
    "PCA12,DPQ4x6",
    "IDMap2,PCA12,DPQ4x6",
    "L2norm,IVF4,DPQ4x6",
]


@pytest.mark.parametrize("description", STACKS)
def test_a_selector_on_the_outside_is_honoured(description):
    index = empty(description)
    ids = IDS if "IDMap" in description else np.arange(len(X))
    index.add_with_ids(X, ids) if "IDMap" in description else index.add(X)
    admitted = ids[::9]
    sel = faiss.IDSelectorBatch(admitted)
    if "RFlat" in description:
        params = faiss.IndexRefineSearchParameters(sel=sel, k_factor=1000.0)
        queries = X[:20]
        nearest = ((queries[:, None] - X[::9]) ** 2).sum(2).argsort(axis=1)[:, :5]
        np.testing.assert_array_equal(index.search(queries, 5, params=params)[1], admitted[nearest])
    else:
        params = faiss.SearchParametersPreTransform(sel=sel)
    for I in (index.search(X[:20], 8, params=params)[1], index.range_search(X[:20], 9.0, params=params)[2]):
        assert len(I) and set(I.ravel()) <= set(admitted.tolist())
    assert set(index.search_and_reconstruct(X[:20], 8, params=params)[1].ravel()) <= set(admitted.tolist())


def test_selectors_of_two_storeys_both_hold():
    index = empty("PCA12,DPQ4x6,RFlat")
    index.add(X)
    inner = faiss_dpq.SearchParametersDPQ(levels=2, sel=faiss.IDSelectorRange(0, 100))
    within = faiss.SearchParametersPreTransform(index_params=inner, sel=faiss.IDSelectorRange(50, 300))
    params = faiss.IndexRefineSearchParameters(
        k_factor=100.0, base_index_params=within, sel=faiss.IDSelectorArray(np.arange(0, 900, 2))
    )
    I = index.search(X[:9], 40, params=params)[1]
    assert set(I.ravel()) - {-1} == set(range(50, 100, 2))
    for each, bound in ((inner, 100), (within, 300)):
        assert each.sel is not None and not each._sp_field_refs["sel"].is_member(bound)


@pytest.mark.parametrize("base", ["HNSW8", "IVF4,Flat", "PQ4x4", "IVF4,PQ4x4"])
def test_a_selector_reaches_indexes_of_faiss(base):
    inner = faiss.index_factory(D, base)
    inner.train(X)
    index = faiss_dpq.IndexRefineFlat(inner)
    index.add(X)
    params = faiss.IndexRefineSearchParameters(k_factor=4.0, sel=faiss.IDSelectorRange(0, 80))
    if base == "PQ4x4":
        with pytest.raises(RuntimeError):  # whose search takes none
            index.search(X[:9], 5, params=params)
        return
    I = index.search(X[:9], 5, params=params)[1]
    assert (I < 80).all() and (I >= 0).any()


# ---- direct maps, limits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [faiss.DirectMap.Array, faiss.DirectMap.Hashtable])
def test_direct_maps_know_what_add_adds(kind):
    index, expected = empty("IVF4,DPQ4x6"), empty("IVF4,DPQ4x6")
    index.set_direct_map_type(kind)
    index.add(X[:50])
    index.add(X[50:80])
    expected.add(X[:80])
    expected.make_direct_map()
    np.testing.assert_array_equal(index.reconstruct_batch(np.arange(80)), expected.reconstruct_batch(np.arange(80)))
    if kind == faiss.DirectMap.Array:
        with pytest.raises(RuntimeError, match="ids"):
            index.add_with_ids(X[:3], IDS[:3])
        assert index.ntotal == 80


@pytest.fixture(scope="module")
def lists():
    index = faiss_dpq.IndexIVFDPQ(faiss.IndexFlatL2(D), D, 32, 4, 4)
    index.train(X[:600], effort="fast")
    index.add(X[:600])
    pq = faiss.IndexIVFPQ(index.quantizer, D, 32, 4, 4)
    pq.train(X[:600])
    pq.add(X[:600])
    return index, faiss.deserialize_index(faiss.serialize_index(index)), pq


SELECTORS = [
    None,
    faiss.IDSelectorRange(0, 60, True),
    faiss.IDSelectorRange(100, 400),
    faiss.IDSelectorBatch(np.arange(0, 600, 7)),
    faiss.IDSelectorNot(faiss.IDSelectorRange(0, 550)),
]


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("max_codes", [0, 1, 7, 50, 200, 10_000])
@pytest.mark.parametrize("selector", range(len(SELECTORS)))
def test_max_codes_counts_as_faiss_does(lists, selector, max_codes, soft):
    more = {} if SELECTORS[selector] is None else {"sel": SELECTORS[selector]}
    params = faiss.SearchParametersIVF(nprobe=32, max_codes=max_codes, ensure_topk_full=soft, **more)
    # All that was scanned and admitted is found where k is as large; which vectors that is depends on the lists alone.
    for k in (600, 10):
        (_, ours), (_, stock) = (index.search(X[600:640], k, params=params) for index in (lists[0], lists[2]))
        np.testing.assert_array_equal((ours >= 0).sum(1), (stock >= 0).sum(1))
        if k == 600:
            np.testing.assert_array_equal(np.sort(ours, axis=1), np.sort(stock, axis=1))
    everything = [index.range_search(X[600:640], 1e9, params=params)[0] for index in (lists[0], lists[2])]
    np.testing.assert_array_equal(*everything)


@pytest.mark.parametrize("thresh", [0.5, 4.0, 8.0])
@pytest.mark.parametrize("empty_lists", [0, 1, 2, 5])
def test_range_searches_stop_after_empty_lists(lists, empty_lists, thresh):
    params = faiss.SearchParametersIVF(nprobe=32, max_empty_result_buckets=empty_lists)
    ours, stock = (index.range_search(X[600:640], thresh, params=params) for index in lists[:2])
    np.testing.assert_array_equal(ours[0], stock[0])
    for query in range(40):
        part = slice(int(ours[0][query]), int(ours[0][query + 1]))
        assert set(ours[2][part]) == set(stock[2][part])


def test_searches_of_lists_are_counted_where_faiss_counts_them(lists):
    index, stock, _ = lists
    stats = faiss.cvar.indexIVF_stats
    for n in (300, 9, 1, 1, 1):
        found = []
        for each in (index, stock):
            each.nprobe = 5
            stats.reset()
            each.search(X[:n], 4)
            found.append((stats.nq, stats.nlist, stats.ndis))
        assert found[0] == found[1] and found[0][0] == n
    stats.reset()
    index.range_search(X[:20], 3.0)
    ours = stats.nq, stats.nlist, stats.ndis
    stats.reset()
    stock.range_search(X[:20], 3.0)
    assert ours == (stats.nq, stats.nlist, stats.ndis)


# ---- coarse quantizers ----------------------------------------------------------------------------------------------


def test_a_multi_index_quantizer_that_was_given_its_codebooks():
    pq = faiss.ProductQuantizer(D, 2, 2)
    pq.train(X)
    halves = [faiss.IndexFlatL2(D // 2) for _ in range(2)]
    for m, half in enumerate(halves):
        half.add(faiss.vector_to_array(pq.centroids).reshape(2, 4, D // 2)[m])
    for coarse in (faiss.MultiIndexQuantizer(D, 2, 2), faiss.MultiIndexQuantizer2(D, 2, *halves)):
        coarse.pq, coarse.is_trained, coarse.ntotal = pq, True, 16
        index = faiss_dpq.IndexIVFDPQ.from_codebooks(coarse, 0.5 * RNG.standard_normal((3, 16, D)))
        index.nprobe = 16
        index.add(X)
        expected = index.search(X, 1)
        index.reset()
        coarse.ntotal = 0
        index.add(X)
        for found, wanted in zip(index.search(X, 1), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("d", [16, 300])
@pytest.mark.parametrize("trains_alone", ["\x00", "\x02"])
def test_an_index_dpq_as_coarse_quantizer_of_fewer_lists_than_dimensions(d, trains_alone):
    x = np.random.default_rng(1).standard_normal((3000, d)).astype(np.float32)
    index = faiss_dpq.IndexIVFDPQ(faiss_dpq.IndexDPQ(d, 2, 4), d, 128, 4, 6)
    index.quantizer_trains_alone = trains_alone
    index.train(x, effort="fast")
    index.add(x)
    index.nprobe = 16
    assert index.quantizer.ntotal == 128
    assert (index.search(x[:100], 1)[1][:, 0] == np.arange(100)).mean() > 0.7


def test_a_truncated_index_keeps_its_coarse_quantizer_and_settings():
    index = faiss_dpq.index_factory(D, "IVF32(DPQ2x4),DPQ4x6")
    index.train(X, effort="fast")
    index.add(X)
    index.prefix_weight, index.parallel_weight, index.nprobe, index.max_codes = 0.3, 0.5, 7, 400
    index._coarse_quantizer.levels = 1
    cut = index.truncate(2)
    assert type(cut._coarse_quantizer) is faiss_dpq.IndexDPQ and cut._coarse_quantizer.levels == 1
    assert (cut.prefix_weight, cut.parallel_weight, cut.nprobe, cut.max_codes) == (0.3, 0.5, 7, 400)
    params = faiss_dpq.SearchParametersIVFDPQ(levels=2, nprobe=7, max_codes=400)
    for found, expected in zip(cut.search(X, 4), index.search(X, 4, params=params), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_lists_that_others_give():
    ours = faiss_dpq.IndexIVFDPQ(faiss.IndexFlatL2(D), D, 4, 3, 4, faiss.METRIC_L2, False)
    ours.train(X, effort="fast")
    assert ours.invlists is None
    lists = faiss.ArrayInvertedLists(4, ours.code_size)
    ours.replace_invlists(lists, False)
    ours.add(X)
    ours.nprobe = 4
    assert (ours.search(X, 5)[1] >= 0).all()


@pytest.mark.parametrize("call", ["add", "search"])
def test_an_index_without_lists_refuses(call):
    index = faiss_dpq.index_factory(D, "IVF4,DPQ3x4", own_invlists=False)
    index.train(X, effort="fast")
    with pytest.raises(RuntimeError, match="no inverted lists"):
        index.add(X) if call == "add" else index.search(X, 3)


def test_ours_around_the_object_of_a_stock_map_keeps_its_ids_right():
    stock = faiss.IndexIDMap2(faiss_dpq.index_factory(D, "PCA8,IVF4,DPQ4x4"))
    stock.train(X[:600])
    stock.add_with_ids(X[:300], np.arange(300) + 1000)
    ours = faiss_dpq.downcast_index(stock)
    assert ours.remove_ids(np.arange(1000, 1150)) == 150
    stock.add_with_ids(X[300:400], np.arange(100))
    faiss.extract_index_ivf(stock).nprobe = 4
    expected = np.concatenate([np.arange(150, 300) + 1000, np.arange(100)])
    for index in (ours, stock):
        assert (index.search(X[150:400], 1)[1][:, 0] == expected).mean() > 0.95
