"""Codebooks whose levels lie in blocks, without the zeros: what long codes are encoded and compared by."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .. import _kernels
from .layout import Layout
from .levels import Codes, Floats, Levels


class Compact:
    """Centred codebooks by subspace.

    Coordinates of the blocks, one block after the other, are called turned; each block's are filled up with zeros to a
    multiple of 16. Where the blocks have not all d dimensions, what is outside of them follows, d numbers again:
    lengths are then the same as before.

    Parameters
    ----------
    centred : array, shape (M, K, d), float32
    layout : Layout
        With at least two blocks.
    bases : sequence of arrays (dimensions, d), float64
        An orthonormal basis of each block.

    Attributes
    ----------
    layout : Layout
    head : Levels or None
        The global levels, in d dimensions.
    parts : list of Levels
        The levels of each block, in its dimensions.
    turned_head : array, shape (levels, K, n_turned), float32
        The codewords of the global levels in turned coordinates.
    """

    def __init__(self, centred: Floats, layout: Layout, bases: Sequence[npt.NDArray[np.float64]]) -> None:
        self.layout = layout
        bases = [_padded(basis) for basis in bases]
        turn = np.concatenate(bases)
        self._ends = np.cumsum([len(basis) for basis in bases])
        self._turn = _kernels.pack_panels(turn.astype(np.float32))
        n_global = layout.n_global
        self.head = Levels(centred[:n_global], may_round=True) if n_global else None
        self.parts = [
            Levels(_in_basis(centred[layout.levels_of(block)], basis), may_round=True)
            for block, basis in enumerate(bases, 1)
        ]
        flat = centred[:n_global].reshape(-1, layout.d).astype(np.float64)
        turned = flat @ turn.T
        if sum(basis.any(axis=1).sum() for basis in bases) < layout.d:
            turned = np.concatenate([turned, flat - turned @ turn], axis=1)
        self.turned_head = turned.astype(np.float32).reshape(n_global, centred.shape[1], turned.shape[1])

    def coordinates(self, number: int) -> slice:
        """Where the turned coordinates of a block are; numbers begin with 0 here."""
        end = int(self._ends[number])
        return slice(end - self.parts[number].d, end)

    def turned(self, x: Floats) -> Floats:
        """The coordinates of vectors (n, d) in all blocks, shape (n, dimensions of the blocks)."""
        out = np.empty((len(x), int(self._ends[-1])), np.float32)
        _kernels.linear(x, self._turn, np.zeros(out.shape[1], np.float32), 1.0, out)
        return out

    def products(self, levels: int) -> _kernels.Products:
        """The products of vectors with the codewords of the first levels."""
        K = 1 << self.layout.nbits
        n_panels = K // _kernels.PANEL
        head = np.empty((0, self.layout.d, _kernels.PANEL), np.float32)
        if self.head:
            head = self.head.panels[: min(levels, self.head.M) * n_panels]
        blocks = []
        for number, part in enumerate(self.parts):
            of_block = enumerate(self.layout.levels_of(number + 1))
            panels = [(part.panels[own * n_panels : (own + 1) * n_panels], level * K) for own, level in of_block]
            blocks.append([(of_level, column) for of_level, column in panels if column < levels * K])
        return _kernels.Products(levels, K, head, self._turn, [part.d for part in self.parts], blocks)

    @cached_property
    def _rows(self) -> tuple[Floats, npt.NDArray[np.int64]]:
        """The turned codewords of all levels in one array, and where each level is in it: shape (M, 3).

        That is, where its codewords begin, how many numbers they have, and where these belong in turned coordinates.
        """
        places, values, begin = np.empty((self.layout.M, 3), np.int64), [], 0
        for level in range(self.layout.n_global):
            values.append(self.turned_head[level].ravel())
            places[level] = begin, self.turned_head.shape[2], 0
            begin += values[-1].size
        for number, part in enumerate(self.parts):
            for own, level in enumerate(self.layout.levels_of(number + 1)):
                values.append(part.centred[own].ravel())
                places[level] = begin, part.d, self.coordinates(number).start
                begin += values[-1].size
        return np.concatenate(values), places

    def squared_lengths(self, codes: Codes) -> npt.NDArray[np.float64]:
        """Of the sums of codewords that codes (n, levels) stand for, without the centre; shape (n,)."""
        rows, places = self._rows
        out = np.empty(len(codes))
        width = self.turned_head.shape[2] if self.head else int(self._ends[-1])
        _kernels.lengths_of_codes(np.ascontiguousarray(codes), rows, places, width, out)
        return out

    def share_left(self, left_by_all: float) -> float:
        """About what share of squared lengths the global levels leave, all levels leaving `left_by_all`."""
        return left_by_all + (1 - left_by_all) * self._share_of_blocks

    @cached_property
    def _share_of_blocks(self) -> float:
        """Of the mean squared lengths of all levels' codewords."""
        blocks = sum(_mean_squares(part.centred) for part in self.parts)
        everything = blocks + (_mean_squares(self.head.centred) if self.head else 0.0)
        return blocks / everything if everything else 1.0

    def derived_bytes(self) -> int:
        """Memory of all of it."""
        parts = [*self.parts, *([self.head] if self.head else [])]
        own = [self._turn, self.turned_head, *(self._rows if "_rows" in vars(self) else ())]
        return sum(part.centred.nbytes + part.derived_bytes() for part in parts) + sum(array.nbytes for array in own)


def _mean_squares(codebooks: Floats) -> float:
    """Of levels, the mean squared lengths of their codewords, added up."""
    return float(np.einsum("lkd,lkd->", codebooks, codebooks, dtype=np.float64)) / codebooks.shape[1]


def _in_basis(codewords: Floats, basis: npt.NDArray[np.float64]) -> Floats:
    return np.ascontiguousarray(codewords @ basis.T, np.float32)


def _padded(basis: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """With rows of zeros up to a multiple of 16."""
    return np.pad(basis, ((0, -len(basis) % _kernels.PANEL), (0, 0)))
