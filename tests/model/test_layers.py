"""The cells against the equations of their docstrings, one number at a time; the tensors' names are written out."""

import math

import numpy as np
import pytest

from rnnstream.model.network import Network

from .nets import activation, dense, dense_spec, embedding, gru, lstm, onehot, rnn, token_spec, tokens, weights
from .test_activations import BY_HAND, OF_ROWS, logistic, softmax
from .test_activations import by_hand as g

STEPS = 12
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


def times(w, x):
    """Column by column: w x."""
    return [math.fsum(row[j] * x[j] for j in range(len(x))) for row in w]


def plus(*vectors):
    return [math.fsum(numbers) for numbers in zip(*vectors, strict=True)]


def one_hot(size, x):
    return [1.0 if i == x else 0.0 for i in range(size)]


def rnn_by_hand(w, number, name, a, x):
    return g(name, plus(times(w[f"waa{number}"], a), times(w[f"wax{number}"], x), w[f"ba{number}"]))


def gru_by_hand(w, number, reset, a, x, activation="tanh", gate="sigmoid"):
    waa, wax, ba = w[f"waa{number}"], w[f"wax{number}"], w[f"ba{number}"]
    h = len(a)
    r, z, n = slice(0, h), slice(h, 2 * h), slice(2 * h, 3 * h)
    reset_gate = g(gate, plus(times(waa[r], a), times(wax[r], x), ba[r]))
    update = g(gate, plus(times(waa[z], a), times(wax[z], x), ba[z]))
    if reset == "after":
        past = [reset_gate[i] * v for i, v in enumerate(plus(times(waa[n], a), w[f"bh{number}"]))]
    else:
        past = times(waa[n], [reset_gate[i] * a[i] for i in range(h)])
    candidate = g(activation, plus(past, times(wax[n], x), ba[n]))
    return [(1 - update[i]) * candidate[i] + update[i] * a[i] for i in range(h)]


def lstm_by_hand(w, number, state, x, activation="tanh", gate="sigmoid"):
    waa, wax, ba = w[f"waa{number}"], w[f"wax{number}"], w[f"ba{number}"]
    h = len(state) // 2
    a, c = state[:h], state[h:]
    s = plus(times(waa, a), times(wax, x), ba)
    i, f, o = (g(gate, s[k * h : (k + 1) * h]) for k in (0, 1, 3))
    new = g(activation, s[2 * h : 3 * h])
    c = [f[k] * c[k] + i[k] * new[k] for k in range(h)]
    return [o[k] * v for k, v in enumerate(g(activation, c))] + c


def dense_by_hand(w, matrix, bias, x):
    return plus(times(w[matrix], x), w[bias])


def apart(got, expected):
    """Differences, relative where the numbers are larger than 1 (a state that nothing bounds grows)."""
    return np.abs(got - expected) / np.maximum(1, np.abs(expected))


class Case:
    """A network and the same thing by hand: `hand(w, state, x)` gives the new state and y<t>."""

    def __init__(self, spec, names, hand, scale=1.0):
        self.spec, self.names, self.hand, self.scale = spec, names, hand, scale

    def weights(self, dtype):
        return weights(self.spec | {"dtype": dtype}, seed=5, scale=self.scale)


def _rnn_case(name):
    def hand(w, a, x):
        a = rnn_by_hand(w, "", name, a, x)
        return a, a

    return Case(dense_spec(rnn(4, name), size=5), {"waa", "wax", "ba"}, hand, 0.3 if name == "exponential" else 1)


def _gru_case(reset, **keys):
    def hand(w, a, x):
        a = gru_by_hand(w, 1, reset, a, x, **keys)
        return a, a

    names = {"waa1", "wax1", "ba1"} | ({"bh1"} if reset == "after" else set())
    return Case(dense_spec(gru(4, reset, **keys), size=5), names, hand, 0.2 if keys else 1)


def _lstm_case(**keys):
    def hand(w, state, x):
        state = lstm_by_hand(w, 1, state, x, **keys)
        return state, state[:4]

    return Case(dense_spec(lstm(4, **keys), size=5), {"waa1", "wax1", "ba1"}, hand, 0.2 if keys else 1)


# Each function once as g1 and, where it can be one, once as the gates'. Weights are small, for not all of them are bounded.
PAIRS = list(zip(sorted({*BY_HAND} - {"exponential"}), sorted({*BY_HAND} - {"exponential"}, reverse=True), strict=True))
PAIRS += [("softmax", "sigmoid"), ("unit_length", "hard_sigmoid"), ("exponential", "hard_sigmoid"), ("tanh", "exponential")]


def _onehot_rnn(w, a, x):
    a = rnn_by_hand(w, "", "tanh", a, one_hot(6, x))
    return a, softmax(dense_by_hand(w, "wya", "by", a))


