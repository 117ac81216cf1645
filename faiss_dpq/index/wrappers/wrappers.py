"""FAISS's wrapper indexes with this package's fast path.

C++ does not call Python: a stock faiss.IndexIDMap around an IndexDPQ searches it with FAISS's own additive-quantizer
search. It finds the same, only slower. The classes here have FAISS's names and are FAISS's classes, so that files,
`isinstance` and C++ functions see no difference; but what trains, encodes or searches calls the Python methods of the
index within. All else (reset, remove_ids, reconstruct, merge_from, ...) is FAISS's own C++.

Nothing is kept beside the C++ object but the Python objects of the indexes within, so that a stock wrapper of the same
C++ object may change it at any time.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from ...codec import Floats, threads
from ...search.flat import MISSING, Labels
from ...search.selection import selector_of
from ..flat import IndexDPQ
from ..io import DOWNCASTS, downcast_index, python_state, set_python_state
from ..tensors import accepts_tensors, given

_RECONSTRUCTED_BYTES = 16 << 20  # of vectors that refinement holds at a time

RangeResult = tuple[npt.NDArray[Any], Floats, Labels]


class _Wrapper(faiss.Index):
    """What all wrappers share: the Python objects of the indexes within, and what follows from `search`."""

    # Class attributes: FAISS's __setattr__ refuses names that the class does not have.
    _kept: dict[int, faiss.Index] | None = None

    # ---- the indexes within --------------------------------------------------------------------------------------

    def _inner_indexes(self) -> list[faiss.Index]:
        """The indexes within, as Python objects, in a fixed order."""
        raise NotImplementedError

    def _keep(self, index: faiss.Index) -> None:
        """Remember the Python object of an index within; it also keeps the C++ object alive."""
        if self._kept is None:
            self._kept = {}
        self._kept[int(index.this)] = index

    def _forget(self, index: faiss.Index | None) -> None:
        if index is not None and self._kept:
            self._kept.pop(int(index.this), None)

    def _python_object(self, inner: faiss.Index | None) -> faiss.Index | None:
        """The Python object of an index within, of which C++ knows the address only.

        It is the object that was put there; for a wrapper that was read from a file, one made here, which lives as
        long as the wrapper and so has caches and settings of its own.
        """
        if inner is None:
            return None
        address = int(inner.this)
        kept = self._kept.get(address) if self._kept else None
        if kept is not None:
            return kept
        known = next((index for index in self._referenced() if int(index.this) == address), None)
        found = downcast_index(known or inner)
        if known is None:
            # The C++ object of this wrapper owns that of `found`, which may outlive the Python wrapper: hold on to the
            # C++ object. To hold the Python wrapper would be a cycle, freed whenever Python collects garbage.
            found.referenced_objects = [inner, self.this, *getattr(self, "referenced_objects", [])]
        self._keep(found)
        return found

    def _referenced(self) -> Iterator[faiss.Index]:
        """The Python indexes that a stock wrapper, of which this is another view, was made with."""
        remaining = list(getattr(self, "referenced_objects", []))
        while remaining:
            index = remaining.pop()
            if isinstance(index, faiss.Index):
                yield index
                remaining += getattr(index, "referenced_objects", [])

    def _replace(self, field: property, index: faiss.Index | None) -> None:
        """Set a field of the C++ object that points to an index."""
        self._forget(field.fget(self))  # type: ignore[misc]
        _set_pointer(self, field, index)
        if index is not None:
            self._keep(index)

    # ---- checks --------------------------------------------------------------------------------------------------

    _checked_vectors = IndexDPQ._checked_vectors

    def _checked_queries(
        self, x: npt.NDArray[Any], k: int, method: str, D: Floats | None = None, I: Labels | None = None
    ) -> Floats:
        x = self._checked_vectors(x, method)
        name = f"{type(self).__name__}.{method}"
        if k < 1:
            raise AssertionError(f"{name}: k is {k}, expected at least 1")
        for out_name, out in (("D", D), ("I", I)):
            if out is not None and out.shape != (len(x), k):
                raise AssertionError(f"{name}: {out_name} has shape {out.shape}, expected {(len(x), k)}")
        return x

    def _checked_ids(self, ids: npt.NDArray[Any], n: int) -> Labels:
        ids = np.asarray(ids)
        if ids.shape != (n,):
            raise AssertionError(
                f"{type(self).__name__}.add_with_ids: not same nb of vectors as ids: ids has shape {ids.shape}, "
                f"expected {(n,)}"
            )
        return np.ascontiguousarray(ids, np.int64)

    def _require_trained(self, method: str) -> None:
        if not self.is_trained:
            raise RuntimeError(f"{type(self).__name__}.{method}: 'is_trained' failed; call train(x) first")

    # ---- what follows from search --------------------------------------------------------------------------------

    @accepts_tensors
    def assign(self, x: npt.NDArray[Any], k: int, labels: Labels | None = None) -> Labels:
        """The ids that `search` returns, without the distances."""
        return self.search(x, k, I=labels)[1]

    @accepts_tensors
    def search_and_reconstruct(
        self,
        x: npt.NDArray[Any],
        k: int,
        *,
        params: faiss.SearchParameters | None = None,
        D: Floats | None = None,
        I: Labels | None = None,
        R: Floats | None = None,
    ) -> tuple[Floats, Labels, Floats]:
        """`search`, and the reconstructions of the vectors found, shape (n, k, d); NaN where none was found."""
        D, I = self.search(x, k, params=params, D=D, I=I)
        R = self._checked_reconstructions(R, I.shape)
        found = I >= 0
        R[~found] = np.nan
        if found.any():
            R[found] = self.reconstruct_batch(I[found])
        return D, I, R

    def _checked_reconstructions(self, R: Floats | None, shape: tuple[int, ...]) -> Floats:
        shape = (*shape, self.d)
        if R is None:
            return np.empty(shape, np.float32)
        if R.shape != shape:
            raise AssertionError(
                f"{type(self).__name__}.search_and_reconstruct: R has shape {R.shape}, expected {shape}"
            )
        return R

    # ---- copies --------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"python_state": python_state(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        set_python_state(self, state["python_state"])


def _set_pointer(wrapper: faiss.Index, field: property, index: faiss.Index | None) -> None:
    """Set a pointer of a C++ object, which SWIG takes for a transfer of ownership: it is none."""
    owned = index.thisown if index is not None else False
    field.fset(wrapper, index)  # type: ignore[misc]
    if index is not None:
        index.thisown = owned


def _parameter(params: faiss.SearchParameters, name: str) -> faiss.SearchParameters | None:
    """Parameters within parameters, as the object that was put there: SWIG knows them as their base class only."""
    return getattr(params, "_sp_field_refs", {}).get(name, getattr(params, name))


def _with_selector(params: faiss.SearchParameters, selector: faiss.IDSelector) -> faiss.SearchParameters:
    """A copy of search parameters of any class, with another selector.

    FAISS's IndexIDMap changes the caller's object during the search, which another thread may be using.
    """
    swig_class: Any = next(c for c in type(params).__mro__ if c.__module__.startswith("faiss."))
    copy: Any = object.__new__(type(params))
    swig_class.original_init(copy)
    for name in dir(swig_class):
        if isinstance(getattr(swig_class, name), property) and name not in ("thisown", "sel"):
            setattr(copy, name, _parameter(params, name))
    for name, value in vars(params).items():
        if name not in ("this", "_sp_field_refs"):
            setattr(copy, name, value)
    copy.sel = selector
    return copy


# ---- IDMap -------------------------------------------------------------------------------------------------------


class IndexIDMap(_Wrapper, faiss.IndexIDMap):
    """faiss.IndexIDMap: vectors under ids of one's own.

    Selectors in search parameters select by these ids. Unlike FAISS's, `range_search` passes on all search parameters
    (not the selector alone), and `search_and_reconstruct` works, since it needs no way back from the ids.

    Parameters
    ----------
    index : faiss.Index
        An empty index, of this package or FAISS's.
    """

    def __init__(self, index: faiss.Index) -> None:
        super().__init__(index)
        self._keep(index)

    @property
    def index(self) -> faiss.Index:
        """The index within, as the Python object that was put there."""
        return self._python_object(super().index)

    @index.setter
    def index(self, index: faiss.Index) -> None:
        self._replace(faiss.IndexIDMap.index, index)

    def _inner_indexes(self) -> list[faiss.Index]:
        return [self.index]

    @accepts_tensors
    def train(self, x: npt.NDArray[Any], **options: Any) -> None:
        """Train the index within, which gets all `options`."""
        x = self._checked_vectors(x, "train")
        inner = self.index
        inner.train(x, **options)
        self.is_trained = inner.is_trained

    @accepts_tensors
    def add_with_ids(self, x: npt.NDArray[Any], ids: npt.NDArray[Any], numeric_type: int = faiss.Float32) -> None:
        """Add vectors, shape (n, d), under the given ids, shape (n,), int64."""
        x = self._checked_vectors(x, "add_with_ids")
        ids = self._checked_ids(ids, len(x))
        inner = self.index
        inner.add(x)
        self._append_ids(x, ids, inner.ntotal)

    def _append_ids(self, x: Floats, ids: Labels, ntotal: int) -> None:
        """Let FAISS note the ids of vectors that were added to the index within.

        Python has no access to the map from ids that IndexIDMap2 keeps, short of making it anew. So C++ adds the
        vectors once more, under their ids, to a stand-in for the index within that stores 0 bytes of them.
        """
        stand_in = faiss.IndexFlatL2(0)
        stand_in.ntotal = ntotal - len(ids)
        inner = super().index
        _set_pointer(self, faiss.IndexIDMap.index, stand_in)
        try:
            self.add_with_ids_c(len(ids), faiss.swig_ptr(x), faiss.swig_ptr(ids))
        finally:
            _set_pointer(self, faiss.IndexIDMap.index, inner)

    @accepts_tensors
    def search(
        self,
        x: npt.NDArray[Any],
        k: int,
        *,
        params: faiss.SearchParameters | None = None,
        D: Floats | None = None,
        I: Labels | None = None,
        numeric_type: int = faiss.Float32,
    ) -> tuple[Floats, Labels]:
        """The k nearest vectors of every query, under their ids; as faiss.IndexIDMap.search."""
        x = self._checked_queries(x, k, "search", D, I)
        D, I = self.index.search(x, k, **given(self._inner_params(params)), D=D, I=I)
        self._rename(I)
        return D, I

    @accepts_tensors
    def range_search(
        self, x: npt.NDArray[Any], thresh: float, *, params: faiss.SearchParameters | None = None
    ) -> RangeResult:
        """All vectors nearer than a threshold, under their ids; as faiss.IndexIDMap.range_search."""
        x = self._checked_vectors(x, "range_search")
        lims, D, I = self.index.range_search(x, thresh, **given(self._inner_params(params)))
        self._rename(I)
        return lims, D, I

    @accepts_tensors
    def search_and_reconstruct(
        self,
        x: npt.NDArray[Any],
        k: int,
        *,
        params: faiss.SearchParameters | None = None,
        D: Floats | None = None,
        I: Labels | None = None,
        R: Floats | None = None,
    ) -> tuple[Floats, Labels, Floats]:
        """`search`, and the reconstructions of the vectors found, shape (n, k, d); NaN where none was found."""
        x = self._checked_queries(x, k, "search_and_reconstruct", D, I)
        R = self._checked_reconstructions(R, (len(x), k))
        D, I, R = self.index.search_and_reconstruct(x, k, **given(self._inner_params(params)), D=D, I=I, R=R)
        self._rename(I)
        return D, I, R

    def _inner_params(self, params: faiss.SearchParameters | None) -> faiss.SearchParameters | None:
        """The parameters with their selector, if any, applied to this wrapper's ids."""
        selector = selector_of(params)
        if params is None or selector is None or isinstance(selector, faiss.IDSelectorTranslated):
            return params
        return _with_selector(params, faiss.IDSelectorTranslated(self.id_map, selector))

    def _rename(self, labels: Labels) -> None:
        """Replace numbers of vectors by their ids, in place."""
        n = self.id_map.size()
        ids = faiss.rev_swig_ptr(self.id_map.data(), n) if n else np.empty(0, np.int64)
        found = labels >= 0
        try:
            labels[found] = ids[labels[found]]
        except IndexError:
            raise RuntimeError(
                f"{type(self).__name__}: the index within returned vector {labels.max()}, but there are {n} ids; "
                "were vectors added to it directly?"
            ) from None


