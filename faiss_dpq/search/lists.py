"""Search of inverted lists whose vectors are coded by residual: list centre plus codewords.

The centre is one more level of the code, c + c_1(k_1) + ... + c_M(k_M), so that the tables of a query serve all lists
that it probes; what couples centre and codewords is a term of each stored vector (see cython_kernels/dpq_lists.h). The
terms follow from codes and centres. They are kept by list, with the list's size and a sample of its codes and ids, and
every search first compares these for the lists that it probes: FAISS's C++ may have changed them without us.
"""

# Annotations of nested functions would be evaluated at every call.
from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt

from .. import _kernels
from ..codec import Floats, ProgressiveQuantizer, threads
from .centres import Centres, NearestCentres
from .flat import grow_until_too_far
from .lists_near import NearLists, Scanned
from .near import LIST_SHARE, OTHER_ROUNDINGS, Ranges
from .selection import Labels

_TABLE_BYTES = 32 << 20  # of distance tables held at a time by a thread
_PRODUCT_LISTS = 64  # lists whose products with all codewords are held at a time
_FEW_PROBES = 256  # of all queries of a call, up to which it is not cut into threads
_WORTH_A_THREAD = 1 << 16  # distances; several times what it costs to start a task
_MOST_SCANNED = (1 << 32) - 1  # vectors by one query, which numbers them in 32 bits


@contextlib.contextmanager
def opened(invlists: faiss.InvertedLists, keys: Labels) -> Iterator[_kernels.OpenLists]:
    """The lists that `keys` name (-1: none), prefetched, and released at the end."""
    specific = faiss.downcast_InvertedLists(invlists)
    probed = np.zeros(specific.nlist, bool)
    probed[keys[keys >= 0]] = True
    numbers = np.flatnonzero(probed)
    if isinstance(specific, faiss.ArrayInvertedLists):
        yield _kernels.ListReader(specific).open(numbers)
    else:
        yield from _opened_one_by_one(specific, numbers)


def _opened_one_by_one(invlists: faiss.InvertedLists, numbers: Labels) -> Iterator[_kernels.OpenLists]:
    lists = _kernels.OpenLists(numbers, invlists.nlist, invlists.code_size)
    invlists.prefetch_lists(faiss.swig_ptr(numbers), len(numbers))
    held = []
    try:
        for number in numbers.tolist():
            lists.sizes[number] = size = invlists.list_size(number)
            if size == 0:
                continue
            codes, ids = invlists.get_codes(number), invlists.get_ids(number)
            held.append((number, codes, ids))
            lists.codes[number], lists.ids[number] = int(codes), int(ids)
        yield lists
    finally:
        for number, codes, ids in held:
            invlists.release_codes(number, codes)
            invlists.release_ids(number, ids)


