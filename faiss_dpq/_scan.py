"""Exhaustive search of packed codes: cuts the work into blocks of queries and threads for the scan kernel."""

from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt

from . import _kernels, _parallel
from .quantizer import Floats, ProgressiveQuantizer

_TABLE_BYTES = 64 << 20  # of distance tables held at a time
_WORTH_A_THREAD = 1 << 18  # distances; about 50 us of scanning, several times what it costs to start a task

Labels = npt.NDArray[np.int64]

#: What FAISS fills the places of missing results with, for METRIC_L2; negated for METRIC_INNER_PRODUCT.
MISSING = np.finfo(np.float32).max


@dataclass(frozen=True)
class Selection:
    """The vectors to be searched: those numbered [begin, end), or ids[begin:end] (ascending) if ids are given."""

    begin: int
    end: int
    ids: Labels | None = None


def search(
    quantizer: ProgressiveQuantizer,
    packed: npt.NDArray[np.uint8],
    selection: Selection,
    xq: Floats,
    k: int,
    levels: int,
    metric: int,
) -> tuple[Floats, Labels]:
    """The k nearest codes of every query: exact float32 distances of Eq. 30, ties to the lower id.

    Parameters
    ----------
    packed : array, shape (n, code_size), uint8
    selection : Selection
    xq : array, shape (nq, d), float32
    k : int
    levels : int
        Length of the prefix of the codes that is compared.
    metric : int
        faiss.METRIC_L2 or METRIC_INNER_PRODUCT.

    Returns
    -------
    D : array, shape (nq, k), float32
    I : array, shape (nq, k), int64
        -1 (and +-FLT_MAX in D) where fewer than k vectors were found.
    """
    D = np.empty((len(xq), k), np.float32)
    I = np.empty((len(xq), k), np.int64)
    cross, terms = None, None
    if metric == faiss.METRIC_L2 and levels > 1:
        cross = quantizer._cross
        if cross is None:
            terms = quantizer.cross_terms(_kernels.unpack_codes(packed, levels, quantizer.nbits))
    rows = levels * quantizer.K
    block = max(1, _TABLE_BYTES // (4 * rows * _kernels.LANES)) * _kernels.LANES
    for start in range(0, len(xq), block):
        part = slice(start, min(start + block, len(xq)))
        tables, constants = quantizer.tables(xq[part], levels, metric)
        interleaved = _kernels.interleave_tables(tables, rows)
        _scan_block(interleaved, packed, quantizer.nbits, levels, cross, terms, selection, D[part], I[part])
        D[part] += constants[:, None]
    if metric == faiss.METRIC_L2:
        np.maximum(D, 0, out=D)  # the rounding of Eq. 30 may leave -1e-7 where a code is the query itself
    else:
        np.negative(D, out=D)
    D[I < 0] = MISSING if metric == faiss.METRIC_L2 else -MISSING
    return D, I


def _scan_block(
    tables: Floats,
    packed: npt.NDArray[np.uint8],
    nbits: int,
    levels: int,
    cross: Floats | None,
    terms: Floats | None,
    selection: Selection,
    D: Floats,
    I: Labels,
) -> None:
    nq, k = D.shape
    n = selection.end - selection.begin
    n_threads = min(faiss.omp_get_max_threads(), max(1, n * nq // _WORTH_A_THREAD))

    def scan(group: slice, vectors: slice, D: Floats, I: Labels) -> None:
        _kernels.scan(
            tables[group],
            packed,
            nbits,
            levels,
            cross,
            terms,
            selection.ids,
            selection.begin + vectors.start,
            selection.begin + vectors.stop,
            D,
            I,
        )

    everything = slice(0, n)
    all_groups = slice(0, len(tables))
    if n_threads > 1 and len(tables) < 4 * n_threads:
        # Few queries: every thread scans a part of the vectors for all of them.
        parts = _parallel.slices(n, n_threads)
        Ds = np.empty((len(parts), nq, k), np.float32)
        Is = np.empty((len(parts), nq, k), np.int64)
        _parallel.run(scan, [(all_groups, part, Ds[p], Is[p]) for p, part in enumerate(parts)])
        _merge(Ds, Is, D, I)
        return
    lanes = _kernels.LANES
    tasks = []
    for group in _parallel.slices(len(tables), n_threads):
        queries = slice(group.start * lanes, min(group.stop * lanes, nq))
        tasks.append((group, everything, D[queries], I[queries]))
    _parallel.run(scan, tasks)


def _merge(Ds: Floats, Is: Labels, D: Floats, I: Labels) -> None:
    """The k best of the results (parts, nq, k) of ascending parts of the vectors."""
    k = D.shape[1]
    Ds = Ds.transpose(1, 0, 2).reshape(len(D), -1)
    Is = Is.transpose(1, 0, 2).reshape(len(D), -1)
    # Stable: among equal distances the earlier part, so the lower id, stays first.
    order = np.argsort(Ds, axis=1, kind="stable")[:, :k]
    D[:] = np.take_along_axis(Ds, order, axis=1)
    I[:] = np.take_along_axis(Is, order, axis=1)
