"""One session after the other, one request after the other: what the replies have to be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rnnstream.engine import snapshot
from rnnstream.errors import BadState
from rnnstream.model.outcomes import surprisals
from rnnstream.model.step import StepModel

Reply = dict[str, Any]
ABOUT = ("hello", "ping", "sessions", "stats")
KEYS = {"sessions": {"sessions"}, "hello": {"worker", "model", "limits"}, "ping": {"ok", "worker"}, "stats": {"tokens", "open"}}


class Refused(Exception):
    """The error map that a request gets, without its message."""

    def __init__(self, **reply: Any) -> None:
        self.reply = reply


class Oracle:
    """Sessions as lists of tokens, and what their producers may repeat."""

    def __init__(self, model: StepModel, *, replies: int, explicit_open: bool = False) -> None:
        self.model, self.replies, self.explicit_open = model, replies, explicit_open
        self.states: dict[str, Any] = {}
        self.ts: dict[str, int] = {}
        self.closed: set[str] = set()
        self.last: dict[tuple[str, str], int] = {}  # by name and producer
        self.kept: dict[tuple[str, str], dict[int, tuple[Any, Reply]]] = {}

    def expect(self, item: dict[Any, Any], reply: Reply, alone: bool) -> Reply:
        """The reply to this request, whose turn it is; what cannot be known exactly is taken from the reply itself."""
        echo = {key: item[key] for key in ("id",) if key in item}
        op, name = item.get("op", "step"), item.get("session", "")
        if op in ABOUT:
            assert set(reply) >= KEYS[op]
            assert "error" not in reply
            return reply | echo
        try:
            kept = self.judge(name, op, item) if "producer" in item else None
            if kept is not None:
                self.acknowledge(name, item, alone)
                return kept | {"again": True} | echo
            answer = {"session": name} | self.carry_out(op, name, item, reply)
        except Refused as refused:
            return {"session": name} | refused.reply | echo
        if "producer" in item:
            self.keep(name, op, item, answer, alone)
        return answer | echo

    def judge(self, name: str, op: str, item: dict[Any, Any]) -> Reply | None:
        who, n = (name, item["producer"]), item["n"]
        last = self.last.get(who, 0)
        if n > last + 1:
            raise Refused(error="gap", expected=last + 1)
        if n == last + 1:
            return None
        if n not in self.kept[who]:
            raise Refused(error="stale", last=last)
        identity, reply = self.kept[who][n]
        if identity != self.identity(op, item):
            raise Refused(error="conflict", field="n", t=self.ts.get(name, 0))
        return reply

    def keep(self, name: str, op: str, item: dict[Any, Any], answer: Reply, alone: bool) -> None:
        who, n = (name, item["producer"]), item["n"]
        self.last[who] = n
        self.acknowledge(name, item, alone)
        self.kept[who][n] = self.identity(op, item), answer
        self.kept[who] = dict(list(self.kept[who].items())[-self.replies :])

    def acknowledge(self, name: str, item: dict[Any, Any], alone: bool) -> None:
        who, n = (name, item["producer"]), item["n"]
        ack = min(item.get("ack", n - 1 if alone else 0), n - 1)
        self.kept[who] = {earlier: found for earlier, found in self.kept.get(who, {}).items() if earlier > ack}

    def identity(self, op: str, item: dict[Any, Any]) -> Any:
        x = self.model.input.token(item["x"]) if "x" in item else None
        return op, x, item.get("to"), item.get("state")

    def carry_out(self, op: str, name: str, item: dict[Any, Any], reply: Reply) -> Reply:
        live, t = name in self.ts, self.ts.get(name, 0)
        unknown = Refused(error="unknown_session", why="closed" if name in self.closed else "never")
        if not live and op not in ("step", "open", "reset"):
            raise unknown
        if not live and op == "step" and (name in self.closed or self.explicit_open):
            raise unknown
        if live and op == "open":
            raise Refused(error="exists")
        if "t" in item and item["t"] != t + 1:
            raise Refused(error="conflict", field="t", t=t)
        match op:
            case "step":
                return self.step(name, item, reply)
            case "peek":
                return {"t": t, "ys": self.peek(name, item, reply)}
            case "snapshot":
                return {"state": self.snapshot(name), "t": t}
            case "info":
                norm = float(np.sqrt((self.states[name].astype(float) ** 2).sum()))
                assert reply["norm"] == pytest.approx(norm)
                assert 0 <= reply["idle_s"] <= reply["age_s"]
                told = {who: last for (session, who), last in self.last.items() if session == name}
                return {key: reply[key] for key in ("age_s", "idle_s", "norm")} | {"t": t, "producers": told}
            case "close":
                del self.ts[name], self.states[name]
                self.closed.add(name)
                return {"closed": True}
            case "fork":
                if item["to"] in self.ts:
                    raise Refused(error="exists")
                self.place(item["to"], self.states[name].copy(), t)
                return {"to": item["to"], "t": t}
        self.place(name, *self.decoded(item.get("state")))
        return {"t": self.ts[name]} | ({"opened": True} if op == "open" else {})

    def place(self, name: str, state: Any, t: int) -> None:
        self.states[name], self.ts[name] = state, t
        self.closed.discard(name)

    def snapshot(self, name: str) -> bytes:
        return snapshot.encode(self.states[name], self.ts[name], self.model.digest)

    def decoded(self, state: bytes | None) -> tuple[Any, int]:
        model = self.model
        if state is None:
            return model.initial_state(), 0
        try:
            return snapshot.decode(state, dtype=model.dtype, state_size=model.state_size, digest=model.digest)
        except BadState:
            raise Refused(error="bad_state") from None

    def step(self, name: str, item: dict[Any, Any], reply: Reply) -> Reply:
        opened = name not in self.ts
        before = self.model.initial_state() if opened else self.states[name]
        after, found = self.predict(before, item["x"], item, reply)
        self.states[name] = after
        self.ts[name] = self.ts.get(name, 0) + 1
        return {"t": self.ts[name]} | ({"opened": True} if opened else {}) | found

    def peek(self, name: str, item: dict[Any, Any], reply: Reply) -> list[Reply]:
        state, found = self.states[name], []
        for place, x in enumerate(item["xs"]):
            state, y = self.predict(state, x, item, reply.get("ys", [{}] * 99)[place])
            found.append(y)
        return found

    def predict(self, before: Any, x: Any, item: dict[Any, Any], reply: Reply) -> tuple[Any, Reply]:
        model, want, token = self.model, item.get("want", "argmax"), self.model.input.token(x)
        after, features = model.advance(before[np.newaxis], np.array([token]))
        if not np.isfinite(after).all():
            raise Refused(error="not_finite")
        expected: Reply = {}
        if item.get("surprisal"):
            seen = model.features(before[np.newaxis])
            assert seen is not None
            expected["surprisal"] = float(surprisals(model.head(seen), np.array([token]))[0])
        if want == "none":
            return after[0], expected
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
            order = sorted(range(len(y)), key=lambda i: (-y[i], i))[:want]
            expected["top"] = [[i, float(y[i])] for i in order] if known else reply["top"]
        return after[0], expected
