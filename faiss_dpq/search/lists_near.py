"""Distances of vectors in lists that float32 sums cannot tell: compared again as search/near.py describes."""

# Annotations of nested functions would be evaluated at every call.
from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .. import _kernels
from ..codec import Floats, ProgressiveQuantizer
from .near import Nearness, Ranges, list_limits_and_errors
from .selection import Labels


class Scanned(NamedTuple):
    """What queries scan. A vector's number is its place among all that its query scans: equal distances go by it."""

    lists: _kernels.OpenLists
    xq: Floats
    keys: Labels  # (nq, nprobe)
    counts: Labels  # likewise

    def of(self, rows: npt.NDArray[np.intp]) -> Scanned:
        """What some of the queries scan."""
        return Scanned(self.lists, self.xq[rows], self.keys[rows], self.counts[rows])

    def numbers(self, places: Labels) -> Labels:
        """Of list << 32 | offset, shape (nq, k), -1 for none."""
        numbers = np.full(places.shape, -1)
        for row, keys in enumerate(self.keys):
            found = places[row] >= 0
            order = np.argsort(keys, kind="stable")
            probes = order[np.searchsorted(keys, places[row][found] >> 32, sorter=order)]
            begins = np.cumsum(self.counts[row]) - self.counts[row]
            numbers[row][found] = begins[probes] + (places[row][found] & 0xFFFFFFFF)
        return numbers

    def places(self, row: int, numbers: Labels) -> Labels:
        """The reverse for one query, shape (n,), and without -1."""
        ends = np.cumsum(self.counts[row])
        probes = np.searchsorted(ends, numbers, side="right")
        offsets: Labels = numbers - (ends - self.counts[row])[probes]
        return self.keys[row][probes] << 32 | offsets

    def ids(self, places: Labels) -> Labels:
        """The ids at places, shape (n,)."""
        ids = np.empty((len(places), 8), np.uint8)
        _kernels.gather_codes(places, self.lists.ids, ids)
        return ids.view(np.int64)[:, 0]


class NearLists(NamedTuple):
    """How distances in lists are compared again.

    Attributes
    ----------
    quantizer, levels
        By which codes the results are compared.
    centres : array, shape (nlist, d), float32
    shift : array, shape (d,), float32
        What is subtracted from queries before sums are made.
    farthest : float
        No centre is longer after that.
    """

    quantizer: ProgressiveQuantizer
    levels: int
    centres: Floats
    shift: Floats
    farthest: float

    def limits_and_errors(self, xq: Floats) -> tuple[Floats, Floats]:
        """As `Nearness` has them."""
        norms = np.empty(len(xq), np.float32)
        _kernels.squared_norms(np.subtract(xq, self.shift, order="C"), norms)
        return list_limits_and_errors(self.quantizer, self.levels, norms, self.farthest)

    def nearest(
        self, scanned: Scanned, D: Floats, I: Labels, places: Labels, within: Callable[[Scanned, Floats], Ranges]
    ) -> None:
        """Put right the k nearest that float32 sums have given, shape (nq, k), in place.

        within : of what queries scan, and squared distances, one each, all that float32 sums find nearer than these:
            lims, D and places.
        """
        limits, errors = self.limits_and_errors(scanned.xq)
        rows = np.flatnonzero(D[:, 0] < limits)
        if not len(rows):
            return
        near = scanned.of(rows)
        D_near, numbers = D[rows], near.numbers(places[rows])

        def numbered(wide: npt.NDArray[np.intp], reach: Floats) -> Ranges:
            some = near.of(wide)
            return _numbered(some, *within(some, reach))

        self._nearness(near, limits[rows], errors[rows]).nearest(D_near, numbers, numbered)
        D[rows] = D_near
        for of_row, row in enumerate(rows.tolist()):
            found = numbers[of_row] >= 0
            places[row][found] = near.places(of_row, numbers[of_row][found])
            I[row][found] = scanned.ids(places[row][found])

    def within(
        self, scanned: Scanned, thresh: float, find: Callable[[Scanned, float | Floats], Ranges]
    ) -> tuple[npt.NDArray[np.int64], Floats, Labels]:
        """All that is nearer than a squared distance: lims, D and places.

        find : of what queries scan, and squared distances, one or (nq,), all that float32 sums find nearer than these.
        """

        def numbered(reach: float | Floats) -> Ranges:
            return _numbered(scanned, *find(scanned, reach))

        limits, errors = self.limits_and_errors(scanned.xq)
        lims, D, numbers = self._nearness(scanned, limits, errors).within(thresh, numbered)
        rows = enumerate(pairwise(lims.tolist()))
        places = [scanned.places(row, numbers[begin:end]) for row, (begin, end) in rows]
        return lims, D, np.concatenate([np.empty(0, np.int64), *places])

    def _nearness(self, scanned: Scanned, limits: Floats, errors: Floats) -> Nearness:
        def decode(row: int, numbers: Labels) -> npt.NDArray[np.float64]:
            places = scanned.places(row, numbers)
            packed = np.empty((len(places), scanned.lists.code_size), np.uint8)
            _kernels.gather_codes(places, scanned.lists.codes, packed)
            residuals = self.quantizer.decode(_kernels.unpack_codes(packed, self.levels, self.quantizer.nbits))
            # Where centres are far away, float32 would round their sums with residuals as coarsely as it did the sums.
            return residuals + self.centres[places >> 32].astype(np.float64)

        return Nearness(scanned.xq, limits, errors, decode)


def _numbered(scanned: Scanned, lims: npt.NDArray[np.int64], D: Floats, places: Labels) -> Ranges:
    numbers = [
        scanned.of(np.array([row])).numbers(places[None, begin:end])[0]
        for row, (begin, end) in enumerate(pairwise(lims.tolist()))
    ]
    return lims, D, np.concatenate([np.empty(0, np.int64), *numbers])
