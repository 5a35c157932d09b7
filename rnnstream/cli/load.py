"""What `rnnstream bench` sends, and what it expects back. No I/O and no clock."""

from __future__ import annotations

import math
import struct
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

from rnnstream.cli.outcome import Latencies
from rnnstream.errors import ProtocolError
from rnnstream.wire import replies

TOKENS = 1021  # random tokens that are made beforehand; a prime, so that no number of sessions gives each the same few
TOKEN_BYTES = 4 << 20  # and no more bytes of them than this

_pack = msgpack.Packer(autoreset=True).pack
_NUMBER = struct.Struct(">2s B I")  # "n", uint 32
_NUMBER_ACK = struct.Struct(">2s B I 4s B I")
_UINT32 = 0xCE


@dataclass(frozen=True)
class Load:
    """What is asked for.

    Attributes:
        clients: connections, in all.
        sessions: of each connection.
        window: tokens in flight on each connection, at most.
        body: tokens in a body.
        rate: tokens a second, in all, at fixed intervals; None: as many as are answered (closed loop).
        numbered: whether tokens have `producer` and `n`.
        want: of each token.
    """

    clients: int
    sessions: int
    window: int
    body: int
    rate: float | None
    numbered: bool
    want: str | int

    @property
    def bodies(self) -> int:
        """In flight on each connection, at most."""
        return max(1, self.window // self.body)

    @property
    def interval_s(self) -> float:
        """Between two bodies of a connection; 0 in a closed loop."""
        return self.body * self.clients / self.rate if self.rate else 0.0


def random_tokens(kind: str, size: int, rng: np.random.Generator) -> list[bytes]:
    """Packed tokens for a model's input: ids below `size`, or vectors of `size` standard normal numbers."""
    if kind == "token":
        return [_pack(x) for x in rng.integers(size, size=TOKENS).tolist()]
    count = max(1, min(TOKENS, TOKEN_BYTES // (4 * size)))
    return [_pack(x.astype("<f4").tobytes()) for x in rng.standard_normal((count, size))]


class Traffic:
    """The tokens of one connection: its sessions get them in turn, and have no others.

    Args:
        load: what is asked for.
        names: of the sessions, all open at t = 0.
        tokens: packed, as `random_tokens` makes them; taken in turn.
        producer: the id that numbers them.

    Attributes:
        counted: tokens that were answered without an error.
        errors: error replies by their codes.
        said: by code, the first message.
        flying: for each body in flight, when it was due or sent.
        due: in an open loop, when the next body is.
    """

    def __init__(self, load: Load, names: list[str], tokens: list[bytes], producer: str) -> None:
        self.names = names
        self._tokens, self._token = tokens, 0
        self._size, self._numbered = load.body, load.numbered
        keys = {"want": load.want} if load.want != "argmax" else {}
        keys |= {"producer": producer} if load.numbered else {}
        fields = b"".join(_pack(key) + _pack(value) for key, value in keys.items()) + _pack("x")
        rests = [_pack("session") + _pack(name) + fields for name in names]
        size = 2 + len(keys) + load.numbered
        self._heads = [bytes((0x80 | size,)) + rest for rest in rests]
        self._acking = [bytes((0x80 | size + 1,)) + rest for rest in rests]
        self._place = self._answered = 0  # the session of the next token to be sent, and to be answered
        self._t = [0] * len(names)
        self._n = [1] * len(names)
        self._sent = self._taken = 0  # bodies
        self._restart = [0] * len(names)  # bodies before this one are numbered as if what was refused had counted
        self.counted = 0
        self.errors: Counter[str] = Counter()
        self.said: dict[str, str] = {}
        self.flying: deque[float] = deque()
        self.due = 0.0
        self._open, self._most, self._interval_s = load.rate is not None, load.bodies, load.interval_s
        self._seconds: list[float] = []
        self._weights: list[int] = []

    def next(self, now: float, end: float) -> float | None:
        """From when the latency of a body counts that is to be sent now; None where none is.

        That is when it was due in an open loop, where none is due any more at `end`; now, in a closed one, until `end`.
        """
        if len(self.flying) >= self._most:
            return None
        if not self._open:
            return now if now < end else None
        since = self.due
        if since > now or since >= end:
            return None
        self.due = since + self._interval_s
        return since

    def wake_at(self) -> float:
        """When there is something to send, if no reply comes."""
        return self.due if self._open and len(self.flying) < self._most else math.inf

    def late(self, end: float, latencies: Latencies) -> int:
        """Count how long all have waited at `end` that were due before and are not sent; the number of these tokens."""
        if not self._open or self.due >= end:
            return 0
        return latencies.add_evenly(end - self.due, self._interval_s, self._size)

    def body(self, since: float) -> bytes:
        """The next body to be sent; its latency counts from `since`, in seconds."""
        heads, tokens, place, token = self._heads, self._tokens, self._place, self._token
        parts: list[bytes] = []
        for _ in range(self._size):
            if not self._numbered:
                parts += heads[place], tokens[token]
            else:
                n, t = self._n[place], self._t[place]  # each number that counts is one t
                self._n[place] = n + 1
                if self._size == 1 and n - 1 == t:  # alone in its body, it acknowledges those before it
                    parts += heads[place], tokens[token], _NUMBER.pack(b"\xa1n", _UINT32, n)
                else:
                    number = _NUMBER_ACK.pack(b"\xa1n", _UINT32, n, b"\xa3ack", _UINT32, t)
                    parts += self._acking[place], tokens[token], number
            place += 1
            if place == len(heads):
                place = 0
            token += 1
            if token == len(tokens):
                token = 0
        self._place, self._token = place, token
        self._sent += 1
        self.flying.append(since)
        return b"".join(parts)

    def take(self, body: bytes, now: float) -> None:
        """Take in the reply to the oldest body in flight, and hold it to the protocol.

        Raises:
            ProtocolError: it is no reply to that body: another session, or not the session's next t.
        """
        if not self.flying:
            raise ProtocolError("A reply came to which there is no request; is this an rnnstream worker?")
        since, place, counted, names, ts = self.flying.popleft(), self._answered, 0, self.names, self._t
        answers = self._read(body)
        if len(answers) != self._size:
            raise ProtocolError(f"{self._size} requests were answered with {len(answers)} replies.")
        for answer in answers:
            t = ts[place] + 1
            if "error" in answer:
                self._refused(answer, place)
            elif answer.get("t") == t and answer.get("session") == names[place]:
                ts[place] = t
                counted += 1
            else:
                told = f"t={answer.get('t')!r:.40} of the session {answer.get('session')!r:.220}"
                raise ProtocolError(f"Where t={t} of the session {names[place]!r} was to come, {told} came.")
            place += 1
            if place == len(names):
                place = 0
        self._answered = place
        self._taken += 1
        self.counted += counted
        self._seconds.append(now - since)
        self._weights.append(counted)

    def _read(self, body: bytes) -> Sequence[dict[str, Any]]:
        if self._size == 1:  # an eighth of the time that the careful decoder takes
            try:
                answer = msgpack.unpackb(body)
            except Exception:  # which the careful one explains
                answer = None
            if type(answer) is dict and "error" not in answer:
                return (answer,)
        return replies.decode(body)

    def _refused(self, answer: dict[str, Any], place: int) -> None:
        """Count an error. A number that was refused is the next token's; those behind it that are in flight get `gap`."""
        code = str(answer["error"])
        self.errors[code] += 1
        self.said.setdefault(code, str(answer.get("message", "")))
        if self._taken >= self._restart[place]:
            self._n[place] = self._t[place] + 1
            self._restart[place] = self._sent

    def fold(self, latencies: Latencies) -> None:
        """Move the latencies since the last time into a histogram. Those of refused tokens do not count."""
        latencies.add(self._seconds, self._weights)
        self._seconds.clear()
        self._weights.clear()

    def forget(self) -> None:
        """Forget what was counted, but not where the sessions are: the warming up is over."""
        self.counted = 0
        self.errors.clear()
        self.said.clear()
        self.fold(Latencies())
