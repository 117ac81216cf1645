"""`install` and `uninstall`: programs that call FAISS by its own name get this package's indexes."""

import functools
import importlib
import threading
from collections.abc import Callable
from typing import Any

from . import contrib, io
from .factory import index_factory


class _Inside(threading.local):
    """Whether this thread is within a function of this package, whose calls of FAISS are for FAISS's own."""

    call = False


_inside = _Inside()
#: What `install` replaced: the module, the name, what stood there, and what stands there now.
_replaced: list[tuple[Any, str, Any, Any]] = []


class _Blocks:
    """The `with` blocks that are open."""

    count = 0
    have_installed = False  # whether the first of them did, so that the last one takes it back


_blocks = _Blocks()

#: By module of FAISS and name: this package's function, or what makes it of FAISS's own.
_FUNCTIONS: dict[str, dict[str, Callable[..., Any]]] = {
    "faiss": {
        "index_factory": index_factory,
        "read_index": io.read_index,
        "clone_index": io.clone_index,
        "deserialize_index": io.deserialize_index,
    },
}
_TOOLS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "faiss.contrib.factory_tools": {
        "get_code_size": contrib.code_size_after,
        "reverse_index_factory": contrib.reverse_factory_after,
    },
    "faiss.contrib.big_batch_search": {"BlockComputer": contrib.block_computer_after},
}


class Installation:
    """What `install` returns: what a `with` block installed is taken back when no such block is left."""

    def __init__(self, is_first: bool) -> None:
        self._is_first = is_first

    def __enter__(self) -> "Installation":
        _blocks.count += 1
        _blocks.have_installed |= self._is_first
        return self

    def __exit__(self, *exception: object) -> None:
        _blocks.count -= 1
        if not _blocks.count and _blocks.have_installed:
            uninstall()


def install() -> Installation:
    """Let functions of FAISS know DPQ, for programs that take factory strings or read files by themselves.

    Until `uninstall`, or the end of a `with` block, faiss.index_factory knows "DPQ{M}x{nbits}", and faiss.read_index,
    deserialize_index and clone_index return this package's classes, as the functions of the same names of this package
    do. Descriptions without a DPQ code are FAISS's own all through. `get_code_size` and `reverse_index_factory` of
    faiss.contrib.factory_tools, and `big_batch_search` of the module of that name, take DPQ too. A program that has
    made one of these functions a name of its own (`from faiss import index_factory`) keeps FAISS's.

    Returns
    -------
    installation : context manager
        Takes back at its end what this call installed, once no other such block is open; a call when all is installed
        does nothing.
    """
    if _replaced:
        return Installation(is_first=False)
    for module_name, functions in _FUNCTIONS.items():
        module = importlib.import_module(module_name)
        for name, ours in functions.items():
            _replace(module, name, _outermost(ours, getattr(module, name)))
    for module_name, makers in _TOOLS.items():
        module = importlib.import_module(module_name)
        for name, make in makers.items():
            _replace(module, name, make(getattr(module, name)))
    return Installation(is_first=True)


def uninstall() -> None:
    """Put back the functions of FAISS that `install` replaced; nothing, if it is not installed.

    What another program has put in their place since stays there, and what it calls is FAISS's own again.
    """
    _blocks.have_installed = False
    while _replaced:
        module, name, original, new = _replaced.pop()
        if getattr(module, name) is new:
            setattr(module, name, original)


def _replace(module: Any, name: str, new: Any) -> None:
    _replaced.append((module, name, getattr(module, name), new))
    setattr(module, name, new)


def _outermost(ours: Callable[..., Any], stock: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is ours for other programs' calls, and FAISS's own for those that ours makes."""

    @functools.wraps(stock)
    def call(*args: Any, **kwargs: Any) -> Any:
        if _inside.call or not _replaced:
            return stock(*args, **kwargs)
        _inside.call = True
        try:
            return ours(*args, **kwargs)
        finally:
            _inside.call = False

    return call
