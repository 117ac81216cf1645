"""Is it a whole, consistent index? Asked of files and bytes before FAISS reads them.

FAISS's reader trusts the sizes that a file names (older releases more than newer ones): a few changed bits make it
allocate terabytes or leave an index whose parts do not fit together. So, before it reads:

1. A file of `write_index` ends with a checksum of everything before it, which FAISS's reader does not look at. Any
   other change than the loss of the checksum itself is found by it.
2. The parts of a residual quantizer, alone or within an IDMap, are walked through, from field to field, and compared
   with one another and with the size of the whole; so are files that FAISS wrote, without a checksum.

All else that FAISS can read is left to FAISS. Formats: faiss/impl/index_write.cpp.
"""

import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import faiss
import numpy as np
import numpy.typing as npt

from .quantized import shrinkage_of

_SEAL = b"\nfaiss_dpq crc32 "  # then eight hexadecimal digits and a line feed
_SEAL_SIZE = len(_SEAL) + 9
_CHUNK = 1 << 24  # bytes read at a time for a checksum

# Of several bits each; older releases have the first only.
_MAPPING_FLAGS = [getattr(faiss, name) for name in ("IO_FLAG_MMAP", "IO_FLAG_MMAP_IFC") if hasattr(faiss, name)]

_AQ = faiss.AdditiveQuantizer
_NORM_BITS = {
    _AQ.ST_decompress: 0,
    _AQ.ST_LUT_nonorm: 0,
    _AQ.ST_norm_from_LUT: 0,
    _AQ.ST_norm_float: 32,
    _AQ.ST_norm_qint8: 8,
    _AQ.ST_norm_qint4: 4,
    _AQ.ST_norm_cqint8: 8,
    _AQ.ST_norm_cqint4: 4,
    _AQ.ST_norm_lsq2x4: 8,
    _AQ.ST_norm_rq2x4: 8,
}
_QUANTIZED_NORMS = (_AQ.ST_norm_cqint8, _AQ.ST_norm_cqint4, _AQ.ST_norm_lsq2x4, _AQ.ST_norm_rq2x4)
_NORM_TABLES = (_AQ.ST_norm_lsq2x4, _AQ.ST_norm_rq2x4)


Read = Callable[[int, int], bytes]  # from a byte on, so many bytes


def seal(path: str) -> None:
    """Append the checksum of a file to it."""
    with open(path, "r+b") as file:
        checksum = _checksum(_reader(file), file.seek(0, os.SEEK_END))
        file.seek(0, os.SEEK_END)
        file.write(checksum)


def _reader(file: BinaryIO) -> Read:
    def read(at: int, n: int) -> bytes:
        file.seek(at)
        return file.read(n)

    return read


def _checksum(read: Read, size: int) -> bytes:
    crc = 0
    for start in range(0, size, _CHUNK):
        crc = zlib.crc32(read(start, min(_CHUNK, size - start)), crc)
    return _SEAL + b"%08x\n" % crc


@contextmanager
def reading(source: Any, io_flags: int = 0) -> Iterator[None]:
    """Check `source`, and turn a failure to allocate what it asks for into the RuntimeError of a corrupt file.

    Parameters
    ----------
    source : str, array of uint8, or faiss.IOReader
        A path, or the bytes. Of a reader nothing is known beforehand.
    io_flags : int
        Those of faiss.read_index. The checksum of a file to be mapped is not computed, since that would read it all.

    Raises
    ------
    RuntimeError
        If it is corrupt or truncated.
    """
    name = source if isinstance(source, str) else "the data"
    if isinstance(source, str):
        mapped = any(io_flags & flag == flag for flag in _MAPPING_FLAGS)
        _check_file(source, mapped)
    elif isinstance(source, np.ndarray):
        _check(lambda at, n: source[at : at + n].tobytes(), source.nbytes, name, mapped=False)
    try:
        yield
    except MemoryError as error:
        raise RuntimeError(f"{name}: corrupt, or too large an index for this machine's memory") from error


def _check_file(path: str, mapped: bool) -> None:
    # What is not there or cannot be read twice (a pipe), FAISS complains about or reads itself.
    if not os.path.exists(path) or not stat.S_ISREG(os.stat(path).st_mode):
        return
    with open(path, "rb") as file:
        _check(_reader(file), file.seek(0, os.SEEK_END), path, mapped)


