"""Masks of inverted lists: which vectors of each list a selector admits, by the ids that the lists hold.

A list's mask is made when the list is first probed with a selector, and kept with the selector (`masks.Recent`) for as
long as the list's size and a sample of its ids and codes stay the same.
"""

# Annotations of nested functions would be evaluated at every call.
from __future__ import annotations

import threading

import faiss
import numpy as np
import numpy.typing as npt

from .. import _kernels
from .masks import Recent
from .selection import Bits, Labels, bits_of, unpacked

Digests = npt.NDArray[np.uint64]


class _ListsOfSelector:
    """The masks of one selector; arrays over all lists, of which those with a size of -1 have none."""

    def __init__(self, nlist: int) -> None:
        self.sizes = np.full(nlist, -1)
        self.digests, self.addresses = np.zeros((2, nlist), np.uint64)
        self.admitted = np.zeros(nlist, np.int64)
        self.masks: dict[int, Bits] = {}
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(mask.nbytes for mask in list(self.masks.values())) + 4 * self.sizes.nbytes

    def apply(self, selector: faiss.IDSelector, lists: _kernels.OpenLists, digests: Digests) -> None:
        """Tell open lists what they are masked by, after what is missing was made."""
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
        ids = np.empty(int(sizes.sum()), np.int64)
        if len(ids):
            _kernels.list_ids(numbers, lists, ids)
        words = -(-sizes // 64)
        begins = np.cumsum(words) - words
        masks, admitted = np.zeros(int(words.sum()), np.uint64), np.empty(len(numbers), np.int64)
        _kernels.list_masks(bits_of(selector, len(ids), ids), sizes, begins, masks, admitted)
        self.sizes[numbers], self.digests[numbers], self.admitted[numbers] = sizes, digests[numbers], admitted
        self.addresses[numbers] = masks.ctypes.data + 8 * begins.astype(np.uint64)
        for number, begin, n_words in zip(numbers.tolist(), begins.tolist(), words.tolist(), strict=True):
            self.masks[number] = masks[begin : begin + n_words]


class ListMasks:
    """Masks of an index's lists, of the selectors that it was searched with last."""

    def __init__(self) -> None:
        self._recent: Recent[_ListsOfSelector] = Recent()

    def apply(
        self, selector: faiss.IDSelector | None, lists: _kernels.OpenLists, digests: Digests, version: int
    ) -> None:
        """Let only what a selector admits be found in open lists, until they are closed.

        Parameters
        ----------
        selector : faiss.IDSelector, optional
        lists : _kernels.OpenLists
        digests : array, shape (nlist,), uint64
            Of what the open lists hold now.
        version : int
            Of the index.
        """
        if selector is None or type(selector) is faiss.IDSelectorAll:
            return
        nlist = len(lists.sizes)
        self._recent.of(selector, (nlist, version), lambda: _ListsOfSelector(nlist)).apply(selector, lists, digests)

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
