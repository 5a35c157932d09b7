"""A random walk over a store, against dictionaries."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest

from rnnstream.store.interface import Opened, Saved, Store, Write

from .places import IDENTITY, Place, loaded, pages, row

NAMES = [f"s{i}" for i in range(40)]
STEPS = 250


class Plain:
    """What a store should keep."""

    def __init__(self) -> None:
        self.rows: dict[str, Saved] = {}
        self.journal: dict[int, bytes] = {}
        self.order: list[str] = []  # of pages, as they were read last

    @property
    def last(self) -> int:
        return max(self.journal, default=0)

    def write(self, write: Write, oldest: int) -> None:
        """Keep this; `oldest` is what the store says that it has still."""
        self.journal[write.id] = write.entry
        self.rows |= {saved.name: saved for saved in write.saved}
        for name in write.forgotten:
            self.rows.pop(name, None)
        self.order = [name for name in self.order if name not in write.forgotten]
        needed = [id for id in self.journal if id >= min(write.needed, write.id)]
        assert oldest in self.journal
        assert oldest == needed[0] if write.last else oldest <= needed[0]
        self.journal = {id: entry for id, entry in self.journal.items() if id >= oldest}

    def check_pages(self, found: list[tuple[int, str, float]]) -> None:
        assert {name: moved_at for _, name, moved_at in found} == {
            name: saved.moved_at for name, saved in self.rows.items() if saved.status == "open"
        }
        order = [name for _, name, _ in found]
        assert len(order) == len(set(order))
        both = set(order) & set(self.order)
        assert [name for name in order if name in both] == [name for name in self.order if name in both]
        self.order = order

    def check(self, store: Store) -> None:
        assert loaded(store, *NAMES) == self.rows
        assert list(store.journal()) == list(self.journal.items())
        ended = list(store.tombstones())
        assert all(one.upto <= other.upto for one, other in pairwise(ended))
        assert {saved.name: saved for saved in ended} == {
            name: saved for name, saved in self.rows.items() if saved.status != "open"
        }
        assert len(ended) == len({saved.name for saved in ended})


def some_write(rng: random.Random, plain: Plain) -> Write:
    id = plain.last + 1
    names = rng.sample(NAMES, rng.choice([0, 1, 3, 9]))
    saved = [row(name, rng.randrange(id + 1), rng.choice(["open", "open", "open", "closed", "expired"])) for name in names]
    forgotten = rng.sample([name for name in NAMES if name not in names], rng.choice([0, 0, 0, 2]))
    needed = rng.choice([0, plain.last, id - rng.randrange(20), id + 5]) if rng.random() < 0.5 else 0
    return Write(id, rng.randbytes(rng.choice([0, 10, 5000])), saved, forgotten, needed, rng.random() < 0.3)


class Walk:
    """Who inherits it says where the store is, by a fixture `place`."""

    @pytest.mark.parametrize("seed", range(2))
    def test_a_random_walk_is_kept_as_in_dictionaries(self, place: Place, seed: int) -> None:
        rng = random.Random(seed)
        plain, seen = Plain(), Counter[str]()
        store, _ = place.opened()
        for _ in range(STEPS):
            kind = rng.choices(["write", "load", "pages", "check", "reopen"], [10, 2, 2, 1, 1])[0]
            match kind:
                case "write":
                    write, entries = some_write(rng, plain), len(plain.journal)
                    plain.write(write, store.write(write))
                    seen["dropped"] += len(plain.journal) <= entries
                case "load":
                    names = rng.sample(NAMES, rng.randrange(8))
                    assert loaded(store, *names) == {name: plain.rows[name] for name in names if name in plain.rows}
                case "pages":
                    plain.check_pages(pages(store, rng.randrange(1, 50)))
                case "check":
                    plain.check(store)
                case "reopen":
                    store, found = place.reopened(store)
                    sessions = sum(saved.status == "open" for saved in plain.rows.values())
                    assert found == Opened(IDENTITY.numerics, sessions, plain.last)
            seen[kind] += 1
        plain.check(place.reopened(store)[0])
        assert all(seen[kind] >= 5 for kind in ("write", "load", "pages", "check", "reopen", "dropped")), seen
