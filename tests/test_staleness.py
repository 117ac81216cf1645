"""What stock FAISS changes in an index of ours is seen by the next search; writes in place, after invalidate."""

import copy
import warnings

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from naive import METRICS, normal
from one_query import KINDS, assert_equal, flat

import faiss_dpq
from faiss_dpq import _kernels

D = 9


def fresh(index):
    """A copy that has derived nothing yet."""
    other = faiss_dpq.deserialize_index(faiss.serialize_index(index))
    if hasattr(index, "nprobe"):
        other.nprobe = index.nprobe
    return other


def assert_searches_as_fresh(index, xq, k=30):
    expected = fresh(index).search(xq, k)
    assert_equal(index.search(xq, k), expected)
    for _ in range(2):  # the long way, then directly
        assert_equal(index.search(xq[:1], k), (expected[0][:1], expected[1][:1]))


def stock_of(index):
    """FAISS's own object of the same C++ index: what a stock wrapper around it calls."""
    return faiss.downcast_index(faiss.IndexPreTransform(index).index)


def wrapped(index):
    """A stock IndexIDMap2 around an empty index of ours."""
    return faiss.IndexIDMap2(index)


def remove_one_add_one(stock, rng, x):
    i = int(rng.integers(stock.ntotal)) if hasattr(stock, "codes") else int(rng.choice(ids_of(stock)))
    stock.remove_ids(np.array([i]))
    stock.add(x) if hasattr(stock, "codes") else stock.add_with_ids(x, np.array([i]))


def ids_of(index):
    return np.concatenate([faiss.vector_to_array(v) for v in list_ids(index)])


def list_ids(index):
    lists = index.invlists
    for number in range(index.nlist):
        ids = faiss.Int64Vector()
        n = lists.list_size(number)
        faiss.copy_array_to_vector(faiss.rev_swig_ptr(lists.get_ids(number), n).copy() if n else np.empty(0, "i8"), ids)
        yield ids


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", METRICS)
@given(seed=st.integers(0, 10_000), n=st.integers(2, 700), distinct=st.sampled_from([1, 2, 5, 1000]))
def test_one_removed_and_one_added_by_stock_faiss(kind, metric, seed, n, distinct):
    """Whatever the codes are: mostly equal ones show a removal at few places only."""
    rng = np.random.default_rng(seed)
    index, xq = KINDS[kind](rng, n, D, 3, 5, metric), normal(rng, 3, D)
    stock = stock_of(index)
    if kind == "flat":
        codes = faiss.vector_to_array(index.codes).reshape(n, -1)
        rows = np.sort(rng.integers(0, min(distinct, n), n)) if seed % 2 else rng.integers(0, min(distinct, n), n)
        faiss.copy_array_to_vector(codes[rows].ravel(), index.codes)
    assert_searches_as_fresh(index, xq)
    for _ in range(3):
        if kind == "flat" and seed % 3:
            # The code that is appended is the last one, again: only those between move.
            last = faiss.vector_to_array(index.codes)[-index.code_size :][None]
            stock.remove_ids(np.array([int(rng.integers(n))]))
            stock.add_sa_codes(np.ascontiguousarray(last))
        else:
            remove_one_add_one(stock, rng, normal(rng, 1, D))
        assert index.ntotal == n
        assert_searches_as_fresh(index, xq)


def refill(stock, rng):
    n = stock.ntotal
    stock.reset()
    stock.add(normal(rng, n, D))


def merge(stock, rng):
    other = copy.deepcopy(faiss_dpq.downcast_index(stock))
    other.reset()
    other.add(normal(rng, 40, D))
    stock.merge_from(
        faiss.deserialize_index(faiss.serialize_index(other)), stock.ntotal if hasattr(stock, "nprobe") else 0
    )


BY_STOCK_FAISS = {
    "add": lambda stock, rng: stock.add(normal(rng, 60, D)),
    "reset and refill": refill,
    "merge": merge,
    "remove many": lambda stock, rng: stock.remove_ids(np.arange(0, 300, 3)),
    "train": lambda stock, rng: (stock.reset(), stock.rq.train(normal(rng, 500, D)), stock.add(normal(rng, 600, D))),
}
FLAT_ONLY = {"permute": lambda stock, rng: stock.permute_entries(rng.permutation(stock.ntotal))}
LISTS_ONLY = {
    "replace the coarse quantizer": lambda stock, rng: replace_centres(stock, rng),
    "replace the lists": lambda stock, rng: stock.replace_invlists(empty_lists(stock), False),
}


