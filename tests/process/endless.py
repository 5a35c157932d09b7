"""A producer that goes on until it is told to stop: tests.process.producer, without an end.

It reads its orders as a line of JSON from stdin, whose end is the word to stop. It writes what it was told as JSON to stdout::

    python -m tests.process.endless
"""

from __future__ import annotations

import contextlib
import json
import random
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from rnnstream import Client
from tests.process import producer
from tests.process.faults import PRIVATE, PRODUCERS, ROOT, SHARED
from tests.process.producer import CHUNK, VOCABULARY, Orders, Told

MOST = 1_000_000  # tokens of a producer that nobody tells to stop


def produce(orders: Orders, stopped: Callable[[], bool]) -> tuple[Told, int]:
    """Send tokens until told to stop, at most so many as ordered: what was told, and how many tokens were sent."""
    chance, told = random.Random(orders.seed), Told()
    sent = 0

    def take(most: int) -> list[tuple[int, int]]:
        nonlocal sent
        taken = [(sent + i, chance.randrange(VOCABULARY)) for i in range(chance.randint(1, most))]
        sent += len(taken)
        return taken

    with Client(orders.address, timeout_s=producer.TIMEOUT_S) as client:
        while sent < orders.tokens and not stopped():
            way = chance.random()
            if way < producer.STEPPED:
                session, tokens = chance.choice(orders.sessions), take(CHUNK if way < producer.STREAMED else CHUNK // 2)
                send = producer.pipelined if way < producer.STREAMED else producer.stepped
                while tokens:
                    del tokens[: send(client, session, tokens, told)]
            else:
                mine = {session: take(CHUNK // 4) for session in chance.sample(orders.sessions, producer.LIVE)}
                while any(mine.values()):
                    for session, done in producer.live(client, mine, told, chance).items():
                        del mine[session][:done]
                    mine = {session: tokens for session, tokens in mine.items() if tokens}
    return told, sent


class Producers:
    """Producers at work, each in a process of its own.

    Args:
        address: of the worker.
        seed: of their tokens, and of how they send them.
        count: how many of the `PRODUCERS` that have something to say to the same sessions.
    """

    def __init__(self, address: str, seed: int, count: int) -> None:
        self._processes: list[subprocess.Popen[str]] = []
        for number in range(count):
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.process.endless"], stdin=-1, stdout=-1, stderr=-1, text=True, cwd=ROOT
            )
            self._processes.append(process)
            orders = Orders(address, 1000 * seed + number, MOST, list(producer.names(number, PRODUCERS, SHARED, PRIVATE)))
            assert process.stdin is not None
            process.stdin.write(json.dumps(asdict(orders)) + "\n")
            process.stdin.flush()

    def stop(self, within_s: float) -> list[dict[str, Any]]:
        """Have them end what they are at: what each was told, and how many tokens it has sent."""
        deadline, told = time.monotonic() + within_s, []
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None  # which communicate would try to close again
        for process in self._processes:
            out, errors = process.communicate(timeout=max(0.0, deadline - time.monotonic()))
            assert process.returncode == 0, errors
            told.append(json.loads(out))
        return told

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()


@contextlib.contextmanager
def producing(address: str, seed: int, count: int = PRODUCERS) -> Iterator[Producers]:
    """Producers, at work for as long as this lasts."""
    producers = Producers(address, seed, count)
    try:
        yield producers
    finally:
        producers.kill()


def main() -> None:
    orders = Orders(**json.loads(sys.stdin.readline()))
    told, sent = produce(orders, lambda: bool(select.select([sys.stdin], [], [], 0)[0]))
    json.dump(asdict(told) | {"sent": sent}, sys.stdout)


if __name__ == "__main__":
    main()
