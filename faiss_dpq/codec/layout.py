"""Which subspace the codewords of each level lie in.

The first levels of a long code have codewords of all d dimensions: they are *global*. The others may each lie in one of
B orthogonal *blocks* of dimensions, turned against the axes of the vectors. Codewords of a block are orthogonal to
those of all other blocks, so that encoding, tables and norms take a fraction of the work, and a codeword has B times
fewer numbers to learn. Stored codewords are of d dimensions all the same, and any residual quantizer can use them.

A layout needs no place in a file: `of_codebooks` finds it in the codebooks themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

#: Codes of at most so many levels have global levels only: there are few enough pairs of levels for tables.
MOST_FULL_LEVELS = 16

# Of 48 levels learned from 35,000 sentence embeddings in as many turns, 4, 6, 8 and 15 global ones left errors of .120,
# .117, .116 and .118 of other vectors, whose squared length is 1. Each makes a turn of training take longer.
_GLOBAL = 8
_OF_BLOCK = 4  # levels of a block: of the same 12 global levels, blocks of 9, 6, 4 and 3 left .120, .119, .118 and .117
_LEAST_DIMENSIONS = 24  # of a block, as far as eight levels a block allow: smaller blocks code single dimensions
_MOST_GLOBAL = 20  # tables between 20 levels of 256 codewords take 48 MiB
_LEAST_NBITS = 6  # below, tables between all levels are small
ROUNDING = 3e-6  # of a level's longest codeword: what rounding to float32 leaves of a codeword outside of its block
# Codewords are looked at by sums of 4 with random factors: what one of them has outside of a subspace, the sum has too.
# A sum of roundings stays below `ROUNDING`; where one does not, all codewords are looked at.
_SUMMED = 4
_COMPARED = 8  # sums of a level, by which two levels are found to be orthogonal
_LEAST_ROWS = 128  # codewords by which a block's dimensions are found at first, or twice the dimensions


@dataclass(frozen=True)
class Layout:
    """The subspace of each level.

    Parameters
    ----------
    d, M, nbits : int
        Dimensions, levels, bits a level.
    blocks : tuple of M int
        The number of the block that a level's codewords lie in, from 1 on; 0 for a global level. The global levels are
        the first.

    Raises
    ------
    ValueError
        If there are not M blocks, a global level follows one of a block, block numbers are left out, or there are more
        blocks than dimensions.
    """

    d: int
    M: int
    nbits: int
    blocks: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.blocks) != self.M:
            raise ValueError(f"Layout: blocks has {len(self.blocks)} levels, expected M={self.M}")
        if any(self.blocks[self.n_global :].count(b) == 0 for b in range(1, self.n_blocks + 1)) or min(self.blocks) < 0:
            raise ValueError(f"Layout: blocks is {self.blocks}, expected every number from 0 or 1 to the largest")
        if 0 in self.blocks[self.n_global :]:
            raise ValueError(f"Layout: blocks is {self.blocks}, expected the global levels (0) before all others")
        if self.n_blocks > self.d:
            raise ValueError(f"Layout: blocks names {self.n_blocks} blocks of d={self.d} dimensions")

    @property
    def n_global(self) -> int:
        """Levels of all d dimensions; they come first."""
        return next((level for level, block in enumerate(self.blocks) if block), self.M)

    @property
    def n_blocks(self) -> int:
        """Blocks of dimensions."""
        return max(self.blocks)

    def levels_of(self, block: int) -> list[int]:
        """The levels of a block, 1 to `n_blocks`."""
        return [level for level, own in enumerate(self.blocks) if own == block]

    @classmethod
    def of_shape(cls, d: int, M: int, nbits: int, n_global: int, n_blocks: int) -> Layout:
        """Global levels, then one level of each block in turn."""
        in_turn = (1 + i % n_blocks for i in range(M - n_global)) if n_blocks else ()
        return cls(d, M, nbits, (0,) * n_global + tuple(in_turn))

    @classmethod
    def full(cls, d: int, M: int, nbits: int) -> Layout:
        """Global levels only."""
        return cls.of_shape(d, M, nbits, M, 0)

    @classmethod
    def default(cls, d: int, M: int, nbits: int, n: int | None = None) -> Layout:
        """What codebooks are trained for unless another layout is asked for.

        There are about eight global levels, and a block for four of the others, or for more of them where blocks would
        get few dimensions. Where n training vectors are too few for that many levels of all dimensions, there are fewer
        of these and more blocks.
        """
        if M <= MOST_FULL_LEVELS or nbits < _LEAST_NBITS or d == 1:
            return cls.full(d, M, nbits)
        learnable = M if n is None else n >> nbits + 1  # levels of all dimensions: two vectors a codeword
        fewest = _GLOBAL if learnable >= _GLOBAL else max(0, learnable - 2)
        least = max(2, M // 8)
        most = max(least, min((M - _GLOBAL) // _OF_BLOCK, d // _LEAST_DIMENSIONS))
        fitting: list[tuple[int, int]] = []
        for n_blocks in range(least, min(M, d) + 1):
            if n_blocks > most and fitting:
                break
            of_block = max(1, (M - fewest) // n_blocks)
            n_global = M - of_block * n_blocks
            if 0 <= n_global <= min(_MOST_GLOBAL, learnable) and of_block <= max(1, 2 * learnable):
                fitting.append((n_global, n_blocks))
        if fitting:
            return cls.of_shape(d, M, nbits, *min(fitting, key=lambda shape: (shape[0], -shape[1])))
        return cls.full(d, M, nbits)


def of_codebooks(centred: Floats) -> tuple[Layout, list[Doubles]]:
    """The layout of centred codebooks, shape (M, K, d), and an orthonormal basis (dimensions, d) of each block.

    Full where the codebooks have no blocks, and where there are so few levels that blocks would not be used.
    """
    M, K, d = centred.shape
    nbits = K.bit_length() - 1
    full: tuple[Layout, list[Doubles]] = Layout.full(d, M, nbits), []
    if M <= MOST_FULL_LEVELS or nbits < _LEAST_NBITS:
        return full
    longest, sums = _longest_and_sums(centred)
    blocks = _blocks_of_levels(longest, sums)
    if max(blocks) < 2:
        return full
    layout = Layout(d, M, nbits, tuple(blocks))
    levels = [layout.levels_of(block) for block in range(1, layout.n_blocks + 1)]
    bases = _bases([(centred[of], sums[of].reshape(-1, d)) for of in levels])
    for basis, of_block in zip(bases, levels, strict=True):
        for level in of_block:
            most = ROUNDING * longest[level]
            if _longest(_outside(sums[level], basis)) > most and _longest(_outside(centred[level], basis)) > most:
                return full
    return layout, bases


def _longest_and_sums(centred: Floats) -> tuple[Doubles, Floats]:
    """Each level's longest codeword, shape (M,), and sums of its codewords with random factors, (M, sums, d)."""
    M, K, d = centred.shape
    rng = np.random.default_rng(0)
    # No factor is near zero, so that no codeword is left out.
    factors = (rng.uniform(1, 2, K) * rng.choice([-1, 1], K)).astype(np.float32).reshape(-1, 1, _SUMMED)
    sums = np.empty((M, len(factors), d), np.float32)
    for level in range(M):
        sums[level] = (factors @ centred[level].reshape(len(factors), _SUMMED, d))[:, 0]
    return np.array([_longest(of_level) for of_level in centred]), sums


