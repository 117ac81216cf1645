"""Removal of one vector by its id, beside FAISS's stock classes.

    python -m bench.deletion [--n 1000000] [--bytes 8] [--nlist 1024] [--rounds 31] [--clock cpu] [--json out.json]

Codes are random bytes: what they mean does not matter to a removal. Every round searches for one query, removes some
random ids from each index, one after the other, and searches again; times are medians over the rounds, and ratios
medians of the rounds' ratios. The first removal of an index, which may make a table of all ids, has its own column.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np

import faiss_dpq

from . import timing

_D, _K, _NPROBE = 32, 10, 8
_AT_ONCE = 32  # removals that are timed together; of FAISS's slow ones, each by itself


def _quantizers(n_bytes: int, rng: np.random.Generator) -> tuple[np.ndarray, faiss.IndexPQ]:
    codebooks = rng.standard_normal((n_bytes, 256, _D)).astype(np.float32)
    pq = faiss.IndexPQ(_D, n_bytes, 8)
    faiss.copy_array_to_vector(rng.standard_normal(_D * 256).astype(np.float32), pq.pq.centroids)
    pq.is_trained = True
    return codebooks, pq


def _coarse(nlist: int) -> faiss.Index:
    coarse = faiss.IndexFlatL2(_D)
    coarse.add(np.random.default_rng(1).standard_normal((nlist, _D)).astype(np.float32))
    return coarse


def _filled(index: faiss.Index, codes: np.ndarray, ids: np.ndarray | None = None) -> faiss.Index:
    for start in range(0, len(codes), 1 << 18):
        part = slice(start, start + (1 << 18))
        index.add_sa_codes(codes[part], None if ids is None else ids[part])
    return index


def pairs(n: int, n_bytes: int, nlist: int) -> dict[str, Callable[[], tuple[faiss.Index, faiss.Index]]]:
    """Makers of (ours, FAISS's), filled alike, by name."""
    rng = np.random.default_rng(0)
    codebooks, pq = _quantizers(n_bytes, rng)
    codes, ids = rng.integers(0, 256, (n, n_bytes), np.uint8), rng.permutation(n)
    lists = rng.integers(0, nlist, n).astype("<i8").view(np.uint8).reshape(n, 8)

    def ours() -> faiss.Index:
        return faiss_dpq.IndexDPQ.from_codebooks(codebooks)

    def in_lists(index: faiss.Index, kind: int) -> faiss.Index:
        coarse_size = index.coarse_code_size()
        index.nprobe = _NPROBE
        index.set_direct_map_type(kind)
        return _filled(index, np.concatenate([lists[:, :coarse_size], codes], axis=1), ids)

    def ivf_pair(kind: int) -> tuple[faiss.Index, faiss.Index]:
        stock = faiss.IndexIVFPQ(_coarse(nlist), _D, nlist, n_bytes, 8)
        faiss.copy_array_to_vector(faiss.vector_to_array(pq.pq.centroids), stock.pq.centroids)
        stock.is_trained = True
        return in_lists(faiss_dpq.IndexIVFDPQ.from_codebooks(_coarse(nlist), codebooks / 2), kind), in_lists(
            stock, kind
        )

    return {
        "flat": lambda: (_filled(ours(), codes), _filled(faiss.clone_index(pq), codes)),
        "IDMap": lambda: (
            _filled(faiss_dpq.IndexIDMap(ours()), codes, ids),
            _filled(faiss.IndexIDMap(faiss.clone_index(pq)), codes, ids),
        ),
        "IDMap2": lambda: (
            _filled(faiss_dpq.IndexIDMap2(ours()), codes, ids),
            _filled(faiss.IndexIDMap2(faiss.clone_index(pq)), codes, ids),
        ),
        f"IVF{nlist}": lambda: ivf_pair(faiss.DirectMap.NoMap),
        f"IVF{nlist}, hash table": lambda: ivf_pair(faiss.DirectMap.Hashtable),
    }


def measure(name: str, indexes: tuple[faiss.Index, faiss.Index], rounds: int, clock: str) -> dict[str, Any]:
    """Times of removals and of searches before and after them, in microseconds, of (ours, FAISS's)."""
    rng = np.random.default_rng(3)
    removed = iter(rng.permutation(indexes[0].ntotal - 2 * (rounds + 1) * _AT_ONCE))  # ids that stay there till the end
    queries = rng.standard_normal((rounds, 1, _D)).astype(np.float32)

    def remove(index: faiss.Index, n: int) -> Callable[[], None]:
        ids = [np.array([next(removed)]) for _ in range(n)]
        return lambda: [index.remove_ids(one) for one in ids] and None

    for index in indexes:
        for query in queries:  # lists that are probed for the first time, say
            index.search(query, _K)
    first = timing.seconds(remove(indexes[0], 1), clock)
    remove(indexes[1], 1)()
    at_once = (_AT_ONCE, _AT_ONCE if "hash table" in name else 1)
    times: dict[str, list[list[float]]] = {kind: [[], []] for kind in ("before", "remove", "after")}
    for i in range(rounds):
        for which in (0, 1) if i % 2 else (1, 0):
            index, n = indexes[which], at_once[which]
            search = partial(index.search, queries[i], _K)
            search()
            times["before"][which].append(timing.seconds(search, clock))
            times["remove"][which].append(timing.seconds(remove(index, n), clock) / n)
            times["after"][which].append(timing.seconds(search, clock))
    medians = {kind: [1e6 * float(np.median(each)) for each in both] for kind, both in times.items()}
    return {
        "index": name,
        "first removal, us": 1e6 * first,
        "removal, us": medians["remove"][0],
        "FAISS's, us": medians["remove"][1],
        "ratio": timing.ratios(times["remove"][1], times["remove"][0]),
        "search before, us": medians["before"][0],
        "after, us": medians["after"][0],
        "FAISS's after, us": medians["after"][1],
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure all pairs, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--bytes", type=int, default=8, choices=(1, 2, 4, 8, 16, 32))
    parser.add_argument("--nlist", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--clock", choices=timing.CLOCKS, default="wall")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    results = []
    for name, make in pairs(args.n, args.bytes, args.nlist).items():
        results.append(measure(name, make(), args.rounds, args.clock))
    header = list(results[0])
    rows = [[_short(result[column]) for column in header] for result in results]
    timing.print_table(header, rows)
    timing.write_json(args.json, [{**result, "ratio": result["ratio"]._asdict()} for result in results])
    return 0


def _short(value: Any) -> str:
    return (
        f"{value:.0f}"
        if isinstance(value, float) and value >= 100
        else f"{value:.1f}"
        if isinstance(value, float)
        else str(value)
    )


if __name__ == "__main__":
    sys.exit(main())
