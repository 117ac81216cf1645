"""What the scan's lower bounds need to know of the stored codes, kept as long as the codes stay the same.

The codes hold no norms. The scan's byte bounds need to know, per vector, in which of 256 bins the cross term of Eq. 30
lies, and one radius that all reconstructions lie within. Of codes of many levels the terms themselves are kept, and for
searches of one query the codes by columns. All of it follows from the codes and is kept. It is known to be true by
three things: the index's version, which its own methods raise; the address and the number of the codes; and a
sample of the codes, since FAISS's C++ may change them without us. Codes that were appended are derived by themselves.
"""

# Annotations of nested functions would be evaluated at every call.
from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import faiss
import numpy as np
import numpy.typing as npt

from .. import _kernels
from ..codec import ProgressiveQuantizer, threads
from .order import order, order_bytes

_MARGIN = 1 / 64  # of the terms' range: bins reach beyond it, so that most additions fit the bins there are
_PIECE = 4096  # codes: no thread is given a part of one
_TERMS_BLOCK = 1 << 14  # codes whose terms are computed at a time
_SAMPLED = 1 << 14  # terms, by which the grid of all is chosen
_OUTLIERS = 1e-3  # of the terms at either end, that the grid may leave out ...
_FAR = 8  # ... if they are so many times as far apart as the others
_PASSING = 1 << 16  # codes of a view that is not kept
_GRID = 65535  # steps of the grid of terms, 16 bits
_UNTIL_ORDER = 20  # queries searched one by one before codes are put in order: making it takes as long as some hundred
_PAID_BY_ONE = 1 << 10  # codes put in order, by one search that is faster
_LEAST_ORDERED = 1 << 13  # codes: fewer are scanned in float32
# Levels: of fewer, the pairs' cross terms are looked up as fast. With terms a batch for k = 100 takes 1 / 1.5 of the
# time at 8 levels, 1 / 3.5 at 16.
_WORTH_STORING = 8
_UNORDERED = 8  # an order is made anew when a share of 1 / so much of the codes is not in it

Bytes = npt.NDArray[np.uint8]


class _Known(NamedTuple):
    version: int
    sample: _kernels.Sample
    view: _kernels.CodeView

    def is_of(self, codes: _kernels.FaissVector, version: int) -> bool:
        """Whether these are the codes of the view."""
        return self.version == version and self.sample.is_all_of(codes)


