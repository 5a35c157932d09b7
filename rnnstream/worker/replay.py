"""Sessions are put together again: the rows of the store, and the steps of its journal behind them, through the same engine."""

from __future__ import annotations

import numpy as np

from rnnstream.engine.engine import Engine
from rnnstream.errors import BadStore, StoreError
from rnnstream.names import Name
from rnnstream.store.interface import Store
from rnnstream.store.records import Batch, unpack_entry
from rnnstream.wire.requests import Request
from rnnstream.worker.intake import Intake
from rnnstream.worker.keeper import REBUILDING, Keeper
from rnnstream.worker.order import Body
from rnnstream.worker.runner import Runner
from rnnstream.worker.saving import unpacked
from rnnstream.worker.waves import Wave, Waves

CHUNK = 20_000  # steps of the journal that are sorted into waves at a time: those of different sessions make one batch

RETRY_MS = 1000  # what requests are told where a session cannot be put together

Entry = tuple[int, float, list[Batch]]


class Replay:
    """Replays the journal of a store.

    Args:
        engine: the sessions.
        store: open.
        keeper: of that store.
        intake: where rows are from.
        runner: makes the steps, and their replies, which may still be asked for.
    """

    def __init__(self, engine: Engine, store: Store, keeper: Keeper, intake: Intake, runner: Runner) -> None:
        self._engine, self._store, self._keeper, self._intake, self._runner = engine, store, keeper, intake, runner
        self._upto: dict[Name, int] = {}  # of each name that was brought: the journal entry that its row includes
        self._only: set[Name] | None = None

    def start(self) -> tuple[int, float]:
        """Put everything together that a worker has to have in memory when it begins: tombstones, and the journal's sessions.

        Returns:
            How many steps were replayed, and when the store was written last, in seconds on its clock.

        Raises:
            BadStore: the store is damaged.
            StoreError: it cannot be read, or cannot be written although not all sessions have room in memory.
        """
        for saved in self._store.tombstones():
            assert saved.status != "open"
            try:
                producers = unpacked(saved.producers)
            except (ValueError, TypeError):
                raise BadStore(f"The store is damaged: the producers of {saved.name} are none that a worker writes.") from None
            self._engine.table.bury(saved.name, saved.status, producers)
        steps, last = self._run(None)
        self._keeper.begin(steps)
        return steps, last

    def rebuild(self, names: set[Name]) -> None:
        """Put the sessions of these names together again, of which nothing is in memory.

        Raises:
            StoreError: the store cannot be read, or is damaged.
        """
        try:
            self._run(names)
        except BadStore as problem:
            raise StoreError(str(problem), retry_after_ms=RETRY_MS) from None

    def _run(self, only: set[Name] | None) -> tuple[int, float]:
        engine, keeper = self._engine, self._keeper
        self._only, self._upto = only, {}
        table = engine.table
        before = engine.explicit_open, table.max_sessions, table.most_owned
        engine.explicit_open, table.max_sessions, table.most_owned = False, 1 << 62, None  # all of it has counted
        steps, now = 0, 0.0
        chunk: list[Entry] = []
        waiting = 0
        try:
            if only is not None:
                keeper.replaying = REBUILDING
                self._bring(only)
            for id, entry in self._store.journal():
                try:
                    at, batches = unpack_entry(entry)
                except ValueError as problem:
                    raise BadStore(
                        f"The store is damaged: journal entry {id} is none that a worker writes ({problem})."
                    ) from None
                now = max(now, at)
                chunk.append((id, at, batches))
                waiting += sum(len(batch.names) for batch in batches)
                if waiting >= CHUNK:
                    steps, chunk, waiting = steps + self._apply(chunk), [], 0
            steps += self._apply(chunk)
        finally:
            engine.explicit_open, table.max_sessions, table.most_owned = before
            keeper.replaying = 0
        return steps, now

    def _bring(self, names: set[Name]) -> None:
        """What the store has of names that are new to this replay.

        Raises:
            BadStore: one of them is damaged, and a worker begins; a later one goes on without.
        """
        residence, table = self._keeper.residence, self._engine.table
        found = residence.bring(names)
        for saved in found.values():
            if saved.status != "open" and self._only is not None:  # when a worker begins, all are there that are remembered
                table.bury(saved.name, saved.status, unpacked(saved.producers))
        damaged = names & residence.damaged
        if damaged and self._only is None:
            raise BadStore(f"The store is damaged: the row of session {min(damaged, key=str)} does not match its checksum.")
        self._upto |= dict.fromkeys(names - damaged, 0) | {name: saved.upto for name, saved in found.items()}

    def _apply(self, chunk: list[Entry]) -> int:
        """Make the steps of some entries."""
        if not chunk:
            return 0
        if self._only is None:
            self._keeper.replaying = chunk[0][0]
        now = chunk[-1][1]
        names = {name for _, _, batches in chunk for batch in batches for name in batch.names}
        if self._only is None:
            self._bring(names - self._upto.keys())
        table, waves = self._engine.table, Waves(len(self._engine.table.names))
        opened_at: dict[int, float] = {}
        moved_at: dict[int, float] = {}
        for id, at, batches in chunk:
            for batch in batches:
                for row in self._sort(batch, id, waves, at):
                    moved_at[row] = at
                    if not table.live[row]:
                        opened_at.setdefault(row, at)
        steps = waves.count
        while waves.count:
            wave = waves.take()
            self._make(wave, now)
            waves.done(wave)
        for row, at in moved_at.items():  # all steps of the chunk were made as if at its end
            table.moved_at[row], table.opened_at[row] = at, opened_at.get(row, table.opened_at[row])
        if self._only is None:
            self._keeper.replaying = 0
            self._keeper.make_room(now, chunk[-1][0])
            self._upto = {name: upto for name, upto in self._upto.items() if name in table.rows}  # who has left comes again
        return steps

    def _sort(self, batch: Batch, id: int, waves: Waves, now: float) -> list[int]:
        """Put steps into waves, as when they came; those that a row includes are passed over. The rows of the others."""
        engine, table, rows, upto = self._engine, self._engine.table, self._engine.table.rows, self._upto
        ordinary = engine.model.input.kind == "token" and engine.model.output.kind == "categorical"
        numbered = {place: at for at, place in enumerate(batch.places)}
        body = Body(b"", len(batch.names), now)  # nobody waits for it
        found: list[int] = []
        for place, (name, x) in enumerate(zip(batch.names, batch.xs, strict=True)):
            if id <= upto.get(name, id):
                continue
            row = rows.get(name)
            if row is None:
                row = self._intake.row_of(name)
                waves.reach(row)
            found.append(row)
            at = numbered.get(place)
            if at is None and not table.live[row] and not waves.waiting[row]:
                table.open(row, now)
            if not ordinary or place in batch.wants or not table.live[row]:
                waves.add(row, self._request(batch, place, at), body, place)
                continue
            turn = waves.waiting[row]
            wave = waves.at(turn)
            if at is None:
                wave.body_rows.append(row)
                wave.body_xs.append(x)
                wave.body_names.append(str(name))
            else:
                wave.numbered.append((row, x, batch.producers[at], batch.ns[at], batch.acks[at], body, place))
            waves.waiting[row] = turn + 1
            waves.count += 1
        return found

    def _request(self, batch: Batch, place: int, at: int | None) -> Request:
        """The step at this place, whose numbering is at this one; without a number nobody can ask for its reply again."""
        x = batch.xs[place]
        request = Request(session=batch.names[place], x=np.frombuffer(x, "<f4") if isinstance(x, bytes) else x, want="none")
        if at is not None:
            request.producer, request.n, request.ack = batch.producers[at], batch.ns[at], batch.acks[at]
            request.want, request.surprisal = batch.wants.get(place, ("argmax", False))
        return request

    def _make(self, wave: Wave, now: float) -> None:
        """Run a wave of steps that have counted: their numbers count again, whatever is remembered."""
        table, stats = self._engine.table, self._runner.stats
        numbered = [(row, producer, n, body.arrived) for row, _, producer, n, _, body, _ in wave.numbered]
        for row, request, body, _ in wave.others:
            if request.producer is not None:
                numbered.append((row, request.producer, request.n, body.arrived))
        for row, producer, n, at in numbered:
            table.numbering_of(table.names[row] or "").follow(table.producers_of(row), producer, n, at)
        before = stats.errors.total()
        self._runner.run(wave, now)
        for row, producer, _, at in numbered:  # not when the wave was run
            table.producers_of(row)[producer].heard_at = at
        refused = stats.errors.total() - before
        if refused:
            raise BadStore(
                f"The journal does not fit its sessions: {refused} steps that counted once are refused now "
                f"({', '.join(stats.errors)}). The store is damaged, or was written on other kernels, whose last bits differ."
            )
