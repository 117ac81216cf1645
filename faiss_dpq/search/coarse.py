"""Coarse-to-fine search: the nearest by a prefix of the levels are found, and these are compared by all levels.

The distances of what is found are exact. What the prefix ranks behind the candidates is not found: more candidates
find more.
"""

from __future__ import annotations

from typing import NamedTuple

import faiss
import numpy as np

from .. import _kernels
from ..codec import Floats, threads
from . import flat, lists
from .derived import DerivedCodes
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
    vectors = flat.selected(prefix[0].for_few(prefix[1], 1) if len(xq) == 1 else prefix[1], mask, len(xq))
    candidates = np.empty((len(xq), coarse.candidates(k, vectors.admitted)), np.int64)
    for part in flat.blocks(derived, len(xq)):
        tables = flat.query_tables(derived, xq[part])
        found = candidates[part]
        flat.scan_block(vectors, tables.block(coarse.levels), np.empty(found.shape, np.float32), found, coarse.levels)
        queries = tables.block(derived.levels)

        def rescore(cut: slice, part: slice = part, queries: _kernels.QueryBlock = queries) -> None:
            rows = slice(part.start + cut.start, part.start + cut.stop)
            _kernels.rescore(view, queries.slice(cut.start, cut.stop), candidates[rows], D[rows], I[rows])

        n_threads = min(faiss.omp_get_max_threads(), len(found) // _WORTH_A_THREAD)
        threads.run(rescore, [(cut,) for cut in threads.slices(len(found), max(1, n_threads))])
    return flat.delivered(D, I, derived.metric)


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
