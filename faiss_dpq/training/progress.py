"""Progress bars: one way to show them, and one way to turn all of them off.

Every bar of this package is tqdm's, on standard error. None is shown where standard error is no terminal, where the
environment variable TQDM_DISABLE is set to anything but 0, or within `hidden`.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

_hidden = 0  # calls of `hidden` under way


def shown() -> bool:
    """Whether progress bars are shown now."""
    disabled = os.environ.get("TQDM_DISABLE", "0") not in ("", "0")
    return not disabled and not _hidden and sys.stderr is not None and sys.stderr.isatty()


@contextmanager
def hidden(hide: bool = True) -> Iterator[None]:
    """No bar is shown meanwhile, in any thread; `hide` False changes nothing."""
    global _hidden
    _hidden += hide
    try:
        yield
    finally:
        _hidden -= hide


def bar(iterable: Iterable[Any] | None = None, **options: Any) -> Any:
    """A tqdm bar, of tqdm's own options; it does nothing where bars are not shown."""
    from tqdm import tqdm  # not before a bar is needed: `import faiss_dpq` shall load no more than FAISS does

    return tqdm(iterable, disable=not shown(), dynamic_ncols=True, **options)


class Steps:
    """The steps of a training: a bar, or a printed line for every step if `verbose`. A context manager."""

    def __init__(self, total: int, verbose: bool) -> None:
        self.total, self.done = total, 0
        self._bar = None if verbose else bar(total=total, desc="training", leave=False)

    def __enter__(self) -> "Steps":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def step(self, what: str) -> None:
        """A step has been done; `what` tells which, and what came of it."""
        self.done += 1
        if self._bar is None:
            print(f"IndexDPQ.train: step {self.done}/{self.total}: {what}", flush=True)
        else:
            self._bar.set_postfix_str(what, refresh=False)
            self._bar.update()
