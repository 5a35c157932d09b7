"""A model that is not exact, as far as that goes: the same step comes out differently every time.

A state that a worker has told can only be had from where it was written, for it cannot be computed again. The prediction
says which state it is, so that what was told can be followed from one token to the next.

`rnnstream serve tests.process.noisy:model`
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnstream import Client, StepModel
from rnnstream.engine import snapshot
from rnnstream.model.outcomes import most_likely
from rnnstream.model.step import Input, Output
from tests.process.faults import Counted
from tests.process.producer import VOCABULARY

STATES = 997

Array = npt.NDArray[Any]


class Noisy(StepModel):
    """The state s goes to 31 s + x, or that + 1, modulo 997: by the throw of a coin."""

    name, digest, numerics = "noisy", "f" * 64, "coins"
    exact = False
    dtype = np.dtype(np.float64)
    state_size = 1
    layers = ("coins",)
    input = Input("token", VOCABULARY)
    output = Output("categorical", 2, ("0:no", "0:yes"))

    def initial_state(self) -> Array:
        return np.zeros(1)

    def advance(self, states: Array, inputs: Array) -> tuple[Array, Array]:
        coins = np.array([[random.getrandbits(1)] for _ in inputs], np.float64)
        after = (31 * states + inputs[:, np.newaxis] + coins) % STATES
        return after, after.copy()

    def head(self, features: Array) -> Array:
        return np.concatenate((features / STATES, np.zeros_like(features)), axis=1)


def model() -> Noisy:
    return Noisy()


def follow(sessions: Counted) -> int:
    """Hold what was told of each session's tokens against what can have come of the state before; how many were held."""
    noisy = Noisy()
    ps = most_likely(noisy.head(np.arange(float(STATES))[:, np.newaxis]))[1].tolist()
    state_of = {p: state for state, p in enumerate(ps)}
    assert len(state_of) == STATES
    for session, counted in sessions.items():
        state = 0
        for t in range(1, len(counted) + 1):
            x, p = counted[t]
            coin = (state_of[p] - 31 * state - x) % STATES
            assert coin in (0, 1), f"{session}: what was told of t={t} does not follow from what was told before"
            state = state_of[p]
    return sum(map(len, sessions.values()))


def follow_states(client: Client, sessions: Counted) -> int:
    """Hold every session's state against what was told last of it; how many."""
    noisy = Noisy()
    for session, counted in sessions.items():
        data = client.session(session).snapshot()
        a, t = snapshot.decode(data, dtype=noisy.dtype, state_size=1, digest=noisy.digest)
        assert t == len(counted), f"{session}: {len(counted)} tokens were acknowledged, but t={t}"
        assert most_likely(noisy.head(a[np.newaxis]))[1].tolist() == [counted[t][1]], session
    return len(sessions)
