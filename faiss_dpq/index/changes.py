"""All or nothing: a change that fails leaves an index, and every index within it, as they were before.

An exception may come at any moment: Ctrl-C between two calls of C++, no memory, a bad row in the last block. So what
each part holds is noted before a change, and put back after an exception. FAISS appends, so that codes, lists and maps
of ids are put back by cutting them to their old sizes.

A second exception while parts are put back can still tear them. So wrappers that put the parts' results together
refuse to search where the parts hold different numbers of vectors.
"""

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import faiss
import numpy as np

from .. import _kernels
from ..search.derived import Bytes
from ..search.selection import Labels

Result = TypeVar("Result")
Undo = Callable[[], None]

#: Fields of trained transforms that a training reads before it writes them: OPQMatrix starts from the A that it has,
#: ITQTransform and CenteringTransform add to their mean.
_MATRICES = ("A", "b", "mean")
_FEW_LISTS = 4  # whose sizes FAISS is asked for: less than it takes to find them all in memory


def _nothing() -> None:
    """No change is under way."""


class _Change:
    """A change that is under way: what is called within it, in this thread, is part of it."""


class _Open(threading.local):
    # A weak reference: an exception between two lines of `all_or_nothing` must not leave it open for ever.
    change: Callable[[], _Change | None] = staticmethod(_nothing)


_open = _Open()


def all_or_nothing(change: Callable[[], Result], note: Callable[[Any], Iterator[Undo]], index: Any) -> Result:
    """The result of `change`; if it raises, what `note` found in the index is put back first."""
    if under_way():
        return change()
    undos = list(note(index))
    this = _Change()
    try:
        _open.change = weakref.ref(this)
        return change()
    except BaseException:
        for undo in undos:
            undo()
        index.invalidate()
        raise
    finally:
        _open.change = _nothing


def completed(change: Callable[[], Result], finish: Callable[[], None]) -> Result:
    """The result of `change`, after which `finish` is called in any case; twice, since one call may be interrupted."""
    try:
        try:
            return change()
        finally:
            finish()
    finally:
        finish()


def under_way() -> bool:
    """Whether a change is under way in this thread."""
    return _open.change() is not None


