"""Label embeddings: word vectors of class names, for the adaptive margin of Eq. 6-7."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..lab.datasets import load_glove_words

Vectors = npt.NDArray[np.float32]


def load_word_vectors(path: Path | str, words: Sequence[str] | None = None) -> dict[str, Vectors]:
    """Read word vectors from a text file in GloVe's or word2vec's format: a word and its numbers a line.

    Parameters
    ----------
    path : path
    words : sequence of str, optional
        Keep only these; all by default. The file may be larger than the memory.

    Returns
    -------
    vectors : dict from word to array, shape (d,), float32

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a line has another number of values than the first, or a value is no number.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"load_word_vectors: {path} is not a file; expected GloVe text: a word, then d numbers")
    wanted = None if words is None else set(words)
    vectors: dict[str, Vectors] = {}
    d = None
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            word, *values = line.rstrip().split(" ")
            if number == 1 and len(values) == 1:
                continue  # word2vec's header: the numbers of words and of dimensions
            d = d or len(values)
            if len(values) != d:
                raise ValueError(f"load_word_vectors: {path}:{number} has {len(values)} values, expected {d}")
            if wanted is None or word in wanted:
                try:
                    vectors[word] = np.array(values, np.float32)
                except ValueError:
                    raise ValueError(f"load_word_vectors: {path}:{number} has a value that is no number") from None
    return vectors


def label_embeddings(
    names: Sequence[str],
    vectors: Mapping[str, npt.ArrayLike] | Path | str | None = None,
    *,
    centre: bool = False,
) -> Vectors:
    """Embeddings of class names: the mean of the normalized vectors of their words.

    "T-shirt/top" is "t-shirt" if there is a vector of it, else "t" and "shirt"; and "top".

    Parameters
    ----------
    names : sequence of str
    vectors : mapping from word to vector, or path of a GloVe text file, optional
        The 50-d vectors of `faiss_dpq.lab.datasets.load_glove_words` by default.
    centre : bool
        Subtract the mean of all names from each. Names of one field have similar vectors (cosines above 0.5 between
        pieces of clothing), hence narrow margins; the centred ones lie as far apart as can be.

    Returns
    -------
    embeddings : array, shape (len(names), d), float32, L2-normalized

    Raises
    ------
    ValueError
        If a name has no word with a vector, or two names have the same vector: the margin between them would be zero.
    """
    if not isinstance(vectors, Mapping):
        candidates = [word for name in names for word in _candidates(name)]
        vectors = load_glove_words(candidates) if vectors is None else load_word_vectors(vectors, candidates)
    rows = []
    for name in names:
        words = _words(name, vectors)
        if not words:
            raise ValueError(f"label_embeddings: no word of {name!r} has a vector (looked for {_candidates(name)})")
        rows.append(np.mean([_normalized(np.asarray(vectors[word], np.float32)) for word in words], axis=0))
    embeddings = _normalized(np.stack(rows))
    for i, j in zip(*np.nonzero(np.triu(embeddings @ embeddings.T > 1 - 1e-6, 1)), strict=True):
        raise ValueError(f"label_embeddings: {names[i]!r} and {names[j]!r} have the same vector")
    return _normalized(embeddings - embeddings.mean(0)) if centre else embeddings


def _parts(name: str) -> list[str]:
    """Words between blanks, strokes and underscores; those of CamelCase apart; ImageNet's synonyms all kept."""
    return re.findall(r"[\w'’-]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.replace("_", " ")).lower())


def _candidates(name: str) -> list[str]:
    words: list[str] = []
    for part in _parts(name):
        words += [part, *(piece for piece in re.split(r"[-'’]", part) if piece != part)]
    return words


def _words(name: str, vectors: Mapping[str, npt.ArrayLike]) -> list[str]:
    found: list[str] = []
    for part in _parts(name):
        found += [part] if part in vectors else [word for word in re.split(r"[-'’]", part) if word in vectors]
    return found


def _normalized(x: Vectors) -> Vectors:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
