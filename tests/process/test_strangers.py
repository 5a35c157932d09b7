"""Whoever has no key that is admitted gets nothing, changes nothing and holds nobody up. scripts/strangers.py says how fast.

Here the strangers are a thread of this process, and end after so many connections.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rnnstream import load
from tests.process import strangers
from tests.process.besieged import besieged
from tests.process.exactness import VOCABULARY, token_model
from tests.process.siege import besiege
from tests.process.strangers import Report
from tests.worker_process import DEADLINE_S

TOKENS = 50  # of the producer beside them, at least
# At a time, and in all. What falls silent is held open until all are there.
SMALL = {
    strangers.GARBAGE: (20, 150),
    strangers.HALF: (20, 150),
    strangers.AT_ONCE: (50, 60),
    strangers.MUTATED: (20, 300),
    strangers.HIDDEN: (20, 100),
    strangers.WRONG: (20, 150),
    strangers.IDLE: (200, 200),
    strangers.UNKNOWN: (10, 50),
    strangers.SLOW: (50, 50),
    strangers.LARGE: (10, 10),
    strangers.BRIEF: (1, 500),
}
# What each kind hears besides greetings, if the worker goes with it as far as it can.
HEARD = {
    strangers.HALF: {"WELCOME", "ERROR"},
    strangers.AT_ONCE: {"WELCOME"},
    strangers.MUTATED: {"WELCOME"},
    strangers.HIDDEN: {"WELCOME", "ERROR"},
    strangers.UNKNOWN: {"refused"},
}
GROWN = 8 << 20  # bytes; and what the allocator keeps of frames that had nearly come
LINES = 44  # of log a second: ten of each of four kinds, and one for each that says more were held back


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    directory = tmp_path_factory.mktemp("besieged")
    with besieged(directory, token_model(directory)) as worker:
        yield worker


@pytest.fixture(scope="module")
def model(worker, tmp_path_factory):
    return load(token_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def producer(worker):
    with worker.producer() as producer:
        producer.ask({"op": "ping"})
        yield producer


def test_the_kinds_are_those_of_the_script():
    assert set(SMALL) == set(strangers.KINDS)


@pytest.mark.parametrize("kind", strangers.KINDS)
def test_strangers_hear_nothing_and_the_producer_beside_them_notices_nothing(worker, producer, model, kind):
    before, began = worker.health(), time.monotonic()
    connections, most = SMALL[kind]
    siege, report, enough = worker.siege(kind, 1, connections), Report(), threading.Event()
    producer.begin(kind, VOCABULARY, 1)
    with ThreadPoolExecutor() as pool:
        ending = pool.submit(besiege, siege, report, lambda: report.connections < most or not enough.is_set())
        try:
            while not ending.done() and (report.connections < most or len(producer.latencies) < TOKENS):
                producer.step()
            assert worker.newcomer() < DEADLINE_S
        finally:
            enough.set()
        ending.result(DEADLINE_S)
    producer.step()
    assert producer.check(model) > TOKENS
    assert report.other == [], "a stranger has heard something else than a greeting, WELCOME or ERROR"
    assert HEARD.get(kind, set()) <= set(report.heard) <= {"greeting", "WELCOME", "ERROR", "refused", "lost"}
    after = worker.settle(before.descriptors)
    assert after.lines - before.lines <= LINES * (time.monotonic() - began + 1)
    assert after.resident - before.resident < GROWN + (most * strangers.LARGE_BYTES if kind == strangers.LARGE else 0)
    assert set(worker.sessions()) <= set(strangers.KINDS), "a stranger has opened a session"
