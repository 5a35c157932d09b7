"""A model with a bug, for now and then."""

from __future__ import annotations

from typing import Any

import numpy as np

from rnnstream.model.step import StepModel
from tests.engine.models import V, network


class Moody(StepModel):
    """A counter whose parts raise on demand.

    Attributes:
        mood: the part that raises when it sees token 3: "advance", "head", "features", or "".
    """

    name, digest, exact, numerics, layers = "moody", "", True, "", []
    dtype, state_size = np.dtype(np.float32), 1

    def __init__(self) -> None:
        twin = network()
        self.mood, self.input, self.output = "", twin.input, twin.output

    def initial_state(self) -> Any:
        return np.zeros(1, np.float32)

    def advance(self, states: Any, inputs: Any) -> Any:
        if self.mood == "advance" and (inputs == 3).any():
            raise OSError("no such luck")
        return states + 1, inputs[:, np.newaxis]

    def head(self, features: Any) -> Any:
        if self.mood == "head" and (features == 3).any():
            raise OSError("no such luck")
        return np.zeros((len(features), V), np.float32)

    def features(self, states: Any) -> Any:
        if self.mood == "features" and states.any():
            raise OSError("no such luck")
        return states
