"""Coarse-to-fine search: the nearest by all levels among those that a prefix finds."""

import copy

import faiss
import naive
import numpy as np
import pytest

import faiss_dpq
from faiss_dpq import SearchParametersDPQ, SearchParametersIVFDPQ, _kernels

METRICS = [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT]
N, M, D, NQ, K = 3_000, 20, 12, 15, 5


def filled(metric=faiss.METRIC_L2, lists=False, in_map=False):
    """An index; with `in_map` within an IDMap2 that adds 7 to ids."""
    rng = np.random.default_rng(0)
    codebooks = 0.9 ** np.arange(M)[:, None, None] * rng.standard_normal((M, 16, D))
    codes = naive.pack(rng.integers(0, 16, (N, M)), 4)
    if not lists:
        index = faiss_dpq.IndexDPQ.from_codebooks(codebooks, metric)
    else:
        coarse = faiss.IndexFlat(D, metric)
        coarse.add(rng.standard_normal((6, D)).astype(np.float32))
        index = faiss_dpq.IndexIVFDPQ.from_codebooks(coarse, codebooks, metric)
        index.nprobe = 4
        codes = np.concatenate([rng.integers(0, 6, (N, 1)).astype(np.uint8), codes], axis=1)
    outer = faiss_dpq.IndexIDMap2(index) if in_map else index
    outer.add_sa_codes(codes, *([np.arange(N) + 7] if in_map else []))
    return outer


@pytest.fixture
def xq():
    return np.random.default_rng(1).standard_normal((NQ, D)).astype(np.float32)


def parameters(index, **given):
    if isinstance(index, faiss_dpq.IndexIVFDPQ):
        return SearchParametersIVFDPQ(nprobe=4, **given)
    return SearchParametersDPQ(**given)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("lists", [False, True])
@pytest.mark.parametrize(("levels", "coarse_levels"), [(20, 8), (20, 18), (12, 3)])
def test_the_nearest_of_the_candidates_are_found(simd, metric, lists, levels, coarse_levels, xq):
    index = filled(metric, lists)
    for queries in (xq, xq[:1]):
        found = index.search(
            queries, K, params=parameters(index, levels=levels, coarse_levels=coarse_levels, k_factor=3.5)
        )
        candidates = index.search(queries, int(3.5 * K), params=parameters(index, levels=coarse_levels))[1]
        D_all, I_all = index.search(queries, N, params=parameters(index, levels=levels))
        for q in range(len(queries)):
            among = np.isin(I_all[q], candidates[q]) & (I_all[q] >= 0)
            np.testing.assert_array_equal(found[1][q], I_all[q][among][:K])
            np.testing.assert_array_equal(found[0][q], D_all[q][among][:K])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("lists", [False, True])
def test_all_as_candidates_give_the_exact_results(metric, lists, xq):
    index = filled(metric, lists)
    selector = faiss.IDSelectorBatch(np.arange(0, N, 50))
    for given in ({}, {"sel": selector}):
        exact = index.search(xq, 100, params=parameters(index, **given))
        found = index.search(xq, 100, params=parameters(index, coarse_levels=2, k_factor=N, **given))
        np.testing.assert_array_equal(found[1], exact[1])
        np.testing.assert_array_equal(found[0], exact[0])
    assert (exact[1] < 0).any()  # more than the selector admits


@pytest.mark.parametrize("lists", [False, True])
def test_settings_of_the_index(lists, xq):
    index = filled(lists=lists)
    narrowed = index.search(xq, K, params=parameters(index, coarse_levels=4, k_factor=2))
    exact = index.search(xq, K)
    assert (exact[1] != narrowed[1]).any()
    index.search(xq[:1], K)  # leaves a direct search behind
    index.coarse_levels, index.k_factor = 4, 2
    for result in (
        index.search(xq, K),
        [np.concatenate(rows) for rows in zip(*(index.search(x[None], K) for x in xq), strict=True)],
        index.search_and_reconstruct(xq, K)[:2],
        faiss_dpq.deserialize_index(faiss_dpq.serialize_index(index)).search(xq, K),
        faiss_dpq.clone_index(index).search(xq, K),
        copy.deepcopy(index).search(xq, K),
    ):
        np.testing.assert_array_equal(result[1], narrowed[1])
        np.testing.assert_array_equal(result[0], narrowed[0])
    np.testing.assert_array_equal(index.search(xq, K, params=parameters(index, coarse_levels=0))[1], exact[1])
    prefix = parameters(index, levels=3)  # not more than coarse_levels: nothing to narrow down
    np.testing.assert_array_equal(
        index.search(xq, K, params=prefix)[1], filled(lists=lists).search(xq, K, params=prefix)[1]
    )


