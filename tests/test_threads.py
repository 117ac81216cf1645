"""The thread pool: every call is made once, nested runs end, the first error comes last."""

import os
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
