"""Shards beside one index: building by Ray's workers, and searching; `python -m bench.shards --help`.

The vectors are GloVe's, repeated with noise. A worker's rate is that of its encoding tasks, with all their reading,
writing and checksums, beside `add` of one index by one thread; both by the clock and in CPU time, since other processes
may compete for the cores. Results of one index and of shards are compared bit for bit.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np

import faiss_dpq
from faiss_dpq import shards
from faiss_dpq.lab.datasets import Vectors, load_glove
from faiss_dpq.shards.ray import RayExecutor

from . import timing

_FILE = 1_000_000  # vectors
_NOISE = 0.02  # of unit vectors


class Spent(NamedTuple):
    """What a task took."""

    pid: int
    rows: int
    wall: float
    cpu: float
    peak: int  # bytes of the process, at most, up to the end of the task


def _measured(function: Callable[..., Any], build: Any, task: Any) -> Spent:
    wall, cpu = time.perf_counter(), time.process_time()
    function(build, task)
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) << 10
    rows = len(task) if isinstance(task, shards.Part) else task.last - task.first
    return Spent(os.getpid(), rows, time.perf_counter() - wall, time.process_time() - cpu, peak)


class MeasuringExecutor(RayExecutor):
    """Keeps what the tasks took, by the function that they called."""

    def __init__(self, workers: int) -> None:
        super().__init__(num_cpus=1)
        self.workers = workers
        self.futures: list[tuple[str, Future[Spent]]] = []

    @property
    def under_way(self) -> int:
        """As many calls as there shall be workers."""
        return self.workers

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As RayExecutor's."""
        future = super().submit(_measured, fn, *args, **kwargs)
        self.futures.append((fn.__name__, future))
        return future

    def spent(self, name: str) -> list[Spent]:
        """Of all tasks that called one function."""
        return [future.result() for called, future in self.futures if called == name]


def write_sources(folder: Path, base: Vectors, n: int) -> list[Path]:
    """Files of vectors: those of `base`, again and again, with noise."""
    paths = []
    for start in range(0, n, _FILE):
        rng = np.random.default_rng(start)
        rows = np.arange(start, min(start + _FILE, n)) % len(base)
        x = base[rows] + np.float32(_NOISE) * rng.standard_normal((len(rows), base.shape[1]), dtype=np.float32)
        paths.append(folder / f"vectors-{start:09d}.npy")
        np.save(paths[-1], x)
    return paths


def add_rates(trained: faiss_dpq.IndexDPQ, x: Vectors, rounds: int) -> tuple[list[float], list[float]]:
    """Vectors a second by `add` of one thread: by the clock, and in CPU time."""
    faiss.omp_set_num_threads(1)
    rates: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        index = faiss_dpq.clone_index(trained)
        wall, cpu = time.perf_counter(), time.process_time()
        index.add(x)
        rates[0].append(len(x) / (time.perf_counter() - wall))
        rates[1].append(len(x) / (time.process_time() - cpu))
    return rates


def build(trained: faiss_dpq.IndexDPQ, paths: list[Path], folder: Path, arguments: argparse.Namespace) -> None:
    """Build with every number of workers, between measurements of `add`, and print their rates."""
    some = np.load(paths[0])[: arguments.rows_per_part]
    rows = []
    for workers in arguments.workers:
        before = add_rates(trained, some, 1)
        executor = MeasuringExecutor(workers)
        started = time.perf_counter()
        shards.build_shards(
            trained,
            paths,
            folder / f"by-{workers}",
            arguments.shards,
            rows_per_part=arguments.rows_per_part,
            executor=executor,
        )
        seconds = time.perf_counter() - started
        encoding, assembling = executor.spent("encode_part"), executor.spent("assemble_shard")
        after = add_rates(trained, some, 1)
        wall, cpu = (float(np.median([*b, *a])) for b, a in zip(before, after, strict=True))
        worker_wall = sum(task.rows for task in encoding) / sum(task.wall for task in encoding)
        worker_cpu = sum(task.rows for task in encoding) / sum(task.cpu for task in encoding)
        rows.append(
            [
                workers,
                f"{seconds:.1f}",
                f"{arguments.n / seconds:,.0f}",
                f"{worker_wall:,.0f}",
                f"{wall:,.0f}",
                f"{worker_wall / wall:.2f}",
                f"{worker_cpu / cpu:.2f}",
                f"{max(task.peak for task in encoding) / 2**20:,.0f}",
                f"{max(task.peak for task in assembling) / 2**20:,.0f}",
            ]
        )
    print(f"\n{arguments.n:,} vectors, {arguments.shards} shards, {arguments.rows_per_part:,} rows a part\n")
    header = ["workers", "s in all", "vectors/s in all", "vectors/s a worker, encoding", "add, 1 thread"]
    header += ["ratio", "ratio of CPU times", "MiB a worker, encoding", "MiB, assembling"]
    timing.print_table(header, rows)


def search(trained: faiss_dpq.IndexDPQ, paths: list[Path], folder: Path, arguments: argparse.Namespace) -> None:
    """Search shards and one index in turn, and print queries a second."""
    faiss.omp_set_num_threads(arguments.threads)
    one = faiss_dpq.clone_index(trained)
    for path in paths:
        one.add(np.load(path))
    split = shards.read_shards(folder / f"by-{arguments.workers[-1]}")
    rng = np.random.default_rng(1)
    xq = np.load(paths[0])[:1000] + np.float32(_NOISE) * rng.standard_normal((1000, one.d), dtype=np.float32)
    rows = []
    for k in (10, 100):
        for ours, theirs in zip(split.search(xq, k), one.search(xq, k), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        jobs = {
            "one": timing.Job(lambda k=k: one.search(xq, k), len(xq)),
            "shards": timing.Job(lambda k=k: split.search(xq, k), len(xq)),
        }
        times = timing.interleave(jobs, arguments.rounds)
        per_second = [f"{1 / float(np.median(times[name])):,.0f}" for name in ("one", "shards")]
        rows.append([k, *per_second, timing.ratios(times["one"], times["shards"])])
    print("\nBatches of 1,000 queries; results are equal bit for bit\n")
    timing.print_table(["k", "queries/s, one index", "queries/s, shards", "ratio"], rows)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--n", type=int, default=5_000_000, help="vectors")
    parser.add_argument("--rows-per-part", type=int, default=500_000)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="processes of one thread each")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of searches")
    parser.add_argument("--rounds", type=int, default=5, help="of searches")
    parser.add_argument("--folder", type=Path, help="for vectors and shards; a temporary one by default")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="bench-shards-"))
    try:
        vectors = load_glove()
        trained = faiss_dpq.IndexDPQ(vectors.base.shape[1], 8, 8)
        trained.train(vectors.train, effort="fast")
        (folder / "vectors").mkdir(parents=True, exist_ok=True)
        paths = write_sources(folder / "vectors", vectors.base, arguments.n)
        machine = timing.machine()
        print(f"{machine['cpu']}, {machine['cores']} cores, {machine['simd']}; {trained}")
        build(trained, paths, folder, arguments)
        search(trained, paths, folder, arguments)
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
