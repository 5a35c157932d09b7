"""A core with a store, without a process: it crashes and stops when told to, and so does what it is kept in."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rnnstream.engine.engine import Engine
from rnnstream.engine.numbering import Numbering
from rnnstream.errors import StoreError
from rnnstream.model.blas import one_thread
from rnnstream.model.step import StepModel
from rnnstream.names import Name
from rnnstream.store.interface import Identity, Opened, Saved, Store, Write
from rnnstream.store.memory import MemoryStore
from rnnstream.store.records import unpack_entry
from rnnstream.store.sqlite import SQLiteStore
from rnnstream.wire.limits import Limits
from rnnstream.wire.replies import decode
from rnnstream.worker.core import Core
from rnnstream.worker.keeper import JOURNAL_TOKENS, Keeper
from rnnstream.worker.order import Address

from .driving import Driver, Reply

WAITED_FOR = 10_000  # rows beside those that may stay


class Damaged(MemoryStore):
    """Says of some rows that they are damaged.

    Attributes:
        bad: their names.
    """

    bad: tuple[Name, ...] = ()

    def load(self, names: Sequence[Name]) -> tuple[list[Saved], list[Name]]:
        found, _ = super().load(names)
        return [saved for saved in found if saved.name not in self.bad], [s.name for s in found if s.name in self.bad]


class FlakyStore(Store):
    """A store that fails when told to, changing nothing.

    Attributes:
        inner: the store.
        chance: by operation, "write", "load", "journal" or "page": how likely it is to fail.
        next: by operation: how many of the next calls fail.
        calls, failed: by operation.
        writes: all that were kept since `open`.
    """

    def __init__(self, inner: Store, seed: int = 0) -> None:
        self.inner, self.durability = inner, inner.durability
        self.chance: dict[str, float] = {}
        self.next: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.writes: list[Write] = []
        self._random = random.Random(seed)

    def _call(self, operation: str) -> None:
        self.calls[operation] += 1
        if self.next[operation] > 0 or self._random.random() < self.chance.get(operation, 0):
            self.next[operation] = max(0, self.next[operation] - 1)
            self.failed[operation] += 1
            raise StoreError(f"no {operation} today", retry_after_ms=7)

    def open(self, identity: Identity) -> Opened:
        self.writes = []
        return self.inner.open(identity)

    def close(self) -> None:
        self.inner.close()

    def write(self, write: Write) -> int:
        self._call("write")
        assert not self.writes or write.id > self.writes[-1].id
        oldest = self.inner.write(write)
        self.writes.append(write)
        return oldest

    def load(self, names: Sequence[Name]) -> tuple[list[Saved], list[Name]]:
        self._call("load")
        return self.inner.load(names)

    def tombstones(self) -> Iterator[Saved]:
        return self.inner.tombstones()

    def journal(self) -> Iterator[tuple[int, bytes]]:
        """Where it fails by chance, it does so behind some entries."""
        at = self._random.randrange(5)
        for place, entry in enumerate(self.inner.journal()):
            if place == at:
                self._call("journal")
            yield entry
        if self.next["journal"]:
            self._call("journal")

    def page(self, after: int, scan: int, owner: str | None = None) -> tuple[list[tuple[int, Name, float]], int | None]:
        self._call("page")
        return self.inner.page(after, scan, owner)


class Kept(Driver):
    """Drives a core whose sessions are in a store; another core after each crash.

    Args:
        model: the model.
        store: where sessions are kept; a new one in memory unless given.
        max_resident, journal_tokens: of the keeper.
        hold_s: of the core.
        bounds: of the numbering.
        keys: further options of the core; None: the worker knows no keys.

    Attributes:
        store: which fails when told to.
        keeper: of the core.
        now, tick_s: the time, and how far each call moves it.
        replayed: steps that were made again at the start.
    """

    def __init__(
        self,
        model: StepModel,
        store: Store | None = None,
        *,
        limits: Limits | None = None,
        max_resident: int = 1000,
        journal_tokens: int = JOURNAL_TOKENS,
        hold_s: float = 0.0,
        tick_s: float = 0.01,
        bounds: dict[str, Any] | None = None,
        keys: dict[str, Any] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        self.now, self.tick_s = 0.0, tick_s
        self.model, self.hold_s, self.options, self.bounds = model, hold_s, options, bounds or {}
        self.max_resident, self.journal_tokens = max_resident, journal_tokens
        self.store = FlakyStore(store or MemoryStore(), seed)
        self.crashes = 0
        self.keys = keys or {}
        super().__init__(model, limits=limits, keys=keys)
        self.begin()

    def begin(self) -> None:
        """A new core, on what the store has."""
        model = self.model
        dtype = model.dtype.newbyteorder("<").str
        found = self.store.open(Identity(model.digest, model.name, dtype, model.state_size, model.numerics))
        numbering = Numbering(**self.bounds)
        self.engine = Engine(model, numbering=numbering, max_rows=self.max_resident + WAITED_FOR, **self.options)
        self.keeper = Keeper(self.engine, self.store, found, max_resident=self.max_resident, journal_tokens=self.journal_tokens)
        more = {"keeper": self.keeper, "hold_s": self.hold_s, **self.keys}
        self.core = Core(self.engine, worker="w", version="v", limits=self.limits, **more)
        try:
            with one_thread():
                self.replayed, self.now = self.core.begin(self.store)
                self.core.check()
                if self.keeper.other_numerics:
                    self.keeper.finish(self.now)
        except BaseException:
            self.store.close()
            raise

    def clock(self) -> float:
        self.now += self.tick_s
        return self.now

    def check(self) -> None:
        if not self.core._group:
            self.core.check()
            return
        self.engine.check()  # while replies are held, bodies and the keeper have something left to do
        self.core._intake.waves.check()

    def crash(self) -> dict[Address, list[Reply | None]]:
        """As after kill -9. What stood in bodies that were not sent yet: only what was kept may stand there."""
        lost = {body.address: told(body) for bodies in self.core._intake.order.held.values() for body in bodies}
        self.crashes += 1
        self.unanswered.clear()
        before = self.store.inner
        if isinstance(before, SQLiteStore):
            path = before.path.with_name(f"{self.crashes}-{before.path.name.rpartition('-')[2]}")
            self.store.inner = SQLiteStore(copied(before.path, path), before.durability)  # type: ignore[arg-type]
        before.close()
        self.begin()
        return lost

    def stop(self) -> None:
        """End as a worker does, and begin again."""
        self.finish()
        try:
            self.keeper.finish(self.clock())
        finally:
            self.store.close()
        self.begin()

    def calm(self) -> None:
        """Nothing fails any more, and everything works again."""
        self.store.chance.clear()
        self.store.next.clear()
        self.now += 1
        self.ask({"op": "info", "session": "nobody"}, address=b"calm")
        assert not self.keeper.failing

    def listing(self, prefix: str = "", limit: int = 3) -> list[str]:
        """All pages of `sessions`."""
        names: list[str] = []
        after = 0
        while after is not None:
            (page,) = self.ask({"op": "sessions", "prefix": prefix, "after": after, "limit": limit}, address=b"listing")
            assert len(page["sessions"]) <= limit
            names += page["sessions"]
            after = page.get("next")
        return names

    def stats(self) -> Reply:
        return self.ask({"op": "stats"}, address=b"stats")[0]


def numbered(n: int, x: Any = 1, session: str = "s", producer: str = "p", **more: Any) -> dict[str, Any]:
    return {"session": session, "x": x, "producer": producer, "n": n, **more}


def op(op: str, session: str, **more: Any) -> dict[str, Any]:
    return {"op": op, "session": session, **more}


def seen(driver: Driver, session: str, address: Address = b"asker") -> Any:
    """Step count and state of a session, or why it is not open."""
    (told,) = driver.ask(op("snapshot", session), address=address)
    return told.get("why") or (told["t"], told["state"])


def row(driver: Kept, name: Name) -> Saved | None:
    """What the store has of a name."""
    found, _ = driver.store.inner.load([name])
    return found[0] if found else None


def steps_in_journal(driver: Kept) -> int:
    return sum(len(batch.names) for _, entry in driver.store.inner.journal() for batch in unpack_entry(entry)[1])


def told(body: Any) -> list[Reply | None]:
    """What a body that was not sent has in its places."""
    found: list[Reply | None] = []
    for place, reply in enumerate(body.replies):
        ids = {"id": body.ids[place]} if place in body.ids else {}
        found.append(None if reply is None else decode(reply)[0] | ids)
    return found


def copied(path: Path, to: Path) -> Path:
    """What another process would find if the one that has this file open ended now."""
    for ending in ("", "-wal"):
        if path.with_name(path.name + ending).exists():
            shutil.copyfile(path.with_name(path.name + ending), to.with_name(to.name + ending))
    return to
