"""Queries that have no distances: with NaN or infinite values, they find nothing, as in FAISS's L2 indexes."""

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from ..codec import Floats
from ..search.flat import MISSING
from ..search.selection import Labels

_SMALL = 1e15  # far below what float32 can square and sum over any number of dimensions

Rows = npt.NDArray[np.bool_]


def _finite_queries(x: Floats) -> tuple[Floats, Rows | None]:
    """The queries, with zeros in place of those that are not finite, and which those are.

    None, at the cost of one look at the values, if all are so small that no distance overflows.
    """
    if not x.size or np.abs(x).max() < _SMALL:
        return x, None
    lost: Rows = ~np.all(np.isfinite(x), axis=1)
    return np.where(lost[:, None], np.float32(0), x), lost


def nearest_of_finite(
    x: Floats, metric: int, search: Callable[[Floats], tuple[npt.NDArray[Any], ...]]
) -> tuple[npt.NDArray[Any], ...]:
    """What `search` gives of finite queries: D, I and more, shape (n, k, ...).

    Lost queries, and results whose distance overflowed, come out as not found, behind those that are.
    """
    x, lost = _finite_queries(x)
    results = search(x)
    if lost is None:
        return results
    D, I = results[:2]
    none = ~np.isfinite(D) | lost[:, None]
    I[none] = -1
    D[none] = -MISSING if metric == faiss.METRIC_INNER_PRODUCT else MISSING
    order = np.argsort(none, axis=1, kind="stable")
    rows = np.arange(len(order))[:, None]
    return tuple(result[rows, order] for result in results)


def range_of_finite(
    x: Floats, search: Callable[[Floats], tuple[npt.NDArray[np.uint64], Floats, Labels]]
) -> tuple[npt.NDArray[np.uint64], Floats, Labels]:
    """What a range search gives of finite queries; lost ones, and distances that overflowed, are left out."""
    x, lost = _finite_queries(x)
    lims, D, I = search(x)
    if lost is None:
        return lims, D, I
    kept = np.isfinite(D) & ~np.repeat(lost, np.diff(lims).astype(np.int64))
    kept_before = np.concatenate([[0], np.cumsum(kept)]).astype(lims.dtype)
    return kept_before[lims.astype(np.int64)], D[kept], I[kept]
