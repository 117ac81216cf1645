"""Indexes that are searched by one query at a time, and whether such a search took the short way."""

import faiss
import naive
import numpy as np
import pytest
from naive import normal

import faiss_dpq

NLIST = 6


def flat(rng, n=600, d=9, M=3, nbits=5, metric=faiss.METRIC_L2):
    """An IndexDPQ of random codebooks and codes."""
    index = faiss_dpq.IndexDPQ.from_codebooks(naive.random_codebooks(rng, M, 1 << nbits, d), metric)
    index.add_sa_codes(naive.pack(rng.integers(0, 1 << nbits, (n, M)).astype(np.uint16), nbits))
    return index


def inverted(rng, n=600, d=9, M=3, nbits=5, metric=faiss.METRIC_L2):
    """An IndexIVFDPQ of random centres, codebooks and codes."""
    centres = faiss.IndexFlat(d, metric)
    centres.add(2 * normal(rng, NLIST, d))
    index = faiss_dpq.IndexIVFDPQ.from_codebooks(centres, naive.random_codebooks(rng, M, 1 << nbits, d), metric)
    lists = rng.integers(0, NLIST, (n, 1)).astype(np.uint8)
    codes = naive.pack(rng.integers(0, 1 << nbits, (n, M)).astype(np.uint16), nbits)
    index.add_sa_codes(np.concatenate([lists, codes], axis=1))
    index.nprobe = 3
    return index


KINDS = {"flat": flat, "inverted": inverted}


def one_by_one(index, xq, k):
    return tuple(np.concatenate(part) for part in zip(*(index.search(x[None], k) for x in xq), strict=True))


def assert_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


def is_short(index, x, monkeypatch):
    """Whether a search of x gets by without a look at the index from Python."""
    with monkeypatch.context() as patch:
        patch.setattr(type(index), "_checked_vectors", lambda *_: pytest.fail("the long way"))
        try:
            index.search(x, 4)
        except pytest.fail.Exception:
            return False
        return True


def codes_of(index):
    """The memory of the codes: of all, or of every list."""
    if hasattr(index, "codes"):
        return [faiss.rev_swig_ptr(index.codes.data(), index.codes.size())]
    lists, size = index.invlists, index.code_size
    return [faiss.rev_swig_ptr(lists.get_codes(i), lists.list_size(i) * size) for i in range(index.nlist)]


def write_codes(index, rng):
    for memory in codes_of(index):
        memory[:] = rng.integers(0, 256, len(memory))
