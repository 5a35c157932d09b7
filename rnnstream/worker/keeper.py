"""What stands between the sessions in memory and those in a store: what is to be written, what leaves, and what comes back.

Memory may be ahead of the store by one *group*: what some waves have changed, and no reply has told yet. `write` keeps the
group; then the replies may leave. If it cannot be kept, `drop` lets go of what memory has of the group's sessions, and they are
put together again from the store, as after a restart.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnstream.engine.engine import Engine
from rnnstream.engine.rows import Moves
from rnnstream.errors import StoreError
from rnnstream.store.interface import Opened, Saved, Store, Write
from rnnstream.store.records import Batch, pack_entry
from rnnstream.worker.arrears import Arrears
from rnnstream.worker.queue import Wave
from rnnstream.worker.saving import packed, saved_row, unpacked

Array = npt.NDArray[Any]
log = logging.getLogger("rnnstream.worker")

# How much the journal may hold before the sessions that are behind for longest are saved, so that a crash costs no more than
# about a second of replay: tokens of 100 numbers of state, fewer with larger states. A wave counts as some tokens too.
JOURNAL_TOKENS = 200_000
WAVE_TOKENS = 10
SLICE = 32  # sessions that a write saves at most, beside twice as many as it has tokens: the journal shrinks, nobody waits
RETRY_S = 0.05  # between two tries when the store has failed
LEAVING = 16  # the least recently used are looked for once for such a part of all
FORGOTTEN = 200  # rows that a write deletes at most
SWEPT = 200  # stored sessions that are looked at at a time, for idle ones: 0.3 ms
SWEEP_S = 0.01  # between two such looks
STORED = 1 << 40  # what the cursors of `page` begin at for sessions in the store: below are rows of memory


class Keeper:
    """Keeps an engine's sessions in a store.

    Args:
        engine: the sessions in memory.
        store: open.
        found: what was found in it.
        max_resident: most sessions in memory that nobody waits for; the least recently used leave.
        journal_tokens: how much the journal may hold, in tokens of 100 numbers.

    Attributes:
        absent: rows that were taken for names of which only the store knows what they are.
        damaged: names whose rows in the store do not match their checksums.
        replaying: id of the oldest journal entry that is being replayed; 0 otherwise.
        loads, evictions, failures: sessions that came back and that left; writes that failed.
        replayed: steps of the journal that were made again at the start.
        other_numerics: the kernels that the journal was written on, where they are not these.
    """

    def __init__(
        self, engine: Engine, store: Store, found: Opened, *, max_resident: int, journal_tokens: int = JOURNAL_TOKENS
    ) -> None:
        self._engine, self._store = engine, store
        self._max_resident = max_resident
        self._most_work = journal_tokens * 100 // max(100, engine.model.state_size)
        self._row_of: Callable[[str], int] = engine.table.take
        self._waited_for: Callable[[int], bool] = lambda row: False
        self._rebuild: Callable[[set[str]], None] = lambda names: None
        self.absent: set[int] = set()
        self.damaged: set[str] = set()
        self.replaying = 0
        self.loads = self.evictions = self.failures = self.replayed = 0
        self.other_numerics = found.numerics if found.numerics != engine.model.numerics else ""
        self._id = found.last + 1
        self._batches: list[Batch] = []
        self._changed: dict[str, None] = {}
        self._arrears = Arrears()
        self._has_row: set[str] = set()  # names in memory that the store has a row of
        self._leaving: deque[int] = deque()
        self._leaving_until = 0.0
        self._lost: set[str] = set()  # names that were dropped, and not put together again yet
        # Names that are remembered no longer, and since which entry: their rows stay while the journal has steps of theirs.
        self._forgetting: dict[str, int] = {}
        self._failed: StoreError | None = None
        self._failed_bytes = 0
        self._retry_at = self._sweep_at = 0.0
        self._swept = 0
        self._oldest = 0  # journal entry that the store still has
        engine.table.absent = self._kept_open = found.sessions
        engine.table.forgotten = []

    def attach(
        self, row_of: Callable[[str], int], waited_for: Callable[[int], bool], rebuild: Callable[[set[str]], None]
    ) -> None:
        """Who gives rows to names, who knows for which rows a request waits, and who puts sessions together again."""
        self._row_of, self._waited_for, self._rebuild = row_of, waited_for, rebuild

    # -- what has happened in memory

    def stepped(self, moves: Moves, batch: Batch) -> None:
        """These steps were made, but for those whose state is not finite."""
        rows = moves.rows
        if moves.good is not None:
            rows, batch = rows[moves.good], batch.only(moves.good.tolist())
        if not self._engine.model.exact:  # replayed, it could come out otherwise: the states themselves are kept
            self.changed(*batch.names)
            return
        self._arrears.mark(rows, self.replaying or self._id)
        self._arrears.work += len(rows) + WAVE_TOKENS
        if not self.replaying:
            self._batches.append(batch)

    def changed(self, *names: str) -> None:
        """Something else than a step has changed these names, so they are saved as a whole. Empty ones are passed over."""
        self._changed.update((name, None) for name in names if name)

    # -- writing

    def write(self, now: float) -> None:
        """Keep what has happened since the last write; and save some of the sessions that are behind, and those that leave.

        Raises:
            StoreError: it was not kept. `drop` is to be called, once nobody waits for anything.
        """
        if self.failing:  # and nothing is carried out before `prepare` has seen that it works again
            return
        victims = self._victims(len(self._engine.table.rows) - self._max_resident)
        if not (self._batches or self._changed or victims):
            return
        rows = self._arrears.overdue(self._most_work, SLICE + 2 * sum(len(batch.names) for batch in self._batches))
        rows += filter(self._arrears.behind, victims)
        self._put(now, rows)
        self._evict(victims)

    def make_room(self, now: float, upto: int) -> None:
        """During a replay, when the journal was replayed up to this entry: save and let go of sessions beyond the bound.

        Raises:
            StoreError: it could not be.
        """
        victims = self._victims(len(self._engine.table.rows) - self._max_resident)
        if victims:
            self._put(now, [row for row in victims if self._arrears.behind(row)], upto)
            self._evict(victims)

    def finish(self, now: float) -> None:
        """Save everything, so that the next start has nothing to replay.

        Raises:
            StoreError: not everything was saved; what counted is in the journal.
        """
        self.write(now)
        while rows := self._arrears.overdue(-1, 1000):
            self._put(now, rows)
        self._put(now, [], last=True)

    def _put(self, now: float, rows: list[int], upto: int | None = None, *, last: bool = False) -> None:
        """Write the group, and save the sessions of these rows, which include the journal up to `upto`, or this entry."""
        table = self._engine.table
        saved = self._saved_changed()
        forgotten = [name for name, id in self._forgetting.items() if id < self._oldest][:FORGOTTEN]
        saved += [
            saved_row(table, row, self._id if upto is None else upto)
            for row in dict.fromkeys(rows)
            if table.names[row] not in self._changed
        ]
        entry = pack_entry(now, self._batches)
        # As if nothing were saved here: the entries that this makes superfluous are dropped by the next writes.
        needed = 0 if self._lost or upto is not None else self._arrears.oldest() or self._id
        try:
            self._oldest = self._store.write(Write(self._id, entry, saved, forgotten, needed, last))
        except StoreError as error:
            self._has_failed(error, now, len(entry) + sum(len(row.state) + len(row.producers) + 500 for row in saved))
            raise
        self._id += 1
        self._batches, self._changed = [], {}
        for name in forgotten:
            del self._forgetting[name]
        self._kept_open = table.open_count + table.absent
        for row in saved:
            if row.status == "open":
                self._has_row.add(row.name)
                self._arrears.settle(table.rows[row.name])
            else:
                self._has_row.discard(row.name)

    def _saved_changed(self) -> list[Saved]:
        """What is to be saved of the names that were changed."""
        table, saved = self._engine.table, []
        if table.forgotten:
            self._forgetting |= dict.fromkeys(table.forgotten, self._id)
            table.forgotten = []
        for name in self._changed:
            row, tombstone = table.rows.get(name), table.tombstones.get(name)
            if row is not None and table.live[row]:
                saved.append(saved_row(table, row, self._id))
            elif tombstone is not None:
                saved.append(Saved(name, tombstone.why, self._id, producers=packed(tombstone.producers)))
            else:  # pushed out at once
                saved.append(Saved(name, "closed", self._id))
                self._forgetting[name] = self._id
        return saved

    # -- failure

    @property
    def failing(self) -> bool:
        """Whether the last write failed."""
        return self._failed is not None

    def _has_failed(self, error: StoreError, now: float, size: int) -> None:
        self.failures += 1
        if self._failed is None:
            log.error("the store has failed: %s", error)
        self._failed, self._failed_bytes, self._retry_at = error, size, now + RETRY_S

    def drop(self) -> None:
        """The group could not be kept: let go of its sessions. Nobody may wait for a row."""
        table = self._engine.table
        names = self._changed.keys() | {name for batch in self._batches for name in batch.names}
        for name in names:
            table.drop(name)
        self._has_row -= names
        self._lost |= names
        table.absent = self._kept_open - table.open_count
        self._batches, self._changed = [], {}

    def _try_again(self, now: float) -> None:
        """After a failure: see whether as much can be written as could not be.

        Raises:
            StoreError: it cannot, or it was tried just now.
        """
        if self._failed is None:
            return
        if now < self._retry_at:
            raise self._failed
        try:
            self._store.write(Write(self._id, pack_entry(now, [], self._failed_bytes)))
        except StoreError as error:
            self._has_failed(error, now, self._failed_bytes)
            raise
        self._id += 1
        self._failed = None
        log.info("the store works again")

    # -- residence

    def prepare(self, wave: Wave, now: float) -> None:
        """Have everything in memory that this wave asks for.

        Raises:
            StoreError: it cannot be had at present, or the store has failed and would keep nothing.
        """
        self._try_again(now)
        if self._lost:
            self._put_together()
        table = self._engine.table
        names = [request.to for _, request, *_ in wave.others if request.to and request.to not in table.rows]
        for row in self.absent:
            name = table.names[row]
            if name is not None and not table.live[row]:
                self._arrears.settle(row)  # it may have been somebody else's
                names.append(name)
        if names:
            self.bring(names, now)
        self.absent.clear()

    def _put_together(self) -> None:
        """Have the sessions back that were dropped."""
        table = self._engine.table
        try:
            self._rebuild(self._lost)
        except StoreError:
            for name in self._lost:
                table.drop(name, waited_for=name in table.rows and self._waited_for(table.rows[name]))
            self._has_row -= self._lost
            table.absent = self._kept_open - table.open_count
            raise
        self._lost = set()

    def bring(self, names: Iterable[str], now: float) -> dict[str, int]:
        """Fetch what the store has of these names.

        Returns:
            Up to which journal entry that goes, of those that it has anything of.

        Raises:
            StoreError: it cannot be read.
        """
        table = self._engine.table
        found, damaged = self._store.load([name for name in names if self.replaying or name not in table.tombstones])
        for name in damaged:
            log.error("the row of session %s does not match its checksum; see rnnstream store check", name)
        self.damaged.update(damaged)
        for row in found:
            if row.status == "open":
                self._place(row, now)
            elif row.name not in table.tombstones:
                self._forgetting.pop(row.name, None)
                table.bury(row.name, row.status, unpacked(row.producers))
        return {row.name: row.upto for row in found}

    def _place(self, saved: Saved, now: float) -> None:
        engine, table = self._engine, self._engine.table
        row = self._row_of(saved.name)
        if table.live[row]:
            return
        state = np.frombuffer(saved.state, table.states.dtype.newbyteorder("<"))
        table.place(row, state, saved.t, saved.opened_at, saved.moved_at, unpacked(saved.producers))
        self._arrears.settle(row)
        self._has_row.add(saved.name)
        self.damaged.discard(saved.name)
        self.loads += 1
        if not self.replaying and engine.expire_row(row, now):
            self.changed(saved.name)

    def hold_whole(self, *names: str) -> None:
        """Judge whether what the store has of these names can be used.

        Raises:
            StoreError: it is damaged.
        """
        for name in names:
            if name in self.damaged:
                raise StoreError(f"{name}: its row in the store is damaged; see rnnstream store check.", retry_after_ms=60_000)

    def _victims(self, most: int) -> list[int]:
        """Up to so many rows, of those least recently used, for which nobody waits."""
        table = self._engine.table
        found: list[int] = []
        if most > len(self._leaving):
            rows = np.frombuffer(table.live, np.uint8).nonzero()[0]
            count = min(len(rows), max(2 * most, len(rows) // LEAVING))
            if count:
                moved_at = table.moved_at[rows]
                oldest = np.argpartition(moved_at, count - 1)[:count]
                oldest = oldest[np.argsort(moved_at[oldest], kind="stable")]
                self._leaving, self._leaving_until = deque(rows[oldest].tolist()), float(moved_at[oldest[-1]])
        while self._leaving and len(found) < most:
            row = self._leaving.popleft()
            if table.live[row] and table.moved_at[row] <= self._leaving_until and not self._waited_for(row):
                found.append(row)
        return found

    def _evict(self, rows: list[int]) -> None:
        table = self._engine.table
        for row in rows:
            self._arrears.settle(row)
            self._has_row.discard(table.names[row] or "")
            table.evict(row)
            self.evictions += 1

    def sweep(self, now: float, idle_s: float) -> None:
        """Look at some stored sessions for those that have been idle for too long; they come back, and expire."""
        table = self._engine.table
        if now < self._sweep_at or self._failed is not None or not table.absent:
            return
        try:
            found, after = self._store.page(self._swept, SWEPT)
            self.bring([name for _, name, moved_at in found if moved_at < now - idle_s and name not in table.rows], now)
        except StoreError as error:
            log.warning("idle sessions in the store could not be looked for: %s", error)
            after = None
        self._swept, self._sweep_at = after or 0, now + (SWEEP_S if after else max(SWEEP_S, idle_s / 4))

    # -- what is told

    def hello(self) -> dict[str, Any]:
        """What `hello` says of the store."""
        return {"durability": self._store.durability, "replayed": self.replayed} | (
            {"numerics": self.other_numerics} if self.other_numerics else {}
        )

    def stats(self) -> dict[str, Any]:
        """What `stats` says of the store."""
        return {
            "failing": self.failing,
            "failures": self.failures,
            "resident": self._engine.table.open_count,
            "loads": self.loads,
            "evictions": self.evictions,
            "damaged": len(self.damaged),
            "entries": self._id - max(self._oldest, 1),
        }

    def page(self, prefix: str, after: int, limit: int, scan: int) -> tuple[list[str], int | None, int]:
        """Names of open sessions, those that the store has no row of first; see `Rows.page`.

        Raises:
            StoreError: the store cannot be read.
        """
        table = self._engine.table
        if after < STORED:
            names, following, looked_at = self._engine.page(prefix, after, limit, scan)
            return [name for name in names if name not in self._has_row], following or STORED, looked_at
        found, end = self._store.page(after - STORED, min(scan, 1000))
        names = []
        for cursor, name, _ in found:
            row = table.rows.get(name)
            if name.startswith(prefix) and name not in table.tombstones and (row is None or table.live[row]):
                names.append(name)
                if len(names) == limit:
                    end = cursor
                    break
        return names, None if end is None else STORED + end, len(found)

    def check(self) -> None:
        """Assert what always holds once a group has been written or dropped."""
        table = self._engine.table
        assert all(name in table.rows and table.live[table.rows[name]] for name in self._has_row)
        for row, name in enumerate(table.names):
            if name is not None and table.live[row] and name not in self._has_row:
                assert self._arrears.behind(row) or name in self._changed, name
