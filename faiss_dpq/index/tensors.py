"""torch tensors as arguments, once a program has imported faiss.contrib.torch_utils.

That module replaces methods of FAISS's classes; those that a subclass overrides, it does not see. What it does for
FAISS's, `accepts_tensors` does for ours: contiguous CPU tensors in, tensors out, the same memory, no mixing with
arrays, AssertionError for what does not fit. torch is never imported here.
"""

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import faiss
import numpy as np

from ..codec import threads

Method = TypeVar("Method", bound=Callable[..., Any])


def accepts_tensors(name: str | None = None) -> Callable[[Method], Method]:
    """Let an index's method that takes vectors x take, and then return, torch tensors, if its first argument is one.

    Parameters
    ----------
    name : str, optional
        What error messages call the method; its own name by default.
    """

    def accepting(method: Method) -> Method:
        @functools.wraps(method)
        def method_of_arrays_or_tensors(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
            if threads.forked and faiss.omp_get_max_threads() > 1:
                with threads.without_openmp():
                    return method_of_arrays_or_tensors(self, x, *args, **kwargs)
            if type(x) is np.ndarray or "faiss.contrib.torch_utils" not in sys.modules:
                return method(self, x, *args, **kwargs)
            torch = sys.modules["torch"]
            if not isinstance(x, torch.Tensor):
                return method(self, x, *args, **kwargs)
            return _call_with_tensors(method, torch, name or method.__name__, self, x, args, kwargs)

        return method_of_arrays_or_tensors  # type: ignore[return-value]

    return accepting


def _call_with_tensors(
    method: Method, torch: Any, method_name: str, self: Any, x: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    name = f"{type(self).__name__}.{method_name}"
    given: dict[int, tuple[Any, Any]] = {}  # array of every tensor given, and the tensor, by the array's id

    def array_of(argument: Any) -> Any:
        if not isinstance(argument, torch.Tensor):
            assert not isinstance(argument, np.ndarray), f"{name}: x is a tensor, another argument an array"
            return argument
        array = _array(argument, name)
        given[id(array)] = array, argument
        return array

    named = inspect.signature(method).bind(self, x, *args, **kwargs).arguments
    dtype = torch.float16 if named.get("numeric_type") == faiss.Float16 else torch.float32
    vectors = named["x"]  # not the first argument of update_vectors
    assert vectors.dtype == dtype, f"{name}: x has dtype {vectors.dtype}, expected {dtype}"
    result = method(self, array_of(x), *map(array_of, args), **{key: array_of(value) for key, value in kwargs.items()})

    def tensor_of(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        if id(value) in given:
            return given[id(value)][1]
        return torch.from_numpy(value.astype(np.int64) if value.dtype == np.uint64 else value)

    return tuple(map(tensor_of, result)) if isinstance(result, tuple) else tensor_of(result)


def array_if_tensor(out: Any, name: str) -> Any:
    """The memory of a tensor that FAISS's method would take, as an array; anything else as it is."""
    if "faiss.contrib.torch_utils" in sys.modules and isinstance(out, sys.modules["torch"].Tensor):
        return _array(out, name)
    return out


def as_returned(array: Any) -> Any:
    """What FAISS's methods without an argument that is an array or a tensor return in place of an array."""
    return sys.modules["torch"].from_numpy(array) if "faiss.contrib.torch_utils" in sys.modules else array


def if_any(params: faiss.SearchParameters | None) -> dict[str, faiss.SearchParameters]:
    """`params` as an argument of a search of any index, if there are any: torch_utils leaves FAISS's without it."""
    return {} if params is None else {"params": params}


def _array(tensor: Any, name: str) -> Any:
    """The tensor's memory as an array."""
    assert type(tensor).__name__ == "Tensor", f"{name}: got a {type(tensor).__name__}, expected a plain torch.Tensor"
    assert not tensor.is_cuda, f"{name}: GPU tensor on CPU index not allowed"
    assert tensor.is_contiguous(), f"{name}: a tensor is not contiguous"
    return tensor.detach().numpy()
