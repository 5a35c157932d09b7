"""A row has the same bits however the rows lie in memory, alone and among others: each layer by itself."""

import numpy as np
import pytest

from rnnstream.model.blas import one_thread
from rnnstream.model.kinds import LAYERS
from rnnstream.model.network import BUILDERS
from rnnstream.model.spec import parse

from .nets import (
    activation,
    conv,
    dense,
    dense_spec,
    gru,
    layernorm,
    lstm,
    network,
    pool,
    rnn,
    scale,
    tokens,
    weights,
)

ROWS = 29
KINDS = {
    "dense": lambda k: dense(13),
    "softmax": lambda k: activation("softmax"),
    "unit length": lambda k: activation("unit_length"),
    "softplus": lambda k: activation("softplus"),
    "identity": lambda k: activation("identity"),
    "scale": lambda k: scale(),
    "layernorm": lambda k: layernorm(),
    "conv": lambda k: conv(11, 3),
    "conv, dilated": lambda k: conv(11, 3, 2),
    "conv of one token": lambda k: conv(11, 1),
    "max": lambda k: pool("max", 3),
    "max of two": lambda k: pool("max", 2),
    "mean": lambda k: pool("mean", 4),
    "mean of one token": lambda k: pool("mean", 1),
    "rnn": lambda k: rnn(9, "softmax"),
    "gru after": lambda k: gru(9, activation="unit_length", gate="softplus"),
    "gru before": lambda k: gru(9, "before", activation="elu", gate="exponential"),
    "lstm": lambda k: lstm(9, activation="softmax", gate="silu"),
    "lstm of one": lambda k: lstm(1, activation="elu", gate="silu"),
    "lstm, identity": lambda k: lstm(9, activation="identity", gate="identity"),
}


def columns(array):
    """The same rows as a part of wider ones."""
    wide = np.full((len(array), 2 * array.shape[1] + 3), np.nan, array.dtype)
    wide[:, 2 : 2 + array.shape[1]] = array
    return wide[:, 2 : 2 + array.shape[1]]


def every_other(array):
    """The same rows with others between them."""
    more = np.full((2 * len(array), array.shape[1]), np.nan, array.dtype)
    more[::2] = array
    return more[::2]


LAYOUTS = {
    "columns of wider rows": columns,
    "every other row": every_other,
    "column after column": np.asfortranarray,
    "backwards": lambda array: array[::-1].copy()[::-1],
}


def built(entry, k, dtype):
    """A layer by itself, and random rows for it; some zeros are negative ones."""
    spec = dense_spec(entry, size=k, dtype=dtype)
    w = weights(spec, seed=1)
    (layer,) = parse(spec).layers
    with one_thread():
        step = BUILDERS[layer.kind](layer, {name: w[file_name] for name, file_name in layer.tensors.items()}).step
    rng = np.random.default_rng(k)
    arrays = [rng.uniform(-2, 2, (ROWS, size)).astype(dtype) for size in (layer.state_size, k)]
    for array in arrays:
        array[rng.random(array.shape) < 0.1] = 0.0
        array[rng.random(array.shape) < 0.1] = -0.0
    return step, *arrays


def test_each_kind_is_there():
    """Of ids there is no layout, and the network itself adds up residuals."""
    assert {make(1)["kind"] for make in KINDS.values()} == set(LAYERS) - {"onehot", "embedding", "residual"}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", KINDS)
def test_the_layout_is_no_part_of_the_bits(name, dtype):
    for k in (1, 2, 8, 17, 300):
        step, state, x = built(KINDS[name](k), k, dtype)
        kept = state.tobytes(), x.tobytes()
        with one_thread():
            expected = [part.tobytes() for part in step(state, x)]
            for layout, turned in LAYOUTS.items():
                found = step(turned(state), turned(x))
                assert [part.tobytes() for part in found] == expected, (k, layout)
            for row in range(ROWS):
                alone = step(state[row : row + 1], x[row : row + 1])
                together = step(state, x)
                assert [part.tobytes() for part in alone] == [part[row].tobytes() for part in together], k
        assert (state.tobytes(), x.tobytes()) == kept


@pytest.mark.parametrize("layers", [[conv(60, 2)], [pool("max", 2)], [scale(), layernorm(), lstm(5)], [layernorm(), dense(3)]])
def test_a_network_takes_rows_of_any_layout(layers):
    model = network(dense_spec(*layers, size=6, head="categorical"))
    inputs = model.input.batch(tokens(model, ROWS))
    states = np.random.default_rng(0).uniform(-1, 1, (ROWS, model.state_size)).astype(np.float32)
    with one_thread():
        new, features = model.advance(states, inputs)
        logits = model.head(features)
        y = model.output.g2(logits)
        for layout, turned in LAYOUTS.items():
            found, other = model.advance(turned(states), turned(inputs))
            assert (found.tobytes(), other.tobytes()) == (new.tobytes(), features.tobytes()), layout
            assert model.head(turned(features)).tobytes() == logits.tobytes(), layout
            assert model.output.g2(turned(logits)).tobytes() == y.tobytes(), layout
