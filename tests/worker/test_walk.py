"""A long random walk: whatever arrives together with whatever, each session fares as if it were alone."""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

import pytest

from rnnstream.engine.numbering import Numbering
from rnnstream.names import named, owner_of
from rnnstream.wire.limits import Limits
from rnnstream.worker.order import routing_id
from tests.engine.models import HUGE, SPOILED, V, relu

from .driving import Driver, Reply, pack
from .oracle import Oracle

NAMES = [*"abcdefgh", "é" * 100, "n" * 31, "n" * 32, "n" * 200]
PRODUCERS = ["p", "q" * 64]
PEERS = [b"peer%d" % i for i in range(6)]
ENVELOPES: list[tuple[bytes, ...]] = [(), (b"",), (b"proxy", b"other", b"")]
GARBAGE = [b"\xc1", b"\x05", b"\x82\xa1x", b"\xff\xff"]
NUMBERED = ("step", "open", "reset", "restore", "close", "fork")
REPLIES = 5  # kept for a producer
Item = dict[Any, Any]


class Walk:
    """What is sent, and what came back for it."""

    def __init__(self, driver: Driver, seed: int, owner: str = "") -> None:
        self.driver, self.random, self.owner = driver, random.Random(seed), owner
        self.peers = [owner.encode() + peer for peer in PEERS]
        if driver.users is not None:
            driver.users |= dict.fromkeys(self.peers, owner)
        self.sent: list[tuple[Any, list[tuple[Item, Reply | None]], bool]] = []  # address, requests, garbage
        self.guess = dict.fromkeys(NAMES, 0)
        self.numbered: dict[tuple[str, str], int] = defaultdict(int)  # requests that wait, by name and producer
        self.recent: dict[tuple[str, str], deque[Item]] = defaultdict(lambda: deque(maxlen=8))
        self.snapshots: list[bytes] = [b""]

    def request(self) -> tuple[Item, Reply | None]:
        """A request, and the error that it gets whatever the session is like, if it does."""
        rng = self.random
        name, kind = rng.choice(NAMES), rng.random()
        x: Any = rng.choice([SPOILED, HUGE]) if rng.random() < 0.03 else rng.randrange(SPOILED)
        item: Item = {"session": name, "x": x}
        self.guess[name] += 1
        if kind < 0.5:
            item |= {"id": rng.choice([0, -1, 2**64 - 1])} if rng.random() < 0.4 else {}
            return self.number(item), None
        if rng.random() < 0.5:
            item["id"] = rng.choice(["", "i" * 64, b"\xff", 0, -(2**63), 2**64 - 1])
        if kind < 0.72:
            if rng.random() < 0.3:
                item["op"] = "step"
            if rng.random() < 0.3 and self.driver.engine.model.input.vocabulary:
                item["x"] = f"w{x}"
            self.want(item)
            if rng.random() < 0.3:
                item["t"] = rng.choice([self.guess[name], rng.randrange(6), 2**64 - 1])
            return self.number(item), None
        if kind < 0.86:
            del item["x"]
            return self.other(item, name), None
        echo = {key: item[key] for key in ("session", "id") if key in item}
        if kind < 0.9:
            about = {"op": rng.choice(["hello", "ping", "sessions", "stats"])}
            return about | {key: item[key] for key in ("id",) if key in item}, None
        return self.wrong(item, echo)

    def want(self, item: Item) -> None:
        if self.random.random() < 0.7:
            item["want"] = self.random.choice(["argmax", "none", "probs", "logits", 1, 3, V, 100])
        if self.random.random() < 0.3:
            item["surprisal"] = self.random.random() < 0.8

    def other(self, item: Item, name: str) -> Item:
        """An operation that is not a step."""
        rng = self.random
        item["op"] = op = rng.choice(["reset", "open", "close", "close", "info", "snapshot", "peek", "restore"])
        if op == "peek":
            item["xs"] = [rng.randrange(SPOILED + (rng.random() < 0.02)) for _ in range(rng.randint(1, 6))]
            self.want(item)
        if op == "restore" or (op == "open" and rng.random() < 0.4):
            state = rng.choice(self.snapshots)
            if state and rng.random() < 0.2:
                place = rng.randrange(len(state))
                state = state[:place] + bytes((state[place] ^ (1 << rng.randrange(8)),)) + state[place + 1 :]
            item["state"] = state
        if op in NUMBERED:
            if rng.random() < 0.2:
                item["t"] = rng.choice([self.guess[name], rng.randrange(4)])
            else:
                self.guess[name] = 0
        return self.number(item)

    def number(self, item: Item) -> Item:
        """Perhaps give it a number, right as a rule; or repeat an earlier one instead."""
        rng = self.random
        if item.get("op", "step") not in NUMBERED or rng.random() < 0.4:
            return item
        who = item["session"], rng.choice(PRODUCERS)
        if self.recent[who] and rng.random() < 0.15:
            item = dict(rng.choice(self.recent[who]))
            if rng.random() < 0.2 and "x" in item:
                item["x"] = rng.randrange(SPOILED)
            return item
        if not self.driver.core.waiting:
            self.numbered.clear()
        known = self.driver.engine.producers(named(self.owner, who[0])).get(who[1])
        self.numbered[who] += 1
        n = (known.last if known else 0) + self.numbered[who]
        if rng.random() < 0.05:
            n += rng.choice([1, 100])
        item |= {"producer": who[1], "n": n}
        if rng.random() < 0.3:
            item["ack"] = max(0, n - rng.randint(1, 4))
        self.recent[who].append(item)
        return item

    def wrong(self, item: Item, echo: Item) -> tuple[Item, Reply]:
        """A step with something wrong in it."""
        rng = self.random
        code, field, change = rng.choice(
            [
                ("bad_token", "x", {"x": V}),
                ("bad_token", "x", {"x": -1}),
                ("bad_token", "x", {"x": "nope"}),
                ("bad_request", "x", {"x": rng.choice([None, True, 1.0, [1], b"1", {}])}),
                ("bad_request", "want", {"want": rng.choice(["", 0, 101, True, None])}),
                ("bad_request", "t", {"t": rng.choice([-1, "1", 1.0])}),
                ("bad_request", "op", {"op": rng.choice(["forks", 5, None])}),
                ("bad_request", "n", {"n": 1}),
                ("bad_request", "producer", {"producer": "p"}),
                ("bad_request", "n", {"producer": "p", "n": rng.choice([0, -1, True, 1.0, "1"])}),
                ("bad_request", "ack", {"producer": "p", "n": 1, "ack": rng.choice([-1, None, "1"])}),
                ("bad_request", "producer", {"producer": rng.choice(["", "p" * 65, b"p", ["p"]]), "n": 1}),
                ("bad_request", "session", {"session": rng.choice(["", "n" * 201, 5, ["s"]])}),
                ("bad_request", "5", {5: 5}),
                ("bad_request", "id", {"id": rng.choice(["i" * 65, None, 1.5])}),
            ]
        )
        echo.pop(field, None)
        return item | change, {"error": code, "field": field, **echo}

    def arrive(self) -> tuple[Any, bytes]:
        """One more body."""
        rng = self.random
        count = rng.choice([1, 1, 1, 1, 1, 2, 3, rng.randint(1, 40)])
        return self.send([self.request() for _ in range(count)], rng.choice(GARBAGE) if rng.random() < 0.04 else b"")

    def send(self, requests: list[tuple[Item, Reply | None]], garbage: bytes = b"") -> tuple[Any, bytes]:
        peer, envelope = self.random.choice(self.peers), self.random.choice(ENVELOPES)
        address: Any = (peer, *envelope) if envelope else peer
        self.sent.append((address, requests, bool(garbage)))
        return address, pack(item for item, _ in requests) + garbage

    def fork(self) -> None:
        """Copy a session, while nothing waits: nobody promises an order between two sessions."""
        item: Item = {"op": "fork", "session": self.random.choice(NAMES), "to": self.random.choice(NAMES)}
        self.driver.finish()
        self.driver.handle(self.send([(self.number(item), None)]))
        self.driver.finish()
        engine = self.driver.engine
        live = [row for name, row in engine.table.rows.items() if owner_of(name) == self.owner and engine.table.live[row]]
        self.snapshots = [engine.snapshot_row(row) for row in live[:3]] or self.snapshots

    def drain(self, number: int) -> None:
        """What arrives in one drain."""
        self.driver.handle(*[self.arrive() for _ in range(self.random.choice([0, 0, 1, 1, 2, 5]))])
        while self.driver.core.waiting > 500:
            self.driver.handle()
        if not number % 20:
            self.fork()

    def judge(self, oracle: Oracle, allowed: set[str]) -> dict[str, int]:
        """Hold every reply against the oracle; the number of replies of each kind."""
        counts: dict[str, int] = defaultdict(int)
        for address, requests, garbage in self.sent:
            replies = self.driver.replies[address].pop(0)
            assert not any(other in repr(replies) for other in ("A" * 40, "B" * 40))  # nor do users see keys
            if garbage:
                assert replies.pop()["error"] == "bad_message"
            busy = {
                item["session"] for (item, error), reply in zip(requests, replies, strict=True) if reply.get("error") == "busy"
            }
            for (item, error), reply in zip(requests, replies, strict=True):
                counts["again" if "again" in reply else reply.get("error", item.get("op", "step"))] += 1
                message = reply.pop("message", None)
                assert ("error" in reply) == (message is not None)
                echo = {key: item[key] for key in ("session", "id") if key in item}
                if reply.get("error") == "busy":
                    assert reply.pop("retry_after_ms") > 0
                if error is None and item.get("session") in busy:  # then all of this body for the session are
                    error = {"error": "busy"} | echo
                elif error is None and reply.get("error") == "full":
                    assert item.get("to", item["session"]) not in oracle.ts
                    error = {"error": "full"} | echo
                elif reply.get("error") == "busy":  # said before a closer look was taken
                    assert item["session"] in NAMES
                    error = {"error": "busy"} | {key: echo[key] for key in echo if key in reply}
                if self.owner and item.get("op") == "stats":
                    assert set(reply) == {"worker", "open", "tombstones", "waiting"} | item.keys() & {"id"}
                    continue
                expected = error if error is not None else oracle.expect(item, reply, len(requests) == 1 and not garbage)
                assert text(reply) == text(expected), (item, len(counts))
        assert not any(replies for peer, replies in self.driver.replies.items() if routing_id(peer) in self.peers)
        assert {"busy", "full", "internal", "too_large"} & set(counts) == allowed
        return counts


