"""Distances in lists that are small differences of large terms are those of a float64 loop over the reconstructions."""

import functools

import faiss
import naive
import numpy as np
import pytest

import faiss_dpq
from faiss_dpq.search.lists_near import NearLists

N, D, LEVELS, NBITS, NLIST = 6000, 8, 4, 4, 4
MOST = 16.0  # of the squared distances within a cluster, of which most are above 4
FAR = [1e3, 1e4, 1e5]
CENTRES = "a list holds a cluster"
CODEWORDS = "a list holds several clusters"
WHOLE = "codes are not residuals"


@functools.cache
def case(kind, far):
    """An index, its reconstructions, (list, offset) of each and queries; clusters of spread 1 are far from each other.

    Ids are negative, too, and not in the order of the lists.
    """
    rng = np.random.default_rng(0)
    codebooks = naive.random_codebooks(rng, LEVELS, 1 << NBITS, D)
    centres = rng.standard_normal((NLIST, D))
    where = far * rng.choice([-1.0, 1.0], (NLIST, D))
    if kind == CENTRES:
        centres += where
    else:
        codebooks[0] += where[np.arange(1 << NBITS) % NLIST]
    coarse = faiss.IndexFlatL2(D)
    coarse.add(centres.astype(np.float32))
    index = faiss_dpq.IndexIVFDPQ.from_codebooks(coarse, codebooks.astype(np.float32))
    index.by_residual = kind != WHOLE
    lists, codes = rng.integers(0, NLIST, N), rng.integers(0, 1 << NBITS, (N, LEVELS))
    lists[1::3], codes[1::3] = lists[::3], codes[::3]  # equal distances
    ids = rng.permutation(N) - 50
    index.add_sa_codes(
        np.concatenate([lists[:, None].astype(np.uint8), naive.pack(codes.astype(np.uint16), NBITS)], axis=1), ids
    )
    queries = rng.choice(N, 12, replace=False)
    xq = reconstructions(index, lists, codes)[queries] + rng.standard_normal((12, D))
    return index, lists, codes, ids, xq.astype(np.float32)


def reconstructions(index, lists, codes):
    """In float64: centres and codewords of different sizes are not rounded to their sum."""
    residuals = index.residual_quantizer.decode(np.ascontiguousarray(codes)).astype(np.float64)
    if index.by_residual:
        residuals += index.quantizer.reconstruct_n(0, NLIST)[lists]
    return residuals


def loop(index, lists, codes, ids, xq, probed, admitted, levels=LEVELS):
    """Distances of every query to all vectors, infinite where they do not take part."""
    x = reconstructions(index, lists, codes[:, :levels])
    distances = np.stack([((x - q) ** 2).sum(1) for q in xq.astype(np.float64)])
    takes_part = (lists[None, :, None] == probed[:, None, :]).any(axis=2) & np.isin(ids, admitted)
    return np.where(takes_part, distances, np.inf)


def assert_is_the_loop(found, distances, ids):
    D, I = found
    expected = np.sort(distances, axis=1)[:, : D.shape[1]]
    near = expected < MOST
    assert near.any()
    np.testing.assert_allclose(D[near], expected[near], rtol=1e-6)
    place = np.argsort(ids)
    for row, of_row in enumerate(near):
        here = I[row][of_row]
        assert len(set(here.tolist())) == len(here)
        np.testing.assert_allclose(distances[row][place[here - ids.min()]], expected[row][of_row], rtol=1e-6)


def one_by_one(index, xq, k, **params):
    return tuple(np.concatenate(part) for part in zip(*(index.search(x[None], k, **params) for x in xq), strict=True))


def searches(index):
    return (
        index.search,
        functools.partial(one_by_one, index),
        lambda xq, k, **params: tuple(
            np.concatenate(part)
            for part in zip(*(index.search(xq[i : i + 3], k, **params) for i in range(0, len(xq), 3)), strict=True)
        ),
    )


KINDS = pytest.mark.parametrize("kind", [CENTRES, CODEWORDS, WHOLE])
OFTEN = pytest.mark.parametrize("far", FAR)


