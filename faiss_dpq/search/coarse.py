"""Coarse-to-fine search: the nearest by a prefix of the levels are found, and these are compared by all levels.

The distances of what is found are exact. What the prefix ranks behind the candidates is not found: more candidates
find more.
"""

from __future__ import annotations

from typing import NamedTuple

import faiss
import numpy as np
import numpy.typing as npt

from .. import _kernels
from ..codec import Floats, threads
from . import flat, lists
from .derived import DerivedCodes
from .near import Ranges
from .selection import Labels

_WORTH_A_THREAD = 64  # queries


class Coarse(NamedTuple):
    """How a search narrows its candidates down: k * `k_factor` of them, by the first `levels` levels."""

    levels: int
    k_factor: float

    def candidates(self, k: int, n: int) -> int:
        """How many of n vectors are compared by all levels."""
        return max(1, min(int(min(k * self.k_factor, n)), n))


def search(
    coarse: Coarse,
    prefix: tuple[DerivedCodes, _kernels.CodeView],
    whole: tuple[DerivedCodes, _kernels.CodeView],
    mask: _kernels.Mask | None,
    xq: Floats,
    k: int,
) -> tuple[Floats, Labels]:
    """As `flat.search`, of those codes that are nearest by a prefix.

    Parameters
    ----------
    coarse : Coarse
    prefix, whole : tuples of DerivedCodes and CodeView
        The same codes at `coarse.levels` levels, and at those that results are compared by.
    mask, xq, k
        As in `flat.search`.
    """
    D, I = np.empty((len(xq), k), np.float32), np.empty((len(xq), k), np.int64)
    derived, view = whole
    vectors = flat.selected(_scanned(prefix, whole, len(xq)), mask, len(xq))
    norms = np.empty(len(xq), np.float32)
    candidates = np.empty((len(xq), coarse.candidates(k, vectors.admitted)), np.int64)
    for part in flat.blocks(derived, len(xq)):
        tables = flat.query_tables(derived, xq[part])
        norms[part], found = tables.norms, candidates[part]
        queries = tables.block(coarse.levels, in_any_order=True)
        flat.scan_block(vectors, queries, np.empty(found.shape, np.float32), found, coarse.levels)
        queries = tables.block(derived.levels)

        def rescore(cut: slice, part: slice = part, queries: _kernels.QueryBlock = queries) -> None:
            rows = slice(part.start + cut.start, part.start + cut.stop)
            _kernels.rescore(view, queries.slice(cut.start, cut.stop), candidates[rows], D[rows], I[rows])

        threads.run_slices(rescore, len(found), len(found) // _WORTH_A_THREAD)
    D, I = flat.delivered(D, I, derived.metric)
    if derived.metric == faiss.METRIC_L2:

        def all_candidates(rows: npt.NDArray[np.intp], reach: Floats) -> Ranges:
            D, I = np.empty((len(rows), candidates.shape[1]), np.float32), candidates[rows]
            for part in flat.blocks(derived, len(rows)):
                queries = flat.query_tables(derived, xq[rows[part]]).block(derived.levels)
                _kernels.rescore(view, queries, candidates[rows[part]], D[part], I[part])
            found = I >= 0
            return np.append(0, np.cumsum(found.sum(axis=1))), D[found], I[found]

        flat.nearness(derived, view, xq, norms).nearest(D, I, all_candidates)
    return D, I


def _scanned(
    prefix: tuple[DerivedCodes, _kernels.CodeView], whole: tuple[DerivedCodes, _kernels.CodeView], nq: int
) -> _kernels.CodeView:
    """The view of a prefix with what a scan for so many queries needs besides."""
    derived, view = prefix
    if nq >= _kernels.least_batch(derived.levels):
        return view
    if derived.levels <= _kernels.FEW_LEVELS:
        view = derived.for_few(view, nq)
        if view.order is not None:
            return view
    if whole[0].levels > _kernels.FEW_LEVELS:
        longer = whole[0].for_few(whole[1], nq)
        if longer.columns is not None:  # which searches of one query by all levels use, too
            return view.with_columns_of(longer)
    return derived.for_few(view, nq) if derived.levels > _kernels.FEW_LEVELS else view


def search_lists(
    coarse: Coarse,
    prefix: lists.DerivedLists,
    whole: lists.DerivedLists,
    opened: _kernels.OpenLists,
    xq: Floats,
    keys: Labels,
    counts: Labels,
    k: int,
    places: Labels | None = None,
) -> lists.Found:
    """As `lists.search`, of those codes that are nearest by a prefix; `prefix` and `whole` as in `search`."""
    whole.update(opened)
    n = coarse.candidates(k, int(counts.sum(axis=1).max(initial=0)))
    return lists.search(prefix, opened, xq, keys, counts, k, places, refined_by=(whole, n))
