"""The smallest step models that are no networks."""

import numpy as np

from rnnstream.model.step import Input, Output, StepModel


class Average(StepModel):
    """a<t> = 0.875 a<t-1> + 0.125 x<t> in plain Python, and the sum and the first number of it as outputs."""

    def __init__(self) -> None:
        self.name, self.digest, self.exact, self.numerics = "average", "00" * 32, True, "IEEE 754"
        self.dtype, self.state_size, self.layers = np.dtype(np.float64), 2, ["average of 2"]
        self.input, self.output = Input("dense", 2), Output("linear", 2)

    def initial_state(self):
        return np.zeros(2)

    def advance(self, states, inputs):
        rows = zip(states.tolist(), inputs.tolist(), strict=True)
        new = np.array([[0.875 * a + 0.125 * x for a, x in zip(*row, strict=True)] for row in rows], float).reshape(-1, 2)
        return new, new

    def head(self, features):
        return np.array([[row[0] + row[1], row[0]] for row in features.tolist()], float).reshape(-1, 2)


class Last(StepModel):
    """A token model whose outputs need the token too: y<t> prefers the sum of the last two ids."""

    def __init__(self) -> None:
        self.name, self.digest, self.exact, self.numerics = "last", "11" * 32, True, "integers"
        self.dtype, self.state_size, self.layers = np.dtype(np.float32), 1, ["the last id"]
        self.input, self.output = Input("token", 4), Output("categorical", 4)

    def initial_state(self):
        return np.zeros(1, np.float32)

    def advance(self, states, inputs):
        return inputs[:, np.newaxis].astype(np.float32), (states[:, 0] + inputs)[:, np.newaxis].astype(np.float32)

    def head(self, features):
        return (np.arange(4) == features % 4).astype(np.float32)
