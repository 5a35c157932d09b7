"""The processes of `rnnstream bench`: started, begun together, listened to, stopped."""

from __future__ import annotations

import contextlib
import gc
import math
import multiprocessing
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rnnstream.cli.loader import Job, Loader
from rnnstream.cli.outcome import Outcome
from rnnstream.errors import RnnstreamError

BEGIN_S = 0.05  # for the word to begin to reach all processes

Tell = Callable[[float, int], None]


@dataclass
class Ended:
    """The last word of a process.

    Attributes:
        problem: what it has failed by.
        closed: none of its sessions is open, for sure.
    """

    problem: RnnstreamError | None
    closed: bool


def work(job: Job, pipe: Connection) -> None:
    """The whole life of a process.

    It says True when it is ready, and hears (begin, end), in seconds of `time.perf_counter`. It says the number of tokens so
    far, now and then, its `Outcome` if it comes to one, and at last, when it has closed its sessions, `Ended`. It ends early,
    but as usual, when it hears None, or the other end of the pipe is closed.
    """
    gc.disable()  # nothing here makes cycles, and a collection would be taken for the worker's latency
    with contextlib.suppress(OSError):  # Linux wakes up to 50 us late otherwise, and that would be taken for it too
        Path("/proc/self/timerslack_ns").write_text("1")
    loader, problem = None, None
    try:
        loader = Loader(job, pipe)
        loader.run()
    except RnnstreamError as failed:
        problem = failed
    except OSError as failed:  # mostly, the other end has gone, and nobody wants to know
        problem = RnnstreamError(f"A process of the load has failed: {failed}.")
    with contextlib.suppress(OSError):
        pipe.send(Ended(problem, loader is None or loader.closed))
    if loader is not None:
        loader.close()


@dataclass
class End:
    """How it ended.

    Attributes:
        outcome: of all processes together; None where one of them came to none.
        problem: what the first one that failed has failed by.
        closed: no session is open, for sure.
        interrupted: by Ctrl-C.
    """

    outcome: Outcome | None
    problem: RnnstreamError | None
    closed: bool
    interrupted: bool


def drive(jobs: list[Job], seconds: float, tell: Tell) -> End:
    """Have each of these done in a process of its own, all at the same time; all have ended when this returns.

    Where one of them fails, or at Ctrl-C, all end early, and close their sessions. A second Ctrl-C kills them.

    Args:
        jobs: one for each process.
        seconds: to measure.
        tell: called now and then, with the seconds and the tokens so far.
    """
    spawn = multiprocessing.get_context("spawn")  # a fork would inherit threads and sockets
    pipes: list[Connection] = []
    processes: list[BaseProcess] = []
    problem: RnnstreamError | None = None
    stopped = False
    interrupts = 0

    def stop() -> None:
        nonlocal stopped
        stopped = True
        for pipe in pipes:
            with contextlib.suppress(OSError):
                pipe.send(None)

    def interrupt(*_: object) -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts == 1:
            stop()
        else:
            for process in processes:
                process.kill()

    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # they inherit it, for Ctrl-C goes to all processes of a terminal
        try:
            for job in jobs:
                pipe, theirs = spawn.Pipe()
                with theirs:
                    started = spawn.Process(target=work, args=(job, theirs))
                    started.start()
                pipes.append(pipe)
                processes.append(started)
        except OSError as failed:
            problem = RnnstreamError(f"{len(jobs)} processes cannot be started here: {failed}.")
            stop()
        signal.signal(signal.SIGINT, interrupt)
        found, left, ready, finished, begin, closed = Outcome(), list(pipes), 0, 0, math.inf, True
        counted = dict.fromkeys(pipes, 0)
        while left:
            heard = wait(left)
            for pipe in [pipe for pipe in left if pipe in heard]:
                said = _hear(pipe)
                if isinstance(said, Ended):
                    left.remove(pipe)
                    closed = closed and said.closed
                    if said.problem is not None and problem is None and interrupts < 2:
                        problem = said.problem
                        stop()
                elif isinstance(said, Outcome):
                    finished += 1
                    found.merge(said)
                elif said is True:
                    ready += 1
                else:
                    counted[pipe] = said
                    tell(time.perf_counter() - begin, sum(counted.values()))
            if ready == len(jobs) and begin == math.inf and not stopped:
                begin = time.perf_counter() + BEGIN_S  # the same clock in all processes of a machine
                for pipe in pipes:
                    with contextlib.suppress(OSError):  # it has failed, and will be heard
                        pipe.send((begin, begin + seconds))
    finally:
        for pipe in pipes:
            pipe.close()  # whoever still runs ends, and closes its sessions first
        for process in processes:
            process.join()
        signal.signal(signal.SIGINT, before)
    return End(found if finished == len(jobs) else None, problem, closed, interrupts > 0)


def _hear(pipe: Connection) -> Any:
    """What a process says; see `work`."""
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return Ended(RnnstreamError("A process of the load has ended before its time."), closed=False)
