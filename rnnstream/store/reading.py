"""Reading a store's file without a worker: nothing is changed or created where it lies, and a running worker goes on."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rnnstream.errors import BadStore


@dataclass(frozen=True, slots=True)
class Reading:
    """A file that is being read.

    Attributes:
        connection: in a read transaction, as the file was at one moment.
        in_use: a worker has it open.
        size, log_size: bytes of the file and of its write-ahead log.
    """

    connection: sqlite3.Connection
    in_use: bool
    size: int
    log_size: int


@contextlib.contextmanager
def reading(path: Path) -> Iterator[Reading]:
    """Read a file for as long as a `with` statement.

    No other connection of this process may have it open: whether a worker has it is seen by a lock on the file, and with its
    descriptor all locks go that SQLite holds on that file for the whole process. Where a log was left without its index, a
    copy of the store is read, in a temporary folder.

    Raises:
        BadStore: there is none, or it cannot be read. At the end: no worker had it open, and yet it was changed meanwhile, so
            what was seen may be wrong.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = _regular(path)
            before = _stamps(file)
            in_use = _locked(file)
            uri = _uri(path, file, in_use, stack)
        except OSError as problem:
            raise BadStore(f"The store {path} cannot be read: {problem.strerror}.") from None
        try:
            connection = sqlite3.connect(uri, uri=True, isolation_level=None)
            stack.callback(connection.close)
            connection.text_factory = lambda data: data.decode(errors="replace")  # a damaged name is told, too
            connection.execute("BEGIN")
            yield Reading(connection, in_use, before[0].size, before[1].size)
        except sqlite3.Error as problem:
            raise BadStore(f"The store {path} cannot be read: {problem}.") from None
        finally:
            if not in_use and _stamps(file) != before:  # nothing but the absence of a worker has kept it as it was
                raise BadStore(f"The store {path} was changed while it was read, as by a worker that has begun; look again.")


class _Stamp(NamedTuple):
    """What tells of a file whether it was written; all 0 where there is none."""

    inode: int = 0
    size: int = 0
    changed_ns: int = 0


def _stamps(file: Path) -> tuple[_Stamp, _Stamp]:
    """Of a store's file and its write-ahead log."""
    stamps = []
    for path in (file, _beside(file, "-wal")):
        try:
            status = path.stat()
            stamps.append(_Stamp(status.st_ino, status.st_size, status.st_mtime_ns))
        except FileNotFoundError:
            stamps.append(_Stamp())
    return stamps[0], stamps[1]


def _beside(file: Path, ending: str) -> Path:
    return file.with_name(file.name + ending)


def _regular(path: Path) -> Path:
    """The file that a path leads to, beside which SQLite keeps its log; something else would not come to an end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        what = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise BadStore(f"{path} is no store of rnnstream: it is {what}.")
    if not status.st_size:
        raise BadStore(f"{path} is no store of rnnstream: it is empty.")
    return path.resolve()


def _locked(file: Path) -> bool:
    """Whether a worker has it open."""
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _uri(path: Path, file: Path, in_use: bool, stack: contextlib.ExitStack) -> str:
    """How SQLite reads all of it and leaves everything as it is."""
    log, index = _beside(file, "-wal"), _beside(file, "-shm")
    if not in_use and not (log.exists() and log.stat().st_size):  # as after a shutdown
        return f"{file.as_uri()}?mode=ro&immutable=1"
    if log.exists() and index.exists():
        return f"{file.as_uri()}?mode=ro&readonly_shm=1"
    if in_use:
        raise BadStore(f"A worker begins or ends with the store {path} just now; look again.")
    # SQLite does not read a log without its index, and may not make one there.
    copy = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rnnstream-"))) / "store"
    shutil.copyfile(file, copy)
    shutil.copyfile(log, _beside(copy, "-wal"))
    return copy.as_uri()
