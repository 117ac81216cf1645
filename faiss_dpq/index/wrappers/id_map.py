"""Vectors under ids of one's own: faiss.IndexIDMap and IndexIDMap2."""

from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from ...codec import Floats
from ...search.selection import Labels, is_member, selector_of
from ..arguments import require_index
from ..base import RangeResult
from ..changes import all_or_nothing, completed
from ..registry import downcast_index, stands_for
from ..tensors import accepts_tensors, if_any
from .listed_ids import lists_within, numbered_lists, removal, remove_and_renumber, set_ids
from .places import Places, remove_few, replace
from .selectors import with_selector
from .wrapper import WrapperOfOne, set_pointer


@stands_for(faiss.IndexIDMap)
class IndexIDMap(WrapperOfOne, faiss.IndexIDMap):
    """faiss.IndexIDMap: vectors under ids of one's own.

    Selectors in search parameters select by these ids. Unlike FAISS's, `range_search` passes on all search parameters
    (not the selector alone), and `search_and_reconstruct` works, since it needs no way back from the ids.

    Parameters
    ----------
    index : faiss.Index
        An empty index, of this package or FAISS's.
    """

    _places: Places | None = None  # made for removals and replacements

    def __init__(self, index: faiss.Index) -> None:
        require_index(index, f"{type(self).__name__}: index")
        super().__init__(index)
        self._keep(index)

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
        inner = self._agreeing("add_with_ids")
        inner.add(x)
        self._append_ids(x, ids, inner.ntotal)

    def _append_ids(self, x: Floats, ids: Labels, ntotal: int) -> None:
        """Let FAISS note the ids of vectors that were added to the index within.

        Python has no access to the map from ids that IndexIDMap2 keeps, short of making it anew. So C++ adds the
        vectors once more, under their ids, to a stand-in for the index within that stores 0 bytes of them.
        """
        stand_in = faiss.IndexFlatL2(0)
        stand_in.ntotal = ntotal - len(ids)
        inner = faiss.IndexIDMap.index.fget(self)

        def add() -> None:
            set_pointer(self, faiss.IndexIDMap.index, stand_in)
            self.add_with_ids_c(len(ids), faiss.swig_ptr(x), faiss.swig_ptr(ids))

        completed(add, lambda: set_pointer(self, faiss.IndexIDMap.index, inner))

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return state | {"ids": faiss.vector_to_array(self.id_map)} if "shell" in state else state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "shell" in state:
            set_ids(self, state["ids"])

    # ---- remove, merge -----------------------------------------------------------------------------------------

    def remove_ids(self, x: npt.NDArray[np.int64] | faiss.IDSelector) -> int:
        """Remove the vectors whose ids a selector admits, or that are given. Their number.

        Where fewer than one in 64 is removed from an IndexDPQ or an IndexIVFDPQ within, or behind transforms, the last
        vectors take the places of those that go; else those that stay keep their order.

        Raises
        ------
        RuntimeError
            If the index within removes nothing, or its ids cannot be kept right. Nothing is removed then.
        """
        self._check_writable("remove_ids")
        ivf = lists_within(self._agreeing("remove_ids"))
        removed = remove_few(self, x)
        if removed is not None:
            return removed
        if ivf is None:
            return super().remove_ids(x)
        ids = faiss.vector_to_array(self.id_map)
        kept = ~is_member(x if isinstance(x, faiss.IDSelector) else faiss.IDSelectorBatch(x), ids)
        ids_of_lists = numbered_lists(ivf, len(ids), self._call("remove_ids"))

        def remove() -> None:
            remove_and_renumber(ivf, ids_of_lists, kept)
            set_ids(self, ids[kept])

        all_or_nothing(remove, lambda index: removal(self, ivf), self)
        self._forget_derived(codebooks=False)
        return int((~kept).sum())

    @accepts_tensors()
    def update_vectors(self, ids: npt.ArrayLike, x: npt.ArrayLike) -> None:
        """Replace the vectors with some ids, shape (n,), by `x`, shape (n, d); all, or none.

        Needs an IndexDPQ or an IndexIVFDPQ within, or behind transforms. In lists, a replaced vector becomes the last
        of its list, as with faiss.IndexIVF.update_vectors; no direct map is needed.

        Raises
        ------
        RuntimeError
            If the index holds no vector of one of the ids or several, an id is given twice, or the index within is of
            another class.
        """
        x = self._checked_vectors(x, "update_vectors")
        ids = self._checked_ids(ids, len(x), "update_vectors")
        self._agreeing("update_vectors")
        replace(self, ids, x)

    def _known_places(self) -> Places:
        if self._places is None or self._places.this is not self.this:
            self._places = Places(self)
        return self._places

    def merge_from(self, otherIndex: faiss.Index, add_id: int = 0) -> None:
        """Move the vectors of another IndexIDMap, with their ids plus `add_id`, behind those of this one.

        Raises
        ------
        RuntimeError
            If the indexes do not fit together. Nothing is moved then.
        """
        self._require_another(otherIndex)
        other = downcast_index(otherIndex)
        self.check_compatible_for_merge(other)
        inner, other_inner = self._agreeing("merge_from"), other._agreeing("merge_from")
        own_ids, other_ids = faiss.vector_to_array(self.id_map), faiss.vector_to_array(other.id_map)
        n = len(own_ids) + len(other_ids)
        lists = [ivf for ivf in (lists_within(inner), lists_within(other_inner)) if ivf is not None]
        for ivf, ids in zip(lists, (own_ids, other_ids), strict=False):
            numbered_lists(ivf, len(ids), self._call("merge_from"))
        direct_maps = [ivf.direct_map.type for ivf in lists]

        def finish() -> None:
            if inner.ntotal == n:
                set_ids(self, np.concatenate([own_ids, other_ids + add_id]))
                set_ids(other, other_ids[:0])
            for ivf, kind in zip(lists, direct_maps, strict=True):
                ivf.set_direct_map_type(faiss.DirectMap.NoMap)
                ivf.set_direct_map_type(kind)

            self._forget_derived(codebooks=False)
            other._forget_derived(codebooks=False)

        def merge() -> None:
            for ivf in lists:
                ivf.set_direct_map_type(faiss.DirectMap.NoMap)  # FAISS merges no lists that have one
            inner.merge_from(other_inner, len(own_ids) if lists else 0)

        completed(merge, finish)

    def check_compatible_for_merge(self, otherIndex: faiss.Index) -> None:
        """Raise a RuntimeError unless vectors of the other index can be moved into this one."""
        super().check_compatible_for_merge(otherIndex)
        self.index.check_compatible_for_merge(downcast_index(otherIndex).index)

    # ---- search ------------------------------------------------------------------------------------------------

    def _search(self, x: Floats, k: int, params: faiss.SearchParameters | None) -> tuple[Floats, Labels]:
        D, I = self._agreeing("search").search(x, k, **if_any(self._inner_params(params)))
        self._rename(I)
        return D, I

    def _range_search(self, x: Floats, thresh: float, params: faiss.SearchParameters | None) -> RangeResult:
        inner = self._agreeing("range_search")
        lims, D, I = inner.range_search(x, thresh, **if_any(self._inner_params(params)))
        self._rename(I)
        return lims, D, I

    def _search_and_reconstruct(
        self, x: Floats, k: int, params: faiss.SearchParameters | None
    ) -> tuple[Floats, Labels, Floats]:
        inner = self._agreeing("search_and_reconstruct")
        D, I, R = inner.search_and_reconstruct(x, k, **if_any(self._inner_params(params)))
        self._rename(I)
        return D, I, R

    def _own_count(self) -> tuple[str, int]:
        return "id_map", self.id_map.size()

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