class IndexIDMap2(IndexIDMap, faiss.IndexIDMap2):
    """faiss.IndexIDMap2: vectors under ids of one's own, by which they can be reconstructed.

    Parameters
    ----------
    index : faiss.Index
        An empty index, of this package or FAISS's.
    """

    def reset(self) -> None:
        """Remove all vectors."""
        super().reset()
        self.construct_rev_map()  # FAISS's reset leaves the map from ids, and reconstruct would use it


# ---- PreTransform ------------------------------------------------------------------------------------------------


class IndexPreTransform(_Wrapper, faiss.IndexPreTransform):
    """faiss.IndexPreTransform: vectors go through a chain of faiss.VectorTransform (PCA, OPQ, rotation, norm) first.

    Parameters
    ----------
    transform : faiss.VectorTransform, optional
    index : faiss.Index
        The last argument; an index of transform.d_out dimensions, of this package or FAISS's.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._keep(args[-1])

    @property
    def index(self) -> faiss.Index:
        """The index within, as the Python object that was put there."""
        return self._python_object(super().index)

    @index.setter
    def index(self, index: faiss.Index) -> None:
        self._replace(faiss.IndexPreTransform.index, index)

    def _inner_indexes(self) -> list[faiss.Index]:
        return [self.index]

    def _transforms(self) -> list[faiss.VectorTransform]:
        return [self.chain.at(i) for i in range(self.chain.size())]

    def _apply(self, x: npt.NDArray[Any], method: str) -> Floats:
        x = self._checked_vectors(x, method)
        self._require_trained(method)
        for transform in self._transforms():
            x = transform.apply(x)
        return x

    @accepts_tensors
    def train(self, x: npt.NDArray[Any], *, xq_train: npt.NDArray[Any] | None = None, **options: Any) -> None:
        """Train the transforms, each on what those before it make of x, then the index within, where needed.

        Parameters
        ----------
        x : array, shape (n, d)
        xq_train : array, shape (n_queries, d), optional
            Transformed, and passed to the `train` of the index within, as are all `options`.
        """
        x = self._checked_vectors(x, "train")
        queries = None if xq_train is None else self._checked_vectors(xq_train, "train")
        inner, transforms = self.index, self._transforms()
        trained = [transform.is_trained for transform in transforms] + [inner.is_trained]
        for i, transform in enumerate(transforms):
            if all(trained[i:]):
                break
            if not trained[i]:
                transform.train(x)
            x = transform.apply(x)
            queries = None if queries is None else transform.apply(queries)
        if not trained[-1]:
            inner.train(x, **options, **({} if queries is None else {"xq_train": queries}))
        self.is_trained = True

    @accepts_tensors
    def add(self, x: npt.NDArray[Any], numeric_type: int = faiss.Float32) -> None:
        """Transform vectors, shape (n, d), and add them to the index within."""
        inner = self.index
        inner.add(self._apply(x, "add"))
        self.ntotal = inner.ntotal

    @accepts_tensors
    def add_with_ids(self, x: npt.NDArray[Any], ids: npt.NDArray[Any], numeric_type: int = faiss.Float32) -> None:
        """Transform vectors, shape (n, d), and add them to the index within under the given ids, shape (n,)."""
        inner = self.index
        x = self._apply(x, "add_with_ids")
        inner.add_with_ids(x, self._checked_ids(ids, len(x)))
        self.ntotal = inner.ntotal

    @accepts_tensors
    def sa_encode(self, x: npt.NDArray[Any], codes: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
        """Codes of vectors, (n, d) to (n, sa_code_size()), uint8: those that the index within makes."""
        return self.index.sa_encode(self._apply(x, "sa_encode"), codes)

    @accepts_tensors
    def search(
        self,
        x: npt.NDArray[Any],
        k: int,
        *,
        params: faiss.SearchParameters | None = None,
        D: Floats | None = None,
        I: Labels | None = None,
        numeric_type: int = faiss.Float32,
    ) -> tuple[Floats, Labels]:
        """The k nearest vectors of every query, after the transforms; as faiss.IndexPreTransform.search."""
        x = self._checked_queries(x, k, "search", D, I)
        return self.index.search(self._apply(x, "search"), k, **given(self._inner_params(params)), D=D, I=I)

    @accepts_tensors
    def range_search(
        self, x: npt.NDArray[Any], thresh: float, *, params: faiss.SearchParameters | None = None
    ) -> RangeResult:
        """All vectors nearer than a threshold, after the transforms; as faiss.IndexPreTransform.range_search."""
        return self.index.range_search(self._apply(x, "range_search"), thresh, **given(self._inner_params(params)))

    @accepts_tensors
    def search_and_reconstruct(
        self,
        x: npt.NDArray[Any],
        k: int,
        *,
        params: faiss.SearchParameters | None = None,
        D: Floats | None = None,
        I: Labels | None = None,
        R: Floats | None = None,
    ) -> tuple[Floats, Labels, Floats]:
        """`search`, and what was found, reconstructed and transformed back, shape (n, k, d); NaN where missing."""
        x = self._checked_queries(x, k, "search_and_reconstruct", D, I)
        R = self._checked_reconstructions(R, (len(x), k))
        transformed = self._apply(x, "search_and_reconstruct")
        D, I, found = self.index.search_and_reconstruct(transformed, k, **given(self._inner_params(params)), D=D, I=I)
        found = found.reshape(len(x) * k, -1)
        for transform in reversed(self._transforms()):
            found = transform.reverse_transform(found)
        R[:] = found.reshape(R.shape)
        return D, I, R

    @staticmethod
    def _inner_params(params: faiss.SearchParameters | None) -> faiss.SearchParameters | None:
        if isinstance(params, faiss.SearchParametersPreTransform):
            return _parameter(params, "index_params")
        return params


# ---- Refine ------------------------------------------------------------------------------------------------------


class IndexRefine(_Wrapper, faiss.IndexRefine):
    """faiss.IndexRefine: what one index finds is compared again by a second, more exact one.

    Parameters
    ----------
    base_index, refine_index : faiss.Index
        The first is searched for k * k_factor vectors; the second one's distances sort them.
    """

    def __init__(self, base_index: faiss.Index, refine_index: faiss.Index) -> None:
        super().__init__(base_index, refine_index)
        self._keep(base_index)
        self._keep(refine_index)

    @property
    def base_index(self) -> faiss.Index:
        """The index that is searched, as the Python object that was put there."""
        return self._python_object(super().base_index)

    @base_index.setter
    def base_index(self, index: faiss.Index) -> None:
        self._replace(faiss.IndexRefine.base_index, index)

    @property
    def refine_index(self) -> faiss.Index:
        """The index that refines, as the Python object that was put there."""
        return self._python_object(super().refine_index)

    @refine_index.setter
    def refine_index(self, index: faiss.Index) -> None:
        self._replace(faiss.IndexRefine.refine_index, index)

    def _inner_indexes(self) -> list[faiss.Index]:
        return [self.base_index, self.refine_index]

    @accepts_tensors
    def train(self, x: npt.NDArray[Any], **options: Any) -> None:
        """Train the searched index, which gets all `options`, then the refining one."""
        x = self._checked_vectors(x, "train")
        self.base_index.train(x, **options)
        self.refine_index.train(x)
        self.is_trained = True

    @accepts_tensors
    def add(self, x: npt.NDArray[Any], numeric_type: int = faiss.Float32) -> None:
        """Add vectors, shape (n, d), to both indexes."""
        x = self._checked_vectors(x, "add")
        self._require_trained("add")
        self.base_index.add(x)
        self.refine_index.add(x)
        self.ntotal = self.refine_index.ntotal

    @accepts_tensors
    def sa_encode(self, x: npt.NDArray[Any], codes: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
        """Codes of vectors, (n, d) to (n, sa_code_size()), uint8: one index's codes, then the other's."""
        x = self._checked_vectors(x, "sa_encode")
        shape = (len(x), self.sa_code_size())
        if codes is None:
            codes = np.empty(shape, np.uint8)
        elif codes.shape != shape:
            raise AssertionError(f"{type(self).__name__}.sa_encode: codes has shape {codes.shape}, expected {shape}")
        codes[:] = np.hstack([self.base_index.sa_encode(x), self.refine_index.sa_encode(x)])
        return codes

    @accepts_tensors
    def search(
        self,
        x: npt.NDArray[Any],
        k: int,
        *,
        params: faiss.SearchParameters | None = None,
        D: Floats | None = None,
        I: Labels | None = None,
        numeric_type: int = faiss.Float32,
    ) -> tuple[Floats, Labels]:
        """The k nearest, by the refining index, of the k * k_factor nearest by the searched one.

        Parameters
        ----------
        x : array, shape (n, d)
        k : int
        params : faiss.IndexRefineSearchParameters, optional
            `k_factor`, at least 1, and `base_index_params` for the searched index.
        D, I : arrays, shape (n, k), float32 and int64, optional
            Where to put the result.

        Returns
        -------
        D : array, shape (n, k), float32
            The refining index's distances; +-FLT_MAX where fewer than k vectors were found.
        I : array, shape (n, k), int64

        Raises
        ------
        RuntimeError
            If the index is not trained, k_factor is below 1, or params are of another class.
        """
        x = self._checked_queries(x, k, "search", D, I)
        self._require_trained("search")
        base_params, k_factor = self._refinement(params, "search")
        k_base = int(np.float32(k) * np.float32(k_factor))
        if k_base < k:
            raise RuntimeError(f"{type(self).__name__}.search: 'k_base >= k' failed: k_factor is {k_factor}")
        _, candidates = self.base_index.search(x, k_base, **given(base_params))
        worst = self._missing()
        refined = np.where(candidates < 0, worst, self._refined(x, candidates))
        order = np.lexsort((candidates, np.copysign(1, worst) * refined))[:, :k]
        distances, labels = (np.take_along_axis(a, order, axis=1) for a in (refined, candidates))
        return _result(distances, labels, D, I)

    @accepts_tensors
    def range_search(
        self, x: npt.NDArray[Any], thresh: float, *, params: faiss.SearchParameters | None = None
    ) -> RangeResult:
        """Of all vectors within thresh * k_factor by the searched index, those within thresh by the refining one."""
        x = self._checked_vectors(x, "range_search")
        self._require_trained("range_search")
        base_params, k_factor = self._refinement(params, "range_search")
        lims, _, I = self.base_index.range_search(x, thresh * k_factor, **given(base_params))
        parts = [I[None, begin:end] for begin, end in itertools.pairwise(lims)]
        refined = [self._refined(x[q : q + 1], part)[0] for q, part in enumerate(parts)]
        D = np.concatenate([np.empty(0, np.float32), *refined])
        near = thresh < D if self.metric_type == faiss.METRIC_INNER_PRODUCT else thresh > D
        kept_before = np.concatenate([[0], np.cumsum(near)]).astype(lims.dtype)
        return kept_before[lims], D[near], I[near]

    def _refinement(self, params: faiss.SearchParameters | None, method: str) -> tuple[Any, float]:
        """The searched index's parameters, and k_factor."""
        if params is None:
            return None, self.k_factor
        if not isinstance(params, faiss.IndexRefineSearchParameters):
            raise RuntimeError(
                f"{type(self).__name__}.{method}: IndexRefine params have incorrect type: {type(params).__name__}, "
                "expected IndexRefineSearchParameters"
            )
        return _parameter(params, "base_index_params"), params.k_factor

    def _missing(self) -> np.float32:
        return -MISSING if self.metric_type == faiss.METRIC_INNER_PRODUCT else MISSING

    def _refined(self, x: Floats, candidates: Labels) -> Floats:
        """The refining index's distances of queries, shape (n, d), to vectors, shape (n, k); undefined for ids < 0."""
        refine_index = self.refine_index
        candidates = np.ascontiguousarray(candidates)
        distances = np.zeros(candidates.shape, np.float32)
        if not candidates.size:
            return distances
        if isinstance(refine_index, faiss.IndexFlat):
            pointers = (faiss.swig_ptr(distances), faiss.swig_ptr(candidates))
            refine_index.compute_distance_subset(len(x), faiss.swig_ptr(x), candidates.shape[1], *pointers)
            return distances
        try:
            distance_to = refine_index.get_distance_computer()
        except RuntimeError:
            # FAISS has none for many classes, additive quantizers without stored norms (IndexDPQ) among them.
            return self._distances_to_reconstructions(x, candidates)
        for i in range(len(x)):
            distance_to.set_query(faiss.swig_ptr(x[i]))
            found = np.flatnonzero(candidates[i] >= 0)
            distances[i, found] = [distance_to(id) for id in candidates[i, found].tolist()]
        return distances

    def _distances_to_reconstructions(self, x: Floats, candidates: Labels) -> Floats:
        distances = np.zeros(candidates.shape, np.float32)
        queries, places = np.nonzero(candidates >= 0)
        step = max(1, _RECONSTRUCTED_BYTES // (4 * self.d))
        for start in range(0, len(queries), step):
            part = queries[start : start + step], places[start : start + step]
            vectors, xq = self.refine_index.reconstruct_batch(candidates[part]), x[part[0]]
            if self.metric_type == faiss.METRIC_INNER_PRODUCT:
                distances[part] = np.einsum("nd,nd->n", xq, vectors)
            else:
                differences = xq - vectors
                distances[part] = np.einsum("nd,nd->n", differences, differences)
        return distances


class IndexRefineFlat(IndexRefine, faiss.IndexRefineFlat):
    """faiss.IndexRefineFlat: what an index finds is compared again with the vectors themselves.

    Parameters
    ----------
    base_index : faiss.Index
        Searched for k * k_factor vectors.
    xb : SWIG pointer to float, optional
        The vectors that base_index holds already; without it, it must be empty.
    """

    def __init__(self, base_index: faiss.Index, *xb: Any) -> None:
        super(IndexRefine, self).__init__(base_index, *xb)
        self._keep(base_index)


# ---- Shards, Replicas --------------------------------------------------------------------------------------------


class _Threaded(_Wrapper):
    """What IndexShards and IndexReplicas share: several indexes of one dimension and metric.

    `threaded` as the constructor got it: the indexes then work in a thread each, as FAISS's do; else one after the
    other, each with all threads that faiss.omp_get_max_threads() tells. For exhaustive search in memory one after the
    other is as fast, and needs less memory for tables.
    """

    _threaded = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        flags = [arg for arg in args if isinstance(arg, bool)]
        self._threaded = bool(flags) and flags[0]

    def at(self, i: int) -> faiss.Index:
        """The i-th index, as the Python object that was added."""
        return self._python_object(super().at(i))

    def _inner_indexes(self) -> list[faiss.Index]:
        return [self.at(i) for i in range(self.count())]

    def addIndex(self, index: faiss.Index) -> None:
        """Add an index."""
        super().addIndex(index)
        self._keep(index)

    def removeIndex(self, index: faiss.Index) -> None:
        """Remove an index that was added."""
        super().removeIndex(index)
        self._forget(index)

    def _run(self, method: Callable[[int, faiss.Index], Any]) -> list[Any]:
        """`method(i, index)` of every index; if some raise, it is done of the others all the same, as FAISS does."""
        calls = [(method, i, index) for i, index in enumerate(self._inner_indexes())]
        outcomes = threads.run(_outcome, calls, n_threads=len(calls) if self._threaded else 1)
        errors = [(i, outcome) for i, outcome in enumerate(outcomes) if isinstance(outcome, Exception)]
        if len(errors) == 1:
            raise errors[0][1]
        if errors:
            raise RuntimeError("\n".join(f"Exception thrown from index {i}: {error}" for i, error in errors))
        return outcomes

    @accepts_tensors
    def train(self, x: npt.NDArray[Any], **options: Any) -> None:
        """Train every index on all vectors, shape (n, d)."""
        x = self._checked_vectors(x, "train")
        self._run(lambda i, index: index.train(x, **options))
        self.syncWithSubIndexes()

    def _require_some(self, method: str, kind: str) -> None:
        if not self.count():
            raise RuntimeError(f"{type(self).__name__}.{method}: no {kind} in index")

    # ---- copies: FAISS has no file format for them ---------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        return {
            "arguments": (self.d, self._threaded, *self._more_arguments()),
            "indexes": self._inner_indexes(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(*state["arguments"])  # type: ignore[misc]
        for index in state["indexes"]:
            self.addIndex(index)

    def _more_arguments(self) -> tuple[Any, ...]:
        return ()


def _outcome(method: Callable[[int, faiss.Index], Any], i: int, index: faiss.Index) -> Any:
    try:
        return method(i, index)
    except Exception as error:
        return error


class IndexShards(_Threaded, faiss.IndexShards):
    """faiss.IndexShards: several indexes that hold a part of the vectors each.

    Search parameters go to every shard; with `successive_ids` their selectors see each shard's own numbers, as with
    FAISS. Unlike FAISS's, it has `range_search`.

    Parameters
    ----------
    d : int, optional
    threaded : bool
        A thread for each shard.
    successive_ids : bool
        Ids of a shard follow those of the shard before it; else each shard knows its vectors' ids (IndexIDMap).
    """

    def add_shard(self, index: faiss.Index) -> None:
        """Add a shard."""
        self.addIndex(index)

    def remove_shard(self, index: faiss.Index) -> None:
        """Remove a shard."""
        self.removeIndex(index)

    @accepts_tensors
    def add(self, x: npt.NDArray[Any], numeric_type: int = faiss.Float32) -> None:
        """Add vectors, shape (n, d), an even part to every shard, under the ids ntotal, ntotal + 1, ..."""
        x = self._checked_vectors(x, "add")
        if not self.successive_ids:
            self._add(x, np.arange(self.ntotal, self.ntotal + len(x), dtype=np.int64))
            return
        if self.ntotal:
            raise RuntimeError(
                f"{type(self).__name__}.add: when adding to IndexShards with successive_ids, only add() in a single "
                f"pass is supported; the index holds {self.ntotal} vectors"
            )
        self._add(x, None)

    @accepts_tensors
    def add_with_ids(self, x: npt.NDArray[Any], ids: npt.NDArray[Any], numeric_type: int = faiss.Float32) -> None:
        """Add vectors, shape (n, d), an even part to every shard, under the given ids, shape (n,)."""
        x = self._checked_vectors(x, "add_with_ids")
        ids = self._checked_ids(ids, len(x))
        if self.successive_ids:
            raise RuntimeError(
                f"{type(self).__name__}.add_with_ids: It makes no sense to pass in ids and request them to be shifted"
            )
        self._add(x, ids)

    def _add(self, x: Floats, ids: Labels | None) -> None:
        bounds = [len(x) * i // max(1, self.count()) for i in range(self.count() + 1)]

        def add_part(i: int, index: faiss.Index) -> None:
            part = slice(bounds[i], bounds[i + 1])
            if ids is None:
                index.add(x[part])
            else:
                index.add_with_ids(x[part], ids[part])

        self._run(add_part)
        self.syncWithSubIndexes()

    @accepts_tensors
    def search(
        self,
        x: npt.NDArray[Any],
        k: int,
        *,
        params: faiss.SearchParameters | None = None,
        D: Floats | None = None,
        I: Labels | None = None,
        numeric_type: int = faiss.Float32,
    ) -> tuple[Floats, Labels]:
        """The k nearest vectors of every query in all shards; as faiss.IndexShards.search."""
        x = self._checked_queries(x, k, "search", D, I)
        self._require_some("search", "shards")
        results = self._run(lambda i, index: index.search(x, k, **given(params)))
        distances = np.concatenate([D for D, _ in results], axis=1)
        labels = np.concatenate(self._shifted([I for _, I in results]), axis=1)
        # What is missing in one shard stands behind what any other has found; equal ones stay in the shards' order.
        order = np.lexsort((self._sign() * distances, labels < 0))[:, :k]
        distances, labels = (np.take_along_axis(a, order, axis=1) for a in (distances, labels))
        distances[labels < 0] = self._sign() * MISSING
        return _result(distances, labels, D, I)

    @accepts_tensors
    def range_search(
        self, x: npt.NDArray[Any], thresh: float, *, params: faiss.SearchParameters | None = None
    ) -> RangeResult:
        """All vectors of all shards that are nearer than a threshold, of each query nearest first."""
        x = self._checked_vectors(x, "range_search")
        self._require_some("range_search", "shards")
        results = self._run(lambda i, index: index.range_search(x, thresh, **given(params)))
        D = np.concatenate([D for _, D, _ in results])
        I = np.concatenate(self._shifted([I for _, _, I in results]))
        counts = [np.diff(lims.astype(np.int64)) for lims, _, _ in results]
        queries = np.concatenate([np.repeat(np.arange(len(x)), count) for count in counts])
        order = np.lexsort((self._sign() * D, queries))
        lims = np.concatenate([[0], np.cumsum(np.sum(counts, axis=0))]).astype(results[0][0].dtype)
        return lims, D[order], I[order]

    def _shifted(self, labels: list[Labels]) -> list[Labels]:
        """The labels that every shard returned as those of the whole."""
        if not self.successive_ids:
            return labels
        sizes = [index.ntotal for index in self._inner_indexes()]
        firsts = np.cumsum([0, *sizes[:-1]])
        return [np.where(I < 0, I, I + first) for I, first in zip(labels, firsts, strict=True)]

    def _sign(self) -> int:
        """Distances times this are better where they are smaller."""
        return 1 if self.metric_type == faiss.METRIC_L2 else -1

    def _more_arguments(self) -> tuple[Any, ...]:
        return (bool(self.successive_ids),)


class IndexReplicas(_Threaded, faiss.IndexReplicas):
    """faiss.IndexReplicas: several indexes that hold the same vectors and share the queries.

    Unlike FAISS's, it has search parameters and `range_search`.

    Parameters
    ----------
    d : int, optional
    threaded : bool
        A thread for each replica.
    """

    def add_replica(self, index: faiss.Index) -> None:
        """Add a replica."""
        self.addIndex(index)

    def remove_replica(self, index: faiss.Index) -> None:
        """Remove a replica."""
        self.removeIndex(index)

    @accepts_tensors
    def add(self, x: npt.NDArray[Any], numeric_type: int = faiss.Float32) -> None:
        """Add vectors, shape (n, d), to every replica."""
        x = self._checked_vectors(x, "add")
        self._run(lambda i, index: index.add(x))
        self.syncWithSubIndexes()

    def _parts(self, n: int) -> list[slice]:
        """Which queries each replica answers."""
        width = -(-n // self.count())
        return [slice(i * width, (i + 1) * width) for i in range(self.count())]

    @accepts_tensors
    def search(
        self,
        x: npt.NDArray[Any],
        k: int,
        *,
        params: faiss.SearchParameters | None = None,
        D: Floats | None = None,
        I: Labels | None = None,
        numeric_type: int = faiss.Float32,
    ) -> tuple[Floats, Labels]:
        """The k nearest vectors of every query, each of which one replica answers; as faiss.IndexReplicas.search."""
        x = self._checked_queries(x, k, "search", D, I)
        self._require_some("search", "replicas")
        parts = self._parts(len(x))
        results = self._run(lambda i, index: index.search(x[parts[i]], k, **given(params)))
        distances, labels = (np.concatenate(part) for part in zip(*results, strict=True))
        return _result(distances, labels, D, I)

    @accepts_tensors
    def range_search(
        self, x: npt.NDArray[Any], thresh: float, *, params: faiss.SearchParameters | None = None
    ) -> RangeResult:
        """All vectors that are nearer than a threshold; each query is answered by one replica."""
        x = self._checked_vectors(x, "range_search")
        self._require_some("range_search", "replicas")
        parts = self._parts(len(x))
        results = self._run(lambda i, index: index.range_search(x[parts[i]], thresh, **given(params)))
        counts = np.concatenate([np.diff(lims.astype(np.int64)) for lims, _, _ in results])
        lims = np.concatenate([[0], np.cumsum(counts)]).astype(results[0][0].dtype)
        return lims, np.concatenate([D for _, D, _ in results]), np.concatenate([I for _, _, I in results])


def _result(distances: Floats, labels: Labels, D: Floats | None, I: Labels | None) -> tuple[Floats, Labels]:
    """A search's result, in the caller's arrays where there are such."""
    if D is not None:
        D[:] = distances
    if I is not None:
        I[:] = labels
    return distances if D is None else D, labels if I is None else I


def _always(ours: type[faiss.Index]) -> Callable[[faiss.Index], type[faiss.Index]]:
    return lambda index: ours


DOWNCASTS.update(
    {
        faiss.IndexIDMap: _always(IndexIDMap),
        faiss.IndexIDMap2: _always(IndexIDMap2),
        faiss.IndexPreTransform: _always(IndexPreTransform),
        faiss.IndexRefine: _always(IndexRefine),
        faiss.IndexRefineFlat: _always(IndexRefineFlat),
        faiss.IndexShards: _always(IndexShards),
        faiss.IndexReplicas: _always(IndexReplicas),
    }
)
