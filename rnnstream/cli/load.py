"""What `rnnstream bench` sends, what it expects back, and how it counts latencies. No I/O and no clock."""

from __future__ import annotations

import math
import struct
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from rnnstream.errors import ProtocolError
from rnnstream.wire import replies

OCTAVE = 128  # buckets from a latency to its double: each is at most 1/128 wide
LEAST_S, OCTAVES = 2.0**-20, 32  # from 1 us, less than a message takes, to 68 minutes, longer than anybody waits: 32 KiB
_SHIFT = 52 - 7  # of a float64's bits: what is left are its exponent and 7 bits behind it, which is log-linear
_FIRST = int(np.float64(LEAST_S).view(np.int64)) >> _SHIFT
TOKENS = 1021  # random tokens that are made beforehand; a prime, so that no number of sessions gives each the same few
TOKEN_BYTES = 4 << 20  # and no more bytes of them than this
LATE = 1 << 16  # bodies that are counted at a time: at a high rate, all that were due would not fit into memory

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


class Latencies:
    """A histogram with log-linear buckets, of bounded size whatever it counts.

    Attributes:
        counts: tokens in each bucket.
        most_s: the longest latency, exactly.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(OCTAVES * OCTAVE, np.int64)
        self.most_s = 0.0

    def add(self, seconds: Sequence[float] | npt.NDArray[np.float64], tokens: Sequence[int] | int) -> None:
        """Count latencies.

        Args:
            seconds: one for each body.
            tokens: that had it, for each body or for all alike; those of 0 tokens count nothing.
        """
        times, weights = np.broadcast_arrays(np.asarray(seconds, np.float64), np.asarray(tokens, np.int64))
        if not (weights > 0).any():
            return
        places = (np.maximum(times, LEAST_S).view(np.int64) >> _SHIFT) - _FIRST
        np.add.at(self.counts, np.minimum(places, len(self.counts) - 1), weights)
        self.most_s = max(self.most_s, float(times[weights > 0].max()))

    def merge(self, other: Latencies) -> None:
        """Count what another one has counted."""
        self.counts += other.counts
        self.most_s = max(self.most_s, other.most_s)

    def percentile(self, percent: float) -> float:
        """The latency in seconds that this part of the tokens had at most: never too low, and too high by less than 0.8 %.

        NaN where nothing was counted.
        """
        total = int(self.counts.sum())
        if not total:
            return float("nan")
        rank = max(1, int(np.ceil(total * percent / 100)))
        place = int(np.searchsorted(np.cumsum(self.counts), rank))
        edge = float(np.int64((place + 1 + _FIRST) << _SHIFT).view(np.float64))
        return min(edge, self.most_s)


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
        # A body of several acknowledges; alone in its body, a token acknowledges those before it.
        head = bytes((0x80 | (2 + len(keys) + (1 + (self._size > 1)) * load.numbered),)) + _pack("session")
        self._heads = [head + _pack(name) + fields for name in names]
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

    def late(self, end: float) -> Iterator[npt.NDArray[np.float64]]:
        """How long each body has waited at `end` that was due before, and is not sent; at most `LATE` of them at a time."""
        due = self.due
        while self._open and due < end:
            times = due + self._interval_s * np.arange(LATE, dtype=np.float64)
            yield end - times[times < end]
            due += self._interval_s * LATE

    def body(self, since: float) -> bytes:
        """The next body to be sent; its latency counts from `since`, in seconds."""
        heads, tokens, place, token = self._heads, self._tokens, self._place, self._token
        parts: list[bytes] = []
        for _ in range(self._size):
            parts += heads[place], tokens[token]
            if self._numbered:
                n = self._n[place]
                self._n[place] = n + 1
                if self._size == 1:
                    parts.append(_NUMBER.pack(b"\xa1n", _UINT32, n))
                else:
                    parts.append(_NUMBER_ACK.pack(b"\xa1n", _UINT32, n, b"\xa3ack", _UINT32, self._t[place]))
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
            self._n[place] = self._t[place] + 1  # each number that counts is one t
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
