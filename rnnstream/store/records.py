"""What stands in the bytes that a store keeps: journal entries, and the producers of a session. Both are MessagePack.

A journal entry is `[now, padding, batch, batch, ...]`: the steps that counted since the entry before it, as they were computed,
one batch behind the other. Everything else that happens to a session is kept by saving its row.

A checksum finds damage, but whoever can write to the file can write any bytes. So what is read is held against what a worker
writes, down to the type of each value; which tokens there are, only the model knows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack

from rnnstream.names import Name, Owned, named, owner_of

MOST_PLACE = 1 << 24  # more than a batch has steps; larger ints as keys could be chosen so that a dict becomes slow

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
        batch.hold()
        if len(packed) > 7:
            owners, numbers = packed[7]
            if not (_all(owners, str) and _all(numbers, int) and min(numbers, default=0) >= 0):
                raise ValueError("its owners are none")
            batch.names = [named(owners[number], str(name)) for number, name in zip(numbers, batch.names, strict=True)]
        return batch

    def hold(self) -> None:
        """Hold what was read, names without owners, against what can be a batch.

        Raises:
            ValueError, TypeError: it cannot.
        """
        steps, numbered = len(self.names), len(self.places)
        if not (_all(self.names, str) and _all(self.xs, int, bytes) and steps == len(self.xs)):
            raise ValueError("it is no batch")
        if [self.places, self.producers, self.ns, self.acks, self.wants] == [[], [], [], [], {}]:
            return
        if not (
            _all(self.places, int)
            and _all(self.producers, str)
            and _all(self.ns, int)
            and _all(self.acks, int)
            and type(self.wants) is dict
            and numbered == len(set(self.places)) == len(self.producers) == len(self.ns) == len(self.acks)
            and all(0 <= place < steps for place in (*self.places, *self.wants))
            and all(type(want) in (str, int) and type(surprisal) is bool for want, surprisal in self.wants.values())
        ):
            raise ValueError("it numbers no steps of its own")


def pack_entry(now: float, batches: Sequence[Batch], padding: int = 0) -> bytes:
    """A journal entry.

    Args:
        now: seconds, on the clock of the store.
        batches: the steps.
        padding: bytes that mean nothing, for a write that tries whether there is room.
    """
    return pack([now, bytes(padding), *[batch.packed() for batch in batches]])


def unpack_entry(entry: bytes) -> tuple[float, list[Batch]]:
    """The time and the steps of a journal entry.

    Raises:
        ValueError: it is not as `pack_entry` writes it.
    """
    try:
        now, _, *batches = _unpacked(entry, object_pairs_hook=_by_place, strict_map_key=False)
        if type(now) not in (int, float) or not math.isfinite(now):
            raise ValueError("its time is none")
        return now, [Batch.unpacked(batch) for batch in batches]
    except (ValueError, TypeError, IndexError) as problem:  # msgpack's are without a word, some of them
        raise ValueError(str(problem) or type(problem).__name__) from None


def _by_place(pairs: list[tuple[Any, Any]]) -> dict[int, Any]:
    if not all(type(place) is int and 0 <= place < MOST_PLACE for place, _ in pairs):
        raise ValueError("a map is by places")
    return dict(pairs)


def _all(values: Any, *types: type) -> bool:
    """Whether this is a list of values of these types."""
    return type(values) is list and set(map(type, values)) <= set(types)


def _unpacked(data: bytes, **options: Any) -> Any:
    """What is in these bytes.

    Raises:
        ValueError, TypeError: they are no MessagePack.
    """
    if 0xDC in data or 0xDD in data:  # the first bytes of long arrays, which get their place in memory where they begin
        ahead = msgpack.Unpacker(max_buffer_size=len(data) + 1)
        ahead.feed(data)
        try:
            ahead.skip()  # so that each is known to be as long as it says
        except msgpack.OutOfData:
            raise ValueError("it is cut short") from None
    return msgpack.unpackb(data, max_ext_len=0, **options)


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
    """The producers in these bytes. What makes a request the same is an int, bytes or a tuple of them.

    Raises:
        ValueError, TypeError: they are not as `pack_producers` writes them.
    """
    if not data:
        return []
    found = [KeptProducer(*fields) for fields in _unpacked(data, use_list=False)]
    for kept in found:
        if not (
            type(kept.producer) is str
            and type(kept.last) is int
            and type(kept.heard_at) in (int, float)
            and math.isfinite(kept.heard_at)
            and type(kept.reply) in (bytes, type(None))
            and all(type(n) is int and type(reply) is bytes for n, _, reply in kept.more)
        ):
            raise ValueError("it is no producer")
    return found
