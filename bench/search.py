"""Exhaustive search of compressed vectors: IndexDPQ beside its peers, `python -m bench.search --help`.

Every peer stores the same bytes a vector as ours. Peers and ours are timed in turn, in rounds, in one process with the
same number of threads. The slow are given a fraction of the queries: a batch of them, large enough for all threads;
their time grows linearly with their number. The table says of how many queries each time was taken. Ratios are medians,
with their range over the rounds.

Before anything is timed, results of ours are compared with a plain numpy search over the reconstructions.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import faiss
import numpy as np

import faiss_dpq
from faiss_dpq import _kernels
from faiss_dpq.lab.datasets import Vectors

from . import data, timing

Search = Callable[[Vectors, int], tuple[np.ndarray, np.ndarray]]

OURS = "IndexDPQ"
PEERS = ("pq", "fastscan", "rq", "scann")

_MIN_FRACTION = 8  # queries a thread: fewer would leave FAISS's threads unequal work
_ONE_BY_ONE = 32  # single queries before any are timed
_VERIFIED = 4  # queries compared with the plain search
_VERIFIED_K = 100


@dataclass
class Contender:
    """Something that searches, of one code size."""

    name: str
    search: Search
    note: str = ""


# ---- building ------------------------------------------------------------------------------------------------------


def codebooks(train: Vectors, M: int, nbits: int = 8) -> Vectors:
    """Codebooks of a quick training: FAISS's residual k-means without a beam. Only speed is measured here."""
    rq = faiss.ResidualQuantizer(train.shape[1], M, nbits)
    rq.train_type = faiss.ResidualQuantizer.Train_default
    rq.max_beam_size = 1
    rq.cp.niter = 10
    rq.cp.max_points_per_centroid = 128
    rq.train(train)
    return faiss.vector_to_array(rq.codebooks).reshape(M, 1 << nbits, train.shape[1])


