"""Threads for kernels that release the GIL: as many as faiss.omp_get_max_threads()."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import faiss

T = TypeVar("T")

_pool: ThreadPoolExecutor | None = None
_pool_size = 0


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
    bounds = [min(n, units * i // parts * multiple) for i in range(parts + 1)]
    return [slice(a, b) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]


def run(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """Results of all `tasks`, run together; the first error is raised once all have ended."""
    global _pool, _pool_size
    if len(tasks) <= 1:
        return [task() for task in tasks]
    n_threads = faiss.omp_get_max_threads()
    if _pool is None or _pool_size < n_threads:
        _pool, _pool_size = ThreadPoolExecutor(n_threads, "faiss_dpq"), n_threads
    futures = [_pool.submit(task) for task in tasks[1:]]
    first: list[T] = []
    try:
        first.append(tasks[0]())
    finally:
        others = [future.exception() for future in futures]
    for error in others:
        if error is not None:
            raise error
    return first + [future.result() for future in futures]
