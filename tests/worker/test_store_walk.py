"""Long random walks over a core with a store: whatever crashes or fails, what was acknowledged is there, and counts once."""

from __future__ import annotations

import random
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rnnstream.model.blas import one_thread
from rnnstream.model.step import StepModel
from rnnstream.store.memory import MemoryStore
from rnnstream.store.sqlite import SQLiteStore
from rnnstream.worker.keeper import LATER_MS
from tests.engine.models import HUGE, SPOILED, dense, relu

from .driving import Reply, pack
from .keeping import Kept
from .store_oracle import REPLIES, Item, Memory
from .test_walk import text

NAMES = [*"abcdefghijkl", "é" * 100, "n" * 200]
PRODUCERS = ["p", "q" * 64]
NUMBERED = ("step", "open", "reset", "restore", "close", "fork")
IDLE_S = 1050.0  # all that happens in an interval happens in the first seconds behind a multiple of 100
EVERYTHING = ["crash", "stop", "look", *NUMBERED, "peek", "snapshot", "info", "hello", "sessions", "stats", "store_error"]
EVERYTHING += ["again", "gap", "stale", "conflict", "exists", "bad_state", "unknown_session never", "unknown_session closed"]


class Walk:
    """What is sent, and what has to come back for it."""

    def __init__(self, driver: Kept, seed: int) -> None:
        self.driver, self.random = driver, random.Random(seed)
        self.residents = [driver.max_resident]  # one of these after a crash
        self.memory = Memory(driver.model, driver.options.get("idle_timeout_s"))
        self.names, self.all_names = list(NAMES), list(NAMES)  # those that are used, and were
        self.sent: list[tuple[Any, list[Item], float]] = []
        self.numbered: Counter[tuple[str, str]] = Counter()  # requests that wait, by name and producer
        self.recent: dict[tuple[str, str], deque[Item]] = defaultdict(lambda: deque(maxlen=8))
        self.forks: deque[Item] = deque(maxlen=8)
        self.snapshots: list[bytes] = [b""]
        self.counts: Counter[str] = Counter()
        self.bodies = 0
        self.flaky = False
        self.dense = driver.model.input.kind == "dense"

    # -- what is sent

    def token(self) -> Any:
        if self.dense:
            return [round(self.random.uniform(-2, 2), 2) for _ in range(3)]
        return self.random.choice([SPOILED, HUGE]) if self.random.random() < 0.03 else self.random.randrange(SPOILED)

    def request(self, names: list[str]) -> Item:
        rng = self.random
        item: Item = {"session": rng.choice(names)}
        kind = rng.random() if item["session"] in self.memory.ts or rng.random() < 0.6 else 0.8
        if rng.random() < 0.3:
            item["id"] = rng.choice([0, 7, 2**64 - 1, "i" * 64, b"\xff"])
        if kind < 0.75:
            item["x"] = self.token()
            if kind > 0.55:
                self.want(item)
            if kind > 0.72:
                item["t"] = rng.choice([self.memory.ts.get(item["session"], 0) + 1, rng.randrange(5)])
            return self.number(item)
        if kind < 0.78:
            return {"op": rng.choice(["hello", "ping", "stats", "sessions"])}
        item["op"] = op = rng.choice(["reset", "open", "open", "close", "info", "snapshot", "peek", "peek", "restore"])
        if op == "peek":
            item["xs"] = [self.token() for _ in range(rng.randint(1, 8))]
            self.want(item)
        if op == "restore" or (op == "open" and rng.random() < 0.4):
            item["state"] = rng.choice(self.snapshots)[rng.random() < 0.2 :]
        return self.number(item)

    def want(self, item: Item) -> None:
        if self.random.random() < 0.8:
            item["want"] = self.random.choice(["argmax", "none", "probs", "logits", 1, 3])
        if self.random.random() < 0.3 and self.driver.model.surprisal:
            item["surprisal"] = True

    def number(self, item: Item) -> Item:
        """Perhaps give it a number, right as a rule; or repeat an earlier one instead."""
        rng = self.random
        if item.get("op", "step") not in NUMBERED or rng.random() < 0.3:
            return item
        who = item["session"], rng.choice(PRODUCERS)
        if self.recent[who] and rng.random() < 0.2 and "to" not in item:
            return dict(rng.choice(self.recent[who]))
        self.numbered[who] += 1
        n = self.memory.last.get(who, 0) + self.numbered[who] + (rng.random() < 0.03)
        item |= {"producer": who[1], "n": n}
        if rng.random() < 0.3:
            item["ack"] = max(0, n - rng.randint(1, 4))
        (self.forks if "to" in item else self.recent[who]).append(item)
        return item

    def fork(self) -> Item:
        if self.forks and self.random.random() < 0.3:
            return dict(self.random.choice(self.forks))
        session = self.random.choice(list(self.memory.ts) or NAMES)
        to = self.random.choice([name for name in self.names if name != session])
        return self.number({"op": "fork", "session": session, "to": to})

    def send(self, *items: Item) -> tuple[Any, bytes]:
        """One body, from an address that no other body has."""
        self.bodies += 1
        address = b"peer%d" % self.random.randrange(4), b"%d" % self.bodies
        self.sent.append((address, list(items), self.driver.now))
        return address, pack(items)

    # -- what happens

    def interval(self, drains: int) -> None:
        """Some traffic, at the end of which nothing waits; or it ends with a crash."""
        driver, rng = self.driver, self.random
        driver.now = 100.0 * (driver.now // 100 + 1 + rng.choice([0, 0, 0, 0, 3, 9, 11]))
        self.flaky = self.memory.flaky = rng.random() < 0.4
        chance = {"write": 0.3, "load": 0.1, "journal": 0.3, "page": 0.3} if self.flaky else {}
        driver.store.chance |= {operation: rng.choice([0, most]) for operation, most in chance.items()}
        if rng.random() < 0.3:  # somebody new, and somebody who sleeps from now on
            self.names[rng.randrange(len(self.names))] = f"new{self.bodies}"
            self.all_names.append(f"new{self.bodies}")
        names = self.names
        if rng.random() < 0.6:  # nobody promises an order between two sessions
            item = self.fork()
            names = [name for name in self.names if name not in (item["session"], item["to"])]
            driver.handle(self.send(item))
        for _ in range(drains):
            bodies = []
            for _ in range(rng.choice([0, 1, 1, 2, 5])):
                bodies.append(self.send(*[self.request(names) for _ in range(rng.choice([1, 1, 1, 2, 3, rng.randint(1, 30)]))]))
            driver.handle(*bodies)
        kind = rng.random()
        if kind < 0.25:
            driver.store.chance.clear()
            driver.max_resident = rng.choice(self.residents)
            self.judge(driver.crash())
            self.flaky = self.memory.flaky = False
            self.counts["crash"] += 1
            return
        driver.finish()
        self.judge({})
        driver.calm()
        self.flaky = self.memory.flaky = False
        if kind < 0.35:
            driver.stop()
            assert driver.replayed == 0
            self.counts["stop"] += 1
        elif kind < 0.6:
            self.look()

    def look(self) -> None:
        """Hold everything that can be seen against the oracle."""
        memory, driver = self.memory, self.driver
        tick_s, driver.tick_s = driver.tick_s, 0.0
        names = driver.listing(limit=self.random.choice([1, 3, 1000]))
        memory.now = driver.now
        due = {name for name in memory.ts if memory.due(name)}
        assert memory.ts.keys() - due <= set(names) <= memory.ts.keys()
        assert driver.stats()["open"] == len(set(names))
        driver.tick_s = tick_s
        for name in self.all_names:
            driver.handle(self.send({"op": "snapshot", "session": name}), self.send({"op": "info", "session": name}))
        driver.finish()
        self.judge({})
        self.snapshots = [memory.snapshot(name) for name in list(memory.ts)[:3]] or self.snapshots
        for name, tokens in memory.tokens.items():
            if name in memory.ts and tokens is not None:
                assert memory.ts[name] == len(tokens)
                assert memory.states[name].tobytes() == driver.model.run(tokens).tobytes()
        self.counts["look"] += 1

    def judge(self, lost: dict[Any, list[Reply | None]]) -> None:
        """Hold every reply against the oracle; after a crash, `lost` are those that nobody got."""
        for address, items, now in self.sent:
            self.memory.now = now
            found: list[list[Any]] = self.driver.replies.pop(address, [])
            for item, reply in zip(items, found[0] if found else lost.get(address, [None] * len(items)), strict=True):
                if reply is not None:
                    self.hold(item, dict(reply), len(items) == 1)
        assert not self.driver.replies.keys() - {b"calm", b"listing", b"stats"}
        self.sent.clear()
        self.numbered.clear()

    def hold(self, item: Item, reply: Reply, alone: bool) -> None:
        kind = "again" if "again" in reply else reply.get("error", item.get("op", "step"))
        self.counts[f"{kind} {reply['why']}" if "why" in reply else kind] += 1
        message = reply.pop("message", None)
        assert ("error" in reply) == (message is not None)
        if kind == "store_error":
            assert self.flaky
            assert reply.pop("retry_after_ms") in (7, LATER_MS)
            assert reply == {"error": kind} | {key: item[key] for key in ("session", "id") if key in item}
            if "producer" in item:
                self.memory.failed(item, alone)
            return
        self.memory.reply = reply
        expected = self.memory.expect(item, reply, alone)
        assert text(reply) == text(expected), item


def model_for(kind: str) -> StepModel:
    model = dense("categorical", seed=3) if kind == "dense" else relu(seed=1, vocabulary=kind == "words")
    model.exact = kind != "inexact"
    return model


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.mark.parametrize(
    ("seed", "kind", "options"),
    [
        (0, "ids", {"max_resident": 2, "journal_tokens": 0}),
        (1, "ids", {"max_resident": 2, "journal_tokens": 50, "hold_s": 0.05}),
        (2, "words", {"max_resident": 2}),
        (3, "words", {"max_resident": 5, "hold_s": 0.05, "idle_timeout_s": IDLE_S}),
        (4, "ids", {"journal_tokens": 50, "idle_timeout_s": IDLE_S}),
        (5, "dense", {"max_resident": 2, "journal_tokens": 50, "idle_timeout_s": IDLE_S}),
        (6, "dense", {"hold_s": 0.05}),
        (7, "inexact", {"max_resident": 2, "idle_timeout_s": IDLE_S}),
        (8, "inexact", {"hold_s": 1e9}),
    ],
)
def test_what_was_acknowledged_is_there_whatever_happens(
    seed: int, kind: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rnnstream.worker.replay.CHUNK", 40)
    store = SQLiteStore(tmp_path / "0-s.db") if seed % 3 == 2 else MemoryStore()
    driver = Kept(model_for(kind), store, bounds={"replies": REPLIES}, seed=seed, **options)
    walk = Walk(driver, seed)
    walk.residents = [driver.max_resident, 2, 1000]
    for _ in range(80):
        walk.interval(walk.random.choice([3, 10, 30]))
    driver.calm()
    walk.look()
    driver.store.close()
    assert min(walk.counts[kind] for kind in EVERYTHING) >= 3, walk.counts
    if "idle_timeout_s" in options:
        assert walk.counts["unknown_session expired"] >= 3
