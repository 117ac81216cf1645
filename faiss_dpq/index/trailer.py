r"""The trailer: what this package writes behind FAISS's bytes, which FAISS's readers do not look at.

    FAISS's bytes, the settings as JSON, "\nfaiss_dpq settings ", 8 digits, " crc32 ", 8 digits, "\n"

The digits are hexadecimal: the size of the JSON, and the CRC-32 of all bytes before them. Release 0.1 wrote:

    FAISS's bytes, "\nfaiss_dpq crc32 ", 8 digits, "\n"
"""

import json
import re
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

Read = Callable[[int, int], bytes]  # from a byte on, so many bytes

_END = re.compile(rb"\nfaiss_dpq settings ([0-9a-f]{8}) crc32 ([0-9a-f]{8})\n")
_END_SIZE = 44
_OLD_END = re.compile(rb"\nfaiss_dpq crc32 ([0-9a-f]{8})\n")
_OLD_END_SIZE = 26
_MARK = b"faiss_dpq"
_CHUNK = 1 << 24  # bytes read at a time for a checksum


class Trailer(NamedTuple):
    """A trailer that was found."""

    size: int
    settings: Any  # None in a file of release 0.1
    checksum: int
    n_checked: int  # bytes that the checksum is of


def make(settings: Any, checksum: int) -> bytes:
    """The trailer of bytes with a CRC-32."""
    text = json.dumps(settings, separators=(",", ":")).encode()
    head = text + b"\nfaiss_dpq settings %08x crc32 " % len(text)
    return head + b"%08x\n" % zlib.crc32(head, checksum)


def find(read: Read, size: int) -> Trailer | None:
    """The trailer at the end of `size` bytes; None if there is none.

    Raises
    ------
    ValueError
        If what is there is a damaged one.
    """
    end = read(max(0, size - _END_SIZE), min(size, _END_SIZE))
    if _MARK not in end:
        return None
    new, old = _END.fullmatch(end), _OLD_END.fullmatch(end[-_OLD_END_SIZE:])
    if old:
        return Trailer(_OLD_END_SIZE, None, int(old[1], 16), size - _OLD_END_SIZE)
    if not new:
        raise ValueError(f"the trailer is damaged: {end!r}")
    length = int(new[1], 16)
    if length + _END_SIZE > size:
        raise ValueError(f"the trailer is damaged: settings of {length} bytes, in {size} bytes in all")
    text = read(size - _END_SIZE - length, length)
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"the trailer is damaged: its settings are {text[:100]!r}") from None
    return Trailer(length + _END_SIZE, settings, int(new[2], 16), size - 9)


def checksum(read: Read, size: int) -> int:
    """The CRC-32 of so many bytes."""
    crc = 0
    for start in range(0, size, _CHUNK):
        crc = zlib.crc32(read(start, min(_CHUNK, size - start)), crc)
    return crc