def drawn_codebooks(d: int, M: int) -> Vectors:
    """Codebooks as structured ones look: some of all dimensions, then smaller ones of blocks of dimensions."""
    rng, n_global, n_blocks = np.random.default_rng(M), min(12, M), max(1, M // 8)
    codebooks = rng.standard_normal((M, 256, d)) * 0.95 ** np.arange(M)[:, None, None]
    block = np.arange(d) * n_blocks // d
    for level in range(n_global, M):
        codebooks[level] *= block == level % n_blocks
    return codebooks / np.sqrt(M)


def padded(x: Vectors, multiple: int) -> Vectors:
    """With columns of zeros up to the next multiple, which product quantizers need."""
    return np.pad(x, ((0, 0), (0, -x.shape[1] % multiple)))


def new_index(kind: str, dataset: data.Dataset, M: int) -> tuple[faiss.Index, int]:
    """A trained, empty index of M bytes a vector, and what the number of columns must be a multiple of."""
    d, train = dataset.d, dataset.train
    if kind == "ours":
        drawn = dataset.name == "drawn"
        index = faiss_dpq.IndexDPQ.from_codebooks(drawn_codebooks(d, M) if drawn else codebooks(train, M))
        index.beam_size = 1
        return index, 1
    multiple = M if kind == "pq" else 2 * M
    d += -d % multiple
    index = faiss.IndexPQ(d, M, 8) if kind == "pq" else faiss.IndexPQFastScan(d, 2 * M, 4)
    index.train(padded(train, multiple))
    return index, multiple


def indexes(dataset: data.Dataset, M: int, kinds: list[str], cache: Path | None) -> dict[str, faiss.Index]:
    """Filled indexes, read from the cache folder where it has them."""
    files = {kind: cache / f"{dataset.name}-{dataset.n}-{M}-{kind}.index" for kind in kinds} if cache else {}
    ready = {kind: faiss_dpq.read_index(str(file)) for kind, file in files.items() if file.exists()}
    new = {kind: new_index(kind, dataset, M) for kind in kinds if kind not in ready}
    for number, block in enumerate(dataset.blocks() if new else ()):
        for kind, (index, multiple) in new.items():
            if dataset.name == "drawn" and kind != "fastscan":  # whose codes no call takes
                index.add_sa_codes(np.random.default_rng(number).integers(0, 256, (len(block), M), np.uint8))
            else:
                index.add(padded(block, multiple))
    for kind, (index, _) in new.items():
        ready[kind] = index
        if files:
            files[kind].parent.mkdir(parents=True, exist_ok=True)
            faiss_dpq.write_index(index, str(files[kind]))
    return ready


def contenders(
    dataset: data.Dataset, M: int, peers: list[str], levels: list[int], cache: Path | None
) -> dict[str, Contender]:
    """Ours first, then searches of fewer levels of it, then the peers asked for."""
    kinds = ["ours", *(kind for kind in ("pq", "fastscan") if kind in peers)]
    built = indexes(dataset, M, kinds, cache)
    ours = built["ours"]
    entered = {"ours": Contender(f"{OURS} {M}x8", ours.search)}
    for some in levels:
        entered[f"{some} levels"] = Contender(f"{OURS} {M}x8, {some} levels", _prefix_search(ours, some))
    for kind, name, multiple in (("pq", f"IndexPQ {M}x8", M), ("fastscan", f"IndexPQFastScan {2 * M}x4", 2 * M)):
        if kind in built:
            zeros = -dataset.d % multiple
            note = f"d={dataset.d} padded with {zeros} columns of zeros" if zeros else ""
            entered[kind] = Contender(name, _padding_search(built[kind], multiple), note)
    if "rq" in peers:
        # The same codebooks and codes in FAISS's own class, which stores no norms either (ST_norm_from_LUT).
        stock = faiss.deserialize_index(faiss.serialize_index(ours))
        entered["rq"] = Contender(f"IndexResidualQuantizer {M}x8", stock.search)
    if "scann" in peers:
        entered["scann"] = Contender(f"scann {2 * M}x4", _scann_search(dataset, M), "approximate")
    return entered


def _prefix_search(index: faiss_dpq.IndexDPQ, levels: int) -> Search:
    params = faiss_dpq.SearchParametersDPQ(levels=levels)
    return lambda x, k: index.search(x, k, params=params)


def _padding_search(index: faiss.Index, multiple: int) -> Search:
    return lambda x, k: index.search(padded(x, multiple), k)


def _scann_search(dataset: data.Dataset, M: int) -> Search:
    """ScaNN's exhaustive asymmetric hashing, 4-bit codes of as many bytes, no reordering."""
    import scann

    x = padded(np.concatenate(list(dataset.blocks())), 2 * M)
    builder = scann.scann_ops_pybind.builder(x, 10, "squared_l2")
    # nan: plain quantization, without the anisotropic loss that is for inner products.
    searcher = builder.score_ah(x.shape[1] // (2 * M), anisotropic_quantization_threshold=float("nan")).build()

    def search(x: Vectors, k: int) -> tuple[np.ndarray, np.ndarray]:
        threads = faiss.omp_get_max_threads()
        searcher.set_num_threads(threads)
        many = searcher.search_batched if threads == 1 or len(x) == 1 else searcher.search_batched_parallel
        ids, distances = many(padded(x, 2 * M), final_num_neighbors=k)
        return distances, ids

    return search


# ---- exactness -----------------------------------------------------------------------------------------------------


def verify(index: faiss_dpq.IndexDPQ, queries: Vectors) -> None:
    """Compare results, searched one by one and in a batch, with those over the reconstructed vectors in numpy.

    Raises
    ------
    AssertionError
        If a distance is off by more than 1e-5 of itself, or an id is not that of a vector at that distance.
    """
    k = min(_VERIFIED_K, index.ntotal)
    some = queries[:_VERIFIED].astype(np.float64)
    distances = np.concatenate([_distances(some, block) for block in _reconstructions(index)], axis=1)
    nearest = np.sort(np.partition(distances, k - 1, axis=1)[:, :k], axis=1)
    in_batch = index.search(queries, k)
    one_by_one = [index.search(queries[q : q + 1], k) for q in range(len(some))]
    for D, I in (in_batch, [np.concatenate(some) for some in zip(*one_by_one, strict=True)]):
        np.testing.assert_allclose(D[: len(some)], nearest, rtol=1e-5)
        np.testing.assert_allclose(np.take_along_axis(distances, I[: len(some)], 1), nearest, rtol=1e-5)


def _reconstructions(index: faiss_dpq.IndexDPQ, block: int = 1 << 16) -> Iterator[np.ndarray]:
    codebooks = index.codebooks.astype(np.float64)
    codes = faiss.vector_to_array(index.codes).reshape(index.ntotal, -1)
    for start in range(0, len(codes), block):
        yield sum(codebooks[level][codes[start : start + block, level]] for level in range(len(codebooks)))


def _distances(queries: np.ndarray, x: np.ndarray) -> np.ndarray:
    return (queries**2).sum(1)[:, None] - 2 * queries @ x.T + (x**2).sum(1)


# ---- timing --------------------------------------------------------------------------------------------------------


def job(search: Search, threads: int, queries: Vectors, nq: int, k: int, budget: float) -> timing.Job:
    """Calls of nq queries each, filling about `budget` seconds; of a slow contender, one call with fewer queries."""
    faiss.omp_set_num_threads(threads)
    size = min(nq, _MIN_FRACTION * threads)
    for query in queries[:_ONE_BY_ONE] if nq == 1 else ():  # what is made once, after some single queries
        search(query[None], k)
    while True:
        search(queries[:size], k)  # allocations and caches
        took = timing.seconds(partial(search, queries[:size], k))
        if size == nq or took > budget / 2:
            break
        size = min(2 * size, nq)
    calls = max(1, min(int(budget / took), len(queries) // size, 256))

    def run() -> None:
        faiss.omp_set_num_threads(threads)
        for call in range(calls):
            search(queries[call * size : (call + 1) * size], k)

    run()
    return timing.Job(run, calls * size)


def measure(entered: dict[str, Contender], queries: Vectors, nq: int, k: int, args: Any) -> list[dict[str, Any]]:
    """One result a number of threads and contender; all of them take turns."""
    jobs = {
        f"{kind} {threads}": job(contender.search, threads, queries, nq, k, args.budget)
        for threads, (kind, contender) in itertools.product(args.threads, entered.items())
    }
    times = timing.interleave(jobs, args.rounds, args.clock)
    return [
        {
            "name": contender.name,
            "note": contender.note,
            "nq": nq,
            "k": k,
            "threads": threads,
            "clock": args.clock,
            "timed_queries": jobs[f"{kind} {threads}"].units,
            "seconds_a_query": timing.Spread.of(times[f"{kind} {threads}"]),
            "times_ours": timing.ratios(times[f"{kind} {threads}"], times[f"ours {threads}"]),
            "speed_up": timing.ratios(times[f"{kind} {args.threads[0]}"], times[f"{kind} {threads}"]),
        }
        for threads, (kind, contender) in itertools.product(args.threads, entered.items())
    ]


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All measurements that the arguments ask for, each printed when it is done."""
    results = []
    for name, M in itertools.product(args.dataset, args.M):
        dataset = data.load(name, args.n)
        entered = contenders(dataset, M, args.peers, args.levels, args.cache)
        verify(entered["ours"].search.__self__, dataset.queries)
        print(f"\n{name}: {dataset.n:,} x {dataset.d}; {M} bytes a vector; {OURS} equals the plain numpy search")
        for contender in entered.values():
            if contender.note:
                print(f"{contender.name}: {contender.note}")
        rows = []
        for nq, k in itertools.product(args.nq, args.k):
            here = measure(entered, dataset.queries, nq, k, args)
            results += [{"dataset": name, "n": dataset.n, "M": M, **result} for result in here]
            rows += [_row(result, dataset.n) for result in here]
        timing.print_table(_HEADER, rows)
    return results


_HEADER = ("nq", "k", "threads", "index", "queries timed", "us a query", "G distances/s", "times ours", "speed-up")


def _row(result: dict[str, Any], n: int) -> tuple[object, ...]:
    seconds, one_thread_count = result["seconds_a_query"].median, result["speed_up"] == (1, 1, 1)
    return (
        result["nq"],
        result["k"],
        result["threads"],
        result["name"],
        result["timed_queries"],
        f"{1e6 * seconds:.1f}",
        f"{n / seconds / 1e9:.3f}",
        "" if result["name"].startswith(OURS) and "levels" not in result["name"] else result["times_ours"],
        "" if one_thread_count else result["speed_up"],
    )


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m bench.search", description=__doc__.splitlines()[0])
    several = {"nargs": "+", "type": int}
    parser.add_argument("--dataset", nargs="+", choices=data.NAMES, default=["clustered"])
    parser.add_argument("--n", type=int, default=1_000_000, help="size of synthetic data sets")
    parser.add_argument("--M", **several, default=[4], help="bytes a vector")
    parser.add_argument("--levels", **several, default=[], help="enter searches of so many levels of ours, too")
    parser.add_argument("--nq", **several, default=[1, 1000], help="queries a call")
    parser.add_argument("--k", **several, default=[10])
    parser.add_argument("--threads", **several, default=[1], help="speed-up is over the first number")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=["pq", "fastscan"])
    parser.add_argument("--budget", type=float, default=0.3, help="seconds a contender and round, about")
    parser.add_argument("--cache", type=Path, help="folder for built indexes, read by later runs")
    parser.add_argument(
        "--simd", choices=_kernels.available_simd_levels(), help="instruction set of ours; FAISS's stays"
    )
    parser.add_argument("--clock", choices=timing.CLOCKS, default="wall", help="cpu: for one thread on a busy machine")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    if args.simd:
        _kernels.set_simd_level(args.simd)
    if args.clock == "cpu" and args.threads != [1]:
        parser.error("--clock cpu adds up the time of all threads: use it with --threads 1")
    if max(args.nq) > data.QUERIES:
        parser.error(f"--nq is {max(args.nq)}, the data sets have {data.QUERIES} queries")
    if "scann" in args.peers and find_spec("scann") is None:
        parser.error("--peers scann: the package is not installed; pip install scann")
    return args


if __name__ == "__main__":
    args = arguments()
    timing.write_json(args.json, run(args))
