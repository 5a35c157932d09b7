"""What is remembered of names that are not open any more, so that no stream starts over unnoticed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from rnnstream.engine.producers import Producers
from rnnstream.names import Name, owner_of

TOMBSTONES = 100_000  # names that are nobody's: 15 to 35 MB
OWNED = 10_000  # names of each key; its own, for nobody is to push out what is remembered of others


class Tombstone(NamedTuple):
    """What is remembered of a name.

    Attributes:
        why: "closed" or "expired".
        producers: their numbers go on where the name is opened again.
    """

    why: Literal["closed", "expired"]
    producers: Producers | None


class Tombstones(Mapping[Name, Tombstone]):
    """The names that were closed or have expired and were not opened since; of each owner, those that ended last."""

    def __init__(self) -> None:
        self._of: dict[str, OrderedDict[Name, Tombstone]] = {}  # by owner, the oldest first
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Name]:
        for own in self._of.values():
            yield from own

    def __contains__(self, name: Any) -> bool:
        return name in self._of.get(owner_of(name), ())

    def __getitem__(self, name: Name) -> Tombstone:
        return self._of[owner_of(name)][name]

    def count(self, owner: str) -> int:
        """How many this owner has."""
        return len(self._of.get(owner, ()))

    def put(self, name: Name, tombstone: Tombstone) -> tuple[Name, Tombstone] | None:
        """Remember a name; what is pushed out by that, if anything is."""
        owner = owner_of(name)
        own = self._of.setdefault(owner, OrderedDict())
        self._count += name not in own
        own[name] = tombstone
        if len(own) <= (OWNED if owner else TOMBSTONES):
            return None
        self._count -= 1
        return own.popitem(last=False)

    def pop(self, name: Name) -> Tombstone | None:
        """Remember it no longer; what was remembered."""
        owner = owner_of(name)
        own = self._of.get(owner)
        found = own.pop(name, None) if own is not None else None
        if found is not None:
            self._count -= 1
            if not own:
                del self._of[owner]
        return found

    def check(self) -> None:
        """Assert what always holds between calls."""
        assert self._count == sum(map(len, self._of.values()))
        for owner, own in self._of.items():
            assert 0 < len(own) <= (OWNED if owner else TOMBSTONES)
            assert all(owner_of(name) == owner for name in own)