class DerivedLists:
    """Terms, their bins and the radius of every list, at one prefix length; made when a list is first probed."""

    def __init__(self, quantizer: ProgressiveQuantizer, centres: Centres, levels: int) -> None:
        self.quantizer, self.centres, self.levels = quantizer, centres, levels
        nlist = len(centres.padded)
        self.sizes = np.full(nlist, -1, np.int64)
        self.digests = np.zeros((nlist, 2), np.uint64)
        self.bins = np.zeros(nlist, np.uint64)
        self.terms = np.zeros(nlist, np.uint64)
        self.term_min, self.term_step, self.term_magnitude, self.radius = np.zeros((4, nlist), np.float32)
        # Vectors that follow from codes and centre have terms; for inner products nothing couples the two.
        self._has_terms = centres.metric == faiss.METRIC_L2
        # The terms' tables are products with the centres, as a query's are with the query.
        norms = np.empty(nlist, np.float32)
        _kernels.squared_norms(centres.padded, norms)
        self.errors = quantizer.table_errors(norms, levels) if self._has_terms else np.zeros(nlist, np.float32)
        farthest = float(np.sqrt(norms.max()))
        self.near = NearLists(quantizer, levels, centres.given, centres.mean + quantizer.centre, farthest)
        tables = _kernels.QueryTables(
            not self._has_terms,
            quantizer.products(levels),
            quantizer.codeword_norms if self._has_terms else np.zeros_like(quantizer.codeword_norms),
            quantizer.centre if self._has_terms else None,
            *quantizer.error_factors(levels),
            centres.mean if self._has_terms else None,
        )
        self._kept: dict[int, tuple[Floats, npt.NDArray[np.uint8]]] = {}
        n_panels = -(-levels * quantizer.K // _kernels.PANEL)
        by_tables = quantizer.cross_tables is not None
        self._growth = _kernels.ListGrowth(
            quantizer.cross_tables,
            quantizer.panels[:n_panels] if by_tables else np.empty((0, quantizer.d, _kernels.PANEL), np.float32),
            quantizer.codeword_norms,
            centres.padded,
            self._norm_error,
            self._has_terms,
            quantizer.nbits,
            levels,
            self.bins,
            self.terms,
            self.term_min,
            self.term_step,
            self.term_magnitude,
            self.radius,
            self._kept,
        )
        self.scan = _kernels.ListScan(
            tables,
            self._growth,
            quantizer.nbits,
            levels,
            self.sizes,
            self.digests,
            centres.padded,
            self.bins,
            self.terms,
            self.term_min,
            self.term_step,
            self.term_magnitude,
            self.radius,
            self.errors,
            LIST_SHARE * OTHER_ROUNDINGS if self._has_terms else 0.0,
            quantizer.common_length(levels),
            farthest,
        )
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(terms.nbytes + bins.nbytes for terms, bins in list(self._kept.values()))

    @property
    def most_per_vector(self) -> float:
        """Bytes that are held at most, a vector that a list has had since: a term and a bin, with room to grow."""
        return 1.25 * 5 if self._has_terms else 0.0

    @property
    def bytes_of_lists(self) -> int:
        """Memory held beside, whatever the number of vectors, in bytes."""
        own = (self.sizes, self.digests, self.bins, self.terms, self.errors)
        return sum(array.nbytes for array in own) + 4 * self.radius.nbytes

    @property
    def _norm_error(self) -> float:
        # The tables are rounded to float32: no squared norm is off by more.
        return 2.0**-22 * self.quantizer.reach(self.levels) ** 2

    def update(self, lists: _kernels.OpenLists) -> None:
        """Make everything true of the open lists, deriving anew what is not known of them."""
        digests = np.empty_like(self.digests)
        if not len(self.scan.changed(lists, digests)):
            return
        with self._lock:
            numbers = self.scan.changed(lists, digests)
            parts = threads.slices(len(numbers), max(faiss.omp_get_max_threads(), -(-len(numbers) // _PRODUCT_LISTS)))
            self._growth.allowed = False
            self.sizes[numbers] = -1  # an interrupt may leave halves of what is derived
            try:
                threads.run(self._recompute, [(lists, numbers[part]) for part in parts])
                self.sizes[numbers], self.digests[numbers] = lists.sizes[numbers], digests[numbers]
            finally:
                self._growth.allowed = self.quantizer.cross_tables is not None

    def _recompute(self, lists: _kernels.OpenLists, numbers: Labels) -> None:
        quantizer = self.quantizer
        with_codewords = quantizer.products(self.levels)
        products = np.zeros((len(numbers), with_codewords.width), np.float32)
        if self._has_terms:
            centres = np.ascontiguousarray(self.centres.padded[numbers, : quantizer.d])
            zeros = np.zeros(products.shape[1], np.float32)
            with_codewords.of(centres, zeros, 2.0, products)
        for number, of_list in zip(numbers.tolist(), products, strict=True):
            if lists.sizes[number]:
                self._recompute_list(lists, number, of_list)

    def _recompute_list(self, lists: _kernels.OpenLists, number: int, products: Floats) -> None:
        quantizer, n = self.quantizer, int(lists.sizes[number])
        reach = quantizer.reach(self.levels)
        terms = bins = None
        if self._has_terms:
            terms, bins = np.empty(n, np.float32), np.empty(n, np.uint8)
            if quantizer.cross_tables is None:
                packed = np.empty((n, lists.code_size), np.uint8)
                _kernels.copy_codes(lists.codes[number], packed)
                terms[:] = quantizer.cross_terms(_kernels.unpack_codes(packed, self.levels, quantizer.nbits))
        radius, *of_terms = _kernels.list_terms(
            lists.codes[number],
            lists.code_size,
            quantizer.nbits,
            self.levels,
            quantizer.cross_tables,
            products,
            quantizer.codeword_norms,
            self._norm_error,
            n,
            terms,
            bins,
        )
        self.radius[number] = reach if quantizer.cross_tables is None else radius
        self.term_min[number], self.term_step[number], self.term_magnitude[number] = of_terms
        if terms is not None and bins is not None:
            self.terms[number], self.bins[number] = terms.ctypes.data, bins.ctypes.data
            self._kept[number] = (terms, bins)


@dataclass
class Found:
    """Results of a search, shape (nq, k) each.

    Attributes
    ----------
    D : array, float32
        Nearest first; +-FLT_MAX where there are fewer than k.
    I : array, int64
        Ids, -1 where there are fewer.
    """

    D: Floats
    I: Labels


def scanned_counts(keys: Labels, sizes: Labels, max_codes: int) -> Labels:
    """How many vectors a query scans of each list: all, until `max_codes` (0: no limit) are reached."""
    counts = np.where(keys >= 0, sizes[keys], 0)
    if max_codes:
        before = np.cumsum(counts, axis=1) - counts
        counts = np.clip(max_codes - before, 0, counts)
    return counts


def search_few(
    derived: DerivedLists,
    reader: _kernels.ListReader,
    xq: Floats,
    keys: Labels,
    max_codes: int,
    k: int,
    mask: _kernels.SelectorMask | None = None,
) -> Found | None:
    """`search` with less overhead around it, for a few queries of lists in memory that have not changed; else None."""
    if keys.size > _FEW_PROBES or not keys.size:
        return None
    found = Found(np.empty((len(xq), k), np.float32), np.empty((len(xq), k), np.int64))
    return found if derived.scan.search_few(reader, xq, keys, max_codes, found.D, found.I, mask) else None


def one_query_scan(
    derived: DerivedLists,
    reader: _kernels.ListReader,
    centres: NearestCentres,
    nprobe: int,
    max_codes: int,
    unchanged: _kernels.Unchanged,
) -> _kernels.OneQueryListScan | None:
    """`search_few` of one query in the `nprobe` nearest lists, prepared; None where that cannot search.

    It is good for as long as `unchanged` holds of what FAISS keeps.
    """
    nprobe = min(nprobe, len(derived.sizes))
    if nprobe > _FEW_PROBES:
        return None
    return _kernels.OneQueryListScan(unchanged, derived, derived.scan, reader, centres.scan, nprobe, max_codes)


def search(
    derived: DerivedLists,
    lists: _kernels.OpenLists,
    xq: Floats,
    keys: Labels,
    counts: Labels,
    k: int,
    places: Labels | None = None,
    refined_by: tuple[DerivedLists, int] | None = None,
) -> Found:
    """The k nearest codes in the lists that each query probes: exact float32 distances.

    Parameters
    ----------
    derived : DerivedLists
        Of the quantizer, the centres and the prefix length; brought up to date here.
    lists : _kernels.OpenLists
        All lists in `keys`; what `ListMasks` has let through of them.
    xq : array, shape (nq, d), float32
    keys, counts : array, shape (nq, nprobe), int64
        Lists, -1 for none, and how many vectors of each.
    k : int
    places : array, shape (nq, k), int64, optional
        Where to put list << 32 | offset of every result, -1 for none.
    refined_by : tuple of DerivedLists and int, optional
        Find so many by the levels of `derived`, and of these the k nearest by those of the other, which is up to date.

    Raises
    ------
    RuntimeError
        If a query probes 2**32 - 1 vectors or more.
    """
    if counts.sum(axis=1).max(initial=0) >= _MOST_SCANNED:
        raise RuntimeError(f"IndexIVFDPQ: a query scans at most {_MOST_SCANNED - 1} vectors; lower nprobe or max_codes")
    derived.update(lists)
    scanned = Scanned(lists, xq, keys, counts)
    if derived.centres.metric != faiss.METRIC_L2:
        return _nearest_sums(derived, scanned, k, places, refined_by)
    places = np.empty((len(xq), k), np.int64) if places is None else places
    found = _nearest_sums(derived, scanned, k, places, refined_by)

    def within(scanned: Scanned, reach: Floats) -> Ranges:
        if refined_by is None:
            return _range_of_sums(derived, scanned, reach)
        candidates = np.empty((len(scanned.xq), refined_by[1]), np.int64)
        D = _nearest_sums(derived, scanned, refined_by[1], candidates, refined_by).D
        here = candidates >= 0
        return np.append(0, np.cumsum(here.sum(axis=1))), D[here], candidates[here]

    compared_by = derived if refined_by is None else refined_by[0]
    compared_by.near.nearest(scanned, found.D, found.I, places, within)
    return found


def _nearest_sums(
    derived: DerivedLists,
    scanned: Scanned,
    k: int,
    places: Labels | None,
    refined_by: tuple[DerivedLists, int] | None = None,
) -> Found:
    """`search` by float32 sums."""
    lists, xq, keys, counts = scanned
    found = Found(np.empty((len(xq), k), np.float32), np.empty((len(xq), k), np.int64))
    n_threads = min(faiss.omp_get_max_threads(), int(counts.sum()) // _WORTH_A_THREAD)
    most = max(1, _TABLE_BYTES // (4 * derived.levels * derived.quantizer.K))

    def scan(cut: slice) -> None:
        places_here = None if places is None else places[cut]
        of_cut = (lists, xq[cut], keys[cut], counts[cut])
        if refined_by is None:
            derived.scan.search(*of_cut, found.D[cut], found.I[cut], places_here)
        else:
            whole, n = refined_by
            whole.scan.rescore(derived.scan, *of_cut, n, found.D[cut], found.I[cut], places_here)

    threads.run(scan, [(cut,) for cut in threads.slices(len(xq), max(n_threads, -(-len(xq) // most)))])
    return found


def range_search(
    derived: DerivedLists,
    lists: _kernels.OpenLists,
    xq: Floats,
    keys: Labels,
    counts: Labels,
    thresh: float,
) -> tuple[Labels, Floats, Labels]:
    """All codes in the probed lists that are nearer than `thresh`; arguments as in `search`.

    Returns
    -------
    lims : array, shape (nq + 1,), int64
    D : array, shape (lims[-1],), float32
    I : array, shape (lims[-1],), int64
    """
    derived.update(lists)
    scanned = Scanned(lists, xq, keys, counts)

    def find(scanned: Scanned, reach: float | Floats) -> Ranges:
        return _range_of_sums(derived, scanned, reach)

    of_sums = derived.centres.metric != faiss.METRIC_L2
    lims, D, places = find(scanned, thresh) if of_sums else derived.near.within(scanned, thresh, find)
    return lims, D, scanned.ids(places)


def _range_of_sums(derived: DerivedLists, scanned: Scanned, thresh: float | Floats) -> Ranges:
    """`range_search` by float32 sums: lims, D and places; `thresh` of all queries, or one each."""

    def nearest(queries: npt.NDArray[np.intp], k: int) -> tuple[Floats, Labels]:
        places = np.empty((len(queries), k), np.int64)
        return _nearest_sums(derived, scanned.of(queries), k, places).D, places

    most = int(scanned.counts.sum(axis=1).max(initial=0))
    nearer = np.less if derived.centres.metric == faiss.METRIC_L2 else np.greater
    return grow_until_too_far(nearest, len(scanned.xq), most, nearer, thresh)
