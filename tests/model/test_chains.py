"""Scale, layer normalisation and residuals, and chains of every kind, against whole sequences by hand."""

import math

import numpy as np
import pytest

from rnnstream.model.network import Network
from rnnstream.testing import check_step_model

from .nets import (
    activation,
    conv,
    dense,
    dense_spec,
    embedding,
    gru,
    layernorm,
    lstm,
    onehot,
    pool,
    residual,
    rnn,
    scale,
    token_spec,
    tokens,
    weights,
)
from .test_activations import by_hand
from .test_layers import TOLERANCE, apart, dense_by_hand, gru_by_hand, lstm_by_hand, one_hot, plus, rnn_by_hand
from .test_windows import conv_by_hand, pool_by_hand

STEPS = 14


def scaled(w, number, xs):
    """y = s * x + b."""
    return [[s * v + b for s, v, b in zip(w[f"s{number}"], x, w[f"b{number}"], strict=True)] for x in xs]


def normed(w, number, epsilon, xs):
    """(x - m) / sqrt(v + epsilon), scaled."""
    found = []
    for x in xs:
        m = math.fsum(x) / len(x)
        v = math.fsum((number - m) ** 2 for number in x) / len(x)
        found.append([(number - m) / math.sqrt(v + epsilon) for number in x])
    return scaled(w, number, found)


def mapped(function, xs):
    return [by_hand(function, x) for x in xs]


def densed(w, number, xs):
    names = (f"w{number}", f"b{number}") if number else ("wya", "by")
    return [dense_by_hand(w, *names, x) for x in xs]


def convolved(w, number, dilation, xs):
    return conv_by_hand(w[f"w{number}"], w[f"b{number}"], dilation, xs)


def cells(step, size, outputs, xs):
    """A recurrent layer over a sequence: step(state, x) -> state, which begins with what it gives out."""
    state, found = [0.0] * size, []
    for x in xs:
        state = step(state, x)
        found.append(state[:outputs])
    return found


def rnns(w, number, size, xs):
    return cells(lambda a, x: rnn_by_hand(w, number, "tanh", a, x), size, size, xs)


def grus(w, number, size, xs, **keys):
    return cells(lambda a, x: gru_by_hand(w, number, "after", a, x, **keys), size, size, xs)


def lstms(w, number, size, xs):
    return cells(lambda a, x: lstm_by_hand(w, number, a, x), 2 * size, size, xs)


def added(xs, others):
    return [plus(x, other) for x, other in zip(xs, others, strict=True)]


def _no_memory(w, xs):
    normal = normed(w, 1, 1e-5, xs)
    return added(added(mapped("softplus", normal), normal), xs)


def _of_the_input(w, xs):
    return densed(w, 0, added(rnns(w, "", 3, xs), xs))


def _of_a_layer_in_front(w, ids):
    xs = [w["e1"][x] for x in ids]
    return mapped("softmax", densed(w, 0, added(grus(w, 2, 4, xs), xs)))


def _of_the_recurrent_layer(w, ids):
    a = lstms(w, 2, 4, [w["e1"][x] for x in ids])
    return mapped("softmax", densed(w, 0, added(mapped("relu", densed(w, 3, a)), a)))


def _within_the_head(w, xs):
    first = mapped("tanh", densed(w, 2, rnns(w, "", 3, xs)))
    second = added(densed(w, 4, first), first)
    return added(added(scaled(w, 6, second), second), first)


def _between_recurrent_layers(w, xs):
    first = rnns(w, 1, 3, xs)
    second = added(rnns(w, 2, 3, first), first)
    return lstms(w, 5, 2, added(second, xs))


def _twice_across(w, xs):
    """A residual that reaches in front of another one that already does."""
    normal = normed(w, 1, 0.5, xs)
    first = added(densed(w, 3, rnns(w, "", 3, normal)), normal)
    return densed(w, 0, added(mapped("elu", first), xs))


def _windows(w, xs):
    pooled = pool_by_hand("max", 2, scaled(w, 2, convolved(w, 1, 2, xs)))
    return mapped("unit_length", densed(w, 5, grus(w, 4, 4, pooled, activation="softsign", gate="hard_sigmoid")))


def _conv_last(w, ids):
    a = rnns(w, "", 4, [one_hot(6, x) for x in ids])
    return mapped("softmax", densed(w, 0, convolved(w, 3, 1, a)))


def _embedding_conv_lstm(w, ids):
    seen = mapped("relu", convolved(w, 2, 1, [w["e1"][x] for x in ids]))
    return mapped("softmax", densed(w, 0, lstms(w, 4, 4, seen)))


