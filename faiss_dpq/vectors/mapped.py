"""Vectors in files that can be mapped into memory: .npy, .fvecs, .bvecs, .ivecs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .rows import BLOCK, File, check_matrix

_VECS: dict[str, np.dtype[Any]] = {".fvecs": np.dtype("<f4"), ".bvecs": np.dtype("u1"), ".ivecs": np.dtype("<i4")}


class MappedFile(File):
    """A file that can be mapped. It is mapped anew for each block, and so takes no memory."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        x, _ = self._mapped()
        check_matrix(x.shape, x.dtype, self.name)
        (self.n, self.d), self.dtype = x.shape, str(x.dtype)

    def _mapped(self) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32] | None]:
        """The vectors and, where the file tells them, the length of each."""
        kind = _VECS.get(Path(self.name).suffix.lower())
        try:
            return (np.load(self.name, mmap_mode="r"), None) if kind is None else _map_vecs(self.name, kind)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{self.name}: not a file of vectors: {error}") from error

    def raw_blocks(self, start: int, stop: int) -> Iterator[npt.NDArray[Any]]:
        """As Source says."""
        for first in range(start, stop, BLOCK):
            yield self._taken(slice(first, min(first + BLOCK, stop)), first)

    def raw_rows(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """As Source says."""
        return self._taken(rows, rows)

    def _taken(self, rows: Any, numbers: int | npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        x, lengths = self._mapped()
        if lengths is not None and (wrong := lengths[rows] != self.d).any():
            place = int(np.argmax(wrong))
            row = numbers + place if isinstance(numbers, int) else int(numbers[place])
            raise ValueError(f"{self.name}: row {row} has {lengths[row]} dimensions, expected the d={self.d} of row 0")
        return x[rows]


def _map_vecs(path: str, kind: np.dtype[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32]]:
    """The vectors, shape (n, d), of a file in which each comes after its length in four bytes; their lengths."""
    content = np.memmap(path, np.uint8, "r")
    d = int(content[:4].view("<i4")[0]) if len(content) >= 4 else 0
    row = 4 + d * kind.itemsize
    if d < 1 or len(content) % row:
        raise ValueError(f"its {len(content):,} bytes are no whole number of vectors of the d={d} that it begins with")
    records = content.reshape(-1, row)
    return records[:, 4:].view(kind), records[:, :4].view("<i4")[:, 0]
