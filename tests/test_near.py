"""Distances that are small differences of large terms are those of a float64 loop over the reconstructions."""

import copy
import functools

import faiss
import naive
import numpy as np
import pytest

import faiss_dpq
from faiss_dpq.search import near

N, D, LEVELS, CLUSTERS = 9000, 8, 4, 4
MOST = 16.0  # of the squared distances within a cluster, of which most are above 4
FAR = [1e2, 1e3, 1e4, 1e5]
FIRST = "clusters in the first codebook"
SPREAD = "clusters by the sum of all levels"


def clusters(rng, kind, far, nbits):
    """Codebooks and queries with vectors of spread 1 in clusters at +-far."""
    K = 1 << nbits
    codebooks = naive.random_codebooks(rng, LEVELS, K, D)
    where = far * rng.choice([-1.0, 1.0], (LEVELS, CLUSTERS, D))
    for level in range(1 if kind == FIRST else LEVELS):
        codebooks[level] += where[level][np.arange(K) % CLUSTERS]
    return codebooks.astype(np.float32)


@functools.cache
def case(kind, far, nbits=8):
    rng = np.random.default_rng(0)
    codebooks = clusters(rng, kind, far, nbits)
    codes = rng.integers(0, 1 << nbits, (N, LEVELS))
    codes[1::3] = codes[::3]  # equal distances
    index = faiss_dpq.IndexDPQ.from_codebooks(codebooks)
    index.add_sa_codes(naive.pack(codes.astype(np.uint16), nbits))
    xq = naive.decode(codebooks, codes[rng.integers(0, N, 16)]) + rng.standard_normal((16, D))
    return index, codebooks, codes, xq.astype(np.float32)


def exact_distances(xq, x):
    return np.stack([((x.astype(np.float64) - q) ** 2).sum(1) for q in xq.astype(np.float64)])


def rounded(codebooks, levels, D):
    """How far a squared distance may be off where the coordinates of reconstructions are rounded to float32."""
    coordinate = levels * 2.0**-24 * np.abs(codebooks[:levels]).max(axis=(1, 2)).sum()
    d = codebooks.shape[2]
    return 2 * np.sqrt(d * D) * coordinate + d * coordinate**2 + 2.0**-22 * D


def assert_is_the_loop(found, index, codebooks, codes, xq, members=None, levels=LEVELS, most=MOST):
    members = np.arange(len(codes)) if members is None else members
    D, I = found
    k = D.shape[1]
    of_reconstructions = exact_distances(xq, index.residual_quantizer.decode(codes[members, :levels]))
    order = np.argsort(of_reconstructions.astype(np.float32), axis=1, kind="stable")[:, :k]
    expected = np.take_along_axis(of_reconstructions, order, axis=1)
    near = expected < most  # others are sums in float32
    np.testing.assert_allclose(D, expected, rtol=1e-3)
    np.testing.assert_allclose(D[near], expected[near], rtol=1e-6)
    np.testing.assert_array_equal(I[near], members[order][near])
    real = np.partition(exact_distances(xq, naive.decode(codebooks, codes[members, :levels])), k - 1, axis=1)
    real = np.sort(real[:, :k], axis=1)
    assert (np.abs(D - real)[near] <= rounded(codebooks, levels, real)[near]).all()


def one_by_one(index, xq, k, **params):
    return tuple(np.concatenate(part) for part in zip(*(index.search(x[None], k, **params) for x in xq), strict=True))


@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("kind", [FIRST, SPREAD])
@pytest.mark.parametrize("nbits", [4, 8])
def test_many_queries_and_one(simd, kind, far, nbits):
    index, codebooks, codes, xq = case(kind, far, nbits)
    index = copy.deepcopy(index)  # without an order of its codes, which single queries make
    for k in (1, 10, 100):
        found = index.search(xq, k)
        assert_is_the_loop(found, index, codebooks, codes, xq)
        for other in (one_by_one(index, xq, k), index.search(xq[:3], k)):
            np.testing.assert_array_equal(other[0], found[0][: len(other[0])])
            np.testing.assert_array_equal(other[1], found[1][: len(other[1])])


