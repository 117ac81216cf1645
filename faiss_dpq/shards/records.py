"""Small files that say what is done: JSON, written whole or not at all; and checksums of large files."""

import hashlib
import json
import os
from typing import Any, BinaryIO

from ..index import writing

_CHUNK = 1 << 20


class Refused(RuntimeError):
    """What no repetition mends: files that do not belong together, or are damaged."""


def write_record(path: str, record: dict[str, Any]) -> None:
    """Write a record as JSON; the file appears whole or not at all."""
    text = json.dumps(record, indent=1) + "\n"

    def produce(file: BinaryIO) -> None:
        file.write(text.encode())

    writing.write(path, produce)


def read_record(path: str) -> dict[str, Any]:
    """The record in a file.

    Raises
    ------
    FileNotFoundError
        If there is none.
    Refused
        If it is damaged.
    """
    with open(path, "rb") as file:
        text = file.read()
    try:
        record = json.loads(text)
        if not isinstance(record, dict):
            raise ValueError(f"a {type(record).__name__}")
    except ValueError as error:
        raise Refused(f"{path}: damaged: {error}") from None
    return record


def checksum(path: str) -> str:
    """The SHA-256 of a file, as sha256sum prints it."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def check_file(path: str, record: dict[str, Any], *, contents: bool) -> None:
    """Compare a file with the size, and if asked for the checksum, that its record says.

    Raises
    ------
    Refused
        If they differ, or the file is missing.
    """
    try:
        size = os.path.getsize(path)
    except FileNotFoundError:
        raise Refused(f"{path}: missing") from None
    if size != record["bytes"]:
        raise Refused(f"{path}: damaged: {size} bytes, expected {record['bytes']}")
    if contents and checksum(path) != record["sha256"]:
        raise Refused(f"{path}: damaged: its checksum is not {record['sha256']}")
