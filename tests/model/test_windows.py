"""Convolution and pooling against whole sequences with zeros in front, one number at a time."""

import math

import numpy as np
import pytest

from rnnstream.model.network import Network
from rnnstream.model.spec import parse

from .nets import activation, conv, dense, dense_spec, pool, rnn, tokens, weights
from .test_layers import TOLERANCE

STEPS, K, N = 17, 3, 4


def conv_by_hand(w, b, dilation, xs):
    """y<t>[n] of the docstring's sum, over a sequence that begins behind zeros."""
    kernel, k = len(w[0]), len(xs[0])
    padded = [[0.0] * k] * ((kernel - 1) * dilation) + xs
    return [
        [
            math.fsum([b[n], *(w[n][j][i] * padded[t + j * dilation][i] for j in range(kernel) for i in range(k))])
            for n in range(len(w))
        ]
        for t in range(len(xs))
    ]


def pool_by_hand(function, window, xs):
    """The mean or largest of each feature over the last tokens."""
    k = len(xs[0])
    padded = [[0.0] * k] * (window - 1) + xs
    over = max if function == "max" else lambda numbers: math.fsum(numbers) / window
    return [[over([padded[t + j][i] for j in range(window)]) for i in range(k)] for t in range(len(xs))]


def remembered(xs, count):
    """The last tokens, the oldest first, as one list."""
    padded = [[0.0] * len(xs[0])] * count + xs
    return [number for x in padded[len(xs) :] for number in x]


def streamed(model, xs):
    """The outputs and the states after each token, as one vector each."""
    a, states, ys = model.initial_state(), [], []
    for x in xs:
        a, y = model.step(a, x)
        assert a.dtype == y.dtype == model.dtype
        states.append(a)
        ys.append(y)
    return states, ys


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_conv_is_the_convolution_of_the_whole_sequence(kernel, dilation, dtype):
    spec = dense_spec(conv(N, kernel, dilation), size=K, dtype=dtype)
    w = weights(spec, seed=3)
    assert {name: tensor.shape for name, tensor in w.items()} == {"w1": (N, kernel, K), "b1": (N,)}
    model = Network(spec, w, measure=False)
    assert model.state_size == (kernel - 1) * dilation * K
    given = tokens(model, STEPS)
    xs = [x.tolist() for x in given]
    states, ys = streamed(model, given)
    assert np.abs(np.array(ys) - conv_by_hand(w["w1"].tolist(), w["b1"].tolist(), dilation, xs)).max() < TOLERANCE[dtype]
    for t, a in enumerate(states, 1):
        assert a.tolist() == remembered(xs[:t], (kernel - 1) * dilation)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("function", ["mean", "max"])
def test_pool_is_over_the_last_tokens(function, window, dtype):
    model = Network(dense_spec(pool(function, window), size=K, dtype=dtype), {}, measure=False)
    assert model.state_size == (window - 1) * K
    given = tokens(model, STEPS)
    xs = [x.tolist() for x in given]
    states, ys = streamed(model, given)
    assert np.abs(np.array(ys) - pool_by_hand(function, window, xs)).max() < TOLERANCE[dtype]
    for t, a in enumerate(states, 1):
        assert a.tolist() == remembered(xs[:t], window - 1)


def test_the_zeros_in_front_count():
    """Written out: the first tokens of a pool meet the zeros of the start, in the mean and as the largest."""
    mean = Network(dense_spec(pool("mean", 4), size=1), {}, measure=False)
    assert mean.forward([[8], [4], [-4], [4], [0]])[:, 0].tolist() == [2, 3, 2, 3, 1]
    largest = Network(dense_spec(pool("max", 3), size=1), {}, measure=False)
    assert largest.forward([[-5], [-7], [-6], [-8], [2]])[:, 0].tolist() == [0, 0, -5, -6, 2]


def test_a_learned_start_is_the_window_of_the_start():
    spec = dense_spec(pool("max", 3), size=2, initial_state=True)
    model = Network(spec, {"a0": np.array([-1, -2, -9, -9], np.float32)}, measure=False)
    assert model.forward([[-8, -8], [-8, -8], [-7, -7]]).tolist() == [[-1, -2], [-8, -8], [-7, -7]]


def test_a_kernel_of_one_token_is_a_dense_layer():
    one, other = (dense_spec(layer, activation("tanh"), size=K) for layer in (conv(N, 1, 5), dense(N)))
    w = weights(one)
    first, second = Network(one, w), Network(other, {"w1": w["w1"][:, 0], "b1": w["b1"]})
    assert first.state_size == 0
    given = tokens(first, 7)
    assert first.forward(given).tobytes() == second.forward(given).tobytes()


@pytest.mark.parametrize("layers", [[rnn(3), conv(3, 2)], [rnn(3), pool("mean", 2)], [conv(3, 2), activation("tanh")]])
def test_behind_a_window_the_outputs_need_the_token_too(layers):
    model = Network(spec := dense_spec(*layers, size=K), weights(spec))
    assert model.features(model.initial_state()[np.newaxis]) is None
    assert not model.surprisal


def test_the_lines_say_the_numbers():
    spec = dense_spec(conv(5, 3, 2), pool("max", 4), size=2)
    assert Network(spec, weights(spec)).layers == [
        "conv 2 -> 5 (kernel 3, dilation 2)",
        "pool 5 -> 5 (max, window 4)",
        "linear head",
    ]
    assert [layer.state_size for layer in parse(spec).layers] == [8, 15]