@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("derived_bytes", [0, 32])
def test_prefixes_selections_and_candidates(simd, far, derived_bytes):
    index, codebooks, codes, xq = case(FIRST, far)
    index = copy.deepcopy(index)
    index.derived_bytes_per_vector = derived_bytes
    for share, levels in [(1, 2), (0.5, LEVELS), (0.01, 3)]:
        members = np.flatnonzero(np.random.default_rng(1).random(N) < share)
        params = faiss_dpq.SearchParametersDPQ(levels=levels, sel=faiss.IDSelectorBatch(members))
        for search in (index.search, functools.partial(one_by_one, index)):
            assert_is_the_loop(search(xq, 10, params=params), index, codebooks, codes, xq, members, levels)
    params = faiss_dpq.SearchParametersDPQ(coarse_levels=2, k_factor=N / 10)  # all are candidates
    for search in (index.search, functools.partial(one_by_one, index)):
        assert_is_the_loop(search(xq, 10, params=params), index, codebooks, codes, xq)


@pytest.mark.parametrize("far", FAR)
def test_ranges(simd, far):
    index, _, codes, xq = case(FIRST, far)
    exact = exact_distances(xq, index.residual_quantizer.decode(codes))
    for thresh in (MOST, far**2 / 4):
        lims, D, I = index.range_search(xq[:10], thresh)
        of_query = np.repeat(np.arange(10), np.diff(lims.astype(np.int64)))
        found = exact[of_query, I]
        np.testing.assert_allclose(D, found, rtol=1e-3)
        np.testing.assert_allclose(D[found < MOST], found[found < MOST], rtol=1e-6)
        assert D.max() < thresh
        np.testing.assert_array_equal(np.diff(lims.astype(np.int64)), (exact[:10] < thresh).sum(1))


def test_few_distinct_vectors_and_codewords():
    rng = np.random.default_rng(2)
    codebooks = np.repeat(naive.random_codebooks(rng, LEVELS, 4, D), 64, axis=1)  # 4 different ones
    codes = rng.integers(0, 256, (N, LEVELS))
    index = faiss_dpq.IndexDPQ.from_codebooks(codebooks)
    index.add_sa_codes(naive.pack(codes.astype(np.uint16), 8))
    xq = index.reconstruct_n(0, 20)
    for found in (index.search(xq, 50), one_by_one(index, xq, 50)):
        assert (found[0][:, 0] == 0).all()
        assert_is_the_loop(found, index, codebooks, codes, xq, most=1e-3)


@pytest.mark.parametrize("lists", [False, True])
@pytest.mark.parametrize("length", [1e-22, 1e-21, 1e-20, 1e-19])
def test_lengths_whose_squares_leave_float32(simd, length, lists):
    """The errors of such sums are 0 in float32, where the limits are not."""
    rng = np.random.default_rng(0)
    codebooks = (length * naive.random_codebooks(rng, 2, 16, 1)).astype(np.float32)
    codes = rng.integers(0, 16, (500, 2)).astype(np.uint16)
    packed = naive.pack(codes, 4)
    if lists:
        coarse = faiss.IndexFlatL2(1)
        coarse.add(np.zeros((1, 1), np.float32))
        index = faiss_dpq.IndexIVFDPQ.from_codebooks(coarse, codebooks)
        packed = np.hstack([np.zeros((len(packed), index.coarse_code_size()), np.uint8), packed])
    else:
        index = faiss_dpq.IndexDPQ.from_codebooks(codebooks)
    index.add_sa_codes(packed)
    decoded = naive.decode(codebooks, codes)
    xq = decoded[:30].astype(np.float32)
    for k in (1, 5, 60, 500, 510):
        for queries in (xq, xq[:1]):
            D, I = index.search(queries, k)
            loop = np.sort(exact_distances(queries, decoded), axis=1)[:, :k]
            found = np.take_along_axis(exact_distances(queries, decoded), I[:, : loop.shape[1]], axis=1)
            assert (I[:, 500:] == -1).all()
            np.testing.assert_array_equal([len(set(row)) for row in I[:, :500].tolist()], min(k, 500))
            for each in (D[:, :500], found):
                np.testing.assert_allclose(each, loop, rtol=1e-5, atol=1e-43)  # some steps of float32 near 0


def test_usual_distances_are_those_of_the_sums(monkeypatch):
    """No query of usual data is compared again."""
    rng = np.random.default_rng(3)
    index = faiss_dpq.IndexDPQ.from_codebooks(naive.random_codebooks(rng, LEVELS, 256, D, offset=100.0))
    index.add_sa_codes(rng.integers(0, 256, (N, LEVELS)).astype(np.uint8))
    xq = (100 + 3 * rng.standard_normal((40, D))).astype(np.float32)
    monkeypatch.setattr(near.Nearness, "_sorted", None)
    index.search(xq, 10)
    one_by_one(index, xq, 10)
    index.range_search(xq, 4.0)
