"""Where vectors come from: paths, folders, globs and arrays, in order."""

import errno
import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..codec import Floats
from .mapped import MappedFile
from .npz import NpzFile
from .rows import ArrayRows, Source, check_matrix

Sources = Any  # a path, a folder, a glob, an array, or a sequence of them


#: Of files of vectors, in lower case; upper case is as good.
SUFFIXES = (".npy", ".fvecs", ".bvecs", ".ivecs", ".npz", ".parquet", ".pq")


def _file(path: str, column: str | None) -> Source:
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: expected a file of vectors, {', '.join(SUFFIXES)}, or a folder or glob of them")
    if not os.path.exists(path):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    if not os.path.isfile(path):
        raise ValueError(f"{path}: a pipe or a device, expected a file, which can be read more than once")
    if not os.path.getsize(path):
        raise ValueError(f"{path}: the file is empty, it has 0 bytes")
    if suffix in (".parquet", ".pq"):
        from .parquet import ParquetFile  # loads pyarrow

        return ParquetFile(path, column)
    return NpzFile(path, column) if suffix == ".npz" else MappedFile(path)


def open_sources(sources: Sources, column: str | None = None) -> list[Source]:
    """The sources that are named, in order; files of a folder or a glob by name.

    Parameters
    ----------
    sources : str, path, array, or a sequence of them
        Files (.npy, .npz, .fvecs, .bvecs, .ivecs, .parquet), folders and globs of files, arrays of shape (n, d).
    column : str, optional
        Of parquet and .npz files, the column (array) with the vectors; needed only where there are several.

    Raises
    ------
    ValueError
        If there is none, one is not of vectors, or their dimensions differ.
    FileNotFoundError
        If there is no such file.
    """
    found = list(_opened(sources, column, "array"))
    if not found:
        raise ValueError("sources: there are none")
    for source in found:
        if source.d != found[0].d:
            raise ValueError(
                f"{source.name}: vectors of {source.d} dimensions, those of {found[0].name} have {found[0].d}"
            )
    return found


def read(path: str | os.PathLike[str], column: str | None = None) -> Floats:
    """All vectors of a file, folder or glob, checked and as float32: array, shape (n, d).

    Raises
    ------
    ValueError, FileNotFoundError
        As `open_sources`, and if there is no row, or one holds NaN or infinity.
    """
    blocks = [block for source in open_sources(path, column) for block in source.blocks(0, source.n)]
    if not blocks:
        raise ValueError(f"{path}: holds no vectors")
    return np.concatenate(blocks)


def _opened(sources: Sources, column: str | None, name: str) -> Iterator[Source]:
    if isinstance(sources, np.ndarray):
        check_matrix(sources.shape, sources.dtype, name)
        yield ArrayRows(sources, name)
    elif isinstance(sources, str | os.PathLike):
        for path in _paths(os.fspath(sources)):
            yield _file(path, column)
    elif isinstance(sources, Sequence):
        for number, source in enumerate(sources):
            yield from _opened(source, column, f"array {number}")
    else:
        raise TypeError(f"sources: a {type(sources).__name__}, expected paths or arrays")


def _paths(path: str) -> list[str]:
    if os.path.isdir(path):
        with os.scandir(path) as entries:
            found = sorted(entry.path for entry in entries if entry.is_file() and entry.name.lower().endswith(SUFFIXES))
        if not found:
            raise ValueError(f"{path}: the folder holds no file of vectors, {', '.join(SUFFIXES)}")
        return found
    if not os.path.exists(path) and glob.has_magic(path):
        found = sorted(glob.glob(path, recursive=True))
        if not found:
            raise FileNotFoundError(f"{path}: there is no such file")
        return found
    return [path]