def test_range_search_stays_exact(xq):
    index = filled()
    exact = index.range_search(xq, 12.0)
    index.coarse_levels = 2
    for a, b in zip(index.range_search(xq, 12.0), exact, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("lists", [False, True])
def test_candidates_only_are_compared_by_all_levels(lists, xq):
    index = filled(lists=lists)
    _kernels.reset_counters()
    index.search(xq, K, params=parameters(index, coarse_levels=8, k_factor=4))
    assert _kernels.counters()["refined"] == NQ * 4 * K


@pytest.mark.parametrize("lists", [False, True])
def test_wrappers(lists, xq):
    outer = filled(lists=lists, in_map=True)
    index = outer.index
    space = faiss_dpq.ParameterSpace()
    space.set_index_parameters(outer, "coarse_levels=4,k_factor=2.5")
    assert (index.coarse_levels, index.k_factor) == (4, 2.5)
    D_in, I_in = index.search(xq, K)
    D_out, I_out = outer.search(xq, K)
    np.testing.assert_array_equal(I_out, I_in + 7)
    np.testing.assert_array_equal(D_out, D_in)
    params = parameters(index, coarse_levels=9, k_factor=2)
    np.testing.assert_array_equal(outer.search(xq, K, params=params)[1], index.search(xq, K, params=params)[1] + 7)


def by_hand(index, x, k, coarse_levels, k_factor):
    """Candidates by the prefix alone, and of those the nearest by all levels."""
    candidates = index.search(x, int(k * k_factor), params=parameters(index, levels=coarse_levels))[1]
    rows = [
        index.search(x[q : q + 1], k, params=parameters(index, sel=faiss.IDSelectorBatch(some[some >= 0])))
        for q, some in enumerate(candidates)
    ]
    return [np.concatenate(parts) for parts in zip(*rows, strict=True)]


def rotated():
    rotation = faiss.RandomRotationMatrix(D, D)
    rotation.init(3)
    return rotation


def refining(leaf):
    flat = faiss.IndexFlat(D)
    flat.add(np.random.default_rng(2).standard_normal((N, D)).astype(np.float32))
    index = faiss_dpq.IndexRefine(leaf, flat)
    index.k_factor = 3
    return index


def together(wrapper, *indexes):
    for index in indexes:
        wrapper.addIndex(index)
    return wrapper


def refined(outer, leaf, x, *coarse):
    I = by_hand(leaf, x, 3 * K, *coarse)[1]
    all_D = ((x[:, None] - outer.refine_index.reconstruct_n(0, N)) ** 2).sum(axis=2)
    return [
        np.take_along_axis(found, np.argsort(np.take_along_axis(all_D, I, 1), 1)[:, :K], 1)
        for found in (np.take_along_axis(all_D, I, 1), I)
    ]


def merged(_, leaf, x, *coarse):
    D_found, I = by_hand(leaf, x, K, *coarse)
    both = np.hstack([D_found, D_found]), np.hstack([I, I + N])
    order = np.lexsort((both[1], both[0]))[:, :K]
    return [np.take_along_axis(found, order, 1) for found in both]


#: Name: how it is made of a leaf, its parameters of the leaf's, and what it finds, by hand.
WRAPPERS = {
    "PreTransform": (
        lambda leaf: faiss_dpq.IndexPreTransform(rotated(), leaf),
        lambda params: faiss.SearchParametersPreTransform(index_params=params),
        lambda outer, leaf, x, *coarse: by_hand(leaf, outer._apply(x, "search"), K, *coarse),
    ),
    "Refine": (
        refining,
        lambda params: faiss.IndexRefineSearchParameters(k_factor=3, base_index_params=params),
        refined,
    ),
    "Shards": (
        lambda leaf: together(faiss_dpq.IndexShards(D, False, True), leaf, faiss_dpq.clone_index(leaf)),
        lambda params: params,
        merged,
    ),
    "Replicas": (
        lambda leaf: together(faiss_dpq.IndexReplicas(D), leaf, faiss_dpq.clone_index(leaf)),
        lambda params: params,
        lambda outer, leaf, x, *coarse: by_hand(leaf, x, K, *coarse),
    ),
}


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("lists", [False, True])
def test_wrappers_find_what_is_found_by_hand(name, lists, xq):
    """By parameters of a search, by attributes of the index within, and by a ParameterSpace."""
    wrapped, outer_parameters, expected = WRAPPERS[name]
    leaf = filled(lists=lists)
    outer = wrapped(leaf)
    exact = outer.search(xq, K)
    nearest = expected(outer, leaf, xq, 6, 2.5)
    assert (nearest[1] != exact[1]).any()
    results = [outer.search(xq, K, params=outer_parameters(parameters(leaf, coarse_levels=6, k_factor=2.5)))]
    space = faiss_dpq.ParameterSpace()
    space.set_index_parameter(outer, "coarse_levels", 6)
    space.set_index_parameter(leaf if name == "Refine" else outer, "k_factor", 2.5)  # IndexRefine has its own
    assert (leaf.coarse_levels, leaf.k_factor) == (6, 2.5)
    results.append(outer.search(xq, K))
    results.append([np.concatenate(rows) for rows in zip(*(outer.search(x[None], K) for x in xq), strict=True)])
    for found, I in results:
        np.testing.assert_array_equal(I, nearest[1])
        np.testing.assert_allclose(found, nearest[0], rtol=1e-5)


@pytest.mark.parametrize("lists", [False, True])
def test_bad_values_are_refused(lists, xq):
    index = filled(lists=lists)
    name = type(index).__name__
    for bad in (-1, M + 1, float("nan")):
        with pytest.raises(ValueError, match=f"{name}: coarse_levels is {bad}"):
            index.coarse_levels = bad
        with pytest.raises(ValueError, match=f"{name}: params.coarse_levels is {bad}"):
            index.search(xq, K, params=parameters(index, coarse_levels=bad))
    for bad in (0, 0.5, -3, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"{name}: k_factor is {bad}"):
            index.k_factor = bad
        with pytest.raises(ValueError, match=f"{name}: params.k_factor is {bad}"):
            index.search(xq, K, params=parameters(index, coarse_levels=2, k_factor=bad))
    with pytest.raises(ValueError, match=r"params\.coarse_levels is 9, expected 0 to 8"):
        index.search(xq, K, params=parameters(index, levels=8, coarse_levels=9))
    assert (index.coarse_levels, index.k_factor) == (0, 1)


@pytest.mark.parametrize("lists", [False, True])
def test_coarse_levels_may_exceed_levels_in_every_copy(lists, xq, tmp_path):
    index = filled(lists=lists)
    index.coarse_levels, index.levels = 9, 4
    faiss_dpq.write_index(index, str(tmp_path / "i.faiss"))
    copies = [
        faiss_dpq.clone_index(index),
        copy.deepcopy(index),
        faiss_dpq.deserialize_index(faiss_dpq.serialize_index(index)),
        faiss_dpq.read_index(str(tmp_path / "i.faiss")),
    ]
    exact = index.search(xq, K, params=parameters(index, levels=4, coarse_levels=0))
    for each in (index, *copies):
        assert (each.levels, each.coarse_levels) == (4, 9)
        for found, expected in zip(each.search(xq, K), exact, strict=True):  # of no more levels: all are compared
            np.testing.assert_array_equal(found, expected)


def test_truncated_indexes_search_all():
    index = filled()
    index.coarse_levels, index.k_factor = 12, 3
    assert index.truncate(8).coarse_levels == 0


# ---- tune_coarse ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("lists", [False, True])
def test_what_is_chosen_keeps_the_target(metric, lists, xq):
    outer = filled(metric, lists, in_map=True)
    index = outer.index
    exact = index.search(xq, K)[1]
    tuning = faiss_dpq.tune_coarse(outer, xq, K, target=0.9)
    assert (index.coarse_levels, index.k_factor) == (tuning.chosen.coarse_levels, tuning.chosen.k_factor)
    tried = [point.coarse_levels for point in tuning.points]
    assert tried == sorted(tried) and set(tried) <= {4, 8, 12, 16, 20} and {4, 12, 20} & set(tried)
    assert tuning.chosen.seconds == min(point.seconds for point in [tuning.exact, *tuning.points])
    for point in tuning.points:
        assert point.share >= 0.9
        params = parameters(index, coarse_levels=point.coarse_levels, k_factor=point.k_factor)
        found = index.search(xq, K, params=params)[1]
        assert np.mean([np.isin(a, b).mean() for a, b in zip(exact, found, strict=True)]) == pytest.approx(point.share)
        if point.k_factor > 1:  # the least one
            fewer = parameters(index, coarse_levels=point.coarse_levels, k_factor=max(1, point.k_factor / 2))
            found = index.search(xq, K, params=fewer)[1]
            assert np.mean([np.isin(a, b).mean() for a, b in zip(exact, found, strict=True)]) < 0.9


def test_tuning_times_searches_of_the_batch_to_come(xq):
    index, called = filled(), []
    search = index.search
    index.search = lambda x, k: called.append(len(x)) or search(x, k)
    faiss_dpq.tune_coarse(index, xq, K, target=0.9, batch=4)
    assert called.count(4) == 3 * called.count(NQ % 4) > 0


def test_tuning_refuses_what_it_cannot_measure(xq):
    index = filled()
    index.coarse_levels, index.k_factor = 4, 3
    with pytest.raises(ValueError, match="tune_coarse: queries is empty"):
        faiss_dpq.tune_coarse(index, xq[:0], K)
    with pytest.raises(ValueError, match="tune_coarse: queries has 0 dimensions, expected 2"):
        faiss_dpq.tune_coarse(index, None, K)
    with pytest.raises(ValueError, match="tune_coarse: target is 0"):
        faiss_dpq.tune_coarse(index, xq, K, target=0)
    for bad in (0, True, 1.5):
        with pytest.raises(ValueError, match=f"tune_coarse: batch is {bad}, expected an int >= 1"):
            faiss_dpq.tune_coarse(index, xq, K, batch=bad)
    with pytest.raises(ValueError, match="tune_coarse: index is empty"):
        faiss_dpq.tune_coarse(faiss_dpq.IndexDPQ.from_codebooks(index.codebooks), xq, K)
    with pytest.raises(TypeError, match="tune_coarse: index is a IndexFlat"):
        faiss_dpq.tune_coarse(faiss.IndexFlatL2(D), xq, K)
    with pytest.raises(AssertionError):
        faiss_dpq.tune_coarse(index, xq[:, :3], K)
    assert (index.coarse_levels, index.k_factor) == (4, 3)
