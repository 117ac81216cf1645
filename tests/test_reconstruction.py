"""Keys and codes that are of no vector are refused; FAISS's C++ reads other memory, or ends the process."""

import faiss
import numpy as np
import pytest

import faiss_dpq

D, N = 12, 60
FACTORY = ["DPQ3x4", "IVF4,DPQ3x4", "PCA8,DPQ3x4", "PCA8,IVF4,DPQ3x4", "DPQ3x4,RFlat", "IVF4,DPQ3x4,RFlat"]
MAPPED = ["IDMap,DPQ3x4", "IDMap2,DPQ3x4", "IDMap2,IVF4,DPQ3x4", "IDMap2,PCA8,IVF4,DPQ3x4,RFlat"]
LARGEST = 2**63 - 1


def normal(seed, n):
    return np.random.default_rng(seed).standard_normal((n, D)).astype(np.float32)


def with_map(index):
    """The index; lists get a direct map."""
    if "IVF" in repr(index):
        faiss.extract_index_ivf(index).make_direct_map()
    return index


def filled(string):
    index = faiss_dpq.index_factory(D, string)
    index.train(normal(0, 300))
    if string.startswith("IDMap"):
        index.add_with_ids(normal(1, N), np.arange(N) * 7 + 3)
    else:
        index.add(normal(1, N))
    return with_map(index)


def replicas():
    index = faiss_dpq.IndexReplicas(D)
    for _ in range(2):
        index.add_replica(filled("DPQ3x4"))
    return index


def shards():
    index = faiss_dpq.IndexShards(D, False, True)
    for _ in range(2):
        index.add_shard(filled("DPQ3x4"))
    return index


def refused(call):
    with pytest.raises(RuntimeError):
        call()


MAKE = [*(pytest.param(lambda string=string: filled(string), id=string) for string in FACTORY), replicas]


@pytest.mark.parametrize("make", MAKE)
def test_places_out_of_range(make):
    index = make()
    everything = index.reconstruct_n()
    assert everything.shape == (N, D)
    np.testing.assert_array_equal(index.reconstruct_n(50, 10), everything[50:])
    np.testing.assert_array_equal(index.reconstruct_batch(np.array([59, 0])), everything[[59, 0]])
    np.testing.assert_array_equal(index.reconstruct(7), everything[7])
    assert index.reconstruct_n(3, 0).shape == index.reconstruct_batch(np.zeros(0, np.int64)).shape == (0, D)
    for key in (-1, N, LARGEST, -(2**63)):
        refused(lambda key=key: index.reconstruct(key))
        refused(lambda key=key: index.reconstruct_batch(np.array([0, key])))
    for n0, ni in [(-1, 2), (0, N + 1), (N - 1, 2), (LARGEST, 1), (LARGEST - 1, 5), (-(2**63), 1)]:
        refused(lambda n0=n0, ni=ni: index.reconstruct_n(n0, ni))


@pytest.mark.parametrize("string", MAPPED)
def test_ids_that_are_not_there(string):
    index = filled(string)
    for n0, ni in [(0, 5), (3, 8), (LARGEST, 1), (-1, 2)]:
        refused(lambda n0=n0, ni=ni: index.reconstruct_n(n0, ni))
    if string.startswith("IDMap2"):
        np.testing.assert_array_equal(index.reconstruct_n(10, 1), index.reconstruct(10)[None])
        refused(lambda: index.reconstruct_batch(np.array([3, 4])))


@pytest.mark.parametrize("make", [shards, lambda: faiss_dpq.IndexRowwiseMinMax(faiss_dpq.IndexDPQ(D, 3, 4))])
def test_indexes_that_reconstruct_nothing(make):
    index = make()
    refused(lambda: index.reconstruct_n(0, 5))


@pytest.mark.parametrize("string", FACTORY)
def test_empty_indexes(string):
    index = faiss_dpq.index_factory(D, string)
    index.train(normal(0, 300))
    with_map(index)
    assert index.reconstruct_n().shape == (0, D)
    for key in (0, LARGEST):
        refused(lambda key=key: index.reconstruct(key))
        refused(lambda key=key: index.reconstruct_n(key, 1))


def test_codes_of_lists_that_are_not_there():
    inner = [filled("IVF4,DPQ3x4"), filled("PCA8,IVF4,DPQ3x4")]
    for index in (*inner, faiss_dpq.IndexRowwiseMinMax(inner[0]), faiss_dpq.IndexRowwiseMinMaxFP16(inner[1])):
        codes = index.sa_encode(normal(2, 5))
        assert index.sa_decode(codes).shape == (5, D)
        codes[3, -3] = 4
        refused(lambda index=index, codes=codes: index.sa_decode(codes))
        with pytest.raises(AssertionError):
            index.sa_decode(codes[:, :1])


def test_an_order_of_vectors_that_are_not_there():
    index = filled("DPQ3x4")
    before = index.reconstruct_n()
    for wrong in (np.arange(N) + 1, np.arange(N) - 1):
        refused(lambda wrong=wrong: index.permute_entries(wrong))
    np.testing.assert_array_equal(index.reconstruct_n(), before)
    index.permute_entries(np.arange(N)[::-1].copy())
    np.testing.assert_array_equal(index.reconstruct_n(), before[::-1])
