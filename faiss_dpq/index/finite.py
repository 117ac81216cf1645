"""Queries that have no distances: with NaN or infinite values, they find nothing, as in FAISS's L2 indexes."""

import faiss
import numpy as np
import numpy.typing as npt

from ..codec import Floats
from ..search.flat import MISSING
from ..search.selection import Labels

_SMALL = 1e15  # far below what float32 can square and sum over any number of dimensions

Rows = npt.NDArray[np.bool_]


def finite_queries(x: Floats) -> tuple[Floats, Rows | None]:
    """The queries, with zeros in place of those that are not finite, and which those are.

    None, at the cost of one look at the values, if all are so small that no distance overflows.
    """
    if not x.size or np.abs(x).max() < _SMALL:
        return x, None
    lost: Rows = ~np.all(np.isfinite(x), axis=1)
    return np.where(lost[:, None], np.float32(0), x), lost


def drop_lost(D: Floats, I: Labels, lost: Rows | None, metric: int) -> None:
    """Make results of lost queries, and those whose distance overflowed, results that were not found; in place."""
    if lost is None:
        return
    none = ~np.isfinite(D) | lost[:, None]
    I[none] = -1
    D[none] = -MISSING if metric == faiss.METRIC_INNER_PRODUCT else MISSING
    order = np.argsort(none, axis=1, kind="stable")
    D[:], I[:] = np.take_along_axis(D, order, axis=1), np.take_along_axis(I, order, axis=1)


def drop_lost_ranges(
    lims: npt.NDArray[np.uint64], D: Floats, I: Labels, lost: Rows | None
) -> tuple[npt.NDArray[np.uint64], Floats, Labels]:
    """The results of a range search without those of lost queries, and without distances that overflowed."""
    if lost is None:
        return lims, D, I
    kept = np.isfinite(D) & ~np.repeat(lost, np.diff(lims).astype(np.int64))
    kept_before = np.concatenate([[0], np.cumsum(kept)]).astype(lims.dtype)
    return kept_before[lims.astype(np.int64)], D[kept], I[kept]
