"""Encoding: a beam search over the levels.

After level l the beam holds the best prefixes (k_1, ..., k_l) of a vector. Each is extended by every codeword of the
next level, and the `beam_size` extensions of the least error are kept. There are two ways to get their errors:

- By tables, for most codebooks: ||x - c_1 - ... - c_l||^2 is expanded as in Eq. 30, so one product of the vector with
  all codewords and the tables of products between codewords are enough.
- By residuals, where the tables between codewords would take too much memory: every entry of the beam keeps the vector
  x - c_1 - ... - c_l, and the next level's codewords are compared with it.

The error of a prefix may count its part along the vector more than the part across it (`parallel_weight`): for a query
near to the vector, the part along it is what changes the inner product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import faiss
import numpy as np

from .. import _kernels
from . import threads
from .codebooks import Codebooks
from .compact import Compact
from .layout import MOST_FULL_LEVELS
from .levels import Codes, Floats, Levels

_BLOCK = 1024  # vectors encoded together: each row of the cross tables is read several times a block
# A vector shorter than this share of common codewords' lengths counts as having no direction: its tables are rounded so
# coarsely that they would give its direction to no better than a hundredth.
_LEAST_LENGTH = 1e-4

# The more the global levels leave of a vector, the more of it the weight lets stand along the vector, in the end. So
# where they leave a tenth more than usual, 8 % less rest is asked for. Without that, 48 levels of three sorts of
# sentence embeddings found the nearest neighbour of .796, .791 and .739 of the queries; with it, of .801, .797 and
# .746. What is more unusual by far counts as if it were less: else 32 levels of images found a point less.
# It makes up for the squared errors in distances. Inner products have none, and found .775 with it and .791 without.
_LESS_REST = 0.8
_UNUSUAL = 0.3

# Nothing was seen to gain from more than a few hundred. At 4096 a vector takes some megabytes while it is encoded; a
# file that asks for 2**31 - 1 must not get them.
MAX_BEAM_SIZE = 4096


def default_beam_size(M: int) -> int:
    """Beam of the encoder for M levels: 32 up to M = 12, 24 for 16, and 8 for more, which have blocks.

    With it, encoding is about as fast as that of FAISS's residual quantizer with its default beam of 5, or faster.
    """
    # With 6, 48 levels of sentence embeddings are added in a tenth less time, and find .2 points less of R@1.
    return min(32, 384 // M) if M <= MOST_FULL_LEVELS else 8


def encode(
    codebooks: Codebooks,
    x: Floats,
    beam_size: int,
    prefix_weight: float,
    parallel_weight: float,
    parallel_rest: float,
    whole: Floats | None,
) -> Codes:
    """Codes of vectors, shape (n, M); `ProgressiveQuantizer.encode` describes the arguments."""
    if not 1 <= beam_size <= MAX_BEAM_SIZE:
        raise ValueError(f"beam_size is {beam_size}, expected 1 to {MAX_BEAM_SIZE}")
    codes = np.empty((len(x), codebooks.M), np.uint16)
    n_parts = faiss.omp_get_max_threads()
    choose: Callable[..., None] = _by_tables
    if codebooks.compact:
        choose, n_parts = _by_blocks, max(n_parts, -(-len(x) // _BLOCK))
    elif codebooks.cross_tables is None:
        choose, n_parts = _by_residuals, max(n_parts, -(-len(x) // _BLOCK))

    # Vectors with NaN, or whose squares overflow, get some code, and no warning.
    @np.errstate(invalid="ignore", over="ignore")
    def encode_part(part: slice) -> None:
        target = centred_and_shrunk(codebooks, x[part])
        along = _NOT_ALONG
        if parallel_weight:
            vectors = codebooks.shrinkage * x[part] if whole is x else None if whole is None else whole[part]
            along = _errors_along(codebooks, target, parallel_weight, parallel_rest, vectors)
            if whole is x and not codebooks.compact:
                along = along._replace(vectors=None, own_offsets=codebooks.offsets_along)
        choose(codebooks, target, along, beam_size, prefix_weight, codes[part])

    threads.run(encode_part, [(part,) for part in threads.slices(len(x), n_parts, multiple=16)] if len(x) else [])
    return codes


def one_vector_encoder(
    codebooks: Codebooks, beam_size: int, prefix_weight: float, parallel_weight: float, along_whole: bool
) -> _kernels.OneVectorEncoder | None:
    """What `encode` does to one vector, with less overhead around it; None where there are no tables for that.

    along_whole : whether errors count along the vector itself, before anything is subtracted from it.
    """
    if codebooks.cross_tables is None or not 1 <= beam_size <= MAX_BEAM_SIZE:
        return None
    tables = codebooks.panels, codebooks.codeword_norms, codebooks.cross_tables
    shift = codebooks.centre, codebooks.shrinkage
    weights = prefix_weight, parallel_weight, _least_length(codebooks), along_whole
    return _kernels.OneVectorEncoder(*tables, codebooks.M, codebooks.nbits, *shift, beam_size, *weights)


def centred_and_shrunk(codebooks: Codebooks, x: Floats) -> Floats:
    """The vectors that the centred codewords are to approximate."""
    centred = np.subtract(x, codebooks.centre, order="C")
    return centred if codebooks.shrinkage == 1 else np.multiply(centred, codebooks.shrinkage, out=centred)


class _Along(NamedTuple):
    """What the errors along the vectors are computed from; all None where they have no weight of their own.

    A prefix with the error e adds weight * <x / ||x||, e>^2 to its squared error. The kernels keep the root of that
    for every entry of the beam, and subtract a codeword's share when they choose the codeword.
    """

    vectors: Floats | None  # (n, d): the vectors whose directions count, where they are not those encoded
    directions: Floats | None  # (n,): sqrt(weight) / ||x||, by which <vector, c> is multiplied; 0 for no direction
    errors: Floats | None  # (n,): the root before any codeword is chosen; the kernels leave that of the codes
    rest: Floats | None  # (n,): the root that is wanted in the end, by codes with blocks, of most vectors
    own_offsets: Floats | None = None
    left: float = 1.0  # what share of squared lengths the global levels leave for the blocks, as a rule

    def offsets(self, levels: Levels) -> Floats | None:
        """(M K,): <vector, c> is this less half the table entry of the vector and codeword c."""
        if self.directions is None or self.own_offsets is not None:
            return self.own_offsets
        return levels.codeword_norms * np.float32(0.5)


_NOT_ALONG = _Along(None, None, None, None)


def _errors_along(
    codebooks: Codebooks, target: Floats, parallel_weight: float, parallel_rest: float, whole: Floats | None
) -> _Along:
    """What the kernels need for the errors along the vectors `target`, or along `whole`, of which they are parts.

    `target` is `centred_and_shrunk` of the vectors to be encoded.
    """
    vectors = target if whole is None else whole
    directions, errors = _kernels.find_directions(vectors, target, parallel_weight, _least_length(codebooks))
    left = codebooks.compact.share_left(parallel_rest) if codebooks.compact else 1.0
    return _Along(whole, directions, errors, np.float32(parallel_rest) * errors, left=left)


def _least_length(codebooks: Codebooks) -> float:
    return float(_LEAST_LENGTH * (np.linalg.norm(codebooks.centre) + codebooks.common_length(codebooks.M)))


def _by_tables(
    levels: Levels, target: Floats, along: _Along, beam_size: int, prefix_weight: float, codes: Codes
) -> None:
    tables = levels.panels, levels.codeword_norms, levels.cross_tables
    direction = along.vectors, along.offsets(levels), along.directions, along.errors
    block = min(_BLOCK, len(target))
    sizes = levels.M, levels.K, beam_size
    rounded = (levels.rounded_panels, levels.units) if levels.encodes_rounded else ()
    _kernels.encode_from_tables(target, *tables, *sizes, codes, block, prefix_weight, *direction, *rounded)


def _by_blocks(
    codebooks: Codebooks, target: Floats, along: _Along, beam_size: int, prefix_weight: float, codes: Codes
) -> None:
    """The global levels by a beam search, then each block by one of its own, on what the former leave."""
    compact = codebooks.compact
    assert compact is not None
    n_global = compact.layout.n_global
    chosen = np.empty((len(target), n_global), np.uint16)
    if compact.head:
        _by_tables(compact.head, target, _NOT_ALONG, beam_size, prefix_weight, chosen)
        codes[:, :n_global] = chosen
    turned = compact.turned(target)
    vectors = turned if along.vectors is None else compact.turned(along.vectors)
    left = [_left_in_block(compact, turned, vectors, chosen, number) for number in range(len(compact.parts))]
    errors, rest = np.zeros(len(target), np.float32), None
    if along.rest is not None:
        rest = along.rest
        if along.vectors is None:
            rest = rest * _weights_of_rest(target, [residuals for _, residuals, _ in left], along.left)
    for number, (part, (own, residuals, products)) in enumerate(zip(compact.parts, left, strict=True)):
        of_block = _NOT_ALONG
        if along.directions is not None and rest is not None:
            errors += along.directions * products - rest / len(left)
            of_block = _Along(own, along.directions, errors, None)
        part_codes = np.empty((len(target), part.M), np.uint16)
        _by_tables(part, residuals, of_block, beam_size, prefix_weight, part_codes)
        codes[:, compact.layout.levels_of(number + 1)] = part_codes


def _left_in_block(
    compact: Compact, turned: Floats, vectors: Floats, chosen: Codes, number: int
) -> tuple[Floats, Floats, Floats]:
    """A block's part of `vectors`; that of `turned`, less the codewords of global levels; the products of both."""
    shape = len(turned), compact.parts[number].d
    own, left, products = np.empty(shape, np.float32), np.empty(shape, np.float32), np.empty(len(turned), np.float32)
    start = compact.coordinates(number).start
    _kernels.leave_block(turned, vectors, start, chosen, compact.turned_head, own, left, products)
    return own, left, products


