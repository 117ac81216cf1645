"""Building and searching shards on Ray; the only module that imports it.

`RayExecutor` runs the tasks of `build_shards`; what they do is engine-free, and written down in files, so that it does
not matter which of them are lost. `RayIndex` keeps every shard in an actor, or several, and merges their results.
"""

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

try:
    import ray
    from ray._private import ray_constants
    from ray.exceptions import RayActorError, RayTaskError
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error.name} is not installed: pip install 'faiss-dpq[ray]'", name=error.name
    ) from error

import faiss_dpq

from ..codec import Floats
from ..index.base import RangeResult
from ..search.selection import Labels
from .manifest import Manifest, read_manifest
from .merge import merge_ranges, merge_results, search_shard
from .reading import read_shard
from .records import Refused
from .sending import UNDER_WAY, Packed, cut_queries, pack, unpack

_CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # whether a node may have an address that others reach


def connect(address: str | None) -> None:
    """Connect this process to a cluster, if it is not connected.

    Parameters
    ----------
    address : str, optional
        What ray.init takes: "auto", "host:port". None or "local" starts Ray on this machine, for this process alone; it
        listens on 127.0.0.1 only.
    """
    if ray.is_initialized():
        return
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address not in (None, "local"):
        ray.init(address=address, **options)
        return
    with _loopback():
        ray.init(address="local", include_dashboard=False, **options)


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """Let Ray take 127.0.0.1 for the address of this machine, as it does on Windows; else it listens on all addresses.

    Processes that it starts have the variable, this one the constant that was made of it.
    """
    before = os.environ.get(_CLUSTERS), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[_CLUSTERS], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        del os.environ[_CLUSTERS]
        if before[0] is not None:
            os.environ[_CLUSTERS] = before[0]
        ray_constants.ENABLE_RAY_CLUSTER = before[1]


def _set_threads(num_cpus: float) -> None:
    faiss.omp_set_num_threads(max(1, int(num_cpus)))


def _check_version(version: str) -> None:
    if faiss_dpq.__version__ != version:
        node = ray.util.get_node_ip_address()
        raise Refused(
            f"node {node} has faiss_dpq {faiss_dpq.__version__}, expected {version}, as where the program runs"
        )


