"""Codes tried on some vectors: trained with little effort, filled, searched, measured."""

import time
from dataclasses import dataclass, field
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from .. import Effort, IndexDPQ
from .. import vectors as readers
from ..index.factory import index_factory
from . import intervals
from .intervals import Hits, Share

IVF_FROM = 1_000_000  # vectors: below, searching all takes a few milliseconds at most
LEAST_VECTORS = 1000

_QUERIES = 1000
# Numbers (vectors times dimensions) that are stored and trained on: for 384 dimensions 52,000 and 10,400 vectors.
_STORED_NUMBERS, _STORED = 20_000_000, (20_000, 100_000)
_TRAINED_NUMBERS, _TRAINED = 4_000_000, (5_120, 20_480)
_EFFORT = Effort(iterations=4, beam_size=2, max_points_per_centroid=320, kmeans_iterations=3)
_MORE = 1.1  # times as many vectors as were measured: below, what is to be expected of them is the same
_SEARCHES, _SEARCH_S = 5, 1.0  # that are timed, at most, and seconds after which there is no further one
_UNIT = 1e-3  # by how much the length of a unit vector may differ from 1
_GRAPH_FROM = 16_384  # lists, of which a graph finds the nearest faster than a comparison with all
_NPROBES = (4, 8, 16, 32, 64)
_AS_GOOD = 0.005  # recall@k that fewer lists may lose

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Measured:
    """One code, measured.

    Attributes
    ----------
    factory : str
        For `faiss_dpq.index_factory`.
    size : int
        Bytes a vector.
    metric : int
        faiss.METRIC_L2 or METRIC_INNER_PRODUCT.
    recall_at_1, recall_at_k : Share
        How often the true nearest neighbour is the first, or among the first k results: measured.
    expected_at_1, expected_at_k : Share
        What is to be expected among all n vectors.
    memory : int
        Bytes of n codes, and of what is derived from them for searches.
    fixed_memory : int
        Bytes of the codebooks and of the tables of their products, whatever n is.
    queries_per_second : float
        In one batch, among the vectors that were measured on.
    hits : array, shape (2, nq)
        Which queries found their nearest neighbour first, or among k results.
    """

    factory: str
    size: int
    metric: int
    recall_at_1: Share
    recall_at_k: Share
    expected_at_1: Share
    expected_at_k: Share
    memory: int
    fixed_memory: int
    queries_per_second: float
    hits: Hits = field(repr=False, compare=False)


