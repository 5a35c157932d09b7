"""One process of `rnnstream bench`: its connections, and the loop that keeps them busy."""

from __future__ import annotations

import contextlib
import math
import resource
import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import zmq

from rnnstream.cli.load import Load, Traffic, random_tokens
from rnnstream.cli.options import Connect
from rnnstream.cli.outcome import Outcome
from rnnstream.client.lane import LATER
from rnnstream.client.link import curve_options
from rnnstream.errors import ConnectionFailed, NoReply, ProtocolError, RequestError, RnnstreamError
from rnnstream.wire import replies, requests

REPLY_S = 10.0  # silence after which nobody is waited for: the timeout of the clients
TELL_S = 0.1  # between two looks at all that is not traffic
OPENED = 128  # sessions opened or closed with one body; fewer than a worker takes in one
RETRY_MS = 10  # after which what was refused for now is asked for again, where the worker does not say
MOST_RETRY_MS = 1000  # whatever it says
DESCRIPTORS = 2  # of a connection: its own, and that by which ZeroMQ wakes whoever waits for it
SPARE = 32  # descriptors of a process without a connection: half of them, and as many for what comes


@dataclass
class Job:
    """What one process has to do.

    Attributes:
        connect: where.
        load: what is asked for, of all processes together.
        first: number of its first connection among all.
        count: of its connections.
        prefix: what the names of its sessions begin with.
        input: of the model, as hello has it.
    """

    connect: Connect
    load: Load
    first: int
    count: int
    prefix: str
    input: dict[str, Any]


class Line:
    """A connection, and its traffic."""

    def __init__(self, socket: zmq.Socket[bytes], traffic: Traffic) -> None:
        self.socket, self.traffic = socket, traffic
        self.send = partial(zmq.backend.Socket.send, socket)  # the sugar around it costs as much again
        self.recv = partial(zmq.backend.Socket.recv, socket)
        self.get: Callable[[int], int] = partial(zmq.backend.Socket.get, socket)  # type: ignore[assignment]
        self.heard = 0.0  # when the last reply came, or a body was sent that nothing was in flight before