def _embedding_lstm(w, state, x):
    state = lstm_by_hand(w, 2, state, w["e1"][x])
    return state, softmax(dense_by_hand(w, "wya", "by", state[:4]))


def _onehot_gru(w, a, x):
    a = gru_by_hand(w, 2, "before", a, one_hot(6, x))
    return a, a


def _onehot_lstm(w, state, x):
    state = lstm_by_hand(w, 2, state, one_hot(6, x))
    return state, state[:4]


def _onehot_dense(w, state, x):
    return [], softmax(dense_by_hand(w, "wya", "by", one_hot(6, x)))


def _activations_around(w, a, x):
    x = dense_by_hand(w, "w2", "b2", g("tanh", x))
    a = rnn_by_hand(w, "", "sigmoid", a, x)
    y = dense_by_hand(w, "w5", "b5", g("relu", a))
    return a, [logistic(v) for v in dense_by_hand(w, "wya", "by", g("hard_sigmoid", y))]


def _stack(w, state, x):
    first = rnn_by_hand(w, 2, "tanh", state[:4], w["e1"][x])
    second = lstm_by_hand(w, 3, state[4:10], first)
    third = gru_by_hand(w, 5, "after", state[10:], g("relu", second[:3]))
    return first + second + third, softmax(dense_by_hand(w, "wya", "by", third))


CASES = {
    **{f"rnn {name}": _rnn_case(name) for name in (*BY_HAND, *OF_ROWS)},
    **{f"gru {reset}": _gru_case(reset) for reset in ("after", "before")},
    **{f"gru after {g1} {gate}": _gru_case("after", activation=g1, gate=gate) for g1, gate in PAIRS},
    **{f"gru before {g1} {gate}": _gru_case("before", activation=g1, gate=gate) for g1, gate in PAIRS},
    "lstm": _lstm_case(),
    **{f"lstm {g1} {gate}": _lstm_case(activation=g1, gate=gate) for g1, gate in PAIRS},
    "gru, another gate alone": _gru_case("after", gate="hard_sigmoid"),
    "lstm, another activation alone": _lstm_case(activation="relu"),
    "onehot rnn dense": Case(token_spec(onehot(), rnn(4), dense(6), size=6), {"waa", "wax", "ba", "wya", "by"}, _onehot_rnn),
    "embedding lstm dense": Case(
        token_spec(embedding(3), lstm(4), dense(7), size=6), {"e1", "waa2", "wax2", "ba2", "wya", "by"}, _embedding_lstm
    ),
    "onehot gru": Case(token_spec(onehot(), gru(4, "before"), size=6, head="linear"), {"waa2", "wax2", "ba2"}, _onehot_gru),
    "onehot lstm": Case(token_spec(onehot(), lstm(4), size=6, head="linear"), {"waa2", "wax2", "ba2"}, _onehot_lstm),
    "onehot dense": Case(token_spec(onehot(), dense(6), size=6), {"wya", "by"}, _onehot_dense),
    "activations, denses around one rnn": Case(
        dense_spec(
            activation("tanh"),
            dense(3),
            rnn(4, "sigmoid"),
            activation("relu"),
            dense(3),
            activation("hard_sigmoid"),
            dense(2),
            size=5,
            head="bernoulli",
        ),
        {"w2", "b2", "waa", "wax", "ba", "w5", "b5", "wya", "by"},
        _activations_around,
    ),
    "stack": Case(
        token_spec(embedding(5), rnn(4), lstm(3), activation("relu"), gru(2), dense(6), size=6),
        {"e1", "waa2", "wax2", "ba2", "waa3", "wax3", "ba3", "waa5", "wax5", "ba5", "bh5", "wya", "by"},
        _stack,
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_the_equations_one_number_at_a_time(name, dtype):
    case = CASES[name]
    w = case.weights(dtype)
    assert set(w) == case.names
    model = Network(case.spec | {"dtype": dtype}, w, measure=False)
    lists = {key: tensor.tolist() for key, tensor in w.items()}
    a = model.initial_state()
    state, worst = [0.0] * model.state_size, 0.0
    for x in tokens(model, STEPS, seed=6):
        a, y = model.step(a, x)
        assert a.dtype == y.dtype == dtype
        state, expected = case.hand(lists, state, x if isinstance(x, int) else x.tolist())
        assert a.shape == (len(state),)
        assert y.shape == (len(expected),)
        worst = np.max([worst, *apart(a, state), *apart(y, expected)])  # NaN stays NaN
    assert worst < TOLERANCE[dtype]


def test_the_state_matters():
    """The comparison above could not fail on cells that forget: the states must differ from those of a fresh start."""
    for case in CASES.values():
        model = Network(case.spec, case.weights("float32"), measure=False)
        *before, last = tokens(model, STEPS, seed=6)
        if model.state_size:
            assert np.abs(model.run([*before, last]) - model.run([last])).max() > 1e-3
