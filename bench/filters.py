"""Searches with selectors beside searches without: `python -m bench.filters --help`.

An IDSelectorBitmap lets through vectors drawn at random. "kept" is the same selector in every search, as where many
queries have one filter; "new" is a bitmap that no search of the last ones had, as where every query has its own.
FAISS's objects for it are made before the clock runs: they take as long whatever is searched with them.
Searches with and without take turns; ratios are medians over the rounds, with their range. The last table says how many
results filtered lists have.
"""

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np

import faiss_dpq
from faiss_dpq.lab.datasets import Vectors

from . import data, search, timing

SHARES = (0.001, 0.01, 0.1, 0.5)
_NLIST, _NPROBE = 4096, 8
_NEW = 24  # bitmaps that take turns: more than an index keeps masks

Parameters = Callable[[], faiss.SearchParameters | None]


def bitmap(n: int, share: float, seed: int = 0) -> np.ndarray:
    """A bitmap that lets `share` of n ids through."""
    return np.packbits(np.random.default_rng(seed).random(n) < share, bitorder="little")


def parameters_of(kind: type, n: int, share: float, **more: int) -> dict[str, Parameters]:
    """Parameters with one selector for all searches, and with one for each."""
    kept = kind(sel=faiss.IDSelectorBitmap(bitmap(n, share)), **more)
    new = itertools.cycle([kind(sel=faiss.IDSelectorBitmap(bitmap(n, share, i)), **more) for i in range(1, _NEW)])
    return {"kept": lambda: kept, "new": lambda: next(new)}


def job(index: faiss.Index, queries: Vectors, nq: int, k: int, parameters: Parameters, calls: int) -> timing.Job:
    """`calls` searches, of nq queries each."""
    parts = [queries[np.arange(start, start + nq) % len(queries)] for start in range(0, calls * nq, nq)]

    def run() -> None:
        for part in parts:
            index.search(part, k, params=parameters())

    return timing.Job(run, calls * nq)


def measured(
    name: str, index: faiss.Index, kind: type, queries: Vectors, nq: int, args: argparse.Namespace, **more: int
) -> list[list[object]]:
    """Rows of the table, one a share."""
    calls = args.calls if nq == 1 else max(1, args.calls // 64)
    everything = kind(**more)
    jobs = {"all": job(index, queries, nq, args.k, lambda: everything, calls)}
    for share in args.shares:
        for how, parameters in parameters_of(kind, index.ntotal, share, **more).items():
            jobs[f"{how} {share}"] = job(index, queries, nq, args.k, parameters, calls)
    for each in jobs.values():
        each.run()
    times = timing.interleave(jobs, args.rounds, args.clock)
    unfiltered = f"{1e6 * np.median(times['all']):.1f}"
    return [
        [
            *(name, nq, f"{100 * share:g} %", unfiltered),
            *(timing.ratios(times["all"], times[f"{how} {share}"]) for how in ("kept", "new")),
        ]
        for share in args.shares
    ]


def lists_of(index: faiss_dpq.IndexDPQ, dataset: data.Dataset) -> faiss_dpq.IndexIVFDPQ:
    """The same vectors in lists, with codebooks of residuals."""
    coarse = faiss.IndexFlatL2(dataset.d)
    clustering = faiss.Clustering(dataset.d, _NLIST)
    clustering.niter, clustering.max_points_per_centroid, clustering.min_points_per_centroid = 5, 64, 1
    clustering.train(dataset.train, coarse)
    residuals = dataset.train - coarse.reconstruct_batch(coarse.search(dataset.train, 1)[1][:, 0])
    lists = faiss_dpq.IndexIVFDPQ.from_codebooks(coarse, search.codebooks(residuals, index.rq.M))
    lists.beam_size = 1
    for block in dataset.blocks():
        lists.add(block)
    return lists


def filled(index: faiss_dpq.IndexIVFDPQ, queries: Vectors, k: int, share: float) -> list[object]:
    """The share of results that are found, with and without `ensure_topk_full`."""
    selector = faiss_dpq.Filter(faiss.IDSelectorBitmap(bitmap(index.ntotal, share)))
    found = (
        index.search(queries, k, params=faiss.SearchParametersIVF(nprobe=_NPROBE, ensure_topk_full=full, sel=selector))[
            1
        ]
        for full in (False, True)
    )
    return [f"{100 * share:g} %", *(f"{(I >= 0).mean():.4f}" for I in found)]


def main() -> None:
    """Parse the arguments, measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.filters", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=1_000_000, help="vectors")
    parser.add_argument("--M", type=int, default=8, help="bytes a vector")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--nq", type=int, nargs="+", default=[1, 256], help="queries of a search")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of the vectors, let through")
    parser.add_argument("--calls", type=int, default=100, help="searches of one query a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--simd", help="instruction set of the kernels; by default the best one")
    parser.add_argument("--clock", choices=timing.CLOCKS, default="wall")
    parser.add_argument("--cache", type=Path, help="folder to keep indexes in")
    args = parser.parse_args()
    faiss.omp_set_num_threads(args.threads)
    if args.simd:
        faiss_dpq._kernels.set_simd_level(args.simd)
    dataset = data.load("clustered", args.n)
    flat = search.indexes(dataset, args.M, ["ours"], args.cache)["ours"]
    lists = lists_of(flat, dataset)
    rows = []
    for nq in args.nq:
        rows += measured("IndexDPQ", flat, faiss.SearchParameters, dataset.queries, nq, args)
        rows += measured("IndexIVFDPQ", lists, faiss.SearchParametersIVF, dataset.queries, nq, args, nprobe=_NPROBE)
    timing.print_table(
        ["index", "queries", "let through", "us a query, unfiltered", "times faster, kept", "times faster, new"], rows
    )
    print()
    timing.print_table(
        ["let through", f"results found, nprobe {_NPROBE}", "with ensure_topk_full"],
        [filled(lists, dataset.queries, args.k, share) for share in args.shares],
    )


if __name__ == "__main__":
    main()
