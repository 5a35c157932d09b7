"""How a store is laid out in an SQLite file.

::

    meta      key, value: the model's digest and name, dtype and state_size, numerics
    sessions  a row for each name: see `Saved`; crc is the CRC-32 of the other columns
    journal   id, entry, crc: see `rnnstream.store.records`

`PRAGMA application_id` is "rnns", `PRAGMA user_version` the version of this format.
"""

from __future__ import annotations

import sqlite3
import struct
import zlib
from pathlib import Path
from typing import Any

from rnnstream.errors import BadStore
from rnnstream.store.interface import Identity, Saved

FORMAT = 1
APPLICATION = int.from_bytes(b"rnns")
SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL,
    upto INTEGER NOT NULL,
    t INTEGER NOT NULL,
    opened_at REAL NOT NULL,
    moved_at REAL NOT NULL,
    crc INTEGER NOT NULL,
    producers BLOB NOT NULL,
    state BLOB NOT NULL
);
CREATE INDEX ended ON sessions (upto) WHERE status <> 'open';
CREATE TABLE journal (id INTEGER PRIMARY KEY, crc INTEGER NOT NULL, entry BLOB NOT NULL);
"""
COLUMNS = "name, status, upto, t, opened_at, moved_at, producers, state, crc"
_NUMBERS = struct.Struct("<qqdd")


def meta_of(identity: Identity) -> dict[str, str]:
    """What the table meta says of a model."""
    return {
        "digest": identity.digest,
        "name": identity.name,
        "dtype": identity.dtype,
        "state_size": str(identity.state_size),
        "numerics": identity.numerics,
    }


def read_meta(connection: sqlite3.Connection, path: Path) -> dict[str, str]:
    """The table meta of a file that is such a store.

    Raises:
        BadStore: it is not, or its format is another one.
    """
    try:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if application != APPLICATION:
            raise BadStore(f"{path} is an SQLite file, but no store of rnnstream.")
        if version != FORMAT:
            raise BadStore(f"The store {path} has the format version {version}; this version of rnnstream reads {FORMAT}.")
        meta = dict(connection.execute("SELECT key, CAST(value AS TEXT) FROM meta"))
    except sqlite3.DatabaseError as problem:
        raise BadStore(f"{path} is no store of rnnstream, or damaged: {problem}.") from None
    missing = meta_of(Identity("", "", "", 0, "")).keys() - meta.keys()
    if missing:
        raise BadStore(f"The store {path} is damaged: meta lacks {', '.join(sorted(missing))}.")
    return meta


def row_of(saved: Saved) -> tuple[Any, ...]:
    """What is kept of a name, as `COLUMNS`."""
    row = (saved.name, saved.status, saved.upto, saved.t, saved.opened_at, saved.moved_at, saved.producers, saved.state)
    return (*row, _crc(*row))


def _crc(name: str, status: str, upto: int, t: int, opened_at: float, moved_at: float, producers: bytes, state: bytes) -> int:
    numbers = _NUMBERS.pack(upto, t, opened_at, moved_at)
    return zlib.crc32(state, zlib.crc32(producers, zlib.crc32(f"{name}\0{status}".encode(), zlib.crc32(numbers))))


def read_row(row: tuple[Any, ...]) -> Saved | None:
    """What is kept of a name, from a row as the columns of a session; None if it does not match its checksum."""
    try:
        return Saved(*row[:8]) if _crc(*row[:8]) == row[8] else None
    except (TypeError, AttributeError, struct.error, UnicodeError):  # of another type: it was not written by a worker
        return None


def entry_crc(id: int, entry: bytes) -> int:
    """The checksum of a journal entry."""
    return zlib.crc32(entry, zlib.crc32(id.to_bytes(8, "little", signed=True)))
