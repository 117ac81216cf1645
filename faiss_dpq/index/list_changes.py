"""Inverted lists whose vectors are removed, replaced, or moved to another index."""

from collections.abc import Iterable
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from .. import _kernels
from ..codec import Floats, threads
from ..search import lists as scan
from ..search.derived import Bytes
from ..search.selection import Labels
from ..search.stored import Step
from .changes import all_or_nothing, whole_lists
from .list_search import ListsSearched
from .removal import Removed, admitted, are_few, check_once, counted, listed_ids, unknown_ids

_SWIG = faiss.Index.d.fget.__self__  # FAISS's extension module


class ListsChanged(ListsSearched):
    """The removals, replacements and merges of IndexIVFDPQ."""

    _listed: _kernels.ListedIds | None = None  # which list holds each id, once single vectors were removed

    def _forget_derived(self, codebooks: bool) -> None:
        super()._forget_derived(codebooks)
        self._listed = None

    # ---- remove ------------------------------------------------------------------------------------------------

    def remove_ids(self, x: Removed) -> int:
        """Remove the vectors that a selector admits, or of the given ids. Their number.

        Those left in a list keep their order, but with a hash table for direct map: FAISS then puts the list's last
        vector into the place of the removed one.
        """
        self._check_writable("remove_ids")
        self._list_masks = None
        removed = self._remove(x)
        self._count_removed(removed)
        return removed

    def _remove(self, x: Removed) -> int:
        kind = self.direct_map.type
        by_hash = kind == faiss.DirectMap.Hashtable and isinstance(x, np.ndarray) and not threads.forked
        ids = listed_ids(x, self._call("remove_ids")) if by_hash else None
        if ids is not None:
            # As FAISS's wrapper does, which spends most of its time in Python.
            return int(_SWIG.IndexIVF_remove_ids(self.this, _SWIG.new_IDSelectorArray(len(ids), faiss.swig_ptr(ids))))
        found = self._table_of_ids() if kind == faiss.DirectMap.NoMap else None
        if found is None:
            with threads.without_openmp():
                return faiss.IndexIVF.remove_ids(self, x)
        listed, ntotal = listed_ids(x, self._call("remove_ids")), self.ntotal
        if listed is not None and are_few(len(listed), ntotal):
            numbers = found.lists_of(listed)
            if not found.repeated:
                there = numbers >= 0
                listed, numbers = listed[there], numbers[there]
                left = ntotal - len(listed)
                _kernels.in_one_step((found.remove, listed, numbers, self._scans()), counted(self, left))
                return len(listed)
        return self._remove_in_one_pass(x, listed)

    def _remove_in_one_pass(self, x: Removed, listed: Labels | None) -> int:
        with scan.opened(self.invlists, np.arange(self.nlist)) as lists:
            numbers = np.flatnonzero(lists.sizes)
            ids = np.empty(int(lists.sizes.sum()), np.int64)
            _kernels.list_ids(numbers, lists, ids)
        gone = admitted(x, listed, ids)
        removed = int(np.count_nonzero(gone))
        if removed:
            lists_alone = _kernels.ListedIds(faiss.downcast_InvertedLists(self.invlists))
            kept, left = (~gone).view(np.uint8), self.ntotal - removed
            self._listed = None
            _kernels.in_one_step((lists_alone.keep, numbers, kept, self._scans()), counted(self, left))
        return removed

    def _found_ids(self) -> _kernels.ListedIds | None:
        """What finds ids in the lists; None where FAISS has to: by its own map, or in lists of another class."""
        return self._table_of_ids() if self.direct_map.type == faiss.DirectMap.NoMap else None

    def _table_of_ids(self) -> _kernels.ListedIds | None:
        invlists = self.invlists
        if invlists is None:
            return None
        if self._listed is None or not self._listed.is_of(invlists):
            specific = faiss.downcast_InvertedLists(invlists)
            plain = type(specific) is faiss.ArrayInvertedLists
            self._listed = _kernels.ListedIds(specific) if plain else None
        return self._listed

    def _scans(self) -> list[_kernels.ListScan]:
        """All that is derived from the lists."""
        known = self._known
        return [] if known is None else [derived.scan for derived in known.derived.values()]

    def _forget(self, numbers: Iterable[int]) -> None:
        """Let what is derived from some lists be derived anew."""
        self._list_masks = None
        for derived in self._known.derived.values() if self._known is not None else ():
            derived.sizes[list(numbers)] = -1

    def _bytes_to_find_ids(self) -> int:
        return 0 if self._listed is None else self._listed.nbytes

    def _put_last_into(self, removed: Labels, holes: Labels, fillers: Labels, more: list[Step]) -> bool:
        """Take vectors out whose ids are places of an index around this one; the last ones get the ids of the gaps.

        Returns False, and changes nothing, where this would take as long as a pass over all.
        """
        found = self._found_ids()
        self._list_masks = None
        if found is None:
            return False
        numbers, numbers_moved = found.lists_of(removed), found.lists_of(fillers)
        if found.repeated:
            return False
        there, moved, scans = numbers >= 0, numbers_moved >= 0, self._scans()
        _kernels.in_one_step(
            (found.remove, removed[there], numbers[there], scans),
            (found.rename, fillers[moved], numbers_moved[moved], holes[moved], scans),
            counted(self, self.ntotal - len(removed)),
            *more,
        )
        self._count_removed(len(removed))
        return True

    # ---- replace -----------------------------------------------------------------------------------------------

    @threads.without_openmp()
    def update_vectors(self, keys: npt.ArrayLike, x: npt.NDArray[Any]) -> None:
        """Replace the vectors with ids `keys`, shape (n,), by `x`, shape (n, d); needs a direct map. All, or none.

        Raises
        ------
        RuntimeError
            If there is no direct map, no vector of one of the ids, or a hash table and an id twice in `keys`.
        """
        quantizer = self.residual_quantizer
        x = self._checked_vectors(x, "update_vectors")
        keys = self._checked_ids(keys, len(x), "update_vectors", "keys")
        if self.direct_map.type == faiss.DirectMap.Hashtable:
            self._replace_hashed(keys, x)
            return
        if self.direct_map.type != faiss.DirectMap.Array:
            raise RuntimeError("IndexIVFDPQ.update_vectors: the index has no direct map; call make_direct_map() first")
        if len(keys) and not (keys.min() >= 0 and keys.max() < self.ntotal):
            outside = unknown_ids(self._call("update_vectors"), keys[(keys < 0) | (keys >= self.ntotal)])
            raise RuntimeError(f"{outside}; keys are not all in [0, ntotal={self.ntotal})")
        lists = self._lists_of_new(x)
        codes = self._codes(quantizer, x, lists)
        before = [self.direct_map.array.at(key) >> 32 for key in keys.tolist()]
        touched = [number for number in {*before, *lists.tolist()} if number >= 0]
        try:
            self.direct_map.update_codes(
                self.invlists, len(keys), faiss.swig_ptr(keys), faiss.swig_ptr(lists), faiss.swig_ptr(codes)
            )
        finally:
            self._forget(touched)
            self._count_removed(len(keys))

    def _replace_hashed(self, keys: Labels, x: Floats) -> None:
        """Store new codes under ids that a hash table finds, after removing the old ones."""
        call = self._call("update_vectors")
        check_once(call, keys, "keys")
        old_lists = []
        for key in keys.tolist():
            try:
                old_lists.append(self.direct_map.get(key) >> 32)
            except RuntimeError:
                raise unknown_ids(call, np.array([key])) from None
        try:
            self._replace_listed(keys, x, np.array(old_lists, np.int64))
        finally:
            self._forget(old_lists)

    def _replace(self, places: Labels, x: Floats) -> None:
        """Make x, shape (n, d), the vectors whose ids are places of an index around this one."""
        if self.direct_map.type != faiss.DirectMap.NoMap:
            self.update_vectors(places, x)
            return
        found = self._found_ids()
        old_lists = np.arange(self.nlist) if found is None else found.lists_of(places)
        self._replace_listed(places, x, old_lists[old_lists >= 0])

    def _replace_listed(self, ids: Labels, x: Floats, old_lists: Labels) -> None:
        lists = self._lists_of_new(x)
        codes = self._sa_codes(self.residual_quantizer, x, lists)

        def replace() -> None:
            self.remove_ids(faiss.IDSelectorArray(ids))
            self.add_sa_codes(codes, ids)

        all_or_nothing(replace, lambda index: whole_lists(index, np.union1d(old_lists, lists)), self)

    def _lists_of_new(self, x: Floats) -> Labels:
        lists = self._assigned(x)
        if (lists < 0).any():
            raise RuntimeError("IndexIVFDPQ.update_vectors: x has vectors that belong to no list (NaN)")
        return lists

    def _assigned(self, x: Floats) -> Labels:
        raise NotImplementedError

    def _codes(self, quantizer: Any, x: Floats, lists: Labels) -> Bytes:
        raise NotImplementedError

    def _sa_codes(self, quantizer: Any, x: Floats, lists: Labels) -> Bytes:
        raise NotImplementedError

    # ---- merge -------------------------------------------------------------------------------------------------

    def check_compatible_for_merge(self, otherIndex: faiss.Index) -> None:
        """Raise a RuntimeError unless the other index has the same class in C++, lists, centres and codebooks."""
        super().check_compatible_for_merge(otherIndex)
        self._require_same_codebooks(faiss.downcast_index(otherIndex).rq)

    def merge_from(self, otherIndex: faiss.Index, add_id: int = 0) -> None:
        """Move the vectors of another index, with their ids plus `add_id`, into the lists of this one.

        Raises
        ------
        RuntimeError
            As `check_compatible_for_merge`.
        """
        self._require_another(otherIndex)
        self.check_compatible_for_merge(otherIndex)
        super().merge_from(otherIndex, add_id)
