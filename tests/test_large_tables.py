"""bench.large_tables: its rows are what the indexes find."""

import argparse

import faiss
import numpy as np
import pytest

import faiss_dpq
from bench import large_tables
from faiss_dpq.lab.datasets import VectorSet


def test_rows_are_of_what_is_stored_whatever_is_timed(monkeypatch, threads):
    x = np.random.default_rng(0).standard_normal((1800, 16)).astype(np.float32)
    vectors = VectorSet(x[:600], x[600:1700], x[1700:])
    monkeypatch.setattr(large_tables, "load", lambda name, n: vectors)
    monkeypatch.setattr(large_tables, "find_spec", lambda name: None)
    args = argparse.Namespace(data="small", M=[4], train=600, n=3000, batch=10, rounds=1, all=False)
    rows = {row[1]: row for row in large_tables.rows(args)}
    # PRQ is not measured at 4 bytes, and RaBitQ has no codes so short.
    assert list(rows) == ["IndexDPQ", "OPQ", "PQ", "PQFastScan"]
    nearest = faiss.knn(vectors.queries, vectors.base, 1)[1]
    for name, index in (("IndexDPQ", faiss_dpq.IndexDPQ(16, 4, 8)), ("PQ", faiss.IndexPQ(16, 4, 8))):
        index.train(vectors.train)
        index.add(vectors.base)
        found = index.search(vectors.queries, 10)[1]
        assert rows[name][0] == "4"
        assert float(rows[name][2]) == pytest.approx((found[:, :1] == nearest).mean(), abs=6e-4)
        assert float(rows[name][3]) == pytest.approx((found == nearest).any(axis=1).mean(), abs=6e-4)
        assert len(rows[name]) == len(large_tables.HEAD)


def test_indexes_are_filled_by_copies_of_their_codes():
    x = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    index = faiss.IndexPQ(8, 2, 4)
    index.train(x)
    index.add(x)
    codes = faiss.vector_to_array(index.codes)
    large_tables.fill(index, 700)
    assert index.ntotal == 900
    np.testing.assert_array_equal(faiss.vector_to_array(index.codes), np.tile(codes, 3))
