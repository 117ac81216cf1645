"""The thread pool: every call is made once, nested runs end, the first error comes last."""

import os
import subprocess
import sys
import threading
import time

import pytest

from faiss_dpq.codec import threads as pool


@pytest.fixture
def one_worker(monkeypatch):
    """A pool of one thread, which passes for a large one."""
    monkeypatch.setattr(pool, "_pool", pool.ThreadPoolExecutor(1))
    monkeypatch.setattr(pool, "_pool_size", 9)


@pytest.mark.parametrize("n", [0, 1, 7])
@pytest.mark.parametrize("n_threads", [None, 1, 3])
def test_results_are_in_the_order_of_the_arguments(n, n_threads):
    assert pool.run(lambda a, b: a * b, [(i, 2) for i in range(n)], n_threads) == [2 * i for i in range(n)]


def test_as_many_threads_take_part_as_are_asked_for():
    together = threading.Barrier(4)
    pool.run(lambda: together.wait(30), [()] * 4, 4)  # the barrier opens only if all four wait at once


def test_the_calling_thread_takes_part_with_as_many_threads_as_faiss_has(threads):
    threads(3)
    together, seen = threading.Barrier(3), set()
    pool.run(lambda: (seen.add(threading.get_ident()), together.wait(30)), [()] * 3)
    assert len(seen) == 3 and threading.get_ident() in seen


def test_nested_runs_end_where_all_threads_are_taken(one_worker):
    def outer(i):
        return sum(pool.run(inner, [(i, j) for j in range(3)], 2))

    def inner(i, j):
        return sum(pool.run(lambda k: i * j * k, [(k,) for k in range(3)], 2))

    assert pool.run(outer, [(i,) for i in range(8)], 2) == [9 * i for i in range(8)]


def test_nothing_waits_for_a_call_that_no_thread_has_begun(one_worker):
    busy, done = threading.Event(), threading.Event()
    occupied = pool._pool.submit(lambda: (busy.set(), done.wait(30)))
    assert busy.wait(30)
    assert pool.run(lambda i: i, [(i,) for i in range(5)], 2) == list(range(5))
    assert not occupied.done()
    done.set()


def test_the_first_error_is_raised_when_all_have_ended():
    ended = []

    def call(i):
        time.sleep(0.01 * i)
        ended.append(i)
        if i in (1, 2):
            raise ValueError(str(i))

    for n_threads in (1, 3):
        ended.clear()
        with pytest.raises(ValueError, match=r"^1$"):
            pool.run(call, [(i,) for i in range(5)], n_threads)
        assert sorted(ended) == list(range(5))


def test_an_interrupt_of_the_calling_thread_ends_the_run():
    made = []

    def call(i):
        made.append(i)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.run(call, [(i,) for i in range(5)], 1)
    assert made == [0]


def test_the_calling_thread_does_all_where_no_other_can_be_had(monkeypatch):
    class Limited(pool.ThreadPoolExecutor):
        """Puts the work in its queue, as the standard one does, then learns that it may have no thread."""

        def _adjust_thread_count(self):
            if len(self._threads) == 1:
                raise RuntimeError("can't start new thread")
            super()._adjust_thread_count()

    monkeypatch.setattr(pool, "_pool", Limited(9))
    monkeypatch.setattr(pool, "_pool_size", 9)
    ended = []

    def call(i):
        time.sleep(1e-4)
        ended.append(i)
        return i

    for _ in range(100):
        ended.clear()
        assert pool.run(call, [(i,) for i in range(9)], 5) == list(range(9))
        assert sorted(ended) == list(range(9))


_SEARCH_AT_EXIT = """
import atexit

import faiss
import numpy as np

import faiss_dpq

rng = np.random.default_rng(0)
x = rng.standard_normal((70_000, 8)).astype(np.float32)
index = faiss_dpq.IndexDPQ.from_codebooks(rng.standard_normal((4, 256, 8)).astype(np.float32))
index.add(x)
expected = index.search(x[:50], 3)
faiss.omp_set_num_threads(3)


@atexit.register
def add_and_search():
    index.reset()
    index.add(x)
    np.testing.assert_array_equal(index.search(x[:50], 3), expected)
    print("searched")
"""


def test_an_index_works_while_the_interpreter_ends():
    ended = subprocess.run([sys.executable, "-c", _SEARCH_AT_EXIT], capture_output=True, text=True, timeout=300)
    assert (ended.stdout, ended.stderr) == ("searched\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_has_a_pool_of_its_own():
    together = threading.Barrier(2)
    pool.run(lambda: together.wait(30), [()] * 2, 2)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            together = threading.Barrier(2)
            pool.run(lambda: together.wait(30), [()] * 2, 2)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