def _check(read: Read, size: int, name: str, mapped: bool) -> None:
    """Raise a RuntimeError if these bytes are an index of ours that is damaged."""
    end = size
    last = read(size - _SEAL_SIZE, _SEAL_SIZE) if size > _SEAL_SIZE else b""
    # A few of its bytes will do: a damaged checksum must not pass for none.
    if any(_SEAL[at : at + 4] in last for at in range(len(_SEAL) - 3)):
        end -= _SEAL_SIZE
        if not mapped and last != _checksum(read, end):
            raise RuntimeError(f"{name}: corrupt: the checksum at its end is not that of its {end} bytes")
    walk = _Walk(read, end, name)
    if walk.index() is not None and walk.at != end:
        raise RuntimeError(f"{name}: corrupt: {end - walk.at} bytes follow the index, which ends at byte {walk.at}")


def checked(index: faiss.Index | None) -> faiss.Index:
    """The index, if its parts fit together: no walk has been through what FAISS took from a reader of the user's.

    FAISS writes None, too, and gives None for it.

    Raises
    ------
    RuntimeError
        If it is a residual quantizer that FAISS made of a damaged file.
    """
    if index is None:
        return None
    inner = index
    while hasattr(inner, "index"):  # an IDMap or a PreTransform
        outer, inner = inner, faiss.downcast_index(inner.index)
        if isinstance(outer, faiss.IndexIDMap) and (outer.d, outer.ntotal) != (inner.d, inner.ntotal):
            raise RuntimeError(
                f"the index read is corrupt: an IDMap of {outer.ntotal} vectors of d={outer.d} "
                f"around {inner.ntotal} of d={inner.d}"
            )
    if isinstance(inner, faiss.IndexResidualQuantizer | faiss.IndexIVFResidualQuantizer):
        damage = _damage(inner)
        if damage:
            raise RuntimeError(f"the index read is corrupt: {damage}")
    return index


def _damage(index: faiss.IndexResidualQuantizer | faiss.IndexIVFResidualQuantizer) -> str | None:
    """What does not fit together in it."""
    rq = index.rq
    codebooks = faiss.rev_swig_ptr(rq.codebooks.data(), rq.codebooks.size()) if rq.codebooks.size() else np.empty(0)
    if not np.isfinite(codebooks).all():
        return "rq.codebooks has NaN or infinite values"
    if index.is_trained != rq.is_trained:
        return f"is_trained is {index.is_trained} and rq.is_trained is {rq.is_trained}"
    if index.is_trained and codebooks.size != index.d * rq.total_codebook_size:
        return f"rq.codebooks has {codebooks.size} values, expected {index.d * rq.total_codebook_size}"
    if not 0 < shrinkage_of(rq) <= 1:
        return f"rq.norm_max, the shrinkage, is {rq.norm_max}"
    flat = isinstance(index, faiss.IndexResidualQuantizer)
    if flat and index.codes.size() != index.ntotal * index.code_size:
        return f"{index.codes.size()} bytes of codes for {index.ntotal} vectors of {index.code_size}"
    return _search_type_damage(rq.search_type, rq.train_type)


def _search_type_damage(search_type: int, train_type: int) -> str | None:
    if search_type not in _NORM_BITS:
        return f"rq.search_type is {search_type}"
    # FAISS would abort the process when it misses the tables in a search.
    if search_type == _AQ.ST_norm_from_LUT and train_type & faiss.ResidualQuantizer.Skip_codebook_tables:
        return f"rq.train_type {train_type} skips the tables that rq.search_type {search_type} needs"
    return None