def _weights_of_rest(target: Floats, left: list[Floats], share: float) -> Floats:
    """What to multiply the rest of every vector by, whose blocks the global levels leave so; see `_LESS_REST`."""
    squares = sum(np.einsum("ij,ij->i", of_block, of_block) for of_block in left)
    usual = np.float32(share) * np.einsum("ij,ij->i", target, target)
    more = np.divide(squares, usual, out=np.ones(len(target), np.float32), where=usual > 0)
    return 1 - np.float32(_LESS_REST) * np.clip(more - 1, np.float32(-_UNUSUAL), np.float32(_UNUSUAL))


class _Beam(NamedTuple):
    """The best prefixes of n vectors, `width` of each."""

    codes: Codes  # (n, width, M); 0 at the levels that are still to come
    residuals: Floats  # (n, width, d): what the prefix leaves of the vector
    scores: Floats  # (n, width): the squared error, less ||x||^2
    debts: Floats  # (n, width): what the errors of the shorter prefixes add to the score
    along: Floats  # (n, width): the root of the error along the vector


def _by_residuals(
    codebooks: Codebooks, target: Floats, along: _Along, beam_size: int, prefix_weight: float, codes: Codes
) -> None:
    n, M = codes.shape
    none = np.zeros((n, 1), np.float32)
    first = none if along.errors is None else along.errors[:, None]
    beam = _Beam(np.zeros((n, 1, M), np.uint16), target[:, None], np.square(first), none, first)
    for level in range(M):
        width = min(beam_size, beam.codes.shape[1] * codebooks.K) if level + 1 < M else 1
        beam = _extended(codebooks, level, beam, width, prefix_weight, target, along)
    codes[:] = beam.codes[:, 0]


