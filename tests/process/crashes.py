"""Producers stream to a worker with a store, which is killed over and over; at the end, what they were told is what is kept."""

from __future__ import annotations

import contextlib
import math
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq

from rnnstream import Client, load
from rnnstream.wire.replies import decode
from tests.process import disk, noisy
from tests.process.endless import producing
from tests.process.faults import PRODUCERS, Counted, by_run, compare, compare_states, model_file
from tests.process.place import Place, placed
from tests.worker_process import DEADLINE_S

STATS = b"\x81\xa2op\xa5stats"
TOKENS = 3000  # that a worker counts at most before it is killed
OPERATIONS = 3000  # on the store's files, likewise: some 200 writes
EARLY = 0.2  # of the kills at a moment: while the worker starts
SOON_S = 0.005  # so that a kill does not always come right behind an answer to `stats`


@dataclass(frozen=True)
class Variant:
    """A worker, and what happens to it.

    Attributes:
        options: of `rnnstream serve`.
        program: module that is run, and what comes before the command.
        noisy: with a model that is not exact, instead of a file.
        inside: the share of the kills that come at an operation on the store's files, and not at a moment.
        power: with each kill, power is lost too.
    """

    options: tuple[str, ...] = ()
    program: tuple[str, ...] = ("rnnstream",)
    noisy: bool = False
    inside: float = 0.0
    power: bool = False


VARIANTS = {
    "as it is": Variant(),
    "killed at an operation": Variant(inside=1.0),
    "every write saves rows": Variant(program=("tests.process.small_journal", "0"), inside=0.5),
    "10 in memory, journal of 500": Variant(("--max-resident", "10"), ("tests.process.small_journal", "500"), inside=0.5),
    "model not exact": Variant(noisy=True, inside=0.5),
    "loss of power": Variant(("--durability", "power"), inside=0.5, power=True),
}


@dataclass
class Report:
    """What was seen.

    Attributes:
        kills: in all.
        starting: of these, before the worker had listened.
        acknowledged: tokens.
        compared: predictions whose bits were compared.
        sessions: whose final state was compared.
        replayed: steps that starts found in the journal, of those that found any.
        repeats: tokens that were answered again rather than counted twice, as far as workers lived to say so.
        seconds: that it took.
    """

    kills: int = 0
    starting: int = 0
    acknowledged: int = 0
    compared: int = 0
    sessions: int = 0
    replayed: list[int] = field(default_factory=list)
    repeats: int = 0
    seconds: float = 0.0


class Crashes:
    """Workers that are killed at a place.

    Args:
        place: theirs.
        variant: what happens to them.
        shadow: directory for what is on the disk.
        library: the failing disk.
        chance: when they are killed, and how.
    """

    def __init__(self, place: Place, variant: Variant, shadow: Path, library: Path | None, chance: random.Random) -> None:
        self.place, self.report = place, Report()
        self._variant, self._shadow, self._library, self._chance = variant, shadow, library, chance
        self._start_s = 0.0

    def start(self, at: int = 0, how: str = "before") -> subprocess.Popen[str]:
        """Start a worker; the operation `at` on the store's files ends it."""
        if self._library is None:
            return self.place.start()
        shadow = self._shadow if self._variant.power else None
        return self.place.start(disk.environment(self._library, self.place.store, shadow=shadow, at=at, how=how))

    def crash(self) -> None:
        """A worker comes, and is killed."""
        self.report.kills += 1
        if self._chance.random() < self._variant.inside:
            at = int(math.exp(self._chance.uniform(0, math.log(OPERATIONS))))
            self.start(at, self._chance.choice(disk.HOW)).wait(DEADLINE_S)
            self.report.starting += not self.place.end(signal.SIGKILL)
        elif self._start_s and self._chance.random() < EARLY:
            process = self.start()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(self._chance.uniform(0, 1.5 * self._start_s))
            self.report.starting += not self.place.end(signal.SIGKILL)
        else:
            began = time.monotonic()
            self.start()
            self.place.ready()
            self._start_s = time.monotonic() - began
            tokens = int(math.exp(self._chance.uniform(0, math.log(TOKENS))))
            self.report.repeats += until(self.place.address, lambda stats: stats["tokens"] >= tokens)["repeats"]
            threading.Event().wait(self._chance.uniform(0, SOON_S))
            self.place.end(signal.SIGKILL)
        self.lose_power()

    def died(self) -> bool:
        """Whether the worker has died at an operation."""
        assert self.place.process is not None
        if self.place.process.poll() is None:
            return False
        self.report.kills += 1
        self.place.end(signal.SIGKILL)
        self.lose_power()
        return True

    def lose_power(self) -> None:
        if self._variant.power:
            disk.lose_power(self.place.store.parent, self._shadow, self._chance.choice((None, self._chance)))

    def look(self) -> dict[str, tuple[int, bytes]]:
        """After a worker that ended by itself: what `Place.look` says, and all of it is on the disk."""
        if self._variant.power:
            assert self.place.store.read_bytes() == (self._shadow / self.place.store.name).read_bytes()
        return self.place.look()


