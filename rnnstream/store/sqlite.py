"""A store in one SQLite file, which its users can open and read; `rnnstream.store.layout` says what is in it.

A worker holds an flock on the file; others may read meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

from rnnstream.errors import BadStore, StoreError
from rnnstream.names import Name, named, owner_of
from rnnstream.store.interface import Identity, Opened, Saved, Store, Write
from rnnstream.store.layout import (
    APPLICATION,
    COLUMNS,
    FORMAT,
    FROM_1,
    SCHEMA,
    entry_crc,
    meta_of,
    read_meta,
    read_row,
    row_of,
)

REOPEN = 20  # failures in a row after which a new connection is tried
RETRY_MS = 200  # what `store_error` asks for: disks do not recover faster
CUT = 200  # journal entries that are dropped at a time, once there are as many: 20,000 at once take 76 ms
LOCK_TRIES, LOCK_S = 20, 0.005  # to take hold of the file, which somebody may be looking at for a moment
LOADED = 64  # names of one query
# Pages of the write-ahead log before SQLite moves them into the file, and everything waits for the disk: 2 MB, some 10 ms. On
# average a write takes as long with 100 pages as with 2,000, but 1,000 have held everything up for 22 ms, and 2,000 for 32.
CHECKPOINT_PAGES = 500
LOG_BYTES = 16 << 20  # what the write-ahead log is cut to, after something kept it from being moved

_SAVE = f"""INSERT INTO sessions ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (owner, name) DO UPDATE SET
    status = excluded.status, upto = excluded.upto, t = excluded.t, opened_at = excluded.opened_at,
    moved_at = excluded.moved_at, producers = excluded.producers, state = excluded.state, crc = excluded.crc"""
_LOAD = f"SELECT {COLUMNS} FROM sessions WHERE owner = ? AND name IN ({', '.join('?' * LOADED)})"
_INSERT = "INSERT INTO journal VALUES (?, ?, ?)"
_DELETE = "DELETE FROM sessions WHERE owner = ? AND name = ?"
_ENTRIES = f"SELECT id, crc, entry FROM journal WHERE id > ? AND id <= ? ORDER BY id LIMIT {CUT}"

_held: set[tuple[int, int]] = set()  # files, by device and inode, that this process has open as stores

Durability = Literal["process", "power"]


class SQLiteStore(Store):
    """Keeps everything in an SQLite file.

    Args:
        path: of the file; made, for its owner alone to read, where there is none.
        durability: "process": what is written survives the end of the process, however it ends; after a loss of power, the
            last writes may be missing. "power": each write is on the disk before it returns.
    """

    def __init__(self, path: str | Path, durability: Durability = "process") -> None:
        if durability not in get_args(Durability):
            raise ValueError(f"durability is {durability!r}; it is one of {', '.join(get_args(Durability))}.")
        self.path, self.durability = Path(path), str(durability)
        self._place = self.path.absolute()  # wherever the process goes
        self._lock = -1
        self._holds: tuple[int, int] | None = None
        self._connection: sqlite3.Connection | None = None
        self._oldest = 0  # id of the oldest journal entry; 0 where there is none
        self._failures = 0  # of reads and writes since the last write that did not fail
        self._new_numerics = ""  # to be noted once nothing is left that was written on others

    def open(self, identity: Identity) -> Opened:
        """See `Store.open`."""
        with contextlib.suppress(OSError):  # to close a second descriptor would give SQLite's locks up
            if self._lock >= 0 or _file(os.stat(self._place)) in _held:
                raise BadStore(f"The store {self.path} is in use by another worker of this process.")
        try:
            self._lock = os.open(self._place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as problem:
            raise BadStore(f"The store {self.path} cannot be opened: {problem.strerror}.") from None
        try:
            for tries_left in reversed(range(LOCK_TRIES)):
                try:
                    fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not tries_left:
                        raise BadStore(f"The store {self.path} is in use by another worker.") from None
                time.sleep(LOCK_S)
            self._holds = _file(os.fstat(self._lock))
            _held.add(self._holds)
            try:
                return self._opened(identity)
            except (sqlite3.Error, UnicodeDecodeError, OSError) as problem:
                raise BadStore(f"The store {self.path} cannot be used: {problem}.") from None
        except BaseException:
            self.close()
            raise

    def _opened(self, identity: Identity) -> Opened:
        connection = self._connect()
        if _is_new(connection):
            connection.execute("BEGIN IMMEDIATE")
            for statement in SCHEMA:
                connection.execute(statement)
            connection.executemany("INSERT INTO meta VALUES (?, ?)", meta_of(identity).items())
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {FORMAT}")
            connection.execute("COMMIT")
            sync_directory(self._place.parent)  # SQLite does so for its log alone: it found the file there
            self._oldest = 0
            return Opened(identity.numerics, 0)
        meta = read_meta(connection, self.path, oldest=1)
        here = meta_of(identity)
        if meta["digest"] != here["digest"]:
            raise BadStore(
                f"The store {self.path} keeps the sessions of another model: {meta['name'] or 'digest'} {meta['digest']:.16}, "
                f"not {identity.name or 'digest'} {identity.digest:.16}. Serve that one, or give another path."
            )
        if (meta["dtype"], meta["state_size"]) != (here["dtype"], here["state_size"]):
            raise BadStore(
                f"The store {self.path} keeps states of {meta['state_size']} numbers of type {meta['dtype']}; this model's "
                f"have {identity.state_size} of type {identity.dtype}."
            )
        _bring_up(connection)  # not before it is known to be this model's
        (rows,) = connection.execute("SELECT count(*) FROM sessions").fetchone()
        (ended,) = connection.execute("SELECT count(*) FROM sessions WHERE status <> 'open'").fetchone()
        self._oldest, last = connection.execute("SELECT ifnull(min(id), 0), max(id) FROM journal").fetchone()
        if rows and last is None:
            raise BadStore(f"The store {self.path} is damaged: it has sessions, and no journal.")
        self._new_numerics = identity.numerics if identity.numerics != meta["numerics"] else ""
        owned = connection.execute("SELECT owner, count(*) FROM sessions WHERE owner <> '' AND status = 'open' GROUP BY owner")
        return Opened(meta["numerics"], rows - ended, last or 0, dict(owned.fetchall()))

    def _connect(self) -> sqlite3.Connection:
        # By one thread at a time, though not always by the one that opened it.
        connection = sqlite3.connect(self._place, timeout=0.01, isolation_level=None, check_same_thread=False)
        connection.text_factory = lambda data: data.decode(errors="replace")  # damaged text: its checksum tells
        try:
            if not _is_new(connection):
                read_meta(connection, self.path, oldest=1)  # before anything is changed in what may be another program's
            connection.execute("PRAGMA journal_mode = WAL")
            # In this mode, NORMAL means an fsync where the log is moved into the file; without that, a loss of power could
            # spoil the file. FULL means one for each write too.
            connection.execute(f"PRAGMA synchronous = {'FULL' if self.durability == 'power' else 'NORMAL'}")
            connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
            connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    @property
    def _open(self) -> sqlite3.Connection:
        """The connection; a new one after many errors, which the last one may not get over."""
        assert self._lock >= 0, "the store is not open"
        try:
            return self._connection or self._connect()
        except BadStore as problem:
            raise StoreError(str(problem), retry_after_ms=RETRY_MS) from None

    def close(self) -> None:
        """See `Store.close`."""
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None
        if self._holds is not None:
            _held.discard(self._holds)
            self._holds = None
        if self._lock >= 0:
            os.close(self._lock)  # behind the connection: closing any descriptor of the file gives SQLite's own locks up
            self._lock = -1

    def write(self, write: Write) -> int:
        """See `Store.write`."""
        try:
            connection, oldest = self._open, self._oldest or write.id
            self._hold_in_place()
            needed = min(write.needed, write.id)  # the newest stays, for the next ids go on from it
            drop = needed > oldest if write.last else needed >= oldest + CUT
            # A statement alone is a transaction, and takes half the time.
            alone = not (write.saved or write.forgotten or drop or write.last)
            if not alone:
                connection.execute("BEGIN IMMEDIATE")
            connection.execute(_INSERT, (write.id, entry_crc(write.id, write.entry), write.entry))
            if not alone:
                if write.saved:
                    connection.executemany(_SAVE, map(row_of, write.saved))
                if write.forgotten:
                    connection.executemany(_DELETE, [(owner_of(name), str(name)) for name in write.forgotten])
                if write.last and self._new_numerics:
                    connection.execute("UPDATE meta SET value = ? WHERE key = 'numerics'", (self._new_numerics,))
                if drop:
                    most = needed if write.last else oldest + CUT
                    connection.execute("DELETE FROM journal WHERE id < ?", (most,))
                    (oldest,) = connection.execute("SELECT min(id) FROM journal").fetchone()
                connection.execute("COMMIT")
            self._oldest, self._failures = oldest, 0
            return oldest
        except sqlite3.Error as problem:
            raise self._failed(problem, "kept") from None
        except BaseException:  # Ctrl-C, for instance
            if self._connection is not None and self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _hold_in_place(self) -> None:
        """See whether the file is where it was opened: what is written to another place would be found by nobody.

        Raises:
            StoreError: it is not.
        """
        try:
            if _file(os.stat(self._place)) == self._holds:
                return
        except OSError:
            pass
        raise StoreError(
            f"The store {self.path} was moved, removed or replaced under the worker; put it back, or stop the worker.",
            retry_after_ms=RETRY_MS,
        )

    def _failed(self, problem: sqlite3.Error, what: str) -> StoreError:
        """The error to be told; what was begun is rolled back."""
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
            # A new connection would find in the log what an fsync has failed for, as if it had been kept; this one overwrites
            # it. So it is the last resort.
            self._failures += 1
            if self._failures % REOPEN == 0:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.close()
                self._connection = None
        return StoreError(f"It could not be {what}: {problem}; ask again in {RETRY_MS} ms.", retry_after_ms=RETRY_MS)

    def load(self, names: Sequence[Name]) -> tuple[list[Saved], list[Name]]:
        """See `Store.load`."""
        found: list[Saved] = []
        damaged: list[Name] = []
        owned: dict[str, list[str]] = {}
        for name in names:
            owned.setdefault(owner_of(name), []).append(str(name))
        for owner, theirs in owned.items():
            for start in range(0, len(theirs), LOADED):
                some = theirs[start : start + LOADED]
                try:
                    self._load(owner, some, found, damaged)
                except sqlite3.Error as problem:
                    if _code(problem) != sqlite3.SQLITE_CORRUPT:
                        raise self._failed(problem, "read") from None
                    for one in some:  # a page cannot be read: it is not everybody's
                        try:
                            self._load(owner, [one], found, damaged)
                        except sqlite3.Error:
                            damaged.append(named(owner, one))
        return found, damaged

    def _load(self, owner: str, names: list[str], found: list[Saved], damaged: list[Name]) -> None:
        for row in self._open.execute(_LOAD, [owner, *names, *[None] * (LOADED - len(names))]).fetchall():
            saved = read_row(row)
            if saved is None:
                damaged.append(named(str(row[0]), str(row[1])))
            else:
                found.append(saved)

    def tombstones(self) -> Iterator[Saved]:
        """See `Store.tombstones`."""
        try:
            for row in self._open.execute(f"SELECT {COLUMNS} FROM sessions WHERE status <> 'open' ORDER BY upto"):
                saved = read_row(row)
                if saved is None:
                    raise BadStore(f"The store {self.path} is damaged: the row of {row[1]!r:.100} does not match its checksum.")
                yield saved
        except sqlite3.Error as problem:
            raise BadStore(f"The store {self.path} is damaged: {problem}.") from None

    def journal(self) -> Iterator[tuple[int, bytes]]:
        """See `Store.journal`."""
        try:
            (last,) = self._open.execute("SELECT max(id) FROM journal").fetchone()
            (count,) = self._open.execute("SELECT count(*) FROM journal").fetchone()  # by pages, not by ids
            after = 0
            while rows := self._open.execute(_ENTRIES, (after, last)).fetchall():
                for after, crc, entry in rows:
                    if not isinstance(entry, bytes) or crc != entry_crc(after, entry):
                        raise BadStore(f"The store {self.path} is damaged: journal entry {after} does not match its checksum.")
                    yield after, entry
                    count -= 1
            if count > 0:
                raise BadStore(f"The store {self.path} is damaged: its journal lacks {count} entries behind {after}.")
        except sqlite3.DatabaseError as problem:
            if _code(problem) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise BadStore(f"The store {self.path} is damaged: {problem}.") from None
            raise self._failed(problem, "read") from None

    def page(self, after: int, scan: int, owner: str | None = None) -> tuple[list[tuple[int, Name, float]], int | None]:
        """See `Store.page`."""
        # The index, for it has each owner's rows in the order of their ids; SQLite would rather sort them by itself.
        one, wanted = ("", ()) if owner is None else ("INDEXED BY owned WHERE owner = ? AND", (owner,))
        query = f"SELECT id, owner, name, moved_at, status FROM sessions {one or 'WHERE'} id > ? ORDER BY id LIMIT ?"
        try:
            rows = self._open.execute(query, (*wanted, after, scan)).fetchall()
        except sqlite3.Error as problem:
            raise self._failed(problem, "read") from None
        found = [(id, named(owner, name), moved_at) for id, owner, name, moved_at, status in rows if status == "open"]
        return found, rows[-1][0] if len(rows) == scan else None


def _file(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino


def _code(problem: sqlite3.Error) -> int:
    """SQLite's error code without its details; `SQLITE_CORRUPT` where Python's module found what is wrong."""
    return getattr(problem, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF


def _is_new(connection: sqlite3.Connection) -> bool:
    """Whether nothing was ever put into a file; a worker may have been killed before its first transaction."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return not application and not tables


def _bring_up(connection: sqlite3.Connection) -> None:
    """Make a store of format version 1 one of this, in one transaction."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == FORMAT:
        return
    connection.execute("BEGIN IMMEDIATE")
    for statement in FROM_1:
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {FORMAT}")
    connection.execute("COMMIT")


def sync_directory(path: Path) -> None:
    """Have the names of a directory's files outlive a loss of power."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
