"""Results of shards become those of one index: in the order of (distance, id), never of arrival.

Every shard gives its k nearest in that order, and the k nearest of all are among them. Of an IndexDPQ they come so,
since a shard holds its codes in the order of their ids. An IndexIVFDPQ gives equal distances of different lists by the
nearer list; which of them it keeps at the k-th place is then decided anew, list by list.
"""

from collections.abc import Sequence

import faiss
import numpy as np

from ..codec import Floats
from ..index import IndexIVFDPQ
from ..index.base import RangeResult
from ..index.tensors import if_any
from ..index.wrappers import IndexPreTransform
from ..index.wrappers.wrapper import inner_parameters
from ..search.flat import MISSING
from ..search.selection import Labels
from .codec import leaf_of


def merge_results(
    D: Sequence[Floats], I: Sequence[Labels], k: int, metric: int = faiss.METRIC_L2
) -> tuple[Floats, Labels]:
    """The k nearest of the results of several searches of the same queries.

    Parameters
    ----------
    D, I : sequences of arrays, shape (n, any number) each
        Distances and ids of each search; an id of -1 is none.
    k : int
    metric : int
        faiss.METRIC_L2, where less is nearer, or faiss.METRIC_INNER_PRODUCT.

    Returns
    -------
    D : array, shape (n, k), float32
        Nearest first, equal ones by ascending id; +-FLT_MAX where there are fewer than k.
    I : array, shape (n, k), int64
        -1 where there are fewer.
    """
    distances, labels = np.concatenate(list(D), axis=1), np.concatenate(list(I), axis=1)
    sign = 1 if metric == faiss.METRIC_L2 else -1
    keys = np.where(labels < 0, np.inf, sign * distances)
    # Each search's results are in order: a stable sort is fast, and mostly leaves equal ones in the order of ids.
    order = np.argsort(keys, axis=1, kind="stable")
    keys, ids = np.take_along_axis(keys, order, axis=1), np.take_along_axis(labels, order, axis=1)
    wrong = np.flatnonzero(((keys[:, 1:] == keys[:, :-1]) & (ids[:, 1:] < ids[:, :-1])).any(axis=1))
    order[wrong] = np.lexsort((labels[wrong], sign * distances[wrong], labels[wrong] < 0))
    order = order[:, :k]
    merged = np.full((len(labels), k), sign * MISSING, np.float32), np.full((len(labels), k), -1, np.int64)
    found = order.shape[1]
    merged[0][:, :found], merged[1][:, :found] = (np.take_along_axis(a, order, axis=1) for a in (distances, labels))
    merged[0][merged[1] < 0] = sign * MISSING
    return merged


def merge_ranges(results: Sequence[RangeResult], metric: int = faiss.METRIC_L2) -> RangeResult:
    """The results of several range searches of the same queries, in the order of (distance, id)."""
    D, I = (np.concatenate([result[i] for result in results]) for i in (1, 2))
    bounds = [lims.astype(np.int64) for lims, _, _ in results]
    counts: list[Labels] = [lims[1:] - lims[:-1] for lims in bounds]
    queries = np.concatenate([np.repeat(np.arange(len(count)), count) for count in counts])
    order = np.lexsort((I, D if metric == faiss.METRIC_L2 else -D, queries))
    lims = np.concatenate([[0], np.cumsum(np.sum(counts, axis=0))]).astype(np.uint64)
    return lims, D[order], I[order]


def search_shard(
    shard: faiss.Index, x: Floats, k: int, params: faiss.SearchParameters | None = None
) -> tuple[Floats, Labels]:
    """The k nearest vectors of a shard, in the order of (distance, id); else as its own `search`."""
    leaf = leaf_of(shard)
    if not isinstance(leaf, IndexIVFDPQ):
        return shard.search(x, k, **if_any(params))
    # One more than asked for shows where the k-th place is shared.
    D, I = shard.search(x, k + 1, **if_any(params))
    merged = merge_results([D], [I], k, shard.metric_type)
    shared = np.flatnonzero((D[:, k - 1] == D[:, k]) & (I[:, k] >= 0))
    max_codes = leaf.max_codes if params is None else getattr(_of_lists(params), "max_codes", 0)
    if not len(shared) or max_codes:
        return merged  # a search of so many codes ends within a list, which the lists by themselves do not tell
    outer, within = shard, x[shared]
    while isinstance(outer, IndexPreTransform):
        within, outer, params = outer._apply(within, "search"), outer.index, _of_lists(params)
    keys = leaf.probed_lists(within, **if_any(params))
    for row, query, lists in zip(shared, within, keys, strict=True):
        D_of_lists, I_of_lists = leaf.search_preassigned(
            np.repeat(query[None], len(lists), axis=0), k, lists[:, None], **if_any(params)
        )
        best = merge_results([D_of_lists.reshape(1, -1)], [I_of_lists.reshape(1, -1)], k, shard.metric_type)
        merged[0][row], merged[1][row] = best[0][0], best[1][0]
    return merged


def _of_lists(params: faiss.SearchParameters | None) -> faiss.SearchParameters | None:
    """The parameters for the index in an IndexPreTransform."""
    if isinstance(params, faiss.SearchParametersPreTransform):
        return inner_parameters(params, "index_params")
    return params
