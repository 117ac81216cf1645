"""Reading, writing and copying indexes: FAISS's functions, giving back this package's classes.

The files are FAISS's own: a stock faiss.read_index opens what write_index wrote.
"""

import os
import tempfile
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from . import validate as _validate
from .flat import MAX_LEVELS, PYTHON_STATE, IndexDPQ
from .ivf import IndexIVFDPQ


def _is_ours(index: faiss.Index) -> bool:
    nbits = set(faiss.vector_to_array(index.rq.nbits).tolist())
    fits = len(nbits) == 1 and max(nbits) <= 12 and index.rq.M <= MAX_LEVELS
    return fits and index.metric_type in (faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT)


#: For FAISS's classes: which class of this package such an index becomes; None where it stays what it is.
#: `wrappers` adds its own.
DOWNCASTS: dict[type[faiss.Index], Callable[[Any], type[faiss.Index] | None]] = {
    faiss.IndexResidualQuantizer: lambda index: IndexDPQ if _is_ours(index) else None,
    faiss.IndexIVFResidualQuantizer: (
        lambda index: IndexIVFDPQ if _is_ours(index) and index.rq.norm_bits == 0 else None
    ),
}


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
    specific = index if type(index) is not faiss.Index else faiss.downcast_index(index)
    choose = DOWNCASTS.get(type(specific))
    ours_class = choose(specific) if choose else None
    if ours_class is None:
        return specific
    ours: Any = object.__new__(ours_class)
    ours.this = specific.this
    ours.referenced_objects = [index]
    return ours


def write_index(index: faiss.Index, f: Any, io_flags: int = 0) -> None:
    """faiss.write_index; given a path, the file appears whole or not at all (written aside, then renamed)."""
    if not isinstance(f, str | os.PathLike):
        faiss.write_index(index, f, io_flags)
        return
    path = os.path.abspath(os.fspath(f))
    handle, aside = tempfile.mkstemp(prefix=os.path.basename(path) + ".", dir=os.path.dirname(path))
    os.close(handle)
    try:
        faiss.write_index(index, aside, io_flags)
        _validate.seal(aside)
        _copy_mode(path, aside)
        os.replace(aside, path)
    except BaseException:
        os.unlink(aside)
        raise


def _copy_mode(path: str, aside: str) -> None:
    """The permissions that an ordinary write to `path` would leave: mkstemp's are the owner's alone."""
    if os.path.exists(path):
        mode = os.stat(path).st_mode & 0o7777
    else:
        umask = os.umask(0)
        os.umask(umask)
        mode = 0o666 & ~umask
    os.chmod(aside, mode)


def read_index(f: Any, io_flags: int = 0) -> faiss.Index:
    """faiss.read_index, then `downcast_index`."""
    f = os.fspath(f) if isinstance(f, os.PathLike) else f
    with _validate.reading(f, io_flags):
        return _validate.checked(downcast_index(faiss.read_index(f, io_flags)))


def serialize_index(index: faiss.Index, io_flags: int = 0) -> npt.NDArray[np.uint8]:
    """faiss.serialize_index: the bytes of the file, as an array."""
    return faiss.serialize_index(index, io_flags)


def deserialize_index(data: npt.NDArray[np.uint8], io_flags: int = 0) -> faiss.Index:
    """faiss.deserialize_index, then `downcast_index`."""
    with _validate.reading(data, io_flags):
        return _validate.checked(downcast_index(faiss.deserialize_index(data, io_flags)))


def clone_index(index: faiss.Index) -> faiss.Index:
    """faiss.clone_index, then `downcast_index`; what files do not hold (`levels`, weights) is kept, in wrappers too."""
    clone = downcast_index(faiss.clone_index(index))
    set_python_state(clone, python_state(index))
    return clone


def python_state(index: faiss.Index) -> tuple[dict[str, Any], list[Any]]:
    """What only the Python objects of an index and of the indexes within it know, and FAISS's files do not hold."""
    own = {name: getattr(index, name) for name in PYTHON_STATE if hasattr(index, name)}
    return own, [python_state(inner) for inner in _inner_indexes(index)]


def set_python_state(index: faiss.Index, state: tuple[dict[str, Any], list[Any]]) -> None:
    """Give a copy of an index what `python_state` found in the original."""
    own, inner_states = state
    for name, value in own.items():
        setattr(index, name, value)
    for inner, inner_state in zip(_inner_indexes(index), inner_states, strict=False):
        set_python_state(inner, inner_state)


def _inner_indexes(index: faiss.Index) -> list[faiss.Index]:
    if isinstance(index, IndexIVFDPQ):
        return [index._coarse_quantizer]
    inner_indexes = getattr(index, "_inner_indexes", None)
    return inner_indexes() if inner_indexes else []
