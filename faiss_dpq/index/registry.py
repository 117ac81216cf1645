"""Which class of this package stands for which of FAISS's. Reading, cloning and the factory ask here."""

from collections.abc import Callable
from typing import Any, NamedTuple

import faiss


class _Entry(NamedTuple):
    ours: type[faiss.Index]
    fits: Callable[[Any], bool]


_ENTRIES: dict[type[faiss.Index], _Entry] = {}


def stands_for(
    faiss_class: type[faiss.Index], fits: Callable[[Any], bool] = lambda index: True
) -> Callable[[type[faiss.Index]], type[faiss.Index]]:
    """Class decorator: indexes of exactly this class of FAISS become the decorated class, if they fit."""

    def enter(ours: type[faiss.Index]) -> type[faiss.Index]:
        _ENTRIES[faiss_class] = _Entry(ours, fits)
        return ours

    return enter


def ours(faiss_class: type[faiss.Index]) -> type[faiss.Index]:
    """The class of this package that stands for one of FAISS's."""
    return _ENTRIES[faiss_class].ours


def downcast_index(index: faiss.Index) -> faiss.Index:
    """The index as its own class: one of this package for those of FAISS's indexes that it can search.

    Parameters
    ----------
    index : faiss.Index
        The result shares its C++ object, so that both see what is added to either.

    Returns
    -------
    index : faiss.Index
        An IndexDPQ if `index` is a faiss.IndexResidualQuantizer whose levels have 1 to 12 bits each, the same number
        for all, and whose metric is L2 or inner product; an IndexIVFDPQ if it is such a faiss.IndexIVFResidualQuantizer
        without norms in its codes; for FAISS's wrappers, the wrapper of the same name in this package; else what
        faiss.downcast_index returns.
    """
    if isinstance(index, tuple(entry.ours for entry in _ENTRIES.values())):
        return index
    specific = faiss.downcast_index(index)
    if type(specific) is type(index):
        specific = index
    entry = _ENTRIES.get(type(specific))
    if entry is None or not entry.fits(specific):
        return specific
    view: Any = object.__new__(entry.ours)
    view.this = specific.this
    view.referenced_objects = [index]
    return view
