"""Which vectors a FAISS IDSelector admits, as bits.

FAISS asks a selector about one id after the other. Here its own data are turned into bits at once: a bitmap is copied,
a range filled, the ids of an array or batch are set, and selectors of selectors are operations on words. What is left
is asked by FAISS itself; callbacks are, about one id at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import faiss
import numpy as np
import numpy.typing as npt

from .. import _kernels

try:
    from .._rev_map import batch_bits, batch_ids, batch_is_as_expected, batch_size
except ImportError:  # built without a compiler of C++
    batch_is_as_expected = None  # type: ignore[assignment]

_CHUNK = 1 << 18  # ids that FAISS is asked about at a time: 1 MiB of stand-in vectors
_SPARSE_SPAN = 64  # times as many numbers between an array's ids as there are ids: beyond, these are sorted instead
_SMALL_BATCH = 8  # times as many ids asked about as an IDSelectorBatch has: from there on its own are read instead
_SMALL_SPAN = 1 << 20  # as long as a bitmap of the span is larger than this many bits

Labels = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint64]

_OPERATIONS = {
    faiss.IDSelectorAnd: np.bitwise_and,
    faiss.IDSelectorOr: np.bitwise_or,
    faiss.IDSelectorXOr: np.bitwise_xor,
}


class Filter(faiss.IDSelectorAnd):
    """A selector that does not change: what it admits is found out once, for as long as the index stays the same.

    It admits what `selector` does, in every index of this package and of FAISS. Without it, searches compare a
    selector's bitmap or ids with those of the search before, and ask a selector of another class, such as a
    PyCallbackIDSelector, about every id again.

    Parameters
    ----------
    selector : faiss.IDSelector
    """

    def __init__(self, selector: faiss.IDSelector) -> None:
        super().__init__(faiss.IDSelectorAll(), selector)


def selector_of(params: faiss.SearchParameters | None) -> faiss.IDSelector | None:
    """The selector of search parameters, as the object that was put there.

    SWIG gives `params.sel` back as a plain IDSelector; FAISS's wrapper keeps the object itself so that it lives on.
    """
    if params is None:
        return None
    objects = getattr(params, "_sp_field_refs", None)
    # As SWIG's own object only where there is none: making that takes as long as all else.
    return objects["sel"] if objects and "sel" in objects else params.sel


def is_member(selector: faiss.IDSelector, ids: Labels) -> npt.NDArray[np.bool_]:
    """Which of some ids `selector` admits."""
    return unpacked(bits_of(selector, len(ids), ids), len(ids))


def unpacked(bits: Bits, n: int) -> npt.NDArray[np.bool_]:
    """The first n bits."""
    return np.unpackbits(bits.view(np.uint8), count=n, bitorder="little").view(bool)


def bits_of(selector: faiss.IDSelector, n: int, ids: Labels | None = None) -> Bits:
    """A bit for each of n ids, 0 to n - 1 unless they are given: whether `selector` admits it.

    Parameters
    ----------
    selector : faiss.IDSelector
    n : int
    ids : array, shape (n,), int64, optional

    Returns
    -------
    bits : array, shape (ceil(n / 64),), uint64
        Bit i & 63 of word i >> 6; those behind the last id may be anything.
    """
    if isinstance(selector, faiss.IDSelectorAll):
        return np.full(_kernels.mask_words(n), ~np.uint64(0))
    if isinstance(selector, faiss.IDSelectorNot):
        bits = bits_of(selectors_within(selector)[0], n, ids)
        return np.invert(bits, out=bits)  # in place, as new memory takes longer than the operation
    for kind, operation in _OPERATIONS.items():
        if isinstance(selector, kind):
            these, those = (bits_of(each, n, ids) for each in selectors_within(selector))
            return operation(these, those, out=these)
    if isinstance(selector, faiss.IDSelectorTranslated):
        return _bits_of_translated(selector, n, ids)
    if isinstance(selector, faiss.IDSelectorBitmap) and ids is None:
        return _padded(array_at(selector.bitmap, selector.n, np.uint8)[: -(-n // 8)], n)
    bits = _kernels.empty_mask(n)
    bits.fill(0)
    if isinstance(selector, faiss.IDSelectorRange):
        _set_range(bits, selector.imin, selector.imax, n, ids)
    elif isinstance(selector, faiss.IDSelectorBitmap):
        _kernels.test_bits(array_at(selector.bitmap, selector.n, np.uint8), 0, ids, bits)
    elif isinstance(selector, faiss.IDSelectorArray):
        _set_array(bits, array_at(selector.ids, selector.n, np.int64), n, ids)
    elif isinstance(selector, faiss.IDSelectorBatch) and _reads_batches():
        if _SMALL_BATCH * batch_size(int(selector.this)) <= n:
            _set_array(bits, _ids_of_batch(selector), n, ids)
        else:
            batch_bits(int(selector.this), ids, n, bits)
    elif isinstance(selector, faiss.PyCallbackIDSelector):
        asked = np.arange(n) if ids is None else ids[:n]
        _set_bits(bits, np.fromiter(map(selector.is_member, asked.tolist()), bool, n), 0)
    else:
        for start in range(0, n, _CHUNK):
            some = np.arange(start, min(start + _CHUNK, n)) if ids is None else ids[start : start + _CHUNK]
            _set_bits(bits, _asked_by_faiss(selector, some), start)
    return bits


def _set_bits(bits: Bits, members: npt.NDArray[np.bool_], start: int) -> None:
    """Set the bits from number `start` on, a multiple of 8."""
    packed = np.packbits(members, bitorder="little")
    bits.view(np.uint8)[start // 8 : start // 8 + len(packed)] = packed


def selectors_within(selector: faiss.IDSelector) -> list[faiss.IDSelector]:
    """The selectors that a selector is made of, as the objects that it was given.

    SWIG gives them back as plain IDSelectors; FAISS's wrapper keeps the objects themselves, in lists and tuples.
    """
    held = {
        int(each.this): each for each in _flat(getattr(selector, "referenced_objects", ())) if hasattr(each, "this")
    }
    names = ("sel",) if hasattr(selector, "sel") else ("lhs", "rhs")
    return [held.get(int(each.this), each) for each in (getattr(selector, name) for name in names)]


def _flat(objects: object) -> Iterator[object]:
    if isinstance(objects, list | tuple):
        for each in objects:
            yield from _flat(each)
    else:
        yield objects


def array_at(pointer: object, n: int, dtype: npt.DTypeLike) -> npt.NDArray:
    """What a pointer of SWIG points to, in place."""
    return faiss.rev_swig_ptr(pointer, n) if n else np.empty(0, dtype)


def _packed(members: npt.NDArray[np.bool_]) -> Bits:
    return _padded(np.packbits(members, bitorder="little"), len(members))


def _padded(packed: npt.NDArray[np.uint8], n: int) -> Bits:
    """At most n bits as words, with zeros behind. Every byte is written once, since masks are large."""
    bits = _kernels.empty_mask(n)
    bits.view(np.uint8)[: len(packed)] = packed
    bits.view(np.uint8)[len(packed) :] = 0
    return bits


def _bits_of_translated(selector: faiss.IDSelectorTranslated, n: int, ids: Labels | None) -> Bits:
    """FAISS reads beyond the end of the map; what has no place in it is not admitted here."""
    (within,) = selectors_within(selector)
    vector = selector.id_map
    names = array_at(vector.data(), vector.size(), np.int64)
    if ids is None:
        bits = np.zeros(_kernels.mask_words(n), np.uint64)
        some = bits_of(within, min(n, len(names)), names[:n])
        bits[: len(some)] = some
        if len(names) < n:
            bits &= _packed(np.arange(n) < len(names))
        return bits
    known = ids.view(np.uint64) < len(names)  # a negative number is a large one there
    if known.all():
        return bits_of(within, n, names[ids])
    translated = np.zeros(n, np.int64)
    translated[known] = names[ids[known]]
    return bits_of(within, n, translated) & _packed(known)


def _set_range(bits: Bits, imin: int, imax: int, n: int, ids: Labels | None) -> None:
    if ids is not None:
        _kernels.range_bits(imin, imax, ids, bits)
        return
    begin, end = (min(max(bound, 0), n) for bound in (imin, imax))
    if begin < end:
        whole = slice(-(-begin // 64), end // 64)
        bits[whole] = ~np.uint64(0)
        edges = [range(begin, min(end, 64 * whole.start)), range(max(begin, 64 * whole.stop), end)]
        _kernels.set_bits(np.concatenate([np.array(edge, np.int64) for edge in edges]), 0, n, bits)


def _set_array(bits: Bits, admitted: Labels, n: int, ids: Labels | None) -> None:
    if ids is None:
        _kernels.set_bits(admitted, 0, n, bits)
        return
    if not len(ids) or not len(admitted):
        return
    for fewer in sorted((ids, admitted), key=len):
        first, last = int(fewer.min()), int(fewer.max())
        span = last - first + 1
        if span <= max(_SPARSE_SPAN * len(admitted), _SMALL_SPAN):
            of_span = np.zeros(_kernels.mask_words(span), np.uint64)
            _kernels.set_bits(admitted, first, span, of_span)
            _kernels.test_bits(of_span.view(np.uint8), first, ids, bits)
            return
    bits[:] = _packed(np.isin(ids, admitted))


@functools.cache
def _reads_batches() -> bool:
    """Whether the ids of an IDSelectorBatch are where the module of C++ was compiled for; asked of small ones."""
    if batch_is_as_expected is None:
        return False
    for ids in ([7], [-2, 7], [-2, 7, 70, 1 << 40]):
        batch = faiss.IDSelectorBatch(np.array(ids))
        if not batch_is_as_expected(int(batch.this), len(ids), batch.nbits, batch.mask):
            return False
        if sorted(_ids_of_batch(batch)) != ids:
            return False
    return True


def _ids_of_batch(selector: faiss.IDSelectorBatch) -> Labels:
    ids = np.empty(batch_size(int(selector.this)), np.int64)
    batch_ids(int(selector.this), ids)
    return ids


def _asked_by_faiss(selector: faiss.IDSelector, ids: Labels) -> npt.NDArray[np.bool_]:
    """Which of at most _CHUNK ids `selector` admits.

    FAISS has no call that applies a selector to many ids; a range search that finds every vector does so, for all
    selector classes, at C++ speed. Not for one that may raise an exception, which ends the process there.
    """
    members = np.zeros(len(ids), bool)
    stand_in = faiss.IndexFlatL2(1)
    stand_in.add(np.zeros((len(ids), 1), np.float32))
    query = np.zeros((1, 1), np.float32)
    numbers = faiss.Int64Vector()
    faiss.copy_array_to_vector(np.ascontiguousarray(ids), numbers)
    params = faiss.SearchParameters(sel=faiss.IDSelectorTranslated(numbers, selector))
    # The C++ call: range_search itself takes no params once faiss.contrib.torch_utils is imported.
    result = faiss.RangeSearchResult(1)
    stand_in.range_search_c(1, faiss.swig_ptr(query), 1.0, result, params)
    n_found = int(faiss.rev_swig_ptr(result.lims, 2)[1])
    if n_found:
        members[faiss.rev_swig_ptr(result.labels, n_found)] = True
    return members
