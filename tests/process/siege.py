"""Runs strangers around a worker, each kind in a process of its own."""

from __future__ import annotations

import contextlib
import heapq
import multiprocessing
import os
import random
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from typing import Any

import zmq

from tests.process.strangers import BRIEF, BUSY, GIVE_UP_S, SCRIPTS, STEP, UNKNOWN, Report, Script, Siege, place, source
from tests.worker_process import DEADLINE_S

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() resets, and no port stays behind in TIME_WAIT
NEW_A_TURN = 100  # connections: more than the backlog at once, and the system would have each of them wait for a second
MOST_HEARD = 100_000  # bytes of one connection

# Strangers -------------------------------------------------------------------------------------------------------------------


class Line:
    """A connection of a stranger.

    Attributes:
        heard: so far.
        until: when to go on, at the earliest.
        give_up: when to give up if nobody has taken the connection, in seconds.
        taken: it was taken.
    """

    def __init__(self, source: str, address: tuple[str, int], script: Script) -> None:
        self.socket = socket.socket()
        self.socket.bind((source, 0))
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.socket.connect_ex(address)
        self.heard, self.until = b"", 0.0
        self.give_up, self.taken = time.monotonic() + GIVE_UP_S, False
        self._script, self._unsent, self._needed = script, b"", 0
        self._begun = False

    def go_on(self, now: float) -> bool:
        """Go on with the script as far as that is possible; False when it has ended. `OSError`: the worker ended it."""
        if not self.taken:
            try:
                self.socket.getpeername()
            except OSError:
                return now < self.give_up
            self.taken = True
        with contextlib.suppress(BlockingIOError):
            while len(self.heard) < MOST_HEARD:
                if not (data := self.socket.recv(65536)):
                    raise ConnectionResetError
                self.heard += data
        with contextlib.suppress(BlockingIOError, StopIteration):
            while True:
                while self._unsent:
                    self._unsent = self._unsent[self.socket.send(self._unsent) :]
                if len(self.heard) < self._needed or now < self.until:
                    return True
                wish = self._script.send(self.heard) if self._begun else next(self._script)
                self._begun = True
                if isinstance(wish, bytes):
                    self._unsent = wish
                elif isinstance(wish, int):
                    self._needed = wish
                else:
                    self.until = now + wish
        return bool(self._unsent)


def speak(siege: Siege, report: Report, going: Callable[[], bool]) -> None:
    """Keep so many connections of one kind of script open."""
    chance, script = random.Random(siege.seed), SCRIPTS[siege.kind]
    lines: dict[int, Line] = {}
    timers: list[tuple[float, int]] = []
    poll = select.epoll()

    def end(descriptor: int, line: Line) -> None:
        report.away += not line.taken
        report.hear(line.heard)
        line.socket.close()
        del lines[descriptor]

    while going():
        for _ in range(min(siege.connections - len(lines), NEW_A_TURN)):
            line = Line(source(siege, report.connections), place(siege.address), script(siege, chance))
            lines[line.socket.fileno()] = line
            heapq.heappush(timers, (line.give_up, line.socket.fileno()))
            poll.register(line.socket, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
            report.connections += 1
        due = {descriptor for descriptor, _ in poll.poll(0.0 if len(lines) < siege.connections else 0.01)}
        now = time.monotonic()
        while timers and timers[0][0] <= now:
            due.add(heapq.heappop(timers)[1])
        for descriptor in due:
            line = lines.get(descriptor)  # type: ignore[assignment]
            if line is None:
                continue
            try:
                if not line.go_on(now):
                    end(descriptor, line)
                elif line.until > now:
                    heapq.heappush(timers, (line.until, descriptor))
            except OSError:
                report.cut += 1
                end(descriptor, line)
    for descriptor, line in list(lines.items()):
        end(descriptor, line)


def come_and_go(siege: Siege, report: Report, going: Callable[[], bool]) -> None:
    """Connect and close, as fast as that goes."""
    while going():
        report.connections += 1
        with socket.socket() as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            line.bind((source(siege, 0), 0))
            line.settimeout(GIVE_UP_S)
            try:
                line.connect(place(siege.address))
            except TimeoutError:
                report.away += 1


def try_keys(siege: Siege, report: Report, going: Callable[[], bool]) -> None:
    """Clients of ZeroMQ, whose keys nobody has admitted; each that is refused is replaced by a new one."""
    refused = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    context: zmq.Context[Any] = zmq.Context()
    pairs = [zmq.curve_keypair() for _ in range(100)]
    poller = zmq.Poller()
    peers: dict[Any, Any] = {}  # by monitor
    while going() or peers:
        while going() and len(peers) < siege.connections:
            peer = context.socket(zmq.DEALER)
            peer.linger = 0
            peer.curve_serverkey = siege.server.encode()
            peer.curve_publickey, peer.curve_secretkey = pairs[report.connections % len(pairs)]
            monitor = peer.get_monitor_socket(refused | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED)
            peer.connect(siege.address.replace("//", f"//{source(siege, 0)}:0;"))
            peer.send(STEP)
            poller.register(monitor, zmq.POLLIN)
            peers[monitor] = peer
            report.connections += 1
        ready = dict(poller.poll(10)) if going() else peers
        for monitor in list(ready):
            peer = peers.pop(monitor)
            if going():
                event = int.from_bytes(monitor.recv_multipart()[0][:2], "little")
                report.heard["refused" if event & refused else "lost" if event == zmq.EVENT_DISCONNECTED else "let in"] += 1
            if peer.poll(0):
                report.other.append(peer.recv())
            poller.unregister(monitor)
            peer.disable_monitor()
            monitor.close()
            peer.close()
    context.term()


def compute(siege: Siege, report: Report, going: Callable[[], bool]) -> None:
    """Compute, and connect to nothing."""
    while going():
        pass


def besiege(siege: Siege, report: Report, going: Callable[[], bool]) -> None:
    """Strangers of a kind, for as long as `going` says."""
    {BRIEF: come_and_go, UNKNOWN: try_keys, BUSY: compute}.get(siege.kind, speak)(siege, report, going)


def process(siege: Siege, enough: Event, told: Connection, processor: int | None) -> None:
    """A process of strangers, until it is enough: tells when all are there, and at the end what they saw."""
    if processor is not None:
        os.sched_setaffinity(0, {processor})
    os.nice(10)
    report = Report()
    begun = False

    def going() -> bool:
        nonlocal begun
        if not begun and (report.connections >= siege.connections or siege.kind == BUSY):
            begun = True
            told.send(None)
        return not enough.is_set()

    besiege(siege, report, going)
    told.send(report)


@contextlib.contextmanager
def under(siege: Siege, processor: int | None = None) -> Iterator[Report]:
    """Strangers in a process of their own, for as long as a `with` statement; their report is filled in when it ends."""
    processes = multiprocessing.get_context("spawn")
    enough = processes.Event()
    ours, theirs = processes.Pipe(duplex=False)
    strangers = processes.Process(target=process, args=(siege, enough, theirs, processor), daemon=True)
    strangers.start()
    theirs.close()  # so that its end is seen here

    def hear(what: str) -> Any:
        assert ours.poll(DEADLINE_S), f"{siege.kind}: {what} not within {DEADLINE_S} s"
        try:
            return ours.recv()
        except EOFError:
            strangers.join()
            raise AssertionError(f"{siege.kind}: ended with {strangers.exitcode}") from None

    report = Report()
    try:
        hear("begun")
        yield report
        enough.set()
        vars(report).update(vars(hear("ended")))
    finally:
        strangers.kill()
        strangers.join()
