"""Searches with selectors beside searches without: `python -m bench.filters --help`.

An IDSelectorBitmap lets through vectors drawn at random. "kept" is the same selector in every search, as where many
queries have one filter; "new" is a bitmap that no search of the last ones had, as where every query has its own.
FAISS's objects for it are made before the clock runs: they take as long whatever is searched with them.
Searches with and without take turns; ratios are medians over the rounds, with their range. The last table says how many
results filtered lists have. `--selectors` has other classes of selectors instead, which let the same shares through.
"""

import argparse
import functools
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
Selectors = Callable[[int, float, int], faiss.IDSelector]  # of n ids, a share, a seed


def bitmap(n: int, share: float, seed: int = 0) -> np.ndarray:
    """A bitmap that lets `share` of n ids through."""
    return np.packbits(np.random.default_rng(seed).random(n) < share, bitorder="little")


def of_bitmap(n: int, share: float, seed: int) -> faiss.IDSelector:
    """An IDSelectorBitmap."""
    return faiss.IDSelectorBitmap(bitmap(n, share, seed))


def of_range(n: int, share: float, seed: int) -> faiss.IDSelector:
    """An IDSelectorRange that begins anywhere."""
    first = int(np.random.default_rng(seed).integers(n - int(share * n) + 1))
    return faiss.IDSelectorRange(first, first + int(share * n))


def of_array(n: int, share: float, seed: int) -> faiss.IDSelector:
    """An IDSelectorArray."""
    return faiss.IDSelectorArray(np.flatnonzero(np.random.default_rng(seed).random(n) < share))


def of_batch(n: int, share: float, seed: int) -> faiss.IDSelector:
    """An IDSelectorBatch."""
    return faiss.IDSelectorBatch(np.flatnonzero(np.random.default_rng(seed).random(n) < share))


@functools.cache
def names_of(n: int) -> faiss.Int64Vector:
    """The ids of n places, as an IndexIDMap has them: the same in every search."""
    names = faiss.Int64Vector()
    faiss.copy_array_to_vector(np.random.default_rng(0).permutation(n), names)
    return names


#: By name. Two that are combined let sqrt(share), share / 2 or 1 - share through, so that `share` is left.
SELECTORS: dict[str, Selectors] = {
    "Bitmap": of_bitmap,
    "Range": of_range,
    "Array": of_array,
    "Batch": of_batch,
    "Not of Bitmap": lambda n, share, seed: faiss.IDSelectorNot(of_bitmap(n, 1 - share, seed)),
    "And of Range, Bitmap": lambda n, share, seed: faiss.IDSelectorAnd(
        of_range(n, share**0.5, seed), of_bitmap(n, share**0.5, seed)
    ),
    "Or of Array, Range": lambda n, share, seed: faiss.IDSelectorOr(
        of_array(n, share / 2, seed), of_range(n, share / 2, seed)
    ),
    "XOr of Batch, Range": lambda n, share, seed: faiss.IDSelectorXOr(
        of_batch(n, share / 2, seed), of_range(n, share / 2, seed)
    ),
    "Translated, Range": lambda n, share, seed: faiss.IDSelectorTranslated(names_of(n), of_range(n, share, seed)),
    "Filter of Batch": lambda n, share, seed: faiss_dpq.Filter(of_batch(n, share, seed)),
}


def parameters_of(how: str, kind: type, selectors: Selectors, n: int, share: float, **more: int) -> Parameters:
    """Parameters with one selector for all searches, "kept", or with one for each, "new"."""
    seeds = range(1) if how == "kept" else range(1, _NEW)
    turns = itertools.cycle([kind(sel=selectors(n, share, seed), **more) for seed in seeds])
    return lambda: next(turns)


def job(index: faiss.Index, queries: Vectors, nq: int, k: int, parameters: Parameters, calls: int) -> timing.Job:
    """`calls` searches, of nq queries each."""
    parts = [queries[np.arange(start, start + nq) % len(queries)] for start in range(0, calls * nq, nq)]

    def run() -> None:
        for part in parts:
            index.search(part, k, params=parameters())

    return timing.Job(run, calls * nq)


def measured(
    name: str,
    index: faiss.Index,
    kind: type,
    queries: Vectors,
    nq: int,
    args: argparse.Namespace,
    selectors: Selectors,
    **more: int,
) -> list[list[object]]:
    """Rows of the table, one a share."""
    calls = args.calls if nq == 1 else max(1, args.calls // 64)
    everything = kind(**more)
    times = {}
    for how in ("kept", "new"):  # apart, as an index forgets a selector after some new ones
        jobs = {"all": job(index, queries, nq, args.k, lambda: everything, calls)}
        for share in args.shares:
            parameters = parameters_of(how, kind, selectors, index.ntotal, share, **more)
            jobs[f"{share}"] = job(index, queries, nq, args.k, parameters, calls)
        for each in jobs.values():
            each.run()
        times[how] = timing.interleave(jobs, args.rounds, args.clock)
    unfiltered = f"{1e6 * np.median(times['kept']['all']):.1f}"
    return [
        [
            *(name, nq, f"{100 * share:g} %", unfiltered),
            *(timing.ratios(each["all"], each[f"{share}"]) for each in times.values()),
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
    parser.add_argument(
        "--selectors",
        nargs="*",
        choices=SELECTORS,
        metavar="NAME",
        help=f"of {', '.join(SELECTORS)}; all without a name",
    )
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
    header = ["index", "queries", "let through", "us a query, unfiltered", "times faster, kept", "times faster, new"]
    kinds = [("IndexDPQ", flat, faiss.SearchParameters, {})]
    kinds += [("IndexIVFDPQ", lists, faiss.SearchParametersIVF, {"nprobe": _NPROBE})]
    names = ["Bitmap"] if args.selectors is None else args.selectors or list(SELECTORS)
    rows = [
        [*([] if args.selectors is None else [selector]), *row]
        for nq, (name, index, kind, more), selector in itertools.product(args.nq, kinds, names)
        for row in measured(name, index, kind, dataset.queries, nq, args, SELECTORS[selector], **more)
    ]
    if args.selectors is not None:
        timing.print_table(["IDSelector", *header], rows)
        return
    timing.print_table(header, rows)
    print()
    timing.print_table(
        ["let through", f"results found, nprobe {_NPROBE}", "with ensure_topk_full"],
        [filled(lists, dataset.queries, args.k, share) for share in args.shares],
    )


if __name__ == "__main__":
    main()
