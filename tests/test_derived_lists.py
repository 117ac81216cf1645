"""What searches derive from inverted lists is bounded, and no result depends on it."""

import faiss
import numpy as np
import pytest
from ivf_model import filled
from naive import METRICS, normal

import faiss_dpq
from faiss_dpq import _kernels

N, NLIST = 3000, 12


def searches(index, queries, members):
    """What searches of several kinds find, one array after the other."""
    selector = faiss.IDSelectorBitmap(np.packbits(members, bitorder="little"))
    asked = [
        lambda: index.search(queries, 20),
        *(lambda i=i: index.search(queries[i : i + 1], 20) for i in range(4)),
        lambda: index.search(queries, 20, params=faiss_dpq.SearchParametersIVFDPQ(2, nprobe=3, sel=selector)),
        lambda: index.search(queries[:1], 9, params=faiss.SearchParametersIVF(nprobe=5, sel=selector)),
        lambda: index.search(queries, 9, params=faiss_dpq.SearchParametersIVFDPQ(nprobe=5, coarse_levels=2)),
        lambda: index.range_search(queries[:3], float(np.median(index.search(queries, 30)[0])))[1:],
        lambda: index.search_and_return_codes(queries, 5),
    ]
    return [array for ask in asked for array in ask()]


def held(index):
    """Memory of what is derived, and of the arrays that hold it."""
    usage = index.memory_usage()["derived"]
    lists = index._known.derived.values() if index._known else ()
    assert usage == sum(terms.nbytes + bins.nbytes for each in lists for terms, bins in each._kept.values())
    return usage


@pytest.mark.parametrize("metric", METRICS)
def test_results_do_not_depend_on_what_is_kept_of_lists(metric):
    rng = np.random.default_rng(0)
    index, _ = filled(rng, N, 6, NLIST, 4, 6, metric)
    index.nprobe = 4
    queries, members = normal(rng, 15, 6), rng.random(N) < 0.3
    expected = searches(index, queries, members)
    assert index.derived_bytes_per_vector == 16 + index.code_size
    assert held(index) <= (16 + index.code_size) * N
    for most in (0, 1, 6.3, 13, 100):
        index.derived_bytes_per_vector = most
        assert held(index) == 0
        for found, one in zip(searches(index, queries, members), expected, strict=True):
            np.testing.assert_array_equal(found, one)
        assert held(index) <= most * N
        assert (held(index) == 0) == (most < 6 or metric == faiss.METRIC_INNER_PRODUCT)
    index.derived_bytes_per_vector = 7
    assert faiss_dpq.clone_index(index).derived_bytes_per_vector == 7
    index.derived_bytes_per_vector = None
    assert index.derived_bytes_per_vector == 16 + index.code_size


def test_without_room_nothing_is_prepared():
    rng = np.random.default_rng(0)
    index, _ = filled(rng, N, 6, NLIST, 4, 6)
    query = normal(rng, 1, 6)
    for most, direct in ((None, 3), (0, 0)):
        index.derived_bytes_per_vector = most
        index.search(query, 3)
        _kernels.reset_counters()
        for _ in range(3):
            index.search(query, 3)
        assert _kernels.counters()["direct_lists"] == direct
    for value in (-1, "8", float("nan"), True):
        with pytest.raises(ValueError, match=r"IndexIVFDPQ\.derived_bytes_per_vector is"):
            index.derived_bytes_per_vector = value


@pytest.mark.parametrize("direct_map", [faiss.DirectMap.NoMap, faiss.DirectMap.Hashtable])
def test_what_is_kept_stays_within_its_bound_whatever_happens(direct_map):
    """Additions, one and many; removals down to few; vectors that move from list to list."""
    rng = np.random.default_rng(0)
    index, model = filled(rng, N, 6, NLIST, 4, 6)
    index.set_direct_map_type(direct_map)
    index.nprobe = NLIST
    index.derived_bytes_per_vector = 8
    queries, next_id = normal(rng, 5, 6), N
    ids = np.array(sorted(model.x))
    kept = 0
    for turn in range(60):
        if turn % 3 == 0:
            n = int(rng.integers(1, 9))
            index.add_with_ids(normal(rng, n, 6), np.arange(next_id, next_id + n))
            ids, next_id = np.append(ids, np.arange(next_id, next_id + n)), next_id + n
        elif turn % 3 == 1:
            gone = rng.permutation(ids)[: 1 if turn < 30 else len(ids) // 3]
            assert index.remove_ids(gone) == len(gone)
            ids = np.setdiff1d(ids, gone)
        elif direct_map == faiss.DirectMap.Hashtable:
            index.update_vectors(rng.permutation(ids)[: len(ids) // 3 + 1], normal(rng, len(ids) // 3 + 1, 6))
        index.search(queries, 4)
        D, I = index.search(queries[:1], 10)
        plain = faiss_dpq.clone_index(index)
        plain.derived_bytes_per_vector = 0
        for found, expected in zip((D, I), plain.search(queries[:1], 10), strict=True):
            np.testing.assert_array_equal(found, expected)
        assert held(plain) == 0 and held(index) <= 8 * index.ntotal
        kept += held(index) > 0
    assert kept > 30
