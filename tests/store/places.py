"""Where the stores of the tests are: one place for each kind, and for each way in which its worker may end."""

from __future__ import annotations

import contextlib
import random
import resource
import shutil
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rnnstream.store.interface import Identity, Opened, Saved, Store
from rnnstream.store.memory import MemoryStore
from rnnstream.store.sqlite import Durability, SQLiteStore

IDENTITY = Identity("0123456789abcdef" * 4, "tunes", "<f4", 3, "OpenBLAS, AVX2")


class Place(ABC):
    """Where the stores of one test are."""

    def __init__(self) -> None:
        self._made: list[Store] = []

    @abstractmethod
    def make(self) -> Store:
        """A store of what is here; nobody has opened it."""

    def store(self) -> Store:
        """The same; it is closed at the end of the test."""
        self._made.append(self.make())
        return self._made[-1]

    def end(self, store: Store) -> None:
        """The worker that has this store open ends; all that it kept is here."""
        store.close()

    def opened(self) -> tuple[Store, Opened]:
        """A store of what is here, open, and what it has found."""
        store = self.store()
        return store, store.open(IDENTITY)

    def reopened(self, store: Store) -> tuple[Store, Opened]:
        """The worker of this store ends, and the next one begins."""
        self.end(store)
        return self.opened()

    def close(self) -> None:
        for store in self._made:
            store.close()


class InMemory(Place):
    """A worker that ends in a process that goes on."""

    def __init__(self) -> None:
        super().__init__()
        self._store = MemoryStore()

    def make(self) -> Store:
        return self._store


class InFile(Place):
    """A worker that closes its SQLite file."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder, self._ended = folder, 0

    @property
    def path(self) -> Path:
        return self._folder / f"{self._ended}.db"

    def make(self) -> Store:
        return SQLiteStore(self.path)


class InFileKilled(InFile):
    """A worker whose process is killed: of what it wrote there is what the system has been given, and nobody cleans up."""

    def end(self, store: Store) -> None:
        before = self.path
        self._ended += 1
        copy(before, self.path)


def copy(path: Path, to: Path) -> None:
    """Copy an SQLite file as it is, whoever has it open."""
    for suffix in ("", "-wal"):
        if (path.parent / (path.name + suffix)).exists():
            shutil.copyfile(f"{path}{suffix}", f"{to}{suffix}")


def row(name: str, upto: int, status: Any = "open", **fields: Any) -> Saved:
    """A row whose content is another one for each name and `upto`."""
    rng = random.Random(f"{name} {upto}")
    if status != "open":
        return Saved(name, status, upto, producers=rng.randbytes(20), **fields)
    content = {"t": rng.randrange(1 << 40), "opened_at": rng.random() * 1e6, "moved_at": rng.random() * 1e9}
    content |= {"producers": rng.randbytes(rng.randrange(1, 99)), "state": rng.randbytes(12)}
    return Saved(name, "open", upto, **content | fields)


def by_name(rows: Iterable[Saved]) -> dict[str, Saved]:
    """These rows, each of another name."""
    found: dict[str, Saved] = {}
    for saved in rows:
        assert saved.name not in found
        found[saved.name] = saved
    return found


def loaded(store: Store, *names: str) -> dict[str, Saved]:
    """What is kept of these names, none of which is damaged."""
    rows, damaged = store.load(names)
    assert damaged == []
    return by_name(rows)


def pages(store: Store, scan: int) -> list[tuple[int, str, float]]:
    """All pages of so many rows, one behind the other."""
    found, after = [], 0
    for _ in range(10_000):
        page, following = store.page(after, scan)
        assert len(page) <= scan
        found += page
        if following is None:
            return found
        assert following != after
        after = following
    raise AssertionError("The pages do not end.")


def everything(store: Store, *names: str) -> tuple[Any, ...]:
    """All that a store says, of these names among other things."""
    return loaded(store, *names), list(store.journal()), list(store.tombstones()), pages(store, 100)


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file can be written beyond this size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def opened(path: Path, durability: Durability = "process") -> Iterator[SQLiteStore]:
    """An SQLite store, open for as long as a `with` statement."""
    store = SQLiteStore(path, durability)
    try:
        store.open(IDENTITY)
        yield store
    finally:
        store.close()


@contextlib.contextmanager
def another(path: Path, mode: str = "rwc") -> Iterator[sqlite3.Connection]:
    """A connection of another program to an SQLite file."""
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode={mode}", uri=True, isolation_level=None)) as connection:
        yield connection
