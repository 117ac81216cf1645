"""FAISS's wrappers give the answers of stock ones."""

import faiss
import naive
import numpy as np
import pytest
from naive import FLT_MAX, METRICS
from nestings import (
    CODEBOOKS,
    CODEBOOKS_10,
    DIM,
    IDS,
    IN_FILES,
    NESTINGS,
    XQ,
    N,
    X,
    assert_same_ranges,
    assert_same_result,
    filled,
    rotation,
    sharded,
    takes_ids,
)

import faiss_dpq


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
    inner_x = ours._apply(X, "add") if "PreTransform" in name else X
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
            np.testing.assert_allclose(a, b, rtol=1e-5)
    if "PreTransform" in name:
        wrapped = faiss.SearchParametersPreTransform(index_params=params)
        if name != "IDMap2 of PreTransform":  # whose selector would have to be on the outside
            np.testing.assert_array_equal(ours.search(XQ, 4, params=wrapped)[1], stock.search(XQ, 4, params=wrapped)[1])
    if "Shards" not in name and selector != "none":  # a stock IndexIDMap crashes without a selector in its parameters
        for a, b in zip(
            ours.range_search(XQ, 14.0, params=params), stock.range_search(XQ, 14.0, params=params), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-5)
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


TRANSFORMS = {
    "PCA": lambda: faiss.PCAMatrix(30, 17),
    "PCA, whitened": lambda: faiss.PCAMatrix(30, 16, -0.5),
    "rotation": lambda: faiss.RandomRotationMatrix(30, 40),
    "OPQ": lambda: faiss.OPQMatrix(30, 5),
    "ITQ": lambda: faiss.ITQTransform(30, 20, True),
    "norm": lambda: faiss.NormalizationTransform(30),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_what_a_transform_makes_of_a_vector_depends_on_no_other(name):
    """FAISS's products do, on some processors: a vector had one code by itself, and another in a batch."""
    x = np.random.default_rng(0).standard_normal((2000, 30)).astype(np.float32)
    transform = TRANSFORMS[name]()
    if not transform.is_trained:
        transform.train(x)
    for changed in (False, True):
        if changed and isinstance(transform, faiss.LinearTransform):
            faiss.copy_array_to_vector(-faiss.vector_to_array(transform.A), transform.A)  # which is noticed
        index = faiss_dpq.IndexPreTransform(transform, faiss_dpq.IndexDPQ(transform.d_out, 3, 6))
        index.train(x, effort="fast")
        transformed = index._apply(x, "search")
        np.testing.assert_allclose(transformed, transform.apply(x), rtol=1e-4, atol=1e-5)
        for n in (1, 2, 7, 250, 999):
            np.testing.assert_array_equal(index._apply(x[-n:], "search"), transformed[-n:])
    if isinstance(transform, faiss.LinearTransform):
        A = faiss.rev_swig_ptr(transform.A.data(), transform.A.size())
        A[len(A) // 2 + 1] += 1  # which may go unnoticed
        index.invalidate()
        np.testing.assert_allclose(index._apply(x, "search"), transform.apply(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError):
        index._apply(x[:, :29], "search")
