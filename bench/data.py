"""The vectors that benchmarks search: synthetic ones of any number, and two real sets from installed packages."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from faiss_dpq.lab.datasets import Vectors, load_fashion_mnist, load_glove

NAMES = ("clustered", "drawn", "glove", "fashion-mnist")

_BLOCK = 1 << 17
QUERIES = 1000
_TRAIN = 60_000
_CENTRES, _D, _SIGMA = 4096, 128, 0.7
_DRAWN_D = 384


@dataclass(frozen=True)
class Dataset:
    """Training vectors, queries, and a base that is passed over in blocks because it may not fit in memory.

    Attributes
    ----------
    name : str
    n, d : int
        Of the base.
    train, queries : array, shape (.., d), float32
    blocks : callable
        Starts another pass over the base: an iterator of arrays, shape (.., d), float32.
    """

    name: str
    n: int
    d: int
    train: Vectors
    queries: Vectors
    blocks: Callable[[], Iterator[Vectors]]


def load(name: str, n: int = 1_000_000) -> Dataset:
    """Load a data set by name; `n` is the size of synthetic ones, and ignored for the real ones.

    Raises
    ------
    ValueError
        If there is no such data set.
    ModuleNotFoundError, FileNotFoundError
        If the package with the vectors is not installed.
    """
    if name == "clustered":
        return _clustered(n)
    if name == "drawn":
        return _drawn(n)
    if name == "glove":
        vectors = load_glove(train=_TRAIN, queries=QUERIES)
        return _in_memory(name, vectors.train, vectors.base, vectors.queries)
    if name == "fashion-mnist":
        vectors = load_fashion_mnist(QUERIES)
        return _in_memory(name, vectors.train, vectors.base, vectors.queries)
    raise ValueError(f"dataset is {name!r}, expected one of {', '.join(NAMES)}")


def _clustered(n: int) -> Dataset:
    """4,096 Gaussian centres N(0, I), and around each of them 0.7 N(0, I)."""
    centres = np.random.default_rng(0).standard_normal((_CENTRES, _D), dtype=np.float32)

    def draw(count: int, seed: int) -> Vectors:
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((count, _D), dtype=np.float32)
        x *= np.float32(_SIGMA)
        x += centres[rng.integers(0, _CENTRES, count)]
        return x

    def blocks() -> Iterator[Vectors]:
        for start in range(0, n, _BLOCK):
            yield draw(min(_BLOCK, n - start), 3 + start // _BLOCK)

    return Dataset("clustered", n, _D, draw(_TRAIN, 1), draw(QUERIES, 2), blocks)


def _drawn(n: int) -> Dataset:
    """N(0, I) of 384 dimensions: for codes of many levels that are drawn, too, as training would take minutes."""
    rng = np.random.default_rng(0)

    def blocks() -> Iterator[Vectors]:
        for start in range(0, n, _BLOCK):
            yield np.random.default_rng(start).standard_normal((min(_BLOCK, n - start), _DRAWN_D), dtype=np.float32)

    train = rng.standard_normal((10_000, _DRAWN_D), dtype=np.float32)
    queries = rng.standard_normal((QUERIES, _DRAWN_D), dtype=np.float32)
    return Dataset("drawn", n, _DRAWN_D, train, queries, blocks)


def _in_memory(name: str, train: Vectors, base: Vectors, queries: Vectors) -> Dataset:
    def blocks() -> Iterator[Vectors]:
        for start in range(0, len(base), _BLOCK):
            yield base[start : start + _BLOCK]

    return Dataset(name, len(base), base.shape[1], train, queries, blocks)
