"""How good the results of an index are: mean average precision, precision-recall and precision@R from labels, recall.

All measures come from searches of a FAISS index, ours or any other: a `faiss.IndexFlat` gives those of unquantized
features, `params=SearchParametersDPQ(levels=l)` those of the codes' first l levels. Queries are searched in blocks, so
that a ranking of the whole database (k = ntotal) takes bounded memory.

What is relevant. A database vector is relevant to a query if they share a label: with one label each, arrays of shape
(n,), if the labels are equal; with several, multi-hot arrays of shape (n, c), if any label is set in both.

What is measured, following the protocol of hashing papers (DVSQ, HashNet, DPQ). With rel_i = 1 where the i-th result is
relevant and P@i = Σ_{j≤i} rel_j / i,

    AP@R = Σ_{i≤R} rel_i · P@i  /  Σ_{i≤R} rel_i          mAP@R = the mean of AP@R over the queries

The divisor is the number of relevant vectors *among the first R*, not in the database. With R = ntotal the two are the
same, and AP is scikit-learn's `average_precision_score` of the ranking. A query without any relevant result counts as
AP = 0; the programs of those papers leave it out of the mean, which rewards finding nothing. (With R = ntotal there is
no such query, unless the database lacks its label.)

Ties. Short codes give many vectors the same distance: with 8 bits a database of 64,000 has 250 vectors a codeword. By
default results count in the order in which the index returns them; IndexDPQ returns equal ones by ascending id. In a
database in random order (as `faiss_dpq.nn.data.retrieval_protocol` makes it) that is a fair draw, and what the papers'
programs do; in a database sorted by class it is not. `ties="threshold"` does not depend on the order: P@i is taken at
the end of the run of equal distances that i lies in, as scikit-learn does with equal scores.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import faiss
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]

_BLOCK_NUMBERS = 1 << 21  # results, or pairs of query and vector, held at a time: some 24 MB arrays of them


@dataclass(frozen=True)
class Evaluation:
    """The measures of one ranking of R results a query.

    Attributes
    ----------
    average_precision : array, shape (nq,), float64
        AP@R of every query.
    precision : array, shape (R,), float64
        precision[r - 1] is P@r: the share of relevant vectors among the first r, averaged over the queries.
    recall : array, shape (R,), float64
        recall[r - 1] is the share of all relevant vectors of the database that are among the first r, averaged over
        the queries; a query without relevant vectors counts as 0.
    """

    average_precision: Doubles
    precision: Doubles
    recall: Doubles

    @property
    def mean_average_precision(self) -> float:
        """mAP@R."""
        return float(self.average_precision.mean())


def evaluate(
    index: faiss.Index,
    xq: Array,
    query_labels: npt.ArrayLike,
    database_labels: npt.ArrayLike,
    R: int | None = None,
    params: faiss.SearchParameters | None = None,
    *,
    ties: Literal["order", "threshold"] = "order",
) -> Evaluation:
    """All measures from one search of every query.

    Parameters
    ----------
    index : faiss.Index
        Any index that holds the database; its ids are rows of `database_labels`.
    xq : array, shape (nq, d), float32
    query_labels : array, shape (nq,) of integers, or (nq, c) of bool or non-negative numbers (multi-hot)
    database_labels : array, shape (n,) or (n, c), of the same kind
        The label of every id.
    R : int, optional
        Results that count for every query; all (`index.ntotal`) by default, and if R is larger.
    params : faiss.SearchParameters, optional
        Passed to the search: nprobe, a selector, the prefix `levels` of an IndexDPQ. What a search does not find
        counts as not relevant.
    ties : "order" or "threshold"
        How average precision treats equal distances; see the module's description.

    Raises
    ------
    ValueError
        If the index or the set of queries is empty, labels do not fit, R < 1, or `ties` is not one of the two.
    """
    R = _checked_ranks(index, R)
    if ties not in ("order", "threshold"):
        raise ValueError(f'evaluate: ties is {ties!r}, expected "order" or "threshold"')
    relevance = _Relevance(query_labels, database_labels, len(xq), index.ntotal)
    ranks = np.arange(1, R + 1)
    average_precision = np.zeros(len(xq))
    precision, recall = np.zeros(R), np.zeros(R)
    for block, D, I in _searched(index, xq, R, params, max(R, relevance.numbers_a_query)):
        hits, n_relevant = relevance.of_results(block, I)
        found = np.cumsum(hits, axis=1)
        at_rank = found / ranks
        precision += at_rank.sum(axis=0)
        recall += (found / np.maximum(n_relevant, 1)[:, None]).sum(axis=0)
        if ties == "threshold":
            at_rank = np.take_along_axis(at_rank, _ends_of_runs(D), axis=1)
        average_precision[block] = (at_rank * hits).sum(axis=1) / np.maximum(found[:, -1], 1)
    return Evaluation(average_precision, precision / len(xq), recall / len(xq))


def mean_average_precision(
    index: faiss.Index,
    xq: Array,
    query_labels: npt.ArrayLike,
    database_labels: npt.ArrayLike,
    R: int | None = None,
    params: faiss.SearchParameters | None = None,
    *,
    ties: Literal["order", "threshold"] = "order",
) -> float:
    """mAP@R; parameters and errors as `evaluate`."""
    return evaluate(index, xq, query_labels, database_labels, R, params, ties=ties).mean_average_precision


def precision_recall(
    index: faiss.Index,
    xq: Array,
    query_labels: npt.ArrayLike,
    database_labels: npt.ArrayLike,
    R: int | None = None,
    params: faiss.SearchParameters | None = None,
) -> tuple[Doubles, Doubles]:
    """The precision-recall curve: precision and recall, averaged over the queries, after 1, 2, ... R results.

    Parameters and errors as `evaluate`.

    Returns
    -------
    precision, recall : arrays, shape (R,), float64
    """
    evaluation = evaluate(index, xq, query_labels, database_labels, R, params)
    return evaluation.precision, evaluation.recall


def precision_at(
    index: faiss.Index,
    xq: Array,
    query_labels: npt.ArrayLike,
    database_labels: npt.ArrayLike,
    ranks: npt.ArrayLike,
    params: faiss.SearchParameters | None = None,
) -> Doubles:
    """Precision@R at several R: the share of relevant vectors among the first R results, averaged over the queries.

    Parameters
    ----------
    index, xq, query_labels, database_labels
        As `evaluate`.
    ranks : int or sequence of int
        Each between 1 and `index.ntotal`.
    params
        As `evaluate`.

    Returns
    -------
    precision : array of the shape of `ranks`, float64

    Raises
    ------
    ValueError
        If a rank is out of range, and as `evaluate`.
    """
    wanted = np.asarray(ranks)
    if wanted.size == 0 or wanted.dtype.kind not in "iu" or wanted.min() < 1 or wanted.max() > index.ntotal:
        raise ValueError(f"precision_at: ranks is {ranks!r}, expected whole numbers from 1 to ntotal={index.ntotal}")
    evaluation = evaluate(index, xq, query_labels, database_labels, int(wanted.max()), params)
    return evaluation.precision[wanted - 1]


def recall_at(
    index: faiss.Index,
    xq: Array,
    nearest: Array,
    ranks: Sequence[int],
    params: faiss.SearchParameters | None = None,
) -> Doubles:
    """1-recall@R at several R: the share of queries whose true nearest neighbour is among the first R results.

    The share of the k true nearest among the first k is `faiss.contrib.evaluation.knn_intersection_measure`.

    Parameters
    ----------
    index : faiss.Index
    xq : array, shape (nq, d), float32
    nearest : array, shape (nq,) or (nq, k), int64
        The id of every query's true nearest neighbour (its first column).
    ranks : sequence of int
    params : faiss.SearchParameters, optional

    Returns
    -------
    recall : array, shape (len(ranks),), float64

    Raises
    ------
    ValueError
        If there are no queries or `nearest` has another number of rows, or a rank is below 1.
    """
    nearest = np.asarray(nearest)
    if not len(xq) or len(nearest) != len(xq):
        raise ValueError(f"recall_at: xq has {len(xq)} rows and nearest {len(nearest)}, expected as many, at least 1")
    if min(ranks, default=0) < 1:
        raise ValueError(f"recall_at: ranks is {ranks!r}, expected numbers of at least 1")
    true_ids = nearest.reshape(len(xq), -1)[:, :1]
    found = np.zeros(len(ranks))
    for block, _, I in _searched(index, xq, max(ranks), params, max(ranks)):
        hits = np.cumsum(true_ids[block] == I, axis=1)
        found += (hits[:, np.asarray(ranks) - 1] > 0).sum(axis=0)
    return found / len(xq)


def _checked_ranks(index: faiss.Index, R: int | None) -> int:
    if index.ntotal == 0:
        raise ValueError("evaluate: the index is empty, expected it to hold the database")
    if R is None:
        return int(index.ntotal)
    if R < 1:
        raise ValueError(f"evaluate: R is {R}, expected at least 1")
    return int(min(R, index.ntotal))


def _searched(
    index: faiss.Index, xq: Array, k: int, params: faiss.SearchParameters | None, numbers_a_query: int
) -> Iterator[tuple[slice, Array, Array]]:
    """The results of all queries, a block of them at a time, of which the caller holds so many numbers a query."""
    step = max(1, _BLOCK_NUMBERS // numbers_a_query)
    for start in range(0, len(xq), step):
        block = slice(start, min(start + step, len(xq)))
        D, I = index.search(xq[block], k, params=params)
        yield block, D, I


def _ends_of_runs(D: Array) -> npt.NDArray[np.int64]:
    """For every place of a ranking, the last place with the same distance: (nq, k) to (nq, k)."""
    k = D.shape[1]
    is_last = np.ones(D.shape, bool)
    is_last[:, :-1] = D[:, 1:] != D[:, :-1]
    places = np.where(is_last, np.arange(k), k)
    return np.minimum.accumulate(places[:, ::-1], axis=1)[:, ::-1]


class _Relevance:
    """Which database vectors share a label with which query."""

    def __init__(
        self, query_labels: npt.ArrayLike, database_labels: npt.ArrayLike, n_queries: int, n_database: int
    ) -> None:
        self._queries = _checked_labels(query_labels, "query_labels")
        self._database = _checked_labels(database_labels, "database_labels")
        if not n_queries or len(self._queries) != n_queries:
            raise ValueError(
                f"evaluate: xq has {n_queries} rows and query_labels {len(self._queries)}, expected as many, at least 1"
            )
        if len(self._database) < n_database:
            raise ValueError(
                f"evaluate: database_labels has {len(self._database)} rows, the index holds {n_database} vectors"
            )
        if self._queries.shape[1:] != self._database.shape[1:]:
            raise ValueError(
                f"evaluate: query_labels has shape {self._queries.shape} and database_labels {self._database.shape}, "
                "expected (nq,) and (n,), or (nq, c) and (n, c)"
            )

    @property
    def numbers_a_query(self) -> int:
        """What `of_results` holds besides the results."""
        return 1 if self._database.ndim == 1 else len(self._database)

    def of_results(self, queries: slice, ids: Array) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
        """Which results of some queries are relevant, and how many vectors of the database are.

        Parameters
        ----------
        queries : slice
            b of them.
        ids : array, shape (b, k), int64
            -1 for a missing result, which is not relevant.

        Returns
        -------
        hits : array, shape (b, k), bool
        n_relevant : array, shape (b,), int64
        """
        if ids.max() >= len(self._database):
            raise ValueError(
                f"evaluate: the index returned the id {ids.max()}, database_labels has {len(self._database)} rows"
            )
        wanted = self._queries[queries]
        if self._database.ndim == 1:
            hits, n_relevant = self._database[ids] == wanted[:, None], self._frequencies(wanted)
        else:
            shared = wanted @ self._database.T > 0
            hits, n_relevant = np.take_along_axis(shared, ids, axis=1), shared.sum(axis=1)
        return hits & (ids >= 0), n_relevant

    def _frequencies(self, labels: Array) -> npt.NDArray[np.int64]:
        """How often single labels occur in the database."""
        values, counts = np.unique(self._database, return_counts=True)
        places = np.minimum(np.searchsorted(values, labels), len(values) - 1)
        return np.where(values[places] == labels, counts[places], 0)


def _checked_labels(labels: npt.ArrayLike, name: str) -> Array:
    array = np.asarray(labels)
    if array.ndim == 1 and array.dtype.kind in "iu":
        return array
    if array.ndim == 2 and array.dtype.kind in "biuf":
        # Only whether a label is set counts; products of 0 and 1 are exact in float32.
        if not (array >= 0).all():
            raise ValueError(f"evaluate: {name} has negative or NaN values, expected 0 for labels that are not set")
        return (array > 0).astype(np.float32)
    raise ValueError(
        f"evaluate: {name} has shape {array.shape} and type {array.dtype}, "
        "expected (n,) integers or (n, c) bool or numbers"
    )
