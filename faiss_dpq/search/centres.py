"""The centres of inverted lists: as searches need them, and those that are nearest to a vector."""

from __future__ import annotations

import faiss
import numpy as np

from .. import _kernels
from ..codec import Floats, ProgressiveQuantizer, centre_of, threads
from .selection import Labels

_WORTH_A_THREAD = 1 << 16  # distances; several times what it costs to start a task
_SCORES = 1 << 18  # of vectors and centres held at a time: they stay in the cache


class Centres:
    """The lists' centres as a search needs them.

    For METRIC_L2 queries and centres are moved by what `centre_of` gives of the centres, and by the quantizer's own
    centre: float32 keeps its precision on data far from the origin, where large terms would cancel.

    Attributes
    ----------
    given : array, shape (nlist, d), float32
    padded : array, shape (nlist, stride), float32
        Moved, with zeros behind the d columns, to a multiple of 16.
    """

    def __init__(self, centres: Floats, quantizer: ProgressiveQuantizer, metric: int) -> None:
        self.metric, self.given = metric, centres
        self.mean = np.zeros(centres.shape[1], np.float32)
        if metric == faiss.METRIC_L2:
            self.mean = centre_of(centres)
            centres = centres - self.mean
        else:
            centres = centres + quantizer.centre
        self.padded = _padded(centres)


def _padded(x: Floats) -> Floats:
    if x.shape[1] % _kernels.PANEL == 0:
        return np.ascontiguousarray(x)
    padded = _kernels.aligned_empty((len(x), -(-x.shape[1] // _kernels.PANEL) * _kernels.PANEL))
    padded[:, : x.shape[1]] = x
    padded[:, x.shape[1] :] = 0
    return padded


class NearestCentres:
    """Finds the centres of a flat coarse quantizer that are nearest to a vector, whatever vectors come with it.

    FAISS's products depend in their last bits on how many vectors it is given, so that a vector between two centres
    would be put into the one list or the other; what is built in parts shall be what is built in one go.

    Attributes
    ----------
    scan : _kernels.CentreScan
        The same for one vector.
    """

    def __init__(self, centres: Floats, metric: int) -> None:
        self._mean = np.zeros(centres.shape[1], np.float32)
        if metric == faiss.METRIC_L2:
            self._mean = centre_of(centres)
        moved = np.ascontiguousarray(centres - self._mean)
        panels = _kernels.pack_panels(moved)
        self._bias = np.zeros(panels.shape[0] * _kernels.PANEL, np.float32)
        if metric == faiss.METRIC_L2:
            _kernels.squared_norms(moved, self._bias[: len(moved)])
        self.scan = _kernels.CentreScan(self._mean, panels, self._bias, len(moved))

    def first(self, x: Floats) -> Labels:
        """The number of the nearest centre of every vector, shape (n,); -1 where there is none (NaN, infinity)."""
        numbers = self.of(x, 1)[:, 0]
        squares = np.einsum("ij,ij->i", x, x)
        if not np.isfinite(squares).all():
            numbers[~np.isfinite(squares)] = -1
        return numbers

    def of(self, x: Floats, k: int) -> Labels:
        """The numbers of the k nearest centres, shape (n, k), nearest first; x is finite."""
        moved = x - self._mean
        numbers = np.empty((len(x), k), np.int64)
        rows = max(32, _SCORES // len(self._bias))

        def find(part: slice) -> None:
            for start in range(part.start, part.stop, rows):
                cut = slice(start, min(start + rows, part.stop))
                self.scan.nearest(moved[cut], numbers[cut])

        threads.run_slices(find, len(x), len(x) * self.scan.n // _WORTH_A_THREAD)
        return numbers
