"""FAISS's wrappers of the same names: the same answers as stock ones, and the index within searched by its own class."""

import copy
import gc
import pickle

import faiss
import naive
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import faiss_dpq

FLT_MAX = np.finfo(np.float32).max
METRICS = [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT]
DIM = 12
N = 300
IDS = 1000 + 7 * np.arange(N)
CODEBOOKS = naive.random_codebooks(np.random.default_rng(0), 3, 32, DIM)
CODEBOOKS_10 = naive.random_codebooks(np.random.default_rng(1), 3, 32, 10)
X = np.random.default_rng(2).standard_normal((N, DIM)).astype(np.float32)
XQ = np.random.default_rng(3).standard_normal((9, DIM)).astype(np.float32)


def dpq(metric=faiss.METRIC_L2):
    return faiss_dpq.IndexDPQ.from_codebooks(CODEBOOKS, metric)


def rotation(d_out=10):
    transform = faiss.RandomRotationMatrix(DIM, d_out)
    transform.init(5)
    return transform


def pre_transform(classes, metric):
    return classes.IndexPreTransform(rotation(), faiss_dpq.IndexDPQ.from_codebooks(CODEBOOKS_10, metric))


def trained_sq8(metric):
    index = faiss.IndexScalarQuantizer(DIM, faiss.ScalarQuantizer.QT_8bit, metric)
    index.train(X)
    return index


def refine(classes, base, refine_index=None):
    index = classes.IndexRefineFlat(base) if refine_index is None else classes.IndexRefine(base, refine_index)
    index.k_factor = 4
    return index


def sharded(wrapper, *indexes):
    for index in indexes:
        # Of these two, stock FAISS keeps the index alive.
        wrapper.add_shard(index) if isinstance(wrapper, faiss.IndexShards) else wrapper.addIndex(index)
    return wrapper


#: Wrappers, some within others, of IndexDPQ; by the classes of a module.
NESTINGS = {
    "IDMap": lambda c, m: c.IndexIDMap(dpq(m)),
    "IDMap2": lambda c, m: c.IndexIDMap2(dpq(m)),
    "PreTransform": lambda c, m: pre_transform(c, m),
    "IDMap2 of PreTransform": lambda c, m: c.IndexIDMap2(pre_transform(c, m)),
    "PreTransform of IDMap2": lambda c, m: c.IndexPreTransform(rotation(DIM), c.IndexIDMap2(dpq(m))),
    "RefineFlat": lambda c, m: refine(c, dpq(m)),
    "Refine by SQ8": lambda c, m: refine(c, dpq(m), trained_sq8(m)),
    "IDMap2 of RefineFlat of PreTransform": lambda c, m: c.IndexIDMap2(refine(c, pre_transform(c, m))),
    "Shards": lambda c, m: sharded(c.IndexShards(DIM, False, True), dpq(m), dpq(m), dpq(m)),
    "Shards of IDMap2, threaded": lambda c, m: sharded(
        c.IndexShards(DIM, True, False), c.IndexIDMap2(dpq(m)), c.IndexIDMap2(dpq(m))
    ),
    "Replicas": lambda c, m: sharded(c.IndexReplicas(DIM), dpq(m), dpq(m)),
    "Replicas of PreTransform, threaded": lambda c, m: sharded(
        c.IndexReplicas(DIM, True), pre_transform(c, m), pre_transform(c, m)
    ),
}
#: Those that FAISS has a file format for.
IN_FILES = [name for name in NESTINGS if "Shards" not in name and "Replicas" not in name]


def takes_ids(name):
    return "IDMap" in name


def filled(name, metric=faiss.METRIC_L2, classes=faiss_dpq, n=N):
    index = NESTINGS[name](classes, metric)
    if takes_ids(name):
        index.add_with_ids(X[:n], IDS[:n])
    else:
        index.add(X[:n])
    return index


def assert_same_result(ours, stock):
    """Equal distances, and equal labels but for the order of those that are equally far."""
    (D, I), (expected_D, expected_I) = ours, stock
    np.testing.assert_allclose(D, expected_D, rtol=1e-4, atol=1e-4)
    for row in range(len(I)):
        gaps = np.abs(np.diff(expected_D[row].astype(np.float64))) > 1e-3
        alone = np.concatenate([[True], gaps]) & np.concatenate([gaps, [False]])
        np.testing.assert_array_equal(I[row][alone], expected_I[row][alone])
        assert len(set(I[row][I[row] >= 0])) == (I[row] >= 0).sum() == (expected_I[row] >= 0).sum()