def vectors_needed(d: int) -> int:
    """So many vectors of d dimensions are used, a random choice, if more are given."""
    return _within(_STORED_NUMBERS // d, _STORED) + _QUERIES


def is_continued(n: int, n_measured: int) -> bool:
    """Whether there are so many more vectors than were measured that less is to be expected of them."""
    return n > _MORE * n_measured


def _within(count: int, limits: tuple[int, int]) -> int:
    return max(limits[0], min(limits[1], count))


class Trial:
    """Vectors, queries and their true neighbours, and what codes of the vectors have found.

    Parameters
    ----------
    x : array, shape (n, d)
        At least LEAST_VECTORS, of which a random choice is used.
    queries : array, shape (nq, d), or None to take some out of x
    k : int
        Results a query.
    n : int
        Vectors that will be stored.
    seed : int
    bar : tqdm bar
        Moved on by every training.

    Attributes
    ----------
    rows : list of Measured
        What has been measured, in order.
    is_unit : bool
        Whether all vectors and queries have length 1.
    d, k, n, n_measured, n_trained, n_queries : int
    """

    def __init__(self, x: npt.NDArray[Any], queries: npt.ArrayLike | None, k: int, n: int, seed: int, bar: Any) -> None:
        self.k, self.n, self.d, self._seed, self._bar = k, n, x.shape[1], seed, bar
        order = np.random.default_rng(seed).permutation(len(x))[: vectors_needed(self.d)]
        if queries is None:
            held_out = min(_QUERIES, len(x) // 10)
            self._queries, order = _rows(x, order[:held_out], "x"), order[held_out:]
        else:
            given = np.asarray(queries)
            if given.ndim != 2 or given.shape[1] != self.d or not len(given):
                raise ValueError(f"suggest: queries have shape {given.shape}, expected (nq, {self.d})")
            self._queries = _rows(given, np.arange(len(given)), "queries")
        self._base = _rows(x, order, "x")
        self.n_measured, self.n_queries = len(self._base), len(self._queries)
        self.n_trained = min(self.n_measured, _within(_TRAINED_NUMBERS // self.d, _TRAINED))
        self.is_unit = all(
            bool((abs(np.linalg.norm(part, axis=1) - 1) < _UNIT).all()) for part in (self._base, self._queries)
        )
        self._counts = np.array([self.n_measured // 4, self.n_measured // 2, self.n_measured])
        self._expected_of = n if is_continued(n, self.n_measured) else self.n_measured
        self._nearest: dict[int, npt.NDArray[np.int64]] = {}
        self._measured: dict[tuple[int, int], Measured] = {}

    @property
    def rows(self) -> list[Measured]:
        """What has been measured, in order."""
        return list(self._measured.values())

    def measure(self, size: int, metric: int) -> Measured:
        """A code of so many bytes, one a level, searched by a metric."""
        if (size, metric) not in self._measured:
            self._bar.set_postfix_str(f"{size} bytes", refresh=True)
            self._measured[size, metric] = self._measure(size, metric)
            self._bar.update()
        return self._measured[size, metric]

    def _measure(self, size: int, metric: int) -> Measured:
        index = IndexDPQ(self.d, size, 8, metric)
        index.rq.cp.seed = self._seed + 1234
        index.train(self._base[: self.n_trained], effort=_EFFORT)
        hits = []
        for count, nearest in zip(self._counts.tolist(), self._true_neighbours(metric), strict=True):
            index.add(self._base[index.ntotal : count])
            hits.append(self._hits(index, nearest))
        usage = index.memory_usage()
        per_vector = (usage["codes"] + usage["derived"]) / index.ntotal
        found = np.stack(hits, axis=1)  # [rank 1 or k][number of vectors][query]
        at_1, at_k = (intervals.share(of_rank[-1]) for of_rank in found)
        expected_at_1, expected_at_k = (
            intervals.expected(of_rank, self._counts, self._expected_of) for of_rank in found
        )
        return Measured(
            f"DPQ{size}x8",
            size,
            metric,
            at_1,
            at_k,
            expected_at_1,
            expected_at_k,
            int(per_vector * self.n),
            usage["codebooks"] + usage["tables"],
            self._speed(index),
            found[:, -1],
        )

    def _hits(self, index: faiss.Index, nearest: npt.NDArray[np.int64]) -> Hits:
        """Which queries find their nearest neighbour first, or among k results: shape (2, nq)."""
        found = index.search(self._queries, self.k)[1] == nearest[:, None]
        return np.stack([found[:, 0], found.any(axis=1)])

    def _speed(self, index: faiss.Index) -> float:
        """Queries a second, of the fastest search; one was before them, so that nothing is derived any more."""
        seconds: list[float] = []
        while len(seconds) < _SEARCHES and sum(seconds) < _SEARCH_S:
            started = time.perf_counter()
            index.search(self._queries, self.k)
            seconds.append(time.perf_counter() - started)
        return self.n_queries / min(seconds)

    def _true_neighbours(self, metric: int) -> npt.NDArray[np.int64]:
        """Numbers of the nearest vectors among ever more of them: shape (counts, nq)."""
        if metric not in self._nearest:
            self._nearest[metric] = np.stack(
                [faiss.knn(self._queries, self._base[:count], 1, metric)[1][:, 0] for count in self._counts]
            )
        return self._nearest[metric]

    def with_lists(self, best: Measured) -> tuple[str, str]:
        """The factory string with inverted lists for n vectors, and a note about what they find here."""
        n_lists = _lists_of(self.n_measured)
        self._bar.set_postfix_str(f"{n_lists} lists", refresh=True)
        index = index_factory(self.d, f"IVF{n_lists},{best.factory}", best.metric)
        index.train(self._base[: max(self.n_trained, min(40 * n_lists, self.n_measured))], effort=_EFFORT)
        index.add(self._base)
        nearest = self._true_neighbours(best.metric)[-1]
        hits = {}
        for nprobe in _NPROBES:
            index.nprobe = nprobe
            hits[nprobe] = self._hits(index, nearest)
        most = hits[_NPROBES[-1]][1].mean()
        nprobe = next(nprobe for nprobe in _NPROBES if hits[nprobe][1].mean() >= most - _AS_GOOD)
        index.nprobe = nprobe
        self._bar.update()
        lists = _lists_of(self.n)
        factory = f"IVF{lists}{'_HNSW32' if lists >= _GRAPH_FROM else ''},{best.factory}"
        at_1, at_k = (intervals.share(of_rank) for of_rank in hits[nprobe])
        return factory, (
            f"{self.n:,} vectors ask for inverted lists. {n_lists} lists of the {self.n_measured:,} vectors here, "
            f"nprobe={nprobe}: R@1 {at_1}, R@{self.k} {at_k}, {self._speed(index):,.0f} queries/s. Begin with "
            f"nprobe={nprobe} and raise it until recall stops growing (faiss_dpq.ParameterSpace)."
        )


def _rows(x: npt.NDArray[Any], rows: npt.NDArray[np.int64], name: str) -> Floats:
    """Some rows, in the order given, checked and as float32; read in ascending order, for x may be mapped."""
    order = np.argsort(rows)
    read = readers.ArrayRows(x, f"suggest: {name}").rows(rows[order])
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return read[inverse]


def _lists_of(n: int) -> int:
    """A power of two near 4 sqrt(n), at most a list for 40 vectors."""
    return 1 << max(0, min(round(np.log2(4 * np.sqrt(n))), int(np.log2(max(1, n / 40)))))
