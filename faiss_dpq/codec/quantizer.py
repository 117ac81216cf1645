"""Progressive quantization in one class, with no index in it."""

from __future__ import annotations

from functools import cached_property

import faiss
import numpy as np

from .. import _kernels
from . import encoder, tables
from .codebooks import Codebooks
from .levels import Codes, Floats


class ProgressiveQuantizer(Codebooks):
    """Codebooks that encode vectors, decode codes, and compare queries with codes.

    A vector x is approximated by a sum of one codeword from each of M codebooks,

        x  ~  c_1(k_1) + c_2(k_2) + ... + c_M(k_M),

    where every codeword has all d dimensions. The code is (k_1, ..., k_M), and every prefix of it is a good code, too:
    one training and one encoding give all the lengths nbits, 2 nbits, ... M nbits.

    1. Encode (Eq. 26): choose k_1, k_2, ... in turn, so that each sum of codewords comes nearest to x. Keep the
       `beam_size` best prefixes at every level, not only the best one.
    2. Decode: add the codewords up.
    3. Compare a query q with a code (Eq. 30): add up one entry of the query's table for every level, the cross terms of
       the code, which are the same for all queries, and ||q||^2. Nothing is decoded.

    Sources: Gao, Zhu, Song, Zhao, Shen, "Beyond Product Quantization: Deep Progressive Quantization for Image
    Retrieval", IJCAI 2019; the codes are those of faiss.ResidualQuantizer. The weight of errors along the vector: Guo,
    Sun, Lindgren, Geng, Simcha, Chern, Kumar, "Accelerating Large-Scale Inference with Anisotropic Vector Quantization"
    (ScaNN), ICML 2020.

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

    @property
    def codebooks(self) -> Floats:
        """The codewords, shape (M, K, d), read-only."""
        return self.values

    def shrunk(self, shrinkage: float) -> ProgressiveQuantizer:
        """The same codes for reconstructions nearer to `centre`.

            x~ -> centre + shrinkage (x~ - centre)

        They come less near to the vectors, but may rank them better: see `training.Ranking`. `encode`
        multiplies vectors by the same factor, so that every vector keeps its code.
        """
        codebooks = np.float32(shrinkage) * self.centred
        codebooks[0] += self.centre
        return ProgressiveQuantizer(codebooks, shrinkage * self.shrinkage)

    def encode(
        self,
        x: Floats,
        beam_size: int | None = None,
        prefix_weight: float = 0.0,
        parallel_weight: float = 0.0,
        parallel_rest: float = 0.0,
        whole: Floats | None = None,
    ) -> Codes:
        """Codes of vectors by beam search over the levels (Eq. 26 is `beam_size` 1).

        Parameters
        ----------
        x : array, shape (n, d), float32
        beam_size : int, optional
            Prefixes kept at every level; `default_beam_size(M)` by default.
        prefix_weight : float
            How much the squared error of every shorter prefix counts in choosing what to keep; that of the prefix
            itself counts 1.
        parallel_weight : float
            How much the square of <t / ||t||, error> counts in addition to the squared error, t = x - `centre`. It is
            what the error changes in distances from, and inner products with, queries near to x; eta of Guo et al. is
            1 + this weight. It counts at every length, and in codes with blocks for the levels of blocks only.
        parallel_rest : float
            What share of <t / ||t||, t> the error along t is to leave, which the weight then counts from, in codes with
            blocks: vectors keep their distances to each other better if all leave the same share than if some leave
            less. Of vectors of which the global levels leave more than usual, less is asked for, since the weight lets
            more of it stand. In other codes it is not used.
        whole : array, shape (n, d), float32, optional
            The errors along these count: `x` itself, or vectors of which `x` are only parts, such as residuals to the
            centre of a list. By default, the errors along x - `centre` do.

        Returns
        -------
        codes : array, shape (n, M), uint16
        """
        beam_size = beam_size or encoder.default_beam_size(self.M)
        return encoder.encode(self, x, beam_size, prefix_weight, parallel_weight, parallel_rest, whole)

    def one_vector_encoder(
        self, beam_size: int, prefix_weight: float, parallel_weight: float, along_whole: bool
    ) -> _kernels.OneVectorEncoder | None:
        """As `encoder.one_vector_encoder`."""
        return encoder.one_vector_encoder(self, beam_size, prefix_weight, parallel_weight, along_whole)

    def decode(self, codes: Codes) -> Floats:
        """Reconstructions of codes, or of their prefixes.

        Parameters
        ----------
        codes : integer array, shape (n, levels), levels <= M

        Returns
        -------
        x : array, shape (n, d), float32
        """
        x = self.values[0][codes[:, 0]]
        for level in range(1, codes.shape[1]):
            x += self.values[level][codes[:, level]]
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
            ||q||^2 of the query that the table is made of: for METRIC_L2, the query after centring.
        """
        return tables.distance_tables(self, xq, levels or self.M, metric)

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
        return tables.cross_terms(self, codes)

    def longest(self, codes: Codes) -> float:
        """A bound, rounded up, on the lengths of the reconstructions of codes (n, levels), after centring."""
        return tables.longest(self, codes)

    def table_errors(self, norms: Floats, levels: int) -> Floats:
        """How far tables and cross terms of queries, summed over the levels, may be from their real values.

        Parameters
        ----------
        norms : array, shape (nq,), float32
            Of `tables`.
        levels : int

        Returns
        -------
        errors : array, shape (nq,), float32
        """
        factor, constant = self.error_factors(levels)
        return factor * np.sqrt(norms) + (constant + np.float32(2.0**-23) * norms)

    def error_factors(self, levels: int) -> tuple[np.float32, np.float32]:
        """What `tables.error_factors` gives for this length."""
        return self._error_factors_by_length[levels - 1]

    @cached_property
    def _error_factors_by_length(self) -> list[tuple[np.float32, np.float32]]:
        return [tables.error_factors(self, levels) for levels in range(1, self.M + 1)]
