"""Reading an index that may be damaged, or made to do harm.

1. The trailer's checksum is compared, where there is a trailer, and `walk` follows the sizes.
2. FAISS reads. No vector may take more than half of the machine's memory: FAISS's own limits say so.
3. What follows FAISS's bytes must be the trailer, or nothing.
4. `check` asks whether what was read fits together.
5. The trailer's settings are set.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO

import faiss
import numpy as np

from ..codec import threads
from . import trailer as trailers
from .check import check
from .registry import downcast_index
from .settings import set_settings
from .trailer import Read, Trailer
from .walk import end_of_index

_MAPPING_FLAGS = faiss.IO_FLAG_MMAP, faiss.IO_FLAG_MMAP_IFC  # of several bits each
_SKIPPING_FLAGS = faiss.IO_FLAG_SKIP_IVF_DATA | faiss.IO_FLAG_SKIP_STORAGE
_LONGEST_TRAILER = 1 << 20  # in a pipe
_LOOP_BYTES = 256  # of what FAISS makes for each turn of a loop whose length a file says


@threads.without_openmp()
def read(source: Any, io_flags: int) -> faiss.Index:
    """The index in a file, an array of bytes, or a faiss.IOReader; of this package's class if there is one for it.

    The checksum of a file that is to be mapped is not compared, since that would read it all. Of a reader of the user's
    neither a trailer nor an end is known: other data may follow.

    Raises
    ------
    RuntimeError
        If it is damaged, or is no index. It names the file, the part and the values.
    """
    if isinstance(source, str):
        return _read_file(source, io_flags)
    if isinstance(source, np.ndarray):
        return _read_bytes(source, io_flags)
    name = "the reader"
    with _faiss_reads(name):
        return _finished(faiss.read_index(source, io_flags), None, name)


def _read_file(path: str, io_flags: int) -> faiss.Index:
    is_regular = os.path.exists(path) and stat.S_ISREG(os.stat(path).st_mode)
    mapped = any(io_flags & flag == flag for flag in _MAPPING_FLAGS)
    found = None
    if is_regular:
        with open(path, "rb") as file:
            found = _examine(_reader(file), file.seek(0, os.SEEK_END), path, mapped)
    if mapped and not _faiss_opens(path):
        raise RuntimeError(
            f"{path!r}: FAISS maps no file of this name, which is not valid UTF-8; read it without mapping"
        )
    with _faiss_reads(path), contextlib.ExitStack() as opened:
        if io_flags & faiss.IO_FLAG_MMAP_IFC == faiss.IO_FLAG_MMAP_IFC:
            if is_regular:
                _try_mapping(path, io_flags, found)
            return _finished(faiss.read_index(path, io_flags), found, path)
        if _faiss_opens(path):
            reader = faiss.FileIOReader(path)
        else:
            reader = faiss.PyCallbackIOReader(opened.enter_context(open(path, "rb")).read)
        index = faiss.read_index(reader, io_flags)
        if not is_regular:  # a pipe, which is read once
            found = _trailer_in(reader.read_bytes(_LONGEST_TRAILER), path)
        elif mapped or not io_flags & _SKIPPING_FLAGS:
            _check_rest(reader, found, path)
        return _finished(index, found, path)


def _faiss_opens(path: str) -> bool:
    """Whether FAISS can be told a file's name: SWIG takes no bytes that are not UTF-8, and C ends it at a zero."""
    try:
        return b"\0" not in path.encode()
    except UnicodeEncodeError:
        return False


def _try_mapping(path: str, io_flags: int, found: Trailer | None) -> None:
    """Let FAISS read a file that is to be mapped by its reader of memory, which copies no large vector either.

    The reader of mapped files of FAISS 1.15 goes on beyond the end of a file that is cut, and writes where it must not.
    """
    mapped = np.memmap(path, np.uint8, "r")
    reader = faiss.ZeroCopyIOReader(faiss.swig_ptr(mapped), len(mapped))
    faiss.read_index(reader, io_flags | faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE)
    _check_rest(reader, found, path)


