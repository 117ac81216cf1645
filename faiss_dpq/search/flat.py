"""Exhaustive search of packed codes: cuts the work into blocks of queries and threads for the scan kernel."""

# Annotations of nested functions would be evaluated at every call.
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt

from .. import _kernels
from ..codec import Floats, threads
from .derived import Bytes, DerivedCodes

_TABLE_BYTES = 64 << 20  # of distance tables held at a time
_WORTH_A_THREAD = 1 << 17  # distances; 15 us of one query's scan, more of a batch's: what it costs to wake a thread
_SPARSE = 1 / 8  # selections below this share of the vectors are copied together and scanned as a small index
_MOST_VECTORS = 1 << 31  # of one scan, which numbers them in 32 bits
_FIRST_RANGE_K = 256  # results that a range search looks for at first
_RANGE_RESULTS = 1 << 22  # and holds at a time

Labels = npt.NDArray[np.int64]

#: What FAISS fills the places of missing results with, for METRIC_L2; negated for METRIC_INNER_PRODUCT.
MISSING = np.finfo(np.float32).max


@dataclass(frozen=True)
class Selection:
    """The vectors to be searched: those numbered [begin, end), or ids[begin:end] (ascending) if ids are given."""

    begin: int
    end: int
    ids: Labels | None = None


