"""The codebooks of a progressive quantizer, and everything that follows from them alone."""

# Annotations of nested functions would be evaluated at every call.
from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _kernels
from .compact import Compact
from .layout import Layout, of_codebooks
from .levels import Floats, Levels

#: A row is far if it is this many times as far from the median of the rows as half of them are.
_FAR = 16
_SAMPLED = 4096  # rows that the median is taken of, and rows whose distances are taken together


def is_far(rows: Floats) -> npt.NDArray[np.bool_]:
    """Which of the rows (n, d) are far from most others."""
    middle = np.median(rows[:: -(-len(rows) // _SAMPLED)].astype(np.float64), axis=0)
    distances = np.empty(len(rows))
    for start in range(0, len(rows), _SAMPLED):
        moved = rows[start : start + _SAMPLED] - middle
        distances[start : start + _SAMPLED] = np.sqrt(np.einsum("ij,ij->i", moved, moved))
    return distances > _FAR * np.median(distances)


def centre_of(rows: Floats) -> Floats:
    """The mean of rows (n, d) without those that are far from most others, shape (d,).

    One far row would draw the mean away from all others, whose distances float32 could then not tell apart.
    """
    return rows[~is_far(rows)].mean(axis=0, dtype=np.float64).astype(np.float32)


class Codebooks(Levels):
    """M codebooks of K codewords; never changed once made, so everything derived from them is computed only once.

    The first codebook is centred before use: `centre` is subtracted from its codewords, and from queries and vectors.
    Distances stay the same. On data far from the origin Eq. 30 would otherwise be a small difference of large terms,
    which float32 cannot hold.

    Parameters
    ----------
    codebooks : array, shape (M, K, d), float32
        K = 2**nbits codewords of dimension d for each of M levels. Copied.
    shrinkage : float
        The factor that the centred codebooks were multiplied by; see `ProgressiveQuantizer.shrunk`.

    Attributes
    ----------
    values : array, shape (M, K, d), float32, read-only
    M, K, d, nbits : int
    shrinkage : float

    Raises
    ------
    ValueError
        If the shape is not (M, 2**nbits, d) with 1 <= nbits <= 12, or a value is not finite.
    """

    def __init__(self, codebooks: npt.ArrayLike, shrinkage: float = 1.0) -> None:
        name = type(self).__name__
        self.shrinkage = np.float32(shrinkage)
        values = np.array(codebooks, np.float32, order="C")
        if values.ndim != 3 or 0 in values.shape:
            raise ValueError(f"{name}: codebooks has shape {values.shape}, expected (M, K, d)")
        self.M, self.K, self.d = values.shape
        self.nbits = self.K.bit_length() - 1
        if 1 << self.nbits != self.K or not 1 <= self.nbits <= 12:
            raise ValueError(f"{name}: codebooks has K={self.K} codewords a level, expected 2, 4, ... 4096")
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: codebooks has NaN or infinite values")
        values.flags.writeable = False
        self.values: Floats = values

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies hold none of the derived tables, which are many times larger.
        return type(self), (self.values, self.shrinkage)

    @cached_property
    def centre(self) -> Floats:
        """The mean of the first codebook, of those codewords that are not far from the others; shape (d,)."""
        return centre_of(self.values[0])

    @cached_property
    def centred(self) -> Floats:
        """The codebooks after centring, shape (M, K, d)."""
        centred = self.values.copy()
        centred[0] -= self.centre
        return centred

    @cached_property
    def compact(self) -> Compact | None:
        """The codebooks by blocks, where their levels lie in such; None where all levels are global."""
        found, bases = of_codebooks(self.centred)
        return Compact(self.centred, found, bases) if found.n_blocks else None

    @property
    def layout(self) -> Layout:
        """The subspace of each level."""
        return self.compact.layout if self.compact else Layout.full(self.d, self.M, self.nbits)

    def products(self, levels: int) -> _kernels.Products:
        """The products of vectors with the codewords of the first levels."""
        if levels not in self._products:
            if self.compact:
                self._products[levels] = self.compact.products(levels)
            else:
                n_panels = -(-levels * self.K // _kernels.PANEL)
                self._products[levels] = _kernels.Products(levels, self.K, self.panels[:n_panels])
        return self._products[levels]

    @cached_property
    def _products(self) -> dict[int, _kernels.Products]:
        return {}

    @cached_property
    def offsets_along(self) -> Floats:
        """<x, c> + (||c||^2 - 2<t, c>) / 2 of every centred codeword c, shape (M K,).

        x is a vector times `shrinkage`, and t the same after centring: the sum is ||c||^2 / 2 + shrinkage <centre, c>,
        whatever the vector. So the encoder gets <x, c> from its tables, which are those of t.
        """
        flat = self.centred.reshape(-1, self.d)
        return self.codeword_norms[: len(flat)] / 2 + self.shrinkage * (flat @ self.centre)

    def common_length(self, levels: int) -> float:
        """The median of ||c_l(k)||, after centring, of the level where it is greatest; one far codeword leaves it."""
        return float(self._common_lengths[:levels].max())

    @cached_property
    def _common_lengths(self) -> Floats:
        norms = self.codeword_norms[: self.M * self.K].reshape(self.M, self.K)
        return np.sqrt(np.median(norms, axis=1))

    def reach(self, levels: int) -> float:
        """No reconstruction of `levels` levels is longer than this, after centring."""
        return float(self.longest_codewords[:levels].sum()) * (1 + 1e-6)

    @cached_property
    def cross_tables(self) -> Floats | None:
        """Those of `Levels`; None, too, where levels lie in blocks."""
        return None if self.compact else super().cross_tables

    def derived_bytes(self) -> int:
        """Memory of what has been derived from the codebooks so far."""
        compact = vars(self).get("compact")
        return super().derived_bytes() + (compact.derived_bytes() if compact else 0)
