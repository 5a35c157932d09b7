"""How a store is laid out in an SQLite file.

::

    meta      key, value: the model's digest and name, dtype and state_size, numerics
    sessions  a row for each name: see `Saved`; owner is a public key in Z85, "" for nobody's; crc is the CRC-32 of the others
    journal   id, entry, crc: see `rnnstream.store.records`

`PRAGMA application_id` is "rnns", `PRAGMA user_version` the version of this format. Version 1 had no owners; a worker turns a
store of that version into one of this.
"""

from __future__ import annotations

import sqlite3
import struct
import zlib
from pathlib import Path
from typing import Any

from rnnstream.errors import BadStore
from rnnstream.names import named, owner_of
from rnnstream.store.interface import Identity, Saved

FORMAT = 2
APPLICATION = int.from_bytes(b"rnns")
_SESSIONS = """
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY,
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    status TEXT NOT NULL,
    upto INTEGER NOT NULL,
    t INTEGER NOT NULL,
    opened_at REAL NOT NULL,
    moved_at REAL NOT NULL,
    crc INTEGER NOT NULL,
    producers BLOB NOT NULL,
    state BLOB NOT NULL,
    UNIQUE (owner, name)
);
CREATE INDEX owned ON sessions (owner);
CREATE INDEX ended ON sessions (upto) WHERE status <> 'open';
"""
_REST = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE journal (id INTEGER PRIMARY KEY, crc INTEGER NOT NULL, entry BLOB NOT NULL);
"""
_FROM_1 = f"""
DROP INDEX ended;
ALTER TABLE sessions RENAME TO sessions_1;
{_SESSIONS};
INSERT INTO sessions SELECT id, '', name, status, upto, t, opened_at, moved_at, crc, producers, state FROM sessions_1;
DROP TABLE sessions_1;
"""
COLUMNS = "owner, name, status, upto, t, opened_at, moved_at, producers, state, crc"
SCHEMA = [statement for statement in (_REST + _SESSIONS).split(";") if statement.strip()]
FROM_1 = [statement for statement in _FROM_1.split(";") if statement.strip()]  # what makes a store of version 1 one of this
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


def read_meta(connection: sqlite3.Connection, path: Path, *, oldest: int = FORMAT) -> dict[str, str]:
    """The table meta of a file that is such a store.

    Args:
        connection: to the file.
        path: of it, for sentences.
        oldest: format version that will do.

    Raises:
        BadStore: it is not, or its format is another one.
    """
    try:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if application != APPLICATION:
            raise BadStore(f"{path} is an SQLite file, but no store of rnnstream.")
        if version == 1 < oldest:
            raise BadStore(f"The store {path} has the format version 1; the next worker that serves it brings it to {FORMAT}.")
        if not oldest <= version <= FORMAT:
            raise BadStore(f"The store {path} has the format version {version}; this version of rnnstream reads {FORMAT}.")
        connection.execute("PRAGMA trusted_schema = OFF")
        (programs,) = connection.execute("SELECT count(*) FROM sqlite_master WHERE type IN ('view', 'trigger')").fetchone()
        if programs:
            raise BadStore(f"The store {path} has views or triggers in it, which no worker makes and which would be run.")
        meta = dict(connection.execute("SELECT key, CAST(value AS TEXT) FROM meta"))
    except sqlite3.DatabaseError as problem:
        raise BadStore(f"{path} is no store of rnnstream, or damaged: {problem}.") from None
    missing = meta_of(Identity("", "", "", 0, "")).keys() - meta.keys()
    if missing:
        raise BadStore(f"The store {path} is damaged: meta lacks {', '.join(sorted(missing))}.")
    return meta


def row_of(saved: Saved) -> tuple[Any, ...]:
    """What is kept of a name, as `COLUMNS`."""
    owner, name = owner_of(saved.name), str(saved.name)
    row = (owner, name, saved.status, saved.upto, saved.t, saved.opened_at, saved.moved_at, saved.producers, saved.state)
    return (*row, _crc(*row))


def _crc(
    owner: str,
    name: str,
    status: str,
    upto: int,
    t: int,
    opened_at: float,
    moved_at: float,
    producers: bytes,
    state: bytes,
) -> int:
    numbers = _NUMBERS.pack(upto, t, opened_at, moved_at)
    names = f"{owner}\0{name}\0{status}" if owner else f"{name}\0{status}"  # nobody's as in version 1
    return zlib.crc32(state, zlib.crc32(producers, zlib.crc32(names.encode(), zlib.crc32(numbers))))


def read_row(row: tuple[Any, ...]) -> Saved | None:
    """What is kept of a name, from a row as the columns of a session; None if it does not match its checksum."""
    try:
        return Saved(named(*row[:2]), *row[2:9]) if _crc(*row[:9]) == row[9] else None
    except (TypeError, AttributeError, struct.error, UnicodeError):  # of another type: it was not written by a worker
        return None


def entry_crc(id: int, entry: bytes) -> int:
    """The checksum of a journal entry."""
    return zlib.crc32(entry, zlib.crc32(id.to_bytes(8, "little", signed=True)))