def continued(is_part: bool, function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function in another thread, as a part of the change that is under way in the first if there is one."""
    this, before = _Change(), _open.change
    if is_part:
        _open.change = weakref.ref(this)
    try:
        return function(*arguments)
    finally:
        _open.change = before


def parts_of(index: faiss.Index) -> list[faiss.Index]:
    """The indexes within that hold an index's vectors, each as an object of its own class; none in most classes."""
    if isinstance(index, faiss.IndexIDMap | faiss.IndexPreTransform | faiss.IndexRowwiseMinMaxBase):
        parts = [index.index]
    elif isinstance(index, faiss.IndexRefine):
        parts = [index.base_index, index.refine_index]
    elif isinstance(index, faiss.IndexShards | faiss.IndexReplicas):
        parts = [index.at(i) for i in range(index.count())]
    else:
        return []
    return [part if type(part) is not faiss.Index else faiss.downcast_index(part) for part in parts]


# ---- what an addition changes ----------------------------------------------------------------------------------------


def contents(index: faiss.Index) -> Iterator[Undo]:
    """How to take away what will be added to an index and to those within it; the outermost count comes last."""
    parts = parts_of(index)
    for part in parts:
        yield from contents(part)
    if isinstance(index, faiss.IndexIVF):
        yield from _lists(index)
    elif isinstance(index, faiss.IndexFlatCodes):
        yield from _size(index.codes)
    elif not parts:
        yield from _last_vectors(index)
        return
    yield from _fields(index, "ntotal")
    if isinstance(index, faiss.IndexIDMap):
        yield from _ids(index)


def _size(vector: Any) -> Iterator[Undo]:
    size = vector.size()

    def undo() -> None:
        if vector.size() != size:
            vector.resize(size)

    yield undo


def _ids(index: faiss.IndexIDMap) -> Iterator[Undo]:
    yield from _size(index.id_map)
    if isinstance(index, faiss.IndexIDMap2):
        yield index.construct_rev_map


def _lists(index: faiss.IndexIVF) -> Iterator[Undo]:
    if index.invlists is None:
        return
    invlists = index.invlists
    if hasattr(type(index), "_sizes_before"):
        sizes_before = index._sizes_before = []  # it tells of the lists that it adds to, only
    else:
        numbers = np.arange(invlists.nlist)
        sizes_before = [(numbers, list_sizes(invlists, numbers))]
    kind = index.direct_map.type

    def undo() -> None:
        for numbers, sizes in reversed(sizes_before):
            grown = np.flatnonzero(list_sizes(invlists, numbers) != sizes)
            for number, size in zip(numbers[grown].tolist(), sizes[grown].tolist(), strict=True):
                invlists.resize(number, size)
        renew_direct_map(index, kind)

    yield undo


def renew_direct_map(index: faiss.IndexIVF, kind: int) -> None:
    """Make the map from ids to places in the lists anew, of a kind of faiss.DirectMap."""
    if kind != faiss.DirectMap.NoMap:
        index.set_direct_map_type(faiss.DirectMap.NoMap)
        index.set_direct_map_type(kind)


def whole_lists(index: faiss.IndexIVF, numbers: Labels) -> Iterator[Undo]:
    """How to put back all that some lists hold; a copy of them is kept."""
    invlists, ntotal, kind = index.invlists, index.ntotal, index.direct_map.type
    kept = [(number, *entries(invlists, number)) for number in np.asarray(numbers, np.int64).tolist()]

    def undo() -> None:
        for number, ids, codes in kept:
            invlists.resize(number, len(ids))
            invlists.update_entries(number, 0, len(ids), faiss.swig_ptr(ids), faiss.swig_ptr(codes))
        index.ntotal = ntotal
        renew_direct_map(index, kind)

    yield undo


def entries(invlists: faiss.InvertedLists, number: int) -> tuple[Labels, Bytes]:
    """Copies of a list's ids and codes."""
    n = invlists.list_size(number)
    if not n:
        return np.empty(0, np.int64), np.empty(0, np.uint8)
    ids, codes = invlists.get_ids(number), invlists.get_codes(number)
    try:
        return faiss.rev_swig_ptr(ids, n).copy(), faiss.rev_swig_ptr(codes, n * invlists.code_size).copy()
    finally:
        invlists.release_ids(number, ids)
        invlists.release_codes(number, codes)


def list_sizes(invlists: faiss.InvertedLists, numbers: Labels) -> Labels:
    """The number of vectors in some lists, whose numbers ascend."""
    if len(numbers) > _FEW_LISTS:
        specific = faiss.downcast_InvertedLists(invlists)
        if isinstance(specific, faiss.ArrayInvertedLists):
            return _kernels.ListReader(specific).open(numbers).sizes[numbers]
    return np.array([invlists.list_size(number) for number in numbers.tolist()], np.int64)


def _last_vectors(index: faiss.Index) -> Iterator[Undo]:
    """Of classes whose storage is not known here: graphs, FAISS's fast-scan codes."""
    ntotal = index.ntotal

    def undo() -> None:
        if index.ntotal == ntotal == 0:
            return
        if isinstance(index, faiss.MultiIndexQuantizer):
            index.ntotal = ntotal  # it holds no vectors, but counts the lists that its codebooks make
        elif ntotal == 0:
            index.reset()
        elif index.ntotal > ntotal:
            # FAISS removes nothing from some classes; wrappers refuse to search then.
            with contextlib.suppress(RuntimeError):
                index.remove_ids(faiss.IDSelectorRange(ntotal, index.ntotal))

    yield undo


# ---- what a training changes -----------------------------------------------------------------------------------------


def training(index: faiss.Index) -> Iterator[Undo]:
    """How to make an index, its transforms, its coarse quantizer and those within it what they were before `train`."""
    for part in parts_of(index):
        yield from training(part)
    if isinstance(index, faiss.IndexPreTransform):
        for i in range(index.chain.size()):
            yield from _transform(faiss.downcast_VectorTransform(index.chain.at(i)))
    if isinstance(index, faiss.IndexIVF):
        yield from _coarse_quantizer(index)
    yield from _quantizer(index)
    yield from _fields(index, "is_trained")


def _fields(owner: Any, *names: str) -> Iterator[Undo]:
    values = [getattr(owner, name) for name in names]

    def undo() -> None:
        for name, value in zip(names, values, strict=True):
            setattr(owner, name, value)

    yield undo


def _vector(vector: Any) -> Iterator[Undo]:
    values = faiss.vector_to_array(vector)
    yield lambda: faiss.copy_array_to_vector(values, vector)


def _transform(transform: faiss.VectorTransform) -> Iterator[Undo]:
    for name in _MATRICES:
        if hasattr(transform, name):
            yield from _vector(getattr(transform, name))
    yield from _fields(transform, "is_trained")


def _quantizer(index: faiss.Index) -> Iterator[Undo]:
    if isinstance(index, faiss.IndexResidualQuantizer | faiss.IndexIVFResidualQuantizer):
        yield from _vector(index.rq.codebooks)
        yield from _vector(index.rq.codebook_cross_products)
        yield from _vector(index.rq.centroid_norms)
        yield from _fields(index.rq, "is_trained", "norm_min", "norm_max")
    for name in getattr(index, "_python_state", ()):
        yield from _fields(index, name)


def _coarse_quantizer(index: faiss.IndexIVF) -> Iterator[Undo]:
    coarse = getattr(index, "_coarse_quantizer", None) or faiss.downcast_index(index.quantizer)
    if coarse is None or (coarse.is_trained and coarse.ntotal == index.nlist):
        return  # FAISS leaves it as it is
    yield from training(coarse)
    if isinstance(coarse, faiss.IndexFlatCodes):
        yield from _vector_of_codes(coarse)
    else:
        yield from contents(coarse)


def _vector_of_codes(coarse: faiss.IndexFlatCodes) -> Iterator[Undo]:
    ntotal, codes = coarse.ntotal, faiss.vector_to_array(coarse.codes)

    def undo() -> None:
        faiss.copy_array_to_vector(codes, coarse.codes)
        coarse.ntotal = ntotal

    yield undo
