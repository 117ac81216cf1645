"""Files, copies and lifetimes of wrappers."""

import copy
import gc
import pickle

import faiss
import numpy as np
import pytest
from naive import METRICS
from nestings import (
    DIM,
    IDS,
    IN_FILES,
    NESTINGS,
    XQ,
    N,
    X,
    assert_same_result,
    dpq,
    filled,
    leaf_of,
    pre_transform,
    rotation,
    sharded,
    takes_ids,
    types_of,
)

import faiss_dpq


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


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda i: pickle.loads(pickle.dumps(i)), faiss_dpq.clone_index])
@pytest.mark.parametrize("name", NESTINGS)
def test_copies_are_whole_and_their_own(name, make_copy):
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


def replicas(d=DIM):
    index = faiss_dpq.IndexReplicas(d)
    for _ in range(2):
        index.add_replica(faiss_dpq.IndexDPQ.from_codebooks(np.random.default_rng(0).standard_normal((2, 16, d))))
    return index


AROUND_REPLICAS = {
    "IDMap": lambda: faiss_dpq.IndexIDMap(replicas()),
    "IDMap2": lambda: faiss_dpq.IndexIDMap2(replicas()),
    "PreTransform": lambda: faiss_dpq.IndexPreTransform(rotation(), replicas(10)),
    "RefineFlat": lambda: faiss_dpq.IndexRefineFlat(replicas()),
    "Refine": lambda: faiss_dpq.IndexRefine(dpq(), replicas()),
    "IDMap2 of RefineFlat of PreTransform": lambda: faiss_dpq.IndexIDMap2(
        faiss_dpq.IndexRefineFlat(faiss_dpq.IndexPreTransform(rotation(), replicas(10)))
    ),
}


@pytest.mark.parametrize("how", [copy.deepcopy, lambda index: pickle.loads(pickle.dumps(index)), faiss_dpq.clone_index])
@pytest.mark.parametrize("name", AROUND_REPLICAS)
def test_wrappers_around_what_has_no_file_format_are_copied(name, how):
    def add(index, x):
        index.add_with_ids(x, 7 + 3 * np.arange(index.ntotal, index.ntotal + len(x))) if takes_ids(name) else index.add(
            x
        )

    index = AROUND_REPLICAS[name]()
    add(index, X[:100])
    if name == "Refine":
        index.k_factor = 3
    twin = how(index)
    assert types_of(twin) == types_of(index) and twin.ntotal == 100 and twin.is_trained
    expected = index.search(XQ, 5)
    del index
    gc.collect()
    for a, b in zip(twin.search(XQ, 5), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    if name == "IDMap2":
        np.testing.assert_array_equal(twin.reconstruct(10), twin.index.at(0).reconstruct(1))
    add(twin, X[100:150])
    assert twin.ntotal == 150 and twin.search(X[100:150], 1)[1].min() >= 0
    if name == "Refine":
        assert twin.k_factor == 3
