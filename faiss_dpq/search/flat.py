"""Exhaustive search of packed codes: cuts the work into blocks of queries and threads for the scan kernel."""

# Annotations of nested functions would be evaluated at every call.
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import faiss
import numpy as np
import numpy.typing as npt

from .. import _kernels
from ..codec import Floats, threads
from .derived import Bytes, DerivedCodes
from .near import OTHER_ROUNDINGS, SHARE, Nearness, Ranges, limits_and_errors
from .selection import Labels

_TABLE_BYTES = 64 << 20  # of distance tables held at a time
_WORTH_A_THREAD = 1 << 17  # distances; 15 us of one query's scan, more of a batch's: what it costs to wake a thread
_SPARSE = 1 / 8  # of the vectors: for several queries, fewer are copied together and scanned as a small index
_COPIED = 3 / 4  # likewise, if the copies ...
_COPIED_BYTES = 64 << 20  # ... are no larger than this
_WORK_OF_ONE = 8  # vectors that are scanned in the time that one of few takes that are let through
_MOST_VECTORS = 1 << 31  # of one scan, which numbers them in 32 bits
_PIECE = 4096  # vectors: no thread is given a part of one
_FIRST_RANGE_K = 256  # results that a range search looks for at first
_RANGE_RESULTS = 1 << 22  # and holds at a time

#: What FAISS fills the places of missing results with, for METRIC_L2; negated for METRIC_INNER_PRODUCT.
MISSING = np.finfo(np.float32).max


class _Selected(NamedTuple):
    """Codes to be scanned, and their ids: one each, or that of the first of consecutive ones."""

    view: _kernels.CodeView
    ids: Labels | int
    admitted: int  # how many of the codes take part

    def __len__(self) -> int:
        return len(self.view)

    @property
    def work(self) -> int:
        """How many vectors, all of which take part, are scanned in the same time."""
        return min(len(self.view), _WORK_OF_ONE * self.admitted)

    def part(self, part: slice) -> _Selected:
        """Some of them; part.start is a multiple of _PIECE."""
        ids = self.ids + part.start if isinstance(self.ids, int) else self.ids[part]
        return _Selected(self.view.part(part.start, part.stop), ids, min(self.admitted, part.stop - part.start))


def selected(view: _kernels.CodeView, mask: _kernels.Mask | None, nq: int) -> _Selected:
    """The codes of a view that a search of nq queries is to look at."""
    if mask is None:
        return _Selected(view, 0, len(view))
    first, n = mask.first, mask.admitted
    if mask.last - first + 1 == n:  # a slice
        return _Selected(view.part(first, first + n), first, n)
    small = n < _COPIED * len(view) and n * view.packed.shape[1] <= _COPIED_BYTES
    if nq >= _kernels.least_batch(view.levels) and (small or n < _SPARSE * len(view)):
        ids = mask.ids()
        return _Selected(view.taken(ids), ids, n)
    return _Selected(view.masked(mask), 0, n)


def search(
    derived: DerivedCodes, view: _kernels.CodeView | Bytes, mask: _kernels.Mask | None, xq: Floats, k: int
) -> tuple[Floats, Labels]:
    """The k nearest codes of every query: float32 distances of Eq. 30, equal ones by ascending id.

    Distances too small for float32 sums are those to the reconstructions: see search/near.py.

    Parameters
    ----------
    derived : DerivedCodes
        Of the quantizer, the prefix length and the metric to be used.
    view : CodeView or array
        That `derived` gave; or the codes themselves, of which nothing derived is to be kept.
    mask : Mask, optional
        Which codes take part; all without.
    xq : array, shape (nq, d), float32
    k : int

    Returns
    -------
    D : array, shape (nq, k), float32
    I : array, shape (nq, k), int64
        -1 (and +-FLT_MAX in D) where fewer than k vectors were found.
    """
    D, I, norms = _nearest_sums(derived, view, mask, xq, k)
    if derived.metric == faiss.METRIC_L2:

        def within(rows: npt.NDArray[np.intp], reach: Floats) -> Ranges:
            return _range_of_sums(derived, view, mask, xq[rows], reach)

        nearness(derived, view, xq, norms).nearest(D, I, within)
    return D, I


