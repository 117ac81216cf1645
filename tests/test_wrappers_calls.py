"""FAISS's wrappers call the Python methods of the index within."""

import copy

import faiss
import numpy as np
import pytest
from nestings import CODEBOOKS_10, DIM, IDS, IN_FILES, NESTINGS, XQ, X, assert_same_result, rotation, sharded, takes_ids

import faiss_dpq


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
        assert calls.count("search") + calls.count("search_and_reconstruct") == copies


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
    np.testing.assert_allclose(got[0][0], transform.apply(X), atol=1e-5)
    np.testing.assert_allclose(got[0][1], transform.apply(XQ), atol=1e-5)


EMPTY = ["DPQ2x4", "IVF4,DPQ2x4", "PCA8,DPQ2x4", "L2norm,IVF4,DPQ2x4,RFlat", "IDMap2,PCA8,IVF4,DPQ2x4", "MinMax,DPQ2x4"]


@pytest.mark.parametrize("string", [*EMPTY, "MinMaxFP16,DPQ2x4"])
def test_no_vectors_at_all(string):
    d = 16
    index = faiss_dpq.index_factory(d, string)
    index.train(np.random.default_rng(0).standard_normal((300, d)).astype(np.float32), effort="fast")
    none, no_ids = np.empty((0, d), np.float32), np.empty(0, np.int64)
    if not string.startswith("IDMap"):
        assert index.sa_encode(none).shape == (0, index.sa_code_size())
        assert index.sa_decode(np.empty((0, index.sa_code_size()), np.uint8)).shape == (0, d)
    if string.startswith("MinMax"):
        return
    index.add_with_ids(none, no_ids) if string.startswith("IDMap") else index.add(none)
    assert index.ntotal == 0
    assert [found.shape for found in index.search(none, 3)] == [(0, 3)] * 2
    assert [found.tolist() for found in index.range_search(none, 1.0)] == [[0], [], []]
    assert [found.shape for found in index.search_and_reconstruct(none, 3)] == [(0, 3), (0, 3), (0, 3, d)]
    assert index.assign(none, 2).shape == (0, 2)
    assert index.reconstruct_batch(no_ids).shape == (0, d)


@pytest.mark.parametrize(
    "make",
    [
        faiss_dpq.IndexIDMap,
        faiss_dpq.IndexIDMap2,
        faiss_dpq.IndexPreTransform,
        lambda index: faiss_dpq.IndexPreTransform(rotation(), index),
        faiss_dpq.IndexRefineFlat,
        lambda index: faiss_dpq.IndexRefine(faiss_dpq.IndexDPQ(DIM, 2, 4), index),
        lambda index: faiss_dpq.IndexRefine(index, faiss_dpq.IndexDPQ(DIM, 2, 4)),
        faiss_dpq.index_factory(DIM, "MinMax,DPQ2x4").__class__,
        lambda index: faiss_dpq.IndexShards(DIM).add_shard(index),
        lambda index: faiss_dpq.IndexReplicas(DIM).addIndex(index),
        lambda index: faiss_dpq.IndexIVFDPQ(index, DIM, 4, 2, 4),
    ],
)
@pytest.mark.parametrize("wrong", [None, 3, "DPQ4x8"])
def test_what_is_no_index_is_a_type_error(make, wrong):
    with pytest.raises(TypeError, match=r"index is a|coarse_quantizer is a"):
        make(wrong)


def test_there_are_no_parts_beyond_the_last():
    index = sharded(faiss_dpq.IndexShards(DIM), faiss_dpq.IndexDPQ(DIM, 2, 4))
    assert index.at(0).d == DIM
    for i in (-1, 1):
        with pytest.raises(IndexError, match=f"i is {i}, there are 1 indexes"):
            index.at(i)
