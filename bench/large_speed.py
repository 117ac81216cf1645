"""Search speed of long codes in many dimensions, without training: `python -m bench.large_speed --help`.

Codebooks are random: global levels that shrink, and levels of blocks behind them, as training would lay them out.
Stored codes are random too, and queries lie near some of them. PQFastScan and PQ hold the same vectors in as many
bytes. Times are CPU times of one thread.
"""

import argparse

import faiss
import numpy as np

import faiss_dpq
from faiss_dpq.codec.layout import Layout
from faiss_dpq.lab import benchmark

from . import timing

_DISTINCT = 20_000  # vectors that FAISS's indexes are given, again and again: they take long to encode
_WARM = 3  # searches before any is timed


def codebooks(d: int, M: int, rng: np.random.Generator) -> np.ndarray:
    """Shape (M, 256, d), float32, of the layout that training chooses for this shape."""
    layout = Layout.default(d, M, 8)
    books = np.zeros((M, 256, d), np.float32)
    for level, block in enumerate(layout.blocks):
        dims = slice(block - 1, None, layout.n_blocks) if block else slice(None)
        books[level, :, dims] = 0.95**level * rng.standard_normal(books[level, :, dims].shape)
    return books


def indexes(d: int, M: int, n: int, nq: int, rng: np.random.Generator) -> tuple[dict[str, faiss.Index], np.ndarray]:
    """Filled indexes by their names, and queries."""
    ours = faiss_dpq.IndexDPQ.from_codebooks(codebooks(d, M, rng))
    codes = rng.integers(0, 256, (_DISTINCT, M), dtype=np.uint8)
    ours.add_sa_codes(np.ascontiguousarray(np.resize(codes, (n, M))))
    x = ours.sa_decode(codes)
    found = {"IndexDPQ": ours}
    for name, description in (("PQFastScan", f"PQ{2 * M}x4fs"), ("PQ", f"PQ{M}x8np")):
        index = found[name] = faiss.index_factory(d, description)
        index.train(x)
        while index.ntotal < n:
            index.add(x[: n - index.ntotal])
    near = x[rng.choice(_DISTINCT, nq)]
    return found, near + 0.5 * x.std() * rng.standard_normal(near.shape).astype(np.float32)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["768x64", "1536x96"], help="dimensions x bytes")
    parser.add_argument("--n", type=int, default=200_000, help="vectors")
    parser.add_argument("--nq", type=int, nargs="+", default=[1, 256])
    parser.add_argument("--k", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    faiss.omp_set_num_threads(1)
    head = ["d", "bytes", "k", "queries", "IndexDPQ, ms a query", "PQFastScan / ours", "PQ / ours"]
    print(benchmark.markdown([], head), flush=True)
    for d, M in ([int(number) for number in shape.split("x")] for shape in args.shapes):
        found, queries = indexes(d, M, args.n, max(args.nq), np.random.default_rng(0))
        for k in args.k:
            for nq in args.nq:
                xq = queries[:nq]
                jobs = {name: timing.Job(lambda i=i, k=k, xq=xq: i.search(xq, k), nq) for name, i in found.items()}
                timing.interleave(jobs, _WARM, "cpu")
                times = timing.interleave(jobs, args.rounds, "cpu")
                ours, *others = (np.median(times[name]) for name in found)
                ratios = [other / ours for other in others]
                print(f"| {d} | {M} | {k} | {nq} | {1000 * ours:.3f} | {ratios[0]:.2f} | {ratios[1]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
