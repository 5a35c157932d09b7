"""A worker with keys and a producer whose key is admitted: what the strangers around them leave of it."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zmq

from rnnstream import StepModel
from rnnstream.keys import read_pair, write_pair
from tests.process.curve import HELLO_BYTES
from tests.process.fuzz import resident_bytes
from tests.process.strangers import CONNECTIONS, GREETED, USUAL, Siege, place
from tests.worker_process import DEADLINE_S, serving

pack = msgpack.packb


class Producer:
    """A bare loop around a socket with a key, one token in flight.

    Attributes:
        latencies: of each token, in seconds.
    """

    def __init__(self, address: str, server: str, pair: tuple[str, str]) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.curve_serverkey = server.encode()
        self._socket.curve_publickey, self._socket.curve_secretkey = (key.encode() for key in pair)
        self._socket.connect(address)
        self.latencies: list[float] = []
        self._session = ""
        self._tokens: list[int] = []
        self._heard: list[dict[str, Any]] = []

    def close(self) -> None:
        self._socket.close()
        self._context.term()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request; its reply, which has to come."""
        self._socket.send(pack(request))
        assert self._socket.poll(DEADLINE_S * 1000), f"no reply to {request}: it is lost, or the worker does not answer"
        return msgpack.unpackb(self._socket.recv())

    def begin(self, session: str, vocabulary: int, seed: int) -> None:
        """A new session."""
        self._session, self._heard, self.latencies = session, [], []
        self._tokens = np.random.default_rng(seed).integers(0, vocabulary, 100_000).tolist()

    def step(self) -> None:
        """Send the next token of the session, and wait for the prediction."""
        request = {"session": self._session, "x": self._tokens[len(self._heard)], "want": "probs"}
        sent = time.perf_counter()
        reply = self.ask(request)
        self.latencies.append(time.perf_counter() - sent)
        self._heard.append(reply)

    def check(self, model: StepModel) -> int:
        """Hold every prediction of the session against the whole sequence run at once; how many there were."""
        assert [reply.get("t") for reply in self._heard] == list(range(1, len(self._heard) + 1)), "each token counted once"
        ys = model.forward(self._tokens[: len(self._heard)])
        assert [reply["probs"] for reply in self._heard] == [y.astype("<f4").tobytes() for y in ys], "other bits"
        return len(self._heard)


@dataclass
class Health:
    """What a worker's process has.

    Attributes:
        resident: bytes of memory.
        descriptors: open files and sockets.
        lines: of its log.
    """

    resident: int
    descriptors: int
    lines: int


class Besieged:
    """A worker with keys.

    Attributes:
        address, process: of the worker.
        server: its public key.
        recorded: what a client with an admitted key says in its handshake; see `Siege`.
    """

    def __init__(self, address: str, process: subprocess.Popen[str], server: str, pairs: dict[str, tuple[str, str]]) -> None:
        self.address, self.process, self.server, self._pairs = address, process, server, pairs
        self.recorded = self._record()

    def siege(self, kind: str, seed: int = 1, connections: int = 0) -> Siege:
        """Strangers of a kind around this worker, as many as is usual if `connections` is 0."""
        connections = connections or CONNECTIONS.get(kind, USUAL)
        return Siege(kind, self.address, self.server, self.recorded, seed, connections)

    @contextlib.contextmanager
    def producer(self, name: str = "polite", address: str = "") -> Iterator[Producer]:
        producer = Producer(address or self.address, self.server, self._pairs[name])
        try:
            yield producer
        finally:
            producer.close()

    def newcomer(self) -> float:
        """Seconds until somebody who was not connected has the answer to a ping."""
        began = time.perf_counter()
        with self.producer("newcomer") as producer:
            assert producer.ask({"op": "ping"})["ok"]
            return time.perf_counter() - began

    def sessions(self) -> list[str]:
        """The names of all sessions, whose ever they are."""
        with self.producer("warden") as warden:
            return warden.ask({"op": "sessions", "all": True})["sessions"]

    def health(self) -> Health:
        process = Path(f"/proc/{self.process.pid}")
        lines = (process / "fd/2").read_text().count("\n")
        return Health(resident_bytes(self.process.pid), len(os.listdir(process / "fd")), lines)

    def settle(self, descriptors: int) -> Health:
        """Wait until no more descriptors are open than there were."""
        deadline = time.monotonic() + DEADLINE_S
        while (health := self.health()).descriptors > descriptors:
            assert time.monotonic() < deadline, f"{health.descriptors} descriptors are open; there were {descriptors}"
            time.sleep(0.01)
        return health

    def _record(self) -> tuple[bytes, bytes, bytes]:
        """Have a client with an admitted key connect through a relay; its greeting, its HELLO and its INITIATE."""
        said = b""
        at = GREETED + HELLO_BYTES
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            stack.enter_context(self.producer("recorded", f"tcp://127.0.0.1:{listener.getsockname()[1]}"))
            client = stack.enter_context(listener.accept()[0])
            worker = stack.enter_context(socket.create_connection(place(self.address)))
            while len(said) < at + 9 or len(said) < at + 9 + int.from_bytes(said[at + 1 : at + 9], "big"):
                readable, _, _ = select.select([client, worker], [], [], DEADLINE_S)
                assert readable, "the handshake does not go on"
                for one in readable:
                    data = one.recv(65536)
                    (worker if one is client else client).sendall(data)
                    said += data if one is client else b""
        return said[:GREETED], said[GREETED:at], said[at : at + 9 + int.from_bytes(said[at + 1 : at + 9], "big")]


@contextlib.contextmanager
def besieged(directory: Path, *arguments: str | Path) -> Iterator[Besieged]:
    """A worker with keys, a process of its own that ends with the `with` statement: in order, and without a traceback."""
    _, secret = write_pair(directory / "worker")
    pairs = {}
    for folder, names in (("allow", ("polite", "newcomer", "recorded")), ("admin", ("warden",))):
        (directory / folder).mkdir(mode=0o700)
        for name in names:
            public, theirs = write_pair(directory / name)
            pairs[name] = read_pair(theirs)
            public.rename(directory / folder / public.name)
    keys = ("--server-key", secret, "--allow", directory / "allow", "--admin", directory / "admin")
    with serving(*arguments, *keys) as (address, process):
        yield Besieged(address, process, read_pair(secret)[0], pairs)
