"""Encoding: IndexDPQ's beam search beside FAISS's, with the same codebooks; `python -m bench.encode --help`.

Both encode the same vectors; of slow encoders a part of them is timed, and the mean squared error is always that of the
same first vectors. Every FAISS encoder is compared with our fastest beam whose error is no larger.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

import faiss_dpq
from faiss_dpq.lab.datasets import Vectors

from . import data, timing
from .search import codebooks

Encode = Callable[[Vectors], np.ndarray]


@dataclass
class Encoder:
    """A way to encode vectors, and how good its codes are."""

    name: str
    ours: bool
    encode: Encode
    error: float = 0.0


def encoders(index: faiss_dpq.IndexDPQ, beams: list[int], faiss_beams: list[int]) -> list[Encoder]:
    """Ours and FAISS's, the latter with and without its tables of inner products."""
    entered = [Encoder(f"IndexDPQ, beam {beam}", True, _ours(index, beam)) for beam in beams]
    for beam in faiss_beams:
        entered.append(Encoder(f"faiss, beam {beam}", False, _stock(index, beam, use_tables=False)))
        entered.append(Encoder(f"faiss use_beam_LUT, beam {beam}", False, _stock(index, beam, use_tables=True)))
    return entered


def _ours(index: faiss_dpq.IndexDPQ, beam: int) -> Encode:
    return lambda x: index.residual_quantizer.encode(x, beam)


def _stock(index: faiss_dpq.IndexDPQ, beam: int, *, use_tables: bool) -> Encode:
    M, K, d = index.codebooks.shape
    rq = faiss.ResidualQuantizer(d, M, K.bit_length() - 1)
    faiss.copy_array_to_vector(index.codebooks.ravel(), rq.codebooks)
    rq.is_trained = True
    rq.compute_codebook_tables()
    rq.max_beam_size = beam
    rq.use_beam_LUT = int(use_tables)
    return rq.compute_codes


def mean_squared_error(index: faiss_dpq.IndexDPQ, x: Vectors, codes: np.ndarray) -> float:
    """Of the reconstructions of codes, one byte a level."""
    difference = x - index.residual_quantizer.decode(codes)
    return float((difference.astype(np.float64) ** 2).sum(1).mean())


def job(encode: Encode, x: Vectors, budget: float) -> timing.Job:
    """Encode as many of the vectors as take about `budget` seconds."""
    first = min(len(x), 256)
    encode(x[:first])
    n = min(len(x), max(first, int(budget * first / timing.seconds(lambda: encode(x[:first])))))
    return timing.Job(lambda: encode(x[:n]), n)


def compare(x: Vectors, index: faiss_dpq.IndexDPQ, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One result an encoder."""
    entered = encoders(index, args.beams, args.faiss_beams)
    for encoder in entered:
        judged = x[: args.judged]
        encoder.error = mean_squared_error(index, judged, encoder.encode(judged))
    jobs = {encoder.name: job(encoder.encode, x, args.budget) for encoder in entered}
    times = timing.interleave(jobs, args.rounds, args.clock)
    median = {name: float(np.median(some)) for name, some in times.items()}
    results = []
    for encoder in entered:
        result: dict[str, Any] = {
            "name": encoder.name,
            "timed_vectors": jobs[encoder.name].units,
            "seconds_a_vector": timing.Spread.of(times[encoder.name]),
            "mse": encoder.error,
        }
        as_good = [other for other in entered if other.ours and other.error <= encoder.error]
        if not encoder.ours and as_good:
            rival = min(as_good, key=lambda other: median[other.name])
            result["rival"] = rival.name
            result["times_rival"] = timing.ratios(times[encoder.name], times[rival.name])
        results.append(result)
    return results


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All measurements that the arguments ask for, each code length printed when it is done."""
    faiss.omp_set_num_threads(args.threads)
    dataset = data.load(args.dataset, args.n)
    x = np.ascontiguousarray(next(dataset.blocks())[: args.n])
    results = []
    for M in args.M:
        index = faiss_dpq.IndexDPQ.from_codebooks(codebooks(dataset.train, M))
        here = compare(x, index, args)
        print(f"\n{args.dataset} {len(x):,} x {dataset.d}, {M}x8, {args.threads} thread(s)")
        timing.print_table(_HEADER, [_row(result) for result in here])
        results += [
            {"dataset": args.dataset, "M": M, "threads": args.threads, "clock": args.clock, **result} for result in here
        ]
    return results


_HEADER = ("encoder", "vectors timed", "vectors/s", "MSE", "times ours of no larger MSE (range)", "which")


def _row(result: dict[str, Any]) -> tuple[object, ...]:
    return (
        result["name"],
        result["timed_vectors"],
        f"{1 / result['seconds_a_vector'].median:,.0f}",
        f"{result['mse']:.6f}",
        result.get("times_rival", ""),
        result.get("rival", ""),
    )


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m bench.encode", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=data.NAMES, default="glove")
    parser.add_argument("--n", type=int, default=50_000, help="vectors to encode, at most")
    parser.add_argument("--M", nargs="+", type=int, default=[4, 8], help="bytes a vector")
    parser.add_argument("--beams", nargs="+", type=int, default=[1, 2, 4, 5, 8, 16, 32, 64], help="of ours")
    parser.add_argument("--faiss-beams", nargs="+", type=int, default=[5, 32])
    parser.add_argument("--judged", type=int, default=4000, help="vectors that the errors are taken of")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", type=float, default=0.3, help="seconds an encoder and round, about")
    parser.add_argument("--clock", choices=timing.CLOCKS, default="wall", help="cpu: for one thread on a busy machine")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    if args.clock == "cpu" and args.threads != 1:
        parser.error("--clock cpu adds up the time of all threads: use it with --threads 1")
    return args


if __name__ == "__main__":
    args = arguments()
    timing.write_json(args.json, run(args))
