"""Vectors of which a range of rows is read at a time: arrays, and files that can be mapped."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..codec import Floats

Description = dict[str, Any]  # what is written down of a source, as JSON

BLOCK = 1 << 16  # rows read at a time
_SAMPLED = 16  # pieces of a file, or rows of an array, whose contents tell whether it has changed
_PIECE = 4096  # bytes


class Source(ABC):
    """Vectors, numbered from 0.

    Attributes
    ----------
    name : str
        As error messages call it; the absolute path of a file.
    n, d : int
        Number of vectors, and of their dimensions.
    dtype : str
        Of the numbers that are stored.
    """

    name: str
    n: int
    d: int
    dtype: str

    @abstractmethod
    def raw_blocks(self, start: int, stop: int) -> Iterator[npt.NDArray[Any]]:
        """The rows from `start` to `stop` as they are stored, some at a time."""

    @abstractmethod
    def raw_rows(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Some rows, given in ascending order, as they are stored."""

    @abstractmethod
    def fingerprint(self) -> Description:
        """What differs, all but surely, if the contents do."""

    def describe(self) -> Description:
        """What a plan writes down of it."""
        return {"name": self.name, "n": self.n, "d": self.d, "dtype": self.dtype, **self.fingerprint()}

    def blocks(self, start: int, stop: int) -> Iterator[Floats]:
        """The rows from `start` to `stop`, checked and as float32, at most BLOCK at a time."""
        at = start
        for raw in self.raw_blocks(start, stop):
            for first in range(0, len(raw), BLOCK):
                x = self._checked(raw[first : first + BLOCK], at)
                at += len(x)
                yield x
        if at != stop:
            raise RuntimeError(f"{self.name}: ends at row {at}, expected rows up to {stop}")

    def rows(self, rows: npt.NDArray[np.int64]) -> Floats:
        """Some rows, given in ascending order, checked and as float32: array, shape (len(rows), d)."""
        return self._checked(self.raw_rows(rows), rows)

    def _checked(self, raw: npt.NDArray[Any], numbers: int | npt.NDArray[np.int64]) -> Floats:
        with np.errstate(over="ignore"):
            x = np.array(raw, np.float32, order="C")
        finite = np.isfinite(x).all(axis=1)
        if not finite.all():
            place = int(np.flatnonzero(~finite)[0])
            row = numbers + place if isinstance(numbers, int) else int(numbers[place])
            kind = "NaN" if np.isnan(x[place]).any() else "infinity, or a number too large for float32"
            raise ValueError(f"{self.name}: row {row} holds {kind}")
        return x


class ArrayRows(Source):
    """Rows of an array in memory; pickled, it takes along these rows only."""

    def __init__(self, x: npt.NDArray[Any], name: str, first: int = 0) -> None:
        self.x, self.name, self.first = x, name, first
        self.n, self.d = first + len(x), x.shape[1]
        self.dtype = str(x.dtype)

    def part(self, start: int, stop: int) -> "ArrayRows":
        """Some of the rows, under the numbers that they have here."""
        return ArrayRows(self.x[start - self.first : stop - self.first], self.name, start)

    def raw_blocks(self, start: int, stop: int) -> Iterator[npt.NDArray[Any]]:
        """As Source says."""
        yield self.x[start - self.first : stop - self.first]

    def raw_rows(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """As Source says."""
        return self.x[rows - self.first]

    def fingerprint(self) -> Description:
        """A hash of some rows."""
        rows = np.unique(np.linspace(0, max(0, len(self.x) - 1), _SAMPLED * _SAMPLED, dtype=np.int64))
        sample = np.ascontiguousarray(self.x[rows]) if len(self.x) else self.x
        return {"sample": hashlib.sha256(sample.tobytes()).hexdigest()}


class File(Source):
    """A file; what is known of its contents is its size, its time of change, and a hash of some pieces."""

    def __init__(self, path: str) -> None:
        self.name = os.path.abspath(path)

    def fingerprint(self) -> Description:
        """Size, time of change, and a hash of some pieces."""
        sample = hashlib.sha256()
        with open(self.name, "rb") as file:
            status = os.fstat(file.fileno())
            for i in range(_SAMPLED):
                file.seek(max(0, status.st_size - _PIECE) * i // (_SAMPLED - 1))
                sample.update(file.read(_PIECE))
        return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sample": sample.hexdigest()}


class MappedFile(File):
    """A file that can be mapped: .npy, .fvecs, .bvecs. It is mapped anew for each block, and so takes no memory."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        x = self._mapped()
        check_matrix(x, self.name)
        (self.n, self.d), self.dtype = x.shape, str(x.dtype)

    def _mapped(self) -> npt.NDArray[Any]:
        from faiss.contrib.vecs_io import bvecs_mmap, fvecs_mmap

        readers = {".npy": lambda path: np.load(path, mmap_mode="r"), ".fvecs": fvecs_mmap, ".bvecs": bvecs_mmap}
        try:
            return readers[Path(self.name).suffix](self.name)
        except FileNotFoundError:
            raise
        except (ValueError, EOFError, IndexError) as error:
            raise ValueError(f"{self.name}: not a file of vectors: {error}") from error

    def raw_blocks(self, start: int, stop: int) -> Iterator[npt.NDArray[Any]]:
        """As Source says."""
        for first in range(start, stop, BLOCK):
            yield self._mapped()[first : min(first + BLOCK, stop)]

    def raw_rows(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """As Source says."""
        return self._mapped()[rows]


def check_matrix(x: npt.NDArray[Any], name: str) -> None:
    """Raise a ValueError unless an array is of vectors."""
    if x.ndim != 2 or x.dtype.kind not in "fiu":
        raise ValueError(f"{name}: holds {x.dtype} of shape {x.shape}, expected numbers of shape (n, d)")