def _call(function: Callable[..., Any], num_cpus: float, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    _set_threads(num_cpus)
    return function(*args, **kwargs)


class RayExecutor(Executor):
    """Runs calls as Ray tasks; for `build_shards(executor=)`.

    Folder and sources must be at the same paths on all nodes, which need this package in the same version. A call that
    fails, or whose node is lost, is not repeated here: `build_shards` does that, and counts.

    Parameters
    ----------
    address : str, optional
        As `connect` takes it; this process's connection is used if there is one.
    num_cpus : float
        Of each task; it works in so many threads.
    """

    def __init__(self, address: str | None = None, *, num_cpus: float = 1) -> None:
        if num_cpus <= 0:
            raise ValueError(f"RayExecutor: num_cpus is {num_cpus}, expected more than 0")
        connect(address)
        self.num_cpus = num_cpus
        self._task = ray.remote(num_cpus=num_cpus, max_retries=0)(_call)

    @property
    def under_way(self) -> int:
        """How many calls it should be given at a time: twice as many as the cluster can run now."""
        return 2 * max(1, int(ray.cluster_resources().get("CPU", 1) / self.num_cpus))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Begin a call; the future has its result, or its error as it was raised."""
        future: Future[Any] = self._task.remote(fn, self.num_cpus, args, kwargs).future()
        return _with_plain_errors(future)


def _with_plain_errors(future: Future[Any]) -> Future[Any]:
    """A future whose errors are those that calls raised, with the traceback of the other process in their text."""
    plain: Future[Any] = Future()
    plain.set_running_or_notify_cancel()

    def finish(done: Future[Any]) -> None:
        error = done.exception()
        if error is None:
            plain.set_result(done.result())
        else:
            plain.set_exception(_plain(error))

    future.add_done_callback(finish)
    return plain


def _plain(error: BaseException) -> BaseException:
    if isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        cause = error.cause
        cause.__cause__ = RuntimeError(str(error))  # the other process's traceback
        return cause
    return error


class _Shard:
    """An actor: a shard in memory, or mapped."""

    def __init__(self, path: str, manifest: Manifest, number: int, mmap: bool, num_cpus: float, version: str) -> None:
        _set_threads(num_cpus)
        _check_version(version)
        self.shard = read_shard(path, manifest, number, mmap=mmap)

    def ready(self) -> int:
        """The number of this process."""
        return os.getpid()

    def search(self, x: Floats, k: int, params: Packed | None) -> tuple[Floats, Labels]:
        return search_shard(self.shard, x, k, unpack(params))

    def range_search(self, x: Floats, thresh: float, params: Packed | None) -> RangeResult:
        unpacked = unpack(params)
        return self.shard.range_search(x, thresh, **({} if unpacked is None else {"params": unpacked}))


@dataclass(eq=False)
class _Replica:
    """An actor of a shard."""

    shard: int
    actor: Any
    starting: Any  # what Ray gives once the actor is ready; None if it is
    deadline: float  # until when it may take
    has_answered: bool = False
    under_way: int = 0  # blocks that it has been given, in this search


@dataclass(eq=False)
class _Block:
    """Queries that are searched for together, and the shards' results so far."""

    queries: slice
    x: Any  # in Ray's store
    results: dict[int, Any] = field(default_factory=dict)


class RayIndex:
    """Shards on a cluster, searched as one index; results are bit for bit those of `read_shards`.

    Every shard is in `num_replicas` actors. Queries are cut into blocks; each goes to one replica of every shard, the
    least busy one, and to another if that one dies. An actor that dies is started again; one that does not start, or
    dies before it has answered, is given up. A shard that has none left raises, and is never left out. Only one thread
    may search at a time.

    Parameters
    ----------
    path : str
        A folder that `build_shards` has filled; all nodes must see it there.
    num_replicas : int
        Actors of each shard.
    address : str, optional
        As `connect` takes it; this process's connection is used if there is one.
    num_cpus : float
        Of each actor; it searches in so many threads.
    mmap : bool
        As in `read_shards`.
    start_timeout : float
        Seconds that all actors together may take to start, and one that is started again.

    Raises
    ------
    FileNotFoundError, RuntimeError
        As `read_shards`; also if a node has another version of this package, or the actors do not start in time,
        because the cluster has too few CPUs.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        num_replicas: int = 1,
        address: str | None = None,
        *,
        num_cpus: float = 1,
        mmap: bool = False,
        start_timeout: float = 60,
    ) -> None:
        if num_replicas < 1:
            raise ValueError(f"RayIndex: num_replicas is {num_replicas}, expected at least 1")
        self._path, self._manifest = os.path.abspath(path), read_manifest(path)
        self._mmap, self._num_cpus, self._start_timeout = mmap, num_cpus, start_timeout
        connect(address)
        self._class = ray.remote(num_cpus=num_cpus, max_restarts=0)(_Shard)
        self._last_error: Exception | None = None  # of an actor that was given up
        self._replicas = [
            [self._started(shard) for _ in range(num_replicas)] for shard in range(len(self._manifest["shards"]))
        ]
        try:
            self._wait_until_all_are_ready()
        except BaseException:
            self.close()
            raise

    # ---- what it holds -----------------------------------------------------------------------------------------

    @property
    def ntotal(self) -> int:
        """Number of vectors."""
        return int(self._manifest["ntotal"])

    @property
    def d(self) -> int:
        """Dimensions of the vectors."""
        return int(self._manifest["d"])

    @property
    def metric_type(self) -> int:
        """faiss.METRIC_L2 or faiss.METRIC_INNER_PRODUCT."""
        return faiss.METRIC_L2 if self._manifest["metric"] == "l2" else faiss.METRIC_INNER_PRODUCT

    def __repr__(self) -> str:
        shards, replicas = len(self._replicas), sum(map(len, self._replicas))
        return f"RayIndex({self._manifest['index']}, ntotal={self.ntotal}, {shards} shards in {replicas} actors)"

    # ---- search ------------------------------------------------------------------------------------------------

    def search(self, x: npt.ArrayLike, k: int, params: faiss.SearchParameters | None = None) -> tuple[Floats, Labels]:
        """The k nearest vectors of every query, in the order of (distance, id).

        Parameters
        ----------
        x : array, shape (n, d)
        k : int
        params : faiss.SearchParameters, optional
            Those of the shards' class; `sel` may be an IDSelectorRange, IDSelectorArray or IDSelectorBitmap of ids.

        Returns
        -------
        D : array, shape (n, k), float32
        I : array, shape (n, k), int64
            -1 where fewer than k vectors were found.

        Raises
        ------
        RuntimeError
            If a shard has no replica left.
        AssertionError, TypeError, ValueError
            As IndexDPQ.search.
        """
        x = self._checked(x, "search")
        if k < 1:
            raise AssertionError(f"RayIndex.search: k is {k}, expected at least 1")
        D, I = np.empty((len(x), k), np.float32), np.empty((len(x), k), np.int64)
        for queries, results in self._results(x, "search", k, pack(params)):
            found, labels = zip(*results, strict=True)
            D[queries], I[queries] = merge_results(found, labels, k, self.metric_type)
        return D, I

    def range_search(
        self, x: npt.ArrayLike, thresh: float, params: faiss.SearchParameters | None = None
    ) -> RangeResult:
        """All vectors nearer than a threshold, of each query in the order of (distance, id); as Base.range_search."""
        x = self._checked(x, "range_search")
        found = {
            queries.start: merge_ranges(results, self.metric_type)
            for queries, results in self._results(x, "range_search", float(thresh), pack(params))
        }
        blocks = [found[start] for start in sorted(found)]
        counts = [np.diff(lims.astype(np.int64)) for lims, _, _ in blocks]
        lims = np.concatenate([[0], np.cumsum(np.concatenate([np.empty(0, np.int64), *counts]))]).astype(np.uint64)
        D = np.concatenate([np.empty(0, np.float32), *(D for _, D, _ in blocks)])
        I = np.concatenate([np.empty(0, np.int64), *(I for _, _, I in blocks)])
        return lims, D, I

    def _checked(self, x: npt.ArrayLike, method: str) -> Floats:
        x = np.asarray(x)
        if x.dtype.kind not in "fiub":
            raise TypeError(f"RayIndex.{method}: x has dtype {x.dtype}, expected float32")
        if x.ndim != 2:
            raise ValueError(f"RayIndex.{method}: x has {x.ndim} dimensions, expected 2: (n, {self.d})")
        if x.shape[1] != self.d:
            raise AssertionError(f"RayIndex.{method}: x has {x.shape[1]} columns, the index has d={self.d}")
        return np.ascontiguousarray(x, np.float32)

    def _results(self, x: Floats, method: str, *arguments: Any) -> Iterator[tuple[slice, list[Any]]]:
        """The shards' results of each block of queries, as they are complete."""
        waiting = deque(cut_queries(len(x), max(map(len, self._replicas))))
        begun: list[_Block] = []
        calls: dict[Any, tuple[_Block, _Replica]] = {}
        stranded: list[tuple[_Block, int]] = []  # blocks of shards whose replicas are all being started
        most = UNDER_WAY * max(map(len, self._replicas))

        def ask(block: _Block, shard: int) -> None:
            ready = [replica for replica in self._replicas[shard] if replica.starting is None]
            if ready:
                replica = min(ready, key=lambda replica: replica.under_way)
                replica.under_way += 1
                calls[getattr(replica.actor, method).remote(block.x, *arguments)] = block, replica
            elif self._replicas[shard]:
                stranded.append((block, shard))
            else:
                raise self._lost(shard)

        def take(call: Any) -> None:
            block, replica = calls.pop(call)
            try:
                block.results[replica.shard] = ray.get(call)
            except RayActorError as error:
                if replica in self._replicas[replica.shard]:  # else another block has shown it before
                    self._restart(replica, error)
                ask(block, replica.shard)
                return
            except RayTaskError as error:
                raise _plain(error) from None
            replica.has_answered = True
            replica.under_way -= 1

        try:
            while waiting or begun:
                while waiting and len(begun) < most:
                    queries = waiting.popleft()
                    begun.append(_Block(queries, ray.put(x[queries])))
                    for shard in range(len(self._replicas)):
                        ask(begun[-1], shard)
                for call in self._next(list(calls)):
                    take(call)
                again, stranded = stranded, []
                for block, shard in again:
                    ask(block, shard)
                for block in [block for block in begun if len(block.results) == len(self._replicas)]:
                    begun.remove(block)
                    yield block.queries, [block.results[shard] for shard in range(len(self._replicas))]
        finally:
            for _, replica in calls.values():
                replica.under_way = 0

    # ---- actors ------------------------------------------------------------------------------------------------

    def _started(self, shard: int) -> _Replica:
        of_actor = self._path, self._manifest, shard, self._mmap, self._num_cpus, faiss_dpq.__version__
        actor: Any = self._class.remote(*of_actor)
        return _Replica(shard, actor, actor.ready.remote(), time.monotonic() + self._start_timeout)

    def _starting(self) -> dict[Any, _Replica]:
        return {r.starting: r for replicas in self._replicas for r in replicas if r.starting is not None}

    def _next(self, calls: list[Any]) -> list[Any]:
        """Wait until a call has ended, or something has become of an actor that is being started."""
        starting = self._starting()
        timeout = None
        if starting:
            timeout = max(0.0, min(replica.deadline for replica in starting.values()) - time.monotonic())
        ended, _ = ray.wait([*calls, *starting], num_returns=1, timeout=timeout)
        for ready in ended:
            if ready in starting:
                self._note_start(starting[ready])
        for replica in starting.values():
            if replica.starting is not None and time.monotonic() >= replica.deadline:
                error = TimeoutError(f"it did not start in {self._start_timeout} s; has the cluster CPUs left for it?")
                self._give_up(replica, error)
        return [call for call in ended if call not in starting]

    def _note_start(self, replica: _Replica) -> None:
        try:
            ray.get(replica.starting)
        except (RayActorError, RayTaskError) as error:
            self._give_up(replica, error)
        else:
            replica.starting = None

    def _restart(self, replica: _Replica, error: Exception) -> None:
        """Put another actor in the place of one that died; of one that died before it answered, none."""
        self._give_up(replica, error)
        if replica.has_answered:
            self._replicas[replica.shard].append(self._started(replica.shard))

    def _give_up(self, replica: _Replica, error: Exception) -> None:
        self._last_error = error
        if replica in self._replicas[replica.shard]:
            self._replicas[replica.shard].remove(replica)
        ray.kill(replica.actor)

    def _lost(self, shard: int) -> RuntimeError:
        name, error = self._manifest["shards"][shard]["file"], self._last_error
        return RuntimeError(f"RayIndex: {name} has no replica left; the last one was lost so:\n{error}")

    def _wait_until_all_are_ready(self) -> None:
        while self._starting():
            self._next([])
            if self._last_error is not None:
                raise RuntimeError(f"RayIndex: an actor could not be started: {self._last_error}")

    def close(self) -> None:
        """End all actors."""
        for replicas in self._replicas:
            for replica in replicas:
                ray.kill(replica.actor)
        self._replicas = [[] for _ in self._replicas]

    def __enter__(self) -> "RayIndex":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