class _Walk:
    """Goes through an index's bytes, field by field."""

    def __init__(self, read: Read, end: int, name: str) -> None:
        self.read, self.end, self.name, self.at = read, end, name, 0

    def index(self) -> int | None:
        """Check the index that begins here and go to its end; its ntotal, or None if it is of another class."""
        kind = self.read(self.at, min(4, self.end - self.at))
        if kind == b"IxRq":
            self.at += 4
            return self._residual_quantizer()
        if kind in (b"IxMp", b"IxM2"):
            self.at += 4
            return self._id_map()
        return None

    def _id_map(self) -> int | None:
        d, ntotal, _, _ = self._header()
        start = self.at
        inner = self.index()
        if inner is None:
            return None
        (inner_d,) = struct.unpack("<i", self.read(start + 4, 4))
        self._expect(inner_d == d, f"d is {d} in an IndexIDMap, {inner_d} in its index")
        (n_ids,) = self._take("<Q", "the size of id_map")
        self._skip(8 * n_ids, "id_map")
        self._expect(ntotal == inner == n_ids, f"ntotal is {ntotal}, of {n_ids} ids and {inner} vectors")
        return ntotal

    def _residual_quantizer(self) -> int:
        d, ntotal, trained, _ = self._header()
        nbits, rq_trained, search_type = self._additive_quantizer(d)
        train_type, beam_size = self._take("<ii", "rq.train_type and rq.max_beam_size")
        search_damage = _search_type_damage(search_type, train_type)
        self._expect(search_damage is None, str(search_damage))
        self._expect(beam_size > 0, f"rq.max_beam_size is {beam_size}")
        self._expect(trained == rq_trained, f"is_trained is {trained} and rq.is_trained is {rq_trained}")
        code_size, n_bytes = self._take("<QQ", "code_size and the size of codes")
        expected = (sum(nbits) + _NORM_BITS[search_type] + 7) // 8
        self._expect(code_size == expected, f"code_size is {code_size}, expected {expected} for nbits {nbits}")
        self._expect(n_bytes == ntotal * code_size, f"{n_bytes} bytes of codes for {ntotal} vectors of {code_size}")
        self._skip(n_bytes, "codes")
        return ntotal

    def _header(self) -> tuple[int, int, int, int]:
        d, ntotal, _, _, trained, metric = self._take("<iqqqBi", "the header")
        if metric > 1:
            self._take("<f", "metric_arg")
        self._expect(d > 0, f"d is {d}")
        self._expect(ntotal >= 0, f"ntotal is {ntotal}")
        self._expect(trained <= 1, f"is_trained is {trained}")
        self._expect(0 <= metric <= 100, f"metric_type is {metric}")
        return d, ntotal, trained, metric

    def _additive_quantizer(self, d: int) -> tuple[list[int], int, int]:
        rq_d, M, n_nbits = self._take("<QQQ", "rq.d, rq.M and the size of rq.nbits")
        self._expect(rq_d == d, f"rq.d is {rq_d}, d is {d}")
        self._expect(M > 0 and n_nbits == M, f"rq.nbits has {n_nbits} entries, rq.M is {M}")
        nbits = self._array("<u8", M, "rq.nbits").tolist()
        self._expect(min(nbits) >= 1 and max(nbits) <= 24, f"rq.nbits is {sorted(set(nbits))}")
        trained, n_codebooks = self._take("<BQ", "rq.is_trained and the size of rq.codebooks")
        self._expect(trained <= 1, f"rq.is_trained is {trained}")
        codebooks = self._array("<f4", n_codebooks, "rq.codebooks")
        expected = d * sum(1 << bits for bits in nbits)
        if trained or n_codebooks:
            self._expect(n_codebooks == expected, f"rq.codebooks has {n_codebooks} values, expected {expected}")
        self._expect(bool(np.isfinite(codebooks).all()), "rq.codebooks has NaN or infinite values")
        search_type, _, _ = self._take("<iff", "rq.search_type, rq.norm_min and rq.norm_max")
        self._expect(search_type in _NORM_BITS, f"rq.search_type is {search_type}")
        if search_type in _QUANTIZED_NORMS:
            self._skip(4 * self._take("<Q", "the size of rq.qnorm")[0], "rq.qnorm")
        if search_type in _NORM_TABLES:
            self._skip(4 * self._take("<Q", "the size of rq.norm_tabs")[0], "rq.norm_tabs")
        return nbits, trained, search_type

    def _take(self, layout: str, what: str) -> tuple[Any, ...]:
        size = struct.calcsize(layout)
        return struct.unpack(layout, self.read(self._skip(size, what), size))

    def _array(self, dtype: str, n: int, what: str) -> npt.NDArray[Any]:
        size = n * np.dtype(dtype).itemsize
        return np.frombuffer(self.read(self._skip(size, what), size), dtype)

    def _skip(self, n: int, what: str) -> int:
        """Go n bytes on; where they begin."""
        start, left = self.at, self.end - self.at
        if n > left:
            raise RuntimeError(
                f"{self.name}: truncated or corrupt: {what} would take {n} bytes from byte {start} on, {left} are left"
            )
        self.at += n
        return start

    def _expect(self, condition: bool, found: str) -> None:
        if not condition:
            raise RuntimeError(f"{self.name}: corrupt, before byte {self.at}: {found}")
