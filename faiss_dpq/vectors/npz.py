"""Vectors in an array of an .npz file, compressed or not, read some rows at a time."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from .rows import BLOCK, File, check_matrix


class NpzFile(File):
    """An array of shape (n, d) of an .npz file.

    Parameters
    ----------
    path : str
    column : str, optional
        The array's name; needed only where several have two dimensions.

    Raises
    ------
    ValueError
        If there is no such array.
    """

    def __init__(self, path: str, column: str | None) -> None:
        super().__init__(path)
        try:
            with np.load(self.name) as arrays:
                names = arrays.files
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{self.name}: not an .npz file: {error}") from error
        if column is not None and column not in names:
            raise ValueError(f"{self.name}: column is {column!r}, its arrays are {names}")
        if column is None and len(names) > 1:
            names = [name for name in names if len(self._shape(name)) == 2]
        if column is None and len(names) != 1:
            of_several = f"{len(names)} arrays have two dimensions, {names}; column (--column) says which to take"
            raise ValueError(f"{self.name}: {of_several if names else 'no array has two dimensions'}")
        self.column = names[0] if column is None else column
        with self._opened(self.column) as (_, shape, dtype):
            check_matrix(shape, dtype, self.name)
            (self.n, self.d), self.dtype = shape, str(dtype)

    def _shape(self, name: str) -> tuple[int, ...]:
        with self._opened(name) as (_, shape, _dtype):
            return shape

    @contextmanager
    def _opened(self, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]]:
        """The array's numbers, its shape and its type."""
        with zipfile.ZipFile(self.name) as archive, archive.open(f"{name}.npy") as file:
            read = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
            shape, in_columns, dtype = read[np.lib.format.read_magic(file)[0] > 1](file)
            if in_columns and len(shape) == 2:
                raise ValueError(f"{self.name}: {name} is stored by columns (Fortran order), expected by rows")
            yield file, shape, dtype

    def raw_blocks(self, start: int, stop: int) -> Iterator[npt.NDArray[Any]]:
        """As Source says; what comes before `start` is read, too, where the file is compressed."""
        with self._opened(self.column) as (file, _, dtype):
            row = dtype.itemsize * self.d
            file.seek(start * row, 1)
            for first in range(start, stop, BLOCK):
                n = min(BLOCK, stop - first)
                yield np.frombuffer(file.read(n * row), dtype).reshape(n, self.d)

    def raw_rows(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """As Source says; everything between the first and the last row is read for it."""
        return self._rows_among_blocks(rows)
