"""What every index of this package does the same way: arguments, results, copies, and telling of changes.

A class of ours is this class and one of FAISS's. It implements what begins with an underscore here, for arguments that
are checked already; where it does not, FAISS's own C++ does the work.
"""

from collections.abc import Callable
from math import isfinite
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from .. import _kernels
from ..codec import Floats, threads
from ..search.selection import Labels
from ..training import check_values
from .arguments import require_array, require_float32, require_index, require_integer, require_parameters
from .changes import all_or_nothing, contents, training
from .mapped import mapped_part
from .reconstruction import Reconstructs
from .registry import downcast_index
from .removal import require_removal
from .settings import python_state, set_state
from .tensors import accepts_tensors

RangeResult = tuple[npt.NDArray[Any], Floats, Labels]
_ADDING = ("add", "add_with_ids", "add_sa_codes")
_CHANGING = ("train", "update_vectors", *_ADDING)  # of the methods that take vectors
_OFTEN = ("remove_ids", *_ADDING)


class Base(Reconstructs):
    """The methods that all indexes of this package have in common, with FAISS's signatures."""

    # Class attributes: FAISS's __setattr__ refuses names that the class does not have.
    _version: int = 0
    _direct: _kernels.DirectSearch | None = None  # searches of one query with nothing of Python around them
    _levels: int = 0  # that a search compares unless its parameters say otherwise; 0: all
    _writable: Any = None  # the C++ object that was found to be so
    #: What changes codes or results, and the C++ object's file does not hold.
    _settings: tuple[str, ...] = ()
    #: What else copies in Python take along.
    _python_state: tuple[str, ...] = ()

    # ---- staleness ---------------------------------------------------------------------------------------------

    def invalidate(self) -> None:
        """Tell the index that codes or codebooks were overwritten in place.

        Only who writes to FAISS's memory through a raw pointer needs to. Changes by methods of this package and of
        FAISS, stock wrappers among them, are noticed by the next search.
        """
        self._forget_derived(codebooks=True)

    def _forget_derived(self, codebooks: bool) -> None:
        """Derive anew what follows from the codes; with `codebooks`, also what follows from codebooks and matrices."""
        self._version += 1
        for inner in self._inner_indexes():
            if isinstance(inner, Base):
                inner._forget_derived(codebooks)

    def remove_ids(self, x: npt.NDArray[np.int64] | faiss.IDSelector) -> int:
        """Remove the vectors that a selector admits, or of the given ids, shape (n,), int64; returns their number.

        Raises a RuntimeError if the index is mapped from a file.
        """
        self._check_writable("remove_ids")
        require_removal(x, self._call("remove_ids"))
        try:
            with threads.without_openmp():
                return super().remove_ids(x)
        finally:
            self._forget_derived(codebooks=False)

    def reset(self) -> None:
        """Remove all vectors; the index stays trained."""
        self._check_writable("reset")
        try:
            super().reset()
        finally:
            self._forget_derived(codebooks=False)

    def merge_from(self, otherIndex: faiss.Index, add_id: int = 0) -> None:
        """Move the vectors of another index, whose ids get `add_id` added, behind those of this one.

        Raises a RuntimeError if the two do not fit together, are the same, or one of them is mapped from a file.
        """
        self._require_another(otherIndex)
        try:
            with threads.without_openmp():
                super().merge_from(otherIndex, add_id)
        finally:  # what is appended here is noticed as such
            if isinstance(otherIndex, Base):
                otherIndex._forget_derived(codebooks=False)

    def _require_another(self, other: faiss.Index) -> None:
        """Raise a RuntimeError if `merge_from` cannot take vectors from another index to this one."""
        require_index(other, f"{self._call('merge_from')}: otherIndex")
        self._check_writable("merge_from")
        self._check_writable("merge_from", downcast_index(other))
        if int(other.this) == int(self.this):
            raise RuntimeError(f"{self._call('merge_from')}: an index cannot be merged into itself")

    def add_sa_codes(self, codes: npt.NDArray[np.uint8], ids: Labels | None = None) -> None:
        """Store codes, shape (n, sa_code_size()), uint8, under the given ids, or ntotal, ntotal + 1, ...

        Raises a RuntimeError if the index is mapped from a file, or ids are missing or not taken.
        """
        self._check_writable("add_sa_codes")
        if ids is None and isinstance(self, faiss.IndexIDMap):
            raise RuntimeError(f"{self._call('add_sa_codes')}: ids is None, expected one id a code")
        call = self._call("add_sa_codes")
        require_array(codes, f"{call}: codes", (None, self.sa_code_size()))
        if ids is not None:
            require_array(ids, f"{call}: ids", (len(codes),))
        super().add_sa_codes(codes, ids)

    def _check_writable(self, method: str, index: faiss.Index | None = None) -> None:
        """Raise a RuntimeError if this index, or another one that `method` would change, is mapped from a file."""
        # To look takes as long as an addition to lists, or a removal. What was put within since is asked by its own
        # method.
        if index is None and method in _OFTEN and self._writable is self.this:
            return
        mapped = mapped_part(self if index is None else index)
        if mapped is not None:
            raise RuntimeError(f"{self._call(method)}: {mapped} is mapped from a file, read-only")
        if index is None:
            self._writable = self.this

    # ---- arguments ---------------------------------------------------------------------------------------------

    def _checked_vectors(
        self, x: npt.ArrayLike, method: str, numeric_type: int = faiss.Float32, name: str = "x"
    ) -> Floats:
        """x as a contiguous float32 array of shape (n, d), or the error that FAISS's wrapper would raise."""
        call = self._call(method)
        if method in _CHANGING:
            self._check_writable(method)
        if numeric_type != faiss.Float32:
            known = numeric_type in (faiss.Float16, faiss.Int8)
            error = RuntimeError if known else ValueError
            raise error(f"{call}: numeric_type is {numeric_type}, only faiss.Float32 is supported")
        x = np.asarray(x)
        if x.dtype.kind not in "fiub":
            raise TypeError(f"{call}: {name} has dtype {x.dtype}, expected float32")
        if x.ndim != 2:
            raise ValueError(f"{call}: {name} has {x.ndim} dimensions, expected 2: (n, {self.d})")
        if x.shape[1] != self.d:
            raise AssertionError(f"{call}: {name} has {x.shape[1]} columns, the index has d={self.d}")
        if x.dtype == np.float32:
            return np.ascontiguousarray(x)
        with np.errstate(over="ignore"):  # values beyond float32 are infinite, and treated as such
            return np.ascontiguousarray(x, np.float32)

    def _checked_ids(self, ids: npt.ArrayLike, n: int, method: str = "add_with_ids", name: str = "ids") -> Labels:
        ids = np.asarray(ids)
        if ids.shape != (n,):
            raise AssertionError(
                f"{self._call(method)}: not same nb of vectors as ids: {name} has shape {ids.shape}, expected {(n,)}"
            )
        return np.ascontiguousarray(ids, np.int64)

    def _check_k(self, k: int, method: str) -> None:
        require_integer(k, f"{self._call(method)}: k")
        if k < 1:
            raise AssertionError(f"{self._call(method)}: k is {k}, expected at least 1")

    def _check_outputs(
        self, method: str, n: int, k: int, D: Floats | None, I: Labels | None, R: Floats | None = None
    ) -> None:
        self._check_k(k, method)
        self._check_output(D, (n, k), np.float32, method, "D")
        self._check_output(I, (n, k), np.int64, method, "I")
        self._check_output(R, (n, k, self.d), np.float32, method, "R")

    def _require_trained(self, method: str) -> None:
        if not self.is_trained:
            raise RuntimeError(
                f"{self._call(method)}: 'is_trained' failed: the index is not trained; call train(x) first"
            )

    def _checked_training(self, x: npt.ArrayLike, numeric_type: int, xq_train: npt.ArrayLike | None = None) -> Floats:
        """x as an array, or the error for what nothing can be trained on; nothing is changed before it is raised."""
        x = self._checked_vectors(x, "train", numeric_type)
        if xq_train is not None:
            self._checked_vectors(xq_train, "train", name="xq_train")
        if len(x):
            check_values(x, self._call("train"))
        return x

    def _all_or_untrained(self, train: Callable[[], None]) -> None:
        """Run a training; if it fails, nothing is trained that was not before."""
        all_or_nothing(train, training, self)

    # ---- search ------------------------------------------------------------------------------------------------

    def _search(self, x: Floats, k: int, params: faiss.SearchParameters | None) -> tuple[Floats, Labels]:
        raise NotImplementedError

    def _range_search(self, x: Floats, thresh: float, params: faiss.SearchParameters | None) -> RangeResult:
        raise NotImplementedError

    def _search_and_reconstruct(
        self, x: Floats, k: int, params: faiss.SearchParameters | None
    ) -> tuple[Floats, Labels, Floats]:
        D, I = self._search(x, k, params)
        R = np.full((*I.shape, self.d), np.nan, np.float32)
        found = I >= 0
        if found.any():
            R[found] = self.reconstruct_batch(I[found])
        return D, I, R

    def _plain(self, params: faiss.SearchParameters) -> tuple[Any, _kernels.SelectorMask | None]:
        """What a search with these parameters is known by in `_direct`, None if it cannot be there, and its mask."""
        return None, None

    def search(
        self,
        x: npt.ArrayLike,
        k: int,
        D: Floats | None = None,
        I: Labels | None = None,
        numeric_type: int = faiss.Float32,
        *,
        params: faiss.SearchParameters | None = None,
    ) -> tuple[Floats, Labels]:
        """The k nearest vectors of every query; of each query nearest first.

        Parameters
        ----------
        x : array, shape (n, d)
        k : int
        D, I : arrays, shape (n, k), float32 and int64, optional
            Where to put the result.
        numeric_type
            faiss.Float32: no other is taken.
        params : faiss.SearchParameters, optional
            Those of the index's class; `sel` restricts the search to some ids.

        Returns
        -------
        D : array, shape (n, k), float32
            Squared L2 distances or inner products, best first; +-FLT_MAX where fewer than k vectors were found.
        I : array, shape (n, k), int64
            Ids; -1 where fewer than k vectors were found.

        Raises
        ------
        RuntimeError
            If the index is not trained, numeric_type is another one of FAISS's, or `params` are of another kind of
            index.
        AssertionError
            If x has other than d columns, k < 1, or D or I has a wrong shape.
        TypeError
            If x, D or I has a wrong dtype.
        ValueError
            If x is not two-dimensional, D or I is not contiguous, or a parameter is out of its range.
        """
        if self._direct is not None and D is None and I is None and numeric_type == faiss.Float32:
            asked, mask = (self._levels, None) if params is None else self._plain(params)
            found = None if asked is None else self._direct.search(self.this, self._version, x, k, asked, mask)
            # A distance that is not finite is that of a query without distances, which the long way finds nothing for.
            if found is not None and isfinite(found[0].item(0)):
                return found
        return self._search_checked(x, k, D, I, numeric_type, params)

    @accepts_tensors("search")
    def _search_checked(
        self, x: npt.ArrayLike, k: int, D: Floats | None, I: Labels | None, numeric_type: int, params: Any
    ) -> tuple[Floats, Labels]:
        x = self._checked_vectors(x, "search", numeric_type)
        self._check_outputs("search", len(x), k, D, I)
        require_parameters(params, f"{self._call('search')}: params")
        return delivered(self._search(x, k, params), (D, I))

    @accepts_tensors()
    def range_search(
        self, x: npt.ArrayLike, thresh: float, *, params: faiss.SearchParameters | None = None
    ) -> RangeResult:
        """All vectors nearer than a threshold; of each query nearest first.

        Parameters
        ----------
        x : array, shape (n, d)
        thresh : float
            Squared L2 distances below it are found, or inner products above it.
        params : faiss.SearchParameters, optional
            As in `search`.

        Returns
        -------
        lims : array, shape (n + 1,), uint64
            The results of query i are D[lims[i]:lims[i + 1]] and I[lims[i]:lims[i + 1]].
        D : array, shape (lims[n],), float32
        I : array, shape (lims[n],), int64

        Raises
        ------
        RuntimeError, AssertionError, TypeError, ValueError
            As `search`.
        """
        x = self._checked_vectors(x, "range_search")
        require_parameters(params, f"{self._call('range_search')}: params")
        thresh = require_float32(thresh, f"{self._call('range_search')}: thresh")
        return self._range_search(x, thresh, params)

    @accepts_tensors()
    def assign(self, x: npt.ArrayLike, k: int, labels: Labels | None = None) -> Labels:
        """The ids that `search` returns, shape (n, k), int64, without the distances; errors are those of `search`."""
        return self.search(x, k, None, labels)[1]

    @accepts_tensors()
    def search_and_reconstruct(
        self,
        x: npt.ArrayLike,
        k: int,
        D: Floats | None = None,
        I: Labels | None = None,
        R: Floats | None = None,
        *,
        params: faiss.SearchParameters | None = None,
    ) -> tuple[Floats, Labels, Floats]:
        """`search`, and what the codes of the vectors found stand for.

        Parameters
        ----------
        x, k, D, I
            As in `search`, and so are the errors.
        R : array, shape (n, k, d), float32, optional
            Where to put the reconstructions.
        params : faiss.SearchParameters, optional
            As in `search`.

        Returns
        -------
        D, I : arrays, shape (n, k), float32 and int64
        R : array, shape (n, k, d), float32
            Reconstructions from as many levels as were compared; NaN where none was found.
        """
        x = self._checked_vectors(x, "search_and_reconstruct")
        self._check_outputs("search_and_reconstruct", len(x), k, D, I, R)
        require_parameters(params, f"{self._call('search_and_reconstruct')}: params")
        return delivered(self._search_and_reconstruct(x, k, params), (D, I, R))

    # ---- add, encode -------------------------------------------------------------------------------------------

    def _add(self, x: Floats) -> None:
        self.add_c(len(x), faiss.swig_ptr(x))

    def _add_with_ids(self, x: Floats, ids: Labels) -> None:
        self.add_with_ids_c(len(x), faiss.swig_ptr(x), faiss.swig_ptr(ids))

    def _sa_encode(self, x: Floats, codes: npt.NDArray[np.uint8]) -> None:
        """Write codes of vectors, shape (n, sa_code_size())."""
        self.sa_encode_c(len(x), faiss.swig_ptr(x), faiss.swig_ptr(codes))

    @accepts_tensors()
    def add(self, x: npt.ArrayLike, numeric_type: int = faiss.Float32) -> None:
        """Encode vectors, shape (n, d), and store their codes under the ids ntotal, ntotal + 1, ...

        If an exception ends it, KeyboardInterrupt and MemoryError too, the index and all indexes within hold what they
        held before.

        Raises
        ------
        RuntimeError
            If the index is not trained, is mapped from a file, or numeric_type is another one of FAISS's.
        AssertionError, TypeError, ValueError
            If x has other than d columns, a dtype that is no number, or other than two dimensions.
        """
        x = self._checked_vectors(x, "add", numeric_type)
        all_or_nothing(lambda: self._add(x), contents, self)

    @accepts_tensors()
    def add_with_ids(self, x: npt.ArrayLike, ids: npt.ArrayLike, numeric_type: int = faiss.Float32) -> None:
        """Encode vectors, shape (n, d), and store their codes under the given ids, shape (n,), int64; all, or none.

        Errors are those of `add`, an AssertionError if there are not as many ids as vectors, and a RuntimeError if the
        index stores no ids, as IndexDPQ by itself.
        """
        x = self._checked_vectors(x, "add_with_ids", numeric_type)
        ids = self._checked_ids(ids, len(x))
        all_or_nothing(lambda: self._add_with_ids(x, ids), contents, self)

    @accepts_tensors()
    def sa_encode(self, x: npt.ArrayLike, codes: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
        """Codes of vectors as FAISS packs them: (n, d) to (n, sa_code_size()), uint8; written to `codes` if given."""
        x = self._checked_vectors(x, "sa_encode")
        shape = (len(x), self.sa_code_size())
        self._check_output(codes, shape, np.uint8, "sa_encode", "codes")
        codes = np.empty(shape, np.uint8) if codes is None else codes
        self._sa_encode(x, codes)
        return codes

    # ---- copies, description -----------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        # __getstate__ of FAISS holds what a file would; ours adds what only the Python objects know.
        self._prepare_writing()
        return super().__getstate__() | {"python_state": python_state(self)}

    def _prepare_writing(self) -> None:
        """Make the C++ objects such that FAISS reads what it writes of them."""
        for inner in self._inner_indexes():
            if isinstance(inner, Base):
                inner._prepare_writing()

    @threads.without_openmp()
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        set_state(self, state["python_state"])
        self.invalidate()

    def __repr__(self) -> str:
        trained = "trained" if self.is_trained else "not trained"
        parts = [f"d={self.d}", *self._described(), f"ntotal={self.ntotal}", trained]
        return f"{type(self).__name__}({', '.join(parts)})"

    def _described(self) -> list[str]:
        """What `repr` tells besides d, ntotal and whether the index is trained."""
        return [repr(inner) for inner in self._inner_indexes()]


def delivered(results: tuple[Any, ...], outputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Results, in the arrays that were given for them if there are such."""
    for result, out in zip(results, outputs, strict=True):
        if out is not None:
            out[:] = result
    return tuple(result if out is None else out for result, out in zip(results, outputs, strict=True))
