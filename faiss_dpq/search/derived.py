"""What the scan's lower bounds need to know of the stored codes, kept as long as the codes stay the same.

The codes hold no norms. The scan's byte bounds need to know, per vector, in which of 256 bins the cross term of Eq. 30
lies, and one radius that all reconstructions lie within. Both follow from the codes and are kept; and because codes can
change behind our back (a stock wrapper, `index.codes`, FAISS's own methods), every search first compares the hash of
every block of codes with the one that its bins were made from.
"""

# Annotations of nested functions would be evaluated at every call.
from __future__ import annotations

import threading

import faiss
import numpy as np
import numpy.typing as npt

from .. import _kernels
from ..codec import Floats, ProgressiveQuantizer, threads

_BLOCK = _kernels.HASH_BLOCK
_MARGIN = 1 / 64  # of the terms' range: bins reach beyond it, so that most additions fit the bins there are

Bytes = npt.NDArray[np.uint8]


class DerivedCodes:
    """Bins, terms and radius of one index's codes at one prefix length.

    Attributes
    ----------
    bins : array, shape (n,), uint8, or None
        Of every vector's term; None where there are no terms (inner product, or one level).
    terms : array, shape (n,), float32, or None
        The terms themselves, where the quantizer has no cross tables to look them up.
    term_min, term_step : float
        The bins' first edge, and their width.
    hashes : array, uint64
        Of the blocks of codes that all this is true of; replaced, last of all, when it changes.
    n : int
        Number of codes.
    radius : float
        No reconstruction is farther than this from the centre.
    """

    def __init__(self, quantizer: ProgressiveQuantizer, levels: int, metric: int) -> None:
        self.quantizer, self.levels, self.metric = quantizer, levels, metric
        self.bins: Bytes | None = None
        self.terms: Floats | None = None
        self.term_min = self.term_step = self.radius = 0.0
        self._has_terms = levels > 1 and metric == faiss.METRIC_L2
        self.hashes = np.empty(0, np.uint64)
        self.n = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(a.nbytes for a in (self.hashes, self.bins, self.terms) if a is not None)

    def update(self, packed: Bytes) -> None:
        """Make everything true of the codes `packed`, shape (n, code_size), recomputing what has changed."""
        hashes = np.empty(-(-len(packed) // _BLOCK), np.uint64)

        def hash_slice(part: slice) -> None:
            _kernels.hash_blocks(packed[part.start * _BLOCK :], hashes[part])

        # Several blocks a thread: starting one costs more than hashing 16 KiB.
        n_threads = min(faiss.omp_get_max_threads(), 1 + len(hashes) // 16)
        threads.run(hash_slice, [(part,) for part in threads.slices(len(hashes), n_threads)])
        if hashes.tobytes() == self.hashes.tobytes():  # array_equal takes 8 us
            return
        with self._lock:
            known = min(len(hashes), len(self.hashes))
            same = np.zeros(len(hashes), bool)
            same[:known] = hashes[:known] == self.hashes[:known]
            changed = _runs(np.flatnonzero(~same))
            self._recompute(packed, [slice(a * _BLOCK, min(b * _BLOCK, len(packed))) for a, b in changed])
            self.hashes, self.n = hashes, len(packed)

    def _recompute(self, packed: Bytes, changed: list[slice]) -> None:
        self.radius = max([self.radius, *(self._radius(packed[part]) for part in changed)])
        if not self._has_terms:
            return
        if self.quantizer._cross is None:
            self.terms = _resized(self.terms, len(packed), np.float32)
            for part in changed:
                codes = _kernels.unpack_codes(packed[part], self.levels, self.quantizer.nbits)
                self.terms[part] = self.quantizer.cross_terms(codes)
        first = self.bins is None or not len(self.bins)
        self.bins = _resized(self.bins, len(packed), np.uint8)
        if not changed:
            return
        low, high = self._range(packed, changed)
        if first or low < self.term_min or high > self.term_min + 255 * self.term_step:
            changed = [slice(0, len(packed))]
            low, high = self._range(packed, changed)
            margin = _MARGIN * (high - low)
            self.term_min, self.term_step = _kernels.term_grid(low - margin, high + margin)
        for part in changed:
            self._fill_bins(packed, self.bins, part)

    def _tables_of(self, part: slice) -> tuple[Floats | None, Floats | None]:
        return self.quantizer._cross, None if self.terms is None else self.terms[part]

    def _range(self, packed: Bytes, parts: list[slice]) -> tuple[float, float]:
        nbits = self.quantizer.nbits
        ranges = [_kernels.term_range(packed[p], nbits, self.levels, *self._tables_of(p)) for p in parts]
        return min(low for low, _ in ranges), max(high for _, high in ranges)

    def _fill_bins(self, packed: Bytes, bins: Bytes, changed: slice) -> None:
        def fill(part: slice) -> None:
            part = slice(changed.start + part.start, changed.start + part.stop)
            _kernels.term_bins(
                packed[part],
                self.quantizer.nbits,
                self.levels,
                *self._tables_of(part),
                self.term_min,
                self.term_step,
                bins[part],
            )

        parts = threads.slices(changed.stop - changed.start, faiss.omp_get_max_threads(), _BLOCK)
        threads.run(fill, [(part,) for part in parts])

    def _radius(self, packed: Bytes) -> float:
        quantizer = self.quantizer
        reach = quantizer._reach(self.levels)
        if quantizer._cross is None:
            return reach
        # The tables are rounded to float32: no squared norm is off by more than this.
        error = 2.0**-22 * reach**2
        return _kernels.radius(packed, quantizer.nbits, self.levels, quantizer._cross, quantizer._codeword_norms, error)


def _runs(numbers: npt.NDArray[np.intp]) -> list[tuple[int, int]]:
    """Ascending numbers as half-open runs."""
    if not len(numbers):
        return []
    breaks = np.flatnonzero(np.diff(numbers) > 1) + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in np.split(numbers, breaks)]


def _resized(array: npt.NDArray | None, n: int, dtype: npt.DTypeLike) -> npt.NDArray:
    """The array's first n entries; in new memory with room to grow, if there are more."""
    if array is None:
        array = np.empty(0, dtype)
    owner = array if array.base is None else array.base
    if len(owner) < n:
        owner = np.empty(n + n // 8, dtype)
        owner[: len(array)] = array
    return owner[:n]
