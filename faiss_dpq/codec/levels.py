"""Levels: centred codewords, and the tables that encoding and comparing with them need."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from .. import _kernels

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint16]

#: Where cross tables would take more bytes than this, they are not made: cross terms come from reconstructed vectors.
MAX_CROSS_TABLE_BYTES = 256 << 20


def cross_table_bytes(M: int, K: int) -> int:
    """Size of the tables of <c_l(k), c_l'(k')> for all pairs of M levels of K codewords."""
    return M * (M - 1) // 2 * K * K * 4


class Levels:
    """M levels of K codewords, shape (M, K, d), float32, and what follows from them; computed only once."""

    def __init__(self, centred: Floats) -> None:
        self.M, self.K, self.d = centred.shape
        self._centred = centred

    @property
    def centred(self) -> Floats:
        """The codewords, shape (M, K, d)."""
        return self._centred

    @cached_property
    def panels(self) -> Floats:
        """The centred codewords in the order in which the kernels multiply by them: 16 codewords a panel."""
        return _kernels.pack_panels(self.centred.reshape(-1, self.d))

    @cached_property
    def codeword_norms(self) -> Floats:
        """||c||^2 of every centred codeword, followed by zeros up to a whole number of panels."""
        norms = np.zeros(-(-self.M * self.K // _kernels.PANEL) * _kernels.PANEL, np.float32)
        _kernels.squared_norms(self.centred.reshape(-1, self.d), norms)
        return norms

    @cached_property
    def longest_codewords(self) -> npt.NDArray[np.float64]:
        """max_k ||c_l(k)|| of every level, after centring."""
        norms = self.codeword_norms[: self.M * self.K].astype(np.float64)
        return np.sqrt(norms.reshape(self.M, self.K).max(axis=1))

    @cached_property
    def cross_tables(self) -> Floats | None:
        """2<c_i(k), c_l(k')> at [l (l - 1) / 2 + i, k, k'] for i < l; None where that takes too much memory."""
        if cross_table_bytes(self.M, self.K) > MAX_CROSS_TABLE_BYTES:
            return None
        cross = _kernels.aligned_empty((self.M * (self.M - 1) // 2, self.K, self.K))
        doubled = 2 * self.centred.astype(np.float64)
        for level in range(1, self.M):
            for i in range(level):
                cross[level * (level - 1) // 2 + i] = doubled[i] @ self.centred[level].T
        return cross

    def derived_bytes(self) -> int:
        """Memory of what has been derived so far."""
        arrays = (value for name, value in list(vars(self).items()) if name != "values")
        return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))
