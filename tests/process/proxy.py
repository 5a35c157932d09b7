"""A relay between clients and a worker that delays, repeats, loses and cuts, by the dice of a seed.

It relays TCP and knows where ZeroMQ's messages end, so that it can do to single messages what a bad network, or a silent
reconnect, does to them, and yet cut real connections: within one, order is kept; what was under way when it was cut may
still arrive, later, mixed with what its successor carries.

Each client has a port of its own. What happens to the k-th message in one direction of the client's n-th connection
depends on the seed, the client, n and k alone.
"""

from __future__ import annotations

import contextlib
import heapq
import random
import selectors
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from tests.process.zmtp import Splitter

CHUNK = 1 << 18  # bytes that are read at a time
LINGER_S = 0.2  # that the worker's side of a cut connection stays open behind the last message, so that it is read
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing resets


@dataclass(frozen=True)
class Faults:
    """The chance of each, for every message.

    Attributes:
        delay: it, and what is behind it on its connection, is held back, for up to `delay_s`.
        repeat: a request is delivered twice, the second time right behind the first or behind its successor.
        lose_request: it does not arrive; the connection goes on.
        lose_reply: likewise.
        cut: the connection ends with it: closed, reset, or silent from then on in both directions. Of the requests that are
            under way, this one included, the first so many arrive after up to `late_s`, the others never.
    """

    delay: float = 0.02
    delay_s: float = 0.02
    repeat: float = 0.02
    lose_request: float = 0.003
    lose_reply: float = 0.003
    cut: float = 0.004
    late_s: float = 0.6


class Way:
    """One direction of a connection: what is under way, and how much of it the socket has not taken."""

    def __init__(self, source: socket.socket, sink: socket.socket, is_request: bool, chance: random.Random) -> None:
        self.source, self.sink, self.is_request, self.chance = source, sink, is_request, chance
        self.splitter = Splitter()
        self.queue: deque[tuple[float, bytes, bool]] = deque()  # when it is due, the unit, whether it is a message; in order
        self.unsent = b""
        self.again: list[bytes] = []  # repeats that wait for a successor


class Connection:
    """A client's connection, and the one to the worker that belongs to it."""

    def __init__(self, client: socket.socket, worker: socket.socket, seed: str) -> None:
        self.client, self.worker = client, worker
        self.requests = Way(client, worker, True, random.Random(f"{seed} requests"))
        self.replies = Way(worker, client, False, random.Random(f"{seed} replies"))
        self.cut = False  # the client's side is closed, or silent
        self.closed = False  # both are closed