@KINDS
@OFTEN
@pytest.mark.parametrize("nprobe", [1, NLIST])
def test_many_queries_few_and_one(simd, kind, far, nprobe):
    index, *vectors, xq = case(kind, far)
    index.nprobe = nprobe
    for params in (None, faiss.SearchParametersIVF(nprobe=nprobe)):
        probed = index.probed_lists(xq, params=params)
        distances = loop(index, *vectors, xq, probed, vectors[-1])
        for k in (1, 10, 60):
            first = index.search(xq, k, params=params)
            for search in searches(index):
                found = search(xq, k, params=params)
                assert_is_the_loop(found, distances, vectors[-1])
                for part, expected in zip(found, first, strict=True):
                    np.testing.assert_array_equal(part, expected)


@KINDS
@OFTEN
def test_prefixes_selections_and_candidates(kind, far):
    index, *vectors, xq = case(kind, far)
    rng = np.random.default_rng(1)
    probed = np.tile(np.arange(NLIST), (len(xq), 1))
    for share, levels, more in [
        (1, 2, {}),
        (0.5, LEVELS, {}),
        (0.02, 3, {}),
        (1, LEVELS, {"coarse_levels": 2, "k_factor": N / 10}),  # all are candidates
    ]:
        admitted = vectors[-1][rng.random(N) < share]
        selector = faiss.IDSelectorBatch(admitted)
        params = faiss_dpq.SearchParametersIVFDPQ(nprobe=NLIST, levels=levels, sel=selector, **more)
        distances = loop(index, *vectors, xq, probed, admitted, levels)
        for search in searches(index):
            assert_is_the_loop(search(xq, 10, params=params), distances, vectors[-1])


@KINDS
@OFTEN
def test_ranges(kind, far):
    index, *vectors, xq = case(kind, far)
    for nprobe in (1, NLIST):
        index.nprobe = nprobe
        distances = loop(index, *vectors, xq, index.probed_lists(xq), vectors[-1])
        for thresh in (1.0, MOST, far**2 / 4):
            keys = index.probed_lists(xq)
            for found in (index.range_search(xq, thresh), index.range_search_preassigned(xq, thresh, keys)):
                lims, D, I = found
                np.testing.assert_array_equal(np.diff(lims.astype(np.int64)), (distances < thresh).sum(1))
                of_query = np.repeat(np.arange(len(xq)), np.diff(lims.astype(np.int64)))
                expected = distances[of_query, np.argsort(vectors[-1])[I - vectors[-1].min()]]
                np.testing.assert_allclose(D, expected, rtol=1e-3)
                np.testing.assert_allclose(D[expected < MOST], expected[expected < MOST], rtol=1e-6)


@KINDS
def test_codes_and_reconstructions_are_those_of_the_results(kind):
    index, lists, codes, ids, xq = case(kind, 1e4)
    index.nprobe = NLIST
    D, I = index.search(xq, 10)
    place = np.argsort(ids)[I - ids.min()]
    D_codes, I_codes, found = index.search_and_return_codes(xq, 10, include_listnos=True)
    np.testing.assert_array_equal(D_codes, D)
    np.testing.assert_array_equal(I_codes, I)
    np.testing.assert_array_equal(found[..., 0], lists[place])
    packed = naive.pack(codes[place.ravel()].astype(np.uint16), NBITS)
    np.testing.assert_array_equal(found[..., 1:].reshape(len(packed), -1), packed)
    keys = np.tile(np.arange(NLIST)[::-1], (len(xq), 1))
    np.testing.assert_array_equal(index.search_preassigned(xq, 10, keys)[0], D)
    R = index.search_and_reconstruct(xq, 10)[2].reshape(-1, index.d)
    np.testing.assert_allclose(R, reconstructions(index, lists[place.ravel()], codes[place.ravel()]), rtol=1e-6)


def test_usual_distances_are_those_of_the_sums(monkeypatch):
    """No query of usual data is compared again."""
    rng = np.random.default_rng(3)
    coarse = faiss.IndexFlatL2(D)
    coarse.add((100 + 3 * rng.standard_normal((NLIST, D))).astype(np.float32))
    for by_residual in (True, False):
        offset = 0.0 if by_residual else 100.0
        codebooks = naive.random_codebooks(rng, LEVELS, 1 << NBITS, D, offset=offset)
        index = faiss_dpq.IndexIVFDPQ.from_codebooks(coarse, codebooks)
        index.by_residual = by_residual
        index.nprobe = 2
        index.add((100 + 3 * rng.standard_normal((N, D))).astype(np.float32))
        xq = (100 + 3 * rng.standard_normal((40, D))).astype(np.float32)
        with monkeypatch.context() as patch:
            patch.setattr(NearLists, "_nearness", None)
            index.search(xq, 10)
            one_by_one(index, xq, 10)