def text(reply: Any) -> str:
    """A reply so that equal ones are equal: NaN is NaN, and the order of the keys is free."""
    if isinstance(reply, list):
        return repr([text(item) for item in reply])
    return repr(sorted((key, text(value)) for key, value in reply.items())) if isinstance(reply, dict) else repr(reply)


@pytest.mark.parametrize(
    ("seed", "vocabulary", "limits", "options", "allowed"),
    [
        (0, False, Limits(), {}, set()),
        (1, True, Limits(), {}, set()),
        (2, False, Limits(frame_requests=40, waiting=40), {"max_sessions": 9}, {"busy", "full"}),
        (3, False, Limits(), {"explicit_open": True}, set()),
    ],
    ids=["ids", "words", "narrow", "explicit"],
)
def test_every_reply_is_the_one_of_a_session_alone(
    drive: Callable[..., Driver], seed: int, vocabulary: bool, limits: Limits, options: dict[str, Any], allowed: set[str]
) -> None:
    model = relu(seed=1, vocabulary=vocabulary)
    driver = drive(model, limits=limits, numbering=Numbering(replies=REPLIES), **options)
    walk = Walk(driver, seed)
    for number in range(3000):
        walk.drain(number)
    driver.finish()
    oracle = Oracle(model, replies=REPLIES, explicit_open=driver.engine.explicit_open)
    counts = walk.judge(oracle, allowed)
    assert min(counts.values()) >= 3, counts
    assert {"again", "gap", "stale", "conflict", "not_finite", "unknown_session", "bad_token", "bad_request", "bad_state"} <= (
        set(counts)
    )
    assert {"step", "open", "reset", "close", "fork", "peek", "snapshot", "restore", "info", "stats", "exists"} <= set(counts)
    assert driver.states() == {name: (t, oracle.states[name].tobytes()) for name, t in oracle.ts.items()}


def test_every_reply_is_the_one_of_a_user_alone(drive: Callable[..., Driver]) -> None:
    """Users with the same names for their sessions, and the same for their producers: nobody notices the others."""
    model = relu(seed=1)
    driver = drive(model, keys={}, numbering=Numbering(replies=REPLIES), max_sessions=100)
    walks = [Walk(driver, seed, owner) for seed, owner in enumerate(["A" * 40, "B" * 40])]
    for number in range(1500):
        for walk in walks:
            walk.drain(number)
    driver.finish()
    for walk in walks:
        oracle = Oracle(model, replies=REPLIES)
        counts = walk.judge(oracle, set())
        assert {"again", "gap", "stale", "conflict", "exists", "unknown_session", "fork", "bad_state"} <= set(counts)
        names = {name: row for name, row in driver.engine.table.rows.items() if owner_of(name) == walk.owner}
        states = {
            str(name): (int(driver.engine.table.t[row]), driver.engine.table.states[row].tobytes())
            for name, row in names.items()
        }
        assert states == {name: (t, oracle.states[name].tobytes()) for name, t in oracle.ts.items()}
