"""Accuracy of IndexDPQ and of FAISS's quantizers at equal bytes, on real vectors; and of the prefixes of one training.

    python -m bench.accuracy                                  # everything: an hour on two cores
    python -m bench.accuracy --tables accuracy --data glove --bytes 8 --methods DPQ "RQ beam 32"
    python -m bench.accuracy --tables prefixes --data glove

Every method gets the same training vectors, all of them (FAISS's limit of 256 vectors a codeword is lifted). Rows are
Markdown, printed as they are measured. Recall is 1-recall@R: the share of queries whose true nearest neighbour is among
the first R results. Results are found by exhaustive comparison with the decoded vectors, so they do not depend on how
an index stores norms.
"""

import argparse
import time
from collections.abc import Callable

import faiss
import numpy as np

import faiss_dpq
from bench.data import images
from faiss_dpq.datasets import VectorSet, load_glove

POINTS_PER_CENTROID = 1 << 20  # no limit
RANKS = (1, 10, 100)


def load_fashion_mnist(queries: int = 5_000) -> VectorSet:
    """The 60,000 training images, as training vectors and as base, and the first test images as queries."""
    base = images("train-images-idx3-ubyte.gz")
    return VectorSet(train=base, base=base, queries=images("t10k-images-idx3-ubyte.gz")[:queries])


DATA: dict[str, Callable[[], VectorSet]] = {"glove": load_glove, "fashion-mnist": load_fashion_mnist}


def residual_quantizer(d: int, M: int, beam_size: int) -> faiss.Index:
    """FAISS's RQ, trained and encoding with one beam; without norms, so that its bytes are ours."""
    index = faiss.IndexResidualQuantizer(d, M, 8, faiss.METRIC_L2, faiss.AdditiveQuantizer.ST_decompress)
    index.rq.max_beam_size = beam_size
    index.rq.cp.max_points_per_centroid = POINTS_PER_CENTROID
    return index


def product_residual_quantizer(d: int, M: int) -> faiss.Index:
    """FAISS's PRQ of two sub-vectors with M / 2 levels each."""
    return faiss.IndexProductResidualQuantizer(d, 2, M // 2, 8, faiss.METRIC_L2, faiss.AdditiveQuantizer.ST_decompress)


def product_quantizer(d: int, M: int) -> faiss.Index | None:
    """FAISS's PQ; None where d is not a multiple of M."""
    if d % M:
        return None
    index = faiss.IndexPQ(d, M, 8)
    index.pq.cp.max_points_per_centroid = POINTS_PER_CENTROID
    return index


def rotated_product_quantizer(d: int, M: int) -> faiss.Index:
    """FAISS's OPQ; the rotation pads d to a multiple of M."""
    padded = -(-d // M) * M
    pq = faiss.IndexPQ(padded, M, 8)
    pq.pq.cp.max_points_per_centroid = POINTS_PER_CENTROID
    rotation = faiss.OPQMatrix(d, M, padded)
    rotation.max_train_points = POINTS_PER_CENTROID
    index = faiss.IndexPreTransform(rotation, pq)
    index.referenced_objects = [rotation, pq]
    return index


def dpq(d: int, M: int) -> faiss.Index:
    """IndexDPQ at its defaults."""
    return faiss_dpq.IndexDPQ(d, M, 8)


METHODS: dict[str, Callable[[int, int], faiss.Index | None]] = {
    "DPQ": dpq,
    "PQ": product_quantizer,
    "OPQ": rotated_product_quantizer,
    "RQ beam 5": lambda d, M: residual_quantizer(d, M, 5),
    "RQ beam 32": lambda d, M: residual_quantizer(d, M, 32),
    "LSQ": lambda d, M: faiss.IndexLocalSearchQuantizer(
        d, M, 8, faiss.METRIC_L2, faiss.AdditiveQuantizer.ST_decompress
    ),
    "PRQ": product_residual_quantizer,
}


def timed(call: Callable[[np.ndarray], object], x: np.ndarray) -> float:
    """Wall time of a call, in seconds."""
    started = time.perf_counter()
    call(x)
    return round(time.perf_counter() - started, 1)


def recalls(xq: np.ndarray, decoded: np.ndarray, nearest: np.ndarray) -> list[float]:
    """1-recall at every rank, searching the decoded base."""
    labels = faiss.knn(xq, decoded, RANKS[-1])[1]
    return [float((labels[:, :rank] == nearest[:, None]).any(axis=1).mean()) for rank in RANKS]


def row(*cells: object) -> None:
    """Print one line of a Markdown table."""
    print(
        "| " + " | ".join(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells) + " |", flush=True
    )


def accuracy_table(data: list[str], sizes: list[int], methods: list[str]) -> None:
    """Error, recall, training and adding time of every method at every size."""
    row("data", "bytes", "method", "MSE", *(f"R@{rank}" for rank in RANKS), "train s", "add s")
    row(*["---"] * (6 + len(RANKS)))
    for name in data:
        vectors = DATA[name]()
        nearest = faiss.knn(vectors.queries, vectors.base, 1)[1][:, 0]
        for size in sizes:
            for method in methods:
                index = METHODS[method](vectors.base.shape[1], size)
                if index is None:
                    continue
                train_seconds = timed(index.train, vectors.train)
                add_seconds = timed(index.add, vectors.base)
                decoded = index.reconstruct_n(0, index.ntotal)
                mse = float(((decoded - vectors.base) ** 2).sum(axis=1).mean())
                row(
                    name,
                    size,
                    method,
                    mse,
                    *recalls(vectors.queries, decoded, nearest),
                    train_seconds,
                    add_seconds,
                )


def built(make: Callable[[int, int], faiss.Index], M: int, vectors: VectorSet) -> faiss.Index:
    """A trained index that holds the base."""
    index = make(vectors.base.shape[1], M)
    index.train(vectors.train)
    index.add(vectors.base)
    return index


def prefix_table(data: list[str], M: int, lengths: list[int]) -> None:
    """R@10 of every prefix of one training of M levels, of IndexDPQs trained for that length alone, and of OPQ."""
    row("data", "levels", f"R@10 of the {M}-level index", "R@10 trained alone", "ratio", "R@10 of OPQ")
    row(*["---"] * 6)
    for name in data:
        vectors = DATA[name]()
        nearest = faiss.knn(vectors.queries, vectors.base, 1)[1][:, 0]

        whole = built(dpq, M, vectors)
        for levels in lengths:
            indexes = (
                whole.truncate(levels),
                built(dpq, levels, vectors),
                built(rotated_product_quantizer, levels, vectors),
            )
            prefix, alone, opq = (
                recalls(vectors.queries, index.reconstruct_n(0, index.ntotal), nearest)[1] for index in indexes
            )
            row(name, levels, prefix, alone, prefix / alone, opq)


def main() -> None:
    """Run the tables that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--bytes", nargs="+", type=int, default=[4, 8])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--tables", nargs="+", choices=("accuracy", "prefixes"), default=("accuracy", "prefixes"))
    parser.add_argument("--levels", type=int, default=8, help="of the index whose prefixes are measured")
    parser.add_argument("--lengths", nargs="+", type=int, help="of these prefixes; all by default")
    parser.add_argument("--threads", type=int, help="FAISS's threads; all cores by default")
    options = parser.parse_args()
    if options.threads:
        faiss.omp_set_num_threads(options.threads)
    if "accuracy" in options.tables:
        accuracy_table(options.data, options.bytes, options.methods)
        print()
    if "prefixes" in options.tables:
        prefix_table(options.data, options.levels, options.lengths or list(range(1, options.levels + 1)))


if __name__ == "__main__":
    main()
