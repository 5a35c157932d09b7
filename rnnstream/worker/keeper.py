"""What stands between the sessions in memory and those in a store: what is written, when, and what happens if it cannot be.

Memory may be ahead of the store by one *group*: what some waves have changed, and no reply has told yet. `write` keeps the
group; then the replies may leave. If it cannot be kept, `drop` lets go of what memory has of the group's sessions, and they are
put together again from the store, as after a restart.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

from rnnstream.engine.engine import Engine
from rnnstream.engine.moves import Moves
from rnnstream.errors import StoreError
from rnnstream.names import Name, owner_of
from rnnstream.store.interface import Opened, Saved, Store, Write
from rnnstream.store.records import Batch, pack_entry
from rnnstream.worker.arrears import Arrears
from rnnstream.worker.forgetting import Forgetting
from rnnstream.worker.residence import Residence
from rnnstream.worker.saving import packed, saved_row, unpacked
from rnnstream.worker.waves import Wave

log = logging.getLogger("rnnstream.worker")

# How much the journal may hold before the sessions that are behind for longest are saved, so that a crash costs no more than
# about a second of replay: tokens of 100 numbers of state, fewer with larger states. A wave counts as some tokens too.
JOURNAL_TOKENS = 200_000
WAVE_TOKENS = 10
SLICE = 32  # sessions that a write saves at most, beside twice as many as it has tokens: the journal shrinks, nobody waits
SLICE_BYTES = 256 << 10  # of these, unless the write has more tokens than that are sessions
LATER_MS = 200  # when to ask again for what is not put together yet
RETRY_S = 0.05  # between two tries when the store has failed
REBUILDING = -1  # while sessions that were dropped are put together again


class Keeper:
    """Keeps an engine's sessions in a store.

    Args:
        engine: the sessions in memory.
        store: open.
        found: what was found in it.
        max_resident: most sessions in memory that nobody waits for; those that moved least recently leave.
        journal_tokens: how much the journal may hold, in tokens of 100 numbers.

    Attributes:
        residence: which of the sessions are in memory.
        replaying: id of the oldest journal entry that is being replayed, or `REBUILDING`; 0 otherwise.
        replayed: steps of the journal that were made again at the start.
        other_numerics: the kernels that the journal was written on, where they are not these.
        failures: writes that failed.
    """

    def __init__(
        self, engine: Engine, store: Store, found: Opened, *, max_resident: int, journal_tokens: int = JOURNAL_TOKENS
    ) -> None:
        self._engine, self._store = engine, store
        self._most_work = journal_tokens * 100 // max(100, engine.model.state_size)
        self._arrears = Arrears()
        self.residence = Residence(engine, store, self._arrears, max_resident)
        self._rebuild: Callable[[set[Name]], None] = lambda names: None
        self.replaying = self.replayed = self.failures = 0
        self.other_numerics = found.numerics if found.numerics != engine.model.numerics else ""
        self._id = found.last + 1
        self._oldest = 0  # journal entry that the store still has
        self._batches: list[Batch] = []
        self._changed: dict[Name, None] = {}
        self._forgetting = Forgetting()
        self._lost: set[Name] = set()  # names that were dropped, and not put together again yet
        self._failed: StoreError | None = None
        self._failed_bytes = 0
        self._retry_at = 0.0
        engine.table.absent = self._kept_open = found.sessions
        engine.table.forgotten = []
        engine.table.owned.update(found.owned)
        engine.table.excused = self.residence.damaged
        self._lost_open: dict[Name, int] = {}  # of those that keys own: 1 where it was open before the group

    def attach(
        self, row_of: Callable[[Name], int], waited_for: Callable[[int], bool], rebuild: Callable[[set[Name]], None]
    ) -> None:
        """Who gives rows to names, who knows for which rows a request waits, and who puts sessions together again."""
        self.residence.row_of, self.residence.waited_for, self._rebuild = row_of, waited_for, rebuild

    # -- what has happened in memory

    def stepped(self, moves: Moves, batch: Batch) -> None:
        """These steps were made, but for those whose state is not finite."""
        rows = moves.rows
        if moves.good is not None:
            rows, batch = rows[moves.good], batch.only(moves.good.tolist())
        if self.replaying == REBUILDING:
            return
        if not self._engine.model.exact and not self.replaying:  # it could come out otherwise: the states themselves are kept
            self.changed(*batch.names)
            return
        if self._forgetting or self._engine.table.forgotten:  # a row of that name may still be there, as a tombstone's
            pushed_out = set(self._engine.table.forgotten or ())
            self.changed(*[name for name in batch.names if name in pushed_out or name in self._forgetting])
        self._arrears.reach(len(self._engine.table.names))
        self._arrears.mark(rows, self.replaying or self._id)
        self._arrears.work += len(rows) + WAVE_TOKENS
        if not self.replaying:
            self._batches.append(batch)

    def changed(self, *names: Name) -> None:
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
        victims = self.residence.victims()
        if not (self._batches or self._changed or victims):
            return
        tokens = sum(len(batch.names) for batch in self._batches)
        row_bytes = 500 + self._engine.model.state_size * self._engine.model.dtype.itemsize
        rows = self._behind(self._most_work, max(tokens, min(SLICE + 2 * tokens, SLICE_BYTES // row_bytes)))
        rows += filter(self._arrears.behind, victims)
        self._put(now, rows)
        self.residence.evict(victims)

    def begin(self, replayed: int) -> None:
        """Everything is in memory that has to be there: this many steps of the journal were made again."""
        self.replayed = replayed
        self._kept_open = self._engine.table.open_count + self._engine.table.absent
        self._engine.table.owned_since.clear()

    def _behind(self, most_work: int, most: int) -> list[int]:
        """Open sessions behind which the journal has held more than this, the oldest first."""
        live, rows = self._engine.table.live, []
        for row in self._arrears.overdue(most_work, most):
            if live[row]:
                rows.append(row)
            else:
                self._arrears.settle(row)
        return rows

    def make_room(self, now: float, upto: int) -> None:
        """During a replay, when the journal was replayed up to this entry: save and let go of sessions beyond the bound.

        Raises:
            StoreError: it could not be.
        """
        assert not self._changed
        victims = self.residence.victims()
        if victims:
            self._put(now, [row for row in victims if self._arrears.behind(row)], upto)
            self.residence.evict(victims)

    def finish(self, now: float) -> None:
        """Save everything, so that the next start has nothing to replay.

        Raises:
            StoreError: not everything was saved; what counted is in the journal.
        """
        self.write(now)
        while self._arrears.oldest() is not None:
            self._put(now, self._behind(-1, 1000))
        self._put(now, [], last=True)

    def _put(self, now: float, rows: list[int], upto: int | None = None, *, last: bool = False) -> None:
        """Write the group, and save the sessions of these rows, which include the journal up to `upto`, or this entry."""
        table = self._engine.table
        saved = self._saved_changed()
        forgotten = self._forgetting.due(self._oldest, self._changed)
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
        finally:
            self._id += 1  # where it failed too: who knows what the disk has of it
        self._forgetting.gone(forgotten)
        self._batches, self._changed = [], {}
        for row in saved:
            if row.name in self.residence.damaged:  # it was reset; its old row was counted among those elsewhere
                self.residence.damaged.discard(row.name)
                table.absent = max(0, table.absent - 1)
                if owner_of(row.name):
                    table.owned[owner_of(row.name)] -= 1
            if row.status == "open":
                self._forgetting.recall(row.name)
                self.residence.has_row.add(row.name)
                self._arrears.settle(table.rows[row.name])
            else:
                self.residence.has_row.discard(row.name)
        self._kept_open = table.open_count + table.absent
        table.owned_since.clear()

    def _saved_changed(self) -> list[Saved]:
        """What is to be saved of the names that were changed."""
        table, saved = self._engine.table, []
        pushed_out, table.forgotten = table.forgotten or (), []
        self._forgetting.add([name for name in pushed_out if name not in table.tombstones and not self._open(name)], self._id)
        for name in self._changed:
            row, tombstone = table.rows.get(name), table.tombstones.get(name)
            if row is not None and table.live[row]:
                saved.append(saved_row(table, row, self._id))
            elif tombstone is not None:
                self._forgetting.recall(name)
                saved.append(Saved(name, tombstone.why, self._id, producers=packed(tombstone.producers)))
            else:  # pushed out at once
                saved.append(Saved(name, "closed", self._id))
                self._forgetting.add([name], self._id)
        return saved

    def _open(self, name: Name) -> bool:
        table = self._engine.table
        return name in table.rows and bool(table.live[table.rows[name]])

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
        was_open = {name: self._open(name) for name in names if owner_of(name)}
        for name in names:
            table.drop(name)
        self.residence.has_row -= names
        self.residence.absent.clear()
        self._lost |= names
        table.absent = self._kept_open - table.open_count
        for name in filter(owner_of, names):
            # Counted as before the group, for as long as it is not known what became of it.
            since = table.owned_since.pop(name, 0)
            table.owned[owner_of(name)] -= since
            self._lost_open[name] = was_open[name] - since
        self._batches, self._changed = [], {}

    def _try_again(self, now: float) -> None:
        """After a failure: see whether as much can be written as could not be.

        Raises:
            StoreError: it cannot, or it was tried just now.
        """
        if self._failed is None:
            return
        if now < self._retry_at:
            raise StoreError(str(self._failed), **self._failed.extra)
        try:
            self._store.write(Write(self._id, pack_entry(now, [], self._failed_bytes)))
        except StoreError as error:
            self._has_failed(error, now, self._failed_bytes)
            raise
        finally:
            self._id += 1
        self._failed = None
        log.info("the store works again")

    # -- what is asked for

    def prepare(self, wave: Wave, now: float) -> None:
        """Have everything in memory that this wave asks for.

        Raises:
            StoreError: it cannot be had at present, or the store has failed and would keep nothing.
        """
        self._try_again(now)
        if self._lost:
            self._put_together()
        residence, rows = self.residence, self._engine.table.rows
        copies = [request.to for _, request, *_ in wave.others if request.to and request.to not in rows]
        if residence.absent or copies:
            self.bring(residence.wanted() + copies, now)
            residence.absent.clear()

    def bring(self, names: list[Name], now: float) -> None:
        """Have what the store has of these names: sessions, tombstones; those long idle expire.

        Raises:
            StoreError: it cannot be read.
        """
        engine, table = self._engine, self._engine.table
        found = self.residence.bring(name for name in names if name not in table.tombstones)
        for saved in found.values():
            if saved.status != "open":  # it was on the way to be forgotten
                self._forgetting.recall(saved.name)
                table.bury(saved.name, saved.status, unpacked(saved.producers))
            elif engine.expire_row(row := table.rows[saved.name], now):
                self.changed(saved.name)
                if not self.residence.waited_for(row):
                    table.free(row)

    def sweep(self, now: float, idle_s: float) -> None:
        """Let some stored sessions expire that have been idle for too long."""
        if self._lost:  # whose rows may be behind
            return
        try:
            self.bring(self.residence.idle(now, idle_s), now)
        except StoreError as error:
            log.warning("idle sessions in the store could not be looked for: %s", error)
            self.residence.rest(now)

    def _put_together(self) -> None:
        """Have the sessions back that were dropped."""
        table, residence = self._engine.table, self.residence
        kept_open, owned, since = table.open_count + table.absent, Counter(table.owned), Counter(table.owned_since)
        try:
            self._rebuild(self._lost)
        except Exception:
            for name in self._lost:
                table.drop(name, waited_for=name in table.rows and residence.waited_for(table.rows[name]))
            residence.has_row -= self._lost
            raise
        finally:
            table.absent = max(0, kept_open - table.open_count)  # less, where a write that failed was kept all the same
            table.owned, table.owned_since = owned, since
        for name, before in self._lost_open.items():  # another count, where a write that failed was kept all the same
            table.owned[owner_of(name)] += self._open(name) - before
        self._lost_open = {}
        self.changed(*filter(self._open, self._lost))
        self._lost = set()

    # -- what is told

    def page(
        self, prefix: str, after: int, limit: int, scan: int, owner: str | None = None
    ) -> tuple[list[Name], int | None, int]:
        """Names of open sessions, those in the store too; see `Residence.page`.

        Raises:
            StoreError: the store cannot be read, or has failed, and not all is put together again.
        """
        if self._lost:
            raise StoreError(f"The store has failed; ask again in {LATER_MS} ms.", retry_after_ms=LATER_MS)
        return self.residence.page(prefix, after, limit, scan, owner)

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
            "loads": self.residence.loads,
            "evictions": self.residence.evictions,
            "damaged": len(self.residence.damaged),
        }

    def check(self) -> None:
        """Assert what always holds once a group has been written or dropped."""
        self.residence.check()
        table = self._engine.table
        for row, name in enumerate(table.names):
            if name is not None and table.live[row] and name not in self.residence.has_row:
                assert self._arrears.behind(row) or name in self._changed, name