def assert_same_ranges(ours, stock, thresh):
    for query in range(len(XQ)):
        (found, expected) = (
            dict(zip(I[lims[query] : lims[query + 1]].tolist(), D[lims[query] : lims[query + 1]], strict=True))
            for lims, D, I in (ours, stock)
        )
        for i in found.keys() & expected.keys():
            np.testing.assert_allclose(found[i], expected[i], rtol=1e-4, atol=1e-4)
        for i in found.keys() ^ expected.keys():
            assert abs((found | expected)[i] - thresh) < 1e-3


# ---- the same answers as stock wrappers --------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", NESTINGS)
def test_a_stock_wrapper_finds_the_same(name, metric):
    ours = filled(name, metric)
    stock = faiss.downcast_index(ours)  # the same C++ object
    faiss_class = getattr(faiss, type(ours).__name__)
    assert type(stock) is faiss_class
    assert isinstance(ours, faiss_class)
    assert (ours.ntotal, ours.d, ours.metric_type, ours.is_trained) == (N, DIM, metric, True)
    for k in (1, 7, N + 5):
        result = ours.search(XQ, k)
        assert (result[0].dtype, result[1].dtype) == (np.float32, np.int64)
        assert_same_result(result, stock.search(XQ, k))
        np.testing.assert_array_equal(ours.assign(XQ, k), result[1])
        if k > N:
            np.testing.assert_array_equal(result[1][:, N:], -1)
            np.testing.assert_array_equal(result[0][:, N:], FLT_MAX if metric == faiss.METRIC_L2 else -FLT_MAX)
    out_D, out_I = np.empty((9, 7), np.float32), np.empty((9, 7), np.int64)
    returned = ours.search(XQ, 7, D=out_D, I=out_I)
    assert returned[0] is out_D and returned[1] is out_I
    assert_same_result(returned, stock.search(XQ, 7))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", IN_FILES)
def test_a_stock_wrapper_finds_the_same_in_range(name, metric):
    ours = filled(name, metric)
    if "Refine" in name:
        refiner = ours.index if takes_ids(name) else ours
        refiner.k_factor = 1.5 if metric == faiss.METRIC_L2 else 0.5  # FAISS's range_search multiplies thresh by it
    thresh = float(np.median(filled("IDMap2", metric).search(XQ, 20)[0]))
    result = ours.range_search(XQ, thresh)
    assert result[0].shape == (10,) and 50 < result[0][-1] == len(result[1]) == len(result[2])
    assert_same_ranges(result, faiss.downcast_index(ours).range_search(XQ, thresh), thresh)


@pytest.mark.parametrize("name", [name for name in NESTINGS if name != "IDMap" and not name.startswith("Shards")])
def test_a_stock_wrapper_reconstructs_the_same(name):
    ours = filled(name)
    D, I, R = ours.search_and_reconstruct(XQ, 5)
    stock_D, stock_I, stock_R = faiss.downcast_index(ours).search_and_reconstruct(XQ, 5)
    assert_same_result((D, I), (stock_D, stock_I))
    same = I == stock_I
    np.testing.assert_allclose(R[same], stock_R[same], rtol=1e-5, atol=1e-5)
    R = np.empty((9, N + 1, 12), np.float32)
    assert ours.search_and_reconstruct(XQ, N + 1, R=R)[2] is R
    assert np.isnan(R[:, -1]).all() and np.isfinite(R[:, :-1]).all()
    with pytest.raises(AssertionError, match="R has shape"):
        ours.search_and_reconstruct(XQ, 5, R=R)


