"""Sessions and producers as a store keeps them, and back."""

from __future__ import annotations

from collections import deque

from rnnstream.engine.numbering import Producer, Producers
from rnnstream.engine.table import Table
from rnnstream.store.interface import Saved
from rnnstream.store.records import KeptProducer, pack_producers, unpack_producers


def saved_row(table: Table, row: int, upto: int) -> Saved:
    """An open session, which includes the journal up to this entry."""
    state = table.states[row]
    return Saved(
        table.names[row] or "",
        "open",
        upto,
        int(table.t[row]),
        float(table.opened_at[row]),
        float(table.moved_at[row]),
        packed(table.producers[row]),
        state.astype(state.dtype.newbyteorder("<"), copy=False).tobytes(),
    )


def packed(producers: Producers | None) -> bytes:
    """The producers of a session as bytes."""
    return pack_producers(
        [
            KeptProducer(name, mine.last, mine.heard_at, mine.request, mine.reply, list(mine.more or ()))
            for name, mine in (producers or {}).items()
        ]
    )


def unpacked(data: bytes) -> Producers:
    """The producers of a session, which `Numbering.adopt` makes known."""
    found: Producers = {}
    for kept in unpack_producers(data):
        mine = found[kept.producer] = Producer()
        mine.last, mine.heard_at, mine.request, mine.reply = kept.last, kept.heard_at, kept.request, kept.reply
        mine.more = deque((n, request, reply) for n, request, reply in kept.more) or None
    return found
