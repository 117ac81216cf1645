"""Ids of vectors in inverted lists within an IndexIDMap.

An IndexIDMap takes the ids that the index within knows for places in its own table of ids, so they must be 0 to
ntotal - 1. Codes in one array move up when others are removed; in inverted lists, FAISS leaves every vector its id, and
so garbles those of the map. Here the vectors that stay get the ids that fit the table.
"""

from collections.abc import Iterator

import faiss
import numpy as np
import numpy.typing as npt

from ...search.selection import Labels
from ..changes import Undo, entries, parts_of, renew_direct_map, whole_lists


def lists_within(index: faiss.Index) -> faiss.IndexIVF | None:
    """The index with inverted lists that an index of an IDMap is, or has behind transforms; None if there is none."""
    innermost = list(behind_transforms(index))[-1]
    return innermost if isinstance(innermost, faiss.IndexIVF) else None


def behind_transforms(index: faiss.Index) -> Iterator[faiss.Index]:
    """An index, and those within it for as long as it only transforms vectors, as objects of their own classes."""
    index = faiss.downcast_index(index) if type(index) is faiss.Index else index
    yield index
    while isinstance(index, faiss.IndexPreTransform):
        (index,) = parts_of(index)
        yield index


def numbered_lists(ivf: faiss.IndexIVF, n: int, call: str) -> list[tuple[int, Labels]]:
    """Every list that holds vectors, and a copy of its ids.

    Raises
    ------
    RuntimeError
        If they cannot be renumbered: lists of another class than FAISS's in memory, or ids that are not below n.
    """
    invlists = faiss.downcast_InvertedLists(ivf.invlists)
    if type(invlists) is not faiss.ArrayInvertedLists or isinstance(ivf, faiss.IndexIVFPQR | faiss.IndexIVFFlatDedup):
        raise RuntimeError(
            f"{call}: the {type(ivf).__name__} within keeps its ids in {type(invlists).__name__}, which this cannot "
            "renumber; the ids of the vectors left would be wrong"
        )
    ids_of_lists = [(number, entries(invlists, number)[0]) for number in range(ivf.nlist)]
    if any(len(ids) and not (ids.min() >= 0 and ids.max() < n) for _, ids in ids_of_lists):
        raise RuntimeError(
            f"{call}: the lists within hold ids that are not below ntotal={n}; were vectors added there?"
        )
    return [(number, ids) for number, ids in ids_of_lists if len(ids)]


def remove_and_renumber(
    ivf: faiss.IndexIVF, ids_of_lists: list[tuple[int, Labels]], kept: npt.NDArray[np.bool_]
) -> None:
    """Remove the vectors whose ids `kept` does not have, shape (ntotal,), and number the others from 0."""
    places = np.cumsum(kept) - 1
    invlists = ivf.invlists
    for number, ids in ids_of_lists:
        staying = kept[ids]
        codes = entries(invlists, number)[1].reshape(len(ids), -1)[staying]
        left = places[ids[staying]]
        if len(left):
            invlists.update_entries(number, 0, len(left), faiss.swig_ptr(left), faiss.swig_ptr(codes))
        invlists.resize(number, len(left))
    ivf.ntotal = int(kept.sum())
    renew_direct_map(ivf, ivf.direct_map.type)


def removal(index: faiss.IndexIDMap, ivf: faiss.IndexIVF) -> Iterator[Undo]:
    """How to put back what `remove_and_renumber` changes, and the counts of the indexes around it."""
    yield from whole_lists(ivf, np.arange(ivf.nlist))
    ids = faiss.vector_to_array(index.id_map)
    yield lambda: set_ids(index, ids)


def set_ids(index: faiss.IndexIDMap, ids: Labels) -> None:
    """Make these the ids of the vectors within, whose number they are, and all counts that number."""
    for inner in behind_transforms(index.index):
        if isinstance(inner, faiss.IndexPreTransform):
            inner.ntotal = len(ids)
    faiss.copy_array_to_vector(ids, index.id_map)
    index.ntotal = len(ids)
    if isinstance(index, faiss.IndexIDMap2):
        index.construct_rev_map()  # of `ntotal` ids
