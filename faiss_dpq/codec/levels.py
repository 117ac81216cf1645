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

# Products of rounded vectors and codewords are off by a hundred thousandth of their lengths' product. That says little
# of codewords much shorter than the vectors, as where clusters are far apart. Levels are rounded if their usual ones
# have this share of the length of the longest: of sentence embeddings they have .23 or more, of images .09.
_LEAST_ROUNDED = 0.06


def cross_table_bytes(M: int, K: int) -> int:
    """Size of the tables of <c_l(k), c_l'(k')> for all pairs of M levels of K codewords."""
    return M * (M - 1) // 2 * K * K * 4


class Levels:
    """M levels of K codewords, shape (M, K, d), float32, and what follows from them; computed only once.

    With `may_round`, vectors are encoded by products of numbers of 16 bits, where these say enough.
    """

    may_round = False

    def __init__(self, centred: Floats, may_round: bool = False) -> None:
        self.M, self.K, self.d = centred.shape
        self.may_round = may_round
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
    def encodes_rounded(self) -> bool:
        """Whether vectors are encoded by products of numbers of 16 bits: in less time, with about the same codes."""
        if not self.may_round or self.K % _kernels.PANEL:
            return False
        lengths = np.sqrt(self.codeword_norms[: self.M * self.K].reshape(self.M, self.K))
        longest = lengths.max()
        return bool(np.isfinite(longest) and np.median(lengths, axis=1).min() >= _LEAST_ROUNDED * longest)

    @cached_property
    def units(self) -> Floats:
        """How long a unit of `rounded_panels` is, for each level; shape (M,)."""
        return np.maximum(self.longest_codewords / _kernels.ROUNDED_LENGTH, np.finfo(np.float32).tiny, dtype=np.float32)

    @cached_property
    def rounded_panels(self) -> npt.NDArray[np.int16]:
        """The codewords in units of their level, shape (panels, pairs of dimensions, PANEL, 2).

        Dimensions at the end in which all are 0 are left out.
        """
        used = np.flatnonzero(self.centred.any(axis=(0, 1)))
        pairs = int(used[-1]) // 2 + 1 if len(used) else 1
        whole = np.zeros((self.M, self.K, 2 * pairs), np.int16)
        d = min(self.d, 2 * pairs)
        scaled = self.centred[:, :, :d] / self.units[:, None, None]
        whole[:, :, :d] = np.rint(np.clip(scaled, -_kernels.ROUNDED_LENGTH, _kernels.ROUNDED_LENGTH))
        panels = whole.reshape(-1, _kernels.PANEL, pairs, 2)
        return np.ascontiguousarray(panels.transpose(0, 2, 1, 3))

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
