"""A long random walk over an engine, against dicts: everything that can happen to a few names, in any order."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rnnstream.engine.engine import Engine
from rnnstream.engine.numbering import Numbering
from rnnstream.errors import RequestError
from rnnstream.model.blas import one_thread
from rnnstream.model.step import StepModel

from .counting import numbered, step_row
from .models import SPOILED, relu

OPERATIONS = 50_000
SESSIONS, TOMBSTONES, IDLE_S, REPLIES = 5, 2, 8, 3
NAMES = "abcdefgh"
VERBS = ("step", "open", "reopen", "reset", "close", "fork", "restore")


class Refused(Exception):
    """With the code of the error, and `why` where there is one."""


class Plain:
    """What the engine should hold: by name the tokens, the state after them, when it moved; how names ended; the numbers."""

    def __init__(self, model: StepModel) -> None:
        self.model = model
        self.tokens: dict[str, list[int]] = {}
        self.states: dict[str, Any] = {}
        self.moved_at: dict[str, float] = {}
        self.ended: OrderedDict[str, str] = OrderedDict()
        self.numbers: dict[str, dict[str, list[tuple[Any, bytes]]]] = {}
        self.acked: Counter[tuple[str, str]] = Counter()

    def start(self, name: str, tokens: list[int], state: Any, now: float) -> int:
        if name not in self.tokens and len(self.tokens) == SESSIONS:
            raise Refused("full")
        self.ended.pop(name, None)
        self.tokens[name], self.states[name], self.moved_at[name] = list(tokens), state, now
        return len(tokens)

    def end(self, name: str, why: str) -> None:
        del self.tokens[name], self.states[name], self.moved_at[name]
        self.ended[name] = why
        if len(self.ended) > TOMBSTONES:
            forgotten, _ = self.ended.popitem(last=False)
            for producer in self.numbers.pop(forgotten, {}):
                del self.acked[forgotten, producer]

    def known(self, name: str) -> None:
        if name not in self.tokens:
            raise Refused("unknown_session " + self.ended.get(name, "never"))

    def next_state(self, name: str, x: int) -> Any:
        before = self.states[name] if name in self.states else self.model.initial_state()
        state = self.model.advance(before[np.newaxis], self.model.input.batch([x]))[0][0]
        return state if np.isfinite(state).all() else None

    def step(self, pairs: list[tuple[str, int]], now: float) -> list[tuple[int, bool]]:
        names = set(self.tokens)
        for name, _ in pairs:
            if name in self.ended:
                self.known(name)
            if name not in names and len(names) == SESSIONS:
                raise Refused("full")
            names.add(name)
        found, stopped = [], set()
        for name, x in pairs:
            state = None if name in stopped else self.next_state(name, x)
            if state is None:
                stopped.add(name)
                continue
            opened = name not in self.tokens
            self.start(name, [*self.tokens.get(name, []), x], state, now)
            found.append((len(self.tokens[name]), opened))
        if stopped:
            raise Refused("not_finite")
        return found

    def peek(self, name: str, xs: list[int]) -> list[tuple[int, int]]:
        self.known(name)
        state, found = self.states[name], []
        for x in xs:
            state, y = self.model.step(state, x)
            if not np.isfinite(state).all():
                raise Refused("not_finite")
            found.append((len(self.tokens[name]) + len(found) + 1, int(y.argmax())))
        return found

    def do(self, verb: str, name: str, to: str, x: int, saved: tuple[list[int], Any, bytes], now: float) -> Any:
        a0 = self.model.initial_state()
        match verb:
            case "step":
                return self.step([(name, x)], now)
            case "reset":
                return self.start(name, [], a0, now)
            case "open" | "reopen":
                if name in self.tokens:
                    raise Refused("exists")
                return self.start(name, *(saved[:2] if verb == "reopen" else ([], a0)), now)
        self.known(name)
        if verb == "close":
            return self.end(name, "closed")
        if verb == "restore":
            return self.start(name, *saved[:2], now)
        if to in self.tokens:
            raise Refused("exists")
        return self.start(to, self.tokens[name], self.states[name], now)

    def due(self, now: float) -> list[str]:
        return sorted(name for name, moved_at in self.moved_at.items() if now - moved_at > IDLE_S)

    def judge(self, name: str, producer: str, n: int, request: Any) -> bytes | None:
        counted = self.numbers.get(name, {}).get(producer, [])
        last = len(counted)
        if n > last:
            if n > last + 1:
                raise Refused("gap")
            return None
        if n < last and (n <= self.acked[name, producer] or n <= last - REPLIES):
            raise Refused("stale")
        if counted[n - 1][0] != request:
            raise Refused("conflict")
        return counted[n - 1][1]

    def keep(self, name: str, producer: str, request: Any, reply: bytes, ack: int) -> None:
        self.numbers.setdefault(name, {}).setdefault(producer, []).append((request, reply))
        self.acked[name, producer] = max(self.acked[name, producer], ack)


def outcome(do: Callable[[], Any]) -> Any:
    """What it returns, or the code of its error."""
    try:
        return do()
    except RequestError as error:
        return " ".join([error.code, error.extra.get("why", "")]).strip()
    except Refused as error:
        return str(error)


class Walk:
    """An engine and a `Plain`, given the same."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        model = relu(seed=seed)
        self.engine = Engine(model, max_sessions=SESSIONS, idle_timeout_s=IDLE_S, numbering=Numbering(replies=REPLIES))
        self.plain = Plain(model)
        self.now = 0.0
        self.saved: tuple[list[int], Any, bytes] = ([], model.initial_state(), self.engine_of_its_own(model))
        self.seen: Counter[str] = Counter()

    @staticmethod
    def engine_of_its_own(model: StepModel) -> bytes:
        other = Engine(model)
        other.open("a")
        return other.snapshot("a")

    def one_of(self, values: Any) -> Any:
        return values[self.rng.integers(len(values))]

    def name(self) -> str:
        """Of an open session more often than not."""
        return self.one_of(list(self.plain.tokens) or NAMES) if self.rng.random() < 0.7 else self.one_of(NAMES)

    def token(self) -> int:
        return SPOILED if self.rng.random() < 0.03 else int(self.rng.integers(SPOILED))

    def same(self, what: str, mine: Callable[[], Any], plain: Callable[[], Any]) -> None:
        """The engine does what the plain one does."""
        expected = outcome(plain)
        assert outcome(mine) == expected
        self.seen[f"{what}: {expected}" if isinstance(expected, str) else what] += 1

    def step(self) -> None:
        pairs = [(self.name(), self.token()) for _ in range(self.rng.integers(1, 6))]

        def mine() -> list[tuple[int, bool]]:
            want, surprisal = self.one_of(["none", "argmax", "probs"]), self.rng.random() < 0.2
            found = self.engine.step(pairs, want=want, surprisal=surprisal, now=self.now)
            return [(prediction.t, prediction.opened) for prediction in found]

        self.same("steps", mine, lambda: self.plain.step(pairs, self.now))

    def look(self) -> None:
        """What changes nothing: peek, info, snapshot."""
        name = self.name()
        xs = [self.token() for _ in range(self.rng.integers(4))]
        self.same("peek", lambda: [(p.t, p.y) for p in self.engine.peek(name, xs)], lambda: self.plain.peek(name, xs))
        self.same("info", lambda: self.engine.info(name, now=self.now)["t"], lambda: self.length(name))
        if name in self.plain.tokens:
            self.saved = (list(self.plain.tokens[name]), self.plain.states[name], self.engine.snapshot(name))

    def length(self, name: str) -> int:
        self.plain.known(name)
        return len(self.plain.tokens[name])

    def do(self) -> None:
        """A verb through the engine's door by name."""
        verb, name, to, now = self.one_of(VERBS[1:]), self.name(), self.one_of(NAMES), self.now
        verbs: dict[str, Callable[[], Any]] = {
            "open": lambda: self.engine.open(name, now=now),
            "reopen": lambda: self.engine.open(name, self.saved[2], now=now),
            "reset": lambda: self.engine.reset(name, now=now) or 0,
            "close": lambda: self.engine.close(name),
            "fork": lambda: self.engine.fork(name, to, now=now),
            "restore": lambda: self.engine.restore(name, self.saved[2], now=now),
        }
        self.same(verb, verbs[verb], lambda: self.plain.do(verb, name, to, 0, self.saved, now))

    def numbered(self) -> None:
        """A numbered request, or its repeat, or one that is out of order; by row, as a worker does it."""
        verb = self.one_of(VERBS) if self.rng.random() < 0.3 else "step"
        name, to, producer, x, now = self.name(), self.one_of(NAMES), self.one_of("pqr"), self.token(), self.now
        counted = self.plain.numbers.get(name, {}).get(producer, [])
        n = len(counted) + 1
        request: Any = (verb, to, x)
        if counted and self.rng.random() < 0.3:
            n = int(self.rng.integers(max(1, n - 5), n))
            request = counted[n - 1][0] if self.rng.random() < 0.8 else "another"
        elif self.rng.random() < 0.1:
            n += 1
        ack, reply, waits = int(max(0, n - self.rng.integers(1, 6))), self.rng.bytes(3), bool(self.rng.random() < 0.5)
        engine = self.engine
        verbs: dict[str, Callable[[int], Any]] = {
            "step": lambda row: step_row(engine, row, x, now),
            "open": lambda row: engine.open_row(row, None, now),
            "reopen": lambda row: engine.open_row(row, self.saved[2], now),
            "reset": lambda row: engine.reset_row(row, now),
            "close": engine.close_row,
            "fork": lambda row: engine.fork_row(row, engine.table.take, to, now),
            "restore": lambda row: engine.restore_row(row, self.saved[2], now),
        }
        options: dict[str, Any] = {"request": request, "reply": reply, "ack": ack, "now": now, "waits": waits}

        def plain() -> bytes | None:
            full = name not in self.plain.tokens and len(self.plain.tokens) == SESSIONS
            if full and waits:
                raise Refused("full")
            found = self.plain.judge(name, producer, n, request)
            if found is None:
                if full:
                    raise Refused("full")
                self.plain.do(verb, name, to, x, self.saved, now)
                self.plain.keep(name, producer, request, reply, ack)
            self.seen["again"] += found is not None
            return found

        self.same("numbered", lambda: numbered(engine, name, producer, n, verbs[verb], **options), plain)

    def wait(self) -> None:
        self.now += int(self.rng.integers(1, 12))
        expired = self.engine.expire(self.now)
        assert sorted(expired) == self.plain.due(self.now)
        for name in expired:
            self.plain.end(name, "expired")
            self.seen["expired"] += 1

    def check(self) -> None:
        engine, plain = self.engine, self.plain
        engine.check()
        rows = engine.table.rows
        assert rows.keys() == plain.tokens.keys() == set(engine.sessions())
        for name, row in rows.items():
            assert engine.table.t[row] == len(plain.tokens[name])
            assert engine.table.states[row].tobytes() == plain.states[name].tobytes()
            assert engine.table.moved_at[row] == plain.moved_at[name]
        assert [(name, tombstone.why) for name, tombstone in engine.table.tombstones.items()] == list(plain.ended.items())
        for name in NAMES:
            last = {producer: len(counted) for producer, counted in plain.numbers.get(name, {}).items()}
            assert {producer: mine.last for producer, mine in engine.producers(name).items()} == last


def test_a_random_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnnstream.engine.tombstones.TOMBSTONES", TOMBSTONES)
    walk = Walk(seed=1)
    kinds = [walk.step, walk.look, walk.do, walk.numbered, walk.wait]
    with one_thread():
        for i, kind in enumerate(walk.rng.choice(len(kinds), OPERATIONS, p=[0.3, 0.08, 0.15, 0.42, 0.05])):
            kinds[kind]()
            walk.check()
            if i % 100 == 0:
                for name, tokens in walk.plain.tokens.items():
                    assert walk.engine.state(name).tobytes() == walk.plain.model.run(tokens).tobytes()
    refusals = ["full", "exists", "not_finite", *(f"unknown_session {why}" for why in ("never", "closed", "expired"))]
    happened = {f"numbered: {code}" for code in [*refusals, "gap", "stale", "conflict"]} | {"steps: full", "expired", "again"}
    assert all(walk.seen[what] > 100 for what in [*happened, *VERBS[1:], "steps", "peek", "info"]), walk.seen
