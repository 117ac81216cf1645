"""Threads for kernels that release the GIL: as many as faiss.omp_get_max_threads()."""

import itertools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import faiss

_pool: ThreadPoolExecutor | None = None
_pool_size = 0

#: The most threads that one call of `run` was cut among so far, 0 for none; a test that reads it sets it to 0 before.
most_threads = 0


def _forget_pool() -> None:
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    # A forked child has the pool object but none of its threads.
    os.register_at_fork(after_in_child=_forget_pool)


def slices(n: int, parts: int, multiple: int = 1) -> list[slice]:
    """Cut range(n) into at most `parts` even slices that begin at multiples of `multiple`."""
    units = -(-n // multiple)
    parts = max(1, min(parts, units))
    if parts == 1:
        return [slice(0, n)]
    bounds = [min(n, units * i // parts * multiple) for i in range(parts + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]


def run(function: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> None:
    """Call `function` with every tuple of `arguments`, together; the first error is raised once all have ended."""
    global _pool, _pool_size, most_threads
    if len(arguments) <= 1:
        for some in arguments:
            function(*some)
        return
    n_threads = faiss.omp_get_max_threads()
    if _pool is None or _pool_size < n_threads:
        _pool, _pool_size = ThreadPoolExecutor(n_threads, "faiss_dpq"), n_threads
    took_part = {threading.get_ident()}

    def work(*some: Any) -> None:
        took_part.add(threading.get_ident())
        function(*some)

    futures = [_pool.submit(work, *some) for some in arguments[1:]]
    try:
        function(*arguments[0])
    finally:
        wait(futures)
        most_threads = max(most_threads, len(took_part))
    for future in futures:
        future.result()
