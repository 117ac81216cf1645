"""Vectors added to inverted lists one at a time take a short way, and are stored as those added together are."""

import faiss
import naive
import numpy as np
import pytest

import faiss_dpq
from faiss_dpq import _kernels


def normal(seed, n, d):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def trained(d, nlist, M, nbits, metric=faiss.METRIC_L2, coarse=faiss.IndexFlat):
    quantizer = coarse(d, metric)
    if not quantizer.is_trained:
        quantizer.train(normal(5, 300, d))
    quantizer.add(normal(6, nlist, d))
    codebooks = naive.random_codebooks(np.random.default_rng(7), M, 1 << nbits, d)
    return faiss_dpq.IndexIVFDPQ.from_codebooks(quantizer, codebooks, metric)


def same(a, b):
    """Whether two indexes hold the same, in the same order."""
    return bytes(faiss.serialize_index(a)) == bytes(faiss.serialize_index(b))


def added_together(index, x):
    copy = faiss_dpq.clone_index(index)
    copy.add(x)
    return copy


def added_in_turn(index, x, directly):
    _kernels.reset_counters()
    for row in range(len(x)):
        index.add(x[row : row + 1])
    assert _kernels.counters()["added_directly"] == directly
    return index


@pytest.mark.parametrize("metric", [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT])
@pytest.mark.parametrize(("d", "M", "nbits"), [(7, 1, 4), (20, 4, 8), (9, 3, 5), (33, 2, 10)])
def test_one_at_a_time_is_stored_as_together(d, M, nbits, metric, simd):
    index = trained(d, 8, M, nbits, metric)
    index.parallel_weight = 0
    x = normal(1, 60, d)
    together = added_together(index, x)
    assert same(added_in_turn(index, x, 59), together)


def test_ids_of_ones_own_are_stored(simd):
    index = trained(20, 8, 3, 4)
    x, ids = normal(1, 40, 20), np.arange(40)[::-1] * 11 - 5
    together = faiss_dpq.clone_index(index)
    together.add_with_ids(x, ids)
    _kernels.reset_counters()
    for row in range(40):
        index.add_with_ids(x[row : row + 1], ids[row : row + 1] if row % 5 else ids[row : row + 1].tolist())
    assert _kernels.counters()["added_directly"] == 32
    assert same(index, together)
    for wrong in (np.arange(2), np.array([1.5])[:0]):
        with pytest.raises(AssertionError):
            index.add_with_ids(x[:1], wrong)
    with pytest.raises((TypeError, ValueError, AssertionError)):
        index.add_with_ids(x[:1], None)
    assert index.ntotal == 40


def change_nothing(index):
    pass


def change_beam(index):
    index.beam_size = 1


def change_prefix_weight(index):
    index.prefix_weight = 0.8


def change_parallel_weight(index):
    index.parallel_weight = 3.0


def change_codebooks(index):
    faiss.copy_array_to_vector(faiss.vector_to_array(index.rq.codebooks)[::-1].copy(), index.rq.codebooks)
    index.rq.compute_codebook_tables()


def change_lists(index):
    lists = faiss.ArrayInvertedLists(index.nlist, index.code_size)
    lists.this.disown()
    index.replace_invlists(lists, True)
    index.ntotal = 0


def map_directly(index):
    index.set_direct_map_type(faiss.DirectMap.Array)


def hash_directly(index):
    index.set_direct_map_type(faiss.DirectMap.Hashtable)


def remove_some(index):
    index.remove_ids(np.arange(2))


CHANGES = [
    (change_nothing, True),
    (change_beam, True),
    (change_prefix_weight, True),
    (change_parallel_weight, True),
    (change_codebooks, True),
    (change_lists, True),
    (map_directly, False),
    (hash_directly, False),
    (remove_some, True),
]


@pytest.mark.parametrize(("change", "directly"), CHANGES)
def test_what_changes_codes_or_their_place_is_seen(change, directly):
    index = trained(12, 6, 3, 4)
    x = normal(2, 40, 12)
    added_in_turn(index, x[:10], 9)
    change(index)
    together = added_together(index, x[10:])
    # The first after a change goes the long way, unless the change makes no difference.
    expected = 30 if change in (change_nothing, remove_some) else 29 if directly else 0
    assert same(added_in_turn(index, x[10:], expected), together)
    if index.direct_map.type == faiss.DirectMap.Hashtable:
        index.reconstruct(39)


def test_new_centres_are_seen():
    index = trained(12, 6, 3, 4)
    added_in_turn(index, normal(2, 10, 12), 9)
    index.quantizer.reset()
    index.quantizer.add(normal(3, 6, 12))
    x = normal(4, 10, 12)
    together = added_together(index, x)
    assert same(added_in_turn(index, x, 9), together)


@pytest.mark.parametrize(
    "coarse", [lambda d, _: faiss.IndexHNSWFlat(d, 8), lambda d, _: faiss_dpq.IndexDPQ(d, 2, 4)], ids=["HNSW", "DPQ"]
)
def test_other_coarse_quantizers_take_the_long_way(coarse):
    index = trained(16, 16, 2, 4, coarse=coarse)
    x = normal(1, 20, 16)
    together = added_together(index, x)
    assert same(added_in_turn(index, x, 0), together)


def test_vectors_of_other_kinds_take_the_long_way():
    index = trained(8, 4, 2, 4)
    x = normal(1, 1, 8)
    added_in_turn(index, np.repeat(x, 2, 0), 1)
    for other in (x.astype(np.float64), x.tolist(), np.asfortranarray(np.repeat(x, 2, 1))[:, ::2]):
        index.add(other)
    index.add(np.full((1, 8), np.nan, np.float32))
    assert index.ntotal == 6
    assert sum(index.invlists.list_size(number) for number in range(4)) == 5
    number = next(number for number in range(4) if index.invlists.list_size(number))
    codes = faiss.rev_swig_ptr(index.invlists.get_codes(number), 5)
    assert len(set(codes.tolist())) == 1
    for wrong in (np.zeros((1, 7), np.float32), np.zeros(8, np.float32)):
        with pytest.raises((AssertionError, ValueError)):
            index.add(wrong)
    assert index.ntotal == 6


@pytest.mark.parametrize("n", [1, 3])
def test_a_failure_in_a_wrapper_takes_back_what_was_added_directly(n, monkeypatch):
    index = faiss_dpq.index_factory(8, "IDMap2,IVF4,DPQ2x4")
    index.train(normal(0, 500, 8), effort="fast")
    for i in range(5):
        index.add_with_ids(normal(i, 1, 8), np.array([100 + i]))
    before = bytes(faiss.serialize_index(index))

    def fail(self, x, ids, ntotal):
        raise KeyboardInterrupt

    monkeypatch.setattr(faiss_dpq.IndexIDMap, "_append_ids", fail)
    _kernels.reset_counters()
    with pytest.raises(KeyboardInterrupt):
        index.add_with_ids(normal(9, n, 8), np.arange(n))
    assert _kernels.counters()["added_directly"] == (n == 1)
    assert bytes(faiss.serialize_index(index)) == before
