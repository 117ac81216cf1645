"""What is derived from lists grows with what is added to them, and is what deriving all anew gives."""

import faiss
import numpy as np
import pytest
from ivf_model import Model, assert_finds, filled, probed
from naive import normal

from faiss_dpq import _kernels


def derived_lists(index, levels):
    """Of every list with vectors all that is derived at a prefix length, as bytes."""
    derived = index._known.derived[levels]
    found = {}
    for number in range(index.nlist):
        size = index.invlists.list_size(number)
        if not size:
            continue
        kept = [array[:size].tobytes() for array in derived._kept.get(number, ())]
        numbers = [derived.term_min, derived.term_step, derived.term_magnitude, derived.radius]
        found[number] = [*kept, *(array[number].tobytes() for array in numbers)]
    return found


def put(index, model, x, ids):
    lists = index.quantizer.search(x, 1)[1][:, 0]
    codes = index.sa_encode(x)
    index.add_with_ids(x, ids)
    model.put(ids, lists, index.sa_decode(codes))


@pytest.mark.parametrize("metric", [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT])
@pytest.mark.parametrize(("d", "M", "nbits"), [(5, 1, 4), (20, 3, 8), (9, 2, 5), (33, 4, 2)])
def test_grown_lists_are_those_derived_anew(d, M, nbits, metric, simd):
    rng = np.random.default_rng(0)
    index, model = filled(rng, 300, d, 6, M, nbits, metric)
    index.nprobe = 6
    xq = normal(rng, 1, d)
    index.search(xq, 5)
    ntotal = index.ntotal
    _kernels.reset_counters()
    scale = 1
    for n in [1] * 30 + [40, 1, 7, 1] + [1] * 10:
        scale *= 1.04  # terms get ever larger: now and then one is beyond the grid of the bins
        put(index, model, scale * normal(rng, n, d), np.arange(ntotal, ntotal + n) + 1000)
        ntotal += n
        assert_finds(*index.search(xq, 25), model, xq, probed(index, xq), metric)
    assert _kernels.counters()["grown"] == ntotal - 300
    grown = derived_lists(index, index.levels)
    index.invalidate()
    index.search(normal(rng, 40, d), 5)
    assert derived_lists(index, index.levels) == grown


def test_lists_that_are_new_or_were_emptied_grow_too():
    rng = np.random.default_rng(1)
    index, model = filled(rng, 300, 8, 4, 2, 4)
    index.nprobe = 4
    xq = normal(rng, 1, 8)
    index.search(xq, 5)
    index.remove_ids(np.arange(300))
    model = Model()
    index.search(xq, 5)
    for i in range(20):
        put(index, model, normal(rng, 1, 8), np.array([i]))
        assert_finds(*index.search(xq, 25), model, xq, probed(index, xq))


def test_a_list_that_was_changed_before_it_grew_is_derived_anew():
    # FAISS puts the last vector of a list in the place of one that it removes.
    rng = np.random.default_rng(2)
    index, model = filled(rng, 200, 8, 1, 2, 8)
    xq = normal(rng, 1, 8)
    index.search(xq, 5)
    for i in range(30):
        gone = rng.choice(sorted(model.x), 1)
        faiss.IndexIVF.remove_ids(index, gone)  # as FAISS's own wrappers do: the index is not told
        model.drop(gone.tolist())
        put(index, model, normal(rng, 2, 8), np.array([2 * i, 2 * i + 1]) + 5000)
        assert_finds(*index.search(xq, 300), model, xq, probed(index, xq))
