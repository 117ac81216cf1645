"""The sizes that an index's bytes name, followed from field to field before FAISS reads them.

FAISS's reader allocates what a size field says before it finds the file too short, and reads what is mapped unseen. So
every size is compared here with what it must be and with the bytes that are left. Whether the values themselves make
sense, `check` asks of what FAISS has read. Of a class that is not known here FAISS reads the bytes by itself.

The format: faiss/impl/index_write.cpp.
"""

import struct
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from .trailer import Read

_AQ = faiss.AdditiveQuantizer
NORM_BITS = {
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
QUANTIZED_NORMS = (_AQ.ST_norm_cqint8, _AQ.ST_norm_cqint4, _AQ.ST_norm_lsq2x4, _AQ.ST_norm_rq2x4)
NORM_TABLES = (_AQ.ST_norm_lsq2x4, _AQ.ST_norm_rq2x4)
_FLAT = (b"IxFl", b"IxF2", b"IxFI")
_LINEAR = {b"rrot": "", b"LTra": "", b"PCAm": "<f?", b"PcAm": "<f?i", b"Pcam": "<ff?i", b"Viqm": "<ii"}
_PCA = (b"PCAm", b"PcAm", b"Pcam")
_MOST_TRANSFORMS = 1000
_MOST_EMPTY_LISTS = 1 << 24  # without a centre: 2.5 GiB of FAISS's empty vectors
_MOST_NESTED = 100  # indexes within one another; Python's stack is finite


class UnknownClass(Exception):
    """The bytes are of a class of FAISS's that is not followed here."""


def end_of_index(read: Read, end: int, name: str) -> int | None:
    """Where the index ends that begins at byte 0; None if it, or one within it, is of a class that is not known here.

    Raises
    ------
    RuntimeError
        If a size is wrong. It names the file, the field and the values.
    """
    walk = _Walk(read, end, name)
    try:
        walk.index()
    except UnknownClass:
        return None
    return walk.at


class _Walk:
    """Goes through an index's bytes, field by field."""

    def __init__(self, read: Read, end: int, name: str) -> None:
        self.read, self.end, self.name, self.at, self.depth = read, end, name, 0, 0

    def index(self) -> tuple[int, int]:
        """Go to the end of the index that begins here; its d and ntotal."""
        self.depth += 1
        self._expect(self.depth <= _MOST_NESTED, f"{self.depth} indexes within one another")
        kind = self._kind()
        if kind in _FLAT:
            found = self._flat()
        elif kind == b"IxRq":
            found = self._residual_quantizer()
        elif kind == b"IwRQ":
            found = self._lists()
        elif kind in (b"IxMp", b"IxM2"):
            found = self._id_map()
        elif kind == b"IxPT":
            found = self._pre_transform()
        elif kind == b"IxRF":
            found = self._refine()
        else:
            raise UnknownClass
        self.depth -= 1
        return found

    def _flat(self) -> tuple[int, int]:
        d, ntotal, _ = self._header()
        (n,) = self._take("<Q", "the size of the vectors")
        self._expect(n == ntotal * d, f"{n} values of {ntotal} vectors of d={d}")
        self._skip(4 * n, "the vectors")
        return d, ntotal

    def _id_map(self) -> tuple[int, int]:
        d, ntotal, _ = self._header()
        inner_d, inner = self.index()
        (n_ids,) = self._take("<Q", "the size of id_map")
        self._skip(8 * n_ids, "id_map")
        self._expect(inner_d == d, f"d is {d} in an IndexIDMap, {inner_d} in its index")
        self._expect(ntotal == inner == n_ids, f"ntotal is {ntotal}, of {n_ids} ids and {inner} vectors")
        return d, ntotal

    def _refine(self) -> tuple[int, int]:
        d, ntotal, _ = self._header()
        base, refine = self.index(), self.index()
        self._take("<f", "k_factor")
        self._expect(
            base == refine == (d, ntotal),
            f"d and ntotal are {d} and {ntotal} in an IndexRefine, {base} in base_index, {refine} in refine_index",
        )
        return d, ntotal

    def _pre_transform(self) -> tuple[int, int]:
        d, ntotal, _ = self._header()
        (n,) = self._take("<i", "the number of transforms")
        self._expect(0 <= n <= _MOST_TRANSFORMS, f"an IndexPreTransform of {n} transforms")
        for _ in range(n):
            self._transform()
        _, inner = self.index()
        self._expect(ntotal == inner, f"ntotal is {ntotal} in an IndexPreTransform, {inner} in its index")
        return d, ntotal

    def _transform(self) -> None:
        kind = self._kind()
        if kind in _LINEAR:
            self._take(_LINEAR[kind], "a transform")
            for what in ("mean", "eigenvalues", "PCAMat") if kind in _PCA else ():
                self._vector(what)
            self._take("<?", "have_bias")
            self._vector("A")
            self._vector("b")
        elif kind == b"VNrm":
            self._take("<f", "norm")
        elif kind in (b"VCnt", b"RmDT"):
            self._vector("mean or map")
        else:
            raise UnknownClass
        self._take("<ii?", "d_in, d_out and is_trained")

    def _vector(self, what: str) -> None:
        (n,) = self._take("<Q", f"the size of {what}")
        self._skip(4 * n, what)

    def _residual_quantizer(self) -> tuple[int, int]:
        d, ntotal, trained = self._header()
        expected = self._quantizer(d, trained)
        code_size, n_bytes = self._take("<QQ", "code_size and the size of codes")
        self._expect(code_size == expected, f"code_size is {code_size}, expected {expected} for rq.nbits")
        self._expect(n_bytes == ntotal * code_size, f"{n_bytes} bytes of codes for {ntotal} vectors of {code_size}")
        self._skip(n_bytes, "codes")
        return d, ntotal

    def _lists(self) -> tuple[int, int]:
        d, ntotal, trained = self._header()
        nlist, _ = self._take("<QQ", "nlist and nprobe")
        coarse_d, n_centres = self.index()
        self._expect(coarse_d == d, f"d is {d} in an index of lists, {coarse_d} in its coarse quantizer")
        most = n_centres or _MOST_EMPTY_LISTS
        self._expect(nlist <= most, f"nlist is {nlist}, the coarse quantizer has {n_centres} vectors")
        (map_type,) = self._take("<b", "the type of the direct map")
        self._skip(8 * self._take("<Q", "the size of the direct map")[0], "the direct map")
        if map_type == faiss.DirectMap.Hashtable:
            self._skip(16 * self._take("<Q", "the size of the direct map")[0], "the direct map")
        (code_size,) = self._take("<Q", "code_size")
        expected = self._quantizer(d, trained)
        self._expect(code_size == expected, f"code_size is {code_size}, expected {expected} for rq.nbits")
        self._take("<bi", "by_residual and use_precomputed_table")
        self._inverted_lists(nlist, code_size)
        return d, ntotal

    def _inverted_lists(self, nlist: int, code_size: int) -> None:
        if self._kind() != b"ilar":
            raise UnknownClass
        lists_nlist, lists_code_size = self._take("<QQ", "nlist and code_size of the lists")
        self._expect(lists_nlist == nlist, f"nlist is {nlist}, there are {lists_nlist} lists")
        self._expect(lists_code_size == code_size, f"code_size is {code_size}, {lists_code_size} in the lists")
        layout = self._kind()
        self._expect(layout in (b"full", b"sprs"), f"sizes of lists are stored as {layout!r}")
        (n,) = self._take("<Q", "the number of list sizes")
        sizes = self._array("<u8", n, "the sizes of lists")
        if layout == b"full":
            self._expect(n == nlist, f"{n} sizes of {nlist} lists")
        else:
            self._expect(n % 2 == 0, f"{n} numbers and sizes of lists")
            numbers, sizes = sizes[::2], sizes[1::2]
            self._expect(bool((numbers[1:] > numbers[:-1]).all()), "lists are not in order")
            self._expect(not len(numbers) or int(numbers[-1]) < nlist, f"a list beyond nlist={nlist}")
        self._skip(sum(sizes.tolist()) * (code_size + 8), "the lists")

    def _header(self) -> tuple[int, int, int]:
        d, ntotal, _, _, trained, metric = self._take("<iqqqBi", "the header")
        if metric > 1:
            self._take("<f", "metric_arg")
        self._expect(d > 0, f"d is {d}")
        self._expect(ntotal >= 0, f"ntotal is {ntotal}")
        self._expect(trained <= 1, f"is_trained is {trained}")
        self._expect(0 <= metric <= 100, f"metric_type is {metric}")
        return d, ntotal, trained

    def _quantizer(self, d: int, index_trained: int) -> int:
        """Go to the end of a residual quantizer; the bytes of a code."""
        rq_d, M, n_nbits = self._take("<QQQ", "rq.d, rq.M and the size of rq.nbits")
        self._expect(rq_d == d, f"rq.d is {rq_d}, d is {d}")
        self._expect(M > 0 and n_nbits == M, f"rq.nbits has {n_nbits} entries, rq.M is {M}")
        nbits = self._array("<u8", M, "rq.nbits").tolist()
        self._expect(min(nbits) >= 1 and max(nbits) <= 24, f"rq.nbits is {sorted(set(nbits))}")
        trained, n_codebooks = self._take("<BQ", "rq.is_trained and the size of rq.codebooks")
        self._expect(trained == index_trained, f"is_trained is {index_trained} and rq.is_trained is {trained}")
        expected = d * sum(1 << bits for bits in nbits)
        if trained or n_codebooks:
            self._expect(n_codebooks == expected, f"rq.codebooks has {n_codebooks} values, expected {expected}")
        self._skip(4 * n_codebooks, "rq.codebooks")
        search_type, _, _ = self._take("<iff", "rq.search_type, rq.norm_min and rq.norm_max")
        self._expect(search_type in NORM_BITS, f"rq.search_type is {search_type}")
        if search_type in QUANTIZED_NORMS:
            self._vector("rq.qnorm")
        if search_type in NORM_TABLES:
            self._vector("rq.norm_tabs")
        self._take("<ii", "rq.train_type and rq.max_beam_size")
        return (sum(nbits) + NORM_BITS[search_type] + 7) // 8

    def _kind(self) -> bytes:
        return struct.pack("<I", *self._take("<I", "a class"))

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
