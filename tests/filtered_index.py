"""Indexes of all codes for tests of filters, and what tests of filters ask."""

import faiss
import numpy as np
from flat_index import filled_index
from naive import normal

from faiss_dpq import _kernels

N = 12_000  # enough for a sample, byte sums and several chunks of a mask
_indexes = {}


def bitmap(members):
    return faiss.IDSelectorBitmap(np.packbits(members, bitorder="little"))


def index_of(M, nbits, metric, n=N):
    if (M, nbits, metric, n) not in _indexes:
        rng = np.random.default_rng(M)
        index, codes = filled_index(rng, n, 6, M, nbits, metric)
        _indexes[M, nbits, metric, n] = index, codes, normal(rng, 40, 6)
    return _indexes[M, nbits, metric, n]


def counted(search):
    _kernels.reset_counters()
    search()
    return _kernels.counters()
