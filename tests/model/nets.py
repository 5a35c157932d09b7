"""Networks for the tests of the model package: specifications, random weights, random tokens."""

import numpy as np

from rnnstream.model.network import Network
from rnnstream.model.spec import parse

HEAD = {"kind": "dense"}


def token_spec(*layers, size, head="categorical", **keys):
    """A specification over token ids."""
    return {"format": 1, "input": {"kind": "token", "size": size}, "layers": list(layers), "head": head, **keys}


def dense_spec(*layers, size, head="linear", **keys):
    """A specification over vectors."""
    return {"format": 1, "input": {"kind": "dense", "size": size}, "layers": list(layers), "head": head, **keys}


def onehot():
    return {"kind": "onehot"}


def embedding(size):
    return {"kind": "embedding", "size": size}


def dense(size):
    return {"kind": "dense", "size": size}


def activation(function):
    return {"kind": "activation", "function": function}


def rnn(size, activation="tanh"):
    return {"kind": "rnn", "size": size, "activation": activation}


def gru(size, reset="after", **keys):
    return {"kind": "gru", "size": size, "reset": reset, **keys}


def lstm(size, **keys):
    return {"kind": "lstm", "size": size, **keys}


def scale():
    return {"kind": "scale"}


def layernorm(**keys):
    return {"kind": "layernorm", **keys}


def residual(of):
    return {"kind": "residual", "of": of}


def conv(size, kernel, dilation=1):
    return {"kind": "conv", "size": size, "kernel": kernel, "dilation": dilation}


def pool(function, window):
    return {"kind": "pool", "function": function, "window": window}


# One of each kind of network, with sizes that are no multiples of anything.
VARIANTS = {
    "vanilla": token_spec(onehot(), rnn(37), dense(29), size=29),
    "vanilla relu, no dense": token_spec(onehot(), rnn(21, "relu"), size=21),
    "gru after": token_spec(embedding(19), gru(33), dense(41), size=41),
    "gru before": token_spec(onehot(), gru(31, "before"), dense(23), size=23),
    "lstm": token_spec(embedding(13), lstm(35), dense(27), size=27),
    "dense rnn": dense_spec(rnn(45, "hard_sigmoid"), dense(3), size=11),
    "dense gru": dense_spec(dense(17), activation("sigmoid"), gru(26, "before"), dense(5), size=9, head="bernoulli"),
    "dense lstm, no dense": dense_spec(lstm(43), size=6),
    "stack": token_spec(
        embedding(18), rnn(22), lstm(25), activation("relu"), gru(24), dense(20), activation("tanh"), dense(30), size=30
    ),
    "learned start": token_spec(embedding(8), lstm(12), gru(11), dense(7), size=7, initial_state=True),
    "windows": dense_spec(
        conv(17, 3, 2),
        scale(),
        activation("selu"),
        pool("max", 3),
        gru(19, activation="softsign", gate="hard_sigmoid_fifth"),
        conv(15, 2),
        pool("mean", 2),
        dense(13),
        activation("unit_length"),
        size=11,
        initial_state=True,
    ),
    "residuals": token_spec(
        embedding(21),
        layernorm(),
        conv(21, 3),
        residual(1),
        lstm(21, activation="hard_tanh", gate="hard_sigmoid"),
        residual(2),
        scale(),
        residual(6),
        layernorm(epsilon=0.001),
        dense(27),
        activation("silu"),
        dense(21),
        residual(9),
        dense(25),
        size=25,
    ),
    "no memory, tokens": token_spec(onehot(), dense(14), activation("tanh"), dense(15), size=15),
    "no memory, dense": dense_spec(activation("tanh"), dense(14), size=10),
}


def weights(spec, seed=0, scale=1.0):
    """Random tensors of full mantissa for a specification, uniform in +-scale."""
    spec = parse(spec)
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(-scale, scale, shape).astype(spec.dtype) for name, shape in spec.shapes.items()}


def network(spec, seed=0, scale=1.0):
    """A network with such weights."""
    return Network(spec, weights(spec, seed, scale))


def tokens(model, count, seed=0):
    """Random tokens, checked, as a list."""
    rng = np.random.default_rng(seed)
    size = model.input.size
    given = rng.integers(0, size, count).tolist() if model.input.kind == "token" else rng.normal(0, 1, (count, size)).tolist()
    return [model.input.token(x) for x in given]