def _longest(rows: npt.NDArray) -> float:
    return float(np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64).max()))


def _outside(rows: Floats, basis: Doubles) -> Floats:
    """The parts of rows that are outside of a subspace, to within the rounding of float32."""
    basis = basis.astype(np.float32)
    return rows - (rows @ basis.T) @ basis


def _blocks_of_levels(longest: Doubles, sums: Floats) -> list[int]:
    """The block of each level, 0 for global ones.

    From the last level on: one that is orthogonal to all blocks so far begins a block, one that is not orthogonal to a
    single one is of that block, and the first that is not orthogonal to several is the last global one. Levels of zeros
    fit anywhere.
    """
    M = len(longest)
    meet = _not_orthogonal(sums)
    groups: list[list[int]] = []
    anywhere = []
    for level in range(M - 1, -1, -1):
        if longest[level] == 0:
            anywhere.append(level)
            continue
        near = [group for group in groups if meet[level, group].any()]
        if len(near) > 1:
            break
        if near:
            near[0].append(level)
        else:
            groups.append([level])
    if len(groups) < 2:
        return [0] * M
    last_global = max(set(range(M)).difference(anywhere, *groups), default=-1)
    groups[0].extend(level for level in anywhere if level > last_global)
    blocks = [0] * M
    for number, group in enumerate(sorted(groups, key=min), 1):
        for level in group:
            blocks[level] = number
    return blocks


