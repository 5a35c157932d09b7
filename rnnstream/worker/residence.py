"""Which of a store's sessions are in memory: they come when they are asked for; those that have not moved for longest leave."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable

import numpy as np

from rnnstream.engine.engine import Engine
from rnnstream.errors import StoreError
from rnnstream.names import Name, owner_of
from rnnstream.store.interface import Saved, Store
from rnnstream.worker.arrears import Arrears
from rnnstream.worker.saving import fits, unpacked

log = logging.getLogger("rnnstream.worker")

LEAVING, MOST_LEAVING = 16, 10_000  # those that leave are looked for once for such a part of all, or so many
SAMPLED = 20_000
SWEPT = 200  # stored sessions that are looked at at a time, for idle ones: 0.3 ms
SWEEP_S = 0.01  # between two such looks
REST_S = 10.0  # likewise, where the store could not be read
PAGE = 1000  # stored sessions that a listing looks at at a time: 1 ms
MOST_ID = 1 << 62  # no store has as many rows
STORED = 1 << 40  # where the cursors of a listing begin for sessions in the store; below are rows of memory
DAMAGED_MS = 60_000  # when to ask again for a session that somebody has to mend first


class Residence:
    """Brings sessions into memory and lets them go.

    Args:
        engine: the sessions in memory.
        store: all of them.
        arrears: which of those in memory are ahead of the store.
        max_resident: most sessions in memory that nobody waits for.

    Attributes:
        absent: rows that were taken for names of which the store knows what they are.
        damaged: names whose rows in the store do not match their checksums.
        has_row: names in memory that the store has a row of.
        loads, evictions: sessions that came back, and that left.
        row_of: gives rows to names.
        waited_for: tells for which rows a request waits.
    """

    def __init__(self, engine: Engine, store: Store, arrears: Arrears, max_resident: int) -> None:
        self._engine, self._store, self._arrears, self._max_resident = engine, store, arrears, max_resident
        self.absent: set[int] = set()
        self.damaged: set[Name] = set()
        self.has_row: set[Name] = set()
        self.loads = self.evictions = 0
        self.row_of: Callable[[Name], int] = engine.table.take
        self.waited_for: Callable[[int], bool] = lambda row: False
        self._leaving: deque[int] = deque()
        self._leaving_until = 0.0
        self._swept = 0
        self._sweep_at = 0.0

    def wanted(self) -> list[Name]:
        """The names of the rows that are absent; these rows are nobody else's any more."""
        table, names = self._engine.table, []
        for row in self.absent:
            name = table.names[row]
            if name is not None and not table.live[row]:
                self._arrears.settle(row)
                names.append(name)
        return names

    def bring(self, names: Iterable[Name]) -> dict[Name, Saved]:
        """Fetch what the store has of these names, and put the open ones into their rows, unless they are there.

        Returns:
            What was found, by name.

        Raises:
            StoreError: the store cannot be read.
        """
        table = self._engine.table
        found, damaged = self._store.load(list(names))
        for name in damaged:
            log.error("session %s%s: its row in the store is damaged; see rnnstream store check", name, _of(name))
        self.damaged.update(damaged)
        whole: dict[Name, Saved] = {}
        for saved in found:
            if not fits(saved, table.states):
                log.error("session %s%s: its row in the store is no session's of this model", saved.name, _of(saved.name))
                self.damaged.add(saved.name)
                continue
            whole[saved.name] = saved
            row = self.row_of(saved.name) if saved.status == "open" else -1
            if saved.status == "open" and not table.live[row]:
                state = np.frombuffer(saved.state, table.states.dtype.newbyteorder("<"))
                table.place(row, state, saved.t, saved.opened_at, saved.moved_at, unpacked(saved.producers))
                self._arrears.settle(row)
                self.has_row.add(saved.name)
                self.loads += 1
        return whole

    def hold_whole(self, *names: Name) -> None:
        """Judge whether what the store has of these names can be used.

        Raises:
            StoreError: it is damaged.
        """
        table = self._engine.table
        for name in names:
            row = table.rows.get(name)
            # What is here was reset since, and the damaged row is replaced by the next write.
            here = name in table.tombstones or (row is not None and table.live[row])
            if name in self.damaged and not here:
                raise StoreError(
                    f"{name}: its row in the store is damaged (see rnnstream store check); reset starts it anew.",
                    retry_after_ms=DAMAGED_MS,
                )

    def victims(self) -> list[int]:
        """The rows that have to leave: those that moved least recently, unless somebody waits for them."""
        table = self._engine.table
        most = len(table.rows) - self._max_resident
        found: dict[int, None] = {}
        for look in (False, True):  # those found before may have moved since, so there is a second try
            if most - len(found) > (0 if look else len(self._leaving)):
                self._look_for_leaving(most)
            while self._leaving and len(found) < most:
                row = self._leaving.popleft()
                if table.live[row] and table.moved_at[row] <= self._leaving_until and not self.waited_for(row):
                    found[row] = None
        return list(found)

    def _look_for_leaving(self, most: int) -> None:
        """Find at least so many of the rows that moved least recently, and a part of all, in order.

        Among very many, by when most of a sample had moved: a million rows take 10 ms so, and 100 ms to be sorted.
        """
        table = self._engine.table
        rows = np.frombuffer(table.live, np.uint8).nonzero()[0]
        moved_at = table.moved_at[rows]
        count = min(len(rows), max(2 * most, min(len(rows) // LEAVING, MOST_LEAVING)))
        if not count:
            return
        if len(rows) > SAMPLED:
            until = np.quantile(moved_at[:: len(rows) // SAMPLED], min(1.0, 1.2 * count / len(rows)))
            some = (moved_at <= until).nonzero()[0]
            if len(some) >= count:
                rows, moved_at = rows[some], moved_at[some]
        oldest = np.argsort(moved_at, kind="stable")[:count]
        self._leaving, self._leaving_until = deque(rows[oldest].tolist()), float(moved_at[oldest[-1]])

    def evict(self, rows: list[int]) -> None:
        """These leave; the store has all of them."""
        table = self._engine.table
        for row in rows:
            self._arrears.settle(row)
            self.has_row.discard(table.names[row] or "")
            table.evict(row)
            self.evictions += 1

    def idle(self, now: float, idle_s: float) -> list[Name]:
        """Some sessions, not in memory, that have not moved for so long: a part of the store is looked at, now and then.

        Raises:
            StoreError: the store cannot be read.
        """
        table = self._engine.table
        if now < self._sweep_at or not table.absent:
            return []
        found, after = self._store.page(self._swept, SWEPT)
        self._swept, self._sweep_at = after or 0, now + (SWEEP_S if after else max(SWEEP_S, idle_s / 4))
        return [name for _, name, moved_at in found if moved_at < now - idle_s and name not in table.rows]

    def rest(self, now: float) -> None:
        """The store could not be looked through: not again soon."""
        self._sweep_at = now + REST_S

    def page(
        self, prefix: str, after: int, limit: int, scan: int, owner: str | None = None
    ) -> tuple[list[Name], int | None, int]:
        """Names of open sessions: those that the store has no row of, then all others; see `Rows.page`.

        A session whose first row is saved between two pages can be in both parts.

        Raises:
            StoreError: the store cannot be read.
        """
        table = self._engine.table
        if after < STORED:
            names, following, looked_at = self._engine.page(prefix, after, limit, scan, owner)
            return [name for name in names if name not in self.has_row], following or STORED, looked_at
        if after - STORED > MOST_ID:
            return [], None, 0
        found, end = self._store.page(after - STORED, min(scan, PAGE), owner)
        names = []
        for cursor, name, _ in found:
            row = table.rows.get(name)
            if str(name).startswith(prefix) and name not in table.tombstones and (row is None or table.live[row]):
                names.append(name)
                if len(names) == limit and cursor != found[-1][0]:
                    end = cursor
                    break
        return names, None if end is None else STORED + end, min(scan, PAGE)  # those that are not open take as long

    def check(self) -> None:
        """Assert what always holds between turns."""
        table = self._engine.table
        assert all(name in table.rows and table.live[table.rows[name]] for name in self.has_row)


def _of(name: Name) -> str:
    """Whose it is, for the log."""
    return f" of {owner_of(name)}" if owner_of(name) else ""
