"""A long random walk: whatever arrives together with whatever, each session fares as if it were alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rnnstream.model.outcomes import surprisals
from rnnstream.model.step import StepModel
from rnnstream.wire.limits import Limits
from tests.engine.models import HUGE, SPOILED, V, relu

from .driving import Driver, Reply, pack

NAMES = [*"abcdefgh", "é" * 100, "n" * 31, "n" * 32, "n" * 200]
PEERS = [b"peer%d" % i for i in range(6)]
ENVELOPES: list[tuple[bytes, ...]] = [(), (b"",), (b"proxy", b"other", b"")]
GARBAGE = [b"\xc1", b"\x05", b"\x82\xa1x", b"\xff\xff"]


class Oracle:
    """One session after the other, one token after the other: what the replies have to be."""

    def __init__(self, model: StepModel) -> None:
        self.model = model
        self.states: dict[str, Any] = {}
        self.tokens: dict[str, list[int]] = {}  # since a<0>
        self.closed: set[str] = set()

    def expect(self, item: dict[Any, Any], reply: Reply) -> Reply:
        """The reply to this request, whose turn it is; what cannot be known exactly is taken from the reply itself."""
        op, name = item.get("op", "step"), item.get("session")
        echo = {key: item[key] for key in ("session", "id") if key in item}
        if op in ("hello", "ping", "sessions"):
            return self.about(op, item, reply)
        assert isinstance(name, str)
        live, t = name in self.tokens, len(self.tokens.get(name, ()))
        if not live and (op in ("close", "info") or (op == "step" and name in self.closed)):
            return {"error": "unknown_session", "why": "closed" if name in self.closed else "never", **echo}
        if "t" in item and item["t"] != t + 1:
            return {"error": "conflict", "field": "t", "t": t, **echo}
        if op == "step":
            return self.step(name, item, reply) | echo
        if op == "info":
            norm = float(np.sqrt((self.states[name].astype(float) ** 2).sum()))
            assert reply["norm"] == pytest.approx(norm)
            assert 0 <= reply["idle_s"] <= reply["age_s"]
            return {key: reply[key] for key in ("age_s", "idle_s", "norm")} | {"t": t, "producers": {}, **echo}
        if op == "close":
            del self.tokens[name], self.states[name]
            self.closed.add(name)
            return {"closed": True, **echo}
        self.tokens[name], self.states[name] = [], self.model.initial_state()
        self.closed.discard(name)
        return {"t": 0, **echo}

    def about(self, op: str, item: dict[Any, Any], reply: Reply) -> Reply:
        if op == "sessions":
            assert set(reply["sessions"]) <= set(NAMES)
            assert set(reply) <= {"sessions", "next", "id"}
        else:
            assert reply["worker"] == "w"
            assert ("ok" if op == "ping" else "model") in reply
        assert "error" not in reply
        assert ("id" in reply) == ("id" in item)
        return reply | {key: item[key] for key in ("id",) if key in item}

    def step(self, name: str, item: dict[Any, Any], reply: Reply) -> Reply:
        model, want, opened = self.model, item.get("want", "argmax"), name not in self.tokens
        x = model.input.token(item["x"])
        before = model.initial_state() if opened else self.states[name]
        after, features = model.advance(before[np.newaxis], np.array([x]))
        if not np.isfinite(after).all():
            return {"error": "not_finite"}
        self.states[name] = after[0]
        self.tokens.setdefault(name, []).append(x)
        expected: Reply = {"t": len(self.tokens[name])} | ({"opened": True} if opened else {})
        if item.get("surprisal"):
            seen = model.features(before[np.newaxis])
            assert seen is not None
            expected["surprisal"] = float(surprisals(model.head(seen), np.array([x]))[0])
        if want == "none":
            return expected
        logits = model.head(features)
        y = model.output.g2(logits)[0]
        known = not np.isnan(y).any()  # of a state near the largest number: the prediction is returned as it is
        best = int(y.argmax()) if known else reply["y"]
        expected |= {"y": best, "p": float(y[best])}
        if model.output.vocabulary:
            expected["label"] = model.output.vocabulary[best]
        if want == "probs":
            expected["probs"] = y.astype("<f4").tobytes()
        elif want == "logits":
            expected["logits"] = logits[0].astype("<f4").tobytes()
        elif isinstance(want, int):
            order = sorted(range(V), key=lambda i: (-y[i], i))[:want]
            expected["top"] = [[i, float(y[i])] for i in order] if known else reply["top"]
        return expected


class Walk:
    """What is sent, and what came back for it."""

    def __init__(self, driver: Driver, seed: int) -> None:
        self.driver, self.random = driver, random.Random(seed)
        self.sent: list[tuple[Any, list[tuple[dict[Any, Any], Reply | None]], bool]] = []  # address, requests, garbage
        self.guess = dict.fromkeys(NAMES, 0)

    def request(self) -> tuple[dict[Any, Any], Reply | None]:
        """A request, and the error that it gets whatever the session is like, if it does."""
        rng = self.random
        name, kind = rng.choice(NAMES), rng.random()
        x: Any = rng.choice([SPOILED, HUGE]) if rng.random() < 0.03 else rng.randrange(SPOILED)
        item: dict[Any, Any] = {"session": name, "x": x}
        self.guess[name] += 1
        if kind < 0.5:
            return item | ({"id": rng.choice([0, -1, 2**64 - 1])} if rng.random() < 0.4 else {}), None
        if rng.random() < 0.5:
            item["id"] = rng.choice(["", "i" * 64, b"\xff", 0, -(2**63), 2**64 - 1])
        if kind < 0.75:
            if rng.random() < 0.3:
                item["op"] = "step"
            if rng.random() < 0.3 and self.driver.engine.model.input.vocabulary:
                item["x"] = f"w{x}"
            if rng.random() < 0.7:
                item["want"] = rng.choice(["argmax", "none", "probs", "logits", 1, 3, V, 100])
            if rng.random() < 0.3:
                item["surprisal"] = rng.random() < 0.8
            if rng.random() < 0.3:
                item["t"] = rng.choice([self.guess[name], rng.randrange(6), 2**64 - 1])
            return item, None
        if kind < 0.84:
            del item["x"]
            item["op"] = rng.choice(["reset", "reset", "close", "info"])
            if item["op"] != "info" and rng.random() < 0.2:
                item["t"] = rng.choice([self.guess[name], rng.randrange(4)])
            elif item["op"] != "info":
                self.guess[name] = 0
            return item, None
        echo = {key: item[key] for key in ("session", "id") if key in item}
        if kind < 0.9:
            about = {"op": rng.choice(["hello", "ping", "sessions"])}
            return about | {key: item[key] for key in ("id",) if key in item}, None
        code, field, change = rng.choice(
            [
                ("bad_token", "x", {"x": V}),
                ("bad_token", "x", {"x": -1}),
                ("bad_token", "x", {"x": "nope"}),
                ("bad_request", "x", {"x": rng.choice([None, True, 1.0, [1], b"1", {}])}),
                ("bad_request", "want", {"want": rng.choice(["", 0, 101, True, None])}),
                ("bad_request", "t", {"t": rng.choice([-1, "1", 1.0])}),
                ("bad_request", "op", {"op": rng.choice(["fork", 5, None])}),
                ("bad_request", "n", {"n": 1}),
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
        peer, envelope = rng.choice(PEERS), rng.choice(ENVELOPES)
        address: Any = (peer, *envelope) if envelope else peer
        count = rng.choice([1, 1, 1, 1, 1, 2, 3, rng.randint(1, 40)])
        requests = [self.request() for _ in range(count)]
        garbage = rng.choice(GARBAGE) if rng.random() < 0.04 else b""
        self.sent.append((address, requests, bool(garbage)))
        return address, pack(item for item, _ in requests) + garbage

    def run(self, drains: int) -> None:
        for _ in range(drains):
            bodies = [self.arrive() for _ in range(self.random.choice([0, 0, 1, 1, 2, 5]))]
            if self.random.random() < 0.2:
                bodies = [(address, memoryview(body)) for address, body in bodies]
            self.driver.handle(*bodies)
            while self.driver.core.waiting > 500:
                self.driver.handle()
        self.driver.finish()

    def judge(self, oracle: Oracle, allowed: set[str]) -> dict[str, int]:
        """Hold every reply against the oracle; the number of replies of each kind."""
        counts: dict[str, int] = {}
        for address, requests, garbage in self.sent:
            replies = self.driver.replies[address].pop(0)
            if garbage:
                assert replies.pop()["error"] == "bad_message"
            busy = {
                item["session"] for (item, error), reply in zip(requests, replies, strict=True) if reply.get("error") == "busy"
            }
            for (item, error), reply in zip(requests, replies, strict=True):
                kind = reply.get("error", item.get("op", "step"))
                counts[kind] = counts.get(kind, 0) + 1
                message = reply.pop("message", None)
                assert ("error" in reply) == (message is not None)
                if error is None and item.get("session") in busy:  # then all of this body for the session are
                    assert reply.pop("retry_after_ms") > 0
                    error = {"error": "busy"} | {key: item[key] for key in ("session", "id") if key in item}
                elif error is None and kind == "full":
                    assert item["session"] not in oracle.tokens
                    error = {"error": "full"} | {key: item[key] for key in ("session", "id") if key in item}
                expected = error if error is not None else oracle.expect(item, reply)
                assert text(reply) == text(expected), (item, len(counts))
        assert not any(self.driver.replies.values())
        assert {"busy", "full", "internal", "too_large"} & set(counts) == allowed
        return counts


def text(reply: Reply) -> str:
    """A reply so that equal ones are equal: NaN is NaN, and the order of the keys is free."""
    return repr(sorted(reply.items()))


@pytest.mark.parametrize(
    ("seed", "vocabulary", "limits", "most", "allowed"),
    [
        (0, False, Limits(), 100, set()),
        (1, True, Limits(), 100, set()),
        (2, False, Limits(frame_requests=40, waiting=40), 9, {"busy", "full"}),
    ],
    ids=["ids", "words", "narrow"],
)
def test_every_reply_is_the_one_of_a_session_alone(
    drive: Callable[..., Driver], seed: int, vocabulary: bool, limits: Limits, most: int, allowed: set[str]
) -> None:
    model = relu(seed=1, vocabulary=vocabulary)
    driver = drive(model, limits=limits, max_sessions=most)
    walk = Walk(driver, seed)
    walk.run(1000)
    oracle = Oracle(model)
    counts = walk.judge(oracle, allowed)
    assert min(counts.values()) >= 5, counts
    assert {"not_finite", "conflict", "unknown_session", "bad_token", "bad_request", "step", "close"} <= set(counts)
    assert driver.states() == {name: (len(xs), oracle.states[name].tobytes()) for name, xs in oracle.tokens.items()}
    for name, xs in oracle.tokens.items():
        assert driver.engine.state(name).tobytes() == model.run(xs).tobytes()
