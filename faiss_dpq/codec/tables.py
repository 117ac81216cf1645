"""Comparing queries with codes without reconstructing vectors (Eq. 30).

    ||q - sum_l c_l(k_l)||^2 = ||q||^2                                  a constant of the query
                             + sum_l (||c_l(k_l)||^2 - 2<q, c_l(k_l)>)    a table of M x K numbers per query
                             + sum_{l<l'} 2<c_l(k_l), c_l'(k_l')>         the cross terms of the code

Inner products need only a table of -<q, c_l(k_l)>.
"""

from __future__ import annotations

import faiss
import numpy as np

from .. import _kernels
from . import threads
from .codebooks import Codebooks, Codes, Floats

_BLOCK = 4096  # vectors reconstructed together


def distance_tables(codebooks: Codebooks, xq: Floats, levels: int, metric: int) -> tuple[Floats, Floats, Floats]:
    """Tables, constants and squared norms of queries; `ProgressiveQuantizer.tables` describes them."""
    rows = levels * codebooks.K
    n_panels = -(-rows // _kernels.PANEL)
    tables = _kernels.aligned_empty((len(xq), n_panels * _kernels.PANEL))
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
        _kernels.linear(xq[part], codebooks.panels[:n_panels], bias, scale, tables[part])

    parts = threads.slices(len(xq), faiss.omp_get_max_threads(), multiple=48)
    threads.run(fill, [(part,) for part in parts])
    return np.ascontiguousarray(tables[:, :rows]), constants, norms


def cross_terms(codebooks: Codebooks, codes: Codes) -> Floats:
    """The cross terms of codes (n, levels), shape (n,): from the cross tables if there are any, else by decoding."""
    levels = codes.shape[1]
    terms = np.empty(len(codes), np.float32)
    if codebooks.cross_tables is not None:
        _kernels.cross_terms(np.ascontiguousarray(codes), levels, codebooks.cross_tables, terms)
        return terms
    # ||sum_l c_l||^2 = sum_l ||c_l||^2 + the cross terms
    codeword_norms = codebooks.codeword_norms[: codebooks.M * codebooks.K].reshape(codebooks.M, codebooks.K)
    for start in range(0, len(codes), _BLOCK):
        block = codes[start : start + _BLOCK]
        x = codebooks.centred[0][block[:, 0]]
        own_norms = codeword_norms[0][block[:, 0]].astype(np.float64)
        for level in range(1, levels):
            x += codebooks.centred[level][block[:, level]]
            own_norms += codeword_norms[level][block[:, level]]
        terms[start : start + len(block)] = np.einsum("ij,ij->i", x, x, dtype=np.float64) - own_norms
    return terms


def error_factors(codebooks: Codebooks, levels: int) -> tuple[np.float32, np.float32]:
    """How far rounding can put a distance of Eq. 30 from its real value: at most factor * ||q|| + constant.

    Every table entry is a sum of chains of 64 multiply-adds, so by the Cauchy-Schwarz inequality it is off by at most
    (64 + d / 64 + 3) u ||q|| ||c||, u = 2^-24; every cross term is a sum of levels^2 / 2 rounded entries.

    Returns
    -------
    factor, constant : float32
    """
    longest = codebooks.longest_codewords[:levels]
    reach = longest.sum()
    entries = min(codebooks.d, _kernels.LINEAR_DEPTH) + -(-codebooks.d // _kernels.LINEAR_DEPTH) + 3
    terms = levels * (levels - 1) // 2 + 4 * levels + 2
    factor = 2 * entries * reach
    constant = entries * (longest**2).sum() + terms * reach**2
    unit = 1.2 * 2.0**-24  # a fifth more than u, since the bound is rounded, too
    return np.float32(unit * factor), np.float32(unit * constant)
