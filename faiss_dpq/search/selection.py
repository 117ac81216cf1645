"""Which vectors a FAISS IDSelector admits, found by FAISS itself."""

from collections.abc import Iterator
from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt

_CHUNK = 1 << 18  # ids asked for at a time: 1 MiB of stand-in vectors

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Selection:
    """The vectors to be searched: those numbered [begin, end), or ids[begin:end] (ascending) if ids are given."""

    begin: int
    end: int
    ids: Labels | None = None


def selector_of(params: faiss.SearchParameters | None) -> faiss.IDSelector | None:
    """The selector of search parameters, as the object that was put there.

    SWIG gives `params.sel` back as a plain IDSelector; FAISS's wrapper keeps the object itself so that it lives on.
    """
    if params is None:
        return None
    return getattr(params, "_sp_field_refs", {}).get("sel", params.sel)


def select(selector: faiss.IDSelector | None, n: int) -> Selection:
    """The vectors among range(n) that `selector` admits; all of them without one."""
    if selector is None or isinstance(selector, faiss.IDSelectorAll):
        return Selection(0, n)
    if isinstance(selector, faiss.IDSelectorRange):
        begin, end = (min(max(bound, 0), n) for bound in (selector.imin, selector.imax))
        return Selection(begin, max(begin, end))
    ids = np.concatenate([np.empty(0, np.int64), *_members(selector, n)])
    return Selection(0, len(ids), ids)


def _members(selector: faiss.IDSelector, n: int) -> Iterator[Labels]:
    """Ascending ids below n that `selector` admits."""
    for start in range(0, n, _CHUNK):
        ids = np.arange(start, min(start + _CHUNK, n))
        yield ids[is_member(selector, ids)]


def is_member(selector: faiss.IDSelector, ids: Labels) -> npt.NDArray[np.bool_]:
    """Which of some ids `selector` admits.

    FAISS has no call that applies a selector to many ids; a range search that finds every vector does so, for all
    selector classes, at C++ speed.
    """
    if isinstance(selector, faiss.IDSelectorRange):
        return (selector.imin <= ids) & (ids < selector.imax)
    members = np.zeros(len(ids), bool)
    stand_in = faiss.IndexFlatL2(1)
    stand_in.add(np.zeros((min(len(ids), _CHUNK), 1), np.float32))
    query = np.zeros((1, 1), np.float32)
    numbers = faiss.Int64Vector()
    for start in range(0, len(ids), _CHUNK):
        some = ids[start : start + _CHUNK]
        if len(some) < stand_in.ntotal:
            stand_in.remove_ids(faiss.IDSelectorRange(len(some), _CHUNK))
        faiss.copy_array_to_vector(some, numbers)
        params = faiss.SearchParameters(sel=faiss.IDSelectorTranslated(numbers, selector))
        # The C++ call: range_search itself takes no params once faiss.contrib.torch_utils is imported.
        result = faiss.RangeSearchResult(1)
        stand_in.range_search_c(1, faiss.swig_ptr(query), 1.0, result, params)
        n_found = int(faiss.rev_swig_ptr(result.lims, 2)[1])
        if n_found:
            members[start + faiss.rev_swig_ptr(result.labels, n_found)] = True
    return members
