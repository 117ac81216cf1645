"""FAISS's wrappers: the answers of stock ones, by the Python methods of the index within."""

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
    same = stock_I == I
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
    bare = faiss_dpq.IndexDPQ.from_codebooks(inner_codebooks)
    codes = bare.residual_quantizer.encode(transformed, prefix_weight=bare.prefix_weight)
    expected_D, _, _ = naive.search(inner_codebooks[:2], codes[:, :2], xq, 6, members=members)
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
    _, I = ours.search(XQ, 30, params=faiss.SearchParameters(sel=faiss.IDSelectorRange(0, 10)))
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

    def counted(method):
        def call(self, *args, **kwargs):
            names.append(method.__name__)
            return method(self, *args, **kwargs)

        return call

    for name in ("train", "add", "sa_encode", "search", "range_search"):
        monkeypatch.setattr(faiss_dpq.IndexDPQ, name, counted(getattr(faiss_dpq.IndexDPQ, name)))
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


# ---- files, copies, lifetimes ------------------------------------------------------------------------------------


def types_of(index):
    inner_indexes = getattr(index, "_inner_indexes", None)
    # FAISS itself reads an IndexFlat back as an IndexFlatL2 or IndexFlatIP.
    own_type = faiss.IndexFlat if isinstance(index, faiss.IndexFlat) else type(index)
    return own_type, [types_of(inner) for inner in inner_indexes()] if inner_indexes else []


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", IN_FILES)
def test_files_are_stock_ones_and_come_back_nested(name, metric, tmp_path):
    ours = filled(name, metric)
    expected = ours.search(XQ, 5)
    faiss_dpq.write_index(ours, tmp_path / "index")
    stock = faiss.read_index(str(tmp_path / "index"))
    assert type(stock) is getattr(faiss, type(ours).__name__)
    assert_same_result(expected, stock.search(XQ, 5))
    again = faiss_dpq.read_index(tmp_path / "index")
    assert types_of(again) == types_of(ours)
    for a, b in zip(again.search(XQ, 5), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(faiss_dpq.serialize_index(again), faiss_dpq.serialize_index(ours))


@pytest.mark.parametrize("name", ["Shards", "Replicas"])
def test_what_faiss_has_no_file_format_for_is_refused_as_by_faiss(name):
    with pytest.raises(RuntimeError, match="don't know how to serialize"):
        faiss_dpq.serialize_index(filled(name))
    with pytest.raises(RuntimeError, match="clone not supported"):
        faiss_dpq.clone_index(filled(name))


def leaf_of(index):
    while inner_indexes := getattr(index, "_inner_indexes", None):
        index = inner_indexes()[0]
    return index


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda i: pickle.loads(pickle.dumps(i)), faiss_dpq.clone_index])
@pytest.mark.parametrize("name", NESTINGS)
def test_copies_are_whole_and_their_own(name, make_copy):
    if make_copy is faiss_dpq.clone_index and name not in IN_FILES:
        name = "IDMap2"
    ours = filled(name)
    leaf_of(ours).levels = 2
    expected = ours.search(XQ, 5)
    other = make_copy(ours)
    assert types_of(other) == types_of(ours)
    assert leaf_of(other).levels == 2 and getattr(other, "_threaded", None) == getattr(ours, "_threaded", None)
    for a, b in zip(other.search(XQ, 5), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    leaf_of(other).levels = 1
    leaf_of(other).reset()
    for a, b in zip(ours.search(XQ, 5), expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", IN_FILES)
def test_the_index_within_outlives_a_wrapper_that_was_read(name):
    wrapper = faiss_dpq.deserialize_index(faiss_dpq.serialize_index(filled(name)))
    leaf = leaf_of(wrapper)
    expected = leaf.search(np.zeros((1, leaf.d)), 3)
    del wrapper
    gc.collect()
    filler = [np.full(leaf.codes.size(), 255, np.uint8) for _ in range(50)]
    for a, b in zip(leaf.search(np.zeros((1, leaf.d)), 3), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert leaf.ntotal == N and filler


def test_wrappers_are_freed_without_the_garbage_collector():
    """No cycle of references: the memory of a large index is free as soon as the last name of it is gone."""
    import weakref

    for wrapper in (filled("IDMap2 of PreTransform"), faiss_dpq.clone_index(filled("IDMap2 of PreTransform"))):
        leaf_of(wrapper)
        gone = [weakref.ref(wrapper), weakref.ref(wrapper.index), weakref.ref(leaf_of(wrapper))]
    gc.disable()
    try:
        del wrapper
        assert [ref() for ref in gone] == [None, None, None]
    finally:
        gc.enable()


def test_a_wrapper_keeps_what_it_was_made_of():
    index = faiss_dpq.IndexShards(DIM)
    for _ in range(2):
        index.add_shard(faiss_dpq.IndexIDMap2(pre_transform(faiss_dpq, faiss.METRIC_L2)))
    index.successive_ids = False
    gc.collect()
    index.add_with_ids(X, IDS)
    assert index.search(XQ, 3)[1].min() >= 1000


def test_a_wrapper_that_owns_its_fields_is_freed_once():
    wrapper = faiss_dpq.IndexIDMap2(dpq())
    wrapper.own_fields = True
    wrapper.index.this.disown()
    wrapper.add_with_ids(X, IDS)
    assert wrapper.search(XQ, 1)[1].min() >= 1000
    del wrapper
    gc.collect()


def test_the_index_within_is_the_object_that_was_put_there():
    inner = dpq()
    for wrapper in (faiss_dpq.IndexIDMap(inner), faiss_dpq.IndexPreTransform(rotation(DIM), inner)):
        assert wrapper.index is inner
    refined = faiss_dpq.IndexRefine(inner, flat := faiss.IndexFlatL2(DIM))
    assert refined.base_index is inner and refined.refine_index is flat
    shards = sharded(faiss_dpq.IndexShards(DIM), inner)
    assert shards.at(0) is inner
    # A stock wrapper knows the object too, and so does our view of it.
    stock = faiss.IndexIDMap2(inner)
    assert faiss_dpq.downcast_index(stock).index is inner


# ---- one C++ object, seen from several sides ---------------------------------------------------------------------


def test_changes_through_a_stock_wrapper_are_seen():
    inner = dpq()
    stock = faiss.IndexIDMap2(inner)
    ours = faiss_dpq.downcast_index(stock)
    ours.add_with_ids(X[:100], IDS[:100])
    assert ours.search(XQ, 1)[1].max() <= IDS[99]
    stock.add_with_ids(X[100:], IDS[100:])
    assert_same_result(ours.search(XQ, 5), stock.search(XQ, 5))
    assert ours.search(XQ, N)[1].min() == 1000
    assert stock.remove_ids(IDS[::2]) == N // 2
    assert_same_result(ours.search(XQ, 5), stock.search(XQ, 5))
    assert ours.remove_ids(faiss.IDSelectorRange(0, 2000)) > 0 and ours.ntotal == stock.ntotal
    stock.check_consistency()
    assert_same_result(ours.search(XQ, 5), stock.search(XQ, 5))
    faiss.rev_swig_ptr(inner.codes.data(), inner.codes.size())[:] = 0
    assert len(set(ours.search(XQ, 5)[0][0])) == 1
    stock.reset()
    assert (ours.search(XQ, 2)[1] == -1).all()


def test_another_index_put_within_is_seen():
    """Through our property, through FAISS's, and through a stock wrapper of the same object."""
    ours = faiss_dpq.IndexPreTransform(rotation(DIM), dpq())
    ours.add(X)
    other = dpq()
    other.add(X[:50])
    ours.index = other
    assert ours.index is other and other.thisown
    assert ours.search(XQ, 60)[1].max() == 49
    third = faiss.IndexFlatL2(DIM)
    third.add(X[:5])
    stock = faiss.downcast_index(ours)
    stock.index = third
    third.this.own(True)
    stock.referenced_objects = [third]
    assert isinstance(ours.index, faiss.IndexFlat)
    np.testing.assert_array_equal(ours.search(XQ, 5)[1], stock.search(XQ, 5)[1])


@pytest.mark.parametrize("name", ["IDMap2", "PreTransform", "RefineFlat"])
def test_a_stock_wrapper_of_a_stock_quantizer_becomes_ours(name, digits):
    rq = faiss.IndexResidualQuantizer(64, 2, 4)
    stock = {
        "IDMap2": lambda: faiss.IndexIDMap2(rq),
        "PreTransform": lambda: faiss.IndexPreTransform(faiss.PCAMatrix(64, 64), rq),
        "RefineFlat": lambda: faiss.IndexRefineFlat(rq),
    }[name]()
    stock.train(digits[:600])
    ours = faiss_dpq.downcast_index(stock)
    assert type(leaf_of(ours)) is faiss_dpq.IndexDPQ
    arguments = (digits[:300], 3 * np.arange(300)) if name == "IDMap2" else (digits[:300],)
    (ours.add_with_ids if name == "IDMap2" else ours.add)(*arguments)
    assert stock.ntotal == 300
    np.testing.assert_allclose(ours.search(digits[:9], 4)[0], stock.search(digits[:9], 4)[0], rtol=1e-3, atol=1e-2)


def test_classes_that_search_otherwise_stay_stock():
    flat = faiss.IndexFlatL2(DIM)
    panorama = faiss.IndexRefinePanorama(flat, faiss.IndexFlatL2(DIM))
    assert faiss_dpq.downcast_index(panorama) is panorama


class Model(RuleBasedStateMachine):
    """Random operations on IDMap2 of PreTransform of IndexDPQ, through ours, a stock wrapper, or the codes themselves.

    The model is a list of ids and codes; every search must be the naive one over them.
    """

    ids: list[int]

    @initialize(metric=st.sampled_from(METRICS))
    def make(self, metric):
        self.metric, self.next_id, self.ids = metric, 50, []
        self.rng = np.random.default_rng(0)
        self.codes = np.empty((0, 3), np.uint16)
        self.index = faiss_dpq.IndexIDMap2(pre_transform(faiss_dpq, metric))

    def add_by(self, wrapper, n, encoded_by):
        x = self.rng.standard_normal((n, DIM)).astype(np.float32)
        ids = self.next_id + self.rng.permutation(n)
        self.next_id += n
        wrapper.add_with_ids(x, ids)
        packed = self.leaf._packed_codes()[len(self.ids) :]
        expected = encoded_by(self.index.index.chain.at(0).apply(x))
        np.testing.assert_array_equal(packed, expected)
        self.ids += ids.tolist()
        self.codes = np.concatenate([self.codes, naive_unpacked(packed)])

    @property
    def leaf(self):
        return self.index.index.index

    @rule(n=st.integers(0, 40))
    def add(self, n):
        self.add_by(self.index, n, self.leaf.sa_encode)

    @rule(n=st.integers(1, 20))
    def add_through_a_stock_wrapper(self, n):
        stock = faiss.downcast_index(self.index)
        self.add_by(stock, n, faiss.downcast_index(self.leaf).sa_encode)

    @rule(every=st.integers(2, 5), stock=st.booleans())
    def remove(self, every, stock):
        wrapper = faiss.downcast_index(self.index) if stock else self.index
        gone = np.array([i for i in self.ids if i % every == 0], np.int64)
        assert wrapper.remove_ids(gone) == len(gone)
        kept = [place for place, i in enumerate(self.ids) if i % every]
        self.ids, self.codes = [self.ids[place] for place in kept], self.codes[kept]

    @precondition(lambda self: self.ids)
    @rule(seed=st.integers(0, 100))
    def write_codes(self, seed):
        rng = np.random.default_rng(seed)
        places = rng.integers(0, len(self.ids), 3)
        self.codes[places] = rng.integers(0, 32, (3, 3))
        stored = faiss.rev_swig_ptr(self.leaf.codes.data(), self.leaf.codes.size()).reshape(len(self.ids), -1)
        stored[places] = naive.pack(self.codes[places], 5)

    @rule(how=st.sampled_from([copy.deepcopy, faiss_dpq.clone_index, lambda i: faiss_dpq.downcast_index(i)]))
    def replace_by_a_copy(self, how):
        levels = self.leaf.levels
        self.index = how(self.index)
        assert self.leaf.levels == levels

    @rule()
    def write_and_read(self):
        levels = self.leaf.levels
        self.index = faiss_dpq.deserialize_index(faiss_dpq.serialize_index(self.index))
        self.leaf.levels = levels

    @rule()
    def reset(self):
        self.index.reset()
        self.ids, self.codes = [], self.codes[:0]

    @rule(levels=st.integers(1, 3))
    def set_levels(self, levels):
        self.leaf.levels = levels

    @rule(nq=st.integers(1, 40), k=st.integers(1, 12), every=st.integers(1, 4), levels=st.integers(0, 3))
    def search(self, nq, k, every, levels):
        xq = self.rng.standard_normal((nq, DIM)).astype(np.float32)
        sel = faiss.IDSelectorBatch(np.array(self.ids[::every], np.int64)) if every > 1 else None
        D, I = self.index.search(xq, k, params=faiss_dpq.SearchParametersDPQ(levels=levels, sel=sel))
        members = np.arange(len(self.ids)) % every == 0
        expected = np.full((nq, k), FLT_MAX if self.metric == faiss.METRIC_L2 else -FLT_MAX)
        levels = levels or self.leaf.levels
        if self.ids:
            found_D, _, all_D = naive.search(
                CODEBOOKS_10[:levels],
                self.codes[:, :levels],
                self.index.index.chain.at(0).apply(xq),
                k,
                self.metric == faiss.METRIC_INNER_PRODUCT,
                members,
            )
            n = min(k, int(members.sum()))
            expected[:, :n] = found_D[:, :n]
            places = np.array([self.ids.index(i) for i in I[:, :n].ravel()], np.int64).reshape(nq, n)
            np.testing.assert_allclose(np.take_along_axis(all_D, places, 1), D[:, :n], rtol=1e-4, atol=1e-4)
            assert members[places].all()
        np.testing.assert_allclose(D, expected, rtol=1e-4, atol=1e-4)
        assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in I)

    @invariant()
    def agrees(self):
        if not hasattr(self, "index"):
            return
        assert self.index.ntotal == self.index.index.ntotal == self.leaf.ntotal == len(self.ids)
        self.index.check_consistency()
        np.testing.assert_array_equal(faiss.vector_to_array(self.index.id_map), self.ids)
        if self.ids:
            x = self.index.reconstruct(self.ids[-1])
            back = self.index.index.chain.at(0).reverse_transform(
                naive.decode(CODEBOOKS_10, self.codes[-1:]).astype(np.float32)
            )
            np.testing.assert_allclose(x, back[0], rtol=1e-4, atol=1e-4)


def naive_unpacked(packed):
    bits = np.unpackbits(packed, axis=1, bitorder="little")[:, :15].reshape(len(packed), 3, 5)
    return (bits << np.arange(5)).sum(2).astype(np.uint16)


TestRandomOperations = Model.TestCase
TestRandomOperations.settings = settings(max_examples=60, stateful_step_count=25, deadline=None, derandomize=True)


# ---- each wrapper's own ------------------------------------------------------------------------------------------


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
    monkeypatch.setattr("faiss_dpq.index.wrappers.wrappers._RECONSTRUCTED_BYTES", block)
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
    with pytest.raises(RuntimeError, match="there are 3 ids"):
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


# ---- around inverted lists ---------------------------------------------------------------------------------------


def ivf_dpq(d=DIM, metric=faiss.METRIC_L2):
    coarse = faiss.IndexFlat(d, metric)
    coarse.add(np.ascontiguousarray(X[:10, :d]))
    codebooks = CODEBOOKS if d == DIM else CODEBOOKS_10
    index = faiss_dpq.IndexIVFDPQ.from_codebooks(coarse, 0.5 * codebooks, metric)
    index.nprobe = 4
    return index


OF_LISTS = {
    "IDMap2": lambda m: faiss_dpq.IndexIDMap2(ivf_dpq(metric=m)),
    "PreTransform": lambda m: faiss_dpq.IndexPreTransform(rotation(), ivf_dpq(10, m)),
    "IDMap2 of PreTransform": lambda m: faiss_dpq.IndexIDMap2(faiss_dpq.IndexPreTransform(rotation(), ivf_dpq(10, m))),
    "RefineFlat": lambda m: refine(faiss_dpq, ivf_dpq(metric=m)),
    "Shards": lambda m: sharded(faiss_dpq.IndexShards(DIM, True, False), ivf_dpq(metric=m), ivf_dpq(metric=m)),
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", OF_LISTS)
def test_around_inverted_lists(name, metric, monkeypatch):
    searches = []
    search = faiss_dpq.IndexIVFDPQ.search
    monkeypatch.setattr(
        faiss_dpq.IndexIVFDPQ,
        "search",
        lambda self, x, k, params=None, **more: searches.append(params) or search(self, x, k, params=params, **more),
    )
    ours = OF_LISTS[name](metric)
    ids = IDS if name != "RefineFlat" else np.arange(N)
    if name == "RefineFlat":
        ours.add(X)
    else:
        ours.add_with_ids(X, ids)  # inverted lists hold ids themselves, within PreTransform and Shards too
    result = ours.search(XQ, 7)
    assert len(searches) == (2 if name == "Shards" else 1)
    assert set(result[1].ravel()) <= {-1, *ids.tolist()}
    assert_same_result(result, faiss.downcast_index(ours).search(XQ, 7))
    if name != "Shards":
        again = faiss_dpq.deserialize_index(faiss_dpq.serialize_index(ours))
        assert type(leaf_of(again)) is faiss_dpq.IndexIVFDPQ
        assert_same_result(again.search(XQ, 7), result)
        clone = copy.deepcopy(ours)
        leaf_of(ours).levels = 1
        leaf_of(clone).levels = 1
        for a, b in zip(clone.search(XQ, 7), ours.search(XQ, 7), strict=True):
            np.testing.assert_array_equal(a, b)
        leaf_of(ours).levels = 3
    few = faiss_dpq.SearchParametersIVFDPQ(levels=2, nprobe=10, sel=faiss.IDSelectorBatch(ids[::5]))
    params = faiss.IndexRefineSearchParameters(k_factor=3, base_index_params=few) if name == "RefineFlat" else few
    I = ours.search(XQ, 7, params=params)[1]
    assert set(I.ravel()) <= set(ids[::5].tolist())
    assert (searches[-1].nprobe, searches[-1].levels) == (10, 2)


@pytest.mark.parametrize("name", ["IDMap2", "PreTransform", "IDMap2 of PreTransform"])
def test_merging_is_that_of_faiss(name):
    ours, other, whole = filled(name, n=120), NESTINGS[name](faiss_dpq, faiss.METRIC_L2), filled(name)
    if takes_ids(name):
        other.add_with_ids(X[120:], IDS[120:])
    else:
        other.add(X[120:])
    ours.check_compatible_for_merge(other)
    ours.merge_from(other)
    assert (ours.ntotal, leaf_of(other).ntotal) == (N, 0)
    for a, b in zip(ours.search(XQ, 7), whole.search(XQ, 7), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(RuntimeError):
        ours.check_compatible_for_merge(filled("RefineFlat"))
