"""Results that are so near that float32 sums cannot tell how near: they are compared again, by their reconstructions.

Eq. 30 adds and subtracts terms as large as the squared lengths of query and codewords. Where vectors lie in clusters
that are far apart, a distance within a cluster is a small difference of large terms, of which float32 holds few digits.
So a squared distance below `share` of the squared lengths, which quantized vectors of other data hardly have, is
replaced by that to the reconstruction, summed in float64. What a pair of query and vector gets depends on nothing else,
so that results are the same in every batch, prefix, selection and part of an index.
"""

# Annotations of nested functions would be evaluated at every call.
from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..codec import Floats, ProgressiveQuantizer
from .selection import Labels

SHARE = 2.0**-12  # of the squared lengths: nearer ones are compared again. Sums err by some 2^-24 of the lengths
LIST_SHARE = 2.0**-10  # likewise of what sums of lists add up: see `list_limits_and_errors`
OTHER_ROUNDINGS = 1 + 2.0**-20  # of limits that the kernels compare with: what is between is looked at
_ROUNDINGS = 8  # of 2^-24 of the squared lengths, besides those of adding levels: several times what was measured
_DECODED = 1 << 14  # reconstructions held at a time

#: lims, D and I of a range search
Ranges = tuple[npt.NDArray[np.int64], Floats, Labels]


class Nearness(NamedTuple):
    """Queries, and which of their distances are to be compared again.

    Attributes
    ----------
    xq : array, shape (nq, d), float32
    limits : array, shape (nq,), float32
        Squared distances below it are compared again.
    errors : array, shape (nq,), float32
        How far float32 sums may put those from their real values.
    decode : callable
        Reconstructions (n, d) of the number of a query and those of vectors, int64 (n,).
    """

    xq: Floats
    limits: Floats
    errors: Floats
    decode: Callable[[int, Labels], npt.NDArray[np.floating]]

    def nearest(self, D: Floats, I: Labels, within: Callable[[npt.NDArray[np.intp], Floats], Ranges]) -> None:
        """Put right the k nearest that float32 sums have given, shape (nq, k), in place.

        within : of numbers of queries and squared distances, one each, all that float32 sums find nearer than these.
        """
        rows = np.flatnonzero((D[:, 0] < self.limits) & (I[:, 0] >= 0))
        if not len(rows):
            return
        last, margin = D[rows, -1], 2 * self.errors[rows]
        # Others than the k found may be nearer in truth than the last of them.
        wide = rows[(I[rows, -1] >= 0) & (last < self.limits[rows] + margin)]
        for row in np.setdiff1d(rows, wide).tolist():
            found = int((I[row] >= 0).sum())
            D[row, :found], I[row, :found] = self._sorted(row, D[row, :found], I[row, :found], found)
        if len(wide):
            # Beyond the last at least by one step: errors of lengths below 1e-19 are 0 in float32.
            reach = np.nextafter(D[wide, -1] + 2 * self.errors[wide], np.float32(np.inf))
            lims, more_D, more_I = within(wide, reach)
            for row, (begin, end) in zip(wide.tolist(), pairwise(lims.tolist()), strict=True):
                D[row], I[row] = self._sorted(row, more_D[begin:end], more_I[begin:end], D.shape[1])

    def within(self, thresh: float, find: Callable[[float | Floats], Ranges]) -> Ranges:
        """All that is nearer than a squared distance.

        find : of squared distances, one or (nq,), all that float32 sums find nearer than these, nearest first.
        """
        doubtful = self.limits + self.errors > thresh
        reach = np.float32(thresh) + np.where(doubtful, self.errors, np.float32(0)) if doubtful.any() else thresh
        lims, D, I = find(reach)
        begins = np.minimum(lims[:-1], max(len(D) - 1, 0))
        again = doubtful | ((lims[:-1] < lims[1:]) & (D[begins] < self.limits) if len(D) else False)
        if not again.any():
            return lims, D, I
        distances, labels = [], []
        for row, (begin, end) in enumerate(pairwise(lims.tolist())):
            of_row = D[begin:end], I[begin:end]
            if again[row]:
                of_row = self._sorted(row, *of_row, end - begin)
            nearer = np.searchsorted(of_row[0], np.float32(thresh))
            distances.append(of_row[0][:nearer])
            labels.append(of_row[1][:nearer])
        lims = np.append(0, np.cumsum([len(I) for I in labels]))
        return lims, np.concatenate(distances), np.concatenate(labels)

    def _sorted(self, row: int, D: Floats, I: Labels, k: int) -> tuple[Floats, Labels]:
        """The k nearest of some vectors, with the distances to the reconstructions of the near ones."""
        D = D.copy()
        limit = self.limits[row]
        near = np.flatnonzero(limit > D)
        for start in range(0, len(near), _DECODED):
            part = near[start : start + _DECODED]
            moved = self.decode(row, I[part]) - self.xq[row].astype(np.float64)
            D[part] = np.einsum("ij,ij->i", moved, moved)
        order = np.lexsort((I, D))[:k]
        return D[order], I[order]


def limits_and_errors(quantizer: ProgressiveQuantizer, levels: int, norms: Floats) -> tuple[Floats, Floats]:
    """`Nearness.limits` and `errors` of queries with squared norms, after centring."""
    squares = (np.sqrt(norms) + np.float32(quantizer.common_length(levels))) ** 2
    return np.float32(SHARE) * squares, np.float32(_relative_error(quantizer, levels)) * squares


def list_limits_and_errors(
    quantizer: ProgressiveQuantizer, levels: int, norms: Floats, farthest: float
) -> tuple[Floats, Floats]:
    """The same in lists, of which no centre is longer than `farthest`, after centring.

    The sums hold products of residual codewords with the query, with the list's centre and with each other. A centre
    whose list holds something near is hardly longer than query and codewords together.
    """
    lengths, common = np.sqrt(norms), np.float32(quantizer.common_length(levels))
    squares = (2 * (lengths + np.minimum(lengths + common, np.float32(farthest))) + common) * common
    return np.float32(LIST_SHARE) * squares, np.float32(_relative_error(quantizer, levels)) * squares


def _relative_error(quantizer: ProgressiveQuantizer, levels: int) -> float:
    roundings: float = _ROUNDINGS + levels
    if quantizer.cross_tables is not None:  # by which cross terms are sums in float32, too
        roundings += levels**2 / 4
    return 2.0**-24 * roundings
