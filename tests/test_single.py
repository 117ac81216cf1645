"""A search by one query goes to the kernels at once, and finds what any other search finds."""

import copy
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from naive import METRICS, normal
from one_query import KINDS, assert_equal, flat, is_short, one_by_one

import faiss_dpq
from faiss_dpq.codec import levels as levels_module
from faiss_dpq.search import flat as _scan
from faiss_dpq.search.derived import DerivedCodes

# ---- results --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@given(
    metric=st.sampled_from(METRICS),
    n=st.integers(1, 900),
    d=st.integers(1, 40),
    M=st.integers(1, 9),
    nbits=st.sampled_from([2, 4, 5, 8]),
    levels=st.integers(0, 9),
    max_codes=st.sampled_from([0, 100]),
    k=st.integers(1, 200),
    seed=st.integers(0, 1000),
)
def test_one_query_finds_what_many_find(simd, kind, metric, n, d, M, nbits, levels, max_codes, k, seed):
    rng = np.random.default_rng(seed)
    index = KINDS[kind](rng, n, d, M, nbits, metric)
    if levels:
        index.levels = min(levels, M)
    if kind == "inverted":
        index.max_codes = max_codes
    xq = normal(rng, 4, d)
    xq[3, 0] = np.nan
    expected = index.search(xq, k)
    for _ in range(2):
        assert_equal(one_by_one(index, xq, k), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("tables", ["cross tables", "no cross tables"])
def test_one_query_of_many_vectors(simd, kind, metric, tables, monkeypatch):
    if tables == "no cross tables":
        monkeypatch.setattr(levels_module, "MAX_CROSS_TABLE_BYTES", -1)
    rng = np.random.default_rng(0)
    index = KINDS[kind](rng, 40_000, 20, 4, 8, metric)  # beyond what is scanned in float32
    xq = normal(rng, 5, 20)
    for k in (1, 10, 300):
        expected = index.search(xq, k)
        for _ in range(2):
            assert_equal(one_by_one(index, xq, k), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_search_of_one_query_is_short(kind, monkeypatch):
    index, x = KINDS[kind](np.random.default_rng(0)), np.zeros((1, 9), np.float32)
    assert not is_short(index, x, monkeypatch)
    index.search(x, 4)
    assert is_short(index, x, monkeypatch)
    index.levels = 2
    assert not is_short(index, x, monkeypatch)
    index.search(x, 4)
    assert is_short(index, x, monkeypatch)
    for longer in (np.zeros((2, 9), np.float32), x.astype(np.float64), x.astype(">f4"), np.zeros((1, 18), "f")[:, ::2]):
        assert not is_short(index, longer, monkeypatch)


def test_what_several_threads_search_is_short_too(threads, monkeypatch):
    monkeypatch.setattr(_scan, "_WORTH_A_THREAD", 100)
    threads(3)
    index, x = flat(np.random.default_rng(0)), np.zeros((1, 9), np.float32)
    index.search(x, 4)
    assert is_short(index, x, monkeypatch)


def test_the_second_search_of_a_prefix_is_short_too(monkeypatch):
    index, x = flat(np.random.default_rng(0)), np.ones((1, 9), np.float32)
    prefix = faiss_dpq.SearchParametersDPQ(levels=2)
    expected = index.search(np.repeat(x, 2, axis=0), 4, params=prefix)
    for _ in range(2):
        assert_equal(index.search(x, 4, params=prefix), (expected[0][:1], expected[1][:1]))
    with monkeypatch.context() as patch:
        patch.setattr(type(index), "_checked_vectors", lambda *_: pytest.fail("the long way"))
        index.search(x, 4, params=prefix)
    everything = index.search(np.repeat(x, 2, axis=0), 4)
    assert_equal(index.search(x, 4), (everything[0][:1], everything[1][:1]))
    some = faiss_dpq.SearchParametersDPQ(levels=2, sel=faiss.IDSelectorRange(0, 1))
    assert index.search(x, 4, params=some)[1].tolist() == [[0, -1, -1, -1]]
    for levels in (-1, 4):
        with pytest.raises(ValueError, match="levels"):
            index.search(x, 4, params=faiss_dpq.SearchParametersDPQ(levels=levels))


# ---- threads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("M", "nbits", "levels"), [(4, 8, 4), (8, 8, 2), (5, 8, 5), (3, 6, 3)])
def test_threads_find_what_one_finds(simd, metric, M, nbits, levels, threads, worth_threads):
    rng = np.random.default_rng(0)
    index = flat(rng, 30_000, 12, M, nbits, metric)
    packed = faiss.vector_to_array(index.codes).reshape(index.ntotal, -1)
    faiss.copy_array_to_vector(packed[rng.integers(0, 3000, len(packed))].ravel(), index.codes)  # every code ten times
    index.levels = levels
    xq = normal(rng, 4, 12)
    xq[3, 0] = np.nan
    selectors = [None, *(faiss.IDSelectorBatch(np.flatnonzero(rng.random(30_000) < share)) for share in (0.6, 0.05))]
    for k in (1, 10, 100, 300, 3000):
        for sel in selectors:
            params = None if sel is None else faiss.SearchParameters(sel=sel)
            threads(1)
            expected = index.search(xq, k, params=params)
            for n_threads in (1, 2, 3):
                threads(n_threads)
                for x, D, I in zip(xq, *expected, strict=True):
                    assert_equal(index.search(x[None], k, params=params), (D[None], I[None]))


def test_threads_search_beside_each_other(threads, worth_threads):
    """One of them has the helpers, the others go on without."""
    rng = np.random.default_rng(1)
    index, xq = flat(rng, 30_000, 24, 4, 8), normal(rng, 200, 24)
    threads(1)
    expected = one_by_one(index, xq, 12)

    def search(x):
        faiss.omp_set_num_threads(3)
        return index.search(x[None], 12)

    for _ in range(5):
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(search, xq))
        assert_equal(tuple(map(np.concatenate, zip(*found, strict=True))), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own(threads, worth_threads):
    rng = np.random.default_rng(1)
    index, xq = flat(rng, 30_000, 24, 4, 8), normal(rng, 20, 24)
    threads(3)
    expected = one_by_one(index, xq, 12)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            assert_equal(one_by_one(index, xq, 12), expected)
            status = 0
        finally:
            os._exit(status)
    assert_equal(one_by_one(index, xq, 12), expected)
    assert os.waitpid(child, 0)[1] == 0


_ENDS_WHILE_THREADS_SEARCH = """
import threading

import faiss
import numpy as np

import faiss_dpq

rng = np.random.default_rng(0)
index = faiss_dpq.IndexDPQ.from_codebooks(rng.standard_normal((4, 256, 8)).astype(np.float32))
index.add_sa_codes(rng.integers(0, 256, (400_000, 4)).astype(np.uint8))
searched = threading.Event()


def search_on():
    faiss.omp_set_num_threads(3)
    while True:
        index.search(np.zeros((1, 8), np.float32), 10)
        searched.set()


threading.Thread(target=search_on, daemon=True).start()
searched.wait()
"""


def test_an_interpreter_ends_while_threads_search():
    subprocess.run([sys.executable, "-c", _ENDS_WHILE_THREADS_SEARCH], check=True, timeout=300)


# ---- arguments, other threads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_arguments_are_checked_as_ever(kind):
    index, x = KINDS[kind](np.random.default_rng(0)), np.ones((1, 9), np.float32)
    expected = index.search(x, 4)
    for same in (x.astype(np.float64), np.ones((1, 18), np.float32)[:, ::2], x.astype(">f4"), x.tolist()):
        assert_equal(index.search(same, 4), expected)
    assert_equal(index.search(x, np.int64(4)), expected)
    D, I = np.empty((1, 4), np.float32), np.empty((1, 4), np.int64)
    index.search(x, 4, D=D, I=I)
    assert_equal((D, I), expected)
    for bad, k, error in (
        (x[:, :8], 4, AssertionError),
        (x[0], 4, ValueError),
        (x, 0, AssertionError),
        (x, -1, AssertionError),
        (x.astype(str), 4, TypeError),
    ):
        with pytest.raises(error, match=r"search"):
            index.search(bad, k)
    assert_equal(index.search(x, 4), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_under_way_owns_what_it_reads(kind):
    """Another thread may meanwhile have put something else in place of what the index keeps."""
    rng = np.random.default_rng(1)
    index, xq = KINDS[kind](rng, 20_000, 24, 4, 8), normal(rng, 20, 24)
    expected = one_by_one(index, xq, 12)
    direct = index._direct
    setattr(index, "_derived" if kind == "flat" else "_known", None)
    copies = [copy.deepcopy(index) for _ in range(5)]
    for other in copies:  # takes the memory that is no longer owned
        other.search(xq, 12)
    assert_equal(one_by_one(index, xq, 12), expected)
    assert index._direct is direct


def test_another_thread_may_derive_what_it_needs_while_memory_is_counted(monkeypatch):
    index = KINDS["flat"](np.random.default_rng(1), 500, 24, 4, 8)
    xq, nbytes = normal(np.random.default_rng(2), 2, 24), DerivedCodes.nbytes.fget

    def counted(derived):
        index._derived[len(index._derived) + 10] = derived  # as a search by another number of levels does
        return nbytes(derived)

    for levels in (1, 2):
        index.search(xq, 3, params=faiss_dpq.SearchParametersDPQ(levels=levels))
    monkeypatch.setattr(DerivedCodes, "nbytes", property(counted))
    index.search(xq, 3, params=faiss_dpq.SearchParametersDPQ(levels=3))
    assert index.memory_usage()["derived"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_one_query_each_from_several_threads(kind):
    rng = np.random.default_rng(1)
    index = KINDS[kind](rng, 5000, 24, 4, 8)
    xq = normal(rng, 200, 24)
    expected = copy.deepcopy(index).search(xq, 12)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(10):
            with ThreadPoolExecutor(4) as pool:
                found = list(pool.map(lambda x: index.search(x[None], 12), xq))
            assert_equal(tuple(map(np.concatenate, zip(*found, strict=True))), expected)
            index._direct = None
            setattr(index, "_derived" if kind == "flat" else "_known", None)
    finally:
        sys.setswitchinterval(interval)
