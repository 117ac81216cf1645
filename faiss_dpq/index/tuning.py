"""Which coarse-to-fine search is the fastest that keeps enough of the exact results."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from ..search.selection import Labels
from .parameters import searched_within
from .quantized import Quantized

_ROUNDS = 3
_STEP = 1.125  # between two factors that are tried, about


@dataclass(frozen=True, order=True)
class CoarsePoint:
    """One measured search.

    Attributes
    ----------
    coarse_levels, k_factor
        0 and 1 for the exact search.
    share : float
        Of the exact results, how many it found.
    seconds : float
        What all queries together took: the least of some rounds.
    """

    coarse_levels: int
    k_factor: float
    share: float
    seconds: float


@dataclass(frozen=True)
class CoarseTuning:
    """What `tune_coarse` measured: the search that was `chosen`, the `exact` one, and all that reached the target."""

    chosen: CoarsePoint
    exact: CoarsePoint
    points: list[CoarsePoint] = field(default_factory=list)


def tune_coarse(
    index: faiss.Index, queries: npt.ArrayLike, k: int, target: float = 0.995, batch: int | None = None
) -> CoarseTuning:
    """Set `coarse_levels` and `k_factor` of an index to the fastest pair that keeps a share of the exact results.

    For every prefix length in question, the least factor that reaches the target is searched for, and then timed, with
    the number of threads that FAISS is set to. Where none of them is faster than the exact search, that is set.

    Parameters
    ----------
    index : faiss.Index
        An IndexDPQ or IndexIVFDPQ, or one of this package's wrappers around such; it holds the vectors that will be
        searched, and has the other parameters, such as `nprobe`, that it will be searched with.
    queries : array, shape (n, d)
        As those to come; some hundreds. Not vectors that the index holds: these find themselves too easily.
    k : int
        Results a query.
    target : float
        The share of the exact search's k nearest to be found, above 0 and at most 1.
    batch : int, optional
        How many queries a call of the searches to come has; all of `queries` unless given. What is the fastest depends
        on it.

    Returns
    -------
    tuning : CoarseTuning

    Raises
    ------
    TypeError
        If there is no IndexDPQ or IndexIVFDPQ within the index.
    ValueError
        If the index or `queries` is empty, or `target` or `batch` is out of its range.
    RuntimeError, AssertionError
        As `search`; the index then has the parameters that it had.
    """
    if not 0 < target <= 1:
        raise ValueError(f"tune_coarse: target is {target}, expected above 0 and at most 1")
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise ValueError(f"tune_coarse: batch is {batch!r}, expected an int >= 1, or None")
    leaves = _leaves(index)
    if not leaves:
        raise TypeError(f"tune_coarse: index is a {type(index).__name__} without an IndexDPQ or IndexIVFDPQ within")
    if not index.ntotal:
        raise ValueError("tune_coarse: index is empty, expected one that holds the vectors to be searched")
    x = np.asarray(queries)
    if x.ndim != 2:
        raise ValueError(f"tune_coarse: queries has {x.ndim} dimensions, expected 2: (n, {index.d})")
    if not len(x):
        raise ValueError("tune_coarse: queries is empty, expected some hundreds")
    before = [(leaf.coarse_levels, leaf.k_factor) for leaf in leaves]
    try:
        tuning = _Tuner(index, leaves, x, k, target, batch or len(x)).tune()
    except BaseException:
        for leaf, (coarse_levels, k_factor) in zip(leaves, before, strict=True):
            leaf.coarse_levels, leaf.k_factor = coarse_levels, k_factor
        raise
    _set(leaves, tuning.chosen.coarse_levels, tuning.chosen.k_factor)
    return tuning


class _Tuner:
    def __init__(
        self, index: faiss.Index, leaves: list[Quantized], x: npt.NDArray[Any], k: int, target: float, batch: int
    ) -> None:
        self.index, self.leaves, self.x, self.k, self.target, self.batch = index, leaves, x, k, target, batch
        _set(leaves, 0, 1.0)
        self.exact = index.search(x, k)[1]
        self.n_exact = max(1, int((self.exact >= 0).sum()))

    def tune(self) -> CoarseTuning:
        levels = min(leaf.levels for leaf in self.leaves)
        step = 8 if levels > 16 else 4  # since few more levels cost little
        exact, *points = self.timed([CoarsePoint(0, 1.0, 1.0, np.inf), *self.reached(range(step, levels, step))])
        if points:
            best = points.pop(points.index(_fastest(points)))
            lengths = best.coarse_levels - step // 2, best.coarse_levels + step // 2
            exact, *beside = self.timed([exact, best, *self.reached(n for n in lengths if n < levels)])
            points += beside
        return CoarseTuning(_fastest([exact, *points]), exact, sorted(points))

    def reached(self, prefixes: Iterable[int]) -> list[CoarsePoint]:
        """Those prefix lengths that reach the target, with the least factor that does."""
        return [point for coarse_levels in prefixes if (point := self.least_factor(coarse_levels))]

    def timed(self, points: list[CoarsePoint]) -> list[CoarsePoint]:
        """The points with the least time of some more rounds; in turn, lest what else runs falls to some of them."""
        rounds = [[self.seconds(point.coarse_levels, point.k_factor) for point in points] for _ in range(_ROUNDS)]
        least = np.min(rounds, axis=0)
        return [replace(point, seconds=min(point.seconds, float(s))) for point, s in zip(points, least, strict=True)]

    def least_factor(self, coarse_levels: int) -> CoarsePoint | None:
        """The least factor, in steps, that reaches the target, not timed; None if that is half of all vectors."""
        factors = [1.0]
        while factors[-1] * self.k < self.index.ntotal / 2:
            factors.append(float(max(factors[-1] + 0.5, round(factors[-1] * _STEP))))
        low, high, least = 0, len(factors), None
        while low < high:
            middle = (low + min(high, 2 * low + 8)) // 2  # small ones first: they are the fast ones
            share = self.share(coarse_levels, factors[middle])
            if share >= self.target:
                high, least = middle, CoarsePoint(coarse_levels, factors[middle], share, np.inf)
            else:
                low = middle + 1
        return least

    def share(self, coarse_levels: int, k_factor: float) -> float:
        _set(self.leaves, coarse_levels, k_factor)
        found = self.index.search(self.x, self.k)[1]
        return _shared(found, self.exact) / self.n_exact

    def seconds(self, coarse_levels: int, k_factor: float) -> float:
        _set(self.leaves, coarse_levels, k_factor)
        start = time.perf_counter()
        for first in range(0, len(self.x), self.batch):
            self.index.search(self.x[first : first + self.batch], self.k)
        return time.perf_counter() - start


def _set(leaves: list[Quantized], coarse_levels: int, k_factor: float) -> None:
    for leaf in leaves:
        leaf.coarse_levels, leaf.k_factor = coarse_levels, k_factor


def _leaves(index: faiss.Index) -> list[Quantized]:
    if isinstance(index, Quantized):
        return [index]
    return [leaf for inner in searched_within(index) for leaf in _leaves(inner)]


def _fastest(points: list[CoarsePoint]) -> CoarsePoint:
    return min(points, key=lambda point: point.seconds)


def _shared(found: Labels, exact: Labels) -> int:
    return sum(len(np.intersect1d(a[a >= 0], b)) for a, b in zip(found, exact, strict=True))
