"""A store in memory: sessions outlive a worker, not the process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from rnnstream.errors import BadStore
from rnnstream.names import Name, owner_of
from rnnstream.store.interface import Identity, Opened, Saved, Store, Write


class MemoryStore(Store):
    """Keeps everything in dictionaries."""

    durability = "memory"

    def __init__(self) -> None:
        self._identity: Identity | None = None
        self._used = False
        self._rows: dict[Name, tuple[int, Saved]] = {}  # by name, with a number that stays
        self._journal: dict[int, bytes] = {}
        self._count = 0
        self._numerics = ""  # of the worker that has it open

    def open(self, identity: Identity) -> Opened:
        """See `Store.open`."""
        if self._used:
            raise BadStore("The store is in use by another worker.")
        before = self._identity or identity
        if replace(before, numerics="", name="") != replace(identity, numerics="", name=""):
            raise BadStore(f"The store keeps the sessions of another model, {before.name or before.digest}.")
        self._identity, self._used, self._numerics = before, True, identity.numerics
        owners = Counter(owner_of(saved.name) for _, saved in self._rows.values() if saved.status == "open")
        sessions = owners.total()
        owners.pop("", None)
        return Opened(before.numerics, sessions, max(self._journal, default=0), dict(owners))

    def close(self) -> None:
        """See `Store.close`."""
        self._used = False

    def write(self, write: Write) -> int:
        """See `Store.write`."""
        assert self._identity is not None
        self._journal[write.id] = write.entry
        if write.last:
            self._identity = replace(self._identity, numerics=self._numerics)
        for saved in write.saved:
            known = self._rows.get(saved.name)
            if known is None:
                self._count += 1
            self._rows[saved.name] = known[0] if known else self._count, saved
        for name in write.forgotten:
            self._rows.pop(name, None)
        while (oldest := next(iter(self._journal))) < min(write.needed, write.id):
            del self._journal[oldest]
        return oldest

    def load(self, names: Sequence[Name]) -> tuple[list[Saved], list[Name]]:
        """See `Store.load`."""
        return [self._rows[name][1] for name in names if name in self._rows], []

    def tombstones(self) -> Iterator[Saved]:
        """See `Store.tombstones`."""
        ended = [saved for _, saved in self._rows.values() if saved.status != "open"]
        yield from sorted(ended, key=lambda saved: saved.upto)

    def journal(self) -> Iterator[tuple[int, bytes]]:
        """See `Store.journal`."""
        yield from list(self._journal.items())

    def page(self, after: int, scan: int, owner: str | None = None) -> tuple[list[tuple[int, Name, float]], int | None]:
        """See `Store.page`."""
        wanted = (row for row in self._rows.values() if row[0] > after and owner in (None, owner_of(row[1].name)))
        rows = sorted(wanted, key=lambda row: row[0])[:scan]
        found = [(number, saved.name, saved.moved_at) for number, saved in rows if saved.status == "open"]
        return found, rows[-1][0] if len(rows) == scan else None
