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

from typing import NamedTuple

import faiss
import numpy as np

from .. import _kernels
from . import threads
from .codebooks import Codebooks, Codes, Floats

_BLOCK = 1024  # vectors encoded together: each row of the cross tables is read several times a block
# A vector shorter than this share of the codewords' lengths counts as having no direction: its tables are rounded so
# coarsely that they would give its direction to no better than a hundredth.
_LEAST_LENGTH = 1e-4


def default_beam_size(M: int) -> int:
    """Beam of the encoder for M levels: 32 up to M = 12, then fewer, since the cost of an entry grows as M².

    With it, encoding is about as fast as that of FAISS's residual quantizer with its default beam of 5, or faster.
    """
    return max(8, min(32, 384 // M))


def encode(
    codebooks: Codebooks,
    x: Floats,
    beam_size: int,
    prefix_weight: float,
    parallel_weight: float,
    whole: Floats | None,
) -> Codes:
    """Codes of vectors, shape (n, M); `ProgressiveQuantizer.encode` describes the arguments."""
    codes = np.empty((len(x), codebooks.M), np.uint16)
    encode_part = _by_residuals if codebooks._cross is None else _by_tables

    def encode_slice(part: slice) -> None:
        whole_part = None if whole is None else whole[part]
        encode_part(codebooks, x[part], beam_size, prefix_weight, parallel_weight, whole_part, codes[part])

    parts = threads.slices(len(x), faiss.omp_get_max_threads(), multiple=16)
    threads.run(encode_slice, [(part,) for part in parts])
    return codes


def centred_and_shrunk(codebooks: Codebooks, x: Floats) -> Floats:
    """The vectors that the centred codewords are to approximate."""
    centred = np.subtract(x, codebooks._centre, order="C")
    return centred if codebooks.shrinkage == 1 else np.multiply(centred, codebooks.shrinkage, out=centred)


class _Along(NamedTuple):
    """What the errors along the vectors are computed from; all None where they have no weight of their own.

    A prefix with the error e adds weight * <x / ||x||, e>^2 to its squared error. The kernels keep the root of that
    for every entry of the beam, and subtract a codeword's share when they choose the codeword.
    """

    vectors: Floats | None  # (n, d): the vectors whose directions count, where they are not those encoded
    offsets: Floats | None  # (M K,): <vector, c> is this less half the table entry of the vector and codeword c
    directions: Floats | None  # (n,): sqrt(weight) / ||x||, by which <vector, c> is multiplied; 0 for no direction
    errors: Floats | None  # (n,): the root before any codeword is chosen


def _errors_along(
    codebooks: Codebooks, x: Floats, target: Floats, parallel_weight: float, whole: Floats | None
) -> _Along:
    """What the kernels need for the errors along vectors x, or along `whole`, of which x are parts.

    `target` is `centred_and_shrunk` of x.
    """
    if parallel_weight == 0:
        return _Along(None, None, None, None)
    vectors = codebooks.shrinkage * x if whole is None else whole
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    least = _LEAST_LENGTH * (np.linalg.norm(codebooks._centre) + codebooks._longest_codewords.max())
    directions = np.divide(np.sqrt(parallel_weight), lengths, out=np.zeros(len(vectors)), where=lengths > least)
    errors = directions * np.einsum("ij,ij->i", vectors, target, dtype=np.float64)
    offsets = codebooks._codeword_norms * np.float32(0.5)
    if whole is None:
        # The table is of the centred vector, and the direction that of the vector itself.
        flat = codebooks._centred.reshape(-1, codebooks.d)
        offsets = codebooks._codeword_norms[: len(flat)] / 2 + codebooks.shrinkage * (flat @ codebooks._centre)
    return _Along(whole, offsets, directions.astype(np.float32), errors.astype(np.float32))


def _by_tables(
    codebooks: Codebooks,
    x: Floats,
    beam_size: int,
    prefix_weight: float,
    parallel_weight: float,
    whole: Floats | None,
    codes: Codes,
) -> None:
    target = centred_and_shrunk(codebooks, x)
    _kernels.encode_from_tables(
        target,
        codebooks._panels,
        codebooks._codeword_norms,
        codebooks._cross,
        codebooks.M,
        codebooks.K,
        beam_size,
        codes,
        min(_BLOCK, max(len(x), 1)),
        prefix_weight,
        *_errors_along(codebooks, x, target, parallel_weight, whole),
    )


class _Beam(NamedTuple):
    """The best prefixes of n vectors, `width` of each."""

    codes: Codes  # (n, width, M); 0 at the levels that are still to come
    residuals: Floats  # (n, width, d): what the prefix leaves of the vector
    scores: Floats  # (n, width): the squared error, less ||x||^2
    debts: Floats  # (n, width): what the errors of the shorter prefixes add to the score
    along: Floats  # (n, width): the root of the error along the vector


def _by_residuals(
    codebooks: Codebooks,
    x: Floats,
    beam_size: int,
    prefix_weight: float,
    parallel_weight: float,
    whole: Floats | None,
    codes: Codes,
) -> None:
    M, K = codebooks.M, codebooks.K
    for start in range(0, len(x), _BLOCK):
        block = slice(start, start + _BLOCK)
        target = centred_and_shrunk(codebooks, x[block])
        along = _errors_along(codebooks, x[block], target, parallel_weight, None if whole is None else whole[block])
        n = len(target)
        none = np.zeros((n, 1), np.float32)
        first = none if along.errors is None else along.errors[:, None]
        beam = _Beam(np.zeros((n, 1, M), np.uint16), target[:, None], np.square(first), none, first)
        for level in range(M):
            width = min(beam_size, beam.codes.shape[1] * K) if level + 1 < M else 1
            beam = _extended(codebooks, level, beam, width, prefix_weight, target, along)
        codes[block] = beam.codes[:, 0]


def _extended(
    codebooks: Codebooks, level: int, beam: _Beam, width: int, prefix_weight: float, target: Floats, along: _Along
) -> _Beam:
    """The `width` best of the beam's prefixes extended by a codeword of `level`."""
    n, _, M = beam.codes.shape
    K, d = codebooks.K, codebooks.d
    here = slice(level * K, (level + 1) * K)
    first, end = here.start // _kernels.PANEL, -(-here.stop // _kernels.PANEL)  # the panels that hold the level
    norms = codebooks._codeword_norms[first * _kernels.PANEL : end * _kernels.PANEL]

    def tables_of(vectors: Floats) -> Floats:
        tables = np.empty((len(vectors), len(norms)), np.float32)
        _kernels.linear(vectors, codebooks._panels[first:end], norms, -2.0, tables)
        begin = here.start - first * _kernels.PANEL
        return np.ascontiguousarray(tables[:, begin : begin + K])

    tables = tables_of(np.ascontiguousarray(beam.residuals).reshape(-1, d))
    along_tables = along_offsets = None
    if along.offsets is not None:
        along_offsets = along.offsets[here]
        along_tables = tables_of(target if along.vectors is None else along.vectors)
    codes = np.zeros((n, width, M), np.uint16)
    scores, debts, errors_along = (np.empty((n, width), np.float32) for _ in range(3))
    parents = np.empty((n, width), np.uint32)
    _kernels.encode_level_from_residuals(
        tables,
        K,
        level,
        beam.codes,
        beam.scores,
        codes,
        scores,
        parents,
        prefix_weight,
        beam.debts,
        debts,
        along_tables,
        along_offsets,
        along.directions,
        beam.along,
        errors_along,
    )
    residuals = np.take_along_axis(beam.residuals, parents[..., None].astype(np.intp), axis=1)
    residuals = residuals - codebooks._centred[level][codes[..., level]]
    return _Beam(codes, residuals, scores, debts, errors_along)
