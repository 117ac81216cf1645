"""Comparing queries with codes without reconstructing vectors (Eq. 30).

    ||q - sum_l c_l(k_l)||^2 = ||q||^2                                  a constant of the query
                             + sum_l (||c_l(k_l)||^2 - 2<q, c_l(k_l)>)    a table of M x K numbers per query
                             + sum_{l<l'} 2<c_l(k_l), c_l'(k_l')>         the cross terms of the code

Inner products need only a table of -<q, c_l(k_l)>.
"""

from __future__ import annotations

import faiss
import numpy as np
import numpy.typing as npt

from .. import _kernels
from . import threads
from .codebooks import Codebooks
from .layout import ROUNDING
from .levels import Codes, Floats

_BLOCK = 4096  # vectors reconstructed together
_OUTSIDE = ROUNDING * 2.0**24  # what is outside of a block, in units of u


def distance_tables(codebooks: Codebooks, xq: Floats, levels: int, metric: int) -> tuple[Floats, Floats, Floats]:
    """Tables, constants and squared norms of queries; `ProgressiveQuantizer.tables` describes them."""
    rows, with_codewords = levels * codebooks.K, codebooks.products(levels)
    tables = _kernels.aligned_empty((len(xq), with_codewords.width))
    norms = np.empty(len(xq), np.float32)
    if metric == faiss.METRIC_L2:
        xq = np.subtract(xq, codebooks.centre, order="C")
        _kernels.squared_norms(xq, norms)
        constants = norms
        bias, scale = codebooks.codeword_norms, -2.0
    else:
        _kernels.squared_norms(xq, norms)
        centre = _kernels.pack_panels(codebooks.centre[None])
        products = np.empty((len(xq), _kernels.PANEL), np.float32)
        _kernels.linear(xq, centre, np.zeros(_kernels.PANEL, np.float32), -1.0, products)
        constants = np.ascontiguousarray(products[:, 0])
        bias, scale = np.zeros(tables.shape[1], np.float32), -1.0

    def fill(part: slice) -> None:
        with_codewords.of(xq[part], bias, scale, tables[part])

    parts = threads.slices(len(xq), faiss.omp_get_max_threads(), multiple=48)
    threads.run(fill, [(part,) for part in parts])
    return np.ascontiguousarray(tables[:, :rows]), constants, norms


def cross_terms(codebooks: Codebooks, codes: Codes) -> Floats:
    """The cross terms of codes (n, levels), shape (n,): from the cross tables if there are any, else by decoding."""
    terms = np.empty(len(codes), np.float32)
    if codebooks.cross_tables is not None:
        _kernels.cross_terms(np.ascontiguousarray(codes), codes.shape[1], codebooks.cross_tables, terms)
        return terms
    # ||sum_l c_l||^2 = sum_l ||c_l||^2 + the cross terms
    codeword_norms = codebooks.codeword_norms[: codebooks.M * codebooks.K].reshape(codebooks.M, codebooks.K)

    def fill(part: slice) -> None:
        lengths = _squared_lengths(codebooks, codes[part])
        for level, of_level in enumerate(codes[part].T):
            lengths -= codeword_norms[level][of_level]
        terms[part] = lengths

    threads.run(fill, [(part,) for part in threads.slices(len(codes), -(-len(codes) // _BLOCK))])
    return terms


def longest(codebooks: Codebooks, codes: Codes) -> float:
    """A bound, rounded up, on the lengths of the reconstructions of codes (n, levels), after centring."""
    most = [0.0]
    parts = threads.slices(len(codes), -(-len(codes) // _BLOCK))
    threads.run(lambda part: most.append(_squared_lengths(codebooks, codes[part]).max()), [(part,) for part in parts])
    rounding = 2.0**-22 + 2 * ROUNDING * codes.shape[1]
    return float(np.sqrt(max(most)) * (1 + rounding) + rounding * codebooks.longest_codewords[: codes.shape[1]].sum())


def _squared_lengths(codebooks: Codebooks, codes: Codes) -> npt.NDArray[np.float64]:
    if codebooks.compact:
        return codebooks.compact.squared_lengths(codes)
    x = codebooks.centred[0][codes[:, 0]]
    for level in range(1, codes.shape[1]):
        x += codebooks.centred[level][codes[:, level]]
    return np.einsum("ij,ij->i", x, x, dtype=np.float64)


def _chained(d: int) -> float:
    """What a product of d dimensions is off by, in units of u."""
    return min(d, _kernels.LINEAR_DEPTH) + -(-d // _kernels.LINEAR_DEPTH) + 3


def error_factors(codebooks: Codebooks, levels: int) -> tuple[np.float32, np.float32]:
    """How far rounding can put a distance of Eq. 30 from its real value: at most factor * ||q|| + constant.

    Every table entry is a sum of chains of 64 multiply-adds, so by the Cauchy-Schwarz inequality it is off by at most
    (64 + d / 64 + 3) u ||q|| ||c||, u = 2^-24; every cross term is a sum of levels^2 / 2 rounded entries. In blocks,
    the query's coordinates are off by as much each, codewords are a little outside, and cross terms are rounded once.

    Returns
    -------
    factor, constant : float32
    """
    longest = codebooks.longest_codewords[:levels]
    reach = longest.sum()
    entries = np.full(levels, _chained(codebooks.d))
    terms = levels * (levels - 1) / 2 + 4 * levels + 2
    if codebooks.compact:
        for level, block in enumerate(codebooks.layout.blocks[:levels]):
            if block:
                dimensions = codebooks.compact.parts[block - 1].d
                entries[level] = _chained(dimensions) + _chained(codebooks.d) * dimensions**0.5 + 2 * _OUTSIDE
        terms = 4 * levels + 2 * _OUTSIDE
    factor = 2 * (entries * longest).sum()
    constant = (entries * longest**2).sum() + terms * reach**2
    unit = 1.2 * 2.0**-24  # a fifth more than u, since the bound is rounded, too
    return np.float32(unit * factor), np.float32(unit * constant)
