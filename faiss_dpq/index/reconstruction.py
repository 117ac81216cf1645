"""Vectors back from ids and codes, with FAISS's signatures, and errors where FAISS's C++ ends the process.

FAISS reads memory that is not the index's where a key is out of range, and an exception within a parallel loop of it
ends the process. So keys and codes are looked at here before C++ gets them.
"""

from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from ..codec import Floats, threads
from .arguments import require_array, require_output
from .tensors import array_if_tensor, as_returned


class Reconstructs(faiss.Index):
    """`reconstruct`, `reconstruct_n`, `reconstruct_batch` and `sa_decode` for arguments that may be wrong."""

    def reconstruct(self, key: int, x: Floats | None = None) -> Floats:
        """The reconstruction of the vector with an id, shape (d,), written to `x` if given.

        Raises a RuntimeError if there is no such vector.
        """
        self._check_keys(key, "reconstruct")
        self._check_vectors(x, (self.d,), "reconstruct")
        return super().reconstruct(key, x)

    @threads.without_openmp()
    def reconstruct_batch(self, key: npt.ArrayLike, x: Floats | None = None) -> Floats:
        """The reconstructions of vectors with ids, shape (n,) to (n, d), written to `x` if given.

        Raises a RuntimeError if there is no vector of one of the ids.
        """
        self._check_keys(key, "reconstruct_batch")
        self._check_output(x, (len(np.atleast_1d(key)), self.d), np.float32, "reconstruct_batch", "x")
        return super().reconstruct_batch(key, x)

    @threads.without_openmp()
    def reconstruct_n(self, n0: int = 0, ni: int = -1, x: Floats | None = None) -> Floats:
        """The reconstructions of the vectors n0, n0 + 1, ..., ni in number (-1: up to ntotal), written to `x` if given.

        Raises a RuntimeError if there is no vector of one of the ids.
        """
        n = self.ntotal - n0 if ni == -1 else ni
        array = self._check_vectors(x, (n, self.d), "reconstruct_n")
        if isinstance(self, faiss.IndexFlatCodes | faiss.IndexIVF):
            if n and not 0 <= n0 <= n0 + n <= self.ntotal:
                self._refuse_keys("reconstruct_n", f"n0 is {n0} and ni {ni}")
            return super().reconstruct_n(n0, ni, x)
        # C++ calls `reconstruct` in a parallel loop, which lets no exception through; that of `reconstruct_batch` does.
        if n and not -(2**63) <= n0 <= n0 + n < 2**63:
            self._refuse_keys("reconstruct_n", f"n0 is {n0} and ni {ni}")
        if n <= 0:
            return super().reconstruct_n(n0, ni, x)
        found = self.reconstruct_batch(np.arange(n0, n0 + n), array)
        return as_returned(found) if x is None else x

    @threads.without_openmp()
    def sa_decode(self, codes: npt.NDArray[np.uint8], x: Floats | None = None) -> Floats:
        """The vectors that codes stand for, shape (n, sa_code_size()) to (n, d), written to `x` if given.

        Raises a RuntimeError if a code names a list that is not there.
        """
        require_array(codes, f"{self._call('sa_decode')}: codes", (None, self.sa_code_size()))
        self._check_vectors(x, (len(codes), self.d), "sa_decode")
        self._check_codes(np.asarray(codes), "sa_decode")
        return super().sa_decode(codes, x)

    def _call(self, method: str) -> str:
        """How error messages name a call."""
        return f"{type(self).__name__}.{method}"

    def _check_output(
        self, out: npt.NDArray[Any] | None, shape: tuple[int, ...], dtype: npt.DTypeLike, method: str, name: str
    ) -> None:
        """Raise the error that FAISS's wrapper would, if results cannot go straight into an array that was given."""
        if out is not None:
            require_output(out, shape, dtype, f"{self._call(method)}: {name}")

    def _check_vectors(self, x: Any, shape: tuple[int, ...], method: str) -> Any:
        """The same of an array or, where FAISS's method would take it, a tensor for vectors: as an array."""
        x = array_if_tensor(x, f"{self._call(method)}: x")
        self._check_output(x, shape, np.float32, method, "x")
        return x

    def _check_keys(self, keys: npt.ArrayLike, method: str) -> None:
        """Raise a RuntimeError for keys that C++ would take for places of vectors, and that are none."""
        places = _counts_places(self)
        if places is not None:
            found = np.asarray(keys)
            if found.dtype.kind in "iu" and found.size and not (found.min() >= 0 and found.max() < places):
                wrong = found.ravel()[(found.ravel() < 0) | (found.ravel() >= places)][0]
                self._refuse_keys(method, f"key is {wrong}")

    def _refuse_keys(self, method: str, what: str) -> None:
        raise RuntimeError(f"{self._call(method)}: {what}, ntotal is {self.ntotal}")

    def _check_codes(self, codes: npt.NDArray[np.uint8], method: str) -> None:
        """Raise a RuntimeError for codes of the right size that C++ does not decode."""

    def _inner_indexes(self) -> list[faiss.Index]:
        """The indexes within, as Python objects, in a fixed order."""
        return []


def _counts_places(index: faiss.Index) -> int | None:
    """How many places there are, if keys of `reconstruct` are places that C++ does not check."""
    if isinstance(index, faiss.IndexIVF | faiss.IndexIDMap):
        return None  # they look keys up
    if isinstance(index, faiss.IndexPreTransform | faiss.IndexReplicas):
        inner = index._inner_indexes() if isinstance(index, Reconstructs) else []
        return _counts_places(inner[0]) if inner else None
    return int(index.ntotal)
