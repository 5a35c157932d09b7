"""What a worker asks of a store, and what it hands to it.

A session is its last saved state plus the steps in the journal behind it: each saved row says up to which entry (`upto`) it
includes the journal. All that counted since the last write is written as one, and either all of it is kept or nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rnnstream.names import Name


@dataclass(slots=True)
class Saved:
    """What is kept of a name.

    Attributes:
        name: of the session.
        status: "open", or "closed" or "expired": then the row is a tombstone, with nothing but its producers.
        upto: id of the last journal entry that this includes.
        t: step count.
        opened_at, moved_at: seconds, on the clock of the store, which runs only while a worker does.
        producers: what is remembered of its numbered producers; empty where there are none.
        state: a<t>, its numbers little-endian.
    """

    name: Name
    status: Literal["open", "closed", "expired"]
    upto: int
    t: int = 0
    opened_at: float = 0.0
    moved_at: float = 0.0
    producers: bytes = b""
    state: bytes = b""


@dataclass(slots=True)
class Write:
    """What is written as one.

    Attributes:
        id: of the journal entry; always larger than any before.
        entry: the journal entry; every write has one, with no steps in it if there were none.
        saved: rows that replace what was kept of their names.
        forgotten: names of which nothing is kept any longer.
        needed: the oldest journal entry that is still needed. The store drops what is before it, sooner or later and a bounded
            number at a time.
        last: all sessions are saved, and nobody waits for what comes after this write: all that is not needed may be dropped at
            once, and the numerics of this worker take the place of those that were found.
    """

    id: int
    entry: bytes
    saved: Sequence[Saved] = ()
    forgotten: Sequence[Name] = ()
    needed: int = 0
    last: bool = False


@dataclass(frozen=True, slots=True)
class Identity:
    """The model whose sessions are kept.

    Attributes:
        digest: of the model; a store of another one is refused.
        name: for people.
        dtype: of a state's numbers, as NumPy writes it, little-endian.
        state_size: numbers in a state.
        numerics: fingerprint of the kernels; where it has changed, steps that are replayed may have other last bits.
    """

    digest: str
    name: str
    dtype: str
    state_size: int
    numerics: str


@dataclass(slots=True)
class Opened:
    """What was found in a store.

    Attributes:
        numerics: of the worker on whose kernels the journal was written; see `Write.last`.
        sessions: how many are open.
        last: id of the last journal entry; 0 in a new store.
        owned: how many of the open ones each key has; those that are nobody's are not in it.
    """

    numerics: str
    sessions: int
    last: int = 0
    owned: dict[str, int] = field(default_factory=dict)


class Store(ABC):
    """Keeps sessions; one worker at a time has it open.

    Attributes:
        durability: what a write outlives: "memory": nothing; "process": the end of the process, whatever ends it; "power": a
            loss of power too.
    """

    durability: str

    @abstractmethod
    def open(self, identity: Identity) -> Opened:
        """Take hold of the store; a new one is made where there is none.

        Raises:
            BadStore: it is another model's, of another format, damaged, or in use by another worker.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of it. Harmless when it is not open."""

    @abstractmethod
    def write(self, write: Write) -> int:
        """Keep all of this, or nothing. When it returns, it is kept as durably as the store promises.

        Returns:
            Id of the oldest journal entry that there still is.

        May be called while `journal` is being gone through, which then goes on with what there was before.

        Raises:
            StoreError: nothing was changed; or it is not known, as after an fsync that failed: then this write is kept as a
                whole, or not at all, and its id is not used again.
        """

    @abstractmethod
    def load(self, names: Sequence[Name]) -> tuple[list[Saved], list[Name]]:
        """What is kept of these names, in no given order, and those of them that are damaged. Others were never kept.

        Raises:
            StoreError: it cannot be read.
        """

    @abstractmethod
    def tombstones(self) -> Iterator[Saved]:
        """Names that were closed or have expired, in the order of their `upto`.

        Raises:
            BadStore: one of them is damaged.
        """

    @abstractmethod
    def journal(self) -> Iterator[tuple[int, bytes]]:
        """The entries that were not dropped, by their ids.

        Raises:
            BadStore: one of them is damaged.
            StoreError: they cannot be read.
        """

    @abstractmethod
    def page(self, after: int, scan: int, owner: str | None = None) -> tuple[list[tuple[int, Name, float]], int | None]:
        """Open sessions as they were saved last, in an order that stays.

        Args:
            after: 0, or the cursor that the page before gave.
            scan: most rows to look at.
            owner: only rows of this key, "" for nobody's, and no others are looked at; None: all.

        Returns:
            (cursor behind it, name, moved_at) of each; the cursor for the next page, None at the end.

        Raises:
            StoreError: it cannot be read.
        """