# (specification, by hand, whether the features are a function of the state)
CASES = {
    "scale": (dense_spec(scale(), size=5), lambda w, xs: scaled(w, 1, xs), False),
    "layernorm": (dense_spec(layernorm(), size=5), lambda w, xs: normed(w, 1, 1e-5, xs), False),
    "layernorm, large epsilon": (dense_spec(layernorm(epsilon=0.5), size=5), lambda w, xs: normed(w, 1, 0.5, xs), False),
    "layernorm of one": (dense_spec(layernorm(), size=1), lambda w, xs: normed(w, 1, 1e-5, xs), False),
    "the input twice": (dense_spec(residual(0), size=3), lambda w, xs: added(xs, xs), False),
    "no memory": (dense_spec(layernorm(), activation("softplus"), residual(1), residual(0), size=4), _no_memory, False),
    "residual of the input": (dense_spec(rnn(3), residual(0), dense(2), size=3), _of_the_input, False),
    "residual of a layer in front": (
        token_spec(embedding(4), gru(4), residual(1), dense(6), size=6),
        _of_a_layer_in_front,
        False,
    ),
    "residual of the recurrent layer": (
        token_spec(embedding(5), lstm(4), dense(4), activation("relu"), residual(2), dense(6), size=6),
        _of_the_recurrent_layer,
        True,
    ),
    "residuals within the head": (
        dense_spec(rnn(3), dense(4), activation("tanh"), dense(4), residual(3), scale(), residual(5), residual(3), size=5),
        _within_the_head,
        True,
    ),
    "residuals between recurrent layers": (
        dense_spec(rnn(3), rnn(3), residual(1), residual(0), lstm(2), size=3),
        _between_recurrent_layers,
        True,
    ),
    "residuals across one another": (
        dense_spec(layernorm(epsilon=0.5), rnn(3), dense(3), residual(1), activation("elu"), residual(0), dense(2), size=3),
        _twice_across,
        False,
    ),
    "conv, scale, pool, gru, dense, unit length": (
        dense_spec(
            conv(5, 3, 2),
            scale(),
            pool("max", 2),
            gru(4, activation="softsign", gate="hard_sigmoid"),
            dense(3),
            activation("unit_length"),
            size=3,
        ),
        _windows,
        True,
    ),
    "conv as the last layer with memory": (token_spec(onehot(), rnn(4), conv(3, 3), dense(6), size=6), _conv_last, False),
    "embedding, conv, lstm": (
        token_spec(embedding(3), conv(5, 2), activation("relu"), lstm(4), dense(6), size=6),
        _embedding_conv_lstm,
        True,
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_a_chain_one_number_at_a_time(name, dtype):
    spec, hand, _ = CASES[name]
    spec = spec | {"dtype": dtype}
    w = weights(spec, seed=4)
    model = Network(spec, w)
    assert model.exact
    given = tokens(model, STEPS, seed=9)
    a, ys = model.initial_state(), []
    for x in given:
        a, y = model.step(a, x)
        assert y.dtype == dtype
        ys.append(y)
    lists = {name: tensor.tolist() for name, tensor in w.items()}
    expected = np.array(hand(lists, given if model.input.kind == "token" else [x.tolist() for x in given]))
    assert expected.shape == (STEPS, model.output.size)
    assert apart(np.array(ys), expected).max() < TOLERANCE[dtype]
    assert model.forward(given).tobytes() == np.array(ys).tobytes()


@pytest.mark.parametrize("name", [name for name in CASES if name != "layernorm of one"])  # which gives the same for any token
def test_the_contract_of_step_models_holds(name):
    spec = CASES[name][0]
    check_step_model(Network(spec, weights(spec)), make=lambda: Network(spec, weights(spec)))


@pytest.mark.parametrize("name", CASES)
def test_features_are_of_the_state_or_there_are_none(name):
    spec, _, of_state = CASES[name]
    model = Network(spec, weights(spec, seed=4), measure=False)
    states = np.tile(model.run(tokens(model, 5)), (3, 1))
    new, features = model.advance(states, model.input.batch(tokens(model, 3, seed=1)))
    found = model.features(new)
    assert (found is not None) == of_state
    if found is not None:
        assert found.tobytes() == features.tobytes()
    assert model.surprisal == (of_state and model.input.kind == "token")


def test_what_is_added_is_where_the_recurrence_ends():
    """A residual to the recurrent layer itself is left to the head, which can be skipped; one beyond it cannot be."""
    near = Network(spec := dense_spec(rnn(3), dense(3), residual(1), size=3), weights(spec), measure=False)
    far = Network(spec := dense_spec(rnn(3), dense(3), residual(0), size=3), weights(spec), measure=False)
    x = near.input.batch(tokens(near, 1))
    a = near.initial_state()[np.newaxis]
    assert near.advance(a, x)[1].tobytes() == near.advance(a, x)[0].tobytes()
    assert far.head(far.advance(a, x)[1]).tobytes() == far.advance(a, x)[1].tobytes()


def test_a_constant_row_is_normed_to_its_offset():
    """Nothing to divide by is no NaN: epsilon stands there, the smallest one too."""
    for dtype in ("float32", "float64"):
        spec = dense_spec(layernorm(epsilon=1e-30), size=4, dtype=dtype)
        w = weights(spec)
        assert Network(spec, w, measure=False).forward([[0.25] * 4]).tolist() == [w["b1"].tolist()]


def test_the_lines_of_layers_without_a_size():
    spec = dense_spec(scale(), layernorm(), residual(0), size=3)
    assert Network(spec, weights(spec), measure=False).layers == [
        "scale 3 -> 3",
        "layernorm 3 -> 3 (epsilon 1e-05)",
        "residual 3 -> 3 (of 0)",
        "linear head",
    ]
