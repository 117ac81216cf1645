"""faiss.ParameterSpace that knows this package's parameters, and times this package's search."""

import re
import time
from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from ..codec import Floats, threads
from ..search.selection import Labels
from .ivf import IndexIVFDPQ
from .wrappers import IndexIDMap, IndexPreTransform, IndexRefine, IndexReplicas, IndexShards

#: Parameters of indexes of this package, which C++ does not know.
OURS = {
    "levels": int,
    "beam_size": int,
    "coarse_levels": int,
    "k_factor": float,
    "prefix_weight": float,
    "parallel_weight": float,
}
_K_FACTORS = ("k_factor_rf", "k_factor")


class ParameterSpace(faiss.ParameterSpace):
    """faiss.ParameterSpace: search parameters by name, and which combinations of their values are worth using.

    Beside FAISS's names (`nprobe`, `ht`, `efSearch`, `k_factor_rf`, `quantizer_nprobe`, ...) it knows `levels`,
    `coarse_levels`, `k_factor`, `beam_size`, `prefix_weight` and `parallel_weight` of IndexDPQ and IndexIVFDPQ, and
    `k_factor` of IndexRefine, which comes before that of the index within; all also within this package's wrappers.
    `explore` calls the Python `search`, so that what it measures is what a Python program gets. The settings are
    FAISS's: `verbose`, `n_experiments`, `batchsize`, `thread_over_batches`, `min_test_duration`.
    """

    # ---- set -----------------------------------------------------------------------------------------------------

    def set_index_parameter(self, index: faiss.Index, name: str, value: float) -> None:
        """Set one parameter of an index, or of the index within.

        Parameters
        ----------
        index : faiss.Index
        name : str
            `quantizer_...` is a parameter of the coarse quantizer.
        value : float
            Truncated to an integer where the parameter is one, as FAISS does.

        Raises
        ------
        RuntimeError
            If the index has no such parameter.
        ValueError
            If the value is out of range.
        """
        if name == "verbose":
            index.verbose = bool(value)
        if isinstance(index, IndexRefine) and name in _K_FACTORS and not self._takes(index.base_index, name):
            index.k_factor = int(value)
            return
        inner_indexes = searched_within(index)
        for inner in inner_indexes:
            self.set_index_parameter(inner, name, value)
        if inner_indexes:
            return
        if name in OURS and _has(index, name):
            setattr(index, name, OURS[name](value))
            return
        if isinstance(index, IndexIVFDPQ) and name.startswith("quantizer_"):
            self.set_index_parameter(index._coarse_quantizer, name.removeprefix("quantizer_"), value)
            return
        super().set_index_parameter(index, name, value)

    def _takes(self, index: faiss.Index, name: str) -> bool:
        """Whether an index, or one within, has a refinement factor of that name, which comes before an outer one's."""
        return name == "k_factor" and isinstance(_leaf(index), faiss.IndexIVFPQR)

    def set_index_parameters(self, index: faiss.Index, parameters: str | int) -> None:
        """Set several parameters.

        Parameters
        ----------
        index : faiss.Index
        parameters : str or int
            "levels=2,nprobe=16"; or the number of a combination of the values in `parameter_ranges`.

        Raises
        ------
        RuntimeError
            If the string cannot be interpreted, or the index has no such parameter.
        ValueError
            If a value is out of range.
        """
        pairs = list(_parsed(parameters) if isinstance(parameters, str) else self._combination(parameters))
        for name, value in pairs:
            self.set_index_parameter(index, name, value)

    def _combination(self, number: int) -> Iterator[tuple[str, float]]:
        if not 0 <= number < self.n_combinations():
            raise RuntimeError(
                f"ParameterSpace.set_index_parameters: combination {number}, but there are {self.n_combinations()}"
            )
        for i in range(self.parameter_ranges.size()):
            parameter_range = self.parameter_ranges.at(i)
            values = parameter_range.values
            number, choice = divmod(number, values.size())
            yield parameter_range.name, values.at(choice)

    # ---- explore -------------------------------------------------------------------------------------------------

    def initialize(self, index: faiss.Index) -> None:
        """Fill `parameter_ranges` with reasonable values for this index.

        `levels` gets all lengths of the codes up to 8, and powers of two and M above; other parameters as in FAISS.
        """
        if isinstance(index, IndexRefine):
            self._add_values("k_factor_rf", [1 << i for i in range(7)])
        inner_indexes = searched_within(index)
        if inner_indexes:
            self.initialize(inner_indexes[0])
            return
        super().initialize(index)
        if _has(index, "levels"):
            self._add_values("levels", _level_choices(index.rq.M))
        if isinstance(index, IndexIVFDPQ) and _has(_leaf(index._coarse_quantizer), "levels"):
            self._add_values("quantizer_levels", _level_choices(_leaf(index._coarse_quantizer).rq.M))

    def _add_values(self, name: str, values: list[int]) -> None:
        parameter_range = self.add_range(name)
        for value in values:
            parameter_range.values.push_back(value)

    def explore(
        self, index: faiss.Index, xq: npt.NDArray[Any], criterion: faiss.AutoTuneCriterion
    ) -> faiss.OperatingPoints:
        """Search with combinations of the parameters' values, and tell which of them are Pareto-optimal.

        As faiss.ParameterSpace.explore: up to `n_experiments` combinations (all, if that is 0), leaving out those
        that earlier ones show to be no use, if more of a parameter means slower and better. The index is left with the
        parameters of the last one.

        Parameters
        ----------
        index : faiss.Index
        xq : array, shape (criterion.nq, d)
        criterion : faiss.AutoTuneCriterion
            Says how good a result is; its `nnn` neighbours are searched for.

        Returns
        -------
        points : faiss.OperatingPoints
            `all_pts` and `optimal_pts`: the performance, the seconds that all queries took, and the parameters.

        Raises
        ------
        AssertionError
            If xq does not have criterion.nq rows and d columns.
        RuntimeError
            If `n_experiments` is 1 or 2, and there are more combinations than one.
        """
        if xq.shape != (criterion.nq, index.d):
            raise AssertionError(f"explore: xq has shape {xq.shape}, expected {(criterion.nq, index.d)}")
        xq = np.ascontiguousarray(xq, np.float32)
        points = faiss.OperatingPoints()
        for number in self._experiments():
            if self.n_experiments and self._is_useless(number, points):
                continue
            self.set_index_parameters(index, number)
            seconds, D, I = self._timed_search(index, xq, criterion.nnn)
            # FAISS gave arrays to the base class's method only; it is virtual.
            performance = faiss.AutoTuneCriterion.evaluate(criterion, D, I)
            name = self.combination_name(number)
            optimal = points.add(performance, seconds, name, number)
            if self.verbose:
                print(f"  cno={number} {name} perf={performance:.3f} t={seconds:.3f} s {'*' if optimal else ''}")
        return points

    def _experiments(self) -> list[int]:
        """The combinations to try in turn: FAISS's order, the fastest and the slowest first."""
        n = self.n_combinations()
        if self.n_experiments == 0 or n == 1:
            return list(range(n))
        n_experiments = min(self.n_experiments, n)
        if n > 2 and n_experiments <= 2:
            raise RuntimeError(f"ParameterSpace.explore: n_experiments is {self.n_experiments}, expected 0 or above 2")
        between = np.empty(n - 2, np.int32)
        if len(between):
            faiss.rand_perm(faiss.swig_ptr(between), len(between), 1234)
        return [0, n - 1, *(between + 1).tolist()][:n_experiments]

    def _is_useless(self, number: int, points: faiss.OperatingPoints) -> bool:
        """Whether what is known already is as fast as this can be, and as good."""
        least_seconds, best_performance = 0.0, 1.0
        for i in range(points.all_pts.size()):
            point = points.all_pts.at(i)
            if self.combination_ge(number, point.cno):
                least_seconds = max(least_seconds, point.t)
            if self.combination_ge(point.cno, number):
                best_performance = min(best_performance, point.perf)
        return points.t_for_perf(best_performance) <= least_seconds

    def _timed_search(self, index: faiss.Index, xq: Floats, k: int) -> tuple[float, Floats, Labels]:
        """Mean seconds of searches by all queries, and their result."""
        D, I = np.empty((len(xq), k), np.float32), np.empty((len(xq), k), np.int64)
        batches = [(slice(i, i + self.batchsize),) for i in range(0, len(xq), self.batchsize)]

        def search(batch: slice) -> None:
            index.search(xq[batch], k, D=D[batch], I=I[batch])

        n_runs, start = 0, time.perf_counter()
        while not n_runs or time.perf_counter() - start < self.min_test_duration:
            threads.run(search, batches, n_threads=None if self.thread_over_batches else 1)
            n_runs += 1
        return (time.perf_counter() - start) / n_runs, D, I


def _parsed(parameters: str) -> Iterator[tuple[str, float]]:
    for token in re.split("[ ,]+", re.sub(" *= *", "=", parameters.strip(" ,"))):
        if not token:
            continue
        name, equals, value = token.partition("=")
        try:
            if not name or not equals:
                raise ValueError
            yield name, float(value)
        except ValueError:
            raise RuntimeError(f"ParameterSpace.set_index_parameters: could not interpret parameters {token}") from None


def searched_within(index: faiss.Index) -> list[faiss.Index]:
    """The indexes within a wrapper of this package that its parameters go to."""
    if isinstance(index, IndexRefine):
        return [index.base_index]
    if isinstance(index, IndexIDMap | IndexPreTransform | IndexShards | IndexReplicas):
        return index._inner_indexes()
    return []


def _leaf(index: faiss.Index) -> faiss.Index:
    while inner_indexes := searched_within(index):
        index = inner_indexes[0]
    return index


def _has(index: faiss.Index, name: str) -> bool:
    return isinstance(getattr(type(index), name, None), property)


def _level_choices(M: int) -> list[int]:
    return [levels for levels in range(1, M + 1) if levels <= 8 or levels == M or levels & (levels - 1) == 0]