@dataclass
class _Vectors:
    """Codes to be scanned, consecutive in memory, and what is derived from them."""

    packed: Bytes
    bins: Bytes | None
    terms: Floats | None
    allowed: Bytes | None
    ids: Labels | int  # of every vector, or of the first of consecutive ones

    def __len__(self) -> int:
        return len(self.packed)

    def part(self, part: slice) -> _Vectors:
        """Some of them; part.start is a multiple of 8."""
        return _Vectors(
            self.packed[part],
            None if self.bins is None else self.bins[part],
            None if self.terms is None else self.terms[part],
            None if self.allowed is None else self.allowed[part.start // 8 :],
            self.ids + part.start if isinstance(self.ids, int) else self.ids[part],
        )


def _select(packed: Bytes, derived: DerivedCodes, selection: Selection) -> _Vectors:
    bins, terms, ids = derived.bins, derived.terms, selection.ids
    if ids is not None and len(ids) < _SPARSE * len(packed):
        bins = None if bins is None else bins[ids]
        terms = None if terms is None else terms[ids]
        return _Vectors(packed[ids], bins, terms, None, ids)
    everything = _Vectors(packed, bins, terms, None, 0)
    if ids is None:
        return everything.part(slice(selection.begin, selection.end))
    mask = np.zeros(len(packed), bool)
    mask[ids] = True
    everything.allowed = np.packbits(mask, bitorder="little")
    return everything


def search(derived: DerivedCodes, packed: Bytes, selection: Selection, xq: Floats, k: int) -> tuple[Floats, Labels]:
    """The k nearest codes of every query: exact float32 distances of Eq. 30, ties to the lower id.

    Parameters
    ----------
    derived : DerivedCodes
        Of the quantizer, the prefix length and the metric to be used; brought up to date with `packed` here.
    packed : array, shape (n, code_size), uint8
    selection : Selection
    xq : array, shape (nq, d), float32
    k : int

    Returns
    -------
    D : array, shape (nq, k), float32
    I : array, shape (nq, k), int64
        -1 (and +-FLT_MAX in D) where fewer than k vectors were found.
    """
    D = np.empty((len(xq), k), np.float32)
    I = np.empty((len(xq), k), np.int64)
    quantizer = derived.quantizer
    hashes, expected = None, derived.hashes
    everything = selection.ids is None and (selection.begin, selection.end) == (0, len(packed))
    if len(xq) == 1 and everything and 0 < len(packed) == derived.n:
        # One query reads the codes no more often than their hash does: it takes the hash along. It is compared with
        # that of before the scan: another thread may bring `derived` up to date meanwhile.
        hashes = np.empty(-(-len(packed) // _kernels.HASH_BLOCK), np.uint64)
    else:
        derived.update(packed)
    rows = derived.levels * quantizer.K
    vectors = _select(packed, derived, selection)
    width = _kernels.batch_width()
    block = max(1, _TABLE_BYTES // (4 * rows * width)) * width
    for start in range(0, len(xq), block):
        part = slice(start, min(start + block, len(xq)))
        tables = quantizer.tables(xq[part], derived.levels, derived.metric)
        _scan_block(derived, vectors, tables, hashes, D[part], I[part])
    if hashes is not None and hashes.tobytes() != expected.tobytes():
        derived.update(packed)
        return search(derived, packed, selection, xq, k)
    if derived.metric == faiss.METRIC_L2:
        np.maximum(D, 0, out=D)  # the rounding of Eq. 30 may leave -1e-7 where a code is the query itself
    else:
        np.negative(D, out=D)
    if (I[:, -1] < 0).any():  # what is missing stands at the end
        missing = I < 0
        D[missing] = MISSING if derived.metric == faiss.METRIC_L2 else -MISSING
    return D, I


def single_scan(derived: DerivedCodes, packed: Bytes) -> _kernels.SingleScan | None:
    """`search` of all codes by one query, prepared; None where that has nothing to search, or more than one scan's."""
    hashes = derived.hashes  # first: they are the last to change
    if not 0 < len(packed) == derived.n <= _MOST_VECTORS:
        return None
    quantizer, inner_product = derived.quantizer, derived.metric == faiss.METRIC_INNER_PRODUCT
    norms, n_panels = quantizer._codeword_norms, -(-derived.levels * quantizer.K // _kernels.PANEL)
    return _kernels.SingleScan(
        _WORTH_A_THREAD,
        derived,
        hashes,
        None if inner_product else quantizer._centre,
        quantizer._panels[:n_panels],
        np.zeros_like(norms) if inner_product else norms,
        _kernels.pack_panels(quantizer._centre[None]) if inner_product else None,
        *quantizer._error_factors(derived.levels),
        packed,
        quantizer.nbits,
        derived.levels,
        quantizer._cross if derived.bins is not None else None,
        derived.terms,
        derived.bins,
        derived.term_min,
        derived.term_step,
        derived.radius,
    )


def range_search(
    derived: DerivedCodes, packed: Bytes, selection: Selection, xq: Floats, thresh: float
) -> tuple[npt.NDArray[np.int64], Floats, Labels]:
    """All codes nearer than `thresh` (nearer: a larger product, for inner products), nearest first.

    Returns
    -------
    lims : array, shape (nq + 1,), int64
    D : array, shape (lims[-1],), float32
    I : array, shape (lims[-1],), int64
    """
    searched = len(packed) if selection.ids is None else len(selection.ids)
    nearer = np.less if derived.metric == faiss.METRIC_L2 else np.greater
    return grow_until_too_far(
        lambda queries, k: search(derived, packed, selection, xq[queries], k), len(xq), searched, nearer, thresh
    )


def grow_until_too_far(
    nearest: Callable[[npt.NDArray[np.intp], int], tuple[Floats, Labels]],
    nq: int,
    most: int,
    nearer: np.ufunc,
    thresh: float,
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
            counts = (nearer(D, thresh) & (I >= 0)).sum(axis=1)
            for row, query in enumerate(block):
                found[query] = (D[row, : counts[row]].copy(), I[row, : counts[row]].copy())
            still_open.append(block[counts == k])
        if k == most:
            break
        open_queries, k = np.concatenate(still_open), min(8 * k, most)
    lims = np.zeros(nq + 1, np.int64)
    np.cumsum([len(I) for _, I in found], out=lims[1:])
    return lims, np.concatenate([D for D, _ in [*found, nothing]]), np.concatenate([I for _, I in [*found, nothing]])


def _scan_block(
    derived: DerivedCodes,
    vectors: _Vectors,
    tables: tuple[Floats, Floats, Floats],
    hashes: npt.NDArray[np.uint64] | None,
    D: Floats,
    I: Labels,
) -> None:
    nq, k = D.shape
    quantizer = derived.quantizer
    values, constants, norms = tables
    errors = quantizer.table_errors(norms, derived.levels)

    def scan(
        queries: slice,
        some: _Vectors,
        hashes: npt.NDArray[np.uint64] | None,
        D: Floats,
        I: Labels,
        n_threads: int = 1,
    ) -> None:
        _kernels.scan(
            values[queries],
            norms[queries],
            errors[queries],
            derived.metric == faiss.METRIC_INNER_PRODUCT,
            some.packed,
            quantizer.nbits,
            derived.levels,
            quantizer._cross if some.bins is not None else None,
            some.terms,
            some.bins,
            derived.term_min,
            derived.term_step,
            derived.radius,
            some.allowed,
            hashes,
            n_threads,
            some.ids if isinstance(some.ids, int) else 0,
            D,
            I,
        )
        if not isinstance(some.ids, int):
            found = I >= 0
            I[found] = some.ids[I[found]]

    all_queries = slice(0, nq)
    width = _kernels.batch_width()
    n_threads = max(1, min(faiss.omp_get_max_threads(), len(vectors) * nq // _WORTH_A_THREAD))
    if nq < _kernels.least_batch() and len(vectors) <= _MOST_VECTORS:
        # Scanned one by one, with all threads each.
        scan(all_queries, vectors, hashes, D, I, n_threads)
    elif n_threads == 1 and len(vectors) <= _MOST_VECTORS:
        scan(all_queries, vectors, hashes, D, I)
    elif nq < 4 * width * n_threads or len(vectors) > _MOST_VECTORS:
        # Few queries: every thread scans a part of the vectors for all of them.
        n_parts = max(n_threads, -(-len(vectors) // _MOST_VECTORS))
        parts = threads.slices(len(vectors), n_parts, multiple=_kernels.HASH_BLOCK)
        Ds = np.empty((len(parts), nq, k), np.float32)
        Is = np.empty((len(parts), nq, k), np.int64)
        tasks = [
            (all_queries, vectors.part(part), _hashes_of(part, hashes), Ds[p], Is[p]) for p, part in enumerate(parts)
        ]
        threads.run(scan, tasks)
        _merge(Ds, Is, D, I)
    else:
        cuts = threads.slices(nq, n_threads, multiple=width)
        threads.run(scan, [(cut, vectors, None, D[cut], I[cut]) for cut in cuts])
    D += constants[:, None]


def _hashes_of(part: slice, hashes: npt.NDArray[np.uint64] | None) -> npt.NDArray[np.uint64] | None:
    block = _kernels.HASH_BLOCK
    return None if hashes is None else hashes[part.start // block : -(-part.stop // block)]


def _merge(Ds: Floats, Is: Labels, D: Floats, I: Labels) -> None:
    """The k best of the results (parts, nq, k) of ascending parts of the vectors."""
    k = D.shape[1]
    Ds = Ds.transpose(1, 0, 2).reshape(len(D), -1)
    Is = Is.transpose(1, 0, 2).reshape(len(D), -1)
    # Stable: among equal distances the earlier part, so the lower id, stays first.
    order = np.argsort(Ds, axis=1, kind="stable")[:, :k]
    D[:] = np.take_along_axis(Ds, order, axis=1)
    I[:] = np.take_along_axis(Is, order, axis=1)
