"""Vectors in a column of a parquet file; the only module that needs pyarrow."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error.name} is not installed, which reads parquet: pip install 'faiss-dpq[parquet]'", name=error.name
    ) from error

from .rows import BLOCK, File


class ParquetFile(File):
    """A column of lists of numbers, all of one length, or of lists of a fixed size; read some rows at a time.

    Parameters
    ----------
    path : str
    column : str, optional
        Its name; needed only where there are several columns of lists.

    Raises
    ------
    ValueError
        If there is no such column.
    """

    def __init__(self, path: str, column: str | None) -> None:
        super().__init__(path)
        try:
            file = pq.ParquetFile(self.name)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{self.name}: not a parquet file: {error}") from error
        with file:
            self.column = _vector_column(file.schema_arrow, column, self.name)
            kind = file.schema_arrow.field(self.column).type
            self.n = file.metadata.num_rows
            self.dtype = str(np.dtype(kind.value_type.to_pandas_dtype()))
            self.d = kind.list_size if pa.types.is_fixed_size_list(kind) else self._first_length(file)

    def _first_length(self, file: pq.ParquetFile) -> int:
        for batch in file.iter_batches(1, columns=[self.column]):
            first = batch.column(0)[0]
            if first.is_valid:
                return len(first)
            raise ValueError(f"{self.name}: row 0 holds no vector")
        raise ValueError(f"{self.name}: holds no rows")

    def raw_blocks(self, start: int, stop: int) -> Iterator[npt.NDArray[Any]]:
        """As Source says; row groups that hold none of the rows are not read."""
        with pq.ParquetFile(self.name) as file:
            counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            ends = np.cumsum(counts)
            groups = [i for i, end in enumerate(ends) if end > start and end - counts[i] < stop]
            if not groups:
                return
            at = int(ends[groups[0]] - counts[groups[0]])
            for batch in file.iter_batches(BLOCK, row_groups=groups, columns=[self.column]):
                first, last = max(start - at, 0), min(stop - at, len(batch))
                if first < last:
                    yield self._matrix(batch.column(0).slice(first, last - first), at + first)
                at += len(batch)
                if at >= stop:
                    return

    def raw_rows(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """As Source says; everything between the first and the last row is read for it."""
        return self._rows_among_blocks(rows)

    def _matrix(self, lists: Any, first: int) -> npt.NDArray[Any]:
        lengths = np.full(len(lists), self.d)
        if not pa.types.is_fixed_size_list(lists.type):
            lengths = lists.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False)
        wrong = (lengths != self.d) | ~lists.is_valid().to_numpy(zero_copy_only=False)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            what = f"{lengths[row]} numbers" if lists[row].is_valid else "no vector"
            raise ValueError(f"{self.name}: row {first + row} holds {what}, expected {self.d}")
        values = lists.flatten()
        if values.null_count:
            row = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0]) // self.d
            raise ValueError(f"{self.name}: row {first + row} holds a null, expected {self.d} numbers")
        return values.to_numpy(zero_copy_only=False).reshape(len(lists), self.d)


def _is_vectors(kind: Any) -> bool:
    is_list = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return is_list and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


def _vector_column(schema: Any, column: str | None, name: str) -> str:
    of_vectors = [field.name for field in schema if _is_vectors(field.type)]
    if column is not None:
        if column not in of_vectors:
            raise ValueError(f"{name}: column is {column!r}, those with lists of numbers are {of_vectors}")
        return column
    if not of_vectors:
        raise ValueError(f"{name}: no column holds lists of numbers; its columns are {schema.names}")
    if len(of_vectors) > 1:
        several = f"{len(of_vectors)} columns hold lists of numbers, {of_vectors}"
        raise ValueError(f"{name}: {several}; column (--column) says which to take")
    return of_vectors[0]
