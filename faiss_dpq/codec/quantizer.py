"""Progressive quantization in one class, with no index in it.

A vector x is approximated by a sum of one codeword from each of M codebooks,

    x  ~  c_1(k_1) + c_2(k_2) + ... + c_M(k_M),

every codeword of the full dimension d. The code is (k_1, ..., k_M), and every prefix of it is itself a good code: one
training and one encoding give all the lengths nbits, 2 nbits, ... M nbits.

1. Encode (Eq. 26): choose k_1, k_2, ... in turn, each to come nearest to x; keep the `beam_size` best prefixes at
   every level instead of only one. For inner products, the part of the error that is parallel to x may count more than
   the rest.
2. Compare a query q with a code (Eq. 30), without reconstructing:

    ||q - sum_l c_l(k_l)||^2 = ||q||^2                                  a constant of the query
                             + sum_l (||c_l(k_l)||^2 - 2<q, c_l(k_l)>)    a table of M x K numbers per query
                             + sum_{l<l'} 2<c_l(k_l), c_l'(k_l')>         the code's own cross terms

Source: Gao, Zhu, Song, Zhao, Shen, "Beyond Product Quantization: Deep Progressive Quantization for Image Retrieval",
IJCAI 2019; the codes are those of faiss.ResidualQuantizer. The weight of parallel errors: Guo, Sun, Lindgren, Geng,
Simcha, Chern, Kumar, "Accelerating Large-Scale Inference with Anisotropic Vector Quantization" (ScaNN), ICML 2020.
"""

# Annotations of nested functions would be evaluated at every call.
from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import faiss
import numpy as np
import numpy.typing as npt

from .. import _kernels
from . import threads

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint16]

#: Above this many bytes of cross tables, cross terms come from reconstructed vectors instead.
MAX_CROSS_TABLE_BYTES = 256 << 20

_ENCODE_BLOCK = 1024  # vectors encoded together: each row of the cross tables is read several times a block
_DECODE_BLOCK = 4096
# Below this part of the codewords' lengths, rounded tables do not tell a vector's direction to a hundredth.
_LEAST_LENGTH = 1e-4


