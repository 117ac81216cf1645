"""Selectors in the parameters of a wrapper's search, handed on to the index within."""

import functools
from typing import Any

import faiss

from ...search.selection import selector_of
from .wrapper import inner_parameters


def selected(
    index: faiss.Index, params: faiss.SearchParameters | None, selector: faiss.IDSelector | None
) -> faiss.SearchParameters | None:
    """The parameters of a search of `index`, with a selector beside the one that they may have."""
    if selector is None:
        return params
    params = _own_parameters(index) if params is None else params
    inner = selector_of(params)
    return with_selector(params, selector if inner is None else _both(inner, selector))


def _both(first: faiss.IDSelector, second: faiss.IDSelector) -> faiss.IDSelector:
    both = faiss.IDSelectorAnd(first, second)
    both.referenced_objects = [first, second]
    return both


def _own_parameters(index: faiss.Index) -> faiss.SearchParameters:
    """What a search without parameters goes by, as parameters."""
    if isinstance(index, faiss.IndexRefine):
        return faiss.IndexRefineSearchParameters(k_factor=index.k_factor)
    if isinstance(index, faiss.IndexIDMap | faiss.IndexPreTransform):
        return _own_parameters(faiss.downcast_index(index.index))
    if isinstance(index, faiss.IndexShards | faiss.IndexReplicas):
        return _own_parameters(faiss.downcast_index(index.at(0)))
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(nprobe=index.nprobe, max_codes=index.max_codes)
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=index.hnsw.efSearch)
    return faiss.SearchParameters()


def with_selector(params: faiss.SearchParameters, selector: faiss.IDSelector) -> faiss.SearchParameters:
    """A copy of search parameters of any class, with another selector.

    FAISS's IndexIDMap changes the caller's object during the search, which another thread may be using.
    """
    swig_class: Any = next(c for c in type(params).__mro__ if c.__module__.startswith("faiss."))
    copy: Any = object.__new__(type(params))
    swig_class.original_init(copy)
    for name in _fields(swig_class):
        setattr(copy, name, inner_parameters(params, name))
    for name, value in vars(params).items():
        if name not in ("this", "_sp_field_refs"):
            setattr(copy, name, value)
    copy.sel = selector
    return copy


@functools.cache
def _fields(swig_class: type) -> list[str]:
    """What parameters of a class hold beside a selector. To look takes as long as a short search."""
    fields = (name for name in dir(swig_class) if isinstance(getattr(swig_class, name), property))
    return [name for name in fields if name not in ("thisown", "sel")]
