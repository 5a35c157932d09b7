"""What the adapters share: rows run alone, so that they are exact, or all in one call; and the measurement of which it is.

B rows of a batch    S numbers of a state    K numbers of a token    V outputs
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnstream.errors import ModelError
from rnnstream.model.blas import one_thread
from rnnstream.model.step import StepModel

Array = npt.NDArray[Any]

ROWS, STEPS = 5, 3  # of the measurement
TOLERANCE = 1e-3  # rows that do not see one another differ by rounding only, which is far below; mixed-up ones by far more


class RowModel(StepModel):
    """A model whose step is a call of another library, which gives the new states and the outputs at once.

    The features are the outputs. A subclass calls `settle` at the end of its construction.

    Attributes:
        batch: all rows of a batch go into one call. Otherwise each row has a call of its own.
    """

    batch: bool

    @abstractmethod
    def call(self, states: Array, inputs: Array) -> tuple[Array, Array]:  # [B, S], [B] or [B, K] -> [B, S], [B, V]
        """One call of the library: for one row, or with `batch` for any number but none."""

    def advance(self, states: Array, inputs: Array) -> tuple[Array, Array]:  # [B, S], [B] or [B, K] -> [B, S], [B, V]
        """One step for each row: new states and outputs."""
        if self.batch and len(states):
            return self.call(states, inputs)
        new = np.empty((len(states), self.state_size), self.dtype)
        y = np.empty((len(states), self.output.size), self.dtype)
        for row in range(len(states)):
            new[row : row + 1], y[row : row + 1] = self.call(states[row : row + 1], inputs[row : row + 1])
        return new, y

    def head(self, features: Array) -> Array:  # [B, V] -> [B, V]
        """The outputs that were computed with the step."""
        return features

    def settle(self, library: str) -> None:
        """Measure `exact`, and make `numerics` of the library's name and the bits of a few steps.

        Raises:
            ModelError: the same token and state do not always give the same, or rows of a batch are not the rows alone.
        """
        rng = np.random.default_rng(0)
        size = self.input.size
        tokens = (
            rng.integers(0, size, (STEPS, ROWS))
            if self.input.kind == "token"
            else rng.normal(0, 1, (STEPS, ROWS, size)).astype(np.float32)
        )
        start = np.repeat(self.initial_state()[np.newaxis], ROWS, axis=0)
        with one_thread():
            self._alone(start, tokens)  # a library may rewrite its program after the first calls
            alone = self._alone(start, tokens)
            again = self._alone(start, tokens[:, ::-1])[:, ::-1]
            together = self._together(start, tokens)
        if (apart := difference(again, alone)) > TOLERANCE:
            raise ModelError(
                f"The same token and state gave outputs that differ by {apart:.2g}: something in it is random or keeps a state "
                "of its own, and a step has to be a function of its arguments."
            )
        if (apart := difference(together, alone)) > TOLERANCE:
            raise ModelError(
                f"A row differs by {apart:.2g} between a batch and alone, so the rows of a batch are mixed up or see one "
                "another; run each row alone (batch = false)."
            )
        self.exact = not self.batch and alone.tobytes() == again.tobytes() == together.tobytes()
        self.numerics = f"{library} {hashlib.sha256(together.tobytes()).hexdigest()[:16]}"

    def _alone(self, states: Array, tokens: Array) -> Array:  # [B, S], [T, B] or [T, B, K] -> [T, B, S + V]
        """Each row through all its steps before the next one begins."""
        steps = np.empty((STEPS, ROWS, self.state_size + self.output.size), self.dtype)
        for row in range(ROWS):
            state = states[row : row + 1]
            for t in range(STEPS):
                state, y = self.call(state, tokens[t, row : row + 1])
                steps[t, row] = np.concatenate([state, y], axis=1)[0]
        return steps

    def _together(self, states: Array, tokens: Array) -> Array:  # [B, S], [T, B] or [T, B, K] -> [T, B, S + V]
        """All rows step by step, their numbers where a batch may have them: rows gathered, and not at an aligned address."""
        steps = np.empty((STEPS, ROWS, self.state_size + self.output.size), self.dtype)
        for t in range(STEPS):
            apart = np.empty(ROWS * self.state_size + 1, self.dtype)[1:].reshape(ROWS, self.state_size)
            apart[:] = states
            states, y = self.advance(apart, tokens[t])
            steps[t] = np.concatenate([states, y], axis=1)
        return steps


def difference(some: Array, others: Array) -> float:
    """The largest difference, relative where the numbers are larger than 1; NaN and infinity agree with themselves alone."""
    same = (some == others) | (np.isnan(some) & np.isnan(others))
    with np.errstate(all="ignore"):
        apart = np.where(same, 0, np.abs(some - others) / np.maximum(1, np.abs(others)))
    return float(np.nan_to_num(apart, nan=np.inf).max(initial=0))
