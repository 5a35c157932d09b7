"""Makes messages for a worker, good and bad: requests of every kind with bits, lengths, types and keys changed."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import msgpack

from rnnstream.wire.requests import OPS
from tests.process.exactness import VOCABULARY

NAMES = [f"f{i}" for i in range(30)]
KEYS = sorted({key for keys in OPS.values() for key in keys} | {"op", "id"})

WEIRD: list[Any] = [
    *(None, True, False, -1, 0, 1, 2**31, 2**63, 2**64 - 1, -(2**63), 1.5, float("nan"), float("inf"), "", "f1", "é" * 40),
    *("x" * 300, b"", b"\0" * 40, b"f1", [], [1, 2], [[[[]]]], {}, {"op": "ping"}, {1: 2}, msgpack.ExtType(5, b"x")),
    *(msgpack.Timestamp(1), list(range(600)), "probs", "logits", "none", "argmax", "topk", 100, 101),
]

pack = msgpack.Packer(autoreset=True).pack


class Mutator:
    """Makes bodies, good and bad, by the dice of a seed.

    Args:
        seed: of the dice.
        state: a snapshot that the worker takes.
    """

    def __init__(self, seed: int, state: bytes) -> None:
        self.chance = random.Random(seed)
        self._state = state
        self._next: dict[tuple[Any, Any], int] = {}  # by session and producer: the number that may be due
        self._bytes: list[Callable[[bytearray], None]] = [
            *(self._flip, self._flip, self._put, self._remove, self._insert, self._repeat, self._truncate, self._append),
        ]
        self._maps: list[Callable[[dict[Any, Any]], None]] = [self._drop, self._retype, self._retype, self._rename, self._add]

    def message(self) -> list[bytes]:
        """Frames of a message; the last is the body."""
        chance = self.chance
        count = chance.choices((1, 2, chance.randint(3, 40), 600), (70, 15, 15, 0.2))[0]
        body = bytearray(b"".join(self._request() for _ in range(count)))
        for _ in range(chance.choice((0, 0, 1, 1, 2, 5))):
            chance.choice(self._bytes)(body)
        frames = [bytes(body)]
        if chance.random() < 0.1:
            frames[:0] = [chance.randbytes(chance.choice((0, 0, 1, 5, 255, 300))) for _ in range(chance.randint(1, 11))]
        return frames

    def hear(self, reply: dict[str, Any]) -> None:
        """Learn from a reply which number is due."""
        if reply.get("error") == "gap" and (found := re.search(r"producer (p\d) sent", reply["message"])):
            self._next[reply.get("session"), found[1]] = reply["expected"]

    def _request(self) -> bytes:
        request = self.valid()
        if self.chance.random() < 0.3:
            for _ in range(self.chance.choice((1, 1, 2))):
                self.chance.choice(self._maps)(request)
        return pack(request)

    def valid(self) -> dict[Any, Any]:
        """A request that may well be carried out."""
        chance = self.chance
        op = chance.choice(("step", "step", "step", *OPS))
        takes = OPS[op]
        made: dict[Any, Any] = {} if op == "step" and chance.random() < 0.5 else {"op": op}
        for key in takes:
            if key in ("session", "x", "to", "xs") or (key == "state" and op == "restore") or chance.random() < 0.3:
                made[key] = self._value(key)
        if "producer" in made or "n" in made:
            made["producer"] = producer = self._value("producer")
            due = self._next.get((made.get("session"), producer), 1)
            made["n"] = max(1, due + chance.choice((-2, -1, 0, 0, 0, 0, 0, 1)))
            self._next[made.get("session"), producer] = made["n"] + (chance.random() < 0.9)
        elif "ack" in made:
            del made["ack"]
        if chance.random() < 0.3:
            made["id"] = self._value("id")
        return made

    def _value(self, key: str) -> Any:
        chance = self.chance
        match key:
            case "session" | "to":
                return chance.choice(NAMES)
            case "x":
                return chance.randrange(VOCABULARY)
            case "xs":
                return [chance.randrange(VOCABULARY) for _ in range(chance.choice((1, 2, 8, 8, 100)))]
            case "state":
                state = bytearray(self._state)
                if chance.random() < 0.3:
                    chance.choice(self._bytes)(state)
                return bytes(state)
            case "want":
                return chance.choice(("argmax", "none", "probs", "logits", 1, 5, 100))
            case "surprisal":
                return chance.random() < 0.5
            case "producer":
                return f"p{chance.randrange(6)}"
            case "id":
                return chance.choice((7, 2**40, "abc", b"abc"))
            case "prefix":
                return chance.choice(("", "f", "f1", "nobody"))
            case "limit":
                return chance.choice((1, 10, 1000))
            case _:
                return chance.randint(0, 12)

    # -- on bytes --

    def _place(self, body: bytearray) -> int:
        return self.chance.randrange(len(body) + 1)

    def _flip(self, body: bytearray) -> None:
        if body:
            body[self.chance.randrange(len(body))] ^= 1 << self.chance.randrange(8)

    def _put(self, body: bytearray) -> None:
        if body:
            body[self.chance.randrange(len(body))] = self.chance.choice(
                (0, 0x7F, 0x80, 0xC0, 0xC1, 0xC4, 0xC6, 0xD9, 0xDF, 0xFF)
            )

    def _remove(self, body: bytearray) -> None:
        at = self._place(body)
        del body[at : at + self.chance.randint(1, 8)]

    def _insert(self, body: bytearray) -> None:
        at = self._place(body)
        body[at:at] = self.chance.randbytes(self.chance.randint(1, 8))

    def _repeat(self, body: bytearray) -> None:
        at = self._place(body)
        body[at:at] = body[at : at + self.chance.randint(1, 30)]

    def _truncate(self, body: bytearray) -> None:
        del body[self._place(body) :]

    def _append(self, body: bytearray) -> None:
        body += self.chance.choice(
            (b"\xc0", b"\x80", b"\x90", b"\xdf\xff\xff\xff\xff", b"\x81\xa1x" * 50, self.chance.randbytes(5))
        )

    # -- on maps --

    def _key(self, request: dict[Any, Any]) -> Any:
        return self.chance.choice([*request, "op"])

    def _drop(self, request: dict[Any, Any]) -> None:
        request.pop(self._key(request), None)

    def _retype(self, request: dict[Any, Any]) -> None:
        request[self._key(request)] = self.chance.choice(WEIRD)

    def _rename(self, request: dict[Any, Any]) -> None:
        value = request.pop(self._key(request), None)
        request[self.chance.choice((*KEYS, "wnat", "", 5, b"x", None, 1.5, "k" * 100))] = value

    def _add(self, request: dict[Any, Any]) -> None:
        key = self.chance.choice(KEYS)
        request[key] = self._value(key) if key != "op" else self.chance.choice(list(OPS))
