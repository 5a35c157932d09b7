"""Clients that connect, send, and are gone without having read a reply: connections that are reset, processes that are killed.

A polite producer beside them is served with the right bits, and what they have left behind in the worker is bounded.
"""

from __future__ import annotations

import random
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgpack
import numpy as np

from rnnstream import Client, load
from tests.process.exactness import VOCABULARY, token_model
from tests.process.fuzz import resident_bytes
from tests.process.zmtp import GREETING, Splitter, frame, ready
from tests.worker_process import DEADLINE_S, serving

RESET, KILLED = 450, 50  # clients of a round: whose connection is reset, and who are killed with their process
HELD = 0.5  # of the connections to be reset: only once the worker has had time to answer
NEW_PRODUCER = 0.02  # of the numbered bodies; the worker keeps their replies, within its bounds
PROCESS = """
import sys, zmq
address, *bodies = sys.stdin.read().split()
context = zmq.Context()
for body in bodies:
    socket = context.socket(zmq.DEALER)
    socket.connect(address)
    socket.send(bytes.fromhex(body))
print("sent", flush=True)
sys.stdin = open("/dev/zero", "rb")
while sys.stdin.read(1):
    zmq.select([], [], [], 60)
"""

pack = msgpack.Packer(autoreset=True).pack


@dataclass
class Report:
    """What was seen.

    Attributes:
        clients: that came and were killed.
        sessions: that are open at the end, the polite producer's among them.
        checked: predictions of the polite producer, all with the right bits.
        descriptors: of the worker, before and at the end.
        grown: bytes of resident memory that the worker has more at the end than after the warm-up.
    """

    clients: int = 0
    sessions: int = 0
    checked: int = 0
    descriptors: tuple[int, int] = (0, 0)
    grown: int = 0


class Polite:
    """A producer that streams, token by token, and keeps what it hears."""

    def __init__(self, client: Client) -> None:
        self.tokens: list[int] = []
        self.heard: list[bytes] = []
        self._stream = client.session("polite").stream(self._live(), want="probs")

    def _live(self) -> Iterator[int]:
        rng = np.random.default_rng(0)
        while True:
            self.tokens.append(int(rng.integers(VOCABULARY)))
            yield self.tokens[-1]

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.heard.append(next(self._stream).probs.tobytes())


def body(chance: random.Random, number: int) -> bytes:
    """What a client sends: tokens of its session, with large replies or small ones, numbered or not; or questions."""
    session = f"killed-{number}"
    match chance.randrange(5):
        case 0:
            return b"".join(pack({"session": session, "x": chance.randrange(VOCABULARY), "want": "probs"}) for _ in range(100))
        case 1:
            return pack({"op": "peek", "session": session, "xs": [1] * 50, "want": "logits"}) + pack({"op": "hello"})
        case 2:
            producer = f"{chance.random()}" if chance.random() < NEW_PRODUCER else "same"
            return b"".join(pack({"session": session, "x": 1, "producer": producer, "n": n}) for n in range(1, 20))
        case 3:
            return pack({"op": "snapshot", "session": session}) + pack({"op": "sessions", "limit": 1000})
        case _:
            return pack({"session": session, "x": chance.randrange(VOCABULARY)})


def shake_hands(held: socket.socket) -> None:
    """Wait for the other side's greeting and handshake command: libzmq hangs up on messages that come before."""
    splitter, said = Splitter(), 0
    while said < len(GREETING) + 1:
        data = held.recv(1000)
        assert data, "the worker hung up during the handshake"
        said += sum(len(unit) for unit, _ in splitter.feed(data))


def connect(host: str, port: int, chance: random.Random, number: int) -> socket.socket:
    """A connection that has sent some bodies, or a part of them or of its greeting, and has read no reply."""
    held = socket.create_connection((host, port), timeout=DEADLINE_S)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets
    hello, data = GREETING + ready(b"DEALER"), b"".join(frame(body(chance, number)) for _ in range(chance.randint(1, 10)))
    if chance.random() < 0.1:
        held.sendall(hello[: chance.randrange(len(hello))])
        return held
    held.sendall(hello)
    shake_hands(held)
    held.sendall(data[: chance.randrange(len(data))] if chance.random() < 0.2 else data)
    return held


def round_of_kills(address: str, polite: Polite, chance: random.Random) -> None:
    """500 clients come, send, and are killed, all their connections open at the same time."""
    process = subprocess.Popen([sys.executable, "-c", PROCESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    connections = []
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(" ".join([address, *(body(chance, RESET + i).hex() for i in range(KILLED))]))
        process.stdin.close()
        process.stdin = None  # which communicate would try to close again
        host, port = address.removeprefix("tcp://").split(":")
        for number in range(RESET):
            connections.append(connect(host, int(port), chance, number))
            if chance.random() >= HELD:
                connections.pop().close()
            if number % 10 == 0:
                polite.step()
        assert process.stdout.readline() == "sent\n"
        polite.step(5)
    finally:
        process.kill()
        process.communicate()
        for held in connections:
            held.close()


def descriptors(pid: int) -> int:
    """How many files and sockets a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def run(directory: Path, seed: int, *, warm_up: int, go_on: Callable[[int], bool]) -> Report:
    """Have clients come and be killed, round after round.

    Args:
        directory: for the model.
        seed: of what they send, and of who is killed when.
        warm_up: rounds before the worker's memory is measured.
        go_on: whether another round follows, given how many there were.

    Raises:
        AssertionError: the polite producer's bits are wrong, or the worker's descriptors do not come back.
    """
    path, chance, report, rounds = token_model(directory), random.Random(seed), Report(), 0
    with serving(path, "--max-sessions", "1000") as (address, process), Client(address, timeout_s=DEADLINE_S) as client:
        polite = Polite(client)
        polite.step()
        before = descriptors(process.pid)
        for _ in range(warm_up):
            round_of_kills(address, polite, chance)
        memory = resident_bytes(process.pid)
        while go_on(rounds):
            round_of_kills(address, polite, chance)
            rounds += 1
        deadline = time.monotonic() + DEADLINE_S
        while (after := descriptors(process.pid)) > before and time.monotonic() < deadline:
            polite.step()
        assert after <= before, f"{before} descriptors before, {after} at the end"
        report.clients = rounds * (RESET + KILLED)
        report.descriptors = before, after
        report.grown = resident_bytes(process.pid) - memory
        report.sessions = len(list(client.sessions()))
        report.checked = len(polite.heard)
        assert polite.heard == [y.astype("<f4").tobytes() for y in load(path).forward(polite.tokens[: report.checked])]
    return report
