"""Mutated requests over the wire to a real worker: each body is answered by one, in order, or its connection is cut.

Beside them a polite producer streams a session that nobody else knows the name of; it keeps its bits.
"""

from __future__ import annotations

import itertools
import string
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zmq

from rnnstream import Client, StepModel, load
from rnnstream.wire.replies import decode
from rnnstream.wire.requests import decode as decode_requests
from tests.process.exactness import VOCABULARY, token_model
from tests.process.mutator import NAMES, Mutator
from tests.worker_process import DEADLINE_S, serving

CONNECTIONS, WINDOW = 4, 16  # bodies in flight over each
MOST_SESSIONS = 300  # of the worker: those that the fuzz opens are bounded
SENTINEL = 8  # one body in so many is a ping whose id must come back in its place
CHECKED = 40  # bodies to a token of the polite producer
GIANT = 2500  # bodies to one that is too large, which ends its connection
GIANT_BYTES = (1 << 20) + 1
pack = msgpack.Packer(autoreset=True).pack


@dataclass
class Sent:
    """A body whose reply is waited for: the frames that come back before it, how many replies, and the id of the first."""

    envelope: list[bytes]
    replies: int
    id: int | None


class Connection:
    """A DEALER, and what it waits for."""

    def __init__(self, context: zmq.Context[Any], address: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.monitor = self.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self.socket.connect(address)
        self.flight: deque[Sent] = deque()

    def close(self) -> None:
        self.socket.disable_monitor()
        self.monitor.close()
        self.socket.close()


@dataclass
class Report:
    """What was seen.

    Attributes:
        bodies: that were answered.
        replies: maps, by error code; "" for none.
        cut: connections.
        checked: tokens of the polite producer.
        grown: bytes of resident memory that the worker has more after the fuzz than after the warm-up.
        seconds: that it took, without the warm-up.
    """

    bodies: int = 0
    replies: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    checked: int = 0
    grown: int = 0
    seconds: float = 0.0


class Fuzz:
    """Sends mutated bodies to a worker, round after round, beside a polite producer.

    Args:
        address: of the worker.
        model: that it serves.
        most_maps: of a body, as the worker's limits say.

    Attributes:
        report: what was seen so far.
    """

    def __init__(self, address: str, model: StepModel, most_maps: int) -> None:
        self.address, self.model, self.most_maps = address, model, most_maps
        self.report = Report()
        self._context: zmq.Context[Any] = zmq.Context()
        self._poller = zmq.Poller()
        self._connections = [self._connect() for _ in range(CONNECTIONS)]
        self._client = Client(address, timeout_s=DEADLINE_S)
        self._tokens: list[int] = []
        self._heard: list[bytes] = []
        self._stream = self._client.session("nobody else's: " + string.ascii_letters).stream(self._live(), want="probs")
        self._ids = itertools.count(1)
        self._mutator = Mutator(0, b"")

    def close(self) -> None:
        self._client.close()
        for connection in self._connections:
            connection.close()
        self._context.term()

    def _live(self) -> Iterator[int]:
        rng = np.random.default_rng(0)
        while True:
            self._tokens.append(int(rng.integers(VOCABULARY)))
            yield self._tokens[-1]

    def _connect(self) -> Connection:
        connection = Connection(self._context, self.address)
        self._poller.register(connection.socket, zmq.POLLIN)
        return connection

    def round(self, bodies: int, seed: int, state: bytes) -> None:
        """Send so many bodies and see each answered; then close all sessions that they have opened."""
        self._mutator = mutator = Mutator(seed, state)
        sent = 0
        while sent < bodies:
            for place, connection in enumerate(self._connections):
                while sent < bodies and len(connection.flight) < WINDOW:
                    sent += 1
                    self._send(connection, mutator)
                    if sent % CHECKED == 0:
                        self._heard.append(next(self._stream).probs.tobytes())
                    if sent % GIANT == 0:
                        self._connections[place] = connection = self._cut(connection)
            if sent < bodies:
                self._receive()
        self._settle()
        self._sweep(self._connections[0])

    def _settle(self) -> None:
        """See everything answered."""
        while any(connection.flight for connection in self._connections):
            self._receive()

    def _send(self, connection: Connection, mutator: Mutator) -> None:
        if mutator.chance.randrange(SENTINEL) == 0:
            id = next(self._ids)
            connection.socket.send(pack({"op": "ping", "id": id}))
            connection.flight.append(Sent([], 1, id))
            return
        *envelope, body = frames = mutator.message()
        maps, problem = decode_requests(body, self.most_maps)
        if len(envelope) > 8 or any(len(frame) > 255 for frame in envelope):
            connection.flight.append(Sent([], 1, None))
        else:
            connection.flight.append(Sent(envelope, len(maps) + (problem is not None), None))
        connection.socket.send_multipart(frames)

    def _receive(self) -> None:
        """Take in what has come, and hold it against what is waited for."""
        ready = dict(self._poller.poll(DEADLINE_S * 1000))
        assert ready, f"no reply to {sum(len(connection.flight) for connection in self._connections)} bodies"
        for connection in self._connections:
            while connection.socket in ready:
                try:
                    *envelope, body = connection.socket.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                assert connection.flight, "a reply to nothing"
                sent = connection.flight.popleft()
                maps = decode(body)
                assert envelope == sent.envelope, "another envelope than the request's"
                assert len(maps) == sent.replies, f"{len(maps)} replies to {sent.replies} requests: {maps!r:.500}"
                assert sent.id is None or maps[0] == {"ok": True, "worker": maps[0]["worker"], "id": sent.id}
                self.report.bodies += 1
                for reply in maps:
                    self.report.replies[reply.get("error", "")] += 1
                    self._mutator.hear(reply)

    def _cut(self, connection: Connection) -> Connection:
        """Send a body that is too large; once all before it is answered, its connection is cut. A new connection."""
        while connection.flight:
            self._receive()
        connection.socket.send(bytes(GIANT_BYTES))
        assert connection.monitor.poll(DEADLINE_S * 1000), "a body that is too large was not cut off"
        assert not connection.socket.poll(0), "a reply to a body that is too large"
        self._poller.unregister(connection.socket)
        connection.close()
        self.report.cut += 1
        return self._connect()

    def _sweep(self, connection: Connection) -> None:
        """Close the sessions that the bodies have opened."""
        for name in [name for name in self._client.sessions() if not name.startswith("nobody else's")]:
            connection.socket.send(pack({"op": "close", "session": name}))
            connection.flight.append(Sent([], 1, None))
        self._settle()

    def check(self) -> None:
        """Hold the polite producer's predictions against the model; and no reply told of a bug."""
        ys = self.model.forward(self._tokens[: len(self._heard)])
        assert self._heard == [y.astype("<f4").tobytes() for y in ys], "the polite producer's bits"
        self.report.checked = len(self._heard)
        assert not self.report.replies["internal"]


def resident_bytes(pid: int) -> int:
    """Memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def run(directory: Path, bodies: int, seed: int, *, warm_up: int) -> Report:
    """Fuzz a worker: `warm_up` bodies, after which its memory is measured, and then so many more.

    Raises:
        AssertionError: a body got no reply, or another one's; one that is too large was not cut off; a reply or the log told
            of a bug; the polite producer's bits are wrong.
    """
    path = token_model(directory)
    with serving(path, "--max-sessions", str(MOST_SESSIONS)) as (address, process):
        with Client(address) as client:
            session = client.session(NAMES[0])
            session.step(1)
            state = session.snapshot()
            most_maps = client.hello()["limits"]["frame_requests"]
        fuzz = Fuzz(address, load(path), most_maps)
        try:
            fuzz.round(warm_up, seed, state)
            before, began = resident_bytes(process.pid), time.monotonic()
            fuzz.round(bodies, seed + 1, state)
            fuzz.report.seconds = time.monotonic() - began
            fuzz.report.grown = resident_bytes(process.pid) - before
            fuzz.check()
        finally:
            fuzz.close()
    return fuzz.report
