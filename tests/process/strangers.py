"""Peers without an admitted key, who say what they like over bare TCP: each kind in a process of its own.

What a connection says is a script: a generator that yields bytes to be sent, a number of bytes in all to be waited for (int),
or seconds to wait (float), and is sent all that was heard. Where it ends, or the worker ends the connection, another one takes
its place.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from tests.process.curve import GREETING, HELLO_BYTES, METADATA, WELCOME_BYTES, Handshake, entry
from tests.process.zmtp import COMMAND, LONG, frame, ready
from tests.process.zmtp import GREETING as NULL_GREETING

Script = Generator[bytes | int | float, bytes, None]

GARBAGE = "random bytes"
HALF = "half handshakes"
AT_ONCE = "500 HELLOs at once"
MUTATED = "a recorded handshake, changed"
HIDDEN = "handshakes with bad metadata"
WRONG = "other mechanisms and versions"
IDLE = "idle connections"
UNKNOWN = "ZeroMQ with unknown keys"
SLOW = "a byte a second"
LARGE = "large frames that never end"
BRIEF = "connect and close"
BUSY = "a busy loop"  # connects to nothing, but takes as much of the processor
KINDS = (GARBAGE, HALF, AT_ONCE, MUTATED, HIDDEN, WRONG, IDLE, UNKNOWN, SLOW, LARGE, BRIEF)

CONNECTIONS = {AT_ONCE: 500, IDLE: 2000, SLOW: 500, LARGE: 200}  # at a time
USUAL = 64
SOURCES = {IDLE: 10}  # addresses that they come from: as many idle ones of a single address would not all get in
GIVE_UP_S = 0.1  # until when a connection has to be taken; another one is tried then
SILENCE_S = 0.05  # of those who fall silent and are not there only for that
GREETED = 64  # bytes of a greeting
HEARD = b"\xff" + bytes(7) + b"\x01\x7f\x03\x01CURVE" + bytes(47)  # a worker's greeting
HEARD_2 = HEARD[:11] + b"\x06"  # to a peer of ZMTP 2 or 1: the kind of the socket, where others get the minor version
SIGNED = b"\xff" + bytes(8) + b"\x7f"
STEP = b"\x82\xa7session\xa8stranger\xa1x\x01"  # a token, for a session that must not come to be
LARGE_BYTES = (1 << 20) - 1024  # just below what the worker takes


def place(address: str) -> tuple[str, int]:
    """An address of ZeroMQ, for a socket."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return host, int(port)


@dataclass
class Siege:
    """What a kind of strangers knows, and how many there are.

    Attributes:
        kind: of strangers.
        address: of the worker.
        server: its public key, in Z85.
        recorded: what a client with an admitted key has said in its handshake: the greeting, HELLO, INITIATE.
        seed: of all that is random.
        connections: at a time.
    """

    kind: str
    address: str
    server: str
    recorded: tuple[bytes, bytes, bytes]
    seed: int
    connections: int


@dataclass
class Report:
    """What the strangers saw.

    Attributes:
        connections: that were tried.
        away: of these, were given up, for nobody took them.
        cut: by the worker, of these.
        heard: what came, in units of the protocol, by name.
        other: what came and is nothing that a stranger may hear.
    """

    connections: int = 0
    away: int = 0
    cut: int = 0
    heard: Counter[str] = field(default_factory=Counter)
    other: list[bytes] = field(default_factory=list)

    def hear(self, data: bytes) -> None:
        """Take apart all that a connection has received."""
        if not data:
            return
        self.heard["greeting"] += 1
        if data[:GREETED] != HEARD[: len(data)] and data != HEARD_2:
            self.other.append(data)
            return
        at = GREETED
        while at < len(data):
            name = next((name for name in (b"\x07WELCOME", b"\x05ERROR") if data[at + 2 : at + 2 + len(name)] == name), None)
            if data[at] != COMMAND or name is None or len(data) < at + 2 + data[at + 1]:
                self.other.append(data[at:])
                return
            self.heard[name[1:].decode()] += 1
            at += 2 + data[at + 1]


def source(siege: Siege, number: int) -> str:
    """The address of this machine that a connection comes from: of this kind of strangers alone."""
    return f"127.0.{1 + KINDS.index(siege.kind)}.{1 + number % SOURCES.get(siege.kind, 1)}"


# What is said --------------------------------------------------------------------------------------------------------------


def garbage(siege: Siege, chance: random.Random) -> Script:
    yield chance.choice((b"", SIGNED, GREETING)) + chance.randbytes(chance.randrange(1, 5000))
    yield SILENCE_S


def half(siege: Siege, chance: random.Random) -> Script:
    handshake = Handshake(siege.server)
    yield GREETING
    yield GREETED
    choice = chance.randrange(8)
    if choice == 1:
        yield frame(b"\x05HELLO\x01\x00" + chance.randbytes(193), COMMAND)
    elif choice == 2:
        yield handshake.hello()[: chance.randrange(1, HELLO_BYTES)]
    elif choice > 2:
        yield handshake.hello()
        welcome = (yield GREETED + WELCOME_BYTES)[GREETED:]
        initiate = handshake.initiate(welcome)
        if choice == 4:
            yield frame(b"\x08INITIATE" + chance.randbytes(len(initiate) - 18), COMMAND)
        elif choice == 5:
            yield handshake.initiate(welcome, opened=chance.randbytes(200))
        elif choice == 6:
            yield siege.recorded[2]  # with the cookie of another connection
        elif choice == 7:
            yield initiate
    yield SILENCE_S


