"""Search of inverted lists: IndexIVFDPQ beside its peers, `python -m bench.ivf --help`.

All indexes have the same coarse quantizer, the same bytes a vector and the same nprobe. As in bench.search, peers and
ours are timed in turn, in rounds, in one process with the same number of threads; ratios are medians, with their range
over the rounds. Recall is the share of queries whose true nearest neighbour is among the k results.

Before anything is timed, results of ours are compared with a plain numpy search over the reconstructions in the probed
lists.
"""

import argparse
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np

import faiss_dpq
from faiss_dpq.lab.datasets import Vectors

from . import data, timing
from .search import Contender, job, padded

OURS = "IndexIVFDPQ"
PEERS = ("ivfpq", "fastscan", "fastscan-residual", "rq")

_VERIFIED = 20  # queries compared with the plain search
_VERIFIED_K = 100


# ---- building ------------------------------------------------------------------------------------------------------


def coarse_quantizer(train: Vectors, nlist: int) -> faiss.IndexFlatL2:
    """Centres of the lists, by FAISS's k-means."""
    quantizer = faiss.IndexFlatL2(train.shape[1])
    faiss.IndexIVFFlat(quantizer, train.shape[1], nlist).train(train)
    return quantizer


def new_index(kind: str, quantizer: faiss.Index, M: int, train: Vectors, args: argparse.Namespace) -> faiss.IndexIVF:
    """A trained, empty index of M bytes a vector."""
    d, nlist = quantizer.d, quantizer.ntotal
    if kind == "ours":
        index = faiss_dpq.IndexIVFDPQ(quantizer, d, nlist, M, 8)
        index.train(train, effort=args.effort)
        return index
    if kind == "ivfpq":
        index = faiss.IndexIVFPQ(quantizer, d, nlist, M, 8)
    else:
        index = faiss.IndexIVFPQFastScan(quantizer, d, nlist, 2 * M, 4)
        index.by_residual = kind == "fastscan-residual"
    index.train(train)
    return index


def indexes(dataset: data.Dataset, M: int, kinds: list[str], args: argparse.Namespace) -> dict[str, faiss.IndexIVF]:
    """Filled indexes, read from the cache folder where it has them."""
    stem = f"{dataset.name}-{dataset.n}-{args.nlist}"
    names = {"coarse": f"{stem}-coarse", **{kind: f"{stem}-{M}-{kind}-{args.effort}" for kind in kinds}}
    files = {kind: args.cache / f"{name}.index" for kind, name in names.items()} if args.cache else {}
    ready = {kind: faiss_dpq.read_index(str(file)) for kind, file in files.items() if file.exists()}
    if "coarse" not in ready:
        ready["coarse"] = coarse_quantizer(dataset.train, args.nlist)
    new = {kind: new_index(kind, ready["coarse"], M, dataset.train, args) for kind in kinds if kind not in ready}
    for block in dataset.blocks() if new else ():
        for index in new.values():
            index.add(block)
    ready |= new
    for kind, file in files.items():
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            faiss_dpq.write_index(ready[kind], str(file))
    return ready


def contenders(dataset: data.Dataset, M: int, args: argparse.Namespace) -> dict[str, Contender]:
    """Ours first, then the peers asked for."""
    kinds = ["ours", *(kind for kind in PEERS[:3] if kind in args.peers)]
    built = indexes(dataset, M, kinds, args)
    names = {
        "ours": f"{OURS} {M}x8",
        "ivfpq": f"IndexIVFPQ {M}x8",
        "fastscan": f"IndexIVFPQFastScan {2 * M}x4",
        "fastscan-residual": f"IndexIVFPQFastScan {2 * M}x4, by_residual",
    }
    if "rq" in args.peers:
        built["rq"] = faiss.deserialize_index(faiss.serialize_index(built["ours"]))
        names["rq"] = f"IndexIVFResidualQuantizer {M}x8"
    entered = {}
    for kind, name in names.items():
        if kind in built:
            built[kind].nprobe = args.nprobe
            entered[kind] = Contender(name, built[kind].search)
    return entered


def with_columns(dataset: data.Dataset, multiple: int) -> data.Dataset:
    """The data set with columns of zeros up to a multiple, which product quantizers need; distances stay the same."""
    if dataset.d % multiple == 0:
        return dataset
    return replace(
        dataset,
        d=dataset.d + -dataset.d % multiple,
        train=padded(dataset.train, multiple),
        queries=padded(dataset.queries, multiple),
        blocks=lambda: (padded(block, multiple) for block in dataset.blocks()),
    )


# ---- exactness and recall ------------------------------------------------------------------------------------------


def verify(index: faiss_dpq.IndexIVFDPQ, queries: Vectors) -> None:
    """Compare results, searched one by one and in a batch, with those over the reconstructed vectors in numpy.

    Raises
    ------
    AssertionError
        If a distance is off by more than 1e-5 of itself, or an id is not that of a vector at that distance.
    """
    in_batch = index.search(queries, _VERIFIED_K)
    keys = index.quantizer.search(queries[:_VERIFIED], index.nprobe)[1]
    for q in range(_VERIFIED):
        ids, x = _reconstructions(index, keys[q])
        distances = ((queries[q].astype(np.float64) - x) ** 2).sum(1)
        order = np.argsort(distances)
        position = dict(zip(ids.tolist(), range(len(ids)), strict=True))
        for D, I in ((in_batch[0][q], in_batch[1][q]), (a[0] for a in index.search(queries[q : q + 1], _VERIFIED_K))):
            np.testing.assert_allclose(D, distances[order[:_VERIFIED_K]], rtol=1e-5)
            np.testing.assert_allclose(distances[[position[i] for i in I.tolist()]], D, rtol=1e-5)


