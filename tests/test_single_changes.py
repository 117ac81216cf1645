"""A search by one query is never answered from what the index held before."""

import copy
import sys

import faiss
import numpy as np
import pytest
from naive import normal
from one_query import KINDS, NLIST, assert_equal, codes_of, flat, inverted, is_short, one_by_one, write_codes


def new_array_lists(index):
    """Other lists, at another address, of the first half of each list's vectors."""
    lists = faiss.ArrayInvertedLists(index.nlist, index.code_size)
    for number in range(index.nlist):
        n = index.invlists.list_size(number) // 2
        lists.add_entries(number, n, index.invlists.get_ids(number), index.invlists.get_codes(number))
    index.replace_invlists(lists, True)
    lists.this.disown()


def new_centres(index, rng):
    centres = faiss.IndexFlatL2(index.d)
    index.referenced_objects.append(centres)
    centres.add(2 * normal(rng, index.nlist, index.d))
    index.quantizer = centres


def write_ids(index):
    for number in range(index.nlist):
        faiss.rev_swig_ptr(index.invlists.get_ids(number), index.invlists.list_size(number))[:] += 1000


def codebooks_of(index):
    return faiss.rev_swig_ptr(index.rq.codebooks.data(), index.rq.codebooks.size())


def write_last_codebook(index, rng):
    values = codebooks_of(index)
    last = len(values) // index.rq.M
    values[-last:] = normal(rng, last)
    index.rq.compute_codebook_tables()


def set_state_of_another(index, rng):
    index.__setstate__(KINDS["inverted" if hasattr(index, "nprobe") else "flat"](rng).__getstate__())


OF_BOTH = {
    "levels": lambda index, rng: setattr(index, "levels", 2),
    "add": lambda index, rng: index.add(normal(rng, 50, index.d)),
    "remove": lambda index, rng: index.remove_ids(np.arange(100)),
    "reset": lambda index, rng: index.reset(),
    "codes": write_codes,
    "codebooks": lambda index, rng: faiss.copy_array_to_vector(
        normal(rng, index.rq.codebooks.size()), index.rq.codebooks
    ),
    "last codebook": write_last_codebook,
    "state": set_state_of_another,
}


CHANGES = {
    "flat": OF_BOTH
    | {
        "permute": lambda index, rng: index.permute_entries(rng.permutation(index.ntotal)),
        "codes vector": lambda index, rng: faiss.copy_array_to_vector(
            rng.integers(0, 256, index.codes.size()).astype(np.uint8), index.codes
        ),
    },
    "inverted": OF_BOTH
    | {
        "nprobe": lambda index, rng: setattr(index, "nprobe", 1),
        "max_codes": lambda index, rng: setattr(index, "max_codes", 70),
        "by_residual": lambda index, rng: setattr(index, "by_residual", False),
        "metric": lambda index, rng: setattr(index, "metric_type", faiss.METRIC_INNER_PRODUCT),
        "lists": lambda index, rng: new_array_lists(index),
        "ids": lambda index, rng: write_ids(index),
        "coarse quantizer": new_centres,
        "centres": lambda index, rng: (index.quantizer.reset(), index.quantizer.add(normal(rng, NLIST, index.d))),
    },
}


@pytest.mark.parametrize(("kind", "change"), [(kind, change) for kind in KINDS for change in CHANGES[kind]])
def test_the_next_search_of_one_query_sees_any_change(kind, change, monkeypatch):
    rng = np.random.default_rng(5)
    index, x = KINDS[kind](rng), normal(rng, 1, 9)
    for _ in range(2):
        before = index.search(x, 20)
    assert is_short(index, x, monkeypatch)
    CHANGES[kind][change](index, rng)
    fresh = copy.deepcopy(index)
    if kind == "inverted":
        fresh.max_codes = index.max_codes
    expected = fresh.search(np.repeat(x, 2, axis=0), 20)
    assert not np.array_equal(before[0], expected[0][:1]) or not np.array_equal(before[1], expected[1][:1])
    for _ in range(3):
        assert_equal(index.search(x, 20), (expected[0][:1], expected[1][:1]))


@pytest.mark.parametrize("n_threads", [1, 3])
def test_codes_changed_and_changed_back(n_threads, threads, worth_threads, monkeypatch):
    """The bins of the codes in between are not taken for those of the first ones."""
    threads(n_threads)
    rng = np.random.default_rng(6)
    index, xq = flat(rng, 20_000, 9, 4, 8), normal(rng, 3, 9)
    expected = one_by_one(index, xq, 10)
    (memory,) = codes_of(index)
    codes = memory.copy()
    for _ in range(3):
        write_codes(index, rng)
        index.invalidate()
        index.search(xq, 10)
        memory[:] = codes
        index.invalidate()
        assert_equal(one_by_one(index, xq, 10), expected)
        assert is_short(index, xq[:1], monkeypatch)


@pytest.mark.parametrize("place", [0, 4096 * 4 + 1, 29_999])
def test_one_code_written_in_place_is_seen_after_invalidate(place, threads, worth_threads):
    threads(3)
    rng = np.random.default_rng(6)
    index, x = flat(rng, 30_000, 9, 4, 8), normal(rng, 1, 9)
    for _ in range(2):
        before = index.search(x, 30_000)
    (memory,) = codes_of(index)
    memory.reshape(-1, 4)[place, 3] ^= 1
    index.invalidate()
    expected = copy.deepcopy(index).search(np.repeat(x, 2, axis=0), 30_000)
    found = index.search(x, 30_000)
    assert_equal(found, (expected[0][:1], expected[1][:1]))
    assert not np.array_equal(found[0], before[0])


def test_a_coarse_quantizer_emptied_is_noticed():
    index, x = inverted(np.random.default_rng(0)), np.zeros((1, 9), np.float32)
    index.search(x, 4)
    index.quantizer.reset()  # which leaves the centres in memory
    with pytest.raises(RuntimeError, match="holds 0 vectors"):
        index.search(x, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_is_freed_with_its_last_name(kind):
    index, x = KINDS[kind](np.random.default_rng(0)), np.zeros((1, 9), np.float32)
    index.search(x, 4)
    index.search(x, 4)
    direct = index._direct
    del index
    assert sys.getrefcount(direct) == 2
