"""Random operations on an engine, against a dict of token lists."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from rnnstream.engine.engine import Engine
from rnnstream.errors import BadState, BadToken, Exists, Full, NotFinite, RequestError, UnknownSession
from rnnstream.prediction import Prediction

from .models import DTYPES, SPOILED, V, relu

names = st.sampled_from("abcdef")
xs = st.integers(0, V)  # V is no token
wants = st.sampled_from(["argmax", "none", "probs", 3])
MOST = 4  # sessions, of six names
IDLE_S = 10


class Sessions(RuleBasedStateMachine):
    snapshots = Bundle("snapshots")  # with their tokens

    @initialize(dtype=st.sampled_from(DTYPES), seed=st.integers(0, 3), explicit_open=st.booleans())
    def start(self, dtype: str, seed: int, explicit_open: bool) -> None:
        self.model = relu(dtype, seed)
        self.explicit_open = explicit_open
        self.engine = Engine(self.model, max_sessions=MOST, explicit_open=explicit_open, idle_timeout_s=IDLE_S)
        self.tokens: dict[str, list[int]] = {}
        self.moved_at: dict[str, int] = {}
        self.ended: dict[str, str] = {}  # and why
        self.now = 0

    # What is expected

    def finite(self, tokens: list[int]) -> bool:
        return bool(np.isfinite(self.model.run(tokens)).all())

    def expected(self, pairs: list[tuple[str, int]]) -> type[RequestError] | None:
        """What a call with these pairs raises; without an error before the first step, the tokens are applied."""
        if any(x == V for _, x in pairs):
            return BadToken
        taken = set(self.tokens)
        for name, _ in pairs:
            if name not in self.tokens and (self.explicit_open or name in self.ended):
                return UnknownSession
            if name not in taken and len(taken) == MOST:
                return Full
            taken.add(name)
        stopped: set[str] = set()
        for name, x in pairs:
            tokens = [*self.tokens.get(name, []), x]
            if name not in stopped and self.finite(tokens):
                self.begin(name, tokens)
            else:
                stopped.add(name)
        return NotFinite if stopped else None

    def begin(self, name: str, tokens: list[int]) -> None:
        self.tokens[name] = tokens
        self.moved_at[name] = self.now
        self.ended.pop(name, None)

    def end(self, name: str, why: str) -> None:
        del self.tokens[name], self.moved_at[name]
        self.ended[name] = why

    def opening(self, name: str) -> type[RequestError] | None:
        """What opening this name raises."""
        if name in self.tokens:
            return Exists
        return Full if len(self.tokens) == MOST else None

    def refused(self, error: type[RequestError] | None, name: str, use: Any) -> bool:
        """Whether this is to be refused; then it is tried."""
        if error is None:
            return False
        with pytest.raises(RequestError) as raised:
            use()
        assert raised.type is error
        if error is UnknownSession:
            assert raised.value.why == self.ended.get(name, "never")
        return True

    def compare(self, found: Prediction, tokens: list[int], opened: bool, want: str | int) -> None:
        assert (found.t, found.opened) == (len(tokens), opened)
        y = self.model.forward(tokens)[-1]
        if np.isnan(y).any():  # of a state near the largest number: a prediction is returned as it is
            assert want == "none" or np.isnan(found.p)
            return
        assert found.y == (None if want == "none" else int(y.argmax()))
        assert found.p == (None if want == "none" else float(y.max()))
        assert (found.probs is None) == (want != "probs")
        assert found.probs is None or found.probs.tobytes() == y.astype("<f4").tobytes()
        order = sorted(range(V), key=lambda i: (-y[i], i))[:3]
        assert found.top == ([(i, float(y[i])) for i in order] if want == 3 else None)

    # What is done

    @rule(pairs=st.lists(st.tuples(names, xs), max_size=6), want=wants)
    def step(self, pairs: list[tuple[str, int]], want: str | int) -> None:
        self.now += 1
        before = {name: list(tokens) for name, tokens in self.tokens.items()}
        error = self.expected(pairs)
        if error is not None:
            with pytest.raises(RequestError) as raised:
                self.engine.step(pairs, want=want, now=self.now)
            assert raised.type is error
            return
        found = self.engine.step(pairs, want=want, now=self.now)
        for (name, x), prediction in zip(pairs, found, strict=True):
            opened = name not in before
            before.setdefault(name, []).append(x)
            self.compare(prediction, before[name], opened, want)

    @rule(name=names)
    def spoil(self, name: str) -> None:
        """A token that no state survives: never a change."""
        self.step([(name, SPOILED)], "none")

    @rule(name=names, more=st.lists(xs, max_size=4), want=wants)
    def peek(self, name: str, more: list[int], want: str | int) -> None:
        prefixes = [[*self.tokens.get(name, []), *more[: i + 1]] for i in range(len(more))]
        error: type[RequestError] | None = None
        if V in more:
            error = BadToken
        elif name not in self.tokens:
            error = UnknownSession
        elif not all(self.finite(prefix) for prefix in prefixes):
            error = NotFinite
        if not self.refused(error, name, lambda: self.engine.peek(name, more, want=want)):
            for prefix, found in zip(prefixes, self.engine.peek(name, more, want=want), strict=True):
                self.compare(found, prefix, False, want)

    @rule(name=names)
    def open(self, name: str) -> None:
        if not self.refused(self.opening(name), name, lambda: self.engine.open(name, now=self.now)):
            assert self.engine.open(name, now=self.now) == 0
            self.begin(name, [])

    @rule(name=names)
    def reset(self, name: str) -> None:
        error = self.opening(name)
        if not self.refused(error if error is Full else None, name, lambda: self.engine.reset(name, now=self.now)):
            self.engine.reset(name, now=self.now)
            self.begin(name, [])

    @rule(name=names)
    def close(self, name: str) -> None:
        error = None if name in self.tokens else UnknownSession
        if not self.refused(error, name, lambda: self.engine.close(name)):
            self.engine.close(name)
            self.end(name, "closed")

    @rule(name=names, to=names)
    def fork(self, name: str, to: str) -> None:
        error = self.opening(to) if name in self.tokens else UnknownSession
        if not self.refused(error, name, lambda: self.engine.fork(name, to, now=self.now)):
            assert self.engine.fork(name, to, now=self.now) == len(self.tokens[name])
            self.begin(to, list(self.tokens[name]))

    @rule(target=snapshots, name=names)
    def snapshot(self, name: str) -> Any:
        error = None if name in self.tokens else UnknownSession
        if self.refused(error, name, lambda: self.engine.snapshot(name)):
            return multiple()
        return self.engine.snapshot(name), list(self.tokens[name])

    @rule(name=names, saved=snapshots, damage=st.none() | st.integers(0))
    def restore(self, name: str, saved: tuple[bytes, list[int]], damage: int | None) -> None:
        state, tokens = saved
        error = None if name in self.tokens else UnknownSession
        if damage is not None:
            place = damage % len(state)
            state = state[:place] + bytes([state[place] ^ 1 + damage % 255]) + state[place + 1 :]
            error = error or BadState
        if not self.refused(error, name, lambda: self.engine.restore(name, state, now=self.now)):
            assert self.engine.restore(name, state, now=self.now) == len(tokens)
            self.begin(name, list(tokens))

    @rule(name=names, saved=snapshots)
    def open_from(self, name: str, saved: tuple[bytes, list[int]]) -> None:
        state, tokens = saved
        if not self.refused(self.opening(name), name, lambda: self.engine.open(name, state, now=self.now)):
            assert self.engine.open(name, state, now=self.now) == len(tokens)
            self.begin(name, list(tokens))

    @rule(seconds=st.integers(1, IDLE_S), waited_for=st.sets(names))
    def wait(self, seconds: int, waited_for: set[str]) -> None:
        self.now += seconds
        due = {name for name, moved_at in self.moved_at.items() if self.now - moved_at > IDLE_S} - waited_for
        assert set(self.engine.expire(self.now, lambda row: self.engine.table.names[row] in waited_for)) == due
        for name in due:
            self.end(name, "expired")

    # What always holds

    @invariant()
    def holds(self) -> None:
        self.engine.check()
        assert sorted(self.engine.sessions()) == sorted(self.tokens)
        for name, tokens in self.tokens.items():
            info: dict[str, Any] = self.engine.info(name, now=self.now)
            assert (info["t"], info["idle_s"]) == (len(tokens), self.now - self.moved_at[name])
            assert self.engine.state(name).tobytes() == self.model.run(tokens).tobytes()


TestSessions = Sessions.TestCase
TestSessions.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
