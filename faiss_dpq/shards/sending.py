"""What other processes get to search for: blocks of queries, and parameters; FAISS's objects cannot be pickled."""

import itertools
from typing import Any

import faiss
import numpy as np

import faiss_dpq

from ..index.wrappers.wrapper import inner_parameters
from ..search.selection import Filter, selector_of, selectors_within

Packed = tuple[str, dict[str, Any]]  # a class, and what its attributes are

_LEAST, _MOST = 256, 1024  # queries that a process gets at a time
UNDER_WAY = 2  # blocks that every process has: one to search, one to go on with
_PLAIN = (bool, int, float)
_OWN = "levels", "max_nprobe"


def cut_queries(n: int, n_replicas: int) -> list[slice]:
    """Blocks of queries; never one by itself, whose product with a transform would have other last bits."""
    size = max(_LEAST, min(_MOST, -(-n // (UNDER_WAY * n_replicas))))
    starts = list(range(0, n, size))
    if len(starts) > 1 and n - starts[-1] == 1:
        starts.pop()
    return [slice(*bounds) for bounds in itertools.pairwise([*starts, n])]


def pack(params: faiss.SearchParameters | None) -> Packed | None:
    """Search parameters as plain objects, for `unpack`.

    Raises
    ------
    TypeError
        If they have a selector whose ids FAISS does not tell, such as an IDSelectorBatch; an IDSelectorArray has them.
    """
    if params is None:
        return None
    values: dict[str, Any] = {}
    for name in _fields(type(params)):
        value = getattr(params, name)
        if name == "sel":
            values[name] = _packed_selector(selector_of(params))
        elif isinstance(value, faiss.SearchParameters):
            values[name] = pack(inner_parameters(params, name))
        elif isinstance(value, _PLAIN):
            values[name] = value
    return type(params).__name__, values


def unpack(packed: Packed | None) -> faiss.SearchParameters | None:
    """What `pack` was given, made anew."""
    if packed is None:
        return None
    name, values = packed
    params = _class(name)()
    held = {}
    for field, value in values.items():
        made = _unpacked_selector(value) if field == "sel" else unpack(value) if isinstance(value, tuple) else value
        if made is not None:
            setattr(params, field, made)
        if isinstance(made, faiss.IDSelector | faiss.SearchParameters):
            held[field] = made
    params._sp_field_refs = held  # where FAISS's constructor keeps them alive, and `selector_of` finds them
    return params


def _class(name: str) -> type:
    return getattr(faiss_dpq, name, None) or getattr(faiss, name)


def _fields(kind: type) -> list[str]:
    """What can be set: fields of the C++ object, and numbers of this package's parameters."""
    names = {
        name
        for base in kind.__mro__
        for name, value in vars(base).items()
        if isinstance(value, property) and value.fset is not None
    }
    return sorted((names | {own for own in _OWN if hasattr(kind, own)}) - {"this", "thisown"})


def _packed_selector(selector: faiss.IDSelector | None) -> Packed | None:
    if selector is None:
        return None
    if isinstance(selector, Filter):
        selector = selectors_within(selector)[1]
    name = type(selector).__name__
    if isinstance(selector, faiss.IDSelectorAll):
        return name, {}
    if isinstance(selector, faiss.IDSelectorRange):
        return name, {"imin": selector.imin, "imax": selector.imax}
    if isinstance(selector, faiss.IDSelectorArray):
        return name, {
            "ids": faiss.rev_swig_ptr(selector.ids, selector.n).copy() if selector.n else np.empty(0, np.int64)
        }
    if isinstance(selector, faiss.IDSelectorBitmap):
        return name, {"bitmap": faiss.rev_swig_ptr(selector.bitmap, selector.n).copy()}
    raise TypeError(
        f"an {name} cannot be sent to other processes, expected an IDSelectorRange, IDSelectorArray or IDSelectorBitmap"
    )


def _unpacked_selector(packed: Packed | None) -> faiss.IDSelector | None:
    if packed is None:
        return None
    name, values = packed
    # Many ids are looked up faster in a hash table than one after the other.
    kind = faiss.IDSelectorBatch if name == "IDSelectorArray" else getattr(faiss, name)
    return kind(*values.values())