def at_once(siege: Siege, chance: random.Random) -> Script:
    yield GREETING
    yield GREETED
    yield 0.5 - time.monotonic() % 0.5
    yield siege.recorded[1]  # a HELLO is good for ever
    yield GREETED + WELCOME_BYTES
    yield SILENCE_S


def mutated(siege: Siege, chance: random.Random) -> Script:
    parts = [bytearray(part) for part in siege.recorded]
    for _ in range(chance.randrange(4)):
        part = chance.choice(parts)
        choice = chance.randrange(7)
        if choice < 2 and part:
            part[chance.randrange(len(part))] ^= 1 << chance.randrange(8)
        elif choice == 2:
            length = chance.choice((0, 1, 255, 1 << 20, 1 << 31, (1 << 63) - 1, 1 << 63, (1 << 64) - 1))
            part[:2] = bytes((chance.choice((0, 1, COMMAND, COMMAND | 1)) | LONG,)) + length.to_bytes(8, "big")
        elif choice == 3:
            del part[chance.randrange(len(part) + 1) :]
        elif choice == 4:
            part += bytes(part)
        elif choice == 5:
            part[:0] = chance.randbytes(chance.randrange(20))
        else:
            chance.shuffle(parts)
    data = b"".join(parts)
    cut = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(4)))
    for begin, end in itertools.pairwise([0, *cut, len(data)]):
        yield data[begin:end]
        yield 0.001
    yield SILENCE_S


BAD_METADATA = (
    b"",
    bytes(1000),
    entry(b"", b""),
    entry(b"Socket-Type", b"\xff" * 255),
    entry(b"Socket-Type", b"PUB"),
    METADATA + entry(b"Identity", b"y" * 100_000),
    b"".join(entry(b"X-%d" % i, b"y" * 10) for i in range(10_000)),
    *(METADATA + b"\x03Big" + length.to_bytes(4, "big") + b"x" for length in (1 << 31, (1 << 31) - 1, (1 << 32) - 1)),
    METADATA + entry(b"User-Id", b"admin") + entry(b"Peer-Address", b"127.0.0.1"),
)


def hidden(siege: Siege, chance: random.Random) -> Script:
    handshake = Handshake(siege.server)
    yield GREETING + handshake.hello()
    welcome = (yield GREETED + WELCOME_BYTES)[GREETED:]
    garbled = chance.randbytes(chance.randrange(1, 500)), METADATA[: chance.randrange(len(METADATA))]
    yield handshake.initiate(welcome, chance.choice((*BAD_METADATA, *garbled)))
    yield SILENCE_S


def wrong(siege: Siege, chance: random.Random) -> Script:
    plain = NULL_GREETING.replace(b"NULL\0", b"PLAIN")
    yield chance.choice(
        (
            NULL_GREETING + ready(b"DEALER") + frame(STEP),
            plain + frame(b"\x05HELLO\x05admin\x05admin", COMMAND) + frame(b"\x08INITIATE", COMMAND) + frame(STEP),
            NULL_GREETING.replace(b"NULL\0\0\0", b"GSSAPI\0") + ready(b"DEALER") + frame(STEP),
            GREETING + ready(b"DEALER") + frame(STEP),
            GREETING + frame(STEP),
            GREETING[:32] + b"\1" + GREETING[33:] + siege.recorded[1],  # as a server
            SIGNED + b"\x01\x05\x00\x00" + frame(STEP),  # ZMTP 2
            SIGNED + b"\x00\x05\x00\x00" + frame(STEP),  # ZMTP 1
            bytes((1, 0, len(STEP) + 1, 0)) + STEP,  # ZMTP 1 without a version
            SIGNED + b"\x09\x09" + GREETING[12:] + siege.recorded[1],  # of a time to come
            b"GET / HTTP/1.1\r\n\r\n" * 5,
        )
    )
    yield SILENCE_S


def idle(siege: Siege, chance: random.Random) -> Script:
    yield chance.choice((b"", GREETING))
    yield math.inf


def slow(siege: Siege, chance: random.Random) -> Script:
    for byte in GREETING + siege.recorded[1]:
        yield bytes((byte,))
        yield 1.0


def large(siege: Siege, chance: random.Random) -> Script:
    yield GREETING + bytes((COMMAND | LONG,)) + LARGE_BYTES.to_bytes(8, "big") + bytes(LARGE_BYTES - 1)
    yield math.inf


SCRIPTS: dict[str, Callable[[Siege, random.Random], Script]] = {
    GARBAGE: garbage,
    HALF: half,
    AT_ONCE: at_once,
    MUTATED: mutated,
    HIDDEN: hidden,
    WRONG: wrong,
    IDLE: idle,
    SLOW: slow,
    LARGE: large,
}
