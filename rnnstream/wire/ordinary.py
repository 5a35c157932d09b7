"""Ordinary tokens told by their bytes, without decoding them.

Nearly all that producers send in great numbers has one of three shapes, and most of its parts have been there before:

    {"session": S, "x": X}                                    0x82 "session" S "x" X
    {"session": S, "x": X, "producer": P, "n": N}             0x84 "session" S "x" X "producer" P "n" N
    {"session": S, "x": X, "producer": P, "n": N, "id": I}    0x85 "session" S "x" X "producer" P "n" N "id" I

To decode such a map and to look into it takes 0.5 us and more. To cut its bytes where these keys stand, and to look the parts
up, takes 0.2 for the first, of which a whole body is told too. Whether that was the right place to cut need not be asked:
MessagePack can be read in one way only, so where every part is what it is looked up as, their bytes one behind the other are
that map and no other.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence, Sized
from itertools import repeat
from operator import itemgetter
from typing import Any

import msgpack

from rnnstream.wire.requests import MOST_KEYS

X, PRODUCER, N, ID = b"\xa1x", b"\xa8producer", b"\xa1n", b"\xa2id"  # the keys
PLAIN, IDENTIFIED, NUMBERED = 0x82, 0x85, (0x84, 0x85)  # the first bytes
_SESSION = b"\xa7session"
_BEGIN = bytes((PLAIN,)) + _SESSION  # of a token of the first shape

# An unsigned int of so many bytes: its first byte, and how to take that off. A negative one comes out as such.
UINT_FIRST = {1: b"", 2: b"\xcc", 3: b"\xcd", 5: b"\xce", 9: b"\xcf"}
UINT = {size: struct.Struct(form).unpack for size, form in ((1, ">0sb"), (2, ">cB"), (3, ">cH"), (5, ">cI"), (9, ">cQ"))}

# Parts of a kind that are remembered, of 150 bytes each as a rule: to forget them all takes some milliseconds.
KNOWN = 1 << 16
# Sessions with which tokens are told. Of more than that, few are met again while what is remembered of them is in the
# processor's caches, and decoding is faster: with 30,000 sessions by a third.
FEW_SESSIONS = 1 << 14

# session; x, None if the token is not an ordinary one; producer and n, None and 0 without; id, None without
Token = tuple[str, int | None, str | None, int, Any]

_pack = msgpack.Packer(autoreset=True).pack


class Parts:
    """The parts of ordinary tokens that were met, as they are in their bytes.

    Args:
        size: of the vocabulary: ids below it are tokens. 0: no token is ordinary.
        names: the sessions there are; how many is what is asked.

    Attributes:
        ids: x, by its bytes.
        sessions: by the bytes in front of `X`, in tokens of the first shape that came alone.
        in_bodies: by the bytes between `_BEGIN` and `X`, in such that came in bodies.
        numbered: in those of the others.
        producers: by the bytes between `PRODUCER` and `N`.
    """

    def __init__(self, size: int, names: Sized) -> None:
        self._size, self._names = size, names
        self.ids: dict[bytes, int] = {}
        self.producers: dict[bytes, str] = {}
        self.sessions: dict[bytes, str] = {}
        self.in_bodies: dict[bytes, str] = {}
        self.numbered: dict[bytes, str] = {}

    def decode(self, body: bytes) -> Token:
        """A token by decoding it, whatever the order of its keys.

        Raises:
            Exception: of any kind; it is something else.
        """
        # An ordinary token has no arrays; some that announce what never comes would take 80 MB.
        item = msgpack.unpackb(body, max_array_len=0, max_map_len=MOST_KEYS)
        session, x, keys = item["session"], item["x"], len(item)
        good = type(x) is int and 0 <= x < self._size
        if keys == 2:
            return session, x if good else None, None, 0, None
        id = item.get("id")
        producer, n = (item["producer"], item["n"]) if "n" in item else (None, 0)
        if good and type(n) is int and keys == 2 + 2 * ("n" in item) + ("id" in item) and (type(id) is int or "id" not in item):
            return session, x, producer, n, id
        if "op" in item:
            raise ValueError(item)
        return session, None, None, 0, id

    def remember(self, body: bytes, session: str, x: int, producer: str | None) -> None:
        """An ordinary token of an open session, and of a producer that it knows, was decoded: its parts are told from here on.

        That is if they are written in the shortest way, as nearly all are, and in the usual order.
        """
        shape = body[0]
        if len(self._names) > FEW_SESSIONS or (shape != PLAIN and shape not in NUMBERED):
            return
        head, _, tail = body.rpartition(X)
        if shape != PLAIN:
            tail, _, rest = tail.partition(PRODUCER)
        if uint(tail) != x or head[1:] != _SESSION + _pack(session):
            return
        _remember(self.ids, tail, x)
        if shape == PLAIN:
            _remember(self.sessions, head, session)
            return
        if shape == IDENTIFIED:
            rest, _, _ = rest.rpartition(ID)
        part, _, _ = rest.rpartition(N)
        if part == _pack(producer):
            _remember(self.numbered, head, session)
            _remember(self.producers, part, producer)

    def tell(self, body: bytes, most: int) -> tuple[Sequence[str], Sequence[int]] | None:
        """The sessions and ids of a body of two to `most` tokens of the first shape, if all of their parts were met."""
        if len(self._names) > FEW_SESSIONS or not body.startswith(_BEGIN):
            return None
        _, *tokens = body.split(_BEGIN, most + 1)
        if not 2 <= len(tokens) <= most:
            return None
        heads, _, tails = zip(*map(bytes.rpartition, tokens, repeat(X)), strict=True)
        try:  # half as long as one token after the other
            return itemgetter(*heads)(self.in_bodies), itemgetter(*tails)(self.ids)
        except KeyError:
            return None

    def remember_all(self, body: bytes, tokens: list[dict[str, Any]]) -> None:
        """`remember` for a body that has nothing but such tokens, of open sessions."""
        if len(self._names) > FEW_SESSIONS or not body.startswith(_BEGIN):
            return
        _, *parts = body.split(_BEGIN)
        if len(parts) != len(tokens):
            return
        for part, token in zip(parts, tokens, strict=True):
            head, _, tail = part.rpartition(X)
            if head in self.in_bodies and tail in self.ids:  # as nearly all of a body in which one session is new
                continue
            if uint(tail) == token["x"] and head == _pack(token["session"]):
                _remember(self.ids, tail, token["x"])
                _remember(self.in_bodies, head, token["session"])


def _remember(known: dict[bytes, Any], part: bytes, value: Any) -> None:
    if part not in known:
        if len(known) >= KNOWN:
            known.clear()
        known[part] = value


def uint(data: bytes) -> int:
    """The unsigned int that is all of these bytes; something negative if they are none."""
    if len(data) not in UINT:
        return -1
    first, value = UINT[len(data)](data)
    return value if first == UINT_FIRST[len(data)] else -1
