"""A worker in a thread of this process, and raw ZeroMQ peers for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import zmq

from rnnstream.model.network import Network
from rnnstream.wire.replies import decode
from rnnstream.worker.worker import Worker
from tests.engine.models import network

from .driving import Reply, pack

DEADLINE_S = 20  # for whatever must happen
ANYWHERE = "tcp://127.0.0.1:*"


class Peer:
    """A raw client socket.

    Args:
        worker: whom it is connected to.
        kind: zmq.DEALER or zmq.REQ.
        options: socket options, set before it connects.
    """

    def __init__(self, worker: Worker, kind: int = zmq.DEALER, **options: int) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.socket = self.context.socket(kind)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, DEADLINE_S * 1000)
        self.socket.setsockopt(zmq.SNDTIMEO, DEADLINE_S * 1000)
        for name, value in options.items():
            self.socket.setsockopt(getattr(zmq, name), value)
        self.socket.connect(worker.addresses[0])

    def send(self, *maps: Any) -> None:
        self.socket.send(pack(maps))

    def recv(self) -> list[Reply]:
        return decode(self.socket.recv())

    def ask(self, *maps: Any) -> list[Reply]:
        self.send(*maps)
        return self.recv()

    def close(self) -> None:
        self.context.destroy()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Gate(Network):
    """A network whose steps wait at a gate, once it is shut; `reached` says that one does."""

    def __init__(self) -> None:
        self.gate, self.reached = threading.Event(), threading.Event()
        self.gate.set()
        twin = network()
        self.__dict__ |= twin.__dict__

    def advance(self, states: Any, inputs: Any) -> Any:
        self.reached.set()
        assert self.gate.wait(DEADLINE_S)
        return super().advance(states, inputs)


@contextmanager
def serving(model: Any, **options: Any) -> Iterator[Worker]:
    """A worker that runs, checked at the end."""
    worker = Worker(model, bind=options.pop("bind", ANYWHERE), **options)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()
        worker.engine.check()


def deadline() -> Iterator[None]:
    """Again and again, until `DEADLINE_S` have passed: then it fails."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        yield
    raise AssertionError(f"it has not happened in {DEADLINE_S} s")
