"""What changes in an IndexIVFDPQ is seen by its next search."""

import copy

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ivf_model import Model, assert_finds, filled, probed, stored
from naive import METRICS, normal

import faiss_dpq

OPERATIONS = ("add", "add_with_ids", "remove", "behind", "stock", "update", "merge", "levels", "reset")


@given(
    metric=st.sampled_from(METRICS),
    operations=st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 10_000)), min_size=1, max_size=8),
)
def test_any_change_is_seen_by_the_next_search(metric, operations):
    """Adding, removing, merging, writing to the lists behind our back: the next search is of what the lists hold."""
    rng = np.random.default_rng(0)
    d, nlist = 5, 4
    index, _ = filled(rng, 0, d, nlist, 3, 5, metric)
    index.nprobe = nlist
    model, xq, fresh = Model(), normal(rng, 3, d), 0
    for operation, seed in operations:
        own = np.random.default_rng(seed)
        x = normal(own, 20, d)
        codes = index.sa_encode(x)
        lists, decoded = codes[:, 0].astype(np.int64), index.sa_decode(codes).astype(np.float64)
        ids = np.arange(fresh + 1_000_000, fresh + 1_000_020)
        fresh += 20
        if operation == "add":
            ids = np.arange(index.ntotal, index.ntotal + 20)
            if set(ids) & set(model.x):
                continue
            index.add(x)
        elif operation == "add_with_ids":
            index.add_with_ids(x, ids)
        elif operation == "stock":
            faiss.IndexIVFResidualQuantizer.add_with_ids_c(index, 20, faiss.swig_ptr(x), faiss.swig_ptr(ids))
            decoded = np.stack([x for _, x in sorted(stored(index).items())][-20:])
        elif operation == "behind":
            only = lists == lists[0]
            ids, lists, decoded = ids[only], lists[only], decoded[only]
            plain = np.ascontiguousarray(codes[only, 1:])
            index.invlists.add_entries(int(lists[0]), len(ids), faiss.swig_ptr(ids), faiss.swig_ptr(plain))
            index.ntotal += len(ids)
        elif operation == "merge":
            other = copy.deepcopy(index)
            other.reset()
            other.add_with_ids(x, ids)
            index.merge_from(other, 0)
            assert other.ntotal == 0
        elif operation == "levels":
            index.search(xq, 4, params=faiss_dpq.SearchParametersIVFDPQ(levels=2, nprobe=2))
            continue
        elif operation == "reset":
            index.reset()
            model = Model()
            continue
        elif model.x:
            gone = own.choice(sorted(model.x), min(5, len(model.x)), replace=False)
            if operation == "remove":
                assert index.remove_ids(gone) == len(gone)
                model.drop(gone.tolist())
                continue
            index.set_direct_map_type(faiss.DirectMap.Hashtable)
            index.update_vectors(gone, x[: len(gone)])
            index.set_direct_map_type(faiss.DirectMap.NoMap)
            ids, lists, decoded = gone, lists[: len(gone)], decoded[: len(gone)]
        else:
            continue
        model.put(ids, lists, decoded)
        assert index.ntotal == len(model.x)
        assert_finds(*index.search(xq, 15), model, xq, probed(index, xq), metric)
    assert_finds(*index.search(xq, 15), model, xq, probed(index, xq), metric) if model.x else None


def test_codes_written_in_place_are_seen_after_invalidate():
    rng = np.random.default_rng(9)
    index, _ = filled(rng, 800, 5, 3, 3, 8)
    index.nprobe = 3
    xq = normal(rng, 4, 5)
    index.search(xq, 10)
    faiss.rev_swig_ptr(index.invlists.get_codes(1), index.invlists.list_size(1) * 3)[::2] ^= 77
    index.invalidate()
    model = Model()
    now = stored(index)
    model.put(np.array(list(now)), np.zeros(len(now), np.int64), np.stack(list(now.values())))
    assert_finds(*index.search(xq, 10), model, xq, np.zeros((4, 1), np.int64))


def test_new_centres_are_seen():
    rng = np.random.default_rng(10)
    index, _ = filled(rng, 800, 5, 3, 3, 8)
    index.nprobe = 3
    xq = normal(rng, 4, 5)
    index.search(xq, 10)
    index.quantizer.reset()
    index.quantizer.add(normal(rng, 3, 5))
    stock = faiss.deserialize_index(faiss.serialize_index(index))
    np.testing.assert_allclose(index.search(xq, 10)[0], stock.search(xq, 10)[0], rtol=1e-4)
    index.quantizer.reset()
    with pytest.raises(RuntimeError, match="nlist=3"):
        index.search(xq, 10)


def test_new_codebooks_are_seen():
    rng = np.random.default_rng(16)
    index, _ = filled(rng, 800, 5, 3, 3, 6)
    index.nprobe = 3
    xq = normal(rng, 4, 5)
    index.search(xq, 10)
    faiss.copy_array_to_vector(normal(rng, 3 * 64 * 5), index.rq.codebooks)
    index.rq.compute_codebook_tables()
    stock = faiss.deserialize_index(faiss.serialize_index(index))
    np.testing.assert_allclose(index.search(xq, 10)[0], stock.search(xq, 10)[0], rtol=1e-4, atol=1e-5)


def test_update_vectors_with_array_map():
    rng = np.random.default_rng(11)
    index, model = filled(rng, 300, 5, 4, 3, 5)
    index.nprobe = 4
    with pytest.raises(RuntimeError, match="make_direct_map"):
        index.update_vectors(np.array([1]), normal(rng, 1, 5))
    index.make_direct_map()
    keys, x = np.array([7, 2, 299]), normal(rng, 3, 5)
    index.update_vectors(keys, x)
    codes = index.sa_encode(x)
    model.put(keys, codes[:, 0].astype(np.int64), index.sa_decode(codes))
    assert_finds(*index.search(x, 20), model, x, probed(index, x))
    np.testing.assert_allclose(index.reconstruct(299), model.x[299], rtol=1e-6)
    for bad in (-1, 300):
        with pytest.raises(RuntimeError, match="ntotal=300"):
            index.update_vectors(np.array([bad]), x[:1])
    index.add(x)  # the direct map goes on
    np.testing.assert_allclose(index.reconstruct(300), index.sa_decode(codes)[0], rtol=1e-6)
