"""A look into a store without a worker: what is in it, whether it is whole, and what its journal has beyond its rows."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import sqlite3
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnstream.errors import BadStore
from rnnstream.names import Name, Owned, named, owner_of
from rnnstream.store.interface import Saved
from rnnstream.store.layout import COLUMNS, entry_crc, read_meta, read_row
from rnnstream.store.reading import Reading, reading
from rnnstream.store.records import Batch, unpack_entry, unpack_producers

Array = npt.NDArray[Any]

_THIS = "owner = ? AND name = ?"
DTYPES = {kind: np.dtype(kind) for kind in ("<f4", "<f8")}  # of states
TOLD = 1000  # rows and entries between two calls that tell how far a check is


@dataclass(frozen=True, slots=True)
class Problem:
    """Damage.

    Attributes:
        sentence: for people.
        session, entry: the name of the session, or the id of the journal entry, whose it is; None where it is neither's.
    """

    sentence: str
    session: Name | None = None
    entry: int | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """What is kept of a name, whole.

    Attributes:
        saved: its row.
        state: [S], a<t>; empty where the name is not open.
        producers: the last number of each.
    """

    saved: Saved
    state: Array
    producers: dict[str, int]


@dataclass(frozen=True, slots=True)
class Step:
    """A token that counted.

    Attributes:
        name: of the session.
        x: an id, or the bytes of a vector.
        producer, n: its number, where it has one.
    """

    name: Name
    x: int | bytes
    producer: str | None = None
    n: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """A journal entry, whole.

    Attributes:
        id: of the entry.
        now: seconds, on the clock of the store.
        steps: those of a session are in their order.
    """

    id: int
    now: float
    steps: list[Step]


@dataclass(slots=True)
class Behind:
    """What the journal has of a session and its row does not include.

    Attributes:
        stored: whether there is a row.
        first, last: when the first and the last of it happened, in seconds on the clock of the store.
        xs: the tokens, in their order: ids, or bytes of vectors.
        producers: the last number of each that is in it.
    """

    stored: bool
    first: float
    last: float
    xs: list[int | bytes] = field(default_factory=list)
    producers: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Journal:
    """The journal, held against the rows.

    Attributes:
        behind: by session.
        clock: seconds on the clock of the store, when it was written last; NaN where that is not known.
        problems: the damage. Where an entry is damaged, all of this ends: with a token left out, the next ones are no use.
    """

    behind: dict[Name, Behind] = field(default_factory=dict)
    clock: float = math.nan
    problems: list[Problem] = field(default_factory=list)


class Look:
    """A store as it was at one moment; see `looking`. Where SQLite cannot read a page, sqlite3.DatabaseError comes through.

    Attributes:
        path: as it was given.
        meta: the model's digest and name, dtype, state_size and numerics, as they are written there.
        dtype, state_size: of a state.
        in_use: a worker has it open.
        bytes, log_bytes: sizes of the file and of its write-ahead log.
    """

    def __init__(self, path: Path, found: Reading) -> None:
        self.path, self.in_use, self.bytes, self.log_bytes = path, found.in_use, found.size, found.log_size
        self._connection = found.connection
        self.meta = meta = read_meta(found.connection, path)
        try:
            self.dtype, self.state_size = DTYPES[meta["dtype"]], int(meta["state_size"])
            if self.state_size < 0:
                raise ValueError
        except (KeyError, ValueError):
            told = f"states of {meta['state_size']!r:.40} numbers of type {meta['dtype']!r:.40}"
            raise BadStore(f"The store {path} is damaged: its table meta speaks of {told}.") from None

    @functools.cached_property
    def rows(self) -> int:
        """How many names there are."""
        return self._number("SELECT count(*) FROM sessions")

    @functools.cached_property
    def entries(self) -> int:
        """How many journal entries there are."""
        return self._number("SELECT count(*) FROM journal")

    @functools.cached_property
    def newest(self) -> int:
        """Id of the last journal entry; 0 where there is none."""
        return self._number("SELECT ifnull(max(id), 0) FROM journal")

    def _number(self, query: str) -> int:
        (number,) = self._connection.execute(query).fetchone()
        return int(number)

    def ended(self) -> dict[str, int]:
        """How many names are closed, and how many expired."""
        query = "SELECT status, count(*) FROM sessions WHERE status <> 'open' GROUP BY status"
        return {"closed": 0, "expired": 0} | dict(self._connection.execute(query))

    def sessions(self, names: Collection[Name] = ()) -> Iterator[Session | Problem]:
        """What is kept of these names, or of all."""
        query = f"SELECT {COLUMNS}, id FROM sessions"
        try:
            if not names:
                last = 0
                try:
                    for row in self._connection.execute(f"{query} ORDER BY id"):
                        last = row[-1]
                        yield self._session(row)
                except sqlite3.DatabaseError:  # one by one then, of the names in their index
                    query_names = "SELECT owner, name FROM sessions WHERE +id > ?"
                    names = [named(*row) for row in self._connection.execute(query_names, (last,))]
            for name in names:
                try:
                    yield from map(self._session, self._connection.execute(f"{query} WHERE {_THIS}", _key(name)))
                except sqlite3.DatabaseError as problem:
                    yield _of_session(name, f"cannot be read: {problem}")
        except sqlite3.DatabaseError as problem:
            yield Problem(f"The rows of the sessions cannot be read any further: {problem}.")

    def _session(self, row: tuple[Any, ...]) -> Session | Problem:
        name = named(str(row[0]), str(row[1]))
        saved = read_row(row)
        if saved is None:
            return _of_session(name, "does not match its checksum")
        if saved.status not in ("open", "closed", "expired"):
            return _of_session(name, f"has the status {saved.status!r:.20}")
        size = self.state_size * self.dtype.itemsize if saved.status == "open" else 0
        if len(saved.state) != size:
            return _of_session(name, f"has a state of {len(saved.state)} bytes where {size} belong")
        state = np.frombuffer(saved.state, self.dtype)
        if not np.isfinite(state).all():
            return _of_session(name, "has a state with NaN or infinity in it")
        try:
            producers = {kept.producer: kept.last for kept in unpack_producers(saved.producers)}
        except (ValueError, TypeError):
            return _of_session(name, "has producers that cannot be decoded")
        return Session(saved, state, producers)

    def journal_entries(self) -> Iterator[Entry | Problem]:
        """The journal. Ends at a page that cannot be read."""
        try:
            for id, crc, packed in self._connection.execute("SELECT id, crc, entry FROM journal ORDER BY id"):
                if not isinstance(packed, bytes) or crc != entry_crc(id, packed):
                    yield Problem(f"Journal entry {id} does not match its checksum.", entry=id)
                    continue
                try:
                    now, batches = unpack_entry(packed)
                    yield Entry(id, float(now), [step for batch in batches for step in _steps(batch)])
                except (ValueError, TypeError, IndexError):
                    yield Problem(f"Journal entry {id} cannot be decoded.", entry=id)
        except sqlite3.DatabaseError as problem:
            yield Problem(f"The journal cannot be read any further: {problem}.")

    def journal(self, names: Collection[Name] = ()) -> Journal:
        """What the journal has of these names, or of all, that their rows do not include."""
        journal = Journal()
        upto: dict[Name, float | None] = {}
        for entry in self.journal_entries():
            if isinstance(entry, Problem):
                journal.problems.append(entry)
                journal.clock = math.nan
                break
            journal.clock = entry.now if math.isnan(journal.clock) else max(entry.now, journal.clock)
            for step in entry.steps:
                if names and step.name not in names:
                    continue
                if step.name not in upto:
                    try:
                        upto[step.name] = self._upto(step.name)
                    except sqlite3.DatabaseError as problem:
                        journal.problems.append(_of_session(step.name, f"cannot be read: {problem}"))
                        upto[step.name] = math.inf
                included = upto[step.name]
                if included is not None and entry.id <= included:
                    continue
                behind = journal.behind.get(step.name)
                if behind is None:
                    behind = journal.behind[step.name] = Behind(included is not None, entry.now, entry.now)
                behind.last = entry.now
                behind.xs.append(step.x)
                if step.producer is not None:
                    behind.producers[step.producer] = step.n
        return journal

    def _upto(self, name: Name) -> float | None:
        """The last journal entry that the row of a name includes; None where it has no row."""
        row = self._connection.execute(f"SELECT upto FROM sessions WHERE {_THIS}", _key(name)).fetchone()
        if row is None:
            return None
        return row[0] if isinstance(row[0], int) else math.inf  # that row is damaged

    def problems(self, tell: Callable[[int, int | None], None]) -> Iterator[Problem]:
        """All damage that can be found.

        Args:
            tell: called now and then, with how many rows and entries were looked at, and how many there are, if that is known.
        """
        newest = total = None
        try:
            for (told,) in self._connection.execute("PRAGMA integrity_check"):
                if told != "ok":
                    yield Problem(f"SQLite finds: {'; '.join(str(told).splitlines())}.")
            newest, total = self.newest, self.rows + self.entries
        except sqlite3.DatabaseError as problem:
            yield Problem(f"SQLite cannot read all of the file: {problem}.")
        for count, found in enumerate(itertools.chain(self.sessions(), self.journal_entries()), 1):
            if isinstance(found, Problem):
                yield found
            elif isinstance(found, Session) and newest is not None and found.saved.upto > newest:  # it would not be replayed
                yield _of_session(found.saved.name, f"includes journal entry {found.saved.upto}; the last is {newest}")
            if not count % TOLD or count == total:
                tell(count, total)


def _of_session(name: Name, told: str) -> Problem:
    owner = f" of {owner_of(name)!r:.60}" if owner_of(name) else ""
    return Problem(f"The row of session {str(name)!r:.250}{owner} {told}.", session=name)


def _key(name: Name) -> tuple[str, str]:
    return owner_of(name), str(name)


def _steps(batch: Batch) -> Iterator[Step]:
    """The steps of a batch.

    Raises:
        ValueError, TypeError, IndexError: it is not as a worker writes it.
    """
    numbers: list[tuple[str | None, int]] = [(None, 0)] * len(batch.names)
    for place, mine, n, _ in zip(batch.places, batch.producers, batch.ns, batch.acks, strict=True):
        numbers[place] = mine, n
    for name, x, (producer, n) in zip(batch.names, batch.xs, numbers, strict=True):
        if not (isinstance(name, str | Owned) and isinstance(producer, str | None) and isinstance(x, int | bytes)):
            raise TypeError
        if isinstance(x, bytes) and len(x) % 4:
            raise ValueError
        yield Step(name, x, producer, n)


@contextlib.contextmanager
def looking(path: str | Path) -> Iterator[Look]:
    """Look into a store, as it is at this moment, for as long as a `with` statement; see `reading`.

    Raises:
        BadStore: there is none, it is of another format, or it cannot be read, or was changed meanwhile by a new worker.
    """
    with reading(Path(path)) as found:
        yield Look(Path(path), found)
