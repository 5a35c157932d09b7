"""A store is killed, or loses power, at each operation on its files in turn, and must be what some of its writes make of it.

It runs in a process of its own, on the disk of disk.c, and forks one for each death::

    LD_PRELOAD=... DISK_STORE=... [DISK_SHADOW=...] python -m tests.process.operations DURABILITY STRIDE SEED

It prints as JSON how many writes there are, how many deaths there were behind each number of them, and how many writes that had
returned were lost in all.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from rnnstream.store import sqlite
from rnnstream.store.interface import Identity, Saved, Store, Write
from rnnstream.store.memory import MemoryStore
from tests.process.disk import HOW, lose_power

IDENTITY = Identity("d" * 64, "model", "<f4", 100, "kernels")
NAMES = [f"session-{i}" for i in range(12)]


def writes() -> list[Write]:
    """Small ones and large ones, rows that are new, replaced and forgotten, and a journal that is cut."""
    chance, made = random.Random(0), []
    for id in range(1, 13):
        entry = chance.randbytes(chance.choice((30, 500, 9000)))
        saved = [
            Saved(name, chance.choice(("open", "open", "closed")), id, id, 0.0, float(id), state=chance.randbytes(400))
            for name in chance.sample(NAMES, chance.randint(0, 5))
        ]
        forgotten = [name for name in chance.sample(NAMES, 2) if name not in {row.name for row in saved}]
        made.append(Write(id, entry, saved, forgotten, needed=max(0, id - 3), last=id == 12))
    return made


@dataclass
class Content:
    """What a store has.

    Attributes:
        rows: of names, in their order.
        ended: names that have tombstones.
        journal: entries by their ids, which ascend.
    """

    rows: list[Saved]
    ended: set[str]
    journal: dict[int, bytes]

    @classmethod
    def of(cls, store: Store) -> Content:
        found, damaged = store.load(NAMES)
        assert not damaged
        journal = list(store.journal())
        assert [id for id, _ in journal] == sorted({id for id, _ in journal})
        return cls(sorted(found, key=lambda row: row.name), {row.name for row in store.tombstones()}, dict(journal))

    def writes(self, some: list[Write], seen: list[Content]) -> int:
        """How many writes have made it, by the last entry; it has all that those are to leave, and nothing else."""
        number = max(self.journal, default=0)
        needed = some[number - 1].needed if number else 0
        assert self.rows == seen[number].rows, f"rows are not as {number} writes leave them"
        assert self.ended == seen[number].ended
        assert list(self.journal) == list(range(min(self.journal, default=1), number + 1))
        assert all(some[id - 1].entry == entry for id, entry in self.journal.items())
        assert min(self.journal, default=0) <= max(1, needed), f"{needed} is needed, and the journal has {list(self.journal)}"
        return number


def contents(some: list[Write]) -> list[Content]:
    """What a store has after none of these writes, after the first, ..., after all."""
    store = MemoryStore()
    store.open(IDENTITY)
    seen = [Content.of(store)]
    for write in some:
        store.write(write)
        seen.append(Content.of(store))
    return seen


def forked(do: Callable[[int], object]) -> tuple[int, int]:
    """Have a process of its own do this: its exit status, negative for a signal, and how many bytes it has written."""
    reader, told = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            do(told)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(told)
    written = len(os.read(reader, 1000))
    os.close(reader)
    return status, written


def life(path: Path, durability: Any, some: list[Write], at: int, how: str, told: int) -> None:
    """Open the store, write, and close it; a byte is told of each write that has returned. The operation `at` ends it."""
    ctypes.CDLL(None).disk_end(ctypes.c_long(at), ctypes.c_char_p(how.encode()))
    store = sqlite.SQLiteStore(path, durability)
    store.open(IDENTITY)
    for write in some:
        store.write(write)
        os.write(told, b".")
    store.close()


def look(path: Path, durability: Any, some: list[Write], seen: list[Content], told: int) -> None:
    """Open what a death has left: it is what some writes make of it; how many is told. Then it takes the others."""
    store = sqlite.SQLiteStore(path, durability)
    store.open(IDENTITY)
    number = Content.of(store).writes(some, seen)
    os.write(told, b"." * number)
    for write in some[number:]:
        store.write(write)
    assert Content.of(store).writes(some, seen) == len(some)
    store.close()


def main() -> None:
    durability, stride, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    path, shadow = Path(os.environ["DISK_STORE"]), Path(os.environ.get("DISK_SHADOW", ""))
    power, chance = "DISK_SHADOW" in os.environ, random.Random(seed)
    some = writes()
    seen = contents(some)
    sqlite.CHECKPOINT_PAGES = 8  # so that the log is moved into the file, and begun anew, several times
    sqlite.CUT = 2  # and the journal is cut
    deaths: Counter[int] = Counter()
    lost = 0
    for how in HOW:
        for at in count(1 + chance.randrange(stride), stride):
            for place in {path.parent, shadow} if power else {path.parent}:
                for file in place.iterdir():
                    file.unlink()
            status, returned = forked(lambda told, at=at, how=how: life(path, durability, some, at, how, told))
            if status == 0:
                break
            assert status == -signal.SIGKILL, status
            deaths[returned] += 1
            if power:
                lose_power(path.parent, shadow, chance.choice((None, chance)))
            status, found = forked(lambda told: look(path, durability, some, seen, told))
            assert status == 0, f"killed {how} operation {at}, behind {returned} writes"
            least = 0 if power and durability == "process" else returned
            assert least <= found <= returned + 1, (
                f"killed {how} operation {at}: {returned} writes had returned, {found} are kept"
            )
            lost += max(0, returned - found)
    json.dump({"writes": len(some), "deaths": deaths, "lost": lost}, sys.stdout)


if __name__ == "__main__":
    main()
