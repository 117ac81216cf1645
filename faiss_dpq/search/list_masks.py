"""Masks of inverted lists: which vectors of each list a selector admits, by the ids that the lists hold.

A list's mask is made when the list is first probed with a selector, and kept with the selector (`masks.Recent`) for as
long as the list's size and a sample of its ids and codes stay the same. Searches of few lists keep masks of selectors
that come again, and none of bitmaps and ranges.
"""

# Annotations of nested functions would be evaluated at every call.
from __future__ import annotations

import threading

import faiss
import numpy as np
import numpy.typing as npt

from .. import _kernels
from .masks import Recent
from .selection import Labels, array_at, bits_of, unpacked

Digests = npt.NDArray[np.uint64]


class _ListsOfSelector(_kernels.ListsMask):
    """The masks of one selector."""

    def __init__(self, nlist: int) -> None:
        super().__init__(nlist)
        self._lock = threading.Lock()

    def apply(self, selector: faiss.IDSelector, lists: _kernels.OpenLists, digests: Digests) -> None:
        """Let only what the selector admits be found in open lists, until they are closed.

        digests : array, shape (nlist,), uint64, of what the open lists hold now.
        """
        numbers, allowed, admitted = lists.numbers, np.zeros_like(self.addresses), np.zeros_like(self.admitted)
        with self._lock:
            known = (self.sizes[numbers] == lists.sizes[numbers]) & (self.digests[numbers] == digests[numbers])
            if not known.all():
                self._make(selector, lists, numbers[~known], digests)
            allowed[numbers], admitted[numbers] = self.addresses[numbers], self.admitted[numbers]
            lists.masks = {number: self.masks[number] for number in numbers.tolist()}
        lists.allowed, lists.admitted = allowed, admitted

    def _make(self, selector: faiss.IDSelector, lists: _kernels.OpenLists, numbers: Labels, digests: Digests) -> None:
        sizes = lists.sizes[numbers]
        words = -(-sizes // 64)
        begins = np.cumsum(words) - words
        masks, admitted = np.empty(int(words.sum()), np.uint64), np.empty(len(numbers), np.int64)
        if type(selector) is faiss.IDSelectorBitmap:
            bitmap = array_at(selector.bitmap, selector.n, np.uint8)
            _kernels.masks_of_bitmap(bitmap, numbers, lists, begins, masks, admitted)
        else:
            ids = np.empty(int(sizes.sum()), np.int64)
            if len(ids):
                _kernels.list_ids(numbers, lists, ids)
            _kernels.list_masks(bits_of(selector, len(ids), ids), sizes, begins, masks, admitted)
        self.enter(numbers, sizes, np.ascontiguousarray(digests), masks, begins, admitted)


class ListMasks:
    """Masks of an index's lists, of the selectors that it was searched with last."""

    def __init__(self) -> None:
        self._recent: Recent[_ListsOfSelector] = Recent()

    def of(self, selector: faiss.IDSelector, nlist: int, version: int) -> _ListsOfSelector:
        """The masks of a selector, for as many lists of an index of this version."""
        return self._recent.of(selector, (nlist, version), lambda: _ListsOfSelector(nlist))

    def of_few(self, selector: faiss.IDSelector, nlist: int, version: int) -> _kernels.ListsSelector:
        """The same, for one search of few lists."""
        if type(selector) is faiss.IDSelectorBitmap:
            return _kernels.ListsBitmap(selector, nlist)
        if type(selector) is faiss.IDSelectorRange:
            return _kernels.ListsRange(selector, nlist)
        kept = self._recent.again(selector, (nlist, version), lambda: _ListsOfSelector(nlist))
        return _kernels.ListsAsked(selector, nlist, bits_of, kept)

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return self._recent.nbytes


def admitted_members(lists: _kernels.OpenLists) -> npt.NDArray[np.bool_]:
    """Which vectors of the open lists take part, one list after the other."""
    sizes = lists.sizes[lists.numbers]
    if lists.masks is None:
        return np.ones(int(sizes.sum()), bool)
    each = (unpacked(lists.masks[n], size) for n, size in zip(lists.numbers.tolist(), sizes.tolist(), strict=True))
    return np.concatenate([np.empty(0, bool), *each])
