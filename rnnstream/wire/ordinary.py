"""Ordinary tokens told by their bytes, without decoding them.

Nearly all that producers send in great numbers has one of three shapes, and most of its parts have been there before:

    {"session": S, "x": X}                                    0x82 "session" S "x" X
    {"session": S, "x": X, "producer": P, "n": N}             0x84 "session" S "x" X "producer" P "n" N
    {"session": S, "x": X, "producer": P, "n": N, "id": I}    0x85 "session" S "x" X "producer" P "n" N "id" I

To decode such a map and to look into it takes 0.5 us and more. To cut its bytes where these keys stand, and to look the parts
up, takes 0.2 for the first. Whether that was the right place to cut need not be asked: MessagePack can be read in one way only,
so where every part is what it is looked up as, their bytes one behind the other are that map and no other.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Sized
from typing import Any

import msgpack

from rnnstream.wire.requests import MOST_KEYS

X, PRODUCER, N, ID = b"\xa1x", b"\xa8producer", b"\xa1n", b"\xa2id"  # the keys
PLAIN, IDENTIFIED, NUMBERED = 0x82, 0x85, (0x84, 0x85)  # the first bytes
_SESSION = b"\xa7session"

# An unsigned int of so many bytes: its first byte, and how to take that off. A negative one comes out as such.
UINT_FIRST = {1: b"", 2: b"\xcc", 3: b"\xcd", 5: b"\xce", 9: b"\xcf"}
UINT = {size: struct.Struct(form).unpack for size, form in ((1, ">0sb"), (2, ">cB"), (3, ">cH"), (5, ">cI"), (9, ">cQ"))}

# Parts of a kind that are remembered, of 150 bytes each: to forget them all takes 4 ms. Of more sessions than that few would be
# found again, so none is remembered.
KNOWN = 1 << 16

Token = tuple[str, int, str | None, int, Any]  # session, x; producer and n, None and 0 without; id, None without


class Parts:
    """The parts of ordinary tokens, as they are in their bytes.

    Args:
        size: of the vocabulary: ids below it are tokens. 0: no token is ordinary.
        names: the sessions there are; how many is what is asked.

    Attributes:
        ids: x, by its bytes.
        sessions: by the bytes in front of `X`, in tokens of the first shape.
        numbered: in those of the others.
        producers: by the bytes between `PRODUCER` and `N`.
    """

    def __init__(self, size: int, names: Sized) -> None:
        self._size, self._names = size, names
        self.ids: dict[bytes, int] = {}
        self.producers: dict[bytes, str] = {}
        self.sessions: dict[bytes, str] = {}
        self.numbered: dict[bytes, str] = {}

    def read(self, body: bytes) -> Token:
        """An ordinary token of which not all parts were met before; or as `decode`.

        Raises:
            Exception: of any kind; it is something else.
        """
        if body[0] == PLAIN or body[0] in NUMBERED:
            with contextlib.suppress(Exception):  # it is not put together in this way
                return self._cut(body)
        return self.decode(body)

    def _cut(self, body: bytes) -> Token:
        head, _, tail = body.rpartition(X)
        known, producer, n, id = self.sessions, None, 0, None
        if body[0] != PLAIN:
            tail, _, rest = tail.partition(PRODUCER)
            if body[0] == IDENTIFIED:
                rest, _, part = rest.rpartition(ID)
                id = _uint(part)
            part, _, rest = rest.rpartition(N)
            known, n = self.numbered, _uint(rest)
            producer = self.producers.get(part)
            if producer is None:
                producer = self._text(self.producers, part, 0)
        x = self.ids.get(tail)
        if x is None:
            x = _uint(tail)
            if not 0 <= x < self._size:
                raise ValueError(x)
            _remember(self.ids, tail, x)
        session = known.get(head)
        if session is None:
            if not head.startswith(_SESSION, 1):
                raise ValueError(head)
            session = self._text(known, head, 1 + len(_SESSION))
        return session, x, producer, n, id

    def decode(self, body: bytes) -> Token:
        """An ordinary token with its keys in any order, or with an `id`.

        Raises:
            Exception: of any kind; it is something else.
        """
        # An ordinary token has no arrays; some that announce what never comes would take 80 MB.
        item = msgpack.unpackb(body, max_array_len=0, max_map_len=MOST_KEYS)
        keys = len(item)
        session, x, id = item["session"], item["x"], item["id"] if keys & 1 else None
        producer, n = (item["producer"], item["n"]) if keys > 3 else (None, 0)
        if type(x) is type(n) is int and 0 <= x < self._size and (keys & 1 == 0 or type(id) is int) and keys < 6:
            return session, x, producer, n, id
        raise ValueError(item)

    def _text(self, known: dict[bytes, str], part: bytes, start: int) -> str:
        """The string that is all of a part from here on."""
        size = len(part) - start - 1
        if part[start] == 0xA0 | size and size < 32:
            text = part[start + 1 :].decode()
        elif part[start] == 0xD9 and part[start + 1] == size - 1:
            text = part[start + 2 :].decode()
        else:
            raise ValueError(part)
        if len(self._names) <= KNOWN:
            _remember(known, part, text)
        return text


def _remember(known: dict[bytes, Any], part: bytes, value: Any) -> None:
    if len(known) >= KNOWN:
        known.clear()
    known[part] = value


def _uint(data: bytes) -> int:
    first, value = UINT[len(data)](data)
    if first != UINT_FIRST[len(data)] or value < 0:
        raise ValueError(data)
    return value
