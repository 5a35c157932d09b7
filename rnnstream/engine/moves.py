"""Tokens that were computed, and have not counted yet.

B rows of a batch    S numbers of a state    F features
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from rnnstream.prediction import Prediction

Array = npt.NDArray[Any]


@dataclass(slots=True)
class Moves:
    """One token for each of some rows, computed but not yet committed.

    Attributes:
        rows: [B] the rows, each once; of `compute_on` one and the same.
        ts: [B] the step count that each will have.
        states: [B, S] the new states.
        features: [B, F] for `StepModel.head`.
        good: [B] bool, which of the new states are finite; None where all are.
    """

    rows: Array
    ts: Array
    states: Array
    features: Array
    good: Array | None

    def behind(self, place: int) -> Moves:
        """The moves from this place on."""
        good = None if self.good is None else self.good[place:]
        return Moves(self.rows[place:], self.ts[place:], self.states[place:], self.features[place:], good)


class Peek:
    """Predictions for some tokens as if they came next in a session; it moves on a copy of the state.

    Attributes:
        state: [S] after the tokens so far.
        t: step count after the tokens so far.
        tokens: all of them, checked.
        want, surprisal: as of a step.
        found: the predictions so far.
        spoiled: the next token would make the state NaN or infinite.
    """

    __slots__ = ("found", "spoiled", "state", "surprisal", "t", "tokens", "want")

    def __init__(self, state: Array, t: int, tokens: list[Any], want: str | int, surprisal: bool) -> None:
        self.state, self.t, self.tokens, self.want, self.surprisal = state, t, tokens, want, surprisal
        self.found: list[Prediction] = []
        self.spoiled = False

    @property
    def done(self) -> bool:
        """Whether nothing is left to compute."""
        return self.spoiled or len(self.found) == len(self.tokens)