def _not_orthogonal(sums: Floats) -> npt.NDArray[np.bool_]:
    """Which levels' sums, shape (M, sums, d), are not orthogonal to which others': shape (M, M)."""
    M, _, d = sums.shape
    longest_first = np.argsort(-np.einsum("mij,mij->mi", sums, sums, dtype=np.float64), axis=1, kind="stable")
    compared = np.take_along_axis(sums, longest_first[:, :_COMPARED, np.newaxis], axis=1).astype(np.float64)
    lengths = np.sqrt(np.einsum("mij,mij->mi", compared, compared).max(axis=1))
    rows = compared.reshape(-1, d)
    greatest = np.empty((M, M))
    for level in range(M):  # products of all levels at once would be 0.5 GiB for 1,024
        greatest[level] = np.abs(compared[level] @ rows.T).reshape(-1, M, compared.shape[1]).max(axis=(0, 2))
    return greatest > ROUNDING * np.outer(lengths, lengths)


def _bases(blocks: list[tuple[Floats, Floats]]) -> list[Doubles]:
    """An orthonormal basis of each block; those of different blocks are orthogonal too.

    A block is given by its codebooks (levels, K, d) and sums of their codewords (sums, d). Directions in which
    codewords hardly differ are found only to within the rounding of longer ones. So all directions are made orthogonal
    together, those of long codewords first.
    """
    found, lengths, block_of = [], [], []
    for block, (codebooks, sums) in enumerate(blocks):
        d = codebooks.shape[2]
        directions, length = _directions(codebooks.reshape(-1, d), sums, max(_LEAST_ROWS, 2 * d // len(blocks)))
        found.append(directions)
        lengths.append(length / length.max())
        block_of.append(np.full(len(length), block))
    order = np.argsort(-np.concatenate(lengths), kind="stable")
    directions = np.concatenate(found)[order]
    of = np.concatenate(block_of)[order]
    orthogonal, triangle = np.linalg.qr(directions.T)
    kept = np.abs(np.diagonal(triangle)) > 0.5  # another is a sum of those before it, but for rounding
    orthogonal, of = orthogonal.T[kept[: orthogonal.shape[1]]], of[: len(kept)][kept]
    return [np.ascontiguousarray(orthogonal[of == block]) for block in range(len(blocks))]


def _directions(rows: Floats, sums: Floats, n_rows: int) -> tuple[Doubles, Doubles]:
    """Orthonormal directions that the rows lie in, and how far a row reaches into each beyond those before.

    They are of about `n_rows` rows, and of as many others if the sums of all rows have parts outside of these.
    """
    smallest = ROUNDING / 3 * _longest(rows)
    step = -(-len(rows) // n_rows)
    directions, lengths = _pivoted(rows[::step].astype(np.float64), smallest)
    if step > 1 and _longest(_outside(sums, directions)) > smallest:
        rest = rows - (rows @ directions.T) @ directions
        far = np.argsort(-np.einsum("ij,ij->i", rest, rest), kind="stable")[:n_rows]
        more, more_lengths = _pivoted(rest[far], smallest)
        directions, lengths = np.concatenate([directions, more]), np.concatenate([lengths, more_lengths])
    return directions, lengths


def _pivoted(rows: Doubles, smallest: float) -> tuple[Doubles, Doubles]:
    """Gram-Schmidt that goes on with the row that is the longest outside of what is spanned, by a Cholesky factor."""
    rest = rows @ rows.T
    lengths: list[float] = []
    pivots: list[int] = []
    while len(pivots) < min(rows.shape):
        diagonal = np.diagonal(rest)
        pivot = int(diagonal.argmax())
        length = float(np.sqrt(max(diagonal[pivot], 0.0)))
        if length <= smallest:
            break
        column = rest[:, pivot] / length
        rest -= np.outer(column, column)
        pivots.append(pivot)
        lengths.append(length)
    orthogonal, _ = np.linalg.qr(rows[pivots].T)
    return orthogonal.T, np.array(lengths)
