"""Whole numbers that go with vectors: their ids, and the true neighbours of queries."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .sources import open_sources

Ids = npt.NDArray[np.int64]

_LARGEST = np.iinfo(np.int64).max


def checked_ids(ids: npt.ArrayLike | str | os.PathLike[str] | None, n: int, name: str) -> Ids | None:
    """The ids of n vectors, from an array or an .npy file: shape (n,), whole numbers >= 0; None for None.

    Raises
    ------
    ValueError
        If they are anything else; the text begins with `name`.
    """
    if ids is None:
        return None
    labels = _loaded(ids, name) if isinstance(ids, str | os.PathLike) else np.asarray(ids)
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise ValueError(f"{name} are {labels.dtype} of shape {labels.shape}, expected integers of shape ({n},)")
    if labels.size and labels.min() < 0:
        raise ValueError(f"{name} hold {labels.min()}, expected numbers >= 0")
    if labels.size and labels.max() > _LARGEST:
        raise ValueError(f"{name} hold {labels.max()}, expected numbers up to {_LARGEST}")
    return labels


def _loaded(path: str | os.PathLike[str], name: str) -> npt.NDArray[Any]:
    try:
        labels = np.load(path, mmap_mode="r")
    except (ValueError, EOFError):
        labels = None
    if not isinstance(labels, np.ndarray):  # of an .npz file, several arrays
        raise ValueError(f"{name} are not an array: expected an .npy file of integers")
    return labels


def read_neighbours(path: Path, nq: int, n: int) -> Ids:
    """The true neighbours of nq queries among n vectors, the nearest first: array, shape (nq, k).

    Raises
    ------
    ValueError
        If the file (.ivecs, .npy, .npz, .parquet) holds anything else.
    FileNotFoundError
        If there is none.
    """
    (source,) = open_sources(path)
    found: list[npt.NDArray[Any]] = list(source.raw_blocks(0, source.n))
    if source.n != nq or np.dtype(source.dtype).kind not in "iu":
        raise ValueError(
            f"{path}: holds {source.dtype} of shape ({source.n}, {source.d}), "
            f"expected the numbers of every query's nearest vectors, integers of shape ({nq}, k)"
        )
    neighbours = np.concatenate(found).astype(np.int64)
    if neighbours.min() < 0 or neighbours.max() >= n:
        raise ValueError(
            f"{path}: holds numbers from {neighbours.min()} to {neighbours.max()}, expected 0 to {n - 1}: "
            "is it of other vectors?"
        )
    return neighbours
