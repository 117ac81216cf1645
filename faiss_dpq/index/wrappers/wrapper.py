"""What FAISS's wrapper indexes share in this package: the Python objects of the indexes within.

C++ does not call Python: a stock faiss.IndexIDMap around an IndexDPQ searches it with FAISS's own additive-quantizer
search. It finds the same, only slower. The wrappers here have FAISS's names and are FAISS's classes, so that files,
`isinstance` and C++ functions see no difference; but what trains, encodes or searches calls the Python methods of the
index within. All else (reset, remove_ids, reconstruct, merge_from, ...) is FAISS's own C++.

Nothing is kept beside the C++ object but the Python objects of the indexes within, so that a stock wrapper of the same
C++ object may change it at any time.
"""

from collections.abc import Iterator
from typing import Any

import faiss

from ..base import Base
from ..registry import downcast_index


class Wrapper(Base):
    """An index that has others within."""

    # Class attributes: FAISS's __setattr__ refuses names that the class does not have.
    _kept: dict[int, faiss.Index] | None = None
    #: FAISS's fields that point to the indexes within, and those that say whether the C++ object owns them.
    _pointers: tuple[tuple[str, str], ...] = ()

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

    def _require_agreement(self, method: str, counts: dict[str, int]) -> None:
        """Refuse to put results of parts together that do not hold the same vectors."""
        if len(set(counts.values())) > 1:
            found = ", ".join(f"{part} {count}" for part, count in counts.items())
            raise RuntimeError(
                f"{self._call(method)}: the parts hold different numbers of vectors: {found}; were some added to one "
                "directly, or was a change interrupted? Make the numbers equal again, or call reset() and add all anew"
            )

    def _replace(self, field: property, index: faiss.Index | None) -> None:
        """Set a field of the C++ object that points to an index."""
        self._forget(field.fget(self))  # type: ignore[misc]
        set_pointer(self, field, index)
        if index is not None:
            self._keep(index)

    # ---- copies where FAISS has no file format for what is within --------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        if _in_files(self):
            return super().__getstate__()
        counts = {name: getattr(self, name) for name in ("ntotal", "is_trained")}
        return {"shell": self._shell(), "within": self._inner_indexes(), "counts": counts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "shell" not in state:
            super().__setstate__(state)
            return
        self.this = state["shell"].this
        for (pointer, owns), index in zip(self._pointers, state["within"], strict=True):
            field = next(
                vars(c)[pointer] for c in type(self).__mro__ if pointer in vars(c) and not issubclass(c, Wrapper)
            )
            stand_in = field.fget(self)
            set_pointer(self, field, index)
            if getattr(self, owns):
                # Not by making the Python object its owner: SWIG counts its references to the module's types by objects
                # that are owned from the start, and would free the types too early.
                faiss.Index.__swig_destroy__(stand_in)
            setattr(self, owns, False)
            self._keep(index)
        for name, value in state["counts"].items():
            setattr(self, name, value)

    def _shell(self) -> "Wrapper":
        """An empty wrapper like this one, around indexes that are empty, too."""
        raise NotImplementedError


class WrapperOfOne(Wrapper):
    """A wrapper whose only index within is FAISS's field `index`."""

    _pointers = (("index", "own_fields"),)

    def _shell(self) -> Wrapper:
        return type(self)(stand_in_of(self.index))

    @property
    def index(self) -> faiss.Index:
        """The index within, as the Python object that was put there."""
        return self._python_object(super().index)

    @index.setter
    def index(self, index: faiss.Index) -> None:
        self._replace(super(WrapperOfOne, type(self)).index, index)
        self.ntotal = 0 if index is None else index.ntotal

    def _inner_indexes(self) -> list[faiss.Index]:
        return [self.index]

    def _own_count(self) -> tuple[str, int]:
        """What tells how many vectors this wrapper knows of in the index within: its name, and the number."""
        return "ntotal", self.ntotal

    def _agreeing(self, method: str) -> faiss.Index:
        """The index within, if it holds as many vectors as the wrapper knows of."""
        inner, own = self.index, self._own_count()
        if inner.ntotal != own[1]:
            self._require_agreement(method, dict([own, ("index", inner.ntotal)]))
        return inner


def stand_in_of(index: faiss.Index) -> faiss.Index:
    """An empty index of the same dimension and metric, which FAISS has a file format for."""
    return faiss.IndexFlat(index.d, index.metric_type)


def _in_files(index: faiss.Index) -> bool:
    """Whether FAISS has a file format for an index and all within it."""
    if isinstance(index, faiss.IndexShards | faiss.IndexReplicas):
        return False
    return not isinstance(index, Wrapper) or all(map(_in_files, index._inner_indexes()))


def set_pointer(wrapper: faiss.Index, field: property, index: faiss.Index | None) -> None:
    """Set a pointer of a C++ object, which SWIG takes for a transfer of ownership: it is none."""
    owned = index.thisown if index is not None else False
    field.fset(wrapper, index)  # type: ignore[misc]
    if index is not None:
        index.thisown = owned


def inner_parameters(params: faiss.SearchParameters, name: str) -> faiss.SearchParameters | None:
    """Parameters within parameters, as the object that was put there: SWIG knows them as their base class only."""
    return getattr(params, "_sp_field_refs", {}).get(name, getattr(params, name))
