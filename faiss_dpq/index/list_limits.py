"""How far a search of inverted lists goes: how much of its lists it scans, and when it probes further ones."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from .. import _kernels
from ..codec import Floats
from ..search import lists as scan
from ..search.list_masks import admitted_members
from ..search.selection import Labels


def scanned_counts(keys: Labels, lists: _kernels.OpenLists, max_codes: int, at_least: int = 0) -> Labels:
    """How many vectors each query scans of each list, shape (nq, nprobe).

    As in FAISS, only vectors that the selector admits count towards `max_codes`. With `ensure_topk_full` a query scans
    `at_least` k of these, if its lists have so many, and a list that has been begun is scanned to its end.
    """
    if not max_codes or (lists.masks is None and not at_least):
        return scan.scanned_counts(keys, lists.sizes, max_codes)
    sizes = lists.sizes[lists.numbers]
    admitted_before = np.concatenate([[0], np.cumsum(admitted_members(lists))])
    firsts = np.zeros(len(lists.sizes), np.int64)
    firsts[lists.numbers] = np.cumsum(sizes) - sizes
    limit = max(max_codes, at_least)
    counts = np.where(keys >= 0, lists.sizes[keys], 0)
    admitted = np.zeros(len(keys), np.int64)
    for probe in range(keys.shape[1]):
        left = np.maximum(limit - admitted, 0)
        count = np.where(left > 0, counts[:, probe], 0)
        counts[:, probe] = count = count if at_least else np.minimum(count, left)
        first = firsts[keys[:, probe]]
        admitted += admitted_before[first + count] - admitted_before[first]
    return counts


def probed_until_full(
    keys: Labels,
    k: int,
    most: int,
    probe: Callable[[npt.NDArray[np.intp], int], Labels],
    admitted: Callable[[Labels], Labels],
) -> Labels:
    """The lists that queries probe until these have k vectors that may be found, each in its own time.

    Parameters
    ----------
    keys : array, shape (nq, nprobe), int64
        The lists that every query probes in any case.
    k : int
    most : int
        Lists that a query probes at most.
    probe : callable
        Of numbers of queries and a number of lists: these queries' nearest lists, nearest first, -1 for none.
    admitted : callable
        Of such an array: how many vectors of each list may be found.

    Returns
    -------
    keys : array, shape (nq, any number), int64
        -1 behind a query's last list.
    """
    nprobe = width = keys.shape[1]
    rows = [keys]
    queries = np.flatnonzero(admitted(keys).sum(axis=1) < k)
    order = [np.arange(len(keys))]
    while len(queries) and width < most:
        width = min(2 * width, most)
        wider = probe(queries, width)
        found = admitted(wider).cumsum(axis=1)
        enough = np.maximum((found < k).sum(axis=1) + 1, nprobe)
        wider[np.arange(width) >= enough[:, None]] = -1
        rows.append(wider)
        order.append(queries)
        queries = queries[found[:, -1] < k]
    result = np.full((len(keys), width), -1)
    for some, wider in zip(order, rows, strict=True):
        result[some, : wider.shape[1]] = wider
    return np.ascontiguousarray(result[:, : max(nprobe, int((result >= 0).sum(axis=1).max(initial=0)))])


def stop_after_empty_lists(
    counts: Labels,
    most_empty: int,
    derived: scan.DerivedLists,
    lists: _kernels.OpenLists,
    x: Floats,
    keys: Labels,
    thresh: float,
) -> None:
    """Set to 0 what a query would scan after `most_empty` lists in turn without a result."""
    empty = np.zeros(len(keys), np.int64)
    for probe in range(keys.shape[1] - 1):
        going_on = np.flatnonzero(empty < most_empty)
        only = going_on, slice(probe, probe + 1)
        lims = scan.range_search(derived, lists, x[going_on], keys[only], counts[only], thresh)[0]
        empty[going_on] = np.where(np.diff(lims) > 0, 0, empty[going_on] + 1)
        counts[empty == most_empty, probe + 1 :] = 0