def _extended(
    codebooks: Codebooks, level: int, beam: _Beam, width: int, prefix_weight: float, target: Floats, along: _Along
) -> _Beam:
    """The `width` best of the beam's prefixes extended by a codeword of `level`."""
    n, _, M = beam.codes.shape
    K = codebooks.K
    here = slice(level * K, (level + 1) * K)
    first, end = here.start // _kernels.PANEL, -(-here.stop // _kernels.PANEL)  # the panels that hold the level
    norms = codebooks.codeword_norms[first * _kernels.PANEL : end * _kernels.PANEL]

    def tables_of(vectors: Floats) -> Floats:
        tables = np.empty((len(vectors), len(norms)), np.float32)
        _kernels.linear(vectors, codebooks.panels[first:end], norms, -2.0, tables)
        begin = here.start - first * _kernels.PANEL
        return np.ascontiguousarray(tables[:, begin : begin + K])

    tables = tables_of(np.ascontiguousarray(beam.residuals).reshape(-1, codebooks.d))
    along_in: tuple[Floats | None, ...] = (None, None, None, beam.along)
    offsets = along.offsets(codebooks)
    if offsets is not None:
        along_tables = tables_of(target if along.vectors is None else along.vectors)
        along_in = along_tables, offsets[here], along.directions, beam.along
    codes, parents = np.zeros((n, width, M), np.uint16), np.empty((n, width), np.uint32)
    scores, debts, along_out = (np.empty((n, width), np.float32) for _ in range(3))
    chosen = codes, scores, parents
    _kernels.encode_level_from_residuals(
        tables, K, level, beam.codes, beam.scores, *chosen, prefix_weight, beam.debts, debts, *along_in, along_out
    )
    residuals = np.take_along_axis(beam.residuals, parents[..., None].astype(np.intp), axis=1)
    residuals = residuals - codebooks.centred[level][codes[..., level]]
    return _Beam(codes, residuals, scores, debts, along_out)
