"""Vectors of which a range of rows is read at a time."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..codec import Floats

Description = dict[str, Any]  # what is written down of a source, as JSON

BLOCK = 1 << 16  # rows read at a time
_SAMPLED = 16  # pieces of a file, or rows of an array, whose contents tell whether it has changed
_PIECE = 4096  # bytes
_NAMED = 10  # rows that an error names


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

    def check(self, done: Callable[[int], object]) -> None:
        """Read all vectors, and raise an error that names the rows that hold NaN or infinity.

        Parameters
        ----------
        done : callable
            Told how many vectors have been read.

        Raises
        ------
        ValueError
            If there is such a row.
        """
        bad, has_nan, at = [np.empty(0, np.int64)], False, 0
        for raw in self.raw_blocks(0, self.n):
            for first in range(0, len(raw), BLOCK):
                x, finite = _converted(raw[first : first + BLOCK])
                bad.append(at + np.flatnonzero(~finite))
                has_nan |= bool(np.isnan(x[~finite]).any())
                at += len(x)
                done(len(x))
        rows = np.concatenate(bad)
        if len(rows):
            raise NotFinite(self.name, rows, has_nan)

    def _checked(self, raw: npt.NDArray[Any], numbers: int | npt.NDArray[np.int64]) -> Floats:
        x, finite = _converted(raw)
        if not finite.all():
            places = np.flatnonzero(~finite)
            rows = places + numbers if isinstance(numbers, int) else numbers[places]
            raise NotFinite(self.name, rows, bool(np.isnan(x[places]).any()))
        return x

    def _rows_among_blocks(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """`raw_rows` of a source that is read in order: everything between the first and the last row is read."""
        if not len(rows):
            return np.empty((0, self.d), self.dtype)
        found, at = [], int(rows[0])
        for block in self.raw_blocks(at, int(rows[-1]) + 1):
            here = rows[np.searchsorted(rows, at) : np.searchsorted(rows, at + len(block))]
            found.append(block[here - at])
            at += len(block)
        return np.concatenate(found)


def _converted(raw: npt.NDArray[Any]) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Some rows as float32, and which of them are finite."""
    with np.errstate(over="ignore"):
        x = np.array(raw, np.float32, order="C")
    return x, np.asarray(np.isfinite(x).all(axis=1))


class NotFinite(ValueError):
    """Rows that hold NaN or infinity: their source's name, and their numbers."""

    def __init__(self, name: str, rows: npt.NDArray[np.int64], has_nan: bool) -> None:
        self.name, self.rows, self.has_nan = name, rows, has_nan
        kind = "NaN" if has_nan else "infinity, or a number too large for float32"
        if len(rows) == 1:
            what = f"row {rows[0]} holds {kind}"
        else:
            more = f" and {len(rows) - _NAMED:,} more" if len(rows) > _NAMED else ""
            what = f"rows {', '.join(map(str, rows[:_NAMED]))}{more} hold {'NaN or infinity' if has_nan else kind}"
        super().__init__(f"{name}: {what}")

    def __reduce__(self) -> tuple[Any, ...]:
        return NotFinite, (self.name, self.rows, self.has_nan)  # by default, a pickle has the text as the only argument


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


def check_matrix(shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> None:
    """Raise a ValueError unless an array of this shape and type is of vectors."""
    if len(shape) != 2 or shape[1] < 1 or dtype.kind not in "fiu":
        raise ValueError(f"{name}: holds {dtype} of shape {shape}, expected numbers of shape (n, d)")
