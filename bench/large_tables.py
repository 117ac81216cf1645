"""Large codes beside FAISS's and ScaNN's at equal bytes, on vectors of 384 to 784 dimensions.

Every method gets the same training vectors and one thread. Recall is of the stored vectors; times of searches, for 10
results a query, are of those vectors repeated to `--n` or more. Times are CPU times, of searches the medians.

Methods that take long to train are measured at the bytes of `RARELY` only, unless `--all` is given. ScaNN, a package of
its own, is left out where it is not installed. It learns from the vectors that it stores, in one call that adds them.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec

import faiss
import numpy as np
import numpy.typing as npt

import faiss_dpq
from faiss_dpq.lab import benchmark
from faiss_dpq.lab.benchmark import METHODS
from faiss_dpq.lab.datasets import Vectors, VectorSet, load_fashion_mnist, load_wordnet, load_wordnet_pairs

from . import timing

K = 10
FROM_FAISS = ("IndexDPQ", "OPQ", "PQ", "PQFastScan", "RaBitQ", "PRQ")
RARELY = {"PRQ": (48,)}
HEAD = ("bytes", "method", "R@1", f"R@{K}", "training, s", "added / s", "one query, ms", "batch, ms a query")

_DECODES = ("PRQ",)  # FAISS decodes every stored code for every query of these: few are timed, and none is ranked so
_CENTROIDS = 16  # of ScaNN's blocks: 4 bits
_ANISOTROPIC = 0.2  # ScaNN's own recommendation for inner products

Ids = npt.NDArray[np.int64]
Search = Callable[[Vectors], Ids]  # the K nearest of each query


def load(name: str, n_train: int) -> VectorSet:
    """Vectors to learn from, to store and to ask for."""
    if name == "wordnet":
        return load_wordnet(train=n_train, base=34_000, queries=5_000)
    if name == "wordnet-pairs":
        return load_wordnet_pairs(train=n_train, base=34_000, queries=5_000)
    vectors = load_fashion_mnist()
    return vectors._replace(train=vectors.train[:n_train])


def of_faiss(name: str, size: int, x: VectorSet, nearest: Ids, args: argparse.Namespace) -> list[str] | None:
    """A row of a method of `faiss_dpq.lab.methods`; None where it has no codes of this size."""
    index = METHODS[name](x.base.shape[1], size)
    if index is None:
        return None
    training = timing.seconds(lambda: index.train(x.train), "cpu")
    adding = timing.seconds(lambda: index.add(x.base), "cpu")
    if name in _DECODES:
        _, found = faiss.knn(x.queries, index.reconstruct_n(0, index.ntotal), K)
    else:
        _, found = index.search(x.queries, K)
    fill(index, args.n)
    n_batch = 4 if name in _DECODES else args.batch
    times = search_times(lambda queries: index.search(queries, K)[1], x.queries[:n_batch], args.rounds)
    return row(index.sa_code_size(), name, found, nearest, [f"{training:.1f}", f"{len(x.base) / adding:,.0f}"], times)


def fill(index: faiss.Index, n: int) -> None:
    """Add copies of what is stored, until there are n vectors or more; their codes are copied, not computed again."""
    if index.ntotal < n:
        once = faiss_dpq.clone_index(index)
        while index.ntotal < n:
            index.merge_from(faiss_dpq.clone_index(once))


def of_scann(size: int, x: VectorSet, nearest: Ids, args: argparse.Namespace) -> list[str]:
    """ScaNN's row: asymmetric hashing of all vectors, without a tree, and without the vectors to rank again."""
    import scann

    d = x.base.shape[1]
    is_unit = np.allclose((x.base**2).sum(axis=1), 1, atol=1e-3)
    dimensions = -(-d // (2 * size))  # of a block of 4 bits
    measure, anisotropic = ("dot_product", _ANISOTROPIC) if is_unit else ("squared_l2", float("nan"))

    def build(base: Vectors) -> Search:
        builder = scann.scann_ops_pybind.builder(base, K, measure).set_n_training_threads(1)
        hashed = builder.score_ah(
            dimensions,
            anisotropic_quantization_threshold=anisotropic,
            training_sample_size=len(x.train),
            hash_type="lut16",
        )
        searcher = hashed.build()

        def search(queries: Vectors) -> Ids:
            if len(queries) == 1:
                return searcher.search(queries[0], final_num_neighbors=K)[0][None]
            return searcher.search_batched(queries, final_num_neighbors=K)[0].astype(np.int64)

        return search

    searches: list[Search] = []
    training = timing.seconds(lambda: searches.append(build(x.base)), "cpu")
    found = searches[0](x.queries)
    copies = -(-args.n // len(x.base))
    if copies > 1:
        searches.append(build(np.tile(x.base, (copies, 1))))
    times = search_times(searches[-1], x.queries[: args.batch], args.rounds)
    n_blocks = -(-d // dimensions)
    return row((n_blocks + 1) // 2, "ScaNN", found, nearest, [f"{training:.1f}", "–"], times)


def search_times(search: Search, queries: Vectors, rounds: int) -> list[float]:
    """Milliseconds of one query, and of each query of a batch."""
    search(queries)  # derives, in the first searches, what later ones use
    for i in range(25):  # IndexDPQ makes some of it after 20 single queries
        search(queries[i % len(queries)][None])
    jobs = {
        "one": timing.Job(lambda: [search(query[None]) for query in queries[:4]], len(queries[:4])),
        "batch": timing.Job(partial(search, queries), len(queries)),
    }
    times = timing.interleave(jobs, rounds, "cpu")
    return [1000 * float(np.median(times[name])) for name in jobs]


def row(size: int, name: str, found: Ids, nearest: Ids, costs: list[str], times: list[float]) -> list[str]:
    """A row under `HEAD`."""
    recalls = [(found[:, :rank] == nearest[:, None]).any(axis=1).mean() for rank in (1, K)]
    return [str(size), name, *(f"{recall:.3f}" for recall in recalls), *costs, *(f"{ms:.3g}" for ms in times)]


def rows(args: argparse.Namespace) -> Iterator[list[str]]:
    """All rows, one by one."""
    x = load(args.data, args.train)
    nearest = benchmark.truth(x)
    for size in args.M:
        for name in FROM_FAISS:
            if size not in RARELY.get(name, (size,)) and not args.all:
                continue
            measured = of_faiss(name, size, x, nearest, args)
            if measured:
                yield measured
        if find_spec("scann"):
            yield of_scann(size, x, nearest, args)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["wordnet", "wordnet-pairs", "fashion-mnist"])
    parser.add_argument("--M", type=int, nargs="+", default=[16, 32, 48, 64, 96], help="bytes a vector")
    parser.add_argument("--all", action="store_true", help=f"{' and '.join(RARELY)} at all of these, too")
    parser.add_argument("--train", type=int, default=20_000, help="training vectors")
    parser.add_argument("--n", type=int, default=200_000, help="vectors that searches are timed on, at least")
    parser.add_argument("--batch", type=int, default=128, help="queries of a batch")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    faiss.omp_set_num_threads(1)
    print(benchmark.markdown([], list(HEAD)), flush=True)
    for cells in rows(args):
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
