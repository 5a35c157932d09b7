"""What stands in the bytes that a store keeps: journal entries, and the producers of a session. Both are MessagePack.

A journal entry is `[now, padding, batch, batch, ...]`: the steps that counted since the entry before it, as they were computed,
one batch behind the other. Everything else that happens to a session is kept by saving its row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack

from rnnstream.names import Name, Owned, named, owner_of

pack = msgpack.Packer(autoreset=True).pack


@dataclass(slots=True)
class Batch:
    """Steps of different sessions, in parallel lists.

    Attributes:
        names: of the sessions.
        xs: their tokens: ids, or for dense input the bytes of the vector.
        places, producers, ns, acks: the numbering of those steps that have one, by their place in these lists.
        wants: by place: (want, surprisal) of numbered steps that wanted something else than the ordinary reply.
    """

    names: list[Name]
    xs: list[Any]
    places: list[int] = field(default_factory=list)
    producers: list[str] = field(default_factory=list)
    ns: list[int] = field(default_factory=list)
    acks: list[int] = field(default_factory=list)
    wants: dict[int, tuple[str | int, bool]] = field(default_factory=dict)

    def number(self, place: int, producer: str, n: int, ack: int) -> None:
        """The step at this place has a number."""
        self.places.append(place)
        self.producers.append(producer)
        self.ns.append(n)
        self.acks.append(ack)

    def only(self, good: Sequence[bool]) -> Batch:
        """The steps at the places that are good."""
        moved = {place: at for at, place in enumerate(place for place, is_good in enumerate(good) if is_good)}
        good_ones = Batch([self.names[place] for place in moved], [self.xs[place] for place in moved])
        for place, producer, n, ack in zip(self.places, self.producers, self.ns, self.acks, strict=True):
            if place in moved:
                good_ones.number(moved[place], producer, n, ack)
        good_ones.wants = {moved[place]: want for place, want in self.wants.items() if place in moved}
        return good_ones

    def packed(self) -> list[Any]:
        """As it goes into an entry: behind the rest, where there are any, the owners, each once, and whose step which is."""
        names: list[Any] = self.names
        packed = [names, self.xs, self.places, self.producers, self.ns, self.acks, self.wants]
        if Owned in set(map(type, names)):
            owners = list(map(owner_of, names))
            numbers = {owner: number for number, owner in enumerate(dict.fromkeys(owners))}
            packed[0] = list(map(str, names))
            packed.append([list(numbers), [numbers[owner] for owner in owners]])
        return packed

    @staticmethod
    def unpacked(packed: list[Any]) -> Batch:
        """The batch in these, as `packed` gives them.

        Raises:
            ValueError, TypeError, IndexError: they are not such.
        """
        batch = Batch(*packed[:7])
        if len(packed) > 7:
            owners, numbers = packed[7]
            batch.names = [named(owners[number], name) for number, name in zip(numbers, packed[0], strict=True)]
        return batch


def pack_entry(now: float, batches: Sequence[Batch], padding: int = 0) -> bytes:
    """A journal entry.

    Args:
        now: seconds, on the clock of the store.
        batches: the steps.
        padding: bytes that mean nothing, for a write that tries whether there is room.
    """
    return pack([now, bytes(padding), *[batch.packed() for batch in batches]])


def unpack_entry(entry: bytes) -> tuple[float, list[Batch]]:
    """The time and the steps of a journal entry."""
    now, _, *batches = msgpack.unpackb(entry, strict_map_key=False)
    return now, [Batch.unpacked(batch) for batch in batches]


# -- producers


@dataclass(slots=True)
class KeptProducer:
    """A numbered producer of a session.

    Attributes:
        producer: its id.
        last: the last number that counted.
        heard_at: seconds, on the clock of the store.
        request, reply: the last request and its reply; None where that is among `more`, or no longer kept.
        more: further kept replies, (n, request, reply), oldest first.
    """

    producer: str
    last: int
    heard_at: float
    request: Any
    reply: bytes | None
    more: list[tuple[int, Any, bytes]]


def pack_producers(producers: Sequence[KeptProducer]) -> bytes:
    """The bytes of these; empty where there are none."""
    if not producers:
        return b""
    return pack([[p.producer, p.last, p.heard_at, p.request, p.reply, p.more] for p in producers])


def unpack_producers(data: bytes) -> list[KeptProducer]:
    """The producers in these bytes. What makes a request the same is an int, bytes or a tuple of them."""
    if not data:
        return []
    return [KeptProducer(*fields) for fields in msgpack.unpackb(data, use_list=False)]
