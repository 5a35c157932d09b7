"""Random operations on an engine, against a dict of token lists."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rnnstream.engine.engine import Engine
from rnnstream.errors import BadToken, Full, NotFinite, RequestError, UnknownSession
from rnnstream.prediction import Prediction

from .models import DTYPES, SPOILED, V, relu

names = st.sampled_from("abcdef")
xs = st.integers(0, V)  # V is no token
MOST = 4  # sessions, of six names


class Sessions(RuleBasedStateMachine):
    @initialize(dtype=st.sampled_from(DTYPES), seed=st.integers(0, 3))
    def start(self, dtype: str, seed: int) -> None:
        self.model = relu(dtype, seed)
        self.engine = Engine(self.model, max_sessions=MOST)
        self.tokens: dict[str, list[int]] = {}
        self.closed: set[str] = set()
        self.now = 0.0

    def expected(self, pairs: list[tuple[str, int]]) -> type[RequestError] | None:
        """What a call with these pairs raises; without an error before the first step, the tokens are applied."""
        if any(x == V for _, x in pairs):
            return BadToken
        taken = set(self.tokens)
        for name, _ in pairs:
            if name not in taken and len(taken) == MOST:
                return Full
            taken.add(name)
            if name in self.closed:
                return UnknownSession
        stopped: set[str] = set()
        for name, x in pairs:
            if name not in stopped:
                if np.isfinite(self.model.run([*self.tokens.get(name, []), x])).all():
                    self.tokens.setdefault(name, []).append(x)
                else:
                    stopped.add(name)
        return NotFinite if stopped else None

    @rule(pairs=st.lists(st.tuples(names, xs), max_size=6), want=st.sampled_from(["argmax", "none", "probs", 3]))
    def step(self, pairs: list[tuple[str, int]], want: str | int) -> None:
        before = {name: list(tokens) for name, tokens in self.tokens.items()}
        error = self.expected(pairs)
        self.now += 1
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

    @rule(name=names)
    def reset(self, name: str) -> None:
        if name not in self.tokens and len(self.tokens) == MOST:
            with pytest.raises(Full):
                self.engine.reset(name, now=self.now)
            return
        self.engine.reset(name, now=self.now)
        self.tokens[name] = []
        self.closed.discard(name)

    @rule(name=names)
    def close(self, name: str) -> None:
        if name not in self.tokens:
            with pytest.raises(UnknownSession) as error:
                self.engine.close(name)
            assert error.value.why == ("closed" if name in self.closed else "never")
            return
        self.engine.close(name)
        del self.tokens[name]
        self.closed.add(name)

    @rule(name=names)
    def spoil(self, name: str) -> None:
        """A token that no state survives: never a change."""
        self.step([(name, SPOILED)], "none")

    @invariant()
    def holds(self) -> None:
        self.engine.check()
        assert sorted(self.engine.sessions()) == sorted(self.tokens)
        for name, tokens in self.tokens.items():
            info: dict[str, Any] = self.engine.info(name, now=self.now)
            assert info["t"] == len(tokens)
            assert self.engine.state(name).tobytes() == self.model.run(tokens).tobytes()


TestSessions = Sessions.TestCase
TestSessions.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