class DerivedCodes:
    """Bins, terms and radius of one index's codes at one prefix length.

    stores_terms : whether terms are kept, 4 bytes a vector, that could be looked up in cross tables as well. Searches
        for many results take less time by them.

    Attributes
    ----------
    room : float
        Bytes a vector that may be kept.
    """

    room = math.inf

    def __init__(self, quantizer: ProgressiveQuantizer, levels: int, metric: int, stores_terms: bool = False) -> None:
        self.quantizer, self.levels, self.metric = quantizer, levels, metric
        self.stores_terms = stores_terms or quantizer.cross_tables is None
        self._has_terms = levels > 1 and metric == faiss.METRIC_L2
        self._known: _Known | None = None
        self._lock = threading.Lock()
        self.until_order = _kernels.Countdown(_UNTIL_ORDER)

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        view = self._known.view if self._known else None
        arrays = (view.bins, view.terms, view.columns, view.order) if view is not None else ()
        return sum(array.nbytes for array in arrays if array is not None)

    @property
    def fits(self) -> bool:
        """Whether there is room for what a view keeps of every vector."""
        return self.fits_into(self.room)

    def fits_into(self, room: float) -> bool:
        """Whether so many bytes a vector are room enough for that."""
        many = self.levels > _kernels.FEW_LEVELS
        return room >= self._has_terms * (4 if many else 1 + 4 * self.stores_terms)

    def passing(self, packed: Bytes) -> Iterator[tuple[int, _kernels.CodeView]]:
        """Views of parts of the codes, of which nothing is kept, each with the place of its first code."""
        for start in range(0, len(packed), _PASSING):
            yield start, self._derive(packed[start : start + _PASSING], None)

    @property
    def sample(self) -> _kernels.Sample:
        """By which the codes of the last view are known."""
        return self._known.sample if self._known else None

    def view(self, codes: _kernels.FaissVector, code_size: int, version: int) -> _kernels.CodeView:
        """The codes of an index of this version, with what is derived from them."""
        known = self._known
        if known is None or not known.is_of(codes, version):
            with self._lock:
                known = self._known
                if known is None or not known.is_of(codes, version):
                    packed = codes.rows(code_size)
                    appended = known is not None and known.version == version and known.sample.begins(codes)
                    view = self._derive(packed, known.view if known is not None and appended else None)
                    known = self._known = _Known(version, _kernels.Sample(packed), view)
        return known.view

    # ---- codes that are changed in place: see search/stored.py -------------------------------------------------------

    def given_up(self, codes: _kernels.FaissVector, version: int) -> _kernels.CodeView | None:
        """The view of the codes as they are, if it is known; from now on, nothing is."""
        # Without the lock, which an interrupt on the way out of `with` would leave closed.
        known, self._known = self._known, None
        return known.view if known is not None and known.is_of(codes, version) else None

    def follow(
        self,
        view: _kernels.CodeView,
        packed: Bytes,
        version: int,
        touched: npt.NDArray[np.int64],
        behind: bool = False,
    ) -> None:
        """Know `packed`, whose bins and terms the arrays of a view have been made to hold.

        touched : the ascending places whose codes are not those that the view had there; with `behind`, all places
            from the first of them on.
        """
        n = len(packed)
        terms, bins = (None if array is None else array[:n] for array in (view.terms, view.bins))
        new = view.of(packed, terms, bins)
        if view.columns is not None:
            new = new.with_columns(self._changed_columns(new, view.columns, touched, behind))
        self._known = _Known(version, _kernels.Sample(packed), new)

    def replace(self, view: _kernels.CodeView, packed: Bytes, version: int, places: npt.NDArray[np.int64]) -> None:
        """Know `packed`, which are the codes of a view with others at ascending places."""
        others = np.flatnonzero(places != np.arange(len(places)))
        other = int(others[0]) if len(others) else len(places)
        if other == len(packed):  # nothing is left of the view
            return
        # As codes that were appended to another one of the view, so that they have to fit into its grid.
        some = view.taken(np.append(other, places))
        some = self._derive(some.packed, some.part(0, 1))
        if (some.term_min, some.term_step) != (view.term_min, view.term_step):
            return
        for array, new in ((view.bins, some.bins), (view.terms, some.terms)):
            if array is not None:
                array[places] = new[1:]
        columns = view.columns
        view = some.of(packed, view.terms, view.bins)
        self.follow(view if columns is None else view.with_columns(columns), packed, version, places)

    def _changed_columns(
        self, view: _kernels.CodeView, columns: Bytes, touched: npt.NDArray[np.int64], behind: bool
    ) -> Bytes:
        """Columns of codes, from those of as many or more that differ only as `follow` says."""
        n, width = len(view), _kernels.COLUMN
        if behind:
            return self._columns(view, min(int(touched[0]), n), columns)
        columns = _resized(columns, _kernels.column_bytes(view), np.uint8)
        # The last block, too: it may have become shorter.
        for block in np.unique(np.append(touched, n) // width).tolist():
            _kernels.fill_columns(view, block * width, min((block + 1) * width, n), columns)
        return columns

    def for_few(self, view: _kernels.CodeView, nq: int) -> _kernels.CodeView:
        """The same view with what a search of so few queries, which are scanned one by one, needs besides; kept too.

        Of many levels, the codes by columns. Of few, the codes in an order of their own, once so many queries were
        searched that making it is paid for.
        """
        known = self._known
        if known is not None and known.view.packed is view.packed:
            view = known.view  # which may have got them since
        if self.levels > _kernels.FEW_LEVELS:
            return self._kept(view, self._with_columns)
        if not self.lacks_order(view):
            return view
        if self.until_order.left > 0:
            self.until_order.left -= nq
            return view
        # Making it anew, after changes, is to be paid for by searches.
        self.until_order = _kernels.Countdown(max(_UNTIL_ORDER, len(view) // _PAID_BY_ONE))
        return self._kept(view, self._with_order)

    def lacks_order(self, view: _kernels.CodeView) -> bool:
        """Whether the view's codes can have an order and have none, or one that leaves many of them out."""
        if self.quantizer.nbits != 8 or not 2 <= self.levels <= _kernels.most_ordered() or len(view) < _LEAST_ORDERED:
            return False
        if view.order is not None and len(view) - len(view.order) <= len(view) // _UNORDERED:
            return False
        return self._has_room(order_bytes(self.levels, self._has_terms), view)

    def _has_room(self, size: int, view: _kernels.CodeView) -> bool:
        """Whether so many bytes of every vector may be kept, beside its bin and term."""
        kept = sum(array.itemsize for array in (view.bins, view.terms) if array is not None)
        return kept + size <= self.room

    def _kept(
        self, view: _kernels.CodeView, more: Callable[[_kernels.CodeView], _kernels.CodeView]
    ) -> _kernels.CodeView:
        """more(view), in place of the view that is kept."""
        with self._lock:
            known = self._known
            if known is None or known.view is not view:  # another thread derived anew meanwhile, or did the same
                return view
            view = more(view)
            self._known = known._replace(view=view)
            return view

    def _with_columns(self, view: _kernels.CodeView) -> _kernels.CodeView:
        size = self.levels * self.quantizer.nbits // 8
        if view.columns is not None or self.quantizer.nbits not in (4, 8) or not len(view):
            return view
        if not self._has_room(size, view):
            return view
        return view.with_columns(self._columns(view, 0, None))

    def _with_order(self, view: _kernels.CodeView) -> _kernels.CodeView:
        terms = None
        if self._has_terms:
            terms = view.terms if view.terms is not None else self._terms(view.packed, self._plain(view.packed[:0]))
        return view.with_order(order(self.quantizer, view.packed, self.levels, terms))

    def _columns(self, view: _kernels.CodeView, begin: int, before: Bytes | None) -> Bytes:
        """Columns of the codes, those of the first `begin` of which are in `before`."""
        columns, begin = _resized(before, _kernels.column_bytes(view), np.uint8), begin - begin % _kernels.COLUMN

        def fill(part: slice) -> None:
            _kernels.fill_columns(view, begin + part.start, begin + part.stop, columns)

        parts = threads.slices(len(view) - begin, faiss.omp_get_max_threads(), _PIECE)
        threads.run(fill, [(part,) for part in parts])
        return columns

    def _derive(self, packed: Bytes, before: _kernels.CodeView | None) -> _kernels.CodeView:
        """A view of the codes, the first of which are those of `before`."""
        if before is None:
            before = self._plain(packed[:0])
        if self.levels > _kernels.FEW_LEVELS:
            return self._derive_many(packed, before)
        begin, new = len(before), packed[len(before) :]
        radius = max(before.radius, self._radius(new))
        if not self._has_terms:
            quantizer = self.quantizer
            view = _kernels.CodeView(packed, quantizer.nbits, self.levels, None, radius=radius)
            return view.with_order(before.order)
        terms, bins = None, _resized(before.bins, len(packed), np.uint8)
        if self.stores_terms:
            terms = self._terms(packed, before)
        view, first, step = self._plain(packed, terms), before.term_min, before.term_step
        low, high = _kernels.term_range(view.part(begin, len(packed)))
        if not begin or low < first or high > first + 255 * step:
            begin = 0
            low, high = _kernels.term_range(view)
            margin = _MARGIN * (high - low)
            first, step = _kernels.term_grid(low - margin, high + margin) if len(packed) else (0.0, 0.0)
        view = self._plain(packed, terms, bins, first, step, radius)

        def fill(part: slice) -> None:
            part = slice(begin + part.start, begin + part.stop)
            _kernels.term_bins(view.part(part.start, part.stop), bins[part])

        parts = threads.slices(len(packed) - begin, faiss.omp_get_max_threads(), _PIECE)
        threads.run(fill, [(part,) for part in parts])
        return view.with_order(before.order)

    def _derive_many(self, packed: Bytes, before: _kernels.CodeView) -> _kernels.CodeView:
        """The same of codes of many levels: terms instead of bins, and columns if there were any."""
        begin, terms, grid = len(before), None, (before.term_min, before.term_step)
        if self._has_terms:
            terms = self._terms(packed, before)
            new = terms[begin:]
            first, step = grid
            if not begin or (len(new) and not first <= new.min() <= new.max() <= first + _GRID * step):
                grid = _grid_of(terms)
        view = _kernels.CodeView(packed, self.quantizer.nbits, self.levels, None, terms, None, *grid)
        if before.columns is not None:
            view = view.with_columns(self._columns(view, begin, before.columns))
        return view

    def _terms(self, packed: Bytes, before: _kernels.CodeView) -> npt.NDArray[np.float32]:
        """The terms of the codes, the first of which are those of `before`."""
        quantizer, terms = self.quantizer, _resized(before.terms, len(packed), np.float32)

        def fill(start: int) -> None:
            part = slice(start, min(start + _TERMS_BLOCK, len(packed)))
            terms[part] = quantizer.cross_terms(_kernels.unpack_codes(packed[part], self.levels, quantizer.nbits))

        threads.run(fill, [(start,) for start in range(len(before), len(packed), _TERMS_BLOCK)])
        return terms

    def _plain(self, packed: Bytes, *derived: Any, **more: Any) -> _kernels.CodeView:
        cross = None if self.stores_terms else self.quantizer.cross_tables
        return _kernels.CodeView(packed, self.quantizer.nbits, self.levels, cross, *derived, **more)

    def _radius(self, packed: Bytes) -> float:
        quantizer = self.quantizer
        reach = quantizer.reach(self.levels)
        if quantizer.compact is not None and len(packed):
            codes = _kernels.unpack_codes(packed, self.levels, quantizer.nbits)
            return min(reach, quantizer.longest(codes))
        if quantizer.cross_tables is None:
            return reach
        # The tables are rounded to float32: no squared norm is off by more than this.
        error = 2.0**-22 * reach**2
        view = _kernels.CodeView(packed, quantizer.nbits, self.levels, quantizer.cross_tables)
        return _kernels.radius(view, quantizer.codeword_norms, error)


def should_store_terms(levels: int, room: float) -> bool:
    """Whether codes of so many levels have their terms stored, if so many bytes a vector may be kept.

    Beside an order, that is, which is worth more where there is no room for both.
    """
    return _WORTH_STORING <= levels <= _kernels.FEW_LEVELS and room >= 1 + 4 + order_bytes(levels, True)


def _grid_of(terms: npt.NDArray[np.float32]) -> tuple[float, float]:
    """The least term and the step of a grid that covers all of them, but for few that are very far from the others."""
    if not len(terms):
        return 0.0, 0.0
    low, high = float(terms.min()), float(terms.max())
    least, most = np.quantile(terms[:: -(-len(terms) // _SAMPLED)], (_OUTLIERS, 1 - _OUTLIERS))
    margin = _FAR * float(most - least)
    low, high = max(low, float(least) - margin), min(high, float(most) + margin)
    margin = _MARGIN * (high - low)
    return low - margin, (high - low + 2 * margin) / _GRID


def _resized(array: npt.NDArray | None, n: int, dtype: npt.DTypeLike) -> npt.NDArray:
    """The array's first n entries; in new memory with room to grow, if there are more."""
    if array is None:
        array = np.empty(0, dtype)
    owner = array if array.base is None else array.base
    if len(owner) < n:
        owner = np.empty(n + n // 8, dtype)
        owner[: len(array)] = array
    return owner[:n]
