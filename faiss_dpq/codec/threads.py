"""The one thread pool of this package, for work that releases the GIL."""

import contextlib
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faiss

_pool: ThreadPoolExecutor | None = None
_pool_size = 0

#: The most threads that one call of `run` was cut among so far, 0 for none; a test that reads it sets it to 0 before.
most_threads = 0


#: Whether this process was forked: it has none of the threads of its parent's, those of OpenMP included.
forked = False


def _begin_anew() -> None:
    global _pool, forked
    _pool, forked = None, True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


@contextlib.contextmanager
def without_openmp() -> Iterator[None]:
    """In a forked child, one thread for FAISS and us: OpenMP would wait for threads that only the parent has."""
    n_threads = faiss.omp_get_max_threads() if forked else 1
    if n_threads > 1:
        faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        if n_threads > 1:
            faiss.omp_set_num_threads(n_threads)


def slices(n: int, parts: int, multiple: int = 1) -> list[slice]:
    """Cut range(n) into at most `parts` even slices that begin at multiples of `multiple`."""
    units = -(-n // multiple)
    parts = max(1, min(parts, units))
    if parts == 1:
        return [slice(0, n)]
    bounds = [min(n, units * i // parts * multiple) for i in range(parts + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]


def run_slices(function: Callable[[slice], Any], n: int, worth: int) -> None:
    """Call `function` with even slices of range(n), on `worth` threads, as many as FAISS has at most."""
    n_threads = min(faiss.omp_get_max_threads(), worth) if worth > 1 else 1
    if n_threads > 1:
        run(function, [(part,) for part in slices(n, n_threads)])
    else:
        function(slice(0, n))


def run(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], n_threads: int | None = None) -> list[Any]:
    """Call `function` with every tuple of `arguments`, on several threads, and return the results in their order.

    The calling thread takes calls, too, and does all that no other thread begins. So a function that is run here may
    itself use `run`, whatever the number of threads: nothing waits for a call that has not begun. It does all of them
    where there can be no other thread: while the interpreter ends, or where the system allows no more threads.

    Parameters
    ----------
    function : callable
    arguments : sequence of tuples
    n_threads : int, optional
        Threads that work together, the calling one included; as many as FAISS's OpenMP is set to, by default.

    Raises
    ------
    Exception
        If calls raise, the error of the first of them, after all calls have been made and have ended.
    """
    global most_threads
    if len(arguments) == 1:  # what follows would take a tenth of the time of encoding one vector
        return [function(*arguments[0])]
    n_threads = min(len(arguments), n_threads or faiss.omp_get_max_threads())
    calls, results = deque(enumerate(arguments)), [None] * len(arguments)
    errors: dict[int, BaseException] = {}
    took_part = set()
    under_way: list[threading.Event] = []

    def work(kept: type[BaseException] = Exception) -> None:
        while calls:
            try:
                number, some = calls.popleft()
            except IndexError:  # another thread took the last one
                return
            took_part.add(threading.get_ident())
            try:
                results[number] = function(*some)
            except kept as error:
                errors[number] = error

    def help() -> None:
        ended = threading.Event()
        under_way.append(ended)  # before it looks for calls, so that `end` waits for all that it may take
        try:
            work(BaseException)
        finally:
            ended.set()

    def end() -> None:
        calls.clear()  # not empty only if this thread was interrupted
        for ended in list(under_way):
            ended.wait()

    # Twice: nothing runs on after this call, even if Ctrl-C comes while it waits.
    try:
        try:
            with contextlib.suppress(RuntimeError):  # no thread to be had
                for _ in range(n_threads - 1):
                    _pool_of(n_threads).submit(help)
            work()
        finally:
            end()
    finally:
        end()
    most_threads = max(most_threads, len(took_part))
    try:
        if errors:
            raise errors[min(errors)]
    finally:
        errors.clear()  # an error refers to this frame: no cycle shall keep its arrays in memory
    return results


def _pool_of(n_threads: int) -> ThreadPoolExecutor:
    """The pool, with at least so many threads."""
    global _pool, _pool_size
    if _pool is None or _pool_size < n_threads:
        _pool, _pool_size = ThreadPoolExecutor(n_threads, "faiss_dpq"), n_threads
    return _pool
