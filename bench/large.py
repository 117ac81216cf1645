"""Long codes of sentence embeddings beside OPQ and PQFastScan: `python -m bench.large --help`.

Vectors are `faiss_dpq.lab.datasets.load_wordnet`'s (384-d): 35,000 to learn from, 34,000 stored, other queries. Times
are CPU times of one thread. Searches are timed on stored vectors that are repeated up to `--n`.

With `--d`, only the time and memory that IndexDPQ takes are measured, on `--n` synthetic vectors of so many dimensions
whose variances fall: `python -m bench.large --d 1536 --M 96 --n 200000`.
"""

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np

import faiss_dpq
from faiss_dpq.lab import benchmark
from faiss_dpq.lab.datasets import Vectors, load_wordnet

from . import timing

_SINGLE = 32


def measured(work: Callable[[], Any]) -> float:
    """CPU seconds."""
    start = time.process_time()
    work()
    return time.process_time() - start


def untrained(M: int, d: int, metric: int) -> dict[str, faiss.Index]:
    """Untrained indexes of M bytes a vector, by their names."""
    # "np": FAISS would train polysemous codes too, which takes longer and finds no more.
    return {
        "IndexDPQ": faiss_dpq.IndexDPQ(d, M, 8, metric),
        "OPQ": faiss.index_factory(d, f"OPQ{M},PQ{M}x8np", metric),
        "PQFastScan": faiss.index_factory(d, f"PQ{2 * M}x4fs", metric),
        "PQ": faiss.index_factory(d, f"PQ{M}x8np", metric),
    }


def accuracy(
    M: int, x: Vectors, base: Vectors, queries: Vectors, metric: int, beam_sizes: list[int]
) -> dict[str, faiss.Index]:
    """Print a row for every index, and for other beams of IndexDPQ; the indexes, with the base in them."""
    nearest = faiss.knn(queries, base, 1, metric)[1]

    def add(name: str, index: faiss.Index, training: str) -> None:
        adding = measured(lambda: index.add(base))
        found = index.search(queries, 10)[1]
        first, ten = (found[:, :1] == nearest).mean(), (found == nearest).any(axis=1).mean()
        print(f"| {M} | {name} | {first:.3f} | {ten:.3f} | {training} | {len(base) / adding:,.0f} |", flush=True)

    indexes = untrained(M, x.shape[1], metric)
    for name, index in indexes.items():
        add(name, index, f"{measured(lambda index=index: index.train(x)):.1f}")
    for beam_size in beam_sizes:
        other = faiss_dpq.clone_index(indexes["IndexDPQ"])
        other.reset()
        other.beam_size = beam_size
        add(f"IndexDPQ, beam_size {beam_size}", other, "–")
    return indexes


def _search(index: faiss.Index, batches: list[Vectors], k: int) -> None:
    for batch in batches:
        index.search(batch, k)


def speed(M: int, indexes: dict[str, faiss.Index], base: Vectors, queries: Vectors, args: argparse.Namespace) -> None:
    """Print a row for every k and number of queries: PQFastScan's and PQ's times as multiples of ours.

    Single queries are `_SINGLE` different ones, one after the other: how much a search has to do depends on its query.
    """
    for index in indexes.values():
        while index.ntotal < args.n:
            index.add(base[: args.n - index.ntotal])
    indexes["IndexDPQ, coarse"] = coarse = faiss_dpq.clone_index(indexes["IndexDPQ"])
    for k in args.k:
        for nq in args.nq:
            faiss_dpq.tune_coarse(coarse, queries[-200:], k, batch=nq)
            batches = [queries[i : i + 1] for i in range(_SINGLE)] if nq == 1 else [queries[:nq]]
            jobs = {
                name: timing.Job(
                    lambda index=index, k=k, batches=batches: _search(index, batches, k), nq * len(batches)
                )
                for name, index in indexes.items()
            }
            times = timing.interleave(jobs, args.rounds, "cpu")
            ours = np.median(times["IndexDPQ"])
            ratios = [np.median(times[name]) / ours for name in ("PQFastScan", "PQ")]
            over = np.median(times["PQFastScan"]) / np.median(times["IndexDPQ, coarse"])
            row = f"{1000 * ours:.3f} | {ratios[0]:.2f} | {ratios[1]:.1f} | {over:.2f}"
            print(f"| {M} | {k} | {nq} | {row} | {coarse.coarse_levels}, {coarse.k_factor:g} |", flush=True)


def synthetic(n: int, d: int, M: int, effort: str) -> None:
    """Print a row of what training on n vectors and adding take; the memory is the most that the process has had."""
    x = np.random.default_rng(0).standard_normal((n, d), np.float32)
    x *= np.geomspace(1, 0.05, d, dtype=np.float32)
    index = faiss_dpq.IndexDPQ(d, M, 8)
    training = measured(lambda: index.train(x, effort=effort))
    added = x[:8192]
    index.add(added[:1024])  # tables are made at the first addition
    adding = measured(lambda: index.add(added))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"| {d} | {M} | {n:,} | {training:.1f} | {len(added) / adding:,.0f} | {peak:.2f} |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--M", type=int, nargs="+", default=[32, 48, 64])
    parser.add_argument("--metric", choices=["l2", "ip"], default="l2")
    parser.add_argument("--n", type=int, default=500_000, help="vectors that searches are timed on; 0: none")
    parser.add_argument("--nq", type=int, nargs="+", default=[1, 256])
    parser.add_argument("--k", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--beam-size", type=int, nargs="+", default=[], help="other beams of IndexDPQ's encoder")
    parser.add_argument("--d", type=int, help="dimensions of synthetic vectors, which are all that is measured then")
    parser.add_argument("--effort", choices=["fast", "default", "best"], default="default", help="with --d")
    args = parser.parse_args()
    faiss.omp_set_num_threads(1)
    if args.d:
        print(benchmark.markdown([], ["d", "bytes", "vectors", "training, s", "added / s", "peak GiB"]), flush=True)
        for M in args.M:
            synthetic(args.n, args.d, M, args.effort)
        return
    vectors = load_wordnet(train=35_000, base=34_000, queries=8_000)
    metric = faiss.METRIC_L2 if args.metric == "l2" else faiss.METRIC_INNER_PRODUCT
    for M in args.M:
        print(benchmark.markdown([], ["bytes", "index", "R@1", "R@10", "training, s", "added / s"]), flush=True)
        indexes = accuracy(M, *vectors, metric, args.beam_size)
        if args.n:
            head = ["bytes", "k", "queries", "IndexDPQ, ms a query", "PQFastScan / ours", "PQ / ours"]
            head += ["PQFastScan / coarse", "coarse_levels, k_factor"]
            print("\n" + benchmark.markdown([], head), flush=True)
            speed(M, indexes, vectors.base, vectors.queries, args)


if __name__ == "__main__":
    main()
