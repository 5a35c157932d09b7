"""A process of the load, in this one: against a worker, and against what answers less."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import msgpack
import pytest
import zmq

from rnnstream import Client, ConnectionFailed, NoReply, RequestError
from rnnstream.cli import loader
from rnnstream.cli.load import Load
from rnnstream.cli.loader import Job, Loader
from rnnstream.cli.outcome import Outcome

from .conftest import DEADLINE_S


class Fading:
    """A worker that answers so many bodies, and then none.

    Args:
        answered: bodies of one request each.
        errors: error maps that it answers the first bodies of an operation with, by operation.
    """

    def __init__(self, answered: int, **errors: list[dict[str, Any]]) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self.address = f"tcp://127.0.0.1:{self._socket.bind_to_random_port('tcp://127.0.0.1')}"
        self._socket.setsockopt(zmq.RCVTIMEO, int(1000 * DEADLINE_S))  # where fewer bodies come than it waits for
        self._answered, self._errors = answered, errors
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        ts: dict[str, Iterator[int]] = {}
        for _ in range(self._answered):
            peer, body = self._socket.recv_multipart()
            item = msgpack.unpackb(body)
            if errors := self._errors.get(item.get("op", "step")):
                self._socket.send_multipart([peer, msgpack.packb(errors.pop(0))])
                continue
            t = next(ts.setdefault(item["session"], itertools.count()))  # 0 for `open`
            self._socket.send_multipart([peer, msgpack.packb({"session": item["session"], "t": t})])

    def close(self) -> None:
        self._thread.join()
        self._context.destroy(linger=0)


@contextlib.contextmanager
def loading(address: str, load: Load, begin: float, seconds: float) -> Iterator[tuple[Loader, list[Outcome]]]:
    """A process of the load in this one, that begins at this time; and what it says that came of it, when this ends."""
    here, there = Pipe()
    said: list[Outcome] = []
    parent = threading.Thread(target=hear, args=(here, begin, seconds, said))
    parent.start()
    loader = Loader(job(address, load), there)
    try:
        yield loader, said
    finally:
        loader.close()
        there.close()
        parent.join()


def hear(pipe: Connection, begin: float, seconds: float, said: list[Outcome]) -> None:
    """The part of the parent."""
    with contextlib.suppress(EOFError):
        while True:
            word = pipe.recv()
            if word is True:
                pipe.send((begin, begin + seconds))
            elif isinstance(word, Outcome):
                said.append(word)


def job(address: str, load: Load) -> Job:
    connect: Any = {"address": address, "server_key": None, "client_key": None}
    return Job(connect, load, 0, load.clients, "bench", {"kind": "token", "size": 5})


def load(**given: Any) -> Load:
    keys = {"clients": 1, "sessions": 1, "window": 1, "body": 1, "rate": None, "numbered": False, "want": "argmax"}
    return Load(**(keys | given))


@pytest.mark.parametrize("answered", [0, 1, 7])  # at opening, at warming up, at measuring
def test_no_reply(monkeypatch: pytest.MonkeyPatch, answered: int) -> None:
    monkeypatch.setattr(loader, "REPLY_S", 0.1)
    worker = Fading(answered)
    with contextlib.closing(worker), loading(worker.address, load(), time.perf_counter(), 1000) as (loads, said):
        with pytest.raises(NoReply, match=rf"^No reply from {worker.address} within 0\.1 s\.$"):
            loads.run()
        assert not loads.closed
    assert said == []


def test_what_was_measured_is_told_though_the_sessions_cannot_be_closed() -> None:
    worker = Fading(4, close=[{"error": "internal", "message": "a bug"}])  # opened, warmed up, one token, closed
    begin = time.perf_counter() - 60
    with contextlib.closing(worker), loading(worker.address, load(rate=1e-3), begin, 1.0) as (loads, said):
        with pytest.raises(RequestError, match=r"^a bug$"):
            loads.run()
        assert not loads.closed
    [found] = said
    assert (found.seconds > 59, found.latencies.counts.sum()) == (True, 1)


def test_no_reply_while_it_ends_for_another_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "REPLY_S", 0.1)
    worker = Fading(5)
    with contextlib.closing(worker), loading(worker.address, load(window=9), time.perf_counter(), 1000) as (loads, _):

        def look(*_: object) -> None:
            if loads._lines[0].traffic.flying:
                raise OSError("the other end has gone")

        monkeypatch.setattr(loads, "_look", look)
        with pytest.raises(OSError, match="the other end has gone"):
            loads.run()
        assert not loads.closed


def test_what_is_refused_for_now_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[str] = []
    monkeypatch.setattr(loader, "pause_s", lambda refusal: pauses.append(refusal["error"]) or 0.0)
    later = [{"error": "store_error"}, {"error": "busy"}]
    worker = Fading(8, open=[*later], close=[*later, {"error": "unknown_session"}])
    begin = time.perf_counter() - 60
    with contextlib.closing(worker), loading(worker.address, load(rate=1e-3), begin, 1.0) as (loads, _):
        loads.run()
        assert loads.closed
    assert pauses == ["store_error", "busy"] * 2


@pytest.mark.parametrize("code", ["busy", "store_error", "internal"])
def test_a_refusal_while_it_warms_up(code: str) -> None:
    worker = Fading(3 if code == "internal" else 4, step=[{"error": code, "message": "no"}])
    begin = time.perf_counter() - 60
    never = pytest.raises(RequestError, match=r"^The worker refuses these tokens: no$")
    with contextlib.closing(worker), loading(worker.address, load(rate=1e-3), begin, 1.0) as (loads, said):
        with never if code == "internal" else contextlib.nullcontext():
            loads.run()
        assert loads.closed
    assert [found.errors for found in said] == ([] if code == "internal" else [{}]), "what came before the begin does not count"


@pytest.mark.parametrize(
    ("wait_ms", "pause_s"), [(5, 0.005), (0, 0.001), (-3, 0.001), (10**30, 1.0), ("soon", 0.01), (None, 0.01), (True, 0.01)]
)
def test_a_pause_is_bounded_whatever_the_worker_says(wait_ms: object, pause_s: float) -> None:
    assert loader.pause_s({"error": "busy", "retry_after_ms": wait_ms}) == pause_s
    assert loader.pause_s({"error": "busy"}) == 0.01


def test_too_few_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = Pipe()
    monkeypatch.setattr(loader.resource, "getrlimit", lambda _: (300, 300))
    with pytest.raises(ConnectionFailed, match=r"^200 connections of a process need 432 descriptors, and it may have 300 "):
        Loader(job("tcp://127.0.0.1:9", load(clients=200)), there)
    Loader(job("tcp://127.0.0.1:9", load(clients=134)), there).close()
    with pytest.raises(ConnectionFailed, match=r"^Cannot make 1 connections to 'nowhere': "):
        Loader(job("nowhere", load()), there)
    here.close()
    there.close()


def test_what_was_due_long_ago_is_sent_and_counts_from_then(address: str, worker: Client) -> None:
    with loading(address, load(clients=2, sessions=3, rate=10.0, window=16), time.perf_counter() - 60, 0.95) as (loads, said):
        loads.run()
        assert loads.closed
    [found] = said
    assert (found.late, found.latencies.counts.sum()) == (0, 10), "and the warming up does not count"
    assert 59 < found.latencies.percentile(1) < found.latencies.most_s


def test_what_has_no_room_counts_with_its_wait(address: str, worker: Client) -> None:
    with loading(address, load(rate=1000.0, window=2), time.perf_counter() - 60, 0.9995) as (loads, said):
        loads.run()
    [found] = said
    assert found.latencies.counts.sum() == 1000
    assert 900 < found.late < 1000
    assert 0.5 <= found.latencies.percentile(50) <= 0.52, "the wait until the end, of those that were not sent"
