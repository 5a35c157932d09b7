"""The session table: which name has which row, and what is kept in the row.

A row is a place in arrays that are as long as they may ever have to be. A name holds one from the first request that names it
until it is neither open nor waited for. Rows are handed out again: nobody outside the engine may keep one past its last
waiting request, and a row is cleared when it is taken. What outlives the row, for as long as the name is remembered, is in its
tombstone.

Sessions may be kept elsewhere too: `evict` and `place` are for whoever keeps them, and `absent` counts those that are not here.

    S numbers of a state
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rnnstream.engine.idle import Idle
from rnnstream.engine.numbering import Numbering
from rnnstream.engine.own_rows import OwnRows
from rnnstream.engine.producers import Producers
from rnnstream.engine.room import reserve
from rnnstream.engine.tombstones import Tombstone, Tombstones
from rnnstream.errors import Denied, Full
from rnnstream.names import Name, owner_of

Array = npt.NDArray[Any]


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
        rows_of: by key: the rows of its names.
        tombstones: of names that were closed or expired and not opened since.
        numbering: of the producers of what is nobody's.
        numberings: by owner: of its producers.
        absent: how many open sessions have no row here, for they are kept elsewhere.
        owned: how many open sessions each key has, here or elsewhere.
        owned_since: which names have opened (1) or ended (-1) since somebody has cleared this.
        excused: names that are counted already, although nothing of them is here.
        most_owned: most open sessions of a key; None: no bound.
        forgotten: names whose tombstones were pushed out, for whoever keeps them elsewhere and empties this; None: nobody does.
    """

    def __init__(self, initial_state: Array, *, max_sessions: int, numbering: Numbering, max_rows: int | None = None) -> None:
        self.max_sessions = max_sessions
        self.max_rows = max_sessions if max_rows is None else max_rows
        self.absent = 0
        self.owned: Counter[str] = Counter()
        self.owned_since: Counter[Name] = Counter()
        self.excused: Container[Name] = ()
        self.most_owned: int | None = None
        self.forgotten: list[Name] | None = None
        self.numbering = numbering
        self.numberings = {"": numbering}
        self._a0 = initial_state
        self.rows: dict[Name, int] = {}
        self.names: list[Name | None] = []
        self.live = bytearray()
        self.producers: list[Producers | None] = []
        self.open_count = 0
        self._free: list[int] = []
        self.tombstones = Tombstones()
        self.rows_of: dict[str, OwnRows] = {}
        self.states, self.t, self.opened_at, self.moved_at = self._rows(0)
        self._idle = Idle()

    def numbering_of(self, name: Name) -> Numbering:
        """What counts the producers of this name."""
        owner = owner_of(name)
        if owner not in self.numberings:
            self.numberings[owner] = self.numbering.share()
        return self.numberings[owner]

    def take(self, name: Name) -> int:
        """The row of this name; a free one, cleared and not open, if it has none yet.

        Raises:
            Full: `max_rows` names have rows.
        """
        row = self.rows.get(name)
        if row is not None:
            return row
        if len(self.rows) >= self.max_rows:
            raise self._full(name, f"{self.max_rows} sessions are open or waited for")
        row = self._free.pop() if self._free else len(self.names)
        if row == len(self.names):
            self.names.append(None)
            self.live.append(0)
            self.producers.append(None)
            if row == len(self.t):
                self._grow()
        self.states[row] = self._a0
        self.t[row] = 0
        self.names[row] = name
        owner = owner_of(name)
        if owner:
            self.rows_of.setdefault(owner, OwnRows()).add(row)
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
                self.numbering_of(name).forget(known)
            self._give_back(row)

    def open(self, row: int, now: float, state: Array | None = None, t: int = 0) -> None:  # state: [S]
        """Start the session of this row at a<0>, t = 0, or at this state and step count.

        Raises:
            Full: `max_sessions` are open, here or elsewhere, and this one is not.
            Denied: its owner has `most_owned`, and this one is not open.
        """
        name = self.names[row]
        assert name is not None
        if not self.live[row]:
            self.hold_room(name)
            self._count(name, 1)
        self.tombstones.pop(name)
        self.live[row] = 1
        self.states[row] = self._a0 if state is None else state
        self.t[row] = t
        self.opened_at[row] = self.moved_at[row] = now

    def hold_room(self, name: Name) -> None:
        """See whether one more session may be open.

        Raises:
            Full: it may not.
            Denied: its owner has as many as a key may have.
        """
        owner = owner_of(name)
        if owner and self.most_owned is not None and self.owned[owner] >= self.most_owned and name not in self.excused:
            told = f"this key has {self.owned[owner]} sessions open, and {self.most_owned} is the limit for a key"
            raise Denied(f"{name}: {told}; close one of them.")
        if self.open_count + self.absent >= self.max_sessions:
            raise self._full(name, f"{self.max_sessions} sessions are open")

    @staticmethod
    def _full(name: Name, told: str) -> Full:
        if owner_of(name):  # whom the number would tell how many sessions others have
            return Full(f"{name}: the worker has no room for another session at present; close one, or ask its administrator.")
        return Full(f"{told}, the limit; close one, or raise it.")

    def withdraw(self, row: int) -> None:
        """Undo an `open` that turned out to be for nothing: the name is as unknown as it was before."""
        name = self.names[row]
        assert name is not None
        assert self.live[row]
        self.live[row] = 0
        self._count(name, -1)

    def _count(self, name: Name, by: int) -> None:
        """A session is open now, or is not any more."""
        self.open_count += by
        owner = owner_of(name)
        if owner:
            self.owned[owner] += by
            self.owned_since[name] += by

    def close(self, row: int, why: Literal["closed", "expired"] = "closed") -> None:
        """Forget the state of an open session; its name gets a tombstone, and keeps its row until `free`."""
        name = self.names[row]
        assert name is not None
        assert self.live[row]
        self.live[row] = 0
        self.states[row] = self._a0
        self.t[row] = 0
        self._count(name, -1)
        self._remember(name, Tombstone(why, self.producers[row]))

    def _remember(self, name: Name, tombstone: Tombstone) -> None:
        pushed_out = self.tombstones.put(name, tombstone)
        if pushed_out is not None:
            oldest, tombstone = pushed_out
            if self.forgotten is not None:
                self.forgotten.append(oldest)
            if tombstone.producers is not None and oldest not in self.rows:
                self.numbering_of(oldest).forget(tombstone.producers)

    def evict(self, row: int) -> None:
        """Let go of an open session and of its row, for it is kept elsewhere."""
        name, known = self.names[row], self.producers[row]
        assert name is not None
        assert self.live[row]
        self.live[row] = 0
        self.open_count -= 1
        self.absent += 1
        if known is not None:
            self.numbering_of(name).forget(known)
        self._give_back(row)

    def place(self, row: int, state: Array, t: int, opened_at: float, moved_at: float, producers: Producers) -> None:
        """An open session that was kept elsewhere comes back, to a row that has been taken for it."""
        name = self.names[row]
        assert name is not None
        assert not self.live[row]
        self.live[row] = 1
        self.open_count += 1
        self.absent -= 1
        self.states[row] = state
        self.t[row] = t
        self.opened_at[row], self.moved_at[row] = opened_at, moved_at
        self.producers[row] = producers or None
        self.numbering_of(name).adopt(producers)
        self._idle.came(moved_at)

    def bury(self, name: Name, why: Literal["closed", "expired"], producers: Producers) -> None:
        """A tombstone that was kept elsewhere comes back."""
        self.numbering_of(name).adopt(producers)
        if name in self.rows:
            self.producers[self.rows[name]] = producers or None
        self._remember(name, Tombstone(why, producers or None))

    def drop(self, name: Name, *, waited_for: bool = False) -> None:
        """Let go of all that is here of a name, but for its row if it is waited for: it is put together again elsewhere."""
        row, tombstone = self.rows.get(name), self.tombstones.pop(name)
        known = self.producers[row] if row is not None else tombstone.producers if tombstone is not None else None
        if known is not None:
            self.numbering_of(name).forget(known)
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
        if owner_of(name):
            own = self.rows_of[owner_of(name)]
            own.remove(row)
            if own.empty:
                del self.rows_of[owner_of(name)]
        self.names[row] = self.producers[row] = None
        self._free.append(row)

    def producers_of(self, row: int) -> Producers:
        """The numbered producers of this row's name, to be added to."""
        known = self.producers[row]
        if known is None:
            known = self.producers[row] = Producers()
            name = self.names[row]
            assert name is not None
            if name in self.tombstones:
                self.tombstones.put(name, Tombstone(self.tombstones[name].why, known))
        return known

    def expire(self, now: float, idle_s: float, waited_for: Callable[[int], bool], most: int | None = None) -> list[Name]:
        """Close the sessions that have not moved for longer than `idle_s`; those that somebody waits for stay.

        Called often, it looks at the rows seldom: see `Idle`.

        Args:
            now: seconds.
            idle_s: seconds.
            waited_for: whether somebody waits for a row.
            most: how many may be closed by this call, of some 4 us each; the next ones go on.

        Returns:
            Their names.
        """
        expired: list[Name] = []
        for row in self._idle.due(self.live, self.moved_at, now, idle_s):
            if waited_for(row):
                self._idle.again(now, len(self.names))
                continue
            name = self.names[row]
            assert name is not None
            expired.append(name)
            self.close(row, "expired")
            self.free(row)
            if len(expired) == most:
                break
        return expired

    def _rows(self, count: int) -> tuple[Array, Array, Array, Array]:
        """States, step counts and times of so many rows."""
        shape, dtype = (count, len(self._a0)), self._a0.dtype
        # t and moved_at change with each token: they lie side by side, for among a million rows each look elsewhere is a
        # cache miss, and 5 % of a token's time.
        moves = reserve((count, 2), np.int64)
        return reserve(shape, dtype), moves[:, 0], reserve((count,), np.float64), moves[:, 1].view(np.float64)

    def _grow(self) -> None:
        """Have more rows: all that there may ever be, so that none is ever moved; where there is no room, twice as many."""
        used = len(self.t)
        old = self.states, self.t, self.opened_at, self.moved_at
        try:
            new = self._rows(self.max_rows)
        except MemoryError:
            new = self._rows(max(64, 2 * used))
        for before, after in zip(old, new, strict=True):
            after[:used] = before
        self.states, self.t, self.opened_at, self.moved_at = new

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
        self.tombstones.check()
        for owner, own in self.rows_of.items():
            own.check({row for name, row in self.rows.items() if owner_of(name) == owner})
        remembered: dict[str, dict[int, Producers]] = {owner: {} for owner in self.numberings}
        for name, row in self.rows.items():
            known = self.producers[row]
            if known is not None:
                remembered[owner_of(name)][id(known)] = known
        for name, tombstone in self.tombstones.items():
            if name in self.rows:
                assert self.producers[self.rows[name]] is tombstone.producers
            elif tombstone.producers is not None:
                remembered[owner_of(name)][id(tombstone.producers)] = tombstone.producers
        for owner, some in remembered.items():
            self.numberings[owner].check(list(some.values()))
        here = Counter(owner_of(self.names[row] or "") for row in live)
        assert all(owner == "" or count <= self.owned[owner] for owner, count in here.items())
