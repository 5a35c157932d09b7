"""Ordinary tokens told by their bytes, without decoding them.

Nearly all that producers send has one of two shapes, and most of its parts have been there before:

    {"session": S, "x": X}                               0x82 "session" S "x" X
    {"session": S, "x": X, "producer": P, "n": N}        0x84 "session" S "x" X "producer" P "n" N

To decode such a map and to look into it takes 0.5 us. To cut its bytes where these keys stand, and to look the parts up, takes
0.2. Whether that was the right place to cut need not be asked: MessagePack can be read in one way only, so where every part is
what it is looked up as, their bytes one behind the other are that map and no other.
"""

from __future__ import annotations

import struct
from collections.abc import Sized
from typing import Any

import msgpack

from rnnstream.wire.requests import MOST_KEYS

X, PRODUCER, N = b"\xa1x", b"\xa8producer", b"\xa1n"  # the keys
_PLAIN, _NUMBERED = b"\x82\xa7session", b"\x84\xa7session"

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
        sessions: by the bytes in front of `X`, in tokens that have no number.
        numbered: the same in those that have one.
        producers: by the bytes between `PRODUCER` and `N`.
    """

    def __init__(self, size: int, names: Sized) -> None:
        self._size, self._names = size, names
        self.ids: dict[bytes, int] = {}
        self.sessions: dict[bytes, str] = {}
        self.numbered: dict[bytes, str] = {}
        self.producers: dict[bytes, str] = {}

    def read(self, body: bytes) -> Token:
        """An ordinary token of which not all parts were met before; from here on they are, where they can be told again.

        Raises:
            Exception: of any kind; it is something else.
        """
        head, _, tail = body.rpartition(X)
        x_bytes, has_number, rest = tail.partition(PRODUCER)
        known, shape = (self.numbered, _NUMBERED) if has_number else (self.sessions, _PLAIN)
        if not head.startswith(shape):
            return self._decoded(body)
        session, x = self._text(known, head, len(shape)), _uint(x_bytes)
        if not 0 <= x < self._size:
            raise ValueError(x)
        _remember(self.ids, x_bytes, x)
        if not has_number:
            return session, x, None, 0, None
        producer_bytes, _, n = rest.rpartition(N)
        return session, x, self._text(self.producers, producer_bytes, 0), _uint(n), None

    def _decoded(self, body: bytes) -> Token:
        """A token with its keys in another order, or with an `id`."""
        # An ordinary token has no arrays; some that announce what never comes would take 80 MB.
        item = msgpack.unpackb(body, max_array_len=0, max_map_len=MOST_KEYS)
        session, x, id = item["session"], item["x"], item.get("id")
        producer, n = (item["producer"], item["n"]) if "n" in item else (None, 0)
        if not type(x) is type(n) is int or not 0 <= x < self._size or (id is not None and type(id) is not int):
            raise ValueError(item)
        if len(item) != 2 + 2 * ("n" in item) + (id is not None):
            raise ValueError(item)
        return session, x, producer, n, id

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
    if first != UINT_FIRST[len(data)]:
        raise ValueError(data)
    return value
