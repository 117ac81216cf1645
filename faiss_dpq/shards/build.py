"""Building: all parts, then all shards, then the manifest; by whatever executor there is."""

import errno
import os
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import Any

import faiss
import numpy.typing as npt

from ..training import progress
from ..vectors import Sources
from .assembly import ShardPlan, assemble_shard, plan_shards
from .folder import BuildFolder, open_build
from .manifest import Manifest, read_manifest, write_manifest
from .parts import encode_part
from .plan import ROWS_PER_PART, Part, plan_parts
from .records import Refused, check_file

ATTEMPTS = 3  # at a part, after which the build stops


class BuildError(RuntimeError):
    """A part or a shard failed three times; the text has its rows and the last traceback."""


def build_shards(
    trained: faiss.Index,
    sources: Sources,
    output: str | os.PathLike[str],
    n_shards: int,
    *,
    rows_per_part: int = ROWS_PER_PART,
    ids: npt.ArrayLike | str | os.PathLike[str] | None = None,
    column: str | None = None,
    executor: Executor | None = None,
    resume: bool = True,
) -> Manifest:
    """Encode vectors in parts, and make shards of them, which `read_shards` searches like one index.

    Results are bit for bit those of one index that is filled in one go, equal distances by ascending id, whatever the
    number of shards, parts and workers, and whatever was killed meanwhile. What is done is kept: the same call goes on
    from there.

    Parameters
    ----------
    trained : faiss.Index
        A trained, empty IndexDPQ or IndexIVFDPQ, also in an IndexPreTransform.
    sources : str, path, array, or a sequence of them
        As `plan_parts` takes them. They must stay as they are until the build is done.
    output : str or path
        A folder; new, empty, or of an earlier run of the same build.
    n_shards : int
        Shards have the same number of rows, in order.
    rows_per_part : int
        The most rows that are encoded by one task.
    ids : array or path of an .npy file, shape (n,), integers >= 0, optional
        By default 0, 1, 2, ... in the order of the sources.
    column : str, optional
        Of parquet files, the column with the vectors.
    executor : concurrent.futures.Executor, optional
        What runs the tasks: a RayExecutor, a ProcessPoolExecutor, Dask's, ... By default this thread, whose encoder
        uses all threads of faiss.omp_get_max_threads(). An attribute `under_way` says how many tasks it is given at a
        time.
    resume : bool
        False removes what an earlier run has done.

    Returns
    -------
    manifest : dict
        What manifest.json holds.

    Raises
    ------
    ValueError, TypeError
        If an argument or a vector is bad; the error names the row in its source.
    RuntimeError
        If the folder holds something else, sources changed, or a file of an earlier run is damaged.
    BuildError
        If a part or a shard failed three times.
    OSError
        If something cannot be read or written.
    """
    plan = plan_parts(sources, rows_per_part, ids=ids, column=column)
    shards = plan_shards(plan, n_shards)
    folder = open_build(trained, plan, output, resume=resume)
    complete = _complete_manifest(folder, shards)
    if complete is not None:
        return complete
    to_assemble = [shard for shard in shards if not _is_assembled(folder, shard)]
    needed = {piece.part for shard in to_assemble for piece in shard.pieces}
    parts = [part for part in plan if part.number in needed and folder.record(folder.part_record(part.number)) is None]
    done = plan.n - sum(map(len, parts))
    with progress.bar(total=plan.n, initial=done, desc="encoding", unit=" vectors", unit_scale=True) as bar:
        _run(executor, folder, encode_part, parts, lambda part: bar.update(len(part)))
    left = sum(shard.last - shard.first for shard in to_assemble)
    with progress.bar(total=plan.n, initial=plan.n - left, desc="shards", unit=" vectors", unit_scale=True) as bar:
        _run(executor, folder, assemble_shard, to_assemble, lambda shard: bar.update(shard.last - shard.first))
    return write_manifest(folder, plan, shards)


def _complete_manifest(folder: BuildFolder, shards: list[ShardPlan]) -> Manifest | None:
    """The manifest of a build that is done; None if there is none, or a shard is gone and must be made anew."""
    try:
        manifest = read_manifest(folder.output)
    except (FileNotFoundError, Refused):
        return None
    rows = [shard["rows"] for shard in manifest["shards"]]
    if rows != [[shard.first, shard.last] for shard in shards]:
        raise Refused(f"{folder.output}: holds another build, of {len(rows)} shards; this one has {len(shards)}")
    return manifest


def _is_assembled(folder: BuildFolder, shard: ShardPlan) -> bool:
    record = folder.record(folder.shard_record(shard.number))
    if record is None or record["rows"] != [shard.first, shard.last]:
        return False
    try:
        check_file(folder.shard(shard.number), record, contents=False)
    except Refused:
        return False
    return True


Task = Part | ShardPlan


def _run(
    executor: Executor | None,
    folder: BuildFolder,
    function: Callable[[BuildFolder, Any], Any],
    tasks: Iterable[Any],
    is_done: Callable[[Any], None],
) -> None:
    """Call `function` with every task, each until it does not raise, at most ATTEMPTS times."""
    waiting, failures = deque(tasks), Counter[int]()
    executor = executor or _ThisThread()
    most = max(1, getattr(executor, "under_way", 2 * (os.cpu_count() or 1)))
    running: dict[Future[Any], Any] = {}
    try:
        while waiting or running:
            while waiting and len(running) < most:
                task = waiting.popleft()
                running[executor.submit(function, folder, task)] = task
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task = running.pop(future)
                error = future.exception()
                if error is None:
                    is_done(task)
                    continue
                failures[task.number] += 1
                _raise_if_final(error, task, failures[task.number])
                waiting.append(task)
    finally:
        for future in running:
            future.cancel()


def _raise_if_final(error: BaseException, task: Task, n_failures: int) -> None:
    no_space = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if no_space or isinstance(error, Refused | ValueError | TypeError) or not isinstance(error, Exception):
        raise error
    if n_failures == ATTEMPTS:
        text = "".join(traceback.format_exception(error))
        what = f"rows {task.first} to {task.last}" if isinstance(task, ShardPlan) else str(task)
        raise BuildError(f"{what} failed {ATTEMPTS} times, the last time so:\n{text}") from error


class _ThisThread(Executor):
    """Runs what is submitted at once."""

    under_way = 1

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future