def default_beam_size(M: int) -> int:
    """Beam of the encoder for M levels: 32 up to M = 12, then fewer, since the cost of an entry grows as M².

    With it, encoding is about as fast as that of FAISS's residual quantizer with its default beam of 5, or faster.
    """
    return max(8, min(32, 384 // M))


def cross_table_bytes(M: int, K: int) -> int:
    """Size of the tables of <c_l(k), c_l'(k')> for all pairs of M levels of K codewords."""
    return M * (M - 1) // 2 * K * K * 4


class _Parallel(NamedTuple):
    """Of the errors along vectors, times the root of their weight; all None where they do not count."""

    own: Floats | None  # (n, d): the vectors, where they are not those encoded
    offsets: Floats | None  # (M K,): <own, c> of a centred codeword and half its table entry for `own`
    directions: Floats | None  # (n,): what takes <own, c> to c's part in the error; 0 for vectors of no direction
    errors: Floats | None  # (n,): before a codeword is chosen


class ProgressiveQuantizer:
    """Codebooks of shape (M, K, d), and what is computed with them.

    Parameters
    ----------
    codebooks : array, shape (M, K, d), float32
        K = 2**nbits codewords of dimension d for each of M levels. Copied.
    shrinkage : float
        What `shrunk` codebooks were multiplied by: `encode` does the same to vectors.

    Attributes
    ----------
    codebooks : array, shape (M, K, d), float32, read-only
    M, K, d, nbits : int
    shrinkage : float

    Raises
    ------
    ValueError
        If the shape is not (M, 2**nbits, d) with 1 <= nbits <= 12, or a value is not finite.
    """

    def __init__(self, codebooks: npt.ArrayLike, shrinkage: float = 1.0) -> None:
        self.shrinkage = np.float32(shrinkage)
        codebooks = np.array(codebooks, np.float32, order="C")
        if codebooks.ndim != 3 or 0 in codebooks.shape:
            raise ValueError(f"ProgressiveQuantizer: codebooks has shape {codebooks.shape}, expected (M, K, d)")
        self.M, self.K, self.d = codebooks.shape
        self.nbits = self.K.bit_length() - 1
        if 1 << self.nbits != self.K or not 1 <= self.nbits <= 12:
            raise ValueError(
                f"ProgressiveQuantizer: codebooks has K={self.K} codewords a level, expected 2, 4, ... 4096"
            )
        if not np.isfinite(codebooks).all():
            raise ValueError("ProgressiveQuantizer: codebooks has NaN or infinite values")
        codebooks.flags.writeable = False
        self.codebooks: Floats = codebooks

    # The first codebook is centred, and queries and vectors with it: distances stay the same, and float32 keeps its
    # precision on data far from the origin, where Eq. 30 would cancel large terms.

    @cached_property
    def _centre(self) -> Floats:
        return self.codebooks[0].mean(axis=0, dtype=np.float64).astype(np.float32)

    @cached_property
    def _centred(self) -> Floats:
        centred = self.codebooks.copy()
        centred[0] -= self._centre
        return centred

    @cached_property
    def _panels(self) -> Floats:
        return _kernels.pack_panels(self._centred.reshape(-1, self.d))

    @cached_property
    def _codeword_norms(self) -> Floats:
        """||c||^2 of every centred codeword, padded as the panels are."""
        norms = np.zeros(self._panels.shape[0] * _kernels.PANEL, np.float32)
        _kernels.squared_norms(self._centred.reshape(-1, self.d), norms)
        return norms

    @cached_property
    def _cross(self) -> Floats | None:
        """2<c_i(k), c_l(k')> at [l (l - 1) / 2 + i, k, k'] for i < l; None where that takes too much memory."""
        pairs = self.M * (self.M - 1) // 2
        if cross_table_bytes(self.M, self.K) > MAX_CROSS_TABLE_BYTES:
            return None
        cross = _kernels.aligned_empty((pairs, self.K, self.K))
        doubled = 2 * self._centred.astype(np.float64)
        for level in range(1, self.M):
            for i in range(level):
                cross[level * (level - 1) // 2 + i] = doubled[i] @ self._centred[level].T
        return cross

    def shrunk(self, shrinkage: float) -> ProgressiveQuantizer:
        """The same codes for reconstructions nearer to the centre, the mean of the first codebook.

            x~ -> centre + shrinkage (x~ - centre)

        They come less near to the vectors, but may rank them better: see `training.ranking_shrinkage`.
        """
        codebooks = np.float32(shrinkage) * self._centred
        codebooks[0] += self._centre
        return ProgressiveQuantizer(codebooks, shrinkage * self.shrinkage)

    @cached_property
    def _own_offsets(self) -> Floats:
        """<x, c> of every centred codeword and half its table entry: ||c||^2 / 2 + <centre, c>, with x scaled."""
        flat = self._centred.reshape(-1, self.d)
        return self._codeword_norms[: len(flat)] / 2 + self.shrinkage * (flat @ self._centre)

    def _parallel_errors(self, x: Floats, encoded: Floats, weight: float, whole: Floats | None) -> _Parallel:
        """What the kernels know of the parallel errors of vectors x, or of those of `whole` of which x are parts."""
        if weight == 0:
            return _Parallel(None, None, None, None)
        own = self.shrinkage * x if whole is None else whole
        lengths = np.sqrt(np.einsum("ij,ij->i", own, own, dtype=np.float64))
        told = lengths > _LEAST_LENGTH * (np.linalg.norm(self._centre) + self._longest_codewords.max())
        directions = np.divide(np.sqrt(weight), lengths, out=np.zeros(len(own)), where=told)
        errors = directions * np.einsum("ij,ij->i", own, encoded, dtype=np.float64)
        offsets = self._own_offsets if whole is None else self._codeword_norms * np.float32(0.5)
        return _Parallel(whole, offsets, directions.astype(np.float32), errors.astype(np.float32))

    def derived_bytes(self) -> int:
        """Memory of the tables derived from the codebooks so far."""
        return sum(
            value.nbytes for name, value in vars(self).items() if name != "codebooks" and isinstance(value, np.ndarray)
        )

    def encode(
        self,
        x: Floats,
        beam_size: int | None = None,
        prefix_weight: float = 0.0,
        parallel_weight: float = 0.0,
        whole: Floats | None = None,
    ) -> Codes:
        """Codes of vectors by beam search over the levels (Eq. 26 is `beam_size` 1).

        Parameters
        ----------
        x : array, shape (n, d), float32
        beam_size : int, optional
            Prefixes kept at every level; `default_beam_size(M)` by default.
        prefix_weight : float
            What the squared errors of all shorter lengths count for beside that of a prefix, in choosing what to keep.
        parallel_weight : float
            What the square of <x / ||x||, error> counts for beside the squared error, at every length. It is what the
            error changes in inner products with queries near to x; Guo et al. choose eta = 1 + this weight.
        whole : array, shape (n, d), float32, optional
            The vectors whose inner products matter, where `x` are only parts of them: residuals to a list's centre.

        Returns
        -------
        codes : array, shape (n, M), uint16
        """
        beam_size = beam_size or default_beam_size(self.M)
        codes = np.empty((len(x), self.M), np.uint16)
        encode = self._encode_by_residuals if self._cross is None else self._encode_by_tables

        def encode_slice(part: slice) -> None:
            of_whole = None if whole is None else whole[part]
            encode(x[part], beam_size, prefix_weight, parallel_weight, of_whole, codes[part])

        parts = threads.slices(len(x), faiss.omp_get_max_threads(), multiple=16)
        threads.run(encode_slice, [(part,) for part in parts])
        return codes

    def _encoded(self, x: Floats) -> Floats:
        """What the centred codewords are to approximate."""
        centred = np.subtract(x, self._centre, order="C")
        return centred if self.shrinkage == 1 else np.multiply(centred, self.shrinkage, out=centred)

    def _encode_by_tables(
        self,
        x: Floats,
        beam_size: int,
        prefix_weight: float,
        parallel_weight: float,
        whole: Floats | None,
        codes: Codes,
    ) -> None:
        encoded = self._encoded(x)
        _kernels.encode_from_tables(
            encoded,
            self._panels,
            self._codeword_norms,
            self._cross,
            self.M,
            self.K,
            beam_size,
            codes,
            min(_ENCODE_BLOCK, max(len(x), 1)),
            prefix_weight,
            *self._parallel_errors(x, encoded, parallel_weight, whole),
        )

    def _encode_by_residuals(
        self,
        x: Floats,
        beam_size: int,
        prefix_weight: float,
        parallel_weight: float,
        whole: Floats | None,
        codes: Codes,
    ) -> None:
        """The same search without cross tables: every beam entry keeps its residual, and is scored by it."""
        for start in range(0, len(x), _ENCODE_BLOCK):
            block = slice(start, start + _ENCODE_BLOCK)
            encoded = self._encoded(x[block])
            parallel = self._parallel_errors(
                x[block], encoded, parallel_weight, None if whole is None else whole[block]
            )
            own = encoded if parallel.own is None else parallel.own
            residuals = encoded[:, None]
            n = len(residuals)
            beam = np.zeros((n, 1, self.M), np.uint16)
            debts = np.zeros((n, 1), np.float32)
            parallels = np.zeros_like(debts) if parallel.errors is None else parallel.errors[:, None]
            scores = np.square(parallels)
            panels_a_level = self.K // _kernels.PANEL
            for level in range(self.M):
                tables = np.empty((n * beam.shape[1], self.K), np.float32)
                panels = slice(level * panels_a_level, (level + 1) * panels_a_level)
                here = slice(level * self.K, (level + 1) * self.K)
                norms = self._codeword_norms[here]
                rows = np.ascontiguousarray(residuals).reshape(-1, self.d)
                _kernels.linear(rows, self._panels[panels], norms, -2.0, tables)
                own_tables = own_offsets = None
                if parallel.offsets is not None:
                    own_offsets = parallel.offsets[here]
                    own_tables = np.empty((n, self.K), np.float32)
                    _kernels.linear(own, self._panels[panels], norms, -2.0, own_tables)
                width = min(beam_size, beam.shape[1] * self.K) if level + 1 < self.M else 1
                extended = np.zeros((n, width, self.M), np.uint16)
                extended_scores, extended_debts, extended_parallels = (
                    np.empty((n, width), np.float32) for _ in range(3)
                )
                parents = np.empty((n, width), np.uint32)
                _kernels.encode_level_from_residuals(
                    tables,
                    self.K,
                    level,
                    beam,
                    scores,
                    extended,
                    extended_scores,
                    parents,
                    prefix_weight,
                    debts,
                    extended_debts,
                    own_tables,
                    own_offsets,
                    parallel.directions,
                    parallels,
                    extended_parallels,
                )
                beam, scores, debts, parallels = extended, extended_scores, extended_debts, extended_parallels
                residuals = np.take_along_axis(residuals, parents[..., None].astype(np.intp), axis=1)
                residuals = residuals - self._centred[level][beam[..., level]]
            codes[start : start + n] = beam[:, 0]

    def decode(self, codes: Codes) -> Floats:
        """Reconstructions of codes, or of their prefixes.

        Parameters
        ----------
        codes : integer array, shape (n, levels), levels <= M

        Returns
        -------
        x : array, shape (n, d), float32
        """
        x = self.codebooks[0][codes[:, 0]]
        for level in range(1, codes.shape[1]):
            x += self.codebooks[level][codes[:, level]]
        return x

    def tables(
        self, xq: Floats, levels: int | None = None, metric: int = faiss.METRIC_L2
    ) -> tuple[Floats, Floats, Floats]:
        """Distance tables of queries, the constant of each query, and its squared norm.

        distance(q, code) = constant + sum_l table[l * K + k_l] + cross_terms(code) for METRIC_L2 (Eq. 30);
        -<q, reconstruction> = constant + sum_l table[l * K + k_l] for METRIC_INNER_PRODUCT.

        Parameters
        ----------
        xq : array, shape (nq, d), float32
        levels : int, optional
            Length of the prefix to be compared, all M by default.

        Returns
        -------
        tables : array, shape (nq, levels * K), float32
        constants : array, shape (nq,), float32
        norms : array, shape (nq,), float32
            ||q||^2, of the query that the tables are made of: for METRIC_L2, after centring.
        """
        rows = (levels or self.M) * self.K
        n_panels = -(-rows // _kernels.PANEL)
        tables = _kernels.aligned_empty((len(xq), n_panels * _kernels.PANEL))
        norms = np.empty(len(xq), np.float32)
        if metric == faiss.METRIC_L2:
            xq = np.subtract(xq, self._centre, order="C")
            _kernels.squared_norms(xq, norms)
            constants = norms
            bias, scale = self._codeword_norms, -2.0
        else:
            _kernels.squared_norms(xq, norms)
            centre = _kernels.pack_panels(self._centre[None])
            products = np.empty((len(xq), _kernels.PANEL), np.float32)
            _kernels.linear(xq, centre, np.zeros(_kernels.PANEL, np.float32), -1.0, products)
            constants = np.ascontiguousarray(products[:, 0])
            bias, scale = np.zeros(tables.shape[1], np.float32), -1.0

        def fill(part: slice) -> None:
            _kernels.linear(xq[part], self._panels[:n_panels], bias, scale, tables[part])

        parts = threads.slices(len(xq), faiss.omp_get_max_threads(), multiple=48)
        threads.run(fill, [(part,) for part in parts])
        return np.ascontiguousarray(tables[:, :rows]), constants, norms

    @cached_property
    def _longest_codewords(self) -> npt.NDArray[np.float64]:
        """max_k ||c_l(k)|| of every level, after centring."""
        norms = self._codeword_norms[: self.M * self.K].astype(np.float64)
        return np.sqrt(norms.reshape(self.M, self.K).max(axis=1))

    def _reach(self, levels: int) -> float:
        """No reconstruction of `levels` levels is longer than this, after centring."""
        return float(self._longest_codewords[:levels].sum()) * (1 + 1e-6)

    def table_errors(self, norms: Floats, levels: int) -> Floats:
        """How far tables and cross terms of queries, summed over the levels, may be from their real values.

        Every entry is a sum of chains of 64 multiply-adds, so by the Cauchy-Schwarz inequality off by
        (64 + d / 64 + 3) u ||q|| ||c|| at most, u = 2^-24; every term is a sum of levels^2 / 2 rounded entries.

        Parameters
        ----------
        norms : array, shape (nq,), float32
            Of `tables`.
        levels : int

        Returns
        -------
        errors : array, shape (nq,), float32
        """
        of_norm, constant = self._error_factors(levels)
        return of_norm * np.sqrt(norms) + (constant + np.float32(2.0**-23) * norms)

    def _error_factors(self, levels: int) -> tuple[np.float32, np.float32]:
        if levels not in self._error_factors_by_levels:
            self._error_factors_by_levels[levels] = self._compute_error_factors(levels)
        return self._error_factors_by_levels[levels]

    @cached_property
    def _error_factors_by_levels(self) -> dict[int, tuple[np.float32, np.float32]]:
        return {}

    def _compute_error_factors(self, levels: int) -> tuple[np.float32, np.float32]:
        longest = self._longest_codewords[:levels]
        reach = longest.sum()
        entries = min(self.d, _kernels.LINEAR_DEPTH) + -(-self.d // _kernels.LINEAR_DEPTH) + 3
        terms = levels * (levels - 1) // 2 + 4 * levels + 2
        of_norm = 2 * entries * reach
        constant = entries * (longest**2).sum() + terms * reach**2
        unit = 1.2 * 2.0**-24  # a fifth more than u: the bound's own rounding
        return np.float32(unit * of_norm), np.float32(unit * constant)

    def cross_terms(self, codes: Codes) -> Floats:
        """The query-independent part of Eq. 30: sum over pairs of levels of 2<c_l(k_l), c_l'(k_l')>.

        Taken after centring the first codebook, as `tables` are.

        Parameters
        ----------
        codes : array, shape (n, levels), uint16, levels <= M

        Returns
        -------
        terms : array, shape (n,), float32
        """
        levels = codes.shape[1]
        terms = np.empty(len(codes), np.float32)
        if self._cross is not None:
            _kernels.cross_terms(np.ascontiguousarray(codes), levels, self._cross, terms)
            return terms
        codeword_norms = self._codeword_norms[: self.M * self.K].reshape(self.M, self.K)
        for start in range(0, len(codes), _DECODE_BLOCK):
            block = codes[start : start + _DECODE_BLOCK]
            x = self._centred[0][block[:, 0]]
            own_norms = codeword_norms[0][block[:, 0]].astype(np.float64)
            for level in range(1, levels):
                x += self._centred[level][block[:, level]]
                own_norms += codeword_norms[level][block[:, level]]
            terms[start : start + len(block)] = np.einsum("ij,ij->i", x, x, dtype=np.float64) - own_norms
        return terms