class Loader:
    """The connections of a process; see `work`.

    Attributes:
        closed: none of its sessions is open, for sure.

    Raises:
        BadKey: a key file cannot be used.
        ConnectionFailed: the address is no endpoint, or this process may not have so many connections.
    """

    def __init__(self, job: Job, pipe: Connection) -> None:
        self._job, self._pipe, self._load = job, pipe, job.load
        self._stopped = False
        self.closed = True
        need, (may, _) = job.count * DESCRIPTORS + SPARE, resource.getrlimit(resource.RLIMIT_NOFILE)
        if may != resource.RLIM_INFINITY and need > may:  # ZeroMQ would try in vain, and say nothing
            raise ConnectionFailed(
                f"{job.count} connections of a process need {need} descriptors, and it may have {may} (ulimit -n); "
                "take fewer --clients, or more --processes."
            )
        connect = job.connect
        server_key, client_key = connect["server_key"], connect["client_key"]
        options: dict[int, int | bytes] = {
            zmq.LINGER: 0,
            zmq.SNDHWM: 0,  # windows bound it
            zmq.RCVHWM: 0,
            zmq.IPV6: int("[" in connect["address"]),
        }
        if server_key is not None and client_key is not None:
            options |= curve_options(server_key, client_key)
        tokens = random_tokens(job.input["kind"], job.input["size"], np.random.default_rng())
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._lines: list[Line] = []
        try:
            for number in range(job.first, job.first + job.count):
                names = [f"{job.prefix}-{number}-{session}" for session in range(job.load.sessions)]
                socket = self._context.socket(zmq.DEALER)
                for option, value in options.items():
                    socket.setsockopt(option, value)
                socket.connect(connect["address"])
                self._lines.append(Line(socket, Traffic(job.load, names, tokens, f"{job.prefix}-{number}")))
        except zmq.ZMQError as problem:
            self.close()
            raise ConnectionFailed(f"Cannot make {job.count} connections to {connect['address']!r:.200}: {problem}.") from None
        self._by_descriptor = {int(line.socket.getsockopt(zmq.FD)): line for line in self._lines}
        # Whose descriptors may keep silent though there is a reply: it tells once, and a send may swallow that.
        self._awake: set[Line] = set(self._lines)
        self._wake_at = 0.0  # when there is something to send, if no reply comes

    def close(self) -> None:
        """Close the connections."""
        self._context.destroy(linger=0)

    def run(self) -> None:
        """Open the sessions, warm up, measure, say what came of it, close the sessions.

        Raises:
            NoReply: for 10 s.
            RequestError: a session cannot be opened or closed, or the warming up got an error.
            ProtocolError: a reply that is none.
            OSError: the other end of the pipe is closed.
        """
        try:
            self._ask("open")
            self._warm_up()
            self._pipe.send(self._measure())
        except NoReply:
            raise
        except BaseException:
            with contextlib.suppress(RnnstreamError):
                self._settle()
                self._ask("close")
            raise
        self._ask("close")

    def _ask(self, op: str) -> None:
        """Open or close all sessions, one body after the other."""
        self.closed = False
        for line in self._lines:
            names, heard = list(line.traffic.names), time.perf_counter()
            while names and not (self._stopped and op == "open"):
                asked, names = names[:OPENED], names[OPENED:]
                line.send(requests.encode([{"op": op, "session": name} for name in asked]))
                answers = replies.decode(self._next(line))
                if len(answers) != len(asked):
                    raise ProtocolError(f"{len(asked)} requests were answered with {len(answers)} replies.")
                later = [answer for answer in answers if answer.get("error") in LATER]
                if len(later) < len(answers):
                    heard = time.perf_counter()
                for name, answer in zip(asked, answers, strict=True):
                    if answer.get("error") in LATER and time.perf_counter() - heard < REPLY_S:
                        names.append(name)
                    elif "error" in answer and (op, answer["error"]) != ("close", "unknown_session"):  # it may have expired
                        raise RequestError.from_reply(answer)
                if later:
                    time.sleep(pause_s(later[0]))
                self._stopped = self._stopped or self._pipe.poll()
        self.closed = op == "close"

    def _next(self, line: Line) -> bytes:
        """The next body of this connection."""
        if not line.socket.poll(int(1000 * REPLY_S)):
            raise self._silence()
        return line.recv()

    def _silence(self) -> NoReply:
        return NoReply(f"No reply from {self._job.connect['address']} within {REPLY_S:g} s.")

    def _warm_up(self) -> None:
        """A token for each session."""
        for line in self._lines:
            traffic = line.traffic
            bodies = -(-len(traffic.names) // self._load.body)
            while (bodies and not self._stopped) or traffic.flying:
                while bodies and len(traffic.flying) < self._load.bodies:
                    line.send(traffic.body(0.0))
                    bodies -= 1
                traffic.take(self._next(line), 0.0)
            for code, message in traffic.said.items():
                if code not in (*LATER, "gap"):
                    raise RequestError(f"The worker refuses these tokens: {message}")
            traffic.forget()

    def _settle(self) -> None:
        """Wait for what is in flight, whatever it is."""
        for line in self._lines:
            while line.traffic.flying:
                self._next(line)
                line.traffic.flying.popleft()

    def _measure(self) -> Outcome:
        """The load itself, for as long as was asked for."""
        outcome, load, lines = Outcome(), self._load, self._lines
        if self._stopped:
            return outcome
        self._pipe.send(True)
        try:
            begin, end = self._pipe.recv()
        except (EOFError, TypeError):  # gone, or told to stop
            return outcome
        for number, line in enumerate(lines, self._job.first):
            line.traffic.due = begin + number / load.clients * load.interval_s  # they take turns
        while (left := begin - time.perf_counter()) > 0:
            time.sleep(left)
        cpu, now, look_at = time.thread_time(), begin, begin
        while now < end:
            if now >= look_at:
                look_at = now + TELL_S
                self._look(outcome, now)
                end = now if self._stopped else end
            if now >= self._wake_at:
                self._wake_at = math.inf
                for line in lines:
                    self._fill(line, end)
            now = self._receive(min(self._wake_at, look_at, end), end)
        outcome.seconds, outcome.busy = now - begin, (time.thread_time() - cpu) / (now - begin)
        outcome.tokens = sum(line.traffic.counted for line in lines)
        for line in lines:
            self._fill(line, end)  # with what was due just now
            outcome.late += line.traffic.late(end, outcome.latencies)  # nobody else counts what has no room
        while any(line.traffic.flying for line in lines):
            now = self._receive(now + TELL_S, begin)  # nothing is due any more
            self._look(outcome, now)
        for line in lines:
            line.traffic.fold(outcome.latencies)
            outcome.errors += line.traffic.errors
            outcome.said = line.traffic.said | outcome.said
        return outcome

    def _fill(self, line: Line, end: float) -> None:
        """Send what is to be sent now."""
        traffic = line.traffic
        while (since := traffic.next(now := time.perf_counter(), end)) is not None:
            if not traffic.flying:
                line.heard = now
            line.send(traffic.body(since))
            self._awake.add(line)
        self._wake_at = min(self._wake_at, traffic.wake_at())

    def _receive(self, until: float, end: float) -> float:
        """Wait for replies, at most until then; take one of each connection that has any, and fill its window. The time now."""
        if not self._awake:  # zmq.poll waits in whole milliseconds, too coarse for a schedule, and asks every socket
            readable, _, _ = select.select(self._by_descriptor, (), (), max(0.0, until - time.perf_counter()))
            self._awake.update(map(self._by_descriptor.__getitem__, readable))
        for line in tuple(self._awake):
            if not line.get(zmq.EVENTS) & zmq.POLLIN:
                self._awake.discard(line)
                continue
            body, now = line.recv(), time.perf_counter()
            line.traffic.take(body, now)
            line.heard = now
            self._fill(line, end)
        return time.perf_counter()

    def _look(self, outcome: Outcome, now: float) -> None:
        """What is to be done now and then.

        Raises:
            NoReply: to what is in flight.
            OSError: the other end of the pipe is closed.
        """
        for line in self._lines:
            line.traffic.fold(outcome.latencies)
            if line.traffic.flying and now - line.heard > REPLY_S:
                raise self._silence()
        self._stopped = self._stopped or self._pipe.poll()
        self._pipe.send(sum(line.traffic.counted for line in self._lines))


def pause_s(refusal: dict[str, Any]) -> float:
    """How long to wait before what got this error is asked for again."""
    wait_ms = refusal.get("retry_after_ms")
    return (min(max(1, wait_ms), MOST_RETRY_MS) if type(wait_ms) is int else RETRY_MS) / 1000
