"""Several indexes that work together: faiss.IndexShards and IndexReplicas."""

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from ...codec import Floats, threads
from ...search.flat import MISSING
from ...search.selection import Labels
from ..arguments import require_index
from ..base import RangeResult
from ..changes import continued, under_way
from ..registry import stands_for
from ..tensors import accepts_tensors, if_any
from .wrapper import Wrapper


class _Threaded(Wrapper):
    """What IndexShards and IndexReplicas share: several indexes of one dimension and metric.

    `threaded` as the constructor got it: the indexes then work in a thread each, as FAISS's do; else one after the
    other, each with all threads that faiss.omp_get_max_threads() tells. For exhaustive search in memory one after the
    other is as fast, and needs less memory for tables.
    """

    _threaded = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        flags = [arg for arg in args if isinstance(arg, bool)]
        self._threaded = bool(flags) and flags[0]

    def at(self, i: int) -> faiss.Index:
        """The i-th index, as the Python object that was added."""
        if not 0 <= i < self.count():
            raise IndexError(f"{self._call('at')}: i is {i}, there are {self.count()} indexes")
        return self._python_object(super().at(i))

    def _inner_indexes(self) -> list[faiss.Index]:
        return [self.at(i) for i in range(self.count())]

    def addIndex(self, index: faiss.Index) -> None:
        """Add an index."""
        require_index(index, f"{self._call('addIndex')}: index")
        super().addIndex(index)
        self._keep(index)

    def removeIndex(self, index: faiss.Index) -> None:
        """Remove an index that was added."""
        super().removeIndex(index)
        self._forget(index)

    def _run(self, method: Callable[[int, faiss.Index], Any]) -> list[Any]:
        """`method(i, index)` of every index; if some raise, it is done of the others all the same, as FAISS does."""
        is_part = under_way()
        calls = [(is_part, _outcome, method, i, index) for i, index in enumerate(self._inner_indexes())]
        outcomes = threads.run(continued, calls, n_threads=len(calls) if self._threaded else 1)
        errors = [(i, outcome) for i, outcome in enumerate(outcomes) if isinstance(outcome, Exception)]
        if len(errors) == 1:
            raise errors[0][1]
        if errors:
            raise RuntimeError("\n".join(f"Exception thrown from index {i}: {error}" for i, error in errors))
        return outcomes

    @accepts_tensors()
    def train(self, x: npt.ArrayLike, numeric_type: int = faiss.Float32, **options: Any) -> None:
        """Train every index on all vectors, shape (n, d)."""
        x = self._checked_training(x, numeric_type, options.get("xq_train"))

        def train() -> None:
            self._run(lambda i, index: index.train(x, **options))
            self.syncWithSubIndexes()

        self._all_or_untrained(train)

    def _require_some(self, method: str, kind: str) -> None:
        if not self.count():
            raise RuntimeError(f"{type(self).__name__}.{method}: no {kind} in index")

    # ---- copies: FAISS has no file format for them ---------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        return {
            "arguments": (self.d, self._threaded, *self._more_arguments()),
            "indexes": self._inner_indexes(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(*state["arguments"])  # type: ignore[misc]
        for index in state["indexes"]:
            self.addIndex(index)

    def _more_arguments(self) -> tuple[Any, ...]:
        return ()


def _outcome(method: Callable[[int, faiss.Index], Any], i: int, index: faiss.Index) -> Any:
    try:
        return method(i, index)
    except Exception as error:
        return error


@stands_for(faiss.IndexShards)
class IndexShards(_Threaded, faiss.IndexShards):
    """faiss.IndexShards: several indexes that hold a part of the vectors each.

    Search parameters go to every shard; with `successive_ids` their selectors see each shard's own numbers, as with
    FAISS. Unlike FAISS's, it has `range_search`.

    Parameters
    ----------
    d : int, optional
    threaded : bool
        A thread for each shard.
    successive_ids : bool
        Ids of a shard follow those of the shard before it; else each shard knows its vectors' ids (IndexIDMap).
    """

    def add_shard(self, index: faiss.Index) -> None:
        """Add a shard."""
        self.addIndex(index)

    def remove_shard(self, index: faiss.Index) -> None:
        """Remove a shard."""
        self.removeIndex(index)

    def _add(self, x: Floats) -> None:
        if not self.successive_ids:
            self._add_parts(x, np.arange(self.ntotal, self.ntotal + len(x), dtype=np.int64))
            return
        if self.ntotal:
            raise RuntimeError(
                f"{self._call('add')}: when adding to IndexShards with successive_ids, only add() in a single "
                f"pass is supported; the index holds {self.ntotal} vectors"
            )
        self._add_parts(x, None)

    def _add_with_ids(self, x: Floats, ids: Labels) -> None:
        if self.successive_ids:
            raise RuntimeError(
                f"{self._call('add_with_ids')}: It makes no sense to pass in ids and request them to be shifted"
            )
        self._add_parts(x, ids)

    def _add_parts(self, x: Floats, ids: Labels | None) -> None:
        """An even part to every shard."""
        bounds = [len(x) * i // max(1, self.count()) for i in range(self.count() + 1)]

        def add_part(i: int, index: faiss.Index) -> None:
            part = slice(bounds[i], bounds[i + 1])
            if ids is None:
                index.add(x[part])
            else:
                index.add_with_ids(x[part], ids[part])

        self._run(add_part)
        self.syncWithSubIndexes()

    def _search(self, x: Floats, k: int, params: faiss.SearchParameters | None) -> tuple[Floats, Labels]:
        self._require_some("search", "shards")
        results = self._run(lambda i, index: index.search(x, k, **if_any(params)))
        distances = np.concatenate([D for D, _ in results], axis=1)
        labels = np.concatenate(self._shifted([I for _, I in results]), axis=1)
        # What is missing in one shard stands behind what any other has found; equal ones stay in the shards' order.
        order = np.lexsort((self._sign() * distances, labels < 0))[:, :k]
        distances, labels = (np.take_along_axis(a, order, axis=1) for a in (distances, labels))
        distances[labels < 0] = self._sign() * MISSING
        return distances, labels

    def _range_search(self, x: Floats, thresh: float, params: faiss.SearchParameters | None) -> RangeResult:
        self._require_some("range_search", "shards")
        results = self._run(lambda i, index: index.range_search(x, thresh, **if_any(params)))
        D = np.concatenate([D for _, D, _ in results])
        I = np.concatenate(self._shifted([I for _, _, I in results]))
        counts = [np.diff(lims.astype(np.int64)) for lims, _, _ in results]
        queries = np.concatenate([np.repeat(np.arange(len(x)), count) for count in counts])
        order = np.lexsort((self._sign() * D, queries))
        lims = np.concatenate([[0], np.cumsum(np.sum(counts, axis=0))]).astype(results[0][0].dtype)
        return lims, D[order], I[order]

    def _shifted(self, labels: list[Labels]) -> list[Labels]:
        """The labels that every shard returned as those of the whole."""
        if not self.successive_ids:
            return labels
        sizes = [index.ntotal for index in self._inner_indexes()]
        firsts = np.cumsum([0, *sizes[:-1]])
        return [np.where(I < 0, I, I + first) for I, first in zip(labels, firsts, strict=True)]

    def _sign(self) -> int:
        """Distances times this are better where they are smaller."""
        return 1 if self.metric_type == faiss.METRIC_L2 else -1

    def _more_arguments(self) -> tuple[Any, ...]:
        return (bool(self.successive_ids),)


@stands_for(faiss.IndexReplicas)
class IndexReplicas(_Threaded, faiss.IndexReplicas):
    """faiss.IndexReplicas: several indexes that hold the same vectors and share the queries.

    Unlike FAISS's, it has search parameters and `range_search`.

    Parameters
    ----------
    d : int, optional
    threaded : bool
        A thread for each replica.
    """

    def add_replica(self, index: faiss.Index) -> None:
        """Add a replica."""
        self.addIndex(index)

    def remove_replica(self, index: faiss.Index) -> None:
        """Remove a replica."""
        self.removeIndex(index)

    def _add(self, x: Floats) -> None:
        self._require_equal_counts("add")
        self._run(lambda i, index: index.add(x))
        self.syncWithSubIndexes()

    def _add_with_ids(self, x: Floats, ids: Labels) -> None:
        self._require_equal_counts("add_with_ids")
        self._run(lambda i, index: index.add_with_ids(x, ids))
        self.syncWithSubIndexes()

    def _require_equal_counts(self, method: str) -> None:
        self._require_agreement(method, {f"replica {i}": index.ntotal for i, index in enumerate(self._inner_indexes())})

    def _parts(self, n: int, method: str) -> list[slice]:
        """Which queries each replica answers."""
        self._require_some(method, "replicas")
        self._require_equal_counts(method)
        width = -(-n // self.count())
        return [slice(i * width, (i + 1) * width) for i in range(self.count())]

    def _search(self, x: Floats, k: int, params: faiss.SearchParameters | None) -> tuple[Floats, Labels]:
        parts = self._parts(len(x), "search")
        results = self._run(lambda i, index: index.search(x[parts[i]], k, **if_any(params)))
        distances, labels = (np.concatenate(part) for part in zip(*results, strict=True))
        return distances, labels

    def _range_search(self, x: Floats, thresh: float, params: faiss.SearchParameters | None) -> RangeResult:
        parts = self._parts(len(x), "range_search")
        results = self._run(lambda i, index: index.range_search(x[parts[i]], thresh, **if_any(params)))
        counts = np.concatenate([np.diff(lims.astype(np.int64)) for lims, _, _ in results])
        lims = np.concatenate([[0], np.cumsum(counts)]).astype(results[0][0].dtype)
        return lims, np.concatenate([D for _, D, _ in results]), np.concatenate([I for _, _, I in results])