def until(address: str, enough: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Wait until the stats of a worker are like that; they are given back."""
    deadline, pause = time.monotonic() + DEADLINE_S, threading.Event()
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.connect(address)
        while True:
            dealer.send(STATS)
            assert dealer.poll(1000 * DEADLINE_S), "the worker does not answer"
            [stats] = decode(dealer.recv())
            if enough(stats):
                return stats
            assert time.monotonic() < deadline, f"it does not get so far: {stats}"
            pause.wait(0.005)


def run(
    directory: Path,
    name: str,
    kills: int,
    seed: int,
    *,
    library: Path | None,
    producers: int = PRODUCERS,
    within_s: float,
) -> Report:
    """Have the producers stream while the worker is killed so many times.

    Args:
        directory: for everything.
        name: of the variant.
        kills: how many.
        seed: of the tokens, of how they are sent, and of the kills.
        library: the failing disk; it can be None where no kill comes at an operation, and no power is lost.
        producers: how many.
        within_s: in which the producers are to end what they are at, once they are told to stop.

    Raises:
        AssertionError: what they were told is not what is kept.
    """
    variant, began = VARIANTS[name], time.monotonic()
    path = "tests.process.noisy:model" if variant.noisy else model_file(directory, 0)
    shadow = directory / "shadow"
    shadow.mkdir()
    with placed(path, directory / "store", variant.options, variant.program) as place:
        crashes = Crashes(place, variant, shadow, library, random.Random(seed))
        report = crashes.report
        with producing(place.address, seed, producers) as at_work:
            for _ in range(kills):
                crashes.crash()
            crashes.start()
            place.ready()
            told = at_work.stop(within_s)
        assert not any(one["lost"] for one in told), "a session was lost"
        sessions = counted(told)
        report.acknowledged = sum(map(len, sessions.values()))
        model = load(str(path))
        report.compared = noisy.follow(sessions) if variant.noisy else compare(model, sessions, whole=True)
        for last in (signal.SIGKILL, signal.SIGTERM):
            with Client(place.address, timeout_s=DEADLINE_S) as client:
                report.repeats += client.stats()["repeats"]
                if variant.noisy:
                    report.sessions = noisy.follow_states(client, sessions)
                else:
                    report.sessions = compare_states(client, model, sessions)
            place.end(last)
            if last == signal.SIGKILL:
                crashes.lose_power()
                crashes.start()
                place.ready()
        kept = crashes.look()
        assert {name: t for name, (t, _) in kept.items()} == {name: len(tokens) for name, tokens in sessions.items()}
        if not variant.noisy:
            for session, (t, state) in kept.items():
                assert state == model.run([sessions[session][i][0] for i in range(1, t + 1)]).tobytes(), session
        report.replayed = [int(steps) for steps in re.findall(r"(\d+) tokens of the store's journal", place.logged())]
    report.seconds = time.monotonic() - began
    return report


def counted(told: list[dict[str, Any]]) -> Counted:
    """What was acknowledged. Each token once, each t once, and each producer's in its order."""
    sessions: Counted = {}
    for one in told:
        for session, mine in by_run([one["acknowledged"]], one["sent"])[0].items():
            others = sessions.setdefault(session, {})
            assert not others.keys() & mine.keys(), f"{session}: t={sorted(others.keys() & mine.keys())} are given twice"
            others |= mine
    return sessions
