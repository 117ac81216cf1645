"""Writing a file so that what exists is respected, and nothing half-written is ever seen where that can be avoided.

A regular file is written aside, in the same folder, and renamed: it appears whole or not at all, also where the machine
stops. What is aside is locked while its writer lives, so that the next writer finds and removes what a killed one left.
Where a rename cannot keep what exists, the file is written in place:

- a folder in which nothing can be created, or a file that cannot be renamed over (another owner's in /tmp, a mount);
- a file with several names (hard links), which would part.

Devices and pipes are written straight. Symbolic links are followed.
"""

import contextlib
import errno
import importlib.util
import os
import secrets
import stat
from collections.abc import Callable
from typing import BinaryIO

_HAS_LOCKS = importlib.util.find_spec("fcntl") is not None  # not on Windows
if _HAS_LOCKS:
    import fcntl

Produce = Callable[[BinaryIO], None]  # writes the contents

_PREFIX, _SUFFIX = ".faiss_dpq-", ".tmp"  # short: the file's own name may be as long as a name can be
_BUFFER = 1 << 20
_NOTHING_CAN_BE_CREATED = (errno.EACCES, errno.EPERM, errno.EROFS)


def write(path: str, produce: Produce) -> None:
    """Write a file.

    Parameters
    ----------
    path : str
    produce : callable
        Writes the contents to the binary file that it is given. It may be called twice: to see that it raises nothing,
        before a file is overwritten in place.

    Raises
    ------
    OSError
        If the file cannot be written. It names `path`.
    """
    try:
        _write(path, produce)
    except OSError as error:
        if error.errno is None:
            raise
        raise type(error)(error.errno, os.strerror(error.errno), path) from error


def _write(path: str, produce: Produce) -> None:
    try:
        existing = os.stat(path)
    except FileNotFoundError:
        existing = None
    if not os.path.basename(path) or (existing is not None and not stat.S_ISREG(existing.st_mode)):
        with open(path, "wb", _BUFFER) as file:  # a folder is refused here
            produce(file)
        return
    if existing is not None:
        os.close(os.open(path, os.O_WRONLY))  # raises if it may not be written
    target = os.path.realpath(path)
    if existing is not None and existing.st_nlink > 1:
        _write_in_place(target, produce)
    else:
        _write_aside(target, existing, produce)


def _write_aside(target: str, existing: os.stat_result | None, produce: Produce) -> None:
    folder = os.path.dirname(target)
    _remove_leftovers(folder)
    try:
        aside, file = _create_aside(folder, 0o666 if existing is None else 0o600)
    except OSError as error:
        if existing is None or error.errno not in _NOTHING_CAN_BE_CREATED:
            raise
        _write_in_place(target, produce)
        return
    try:
        with file:
            produce(file)
            file.flush()
            if existing is not None:
                _adopt(file.fileno(), existing)
            os.fsync(file.fileno())
            if _HAS_LOCKS:  # Windows renames no file that is open
                _rename(aside, target, existing, produce)
        if not _HAS_LOCKS:
            _rename(aside, target, existing, produce)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)
        raise
    _sync_folder(folder)


def _rename(aside: str, target: str, existing: os.stat_result | None, produce: Produce) -> None:
    try:
        os.replace(aside, target)
    except OSError:
        if existing is None:
            raise
        _write_in_place(target, produce)
        os.unlink(aside)


def _write_in_place(target: str, produce: Produce) -> None:
    with open(os.devnull, "wb") as nowhere:
        produce(nowhere)
    with open(target, "r+b", _BUFFER) as file:
        file.truncate()
        produce(file)
        file.flush()
        os.fsync(file.fileno())


def _create_aside(folder: str, mode: int) -> tuple[str, BinaryIO]:
    """A new file, locked, and its path."""
    while True:
        aside = os.path.join(folder, f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}")
        handle = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
        file = os.fdopen(handle, "wb", _BUFFER)
        if not _HAS_LOCKS:
            return aside, file
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK:
                return aside, file  # a file system without locks, where nobody can take the file for a leftover
        if os.fstat(handle).st_nlink:  # else another writer took it for a leftover before it was locked
            return aside, file
        file.close()


def _remove_leftovers(folder: str) -> None:
    """Remove what killed writers left in a folder: files aside that nobody has locked."""
    if not _HAS_LOCKS:
        return
    try:
        with os.scandir(folder) as entries:
            names = [e.name for e in entries if e.name.startswith(_PREFIX) and e.name.endswith(_SUFFIX)]
    except OSError:  # a folder whose contents cannot be read
        return
    for name in names:
        leftover = os.path.join(folder, name)
        try:
            handle = os.open(leftover, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:  # gone, or another user's
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(leftover)
        except OSError:
            continue
        finally:
            os.close(handle)


def _adopt(handle: int, existing: os.stat_result) -> None:
    """Give a new file the permissions of the one that it replaces, and its owner and group if that is allowed."""
    if not hasattr(os, "fchown"):  # Windows
        return
    for owner, group in ((existing.st_uid, -1), (-1, existing.st_gid)):
        with contextlib.suppress(OSError):
            os.fchown(handle, owner, group)
    os.fchmod(handle, stat.S_IMODE(existing.st_mode))


def _sync_folder(folder: str) -> None:
    """Let the rename itself last, where folders can be opened and synchronized."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    with contextlib.suppress(OSError):
        os.fsync(handle)
    os.close(handle)