def replace_centres(stock, rng):
    centres = faiss.IndexFlatL2(D)
    centres.add(normal(rng, stock.nlist, D))
    centres.this.disown()
    stock.quantizer = centres


def empty_lists(stock):
    lists = faiss.ArrayInvertedLists(stock.nlist, stock.code_size)
    stock.referenced_objects = [lists]
    return lists


@pytest.mark.parametrize(
    ("kind", "change"),
    [("flat", name) for name in BY_STOCK_FAISS | FLAT_ONLY]
    + [("inverted", name) for name in BY_STOCK_FAISS | LISTS_ONLY],
)
def test_changes_by_stock_faiss_are_seen(kind, change):
    rng = np.random.default_rng(3)
    index, xq = KINDS[kind](rng), normal(rng, 4, D)
    stock = stock_of(index)
    assert_searches_as_fresh(index, xq)
    for _ in range(2):
        (BY_STOCK_FAISS | FLAT_ONLY | LISTS_ONLY)[change](stock, rng)
        assert_searches_as_fresh(index, xq)


def test_changes_through_a_stock_wrapper_are_seen():
    rng = np.random.default_rng(4)
    index, xq = flat(rng, n=0), normal(rng, 4, D)
    outer = faiss.IndexIDMap2(index)
    outer.add_with_ids(normal(rng, 500, D), np.arange(1000, 1500))
    assert_searches_as_fresh(index, xq)
    for i in (1000, 1250, 1499):
        outer.remove_ids(np.array([i]))
        outer.add_with_ids(normal(rng, 1, D), np.array([i]))
        assert_searches_as_fresh(index, xq)


def overwrite(index, rng):
    """One code of many, in place."""
    if hasattr(index, "codes"):
        memory = faiss.rev_swig_ptr(index.codes.data(), index.codes.size())
        memory[index.code_size * 7] ^= 5
    else:
        index.nprobe = index.nlist
        memory = faiss.rev_swig_ptr(index.invlists.get_codes(2), index.invlists.list_size(2) * index.code_size)
        memory[index.code_size * 7] ^= 5


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_in_place_is_seen_after_invalidate(kind):
    rng = np.random.default_rng(5)
    index, xq = KINDS[kind](rng, 5000), normal(rng, 4, D)
    assert_searches_as_fresh(index, xq)
    overwrite(index, rng)
    index.invalidate()
    assert_searches_as_fresh(index, xq, k=5000)


def test_invalidate_reaches_the_index_within():
    rng = np.random.default_rng(6)
    inner, xq = flat(rng, 5000), normal(rng, 4, D)
    outer = faiss_dpq.IndexPreTransform(inner)
    outer.search(xq, 5)
    overwrite(inner, rng)
    outer.invalidate()
    assert_searches_as_fresh(inner, xq, k=5000)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_compared_if_asked_for(kind, monkeypatch):
    monkeypatch.setenv("FAISS_DPQ_CHECK", "full")
    rng = np.random.default_rng(7)
    index, xq = KINDS[kind](rng, 5000), normal(rng, 4, D)
    assert_searches_as_fresh(index, xq)
    if kind == "inverted":
        index.nprobe = index.nlist
        index.search(xq, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index.search(xq, 5)
        index.search(xq[:1], 5)
    overwrite(index, rng)
    with pytest.warns(RuntimeWarning, match=r"overwritten in place.*invalidate"):
        found = index.search(xq, 5000)
    assert_equal(found, fresh(index).search(xq, 5000))


def test_appended_codes_are_derived_by_themselves(monkeypatch):
    rng = np.random.default_rng(8)
    index, xq = flat(rng, 5000), normal(rng, 4, D)
    index.search(xq, 5)
    derived = []
    term_bins = _kernels.term_bins
    monkeypatch.setattr(_kernels, "term_bins", lambda view, out: (derived.append(len(view)), term_bins(view, out)))
    index.add(normal(rng, 10, D))
    assert_searches_as_fresh(index, xq)
    assert min(derived) == 10
