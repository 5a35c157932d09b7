"""One process of `rnnstream bench`: its connections, and the loop that keeps them busy."""

from __future__ import annotations

import contextlib
import gc
import math
import select
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from rnnstream.cli.load import Latencies, Load, Traffic, random_tokens
from rnnstream.cli.options import Connect
from rnnstream.errors import NoReply, ProtocolError, RequestError, RnnstreamError
from rnnstream.keys import read_pair, read_public
from rnnstream.wire import replies, requests

REPLY_S = 10.0  # silence after which nobody is waited for: the timeout of the clients
TELL_S = 0.1  # between two looks at all that is not traffic
OPENED = 128  # sessions opened or closed with one body; fewer than a worker takes in one
RETRY_MS = 10  # after which what was busy is asked for again, where the worker does not say


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


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        seconds: that were measured.
        tokens: answered without an error in these seconds.
        latencies: of tokens, those included that were answered a little later.
        late: tokens that were due, and not sent for want of replies; `latencies` has how long they had waited at the end.
        errors: replies by their codes.
        said: by code, the first message.
        busy: how much of a processor the loop took, from 0 to 1.
    """

    seconds: float = 0.0
    tokens: int = 0
    latencies: Latencies = field(default_factory=Latencies)
    late: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    said: dict[str, str] = field(default_factory=dict)
    busy: float = 0.0

    def merge(self, other: Outcome) -> None:
        """Add that of another process, which ran at the same time."""
        self.seconds, self.busy = max(self.seconds, other.seconds), max(self.busy, other.busy)
        self.tokens += other.tokens
        self.late += other.late
        self.latencies.merge(other.latencies)
        self.errors += other.errors
        self.said = other.said | self.said


def work(job: Job, pipe: Connection) -> None:
    """The whole life of a process.

    It says True when it is ready, and hears (begin, end), in seconds of `time.perf_counter`. It says the number of tokens so
    far, now and then, and at last its `Outcome`, or the `RnnstreamError` that it has failed by. It ends early, but as usual,
    when it hears None, or the other end of the pipe is closed.
    """
    gc.disable()  # nothing here makes cycles, and a collection would be taken for the worker's latency
    with contextlib.suppress(OSError):  # Linux wakes up to 50 us late otherwise, and that would be taken for it too
        Path("/proc/self/timerslack_ns").write_text("1")
    loader = None
    with contextlib.suppress(OSError):  # the other end has gone: nobody wants to know
        try:
            loader = Loader(job, pipe)
            pipe.send(loader.run())
        except RnnstreamError as problem:
            pipe.send(problem)
        finally:
            if loader is not None:
                loader.close()


class Line:
    """A connection, and its traffic."""

    def __init__(self, socket: zmq.Socket[bytes], traffic: Traffic) -> None:
        self.socket, self.traffic = socket, traffic
        self.send = partial(zmq.backend.Socket.send, socket)  # the sugar around it costs as much again
        self.recv = partial(zmq.backend.Socket.recv, socket)
        self.get: Callable[[int], int] = partial(zmq.backend.Socket.get, socket)  # type: ignore[assignment]
        self.heard = 0.0  # when the last reply came, or a body was sent that nothing was in flight before


class Loader:
    """The connections of a process; see `work`."""

    def __init__(self, job: Job, pipe: Connection) -> None:
        self._job, self._pipe, self._load = job, pipe, job.load
        self._stopped = False
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        tokens = random_tokens(job.input["kind"], job.input["size"], np.random.default_rng())
        options = _curve(job.connect)
        self._lines: list[Line] = []
        for number in range(job.first, job.first + job.count):
            names = [f"{job.prefix}-{number}-{session}" for session in range(job.load.sessions)]
            socket = self._context.socket(zmq.DEALER)
            for option, value in ({zmq.LINGER: 0, zmq.SNDHWM: 0, zmq.RCVHWM: 0} | options).items():  # windows bound it
                socket.setsockopt(option, value)
            socket.setsockopt(zmq.IPV6, int("[" in job.connect["address"]))
            socket.connect(job.connect["address"])
            self._lines.append(Line(socket, Traffic(job.load, names, tokens, f"{job.prefix}-{number}")))
        self._by_descriptor = {int(line.socket.getsockopt(zmq.FD)): line for line in self._lines}
        # Whose descriptors may keep silent though there is a reply: it tells once, and a send may swallow that.
        self._awake: set[Line] = set(self._lines)
        self._wake_at = 0.0  # when there is something to send, if no reply comes

    def close(self) -> None:
        """Close the connections."""
        self._context.destroy(linger=0)

    def run(self) -> Outcome:
        """Open the sessions, warm up, measure, close the sessions.

        Raises:
            NoReply: for 10 s.
            RequestError: a session cannot be opened, or the warming up got an error.
            ProtocolError: a reply that is none.
        """
        try:
            self._ask("open")
            self._warm_up()
            outcome = self._measure()
        except NoReply:
            raise
        except BaseException:
            with contextlib.suppress(RnnstreamError):
                self._settle()
                self._ask("close")
            raise
        self._ask("close")
        return outcome

    def _ask(self, op: str) -> None:
        """Open or close all sessions, one body after the other."""
        for line in self._lines:
            names, heard = list(line.traffic.names), time.perf_counter()
            while names and not (self._stopped and op == "open"):
                asked, names = names[:OPENED], names[OPENED:]
                line.send(requests.encode([{"op": op, "session": name} for name in asked]))
                answers = replies.decode(self._next(line))
                if len(answers) != len(asked):
                    raise ProtocolError(f"{len(asked)} requests were answered with {len(answers)} replies.")
                busy = [place for place, answer in enumerate(answers) if answer.get("error") == "busy"]
                if len(busy) < len(answers):
                    heard = time.perf_counter()
                for place, answer in enumerate(answers):
                    if answer.get("error") == "busy" and time.perf_counter() - heard < REPLY_S:
                        names.append(asked[place])
                    elif "error" in answer and (op, answer["error"]) != ("close", "unknown_session"):  # it may have expired
                        raise RequestError.from_reply(answer)
                if busy:
                    time.sleep(answers[busy[0]].get("retry_after_ms", RETRY_MS) / 1000)
                self._stopped = self._stopped or self._pipe.poll()

    def _next(self, line: Line) -> bytes:
        """The next body of this connection."""
        if not line.socket.poll(int(1000 * REPLY_S)):
            raise self._silence()
        return line.recv()

    def _silence(self) -> NoReply:
        left = f"Sessions whose names begin with {self._job.prefix} may be left open there."
        return NoReply(f"No reply from {self._job.connect['address']} within {REPLY_S:g} s. {left}")

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
                if code not in ("busy", "gap"):
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
            for waits in line.traffic.late(end):  # what has no room would wait for ever if nobody counted it
                outcome.latencies.add(waits, load.body)
                outcome.late += len(waits) * load.body
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


def _curve(connect: Connect) -> dict[int, bytes]:
    """The keys as options of a socket."""
    if connect["server_key"] is None or connect["client_key"] is None:
        return {}
    public, secret = read_pair(connect["client_key"])
    texts = {zmq.CURVE_SERVERKEY: read_public(connect["server_key"]), zmq.CURVE_PUBLICKEY: public, zmq.CURVE_SECRETKEY: secret}
    return {option: text.encode() for option, text in texts.items()}
