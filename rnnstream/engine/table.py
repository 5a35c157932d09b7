"""The session table: which name has which row, and what is kept in the row.

A row is a place in arrays that grow together. A name holds one from the first request that names it until it is neither open
nor waited for. Rows are handed out again: nobody outside the engine may keep one past its last waiting request, and a row is
cleared when it is taken. What outlives the row, for as long as the name is remembered, is in its tombstone.

Sessions may be kept elsewhere too: `evict` and `place` are for whoever keeps them, and `absent` counts those that are not here.

    S numbers of a state
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from rnnstream.engine.numbering import Numbering, Producers
from rnnstream.errors import Full

Array = npt.NDArray[Any]

TOMBSTONES = 100_000  # names remembered that were closed or expired, so that no stream starts over unnoticed: 15 to 35 MB
SWEEP_S = 1e-7  # between two looks for idle sessions, for each row: looking takes a hundredth of that


class Tombstone(NamedTuple):
    """What is remembered of a name that is not open any more.

    Attributes:
        why: "closed" or "expired".
        producers: their numbers go on where the name is opened again.
    """

    why: Literal["closed", "expired"]
    producers: Producers | None


class Table:
    """Names, rows and states.

    Attributes:
        rows: the row of each name that is open or waited for.
        names: the name of each row, None for free ones.
        live: 1 for rows whose session is open.
        producers: the numbered producers of each row, None where there were none.
        states: [rows, S]; a<t> of each open session.
        t: step count of each open session.
        opened_at, moved_at: seconds, on the clock that the caller keeps; of each open session.
        tombstones: of names that were closed or expired and not opened since, the oldest first.
        numbering: of all producers.
        absent: how many open sessions have no row here, for they are kept elsewhere.
        forgotten: names whose tombstones were pushed out, for whoever keeps them elsewhere and empties this; None: nobody does.
    """

    def __init__(self, initial_state: Array, *, max_sessions: int, numbering: Numbering, max_rows: int | None = None) -> None:
        self.max_sessions = max_sessions
        self.max_rows = max_sessions if max_rows is None else max_rows
        self.absent = 0
        self.forgotten: list[str] | None = None
        self.numbering = numbering
        self._a0 = initial_state
        self.rows: dict[str, int] = {}
        self.names: list[str | None] = []
        self.live = bytearray()
        self.producers: list[Producers | None] = []
        self.open_count = 0
        self._free: list[int] = []
        self.tombstones: OrderedDict[str, Tombstone] = OrderedDict()
        self.states = np.empty((0, len(initial_state)), initial_state.dtype)
        self.t = np.empty(0, np.int64)
        self.opened_at = np.empty(0)
        self.moved_at = np.empty(0)
        self._due: list[int] = []  # rows that have been idle for too long, when they were looked at last
        self._sweep_at = 0.0  # no session can have been idle for too long before
        self._sweep_free = 0.0  # nor is anybody looked for before
        self._idle_s = math.inf

    def take(self, name: str) -> int:
        """The row of this name; a free one, cleared and not open, if it has none yet.

        Raises:
            Full: `max_rows` names have rows.
        """
        row = self.rows.get(name)
        if row is not None:
            return row
        if len(self.rows) >= self.max_rows:
            raise Full(f"{self.max_rows} sessions are open or waited for, the limit; close one, or raise it.")
        row = self._free.pop() if self._free else len(self.names)
        if row == len(self.names):
            self.names.append(None)
            self.live.append(0)
            self.producers.append(None)
            if row == len(self.t):
                self._grow(max(64, 2 * row))
        self.states[row] = self._a0
        self.t[row] = 0
        self.names[row] = name
        self.rows[name] = row
        tombstone = self.tombstones.get(name)
        self.producers[row] = tombstone.producers if tombstone else None
        return row

    def free(self, row: int) -> None:
        """Give back the row of a name that is not open; an open one stays as it is."""
        name = self.names[row]
        if name is not None and not self.live[row]:
            known = self.producers[row]
            if known is not None and name not in self.tombstones:  # which has been pushed out meanwhile
                self.numbering.forget(known)
            self._give_back(row)

    def open(self, row: int, now: float, state: Array | None = None, t: int = 0) -> None:  # state: [S]
        """Start the session of this row at a<0>, t = 0, or at this state and step count.

        Raises:
            Full: `max_sessions` are open, here or elsewhere, and this one is not.
        """
        name = self.names[row]
        assert name is not None
        if not self.live[row]:
            self.hold_room()
        self.tombstones.pop(name, None)
        self.open_count += not self.live[row]
        self.live[row] = 1
        self.states[row] = self._a0 if state is None else state
        self.t[row] = t
        self.opened_at[row] = self.moved_at[row] = now

    def hold_room(self) -> None:
        """See whether one more session may be open.

        Raises:
            Full: it may not.
        """
        if self.open_count + self.absent >= self.max_sessions:
            raise Full(f"{self.max_sessions} sessions are open, the limit; close one, or raise it.")

    def withdraw(self, row: int) -> None:
        """Undo an `open` that turned out to be for nothing: the name is as unknown as it was before."""
        assert self.live[row]
        self.live[row] = 0
        self.open_count -= 1

    def close(self, row: int, why: Literal["closed", "expired"] = "closed") -> None:
        """Forget the state of an open session; its name gets a tombstone, and keeps its row until `free`."""
        name = self.names[row]
        assert name is not None
        assert self.live[row]
        self.live[row] = 0
        self.states[row] = self._a0
        self.t[row] = 0
        self.open_count -= 1
        self._remember(name, Tombstone(why, self.producers[row]))

    def _remember(self, name: str, tombstone: Tombstone) -> None:
        self.tombstones[name] = tombstone
        if len(self.tombstones) > TOMBSTONES:
            oldest, tombstone = self.tombstones.popitem(last=False)
            if self.forgotten is not None:
                self.forgotten.append(oldest)
            if tombstone.producers is not None and oldest not in self.rows:
                self.numbering.forget(tombstone.producers)

    def evict(self, row: int) -> None:
        """Let go of an open session and of its row, for it is kept elsewhere."""
        known = self.producers[row]
        assert self.live[row]
        self.live[row] = 0
        self.open_count -= 1
        self.absent += 1
        if known is not None:
            self.numbering.forget(known)
        self._give_back(row)

    def place(self, row: int, state: Array, t: int, opened_at: float, moved_at: float, producers: Producers) -> None:
        """An open session that was kept elsewhere comes back, to a row that has been taken for it."""
        assert not self.live[row]
        self.live[row] = 1
        self.open_count += 1
        self.absent -= 1
        self.states[row] = state
        self.t[row] = t
        self.opened_at[row], self.moved_at[row] = opened_at, moved_at
        self.producers[row] = producers or None
        self.numbering.adopt(producers)
        self._sweep_at = min(self._sweep_at, max(moved_at + self._idle_s, self._sweep_free))

    def bury(self, name: str, why: Literal["closed", "expired"], producers: Producers) -> None:
        """A tombstone that was kept elsewhere comes back."""
        self.numbering.adopt(producers)
        if name in self.rows:
            self.producers[self.rows[name]] = producers or None
        self._remember(name, Tombstone(why, producers or None))

    def drop(self, name: str, *, waited_for: bool = False) -> None:
        """Let go of all that is here of a name, but for its row if it is waited for: it is put together again elsewhere."""
        row, tombstone = self.rows.get(name), self.tombstones.pop(name, None)
        known = self.producers[row] if row is not None else tombstone.producers if tombstone is not None else None
        if known is not None:
            self.numbering.forget(known)
        if row is not None:
            self.open_count -= self.live[row]
            self.live[row] = 0
            self.producers[row] = None
            if not waited_for:
                self._give_back(row)

    def _give_back(self, row: int) -> None:
        name = self.names[row]
        assert name is not None
        del self.rows[name]
        self.names[row] = self.producers[row] = None
        self._free.append(row)

    def producers_of(self, row: int) -> Producers:
        """The numbered producers of this row's name, to be added to."""
        known = self.producers[row]
        if known is None:
            known = self.producers[row] = {}
            name = self.names[row]
            assert name is not None
            if name in self.tombstones:
                self.tombstones[name] = Tombstone(self.tombstones[name].why, known)
        return known

    def expire(self, now: float, idle_s: float, waited_for: Callable[[int], bool], most: int | None = None) -> list[str]:
        """Close the sessions that have not moved for longer than `idle_s`; those that somebody waits for stay.

        Called often, it looks at the rows seldom: when the first of them can be due, and not more often than `SWEEP_S` allows.

        Args:
            now: seconds.
            idle_s: seconds.
            waited_for: whether somebody waits for a row.
            most: how many may be closed by this call, of some 4 us each; the next ones go on.

        Returns:
            Their names.
        """
        self._idle_s = idle_s
        if not self._due and now >= self._sweep_at:
            rows = np.frombuffer(self.live, np.uint8).nonzero()[0]
            moved_at = self.moved_at[rows]
            idle = moved_at < now - idle_s
            self._due = rows[idle][::-1].tolist()
            self._sweep_free = now + SWEEP_S * len(self.names)
            self._sweep_at = max(float(moved_at[~idle].min(initial=now)) + idle_s, self._sweep_free)
        expired: list[str] = []
        while self._due and len(expired) != most:
            row = self._due.pop()
            if not self.live[row] or self.moved_at[row] >= now - idle_s:  # it has moved since, or is another one
                continue
            if waited_for(row):
                self._sweep_at = now + SWEEP_S * len(self.names)
                continue
            expired.append(self.names[row] or "")
            self.close(row, "expired")
            self.free(row)
        return expired

    def _grow(self, capacity: int) -> None:
        for attribute in ("states", "t", "opened_at", "moved_at"):
            old = getattr(self, attribute)
            new = np.zeros((capacity, *old.shape[1:]), old.dtype)
            new[: len(old)] = old
            setattr(self, attribute, new)

    def check(self) -> None:
        """Assert what always holds between calls."""
        assert all(self.names[row] == name for name, row in self.rows.items())
        used = {row for row, name in enumerate(self.names) if name is not None}
        assert used == set(self.rows.values())
        assert sorted(self._free) == [row for row in range(len(self.names)) if row not in used]
        live = {row for row in range(len(self.names)) if self.live[row]}
        assert live <= used
        assert len(live) == self.open_count
        assert len(self.rows) <= self.max_rows
        assert self.absent >= 0
        assert len(self.names) == len(self.live) == len(self.producers) <= len(self.t) == len(self.states)
        assert not any(self.names[row] in self.tombstones for row in live)
        rows = sorted(live)
        assert np.isfinite(self.states[rows]).all()
        assert (self.t[rows] >= 0).all()
        assert (self.opened_at[rows] <= self.moved_at[rows]).all()
        assert all(self.producers[row] is None for row in self._free)
        assert len(self.tombstones) <= TOMBSTONES
        remembered = {id(known): known for known in self.producers if known is not None}
        for name, tombstone in self.tombstones.items():
            if name in self.rows:
                assert self.producers[self.rows[name]] is tombstone.producers
            elif tombstone.producers is not None:
                remembered[id(tombstone.producers)] = tombstone.producers
        self.numbering.check(list(remembered.values()))