def _reconstructions(index: faiss_dpq.IndexIVFDPQ, lists: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    codebooks = index.codebooks.astype(np.float64)
    ids, x = [], []
    for list_no in lists.tolist():
        n = index.invlists.list_size(list_no)
        ids.append(faiss.rev_swig_ptr(index.invlists.get_ids(list_no), n).copy())
        codes = faiss.rev_swig_ptr(index.invlists.get_codes(list_no), n * index.code_size).reshape(n, -1)
        centre = index.quantizer.reconstruct(list_no).astype(np.float64)
        x.append(centre + sum(codebooks[level][codes[:, level]] for level in range(len(codebooks))))
    return np.concatenate(ids), np.concatenate(x)


def true_neighbours(dataset: data.Dataset) -> np.ndarray:
    """The id of every query's nearest vector, shape (nq,)."""
    best, nearest, start = np.full(len(dataset.queries), np.inf), np.zeros(len(dataset.queries), np.int64), 0
    for block in dataset.blocks():
        D, I = faiss.knn(dataset.queries, block, 1)
        nearer = D[:, 0] < best
        best[nearer], nearest[nearer] = D[nearer, 0], start + I[nearer, 0]
        start += len(block)
    return nearest


def recall(contender: Contender, queries: Vectors, nearest: np.ndarray, k: int) -> float:
    """Share of the queries whose nearest vector is among the k found."""
    return float((contender.search(queries, k)[1] == nearest[:, None]).any(1).mean())


# ---- timing --------------------------------------------------------------------------------------------------------


def measure(
    entered: dict[str, Contender], dataset: data.Dataset, nearest: np.ndarray, nq: int, k: int, args: Any
) -> list[dict[str, Any]]:
    """One result a number of threads and contender; all of them take turns."""
    jobs = {
        f"{kind} {threads}": job(contender.search, threads, dataset.queries, nq, k, args.budget)
        for threads, (kind, contender) in itertools.product(args.threads, entered.items())
    }
    times = timing.interleave(jobs, args.rounds, args.clock)
    recalls = {kind: recall(contender, dataset.queries, nearest, k) for kind, contender in entered.items()}
    return [
        {
            "name": contender.name,
            "nq": nq,
            "k": k,
            "threads": threads,
            "clock": args.clock,
            "timed_queries": jobs[f"{kind} {threads}"].units,
            "recall": recalls[kind],
            "seconds_a_query": timing.Spread.of(times[f"{kind} {threads}"]),
            "times_ours": timing.ratios(times[f"{kind} {threads}"], times[f"ours {threads}"]),
        }
        for threads, (kind, contender) in itertools.product(args.threads, entered.items())
    ]


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All measurements that the arguments ask for, each printed when it is done."""
    results = []
    for name, M in itertools.product(args.dataset, args.M):
        dataset = with_columns(data.load(name, args.n), 2 * M)
        nearest = true_neighbours(dataset)
        entered = contenders(dataset, M, args)
        verify(entered["ours"].search.__self__, dataset.queries)
        print(
            f"\n{name}: {dataset.n:,} x {dataset.d}; nlist {args.nlist}, nprobe {args.nprobe}; {M} bytes a vector; "
            f"{OURS} equals the plain numpy search"
        )
        rows = []
        for nq, k in itertools.product(args.nq, args.k):
            here = measure(entered, dataset, nearest, nq, k, args)
            results += [
                {"dataset": name, "n": dataset.n, "M": M, "nlist": args.nlist, "nprobe": args.nprobe, **one}
                for one in here
            ]
            rows += [_row(result) for result in here]
        timing.print_table(_HEADER, rows)
    return results


_HEADER = ("nq", "k", "threads", "index", "recall", "us a query", "queries/s", "times ours")


def _row(result: dict[str, Any]) -> tuple[object, ...]:
    seconds = result["seconds_a_query"].median
    return (
        result["nq"],
        result["k"],
        result["threads"],
        result["name"],
        f"{result['recall']:.3f}",
        f"{1e6 * seconds:.1f}",
        f"{1 / seconds:,.0f}",
        "" if result["name"].startswith(OURS) else result["times_ours"],
    )


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m bench.ivf", description=__doc__.splitlines()[0])
    several = {"nargs": "+", "type": int}
    parser.add_argument("--dataset", nargs="+", choices=data.NAMES, default=["clustered"])
    parser.add_argument("--n", type=int, default=1_000_000, help="size of the clustered data set")
    parser.add_argument("--M", **several, default=[4], help="bytes a vector")
    parser.add_argument("--nlist", type=int, default=1024)
    parser.add_argument("--nprobe", type=int, default=16)
    parser.add_argument("--nq", **several, default=[1, 1000], help="queries a call")
    parser.add_argument("--k", **several, default=[10])
    parser.add_argument("--threads", **several, default=[1])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=["ivfpq", "fastscan"])
    parser.add_argument("--effort", choices=["fast", "default", "best"], default="default", help="of our training")
    parser.add_argument("--budget", type=float, default=0.3, help="seconds a contender and round, about")
    parser.add_argument("--cache", type=Path, help="folder for built indexes, read by later runs")
    parser.add_argument("--clock", choices=timing.CLOCKS, default="wall", help="cpu: for one thread on a busy machine")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    if args.clock == "cpu" and args.threads != [1]:
        parser.error("--clock cpu adds up the time of all threads: use it with --threads 1")
    if max(args.nq) > data.QUERIES:
        parser.error(f"--nq is {max(args.nq)}, the data set has {data.QUERIES} queries")
    return args


if __name__ == "__main__":
    args = arguments()
    timing.write_json(args.json, run(args))
