"""What every step model has to hold, whoever wrote it; and the smallest one that is not a network."""

import copy

import numpy as np
import pytest

from rnnstream.errors import BadRequest, BadToken
from rnnstream.model.blas import one_thread
from rnnstream.model.step import Input, Output, StepModel

ROWS = 11


def check_contract(model: StepModel, xs: list) -> None:
    """Check a step model by its public names.

    Args:
        model: any.
        xs: at least 12 tokens of it, not all alike.
    """
    tokens = [model.input.token(x) for x in xs]
    names(model)
    pure(model, tokens)
    sequences(model, xs)
    batches(model, tokens)
    outputs(model, xs)
    refusals(model)


def names(model: StepModel) -> None:
    assert isinstance(model, StepModel)
    assert isinstance(model.name, str)
    assert len(bytes.fromhex(model.digest)) == 32
    assert isinstance(model.numerics, str)
    assert isinstance(model.exact, bool)
    assert isinstance(model.surprisal, bool)
    assert all(isinstance(line, str) for line in model.layers)
    assert model.dtype in (np.float32, np.float64)
    first, second = model.initial_state(), model.initial_state()
    assert first.shape == (model.state_size,)
    assert first.dtype == model.dtype
    assert np.isfinite(first).all()
    assert not np.shares_memory(first, second)


def pure(model: StepModel, tokens: list) -> None:
    """The arguments stay as they are, the same call gives the same bits, and no session is kept."""
    with one_thread():
        states = np.tile(model.initial_state(), (ROWS, 1))
        inputs = model.input.batch(tokens[:ROWS])
        kept = copy.deepcopy((states, inputs))
        new, features = model.advance(states, inputs)
        assert (states.tobytes(), inputs.tobytes()) == (kept[0].tobytes(), kept[1].tobytes())
        assert new.shape == (ROWS, model.state_size)
        assert new.dtype == model.dtype
        seen = features.tobytes()
        logits = model.head(features)
        assert logits.shape == (ROWS, model.output.size)
        assert logits.dtype == model.dtype
        assert features.tobytes() == seen
        y = model.output.g2(logits)
        again = model.advance(states, inputs)
        assert [part.tobytes() for part in again] == [new.tobytes(), seen]
        assert model.output.g2(model.head(again[1])).tobytes() == y.tobytes()
        of_state = model.features(new)
        if of_state is not None:
            assert of_state.tobytes() == seen
    a = model.initial_state()
    model.step(a, tokens[0])
    assert a.tobytes() == model.initial_state().tobytes()
    model.forward(tokens[:3], a)
    assert a.tobytes() == model.initial_state().tobytes()


def sequences(model: StepModel, xs: list) -> None:
    """Whole, in parts and one at a time are the same; order and past matter only where there is a state."""
    a, ys = model.initial_state(), []
    for x in xs:
        a, y = model.step(a, x)
        assert y.shape == (model.output.size,)
        ys.append(y)
    whole = model.forward(xs)
    assert whole.shape == (len(xs), model.output.size)
    parts = np.concatenate([model.forward(xs[:5]), model.forward(xs[5:], model.run(xs[:5]))])
    if model.exact:
        assert whole.tobytes() == np.array(ys).tobytes() == parts.tobytes()
        assert model.run(xs).tobytes() == a.tobytes()
    else:
        np.testing.assert_allclose(whole, ys, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(parts, ys, rtol=1e-4, atol=1e-5)
    assert model.forward([]).shape == (0, model.output.size)
    assert model.forward([]).dtype == model.dtype
    assert model.run([], a).tobytes() == a.tobytes()
    if model.state_size:
        assert model.run(xs[:1]).tobytes() != model.run(xs).tobytes()


def batches(model: StepModel, tokens: list) -> None:
    """A row of a batch is that row alone; a batch of none is none."""
    with one_thread():
        states = np.array([model.run(tokens[:i]) for i in range(ROWS)], model.dtype).reshape(ROWS, model.state_size)
        inputs = model.input.batch(tokens[1 : ROWS + 1])
        new, features = model.advance(states, inputs)
        logits = model.head(features)
        for i in np.random.default_rng(0).permutation(ROWS):
            mine, own = model.advance(states[i : i + 1], inputs[i : i + 1])
            pairs = [(mine[0], new[i]), (own[0], features[i]), (model.head(own)[0], logits[i])]
            for alone, together in pairs:
                if model.exact:
                    assert alone.tobytes() == together.tobytes()
                np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-5)
        none, nothing = model.advance(states[:0], inputs[:0])
        assert none.shape == (0, model.state_size)
        assert model.head(nothing).shape == (0, model.output.size)


def outputs(model: StepModel, xs: list) -> None:
    y = model.forward(xs)
    assert y.dtype == model.dtype
    if model.output.kind == "categorical":
        np.testing.assert_allclose(y.sum(axis=1), 1, rtol=1e-5)
    if model.output.kind != "linear":
        assert (y >= 0).all()
        assert (y <= 1).all()
    assert len(np.unique(y, axis=0)) > 1
    if model.surprisal:
        assert model.input.size == model.output.size
    if model.output.vocabulary is not None:
        assert len(model.output.vocabulary) == model.output.size


def refusals(model: StepModel) -> None:
    a = model.initial_state()
    for x in (None, True, object()):
        with pytest.raises(BadRequest):
            model.step(a, x)
    size = model.input.size
    wrong = [-1, size] if model.input.kind == "token" else [[0.0] * (size + 1), b"", [float("nan")] * size]
    for x in wrong:
        with pytest.raises(BadToken):
            model.forward([x])


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
