"""Parts: a range of rows becomes a file of codes. This is what runs on other machines."""

import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, BinaryIO

import numpy as np

from ..index import writing
from ..search.selection import Labels
from . import codec
from .codec import Bytes
from .folder import FORMAT, BuildFolder
from .plan import Part
from .records import Refused, check_file, checksum, write_record


def encode_part(folder: BuildFolder, part: Part) -> dict[str, Any]:
    """Encode the rows of a part, and write down that it is done. A part that is done already is left alone.

    It may run anywhere that reads the sources and writes to the folder under the same paths, and several times at once.
    Memory is needed for the codes of the part, and for 65,536 of its vectors.

    Parameters
    ----------
    folder : BuildFolder
        From `open_build`.
    part : Part
        From `plan_parts`.

    Returns
    -------
    record : dict
        What the part's JSON file says.

    Raises
    ------
    ValueError
        If a row holds NaN or infinity; the error says which.
    RuntimeError
        If the source has changed since the plan was made, or the build is one of another version of this package.
    OSError
        If something cannot be read or written.
    """
    folder.check_version()
    path = folder.part_record(part.number)
    done = folder.record(path)
    if done is not None:
        return done
    _check_unchanged(part)
    index = codec.shared_trained(folder.trained, folder.codec)
    codes = np.empty((len(part), index.sa_code_size()), np.uint8)
    at = 0
    for x in part.source.blocks(part.start, part.stop):
        codes[at : at + len(x)] = index.sa_encode(x)
        at += len(x)
    # Under a name of its own: whoever else encodes this part writes the same bytes to another file.
    name = f"part-{part.number:07d}-{secrets.token_hex(8)}.codes"
    attempt = os.path.join(folder.parts, name)
    ids = None if part.ids is None else np.ascontiguousarray(part.ids, np.int64)

    def produce(file: BinaryIO) -> None:
        file.write(codes.data)
        if ids is not None:
            file.write(ids.data)

    writing.write(attempt, produce)
    record = {
        "format": FORMAT,
        **folder.marks(),
        "part": part.number,
        "source": part.source.name,
        "rows": [part.start, part.stop],
        "first": part.first,
        "file": name,
        "code_size": codes.shape[1],
        "ids": ids is not None,
        "bytes": os.path.getsize(attempt),
        "sha256": checksum(attempt),
    }
    write_record(path, record)
    return record


def _check_unchanged(part: Part) -> None:
    source, known = part.source, part.description
    if "size" not in known:  # an array, whose rows came with the part
        return
    found = source.fingerprint()
    changed = [f"{key} was {known[key]}, is {found[key]}" for key in found if found[key] != known[key]]
    if changed:
        raise Refused(f"{source.name}: has changed since the build began: {'; '.join(changed)}")


class DonePart:
    """The codes of a part that is done.

    Raises
    ------
    RuntimeError
        If it is missing or damaged. Its record is then removed, so that the next run encodes the part anew.
    """

    def __init__(self, folder: BuildFolder, number: int, *, contents: bool = True) -> None:
        record = folder.record(folder.part_record(number))
        if record is None:
            raise Refused(f"{folder.part_record(number)}: missing")
        path = os.path.join(folder.parts, record["file"])
        try:
            check_file(path, record, contents=contents)
        except Refused as error:
            with suppress(FileNotFoundError):
                os.unlink(folder.part_record(number))
            start, stop = record["rows"]
            raise Refused(
                f"part {number} (rows {start} to {stop} of {record['source']}): {error}; the same build, run again, "
                "encodes it anew"
            ) from None
        self.first, self._has_ids = record["first"], record["ids"]
        self._n, self._code_size, self._path = record["rows"][1] - record["rows"][0], record["code_size"], path

    def blocks(self, start: int, stop: int, rows: int) -> Iterator[tuple[Bytes, Labels]]:
        """Codes and ids of some of the part's rows, counted from 0; so many at a time."""
        size = self._n * self._code_size
        for begin in range(start, stop, rows):
            end = min(begin + rows, stop)
            data = np.memmap(self._path, np.uint8, "r")
            codes = np.array(data[begin * self._code_size : end * self._code_size]).reshape(-1, self._code_size)
            if self._has_ids:
                ids = np.frombuffer(data[size + 8 * begin : size + 8 * end].tobytes(), np.int64)
            else:
                ids = np.arange(self.first + begin, self.first + end)
            yield codes, ids
