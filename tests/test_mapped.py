"""An index whose codes are mapped from a file refuses every change by an error, and is searched as ever."""

import faiss
import numpy as np
import pytest

import faiss_dpq
from bench import fuzz

IN_LISTS = [name for name in fuzz.WHOLES if "IVF" in name]
OURS = [name for name in fuzz.WHOLES if name != "RQ with norms"]
#: What is mapped: IO_FLAG_MMAP maps lists only.
MAPPED = [(name, faiss.IO_FLAG_MMAP_IFC) for name in OURS] + [(name, faiss.IO_FLAG_MMAP) for name in IN_LISTS]
x = fuzz._vectors(3)


def changes(index, other):
    ids = np.arange(3)
    return {
        "train": lambda: index.train(fuzz._vectors(200)),
        "add": lambda: index.add(x),
        "add_with_ids": lambda: index.add_with_ids(x, ids),
        "add_sa_codes": lambda: index.add_sa_codes(np.zeros((1, index.sa_code_size()), np.uint8), ids[:1]),
        "remove_ids": lambda: index.remove_ids(np.array([1])),
        "remove_ids by a selector": lambda: index.remove_ids(faiss.IDSelectorRange(0, 200)),
        "reset": lambda: index.reset(),
        "merge_from": lambda: index.merge_from(other),
        "merge_from, of the other": lambda: other.merge_from(index),
    }


@pytest.mark.parametrize(("name", "flag"), MAPPED)
def test_every_change_is_refused(name, flag, tmp_path):
    original = fuzz.whole(name)
    faiss_dpq.write_index(original, tmp_path / "index")
    index = faiss_dpq.read_index(tmp_path / "index", flag)
    expected = original.search(x, 3)
    for method, change in changes(index, original).items():
        with pytest.raises(RuntimeError, match="mapped from a file, read-only"):
            change()
        assert index.ntotal == original.ntotal == fuzz.N, method
    if hasattr(index, "update_vectors"):
        with pytest.raises(RuntimeError, match="read-only"):
            index.update_vectors(np.arange(3), x)
    if hasattr(index, "permute_entries"):
        with pytest.raises(RuntimeError, match="read-only"):
            index.permute_entries(np.arange(fuzz.N))
    for a, b in zip(index.search(x, 3), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    if flag == faiss.IO_FLAG_MMAP_IFC:  # FAISS writes no lists that it has mapped by the other flag
        copy = faiss_dpq.deserialize_index(faiss_dpq.serialize_index(index))
        copy.reset()
        assert copy.ntotal == 0
    else:
        with pytest.raises(RuntimeError, match="cannot be copied or written"):
            faiss_dpq.serialize_index(index)


@pytest.mark.parametrize("within", [faiss_dpq.IndexIDMap2, faiss_dpq.IndexShards, faiss_dpq.IndexReplicas])
def test_a_mapped_index_makes_what_is_around_it_read_only(within, tmp_path):
    empty = fuzz.whole("DPQ")
    empty.reset()
    faiss_dpq.write_index(empty, tmp_path / "index")
    mapped = faiss_dpq.read_index(tmp_path / "index", faiss.IO_FLAG_MMAP_IFC)
    wrapper = within(mapped if within is faiss_dpq.IndexIDMap2 else fuzz.D)
    if within is not faiss_dpq.IndexIDMap2:
        wrapper.addIndex(mapped)
    for change in (lambda: wrapper.add(x), lambda: wrapper.add_with_ids(x, np.arange(3)), lambda: wrapper.reset()):
        with pytest.raises(RuntimeError, match="read-only"):
            change()


def test_what_is_not_mapped_can_be_changed(tmp_path):
    """Only lists are, by IO_FLAG_MMAP."""
    faiss_dpq.write_index(fuzz.whole("IDMap2 of RefineFlat of PCA"), tmp_path / "index")
    index = faiss_dpq.read_index(tmp_path / "index", faiss.IO_FLAG_MMAP)
    index.reset()
    index.add_with_ids(x, np.arange(3))
    assert index.ntotal == 3


def test_lists_that_are_put_in_place_of_mapped_ones_can_be_changed(tmp_path):
    faiss_dpq.write_index(fuzz.whole("IVF"), tmp_path / "index")
    index = faiss_dpq.read_index(tmp_path / "index", faiss.IO_FLAG_MMAP)
    with pytest.raises(RuntimeError, match="read-only"):
        index.reset()
    lists = faiss.ArrayInvertedLists(index.nlist, index.code_size)
    index.replace_invlists(lists)
    index.ntotal = 0
    index.add(x)
    assert index.ntotal == 3
