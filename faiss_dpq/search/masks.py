"""Masks of the selectors that an index was searched with last.

A selector that comes again costs no more than to see that it is the same. What tells it apart is its *signature*: what
its own data are (a range's bounds), where they are (a bitmap's address and size), or the object itself (an
IDSelectorBatch, whose ids cannot be seen). Bitmaps and arrays, which a program may write to in place, are compared with
copies; ids of large arrays and of maps by a sample. Selectors of unknown classes have no signature and are turned into
bits at every call, unless a `Filter` says that they do not change.
"""

# Annotations of nested functions would be evaluated at every call.
from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import faiss
import numpy as np

from .. import _kernels
from .derived import Bytes
from .selection import Filter, array_at, bits_of, selectors_within

KEPT = 8  # bitmaps, and other selectors, of an index
_COMPARED = 1 << 20  # bytes of an array of ids; above, a sample of them is compared

Derived = TypeVar("Derived")


class Signature(NamedTuple):
    """What a selector is told apart by.

    objects : those that have to be the same ones.
    contents : memory that has to hold the same bytes: its address, size and what it holds now, in place.
    """

    key: tuple[Any, ...]
    objects: list[Any]
    contents: list[Bytes]

    @classmethod
    def of(cls, selector: faiss.IDSelector) -> Signature | None:
        """Of a selector; None if nothing tells whether it is the same."""
        signature = cls((), [], [])
        key = signature._key(selector)
        return None if key is None else signature._replace(key=key)

    def _key(self, selector: faiss.IDSelector) -> tuple[Any, ...] | None:
        kind = type(selector)
        if kind is faiss.IDSelectorBitmap:
            return kind, self._compared(selector.bitmap, selector.n, np.uint8)
        if isinstance(selector, Filter | faiss.IDSelectorBatch):
            self.objects.append(selector)
            return kind, id(selector)
        if kind is faiss.IDSelectorRange:
            return kind, selector.imin, selector.imax
        if kind is faiss.IDSelectorAll:
            return (kind,)
        if kind is faiss.IDSelectorArray:
            if 8 * selector.n <= _COMPARED:
                return kind, self._compared(selector.ids, selector.n, np.int64)
            self.objects.append(selector)
            return kind, id(selector), _sample(selector.ids, selector.n)
        if kind in (faiss.IDSelectorAnd, faiss.IDSelectorOr, faiss.IDSelectorXOr, faiss.IDSelectorNot):
            keys = [self._key(each) for each in selectors_within(selector)]
        elif kind is faiss.IDSelectorTranslated:
            vector = selector.id_map
            keys = [_sample(vector.data(), vector.size()), self._key(selectors_within(selector)[0])]
        else:
            return None
        return None if None in keys else (kind, *keys)

    def _compared(self, pointer: Any, n: int, dtype: Any) -> tuple[int, int]:
        contents = array_at(pointer, n, dtype).view(np.uint8)
        self.contents.append(contents)
        return int(pointer) if n else 0, n


def _sample(pointer: Any, n: int) -> tuple[int, int, int]:
    """Where n ids are, and a digest of some of them."""
    address = int(pointer) if n else 0
    return address, n, _kernels.ids_digest(address, n)


class _Kept(NamedTuple):
    objects: list[weakref.ref]
    copies: list[Bytes]
    value: Any

    def is_of(self, signature: Signature) -> bool:
        same_objects = all(kept() is each for kept, each in zip(self.objects, signature.objects, strict=True))
        return same_objects and all(
            _kernels.same_bytes(each, copy) for each, copy in zip(signature.contents, self.copies, strict=True)
        )


class Recent(Generic[Derived]):
    """What was derived from the selectors that came last.

    Of an IDSelectorBitmap by itself, _kernels.RecentBitmaps is the same with nothing of Python around it.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Any, ...], _Kept] = OrderedDict()
        self._seen: OrderedDict[tuple[Any, ...], tuple[list[weakref.ref], list[int]]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, selector: faiss.IDSelector, state: tuple[int, ...], derive: Callable[[], Derived]) -> Derived:
        """What `derive` gives of a selector, or gave before of the same one while `state` was the same."""
        signature = Signature.of(selector)
        if signature is None:
            return derive()
        key = (*state, *signature.key)
        kept = self._known(key, signature)
        return self._keep(key, signature, derive) if kept is None else kept.value

    def again(
        self, selector: faiss.IDSelector, state: tuple[int, ...], derive: Callable[[], Derived]
    ) -> Derived | None:
        """The same of a Filter, or a selector that comes again; None of one that is new, of which a sample is kept."""
        signature = Signature.of(selector)
        if signature is None:
            return None
        key = (*state, *signature.key)
        kept = self._known(key, signature)
        if kept is not None:
            return kept.value
        if any(isinstance(each, Filter) for each in signature.objects):
            return self._keep(key, signature, derive)
        seen = [weakref.ref(each) for each in signature.objects], [_kernels.digest(a) for a in signature.contents]
        with self._lock:
            comes_again = self._seen.pop(key, None) == seen
            if not comes_again:
                self._seen[key] = seen
                while len(self._seen) > KEPT:
                    self._seen.popitem(last=False)
        return self._keep(key, signature, derive) if comes_again else None

    def _known(self, key: tuple[Any, ...], signature: Signature) -> _Kept | None:
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
        return kept if kept is not None and kept.is_of(signature) else None

    def _keep(self, key: tuple[Any, ...], signature: Signature, derive: Callable[[], Derived]) -> Derived:
        # Copied before anything is derived: of what is written meanwhile, the next search sees that it changed.
        copies = [contents.copy() for contents in signature.contents]
        kept = _Kept([weakref.ref(each) for each in signature.objects], copies, derive())
        with self._lock:
            self._kept[key] = kept
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return kept.value

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        with self._lock:
            kept = list(self._kept.values())
        return sum(each.value.nbytes + sum(copy.nbytes for copy in each.copies) for each in kept)


def admits_all(selector: faiss.IDSelector | None) -> bool:
    """Whether a search with a selector is one without."""
    return selector is None or type(selector) is faiss.IDSelectorAll


class Masks:
    """Masks over the vectors 0, 1, ... of an index, of the selectors that it was searched with last."""

    def __init__(self) -> None:
        self._bitmaps = _kernels.RecentBitmaps(KEPT)
        self._recent: Recent[_kernels.Mask] = Recent()

    def of(
        self, selector: faiss.IDSelector | None, n: int, version: int, in_place: bool = False
    ) -> _kernels.SelectorMask | None:
        """Which of n vectors of an index of this version are searched; None for all.

        in_place : whether a BitmapInPlace will do for a Mask.
        """
        if admits_all(selector):
            return None
        if type(selector) is faiss.IDSelectorBitmap:
            mask = self._bitmaps.of(selector, n, version, in_place)
            if in_place and type(mask) is not _kernels.Mask:
                return mask
        else:
            mask = self._recent.of(selector, (n, version), lambda: _kernels.Mask(bits_of(selector, n), n))
        return None if mask.admitted == n else mask

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return self._recent.nbytes + self._bitmaps.nbytes
