"""Arguments of a wrong type, named before anything looks into them.

`name` is how the message names an argument: "IndexDPQ.search: params".
"""

import operator
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt


def require_index(index: Any, name: str) -> None:
    """Raise a TypeError where something else stands for an index: C++ would take None for a pointer, and follow it."""
    if not isinstance(index, faiss.Index):
        raise TypeError(f"{name} is a {type(index).__name__}, expected a faiss.Index")


def require_parameters(params: Any, name: str) -> None:
    """Raise a TypeError unless these are search parameters of some class, or None."""
    if params is not None and not isinstance(params, faiss.SearchParameters):
        raise TypeError(f"{name} is a {type(params).__name__}, expected faiss.SearchParameters")


def require_integer(number: Any, name: str) -> None:
    """Raise a TypeError for what Python takes for no integer, and for a truth value."""
    try:
        if isinstance(number, bool):
            raise TypeError
        operator.index(number)
    except TypeError:
        raise TypeError(f"{name} is a {type(number).__name__}, expected an integer") from None


def require_number(number: Any, name: str) -> float:
    """The number; a TypeError is raised for what Python takes for none, and for text."""
    try:
        if isinstance(number, str | bytes):
            raise TypeError
        return float(number)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is a {type(number).__name__}, expected a number") from None


def require_float32(number: Any, name: str) -> float:
    """The number as float32 has it, infinite where that has no room for it."""
    value = require_number(number, name)
    with np.errstate(over="ignore"):
        return float(np.float32(value))


def require_whole(number: Any, name: str) -> int:
    """The number, which may be a float of such a value; a ValueError is raised if it has a fraction."""
    if not require_number(number, name).is_integer():
        raise ValueError(f"{name} is {number}, expected a whole number")
    return int(number)


def require_array(array: Any, name: str, shape: tuple[int | None, ...] | None = None) -> None:
    """Raise a TypeError for what is no array or tensor, an AssertionError if its shape is another (None: any size)."""
    if not (hasattr(array, "shape") and hasattr(array, "dtype")):
        raise TypeError(f"{name} is a {type(array).__name__}, expected an array")
    if shape is None:
        return
    if len(array.shape) != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape, strict=True)):
        expected = ", ".join("n" if n is None else str(n) for n in shape)
        raise AssertionError(f"{name} has shape {tuple(array.shape)}, expected ({expected}{',' * (len(shape) == 1)})")


def require_output(out: Any, shape: tuple[int, ...], dtype: npt.DTypeLike, name: str) -> None:
    """Raise the error that FAISS's wrapper would, if results cannot go straight into `out`."""
    require_array(out, name, shape)
    if out.dtype != dtype:
        raise TypeError(f"{name} has dtype {out.dtype}, expected {np.dtype(dtype)}")
    if not out.flags.c_contiguous:
        raise ValueError(f"{name} is not C-contiguous")
