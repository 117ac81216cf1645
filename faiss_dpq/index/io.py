"""Reading, writing and copying indexes: FAISS's functions, giving back this package's classes.

The files are FAISS's own, with a trailer that FAISS does not look at: a stock faiss.read_index opens them.
"""

import copy
import os
import zlib
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from . import reading, trailer, writing
from .arguments import require_index
from .base import Base
from .registry import downcast_index
from .settings import python_state, set_state, settings_of

_PIECE = 1 << 20  # bytes that FAISS hands over at a time


def write_index(index: faiss.Index, f: Any, io_flags: int = 0) -> None:
    """faiss.write_index; given a path, the file appears whole or not at all, and holds all settings of the index.

    What exists at the path is respected: links are followed, devices and pipes written straight, owner and permissions
    kept. What goes to a faiss.IOWriter is FAISS's bytes alone, since another index may follow.

    Parameters
    ----------
    index : faiss.Index
        Any index, of this package or FAISS's.
    f : str, bytes, os.PathLike or faiss.IOWriter
        Where to write.
    io_flags : int
        FAISS's.

    Raises
    ------
    OSError
        If the file cannot be written.
    RuntimeError
        If FAISS has no file format for the index.
    """
    _require("write_index", "f", f, "a path or a faiss.IOWriter")
    _prepare(index)
    if isinstance(f, str | bytes | os.PathLike):
        writing.write(os.fsdecode(f), lambda file: _write_with_trailer(index, file.write, io_flags))
    else:
        faiss.write_index(index, f, io_flags)


def _require(function: str, name: str, value: Any, expected: str) -> None:
    """Refuse None, which SWIG would take for a pointer."""
    if value is None:
        raise TypeError(f"{function}: {name} is None, expected {expected}")


def _write_with_trailer(index: faiss.Index, write: Callable[[bytes], Any], io_flags: int) -> None:
    crc = 0

    def write_piece(piece: bytes) -> None:
        nonlocal crc
        crc = zlib.crc32(piece, crc)
        write(piece)

    faiss.write_index(index, faiss.PyCallbackIOWriter(write_piece, _PIECE), io_flags)
    write(trailer.make(settings_of(index), crc))


def _prepare(index: faiss.Index) -> None:
    ours = downcast_index(index) if isinstance(index, faiss.Index) else index
    if isinstance(ours, Base):
        ours._prepare_writing()


def read_index(f: Any, io_flags: int = 0) -> faiss.Index:
    """faiss.read_index, then `downcast_index`; with the settings that `write_index` put into the file.

    Parameters
    ----------
    f : str, bytes, os.PathLike or faiss.IOReader
        What to read.
    io_flags : int
        FAISS's: with faiss.IO_FLAG_MMAP_IFC, codes stay in the file, the index cannot be changed, and the checksum is
        not compared.

    Returns
    -------
    index : faiss.Index
        Of this package's class where there is one, else of FAISS's.

    Raises
    ------
    RuntimeError
        If the file is damaged, or is no index. It names the file, the part and the values.
    """
    _require("read_index", "f", f, "a path or a faiss.IOReader")
    return reading.read(os.fsdecode(f) if isinstance(f, bytes | os.PathLike) else f, io_flags)


def serialize_index(index: faiss.Index, io_flags: int = 0) -> npt.NDArray[np.uint8]:
    """faiss.serialize_index: the bytes of the file, as an array; FAISS's deserialize_index reads them too.

    Parameters
    ----------
    index : faiss.Index
        Any index, of this package or FAISS's.
    io_flags : int
        FAISS's.

    Returns
    -------
    data : array, shape (number of bytes,), uint8

    Raises
    ------
    RuntimeError
        If FAISS has no file format for the index.
    """
    _prepare(index)
    plain = faiss.serialize_index(index, io_flags)
    end = trailer.make(settings_of(index), zlib.crc32(plain))
    return np.concatenate([plain, np.frombuffer(end, np.uint8)])


def deserialize_index(data: npt.NDArray[np.uint8] | bytes | bytearray | memoryview, io_flags: int = 0) -> faiss.Index:
    """faiss.deserialize_index, then `downcast_index`; with the settings that `serialize_index` put into the bytes.

    Parameters
    ----------
    data : array, shape (number of bytes,), uint8; or bytes, bytearray, memoryview
    io_flags : int
        FAISS's.

    Returns
    -------
    index : faiss.Index
        Of this package's class where there is one, else of FAISS's.

    Raises
    ------
    RuntimeError
        If the bytes are damaged, or are no index.
    TypeError
        If `data` is anything else.
    """
    if isinstance(data, bytes | bytearray | memoryview):
        data = np.frombuffer(data, np.uint8)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 1:
        came = f"{data.dtype} array of shape {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise TypeError(f"deserialize_index: data is a {came}, expected uint8, shape (number of bytes,)")
    return reading.read(np.ascontiguousarray(data), io_flags)


def clone_index(index: faiss.Index) -> faiss.Index:
    """faiss.clone_index, then `downcast_index`; all settings are kept, in wrappers too.

    Parameters
    ----------
    index : faiss.Index
        Any index, of this package or FAISS's.

    Returns
    -------
    clone : faiss.Index
        An index of the same class that shares nothing with it.

    Raises
    ------
    RuntimeError
        If FAISS cannot clone an index of this class.
    """
    require_index(index, "clone_index: index")
    try:
        clone = downcast_index(faiss.clone_index(index))
    except RuntimeError as error:
        # FAISS cannot clone shards, replicas and some transforms.
        ours = downcast_index(index)
        if "clone not supported" not in str(error) or not isinstance(ours, Base):
            raise
        return copy.deepcopy(ours)
    set_state(clone, python_state(index))
    return clone
