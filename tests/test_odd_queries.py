"""Queries that are not finite find nothing; prefixes are reconstructed as prefixes."""

import faiss
import numpy as np
import pytest
from naive import FLT_MAX, METRICS

import faiss_dpq

D = 16
X = np.random.default_rng(0).standard_normal((600, D)).astype(np.float32)
DESCRIPTIONS = ["DPQ4x4", "IVF4,DPQ4x4", "IDMap2,DPQ4x4", "PCA12,DPQ4x4", "PCA12,IVF4,DPQ4x4", "DPQ4x4,RFlat"]


def filled(description, metric=faiss.METRIC_L2):
    index = faiss_dpq.index_factory(D, description, metric)
    index.train(X, effort="fast")
    index.add_with_ids(X, np.arange(600)) if "IDMap" in description else index.add(X)
    return index


def odd_queries():
    xq = X[:7].copy()
    xq[0, 3] = np.inf
    xq[1, 3] = -np.inf
    xq[2] = np.inf
    xq[3, 1] = np.nan
    xq[4, 0], xq[4, 1] = np.inf, -np.inf
    return xq


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("description", DESCRIPTIONS)
def test_queries_that_are_not_finite_find_nothing(description, metric):
    index = filled(description, metric)
    xq = odd_queries()
    D_found, I = index.search(xq, 4)
    worst = FLT_MAX if metric == faiss.METRIC_L2 else -FLT_MAX
    assert (I[:5] == -1).all() and (D_found[:5] == worst).all()
    D_alone, I_alone = index.search(xq[5:], 4)
    np.testing.assert_array_equal(I[5:], I_alone)
    np.testing.assert_array_equal(D_found[5:], D_alone)
    for _ in range(3):  # also by the short way of one query
        for query in range(5):
            D_one, I_one = index.search(xq[query : query + 1], 4)
            assert (I_one == -1).all() and (D_one == worst).all()
            index.search(xq[5:6], 4)
    lims, _, _ = index.range_search(xq, 5.0)
    assert lims[5] == 0 and lims[-1] > 0
    D_found, I, R = index.search_and_reconstruct(xq, 4)
    assert (I[:5] == -1).all() and np.isnan(R[:5]).all() and (I[5:] >= 0).all() and np.isfinite(R[5:]).all()


def test_codes_of_results_are_theirs_where_others_overflow():
    """An inner product that overflows is not found; it would stand first, and what stands behind it moves up."""
    codebooks = np.array([[[1e30, 0], [0, 1], [0, 2], [0, 3]]], np.float32)
    centre = faiss.IndexFlatIP(2)
    centre.add(np.zeros((1, 2), np.float32))
    index = faiss_dpq.IndexIVFDPQ.from_codebooks(centre, codebooks, faiss.METRIC_INNER_PRODUCT)
    index.add_sa_codes(np.array([[0, 0], [0, 1], [0, 2], [0, 3]], np.uint8)[:, -index.sa_code_size() :])
    _, I, codes = index.search_and_return_codes(np.array([[1e30, 1e20]], np.float32), 4)
    _, ids, R = index.search_and_reconstruct(np.array([[1e30, 1e20]], np.float32), 4)
    assert I.tolist() == ids.tolist() == [[3, 2, 1, -1]]
    assert codes[0, :, 0].tolist() == [3, 2, 1, 255]
    np.testing.assert_array_equal(R[0, :3, 1], [3, 2, 1])


def test_large_queries_whose_distances_overflow_find_nothing_as_in_faiss():
    stock = faiss.IndexPQ(D, 4, 4)
    stock.train(X)
    stock.add(X)
    xq = np.full((2, D), 1e30, np.float32)
    for index in (stock, filled("DPQ4x4"), filled("IVF4,DPQ4x4")):
        for queries in (xq, xq[:1], xq[:1]):
            D_found, I = index.search(queries, 3)
            assert (I == -1).all() and (D_found == FLT_MAX).all()
        assert index.range_search(xq, 1e30)[0][-1] == 0


def test_preassigned_searches_of_odd_queries():
    index = filled("IVF4,DPQ4x4")
    keys = np.tile(np.arange(4), (7, 1))
    I = index.search_preassigned(odd_queries(), 3, keys)[1]
    assert (I[:5] == -1).all() and (I[5:] >= 0).all()
    assert index.range_search_preassigned(odd_queries(), 9.0, keys)[0][5] == 0
    I = index.search_and_return_codes(odd_queries(), 3)[1]
    assert (I[:5] == -1).all() and (I[5:] >= 0).all()


def test_any_negative_list_is_none():
    index = filled("IVF4,DPQ4x4")
    keys, none = np.tile(np.arange(4), (20, 1)), np.tile(np.arange(4), (20, 1))
    keys[:, 1], none[:, 1] = np.iinfo(np.int64).min, -1
    for search in (
        lambda keys: index.search_preassigned(X[:20], 3, keys),
        lambda keys: index.range_search_preassigned(X[:20], 9.0, keys),
    ):
        for a, b in zip(search(keys), search(none), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("description", ["DPQ4x4", "IVF4,DPQ4x4", "IDMap2,DPQ4x4", "PCA12,DPQ4x4", "PCA12,IVF4,DPQ4x4"])
def test_the_prefix_that_was_compared_is_reconstructed(description):
    index = filled(description)
    parameters = faiss_dpq.SearchParametersIVFDPQ if "IVF" in description else faiss_dpq.SearchParametersDPQ
    more = {"nprobe": 4} if "IVF" in description else {}
    for levels in (1, 2, 4):
        D_found, _, R = index.search_and_reconstruct(X[:20], 5, params=parameters(levels=levels, **more))
        if "PCA" in description:
            transform = index.chain.at(0)
            distances = (
                (transform.apply(X[:20])[:, None] - transform.apply(R.reshape(100, D)).reshape(20, 5, -1)) ** 2
            ).sum(2)
        else:
            distances = ((X[:20, None] - R) ** 2).sum(2)
        np.testing.assert_allclose(D_found, distances, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("M", [4, 20])
@pytest.mark.parametrize("metric", [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT])
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 3e38, 1e-45])
def test_odd_vectors_get_a_code_and_leave_those_of_others_as_they_are(M, metric, odd):
    index = faiss_dpq.IndexDPQ.from_codebooks(np.random.default_rng(0).standard_normal((M, 16, D)), metric)
    index.parallel_weight = 0.5
    x = X[:9].copy()
    x[4, 2], x[7] = odd, odd
    codes, whole = index.sa_encode(x), np.delete(np.arange(9), [4, 7])
    np.testing.assert_array_equal(codes[whole], index.sa_encode(X[whole]))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("description", DESCRIPTIONS)
def test_numbers_beyond_float32_are_infinite(description, metric):
    index = filled(description, metric)
    xq = X[:5].astype(np.float64)
    xq[2] *= 1e300
    I = index.search(xq, 3)[1]
    assert (I[2] == -1).all() and (I[[0, 1, 3, 4]] >= 0).all()
    np.testing.assert_array_equal(index.search(xq[2:3], 3)[1], -1)
    for thresh, n in ((1e300, 600), (-1e300, 0)):
        if metric == faiss.METRIC_INNER_PRODUCT:
            thresh = -thresh
        index_lists = faiss.try_extract_index_ivf(index)
        if index_lists is not None:
            index_lists.nprobe = 4
        assert index.range_search(X[:1], thresh)[0][1] == n
    untrained = faiss_dpq.index_factory(D, description, metric)
    with pytest.raises(RuntimeError, match="infinit"):
        untrained.train(1e300 * X.astype(np.float64))
