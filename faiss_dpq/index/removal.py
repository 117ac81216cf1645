"""Which vectors a removal is asked for, and the steps that all removals have in common."""

from typing import TypeAlias

import faiss
import numpy as np
import numpy.typing as npt

from ..search.selection import Labels, is_member
from ..search.stored import Step

_FEW = 64  # vectors in all to one that is removed, from which on a removal goes one by one; below, in one pass
_SHORT_RANGE = 1 << 12  # ids: a range of more is asked what it admits

Removed: TypeAlias = npt.NDArray[np.int64] | faiss.IDSelector


def require_removal(x: Removed, call: str) -> None:
    """Raise the error that FAISS raises for what names no vectors.

    Raises
    ------
    AttributeError
        If x is neither a selector nor an array.
    AssertionError
        If x is an array of other than one dimension.
    """
    if isinstance(x, faiss.IDSelector):
        return
    expected = "expected a faiss.IDSelector or an array of ids"
    if not hasattr(x, "ndim"):
        raise AttributeError(f"{call}: x is a {type(x).__name__}, {expected}")
    if x.ndim != 1:
        raise AssertionError(f"{call}: x is a {type(x).__name__} of {x.ndim} dimensions, {expected}")


def listed_ids(x: Removed, call: str) -> Labels | None:
    """The ids that a removal is asked for, ascending; None of a selector that does not list them.

    Raises
    ------
    AttributeError, AssertionError
        As `require_removal`, and the latter if x is a tensor.
    """
    if isinstance(x, faiss.IDSelectorArray):
        x = faiss.rev_swig_ptr(x.ids, x.n) if x.n else np.empty(0, np.int64)
    elif isinstance(x, faiss.IDSelectorRange) and x.imax - x.imin <= _SHORT_RANGE:
        return np.arange(x.imin, x.imax)
    elif isinstance(x, faiss.IDSelector):
        return None
    require_removal(x, call)
    if not isinstance(x, np.ndarray):
        raise AssertionError(f"{call}: x is a {type(x).__name__}, expected a faiss.IDSelector or an array of ids")
    ids = np.ascontiguousarray(x, np.int64)
    return np.unique(ids) if len(ids) > 1 else ids


def admitted(x: Removed, listed: Labels | None, ids: Labels) -> npt.NDArray[np.bool_]:
    """Which of some ids a removal takes; `listed`: what `listed_ids` gives of it."""
    return is_member(x if listed is None else faiss.IDSelectorBatch(listed), ids)


def are_few(n: int, ntotal: int) -> bool:
    """Whether n of ntotal vectors are so few that each is removed by itself."""
    return n * _FEW < ntotal


def counted(index: faiss.Index, n: int) -> Step:
    """The step that sets an index's `ntotal`."""
    return faiss.Index.ntotal.fset, index.this, n


def gaps(places: Labels, n: int) -> tuple[Labels, Labels]:
    """What fills the gaps if the vectors at ascending places are taken out of n.

    Returns
    -------
    holes : array, shape (m,), int64
        Those of the places that are below n - len(places).
    fillers : array, shape (m,), int64
        The places behind, whose vectors stay, in their order.
    """
    left = n - len(places)
    first = int(np.searchsorted(places, left))
    last = np.arange(left, n)
    return places[:first], last[~np.isin(last, places[first:])] if first < len(places) else last


def unknown_ids(call: str, ids: Labels) -> RuntimeError:
    """The error for ids that an index does not hold."""
    some = ", ".join(map(str, ids[:5].tolist())) + (", ..." if len(ids) > 5 else "")
    return RuntimeError(f"{call}: the index holds no vector of these ids: {some}")


def check_once(call: str, ids: Labels, name: str) -> None:
    """Raise a RuntimeError if an id is given twice."""
    if len(ids) > 1 and len(np.unique(ids)) < len(ids):
        raise RuntimeError(f"{call}: {name} has an id twice")
