"""Reading, writing and copying indexes: FAISS's functions, giving back this package's classes.

The files are FAISS's own: a stock faiss.read_index opens what write_index wrote.
"""

import os
import tempfile
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from . import validate as _validate
from .base import python_state, set_python_state
from .registry import downcast_index


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