def nearness(derived: DerivedCodes, view: _kernels.CodeView | Bytes, xq: Floats, norms: Floats) -> Nearness:
    """What of the results of queries is to be compared again; norms as QueryTables has them."""
    quantizer, levels = derived.quantizer, derived.levels
    packed = view if isinstance(view, np.ndarray) else view.packed

    def decode(_: int, numbers: Labels) -> Floats:
        return quantizer.decode(_kernels.unpack_codes(packed[numbers], levels, quantizer.nbits))

    return Nearness(xq, *limits_and_errors(quantizer, levels, norms), decode)


def _nearest_sums(
    derived: DerivedCodes, view: _kernels.CodeView | Bytes, mask: _kernels.Mask | None, xq: Floats, k: int
) -> tuple[Floats, Labels, Floats]:
    """The k nearest by float32 sums, and the squared norms of the queries as QueryTables has them."""
    D = np.empty((len(xq), k), np.float32)
    I = np.empty((len(xq), k), np.int64)
    norms = np.empty(len(xq), np.float32)
    if isinstance(view, np.ndarray):
        _scan_passing(derived, view, mask, xq, D, I, norms)
        return *delivered(D, I, derived.metric), norms
    if len(xq) < _kernels.least_batch(derived.levels):
        view = derived.for_few(view, len(xq))
    vectors = selected(view, mask, len(xq))
    for part in blocks(derived, len(xq)):
        tables = query_tables(derived, xq[part])
        norms[part] = tables.norms
        scan_block(vectors, tables.block(derived.levels), D[part], I[part], derived.levels)
    return *delivered(D, I, derived.metric), norms


def _scan_passing(
    derived: DerivedCodes,
    packed: Bytes,
    mask: _kernels.Mask | None,
    xq: Floats,
    D: Floats,
    I: Labels,
    norms: Floats,
) -> None:
    """As `scan_block`, deriving what is needed of a part of the codes at a time."""
    ids = None if mask is None else mask.ids()
    D[:], I[:] = np.inf, -1
    for part in blocks(derived, len(xq)):
        tables = query_tables(derived, xq[part])
        queries, norms[part] = tables.block(derived.levels), tables.norms
        for start, view in derived.passing(packed):
            vectors = _Selected(view, start, len(view))
            if ids is not None:
                some = ids[np.searchsorted(ids, start) : np.searchsorted(ids, start + len(view))]
                vectors = _Selected(view.taken(some - start), some, len(some))
            Ds, Is = np.stack([D[part]] * 2), np.stack([I[part]] * 2)
            scan_block(vectors, queries, Ds[1], Is[1], derived.levels)
            _merge(Ds, Is, D[part], I[part])


class QueryTables(NamedTuple):
    """What the kernels take of queries: see ProgressiveQuantizer.tables."""

    derived: DerivedCodes
    tables: Floats
    constants: Floats
    norms: Floats

    def block(self, levels: int, in_any_order: bool = False) -> _kernels.QueryBlock:
        """The queries as a scan of so many levels takes them, whose results may come in any order."""
        quantizer = self.derived.quantizer
        return _kernels.QueryBlock(
            np.ascontiguousarray(self.tables[:, : levels * quantizer.K]),
            self.constants,
            self.norms,
            quantizer.table_errors(self.norms, levels),
            self.derived.metric == faiss.METRIC_INNER_PRODUCT,
            in_any_order,
        )


def query_tables(derived: DerivedCodes, xq: Floats) -> QueryTables:
    """The tables of queries for all levels that `derived` has."""
    return QueryTables(derived, *derived.quantizer.tables(xq, derived.levels, derived.metric))