class Proxy:
    """A relay in a thread of its own, from `start` to `stop`.

    Args:
        clients: how many; each has an address.
        faults: that it makes.
        seed: of the dice.

    Attributes:
        addresses: where each client connects to.
        target: host and port of the worker, or None: there is none, and connections are refused.
        done: what was done, by kind; "replies" counts those that were passed on.
    """

    def __init__(self, clients: int, faults: Faults, seed: int) -> None:
        self.faults, self.seed = faults, seed
        self.target: tuple[str, int] | None = None
        self.done: Counter[str] = Counter()
        self._listeners = [socket.create_server(("127.0.0.1", 0), backlog=128) for _ in range(clients)]
        self.addresses = [f"tcp://127.0.0.1:{listener.getsockname()[1]}" for listener in self._listeners]
        self._selector = selectors.DefaultSelector()
        self._accepted = [0] * clients
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._made = 0  # timers
        self._open: set[Connection] = set()
        self._milestones: list[tuple[int, threading.Event]] = []
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="proxy")

    def start(self) -> None:
        for number, listener in enumerate(self._listeners):
            listener.setblocking(False)
            self._watch(listener, selectors.EVENT_READ, lambda events, number=number: self._accept(number))
        self._watch(self._woken, selectors.EVENT_READ, lambda events: None)
        self._thread.start()

    def stop(self) -> None:
        """End, and close everything. Harmless if it was never started."""
        self._wake.close()
        if self._thread.ident is not None:
            self._thread.join()
        for held in (*self._listeners, self._woken):
            held.close()
        self._selector.close()

    def aim(self, address: str | None) -> None:
        """Clients that connect from now on reach the worker at this address."""
        if address is None:
            self.target = None
        else:
            host, port = address.removeprefix("tcp://").split(":")
            self.target = host, int(port)

    def at(self, replies: int) -> threading.Event:
        """An event that is set when so many replies have been passed on. To be called before `start`."""
        event = threading.Event()
        self._milestones.append((replies, event))
        self._milestones.sort(key=lambda milestone: milestone[0])
        return event

    # -- the loop --

    def _run(self) -> None:
        try:
            while True:
                wait_s = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
                for key, events in self._selector.select(wait_s):
                    if key.fileobj is self._woken:
                        return
                    key.data(events)
                now = time.monotonic()
                while self._timers and self._timers[0][0] <= now:
                    heapq.heappop(self._timers)[2]()
        finally:
            for connection in list(self._open):
                self._close(connection)

    def _later(self, at: float, do: Callable[[], None]) -> None:
        self._made += 1
        heapq.heappush(self._timers, (at, self._made, do))

    def _watch(self, held: socket.socket, events: int, do: Callable[[int], None]) -> None:
        try:
            self._selector.modify(held, events, do)
        except KeyError:
            self._selector.register(held, events, do)

    def _unwatch(self, held: socket.socket) -> None:
        with contextlib.suppress(KeyError, ValueError):  # not watched, or closed
            self._selector.unregister(held)

    def _accept(self, number: int) -> None:
        client, _ = self._listeners[number].accept()
        try:
            if self.target is None:
                raise OSError("nobody is there")
            worker = socket.create_connection(self.target, timeout=1)
        except OSError:
            client.close()
            return
        self._accepted[number] += 1
        connection = Connection(client, worker, f"{self.seed} {number} {self._accepted[number]}")
        self._open.add(connection)
        for held in (client, worker):
            held.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            held.setblocking(False)
        self._watch(client, selectors.EVENT_READ, lambda events: self._ready(connection, client, events))
        self._watch(worker, selectors.EVENT_READ, lambda events: self._ready(connection, worker, events))

    def _ready(self, connection: Connection, held: socket.socket, events: int) -> None:
        """A socket of the connection can be read or written."""
        incoming, outgoing = (
            (connection.requests, connection.replies)
            if held is connection.client
            else (connection.replies, connection.requests)
        )
        try:
            if events & selectors.EVENT_WRITE:
                self._write(connection, outgoing, b"")
            if events & selectors.EVENT_READ and not connection.closed:
                data = held.recv(CHUNK)
                if not data:
                    raise ConnectionResetError
                if not connection.cut:
                    for unit, is_message in incoming.splitter.feed(data):
                        self._pass(connection, incoming, unit, is_message)
        except BlockingIOError:
            pass
        except OSError:
            if held is connection.client and not connection.cut:
                self._let_go(connection, connection.requests.chance)
            elif held is connection.client:  # it was silent, and the client has given it up
                self._unwatch(held)
                held.close()
                if connection.worker.fileno() < 0:
                    self._close(connection)
            else:
                self._close(connection)

    # -- what happens to a message --

    def _pass(self, connection: Connection, way: Way, unit: bytes, is_message: bool) -> None:
        if connection.cut:
            return
        if not is_message:
            self._put(connection, way, unit, False, 0.0)
            return
        faults, chance = self.faults, way.chance
        fate, delay_s, how = chance.random(), chance.random() * faults.delay_s, chance.random()
        if fate < faults.cut:
            if way.is_request:
                way.queue.append((time.monotonic(), unit, True))
            self._cut(connection, how, chance)
            return
        fate -= faults.cut
        lose = faults.lose_request if way.is_request else faults.lose_reply
        if fate < lose:
            self.done["requests lost" if way.is_request else "replies lost"] += 1
            return
        fate -= lose
        delayed = fate < faults.delay
        self.done["delayed"] += delayed
        self._put(connection, way, unit, True, delay_s if delayed else 0.0)
        for repeat in way.again:
            self._put(connection, way, repeat, True, 0.0)
        way.again.clear()
        if way.is_request and faults.delay <= fate < faults.delay + faults.repeat:
            self.done["repeated"] += 1
            if how < 0.5:
                self._put(connection, way, unit, True, 0.0)
            else:
                way.again.append(unit)

    def _put(self, connection: Connection, way: Way, unit: bytes, is_message: bool, delay_s: float) -> None:
        """Send a unit on, behind those that are under way."""
        if not way.queue and not delay_s:
            self._send(connection, way, unit, is_message)
            return
        due = time.monotonic() + delay_s
        if way.queue:
            due = max(due, way.queue[-1][0])
        way.queue.append((due, unit, is_message))
        self._later(due, lambda: self._release(connection, way))

    def _release(self, connection: Connection, way: Way) -> None:
        """Send what is due."""
        now = time.monotonic()
        while way.queue and way.queue[0][0] <= now and not connection.closed:
            _, unit, is_message = way.queue.popleft()
            self._send(connection, way, unit, is_message)

    def _send(self, connection: Connection, way: Way, unit: bytes, is_message: bool) -> None:
        if is_message:
            kind = "requests" if way.is_request else "replies"
            self.done[kind] += 1
            while not way.is_request and self._milestones and self._milestones[0][0] <= self.done[kind]:
                self._milestones.pop(0)[1].set()
        with contextlib.suppress(OSError):  # the reading side finds out, and says so
            self._write(connection, way, unit)

    def _write(self, connection: Connection, way: Way, unit: bytes) -> None:
        data = way.unsent + unit if way.unsent else unit
        try:
            sent = way.sink.send(data)
        except BlockingIOError:
            sent = 0
        was, way.unsent = way.unsent, data[sent:]
        if bool(was) != bool(way.unsent):
            both = selectors.EVENT_READ | (selectors.EVENT_WRITE if way.unsent else 0)
            self._watch(way.sink, both, lambda events: self._ready(connection, way.sink, events))

    # -- the end of a connection --

    def _cut(self, connection: Connection, how: float, chance: random.Random) -> None:
        if how < 0.4:
            self.done["silenced"] += 1
            connection.cut = True
            self._leave(connection, chance)
            return
        self.done["closed" if how < 0.7 else "reset"] += 1
        if how >= 0.7:
            connection.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._let_go(connection, chance)

    def _let_go(self, connection: Connection, chance: random.Random) -> None:
        """Close the client's side, if the client has not."""
        connection.cut = True
        self._unwatch(connection.client)
        connection.client.close()
        self._leave(connection, chance)

    def _leave(self, connection: Connection, chance: random.Random) -> None:
        """The client's side is cut: of the requests under way, the first so many arrive late."""
        way, at = connection.requests, time.monotonic()
        under_way = [unit for _, unit, is_message in way.queue if is_message]
        late = under_way[: chance.randint(0, len(under_way))]
        way.queue.clear()
        connection.replies.queue.clear()
        self.done["late"] += len(late)
        for unit in late:
            at += chance.random() * self.faults.late_s / len(late)
            way.queue.append((at, unit, True))
            self._later(at, lambda: self._release(connection, way))
        self._later(at + LINGER_S, lambda: self._hang_up(connection))

    def _hang_up(self, connection: Connection) -> None:
        """Close the worker's side of a connection whose client's side is cut; a silent one goes on being silent."""
        if not connection.closed:
            self._unwatch(connection.worker)
            connection.worker.close()
            if connection.client.fileno() < 0:
                self._close(connection)

    def _close(self, connection: Connection) -> None:
        """Close both sides. What is under way is gone, as with a worker that has died."""
        connection.closed = connection.cut = True
        self._open.discard(connection)
        for held in (connection.client, connection.worker):
            self._unwatch(held)
            held.close()