def _read_bytes(data: Any, io_flags: int) -> faiss.Index:
    name = "the data"
    found = _examine(lambda at, n: data[at : at + n].tobytes(), data.nbytes, name, mapped=False)
    reader = faiss.VectorIOReader()
    faiss.copy_array_to_vector(data, reader.data)
    with _faiss_reads(name):
        index = faiss.read_index(reader, io_flags)
        if not io_flags & _SKIPPING_FLAGS:
            _check_rest(reader, found, name)
        return _finished(index, found, name)


def _reader(file: BinaryIO) -> Read:
    def read(at: int, n: int) -> bytes:
        file.seek(at)
        return file.read(n)

    return read


def _examine(read: Read, size: int, name: str, mapped: bool) -> Trailer | None:
    """The trailer of these bytes, after a look at them before FAISS reads them."""
    if size == 0:
        raise RuntimeError(f"{name}: empty, expected an index")
    try:
        found = trailers.find(read, size)
    except ValueError as error:
        raise RuntimeError(f"{name}: corrupt: {error}") from None
    if found and not mapped and trailers.checksum(read, found.n_checked) != found.checksum:
        raise RuntimeError(f"{name}: corrupt: the checksum at its end is not that of its {found.n_checked} bytes")
    end = size - (found.size if found else 0)
    index_end = end_of_index(read, end, name)
    if index_end not in (None, end):
        raise RuntimeError(f"{name}: corrupt: {end - index_end} bytes follow the index, which ends at byte {index_end}")
    return found


def _check_rest(reader: faiss.IOReader, found: Trailer | None, name: str) -> None:
    expected = found.size if found else 0
    rest = len(reader.read_bytes(expected + 1))
    if rest != expected:
        raise RuntimeError(
            f"{name}: corrupt: {'more than ' * (rest > expected)}{expected if rest > expected else rest} bytes follow "
            f"the index, expected {expected}"
        )


def _trailer_in(rest: bytes, name: str) -> Trailer | None:
    try:
        found = trailers.find(lambda at, n: rest[at : at + n], len(rest))
    except ValueError as error:
        raise RuntimeError(f"{name}: corrupt: {error}") from None
    if len(rest) != (found.size if found else 0):
        raise RuntimeError(f"{name}: corrupt: {len(rest)} bytes follow the index, which are not a trailer")
    return found


def _finished(index: faiss.Index | None, found: Trailer | None, name: str) -> faiss.Index | None:
    if index is None:  # FAISS writes None, too, and gives None for it
        return None
    check(index, name)
    ours = downcast_index(index)
    if found and found.settings is not None:
        try:
            set_settings(ours, found.settings)
        except RuntimeError as error:
            raise RuntimeError(f"{name}: corrupt: {error}") from None
    return ours


@contextlib.contextmanager
def _faiss_reads(name: str) -> Iterator[None]:
    """Let FAISS's errors name the file, and its limits hold."""
    with _limits():
        try:
            yield
        except MemoryError as error:
            raise RuntimeError(f"{name}: corrupt, or too large an index for this machine's memory") from error
        except RuntimeError as error:
            raise error if name in str(error) else RuntimeError(f"{name}: {error}") from error


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    # FAISS's limits are of the whole process. So they are set to what no whole index comes near to: other threads may
    # be reading larger ones than this.
    if not hasattr(os, "sysconf"):
        yield
        return
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    n_bytes, n_turns = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
    faiss.set_deserialization_vector_byte_limit(min(n_bytes or most, most))
    faiss.set_deserialization_loop_limit(min(n_turns or most, most // _LOOP_BYTES))
    try:
        yield
    finally:
        faiss.set_deserialization_vector_byte_limit(n_bytes)
        faiss.set_deserialization_loop_limit(n_turns)