def blocks(derived: DerivedCodes, nq: int) -> Iterator[slice]:
    """Queries in blocks whose tables are held at a time."""
    width = _kernels.batch_width()
    block = max(1, _TABLE_BYTES // (4 * derived.levels * derived.quantizer.K * width)) * width
    for start in range(0, nq, block):
        yield slice(start, min(start + block, nq))


def delivered(D: Floats, I: Labels, metric: int) -> tuple[Floats, Labels]:
    """Results of the kernels as FAISS gives them, changed in place."""
    if metric == faiss.METRIC_INNER_PRODUCT:
        np.negative(D, out=D)
    if (I[:, -1] < 0).any():  # what is missing stands at the end
        D[I < 0] = MISSING if metric == faiss.METRIC_L2 else -MISSING
    return D, I


def one_query_scan(
    derived: DerivedCodes, view: _kernels.CodeView, unchanged: _kernels.Unchanged
) -> _kernels.OneQueryCodeScan | None:
    """`search` of all codes by one query, prepared; None where that has nothing to search, or more than one scan's.

    It is good for as long as `unchanged` holds of what FAISS keeps.
    """
    if not 0 < len(view) <= _MOST_VECTORS:
        return None
    view = derived.for_few(view, 0)
    countdown = derived.until_order if derived.lacks_order(view) else None
    quantizer, inner_product = derived.quantizer, derived.metric == faiss.METRIC_INNER_PRODUCT
    norms = quantizer.codeword_norms
    tables = _kernels.QueryTables(
        inner_product,
        quantizer.products(derived.levels),
        np.zeros_like(norms) if inner_product else norms,
        None if inner_product else quantizer.centre,
        *quantizer.error_factors(derived.levels),
    )
    centre = _kernels.pack_panels(quantizer.centre[None]) if inner_product else None
    length = quantizer.common_length(derived.levels)
    share = 0.0 if inner_product else SHARE * OTHER_ROUNDINGS
    return _kernels.OneQueryCodeScan(unchanged, view, tables, centre, _WORTH_A_THREAD, share, length, countdown)


def range_search(
    derived: DerivedCodes, view: _kernels.CodeView | Bytes, mask: _kernels.Mask | None, xq: Floats, thresh: float
) -> tuple[npt.NDArray[np.int64], Floats, Labels]:
    """All codes nearer than `thresh` (nearer: a larger product, for inner products), nearest first.

    Returns
    -------
    lims : array, shape (nq + 1,), int64
    D : array, shape (lims[-1],), float32
    I : array, shape (lims[-1],), int64
    """
    if derived.metric == faiss.METRIC_INNER_PRODUCT:
        return _range_of_sums(derived, view, mask, xq, thresh)

    def find(reach: float | Floats) -> Ranges:
        return _range_of_sums(derived, view, mask, xq, reach)

    return nearness(derived, view, xq, query_norms(derived, xq)).within(thresh, find)


def query_norms(derived: DerivedCodes, xq: Floats) -> Floats:
    """Squared norms of queries for METRIC_L2, as QueryTables has them."""
    norms = np.empty(len(xq), np.float32)
    _kernels.squared_norms(np.subtract(xq, derived.quantizer.centre, order="C"), norms)
    return norms


def _range_of_sums(
    derived: DerivedCodes,
    view: _kernels.CodeView | Bytes,
    mask: _kernels.Mask | None,
    xq: Floats,
    thresh: float | Floats,
) -> Ranges:
    """`range_search` by float32 sums; `thresh` of all queries, or one each."""
    searched = len(view) if mask is None else mask.admitted
    nearer = np.less if derived.metric == faiss.METRIC_L2 else np.greater
    return grow_until_too_far(
        lambda queries, k: _nearest_sums(derived, view, mask, xq[queries], k)[:2], len(xq), searched, nearer, thresh
    )


def grow_until_too_far(
    nearest: Callable[[npt.NDArray[np.intp], int], tuple[Floats, Labels]],
    nq: int,
    most: int,
    nearer: np.ufunc,
    thresh: float | Floats,
) -> tuple[npt.NDArray[np.int64], Floats, Labels]:
    """A range search by k-nearest searches whose k grows until the last result is too far.

    Parameters
    ----------
    nearest : callable
        Of numbers of queries and k, the queries' k nearest: D and I, shape (n, k).
    nq : int
        Number of queries.
    most : int
        Vectors that a query is compared with, at most.
    nearer : numpy.less or numpy.greater
        What a distance has to be than `thresh`.
    thresh : float or array, shape (nq,), float32

    Returns
    -------
    lims, D, I : arrays
        As `range_search` returns them.
    """
    nothing = (np.empty(0, np.float32), np.empty(0, np.int64))
    found = [nothing] * nq
    open_queries, k = np.arange(nq), min(_FIRST_RANGE_K, most)
    while k and len(open_queries):
        still_open = []
        for block in np.array_split(open_queries, -(-len(open_queries) * k // _RANGE_RESULTS)):
            D, I = nearest(block, k)
            of_block = thresh[block][:, None] if isinstance(thresh, np.ndarray) else thresh
            counts = (nearer(D, of_block) & (I >= 0)).sum(axis=1)
            for row, query in enumerate(block):
                found[query] = (D[row, : counts[row]].copy(), I[row, : counts[row]].copy())
            still_open.append(block[counts == k])
        if k == most:
            break
        open_queries, k = np.concatenate(still_open), min(8 * k, most)
    lims = np.zeros(nq + 1, np.int64)
    np.cumsum([len(I) for _, I in found], out=lims[1:])
    return lims, np.concatenate([D for D, _ in [*found, nothing]]), np.concatenate([I for _, I in [*found, nothing]])


def scan_block(vectors: _Selected, queries: _kernels.QueryBlock, D: Floats, I: Labels, levels: int) -> None:
    """The nearest of some codes by `levels` levels: distances, those of inner products negated, and ids."""
    nq, k = D.shape

    def scan(some: _Selected, queries: _kernels.QueryBlock, D: Floats, I: Labels, n_threads: int = 1) -> None:
        _kernels.scan(some.view, queries, D, I, n_threads, some.ids if isinstance(some.ids, int) else 0)
        if not isinstance(some.ids, int):
            found = I >= 0
            I[found] = some.ids[I[found]]

    width = _kernels.batch_width()
    n_threads = max(1, min(faiss.omp_get_max_threads(), vectors.work * nq // _WORTH_A_THREAD))
    if (nq < _kernels.least_batch(levels) or n_threads == 1) and len(vectors) <= _MOST_VECTORS:
        # Few queries are scanned one by one, with all threads each.
        scan(vectors, queries, D, I, n_threads)
    elif nq < 4 * width * n_threads or len(vectors) > _MOST_VECTORS:
        # Not many queries: every thread scans a part of the vectors for all of them.
        n_parts = max(n_threads, -(-len(vectors) // _MOST_VECTORS))
        parts = threads.slices(len(vectors), n_parts, multiple=_PIECE)
        Ds = np.empty((len(parts), nq, k), np.float32)
        Is = np.empty((len(parts), nq, k), np.int64)
        threads.run(scan, [(vectors.part(part), queries, Ds[p], Is[p]) for p, part in enumerate(parts)])
        _merge(Ds, Is, D, I)
    else:
        cuts = threads.slices(nq, n_threads, multiple=width)
        threads.run(scan, [(vectors, queries.slice(cut.start, cut.stop), D[cut], I[cut]) for cut in cuts])


def _merge(Ds: Floats, Is: Labels, D: Floats, I: Labels) -> None:
    """The k best of the results (parts, nq, k) of ascending parts of the vectors."""
    k = D.shape[1]
    Ds = Ds.transpose(1, 0, 2).reshape(len(D), -1)
    Is = Is.transpose(1, 0, 2).reshape(len(D), -1)
    # Stable: among equal distances the earlier part, so the lower id, stays first.
    order = np.argsort(Ds, axis=1, kind="stable")[:, :k]
    D[:] = np.take_along_axis(Ds, order, axis=1)
    I[:] = np.take_along_axis(Is, order, axis=1)
