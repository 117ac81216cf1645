"""Vectors under ids of one's own: faiss.IndexIDMap and IndexIDMap2."""

from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from ...codec import Floats
from ...search.selection import Labels, selector_of
from ..base import RangeResult
from ..registry import stands_for
from ..tensors import accepts_tensors, given
from .wrapper import Wrapper, inner_parameters, set_pointer


@stands_for(faiss.IndexIDMap)
class IndexIDMap(Wrapper, faiss.IndexIDMap):
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

    @accepts_tensors()
    def train(self, x: npt.ArrayLike, numeric_type: int = faiss.Float32, **options: Any) -> None:
        """Train the index within, which gets all `options`."""
        x = self._checked_training(x, numeric_type, options.get("xq_train"))

        def train() -> None:
            inner = self.index
            inner.train(x, **options)
            self.is_trained = inner.is_trained

        self._all_or_untrained(train)

    def _add_with_ids(self, x: Floats, ids: Labels) -> None:
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
        set_pointer(self, faiss.IndexIDMap.index, stand_in)
        try:
            self.add_with_ids_c(len(ids), faiss.swig_ptr(x), faiss.swig_ptr(ids))
        finally:
            set_pointer(self, faiss.IndexIDMap.index, inner)

    def _search(self, x: Floats, k: int, params: faiss.SearchParameters | None) -> tuple[Floats, Labels]:
        D, I = self.index.search(x, k, **given(self._inner_params(params)))
        self._rename(I)
        return D, I

    def _range_search(self, x: Floats, thresh: float, params: faiss.SearchParameters | None) -> RangeResult:
        lims, D, I = self.index.range_search(x, thresh, **given(self._inner_params(params)))
        self._rename(I)
        return lims, D, I

    def _search_and_reconstruct(
        self, x: Floats, k: int, params: faiss.SearchParameters | None
    ) -> tuple[Floats, Labels, Floats]:
        D, I, R = self.index.search_and_reconstruct(x, k, **given(self._inner_params(params)))
        self._rename(I)
        return D, I, R

    def _inner_params(self, params: faiss.SearchParameters | None) -> faiss.SearchParameters | None:
        """The parameters with their selector, if any, applied to this wrapper's ids."""
        selector = selector_of(params)
        if params is None or selector is None or isinstance(selector, faiss.IDSelectorTranslated):
            return params
        return with_selector(params, faiss.IDSelectorTranslated(self.id_map, selector))

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


@stands_for(faiss.IndexIDMap2)
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


def with_selector(params: faiss.SearchParameters, selector: faiss.IDSelector) -> faiss.SearchParameters:
    """A copy of search parameters of any class, with another selector.

    FAISS's IndexIDMap changes the caller's object during the search, which another thread may be using.
    """
    swig_class: Any = next(c for c in type(params).__mro__ if c.__module__.startswith("faiss."))
    copy: Any = object.__new__(type(params))
    swig_class.original_init(copy)
    for name in dir(swig_class):
        if isinstance(getattr(swig_class, name), property) and name not in ("thisown", "sel"):
            setattr(copy, name, inner_parameters(params, name))
    for name, value in vars(params).items():
        if name not in ("this", "_sp_field_refs"):
            setattr(copy, name, value)
    copy.sel = selector
    return copy
