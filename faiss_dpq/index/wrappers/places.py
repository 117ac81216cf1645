"""Vectors of an IndexIDMap removed and replaced one by one.

Its ids hide the places of the vectors within, so that the last vector can take the place of one that is removed: the
time does not grow with the number of vectors. An IndexIDMap2 has FAISS's map from ids to places, which a compiled
module of C++ reads, and changes by single entries. For an IndexIDMap a table is made when it is first needed.
"""

import functools
from typing import Any

import faiss
import numpy as np

from ... import _kernels
from ...codec import Floats
from ...search.selection import Labels, is_member
from ...search.stored import Step
from ..base import Base
from ..flat import IndexDPQ
from ..list_changes import ListsChanged
from ..removal import Removed, are_few, check_once, counted, gaps, listed_ids, unknown_ids
from .listed_ids import behind_transforms
from .pre_transform import IndexPreTransform

try:
    from ..._rev_map import find, is_as_expected, remove, size
except ImportError:  # built without a compiler of C++
    is_as_expected = None  # type: ignore[assignment]


@functools.cache
def _reads_rev_maps() -> bool:
    """Whether FAISS's map is where and what the module of C++ was compiled for; asked of small ones."""
    if is_as_expected is None:
        return False
    index, places = faiss.IndexIDMap2(faiss.IndexFlatL2(1)), np.empty(3, np.int64)
    for id_ in (7, -2, 1 << 40):
        index.add_with_ids(np.zeros((1, 1), np.float32), np.array([id_]))
        if not is_as_expected(int(index.id_map.this)):
            return False
    find(int(index.id_map.this), np.array([-2, 8, 1 << 40]), places)
    return places.tolist() == [1, -1, 2]


class Places:
    """The places of the ids of one IndexIDMap."""

    def __init__(self, index: faiss.IndexIDMap) -> None:
        self._table = _kernels.IdTable()
        self._sample: _kernels.Sample | None = None  # of the ids that the table is of
        self._ids = _kernels.FaissVector(index.id_map, np.int64)
        self._has_map = isinstance(index, faiss.IndexIDMap2)
        self._id_map = int(index.id_map.this) if self._has_map and _reads_rev_maps() else None
        self.this = index.this

    @property
    def ids(self) -> Labels:
        """The ids in FAISS's memory, by place."""
        return self._ids.rows(1)[:, 0]

    def of(self, ids: Labels) -> Labels | None:
        """Places of ids, -1 of those that are not there.

        None where some vectors share an id, or FAISS has a map from ids that this cannot change.
        """
        if self._has_map and self._id_map is None:
            return None
        places = np.empty(len(ids), np.int64)
        if self._id_map is not None:
            if size(self._id_map) != len(self.ids):
                return None
            find(self._id_map, ids, places)
            return places
        self._update()
        if self._table.repeated:
            return None
        self._table.numbers_of(ids, places)
        return places

    def _update(self) -> None:
        """Let the table be of the ids as they are."""
        sample, ids = self._sample, self.ids
        if sample is not None and sample.is_all_of(self._ids):
            return
        first = sample.n if sample is not None and sample.begins(self._ids) else 0
        self._sample = None  # an interrupt may leave a half of it
        if not first:
            self._table = _kernels.IdTable(len(ids))
        self._table.add(ids[first:], first)
        self.note()

    def note(self) -> None:
        """Take the table for one of the ids as they are."""
        self._sample = None if self._id_map is not None else _kernels.Sample(self._ids.rows(1).view(np.uint8))

    def moves(self, removed: Labels, holes: Labels, fillers: Labels) -> list[Step]:
        """The steps by which the ids at the places `fillers` get those of `holes`, and `removed` places are no more."""
        ids = self.ids
        arguments = ids[removed], ids[fillers], holes
        forget: Step = (self._table.remove, *arguments)
        if self._id_map is not None:
            forget = (remove, self._id_map, *arguments)
        left = len(ids) - len(removed)
        return [forget, (_kernels.copy_rows, [ids], holes, fillers), (self._ids.resize, left)]


def remove_few(index: Any, x: Removed) -> int | None:
    """Remove a few vectors, each for itself: their number. None, and nothing is changed, where this cannot."""
    chain = list(behind_transforms(index.index))
    leaf = chain[-1]
    if not isinstance(leaf, IndexDPQ | ListsChanged):
        return None
    leaf._check_writable("remove_ids")
    known, ids = index._known_places(), listed_ids(x, index._call("remove_ids"))
    n = index.ntotal
    if ids is None:
        places = np.flatnonzero(is_member(x, known.ids))
    elif are_few(len(ids), n):
        places = known.of(ids)
    else:
        return None
    if places is None or not are_few(len(places), n) or (ids is None and known.of(known.ids[places]) is None):
        return None
    places = np.sort(places[places >= 0])
    if len(places):
        holes, fillers = gaps(places, n)
        counts = [counted(each, n - len(places)) for each in (index, *chain[:-1])]
        if not leaf._put_last_into(places, holes, fillers, [*known.moves(places, holes, fillers), *counts]):
            return None
        known.note()
    return len(places)


def replace(index: Any, ids: Labels, x: Floats) -> None:
    """Make x, shape (n, d), the vectors of some ids; all, or none."""
    call = index._call("update_vectors")
    check_once(call, ids, "ids")
    places = _places_of_unique(index._known_places(), ids, call)
    inner = index.index
    for inner in behind_transforms(index.index):
        if isinstance(inner, Base):
            inner._check_writable("update_vectors")
        if isinstance(inner, IndexPreTransform):
            x = inner._apply(x, "update_vectors")
    if not isinstance(inner, IndexDPQ | ListsChanged):
        raise RuntimeError(f"{call}: the {type(inner).__name__} within has no vectors that can be replaced")
    if len(ids):
        inner._replace(places, x)


def _places_of_unique(known: Places, ids: Labels, call: str) -> Labels:
    places = known.of(ids)
    if places is None:
        order = np.argsort(known.ids, kind="stable")
        first, end = (np.searchsorted(known.ids[order], ids, side) for side in ("left", "right"))
        if (end - first > 1).any():
            raise RuntimeError(f"{call}: several vectors have the id {ids[end - first > 1][0]}")
        places = np.where(end > first, order[np.minimum(first, len(order) - 1)], -1)
    if (places < 0).any():
        raise unknown_ids(call, ids[places < 0])
    return places