def test_an_id_map_reconstructs_what_it_finds():
    """Stock IndexIDMap does not: it would have to find its way back from the ids."""
    ours, other = filled("IDMap"), filled("IDMap2")
    for a, b in zip(ours.search_and_reconstruct(XQ, 4), other.search_and_reconstruct(XQ, 4), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(
        ours.search_and_reconstruct(XQ, 4)[2][0, 0], other.reconstruct(int(other.assign(XQ, 1)[0, 0]))
    )
    with pytest.raises(RuntimeError, match="reconstruct"):
        ours.reconstruct(int(IDS[0]))


@pytest.mark.parametrize("name", [name for name in IN_FILES if "IDMap" not in name])
def test_sa_encode_is_the_inner_encoder(name):
    ours = filled(name)
    codes = ours.sa_encode(X)
    assert codes.shape == (N, ours.sa_code_size())
    inner = ours.base_index if "Refine" in name else ours.index
    inner_x = ours.chain.at(0).apply(X) if "PreTransform" in name else X
    np.testing.assert_array_equal(codes[:, : inner.sa_code_size()], inner.sa_encode(inner_x))
    decoded = faiss.downcast_index(ours).sa_decode(codes)
    if "Refine" not in name:
        np.testing.assert_allclose(decoded, ours.reconstruct_n(0, N), rtol=1e-5, atol=1e-5)
    buffer = np.empty_like(codes)
    assert ours.sa_encode(X, buffer) is buffer
    np.testing.assert_array_equal(buffer, codes)


FLATS = {
    "IDMap2": lambda c: c.IndexIDMap2(faiss.IndexFlatL2(DIM)),
    "PreTransform": lambda c: c.IndexPreTransform(rotation(), faiss.IndexFlatL2(10)),
    "IDMap2 of PreTransform": lambda c: c.IndexIDMap2(c.IndexPreTransform(rotation(), faiss.IndexFlatL2(10))),
    "PreTransform of IDMap": lambda c: c.IndexPreTransform(rotation(), c.IndexIDMap(faiss.IndexFlatL2(10))),
    "Shards": lambda c: sharded(c.IndexShards(DIM, True, True), *(faiss.IndexFlatL2(DIM) for _ in range(3))),
    "Shards of IDMap2": lambda c: sharded(
        c.IndexShards(DIM, False, False), *(c.IndexIDMap2(faiss.IndexFlatL2(DIM)) for _ in range(2))
    ),
}
#: Of ascending ids. A stock IndexFlat crashes on an IDSelectorRange beyond its numbers, so there is none.
SELECTORS = {
    "none": lambda ids: None,
    "range": lambda ids: faiss.IDSelectorRange(int(ids[15]), int(ids[70])),
    "batch": lambda ids: faiss.IDSelectorBatch(ids[::3]),
    "array": lambda ids: faiss.IDSelectorArray(np.array([ids[1], ids[2], ids[77]])),
    "not": lambda ids: faiss.IDSelectorNot(faiss.IDSelectorRange(int(ids[15]), int(ids[70]))),
    "and": lambda ids: faiss.IDSelectorAnd(faiss.IDSelectorBatch(ids[5:]), faiss.IDSelectorBatch(ids[::2])),
    "callback": lambda ids: faiss.PyCallbackIDSelector(lambda i: i % 3 == 1),
    "nothing": lambda ids: faiss.IDSelectorBatch(np.array([10**6])),
}


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("name", FLATS)
def test_selectors_are_applied_as_stock_wrappers_do(name, selector):
    """Around an index that FAISS's C++ can search with a selector, which its additive quantizers cannot."""
    ours, stock = FLATS[name](faiss_dpq), FLATS[name](faiss)
    ids = IDS if "IDMap" in name else None
    for index in (ours, stock):
        index.add(X) if ids is None else index.add_with_ids(X, ids)
    params = faiss.SearchParameters(sel=SELECTORS[selector](np.arange(100) if ids is None else ids))
    before = params.sel
    for k in (4, N):
        for a, b in zip(ours.search(XQ, k, params=params), stock.search(XQ, k, params=params), strict=True):
            np.testing.assert_array_equal(a, b)
    if "PreTransform" in name:
        wrapped = faiss.SearchParametersPreTransform(index_params=params)
        if name != "IDMap2 of PreTransform":  # whose selector would have to be on the outside
            np.testing.assert_array_equal(ours.search(XQ, 4, params=wrapped)[1], stock.search(XQ, 4, params=wrapped)[1])
    if "Shards" not in name and selector != "none":  # a stock IndexIDMap crashes without a selector in its parameters
        for a, b in zip(
            ours.range_search(XQ, 14.0, params=params), stock.range_search(XQ, 14.0, params=params), strict=True
        ):
            np.testing.assert_array_equal(a, b)
    assert (params.sel is None) == (before is None)


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("name", [name for name in NESTINGS if "Refine" not in name and name != "Shards"])
def test_selectors_and_levels_reach_the_inner_index(name, selector):
    """The selector sees the outermost ids; the levels and all else of the parameters go along with it."""
    ours = filled(name)
    ids = IDS if takes_ids(name) else np.arange(N, dtype=np.int64)
    sel = SELECTORS[selector](ids)
    members = np.array([sel is None or sel.is_member(int(i)) for i in ids])
    transformed, inner_codebooks = X, CODEBOOKS
    xq = XQ
    if "PreTransform" in name:
        transform = rotation(DIM if name == "PreTransform of IDMap2" else 10)
        transformed, xq = transform.apply(X), transform.apply(XQ)
        inner_codebooks = CODEBOOKS if transform.d_out == DIM else CODEBOOKS_10
    codes = faiss_dpq.IndexDPQ.from_codebooks(inner_codebooks).quantizer.encode(transformed, 32)
    expected_D, expected_I, _ = naive.search(inner_codebooks[:2], codes[:, :2], xq, 6, members=members)
    found = ~np.isinf(expected_D)
    D, I = ours.search(XQ, 6, params=faiss_dpq.SearchParametersDPQ(levels=2, sel=sel))
    np.testing.assert_array_equal(I >= 0, found)
    np.testing.assert_allclose(D[found], expected_D[found], rtol=1e-4, atol=1e-4)
    assert members[np.searchsorted(ids, I[found])].all()
    lims, range_D, range_I = ours.range_search(XQ, 8.0, params=faiss_dpq.SearchParametersDPQ(levels=2, sel=sel))
    all_D = naive.search(inner_codebooks[:2], codes[:, :2], xq, N, members=members)[0]
    np.testing.assert_array_equal(np.diff(lims.astype(int)), (all_D < 8).sum(1))
    assert members[np.searchsorted(ids, range_I)].all() and (range_D < 8).all()


def test_selectors_of_successive_shards_see_their_own_numbers():
    ours = filled("Shards")
    D, I = ours.search(XQ, 30, params=faiss.SearchParameters(sel=faiss.IDSelectorRange(0, 10)))
    assert set(I.ravel()) == {i + first for i in range(10) for first in (0, 100, 200)}


def test_the_parameters_of_a_search_stay_as_they_are(monkeypatch):
    class Params(faiss_dpq.SearchParametersDPQ):
        def __init__(self, needed):
            super().__init__(levels=2, sel=needed)
            self.note = "kept"

    ours = filled("IDMap2 of PreTransform")
    seen = []
    search = faiss_dpq.IndexDPQ.search
    monkeypatch.setattr(
        faiss_dpq.IndexDPQ,
        "search",
        lambda self, x, k, params, **more: seen.append(params) or search(self, x, k, params=params, **more),
    )
    params = Params(faiss.IDSelectorRange(1000, 1100))
    ours.search(XQ, 3, params=params)
    assert type(seen[0]) is Params and (seen[0].levels, seen[0].note) == (2, "kept")
    assert isinstance(seen[0]._sp_field_refs["sel"], faiss.IDSelectorTranslated)
    assert params.sel.is_member(1050) and not params.sel.is_member(50)


def test_parameters_of_inverted_lists_are_copied_whole():
    flat = faiss.index_factory(DIM, "IVF20,Flat")
    flat.train(X)
    ours, stock = (c.IndexIDMap2(faiss.clone_index(flat)) for c in (faiss_dpq, faiss))
    for index in (ours, stock):
        index.add_with_ids(X, IDS)
    params = faiss.SearchParametersIVF(nprobe=3, max_codes=40, sel=faiss.IDSelectorRange(1000, 2500))
    for a, b in zip(ours.search(XQ, 9, params=params), stock.search(XQ, 9, params=params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (ours.search(XQ, 9, params=params)[1] != ours.search(XQ, 9)[1]).any()


# ---- the fast path -----------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
    """The names of the methods of IndexDPQ that are called, in turn."""
    names = []
    for name in ("train", "add", "sa_encode", "search", "range_search"):

        def counted(self, *args, method=getattr(faiss_dpq.IndexDPQ, name), name=name, **kwargs):
            names.append(name)
            return method(self, *args, **kwargs)

        monkeypatch.setattr(faiss_dpq.IndexDPQ, name, counted)
    return names


@pytest.mark.parametrize("read_back", ["as built", "read back", "downcast"])
@pytest.mark.parametrize("name", NESTINGS)
def test_the_index_within_is_called_by_its_python_methods(name, read_back, calls):
    index = NESTINGS[name](faiss_dpq, faiss.METRIC_L2)
    owner = index
    if read_back == "downcast":
        index = faiss_dpq.downcast_index(faiss.downcast_index(index))
    elif read_back == "read back":
        if name not in IN_FILES:
            index = copy.deepcopy(index)
        else:
            index = faiss_dpq.deserialize_index(faiss_dpq.serialize_index(index))
    assert type(index) is type(owner)
    if takes_ids(name):
        index.add_with_ids(X, IDS)
    else:
        index.add(X)
    copies = 3 if name == "Shards" else 2 if "Shards" in name or "Replicas" in name else 1
    assert calls.count("sa_encode") == copies
    for method, arguments, called in [
        ("search", (XQ, 3), "search"),
        ("assign", (XQ, 3), "search"),
        ("range_search", (XQ, 5.0), "range_search"),
    ]:
        calls.clear()
        getattr(index, method)(*arguments)
        assert calls.count(called) >= copies, method
    if not name.startswith("Shards"):
        calls.clear()
        index.search_and_reconstruct(XQ, 3)
        assert calls.count("search") == copies


UNTRAINED = {
    "IDMap2": lambda inner: faiss_dpq.IndexIDMap2(inner(DIM)),
    "PreTransform": lambda inner: faiss_dpq.IndexPreTransform(faiss.PCAMatrix(DIM, 6), inner(6)),
    "RefineFlat": lambda inner: faiss_dpq.IndexRefineFlat(inner(DIM)),
    "Refine": lambda inner: faiss_dpq.IndexRefine(
        inner(DIM), faiss.IndexScalarQuantizer(DIM, faiss.ScalarQuantizer.QT_8bit)
    ),
    "Shards": lambda inner: sharded(faiss_dpq.IndexShards(DIM), inner(DIM), inner(DIM)),
    "Replicas": lambda inner: sharded(faiss_dpq.IndexReplicas(DIM, True), inner(DIM), inner(DIM)),
}


@pytest.mark.parametrize("name", UNTRAINED)
def test_training_is_that_of_the_index_within(name, calls):
    index = UNTRAINED[name](lambda d: faiss_dpq.IndexDPQ(d, 2, 3))
    assert not index.is_trained
    for method in ("add", "search"):
        with pytest.raises(RuntimeError):
            getattr(index, method)(X, *([3] if method == "search" else []))
    calls.clear()
    index.train(X, effort="fast")  # an option that only IndexDPQ knows
    assert index.is_trained and faiss.downcast_index(index).is_trained
    assert calls.count("train") == (2 if name in ("Shards", "Replicas") else 1)
    assert all(inner.is_trained for inner in index._inner_indexes())


def test_every_transform_is_trained_on_what_those_before_it_make():
    pca, opq, inner = faiss.PCAMatrix(DIM, 10), faiss.OPQMatrix(10, 2, 8), faiss_dpq.IndexDPQ(8, 2, 3)
    index = faiss_dpq.IndexPreTransform(opq, inner)
    index.prepend_transform(pca)
    index.prepend_transform(faiss.NormalizationTransform(DIM))
    index.train(X, effort="fast")
    normalized = X / np.linalg.norm(X, axis=1, keepdims=True)
    alone = faiss.PCAMatrix(DIM, 10)
    alone.train(normalized)
    np.testing.assert_allclose(faiss.vector_to_array(pca.A), faiss.vector_to_array(alone.A), atol=1e-5)
    transformed = opq.apply(pca.apply(normalized))
    by_hand = faiss_dpq.IndexDPQ(8, 2, 3)
    by_hand.train(transformed, effort="fast")
    np.testing.assert_allclose(inner.codebooks, by_hand.codebooks, atol=1e-4)
    index.add(X)
    inner_result = inner.search(transformed[:9], 3)
    assert_same_result(index.search(X[:9], 3), inner_result)


def test_what_is_trained_is_not_trained_again():
    transform = rotation()
    before = faiss.vector_to_array(transform.A)
    index = faiss_dpq.IndexPreTransform(transform, faiss_dpq.IndexDPQ.from_codebooks(CODEBOOKS_10))
    index.train(X)
    np.testing.assert_array_equal(faiss.vector_to_array(transform.A), before)
    np.testing.assert_array_equal(index.index.codebooks, CODEBOOKS_10)


def test_queries_for_training_are_transformed():
    got = []

    class Inner(faiss.IndexFlatL2):
        def train(self, x, xq_train):
            got.append((x, xq_train))

    inner = Inner(10)
    inner.is_trained = False
    transform = rotation()
    faiss_dpq.IndexPreTransform(transform, inner).train(X, xq_train=XQ)
    np.testing.assert_array_equal(got[0][0], transform.apply(X))
    np.testing.assert_array_equal(got[0][1], transform.apply(XQ))
