"""Sessions and producers as a store keeps them, and back."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnstream.engine.producers import Producer, Producers
from rnnstream.engine.snapshot import MOST_T
from rnnstream.engine.table import Table
from rnnstream.store.interface import Saved
from rnnstream.store.records import KeptProducer, pack_producers, unpack_producers

Array = npt.NDArray[Any]

# Replies of a session that are saved beside the last one of each producer: four windows of a client's. More would make a row of
# megabytes, and hold everybody up; their numbers have counted all the same, and a repeat gets `stale`.
SAVED_REPLIES = 2000
SAVED_BYTES = 1 << 20


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


def fits(saved: Saved, states: Array) -> bool:
    """Whether this can be a session of a model with such states, or a tombstone; anybody can write a row."""
    try:
        unpacked(saved.producers)
    except (ValueError, TypeError):
        return False
    if saved.status != "open":
        return saved.status in ("closed", "expired")
    if len(saved.state) != states.shape[1] * states.dtype.itemsize or not 0 <= saved.t <= MOST_T:
        return False
    return bool(np.isfinite(np.frombuffer(saved.state, states.dtype.newbyteorder("<"))).all())


def packed(producers: Producers | None) -> bytes:
    """The producers of a session as bytes, with as many replies as a row may have, of those first who were heard last."""
    replies, size = SAVED_REPLIES, SAVED_BYTES
    kept = []
    for name, mine in sorted((producers or {}).items(), key=lambda item: -item[1].heard_at):
        more = list(mine.more or ())
        if more and (len(more) > replies or mine.held_bytes > size):
            more = []
        replies, size = replies - len(more), size - (mine.held_bytes if more else 0)
        kept.append(KeptProducer(name, mine.last, mine.heard_at, mine.request, mine.reply, more))
    return pack_producers(kept)


def unpacked(data: bytes) -> Producers:
    """The producers of a session, which `Numbering.adopt` makes known."""
    found = Producers()
    for kept in unpack_producers(data):
        mine = found[kept.producer] = Producer()
        mine.last, mine.heard_at, mine.request, mine.reply = kept.last, kept.heard_at, kept.request, kept.reply
        mine.more = deque((n, request, reply) for n, request, reply in kept.more) or None
    return found
