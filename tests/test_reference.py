"""The oracle against numbers that owe it nothing: plain loops over math.tanh and math.exp, and PyTorch."""

import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load

from rnnstream.reference import AddGate, Model, MultiplyGate, RNNLayer, Sigmoid, Softmax, Tanh

GOLDEN = Path(__file__).parent / "golden" / "torch.npz"


def sigmoid(v):
    return 1 / (1 + math.exp(-v))


def weights(model, seed=3):
    """Give the model weights that are large enough to matter, biases included; return them as plain lists."""
    rng = np.random.default_rng(seed)
    for name in ("waa", "wax", "wya", "ba", "by"):
        setattr(model, name, rng.uniform(-1.5, 1.5, getattr(model, name).shape))
    return {name: getattr(model, name).tolist() for name in ("waa", "wax", "wya", "ba", "by")}


def by_hand(w, tokens, g1=math.tanh, g2=None):
    """The states, logits and predictions of the two equations, one number at a time."""
    units, outputs = range(len(w["ba"])), range(len(w["by"]))
    a, states, logits, predictions = [0.0 for _ in units], [], [], []
    for token in tokens:
        a = [g1(sum(w["waa"][i][j] * a[j] for j in units) + w["wax"][i][token] + w["ba"][i]) for i in units]
        z = [sum(w["wya"][k][i] * a[i] for i in units) + w["by"][k] for k in outputs]
        total = sum(math.exp(v) for v in z)
        states.append(a)
        logits.append(z)
        predictions.append([g2(v) if g2 else math.exp(v) / total for v in z])
    return states, logits, predictions


def close(got, expected, rtol=1e-13):
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=1e-15)


@pytest.fixture
def model():
    return Model(4, 3)


def test_sequence_equals_the_equations_one_number_at_a_time(model):
    tokens = [2, 0, 3, 3, 1, 2]
    states, logits, predictions = by_hand(weights(model), tokens)
    layers = model.forward_propagation(tokens)
    close([layer.a for layer in layers], states)
    close([layer.z for layer in layers], logits)
    close([layer.y for layer in layers], predictions)
    assert model.predict(tokens) == [max(range(4), key=lambda k, y=y: (y[k], -k)) for y in predictions]


def test_activations_can_be_replaced():
    model = Model(4, 3, g1=Sigmoid(), g2=Sigmoid())
    states, _, predictions = by_hand(weights(model), [1, 1, 0, 3], g1=sigmoid, g2=sigmoid)
    layers = model.forward_propagation([1, 1, 0, 3])
    close([layer.a for layer in layers], states)
    close([layer.y for layer in layers], predictions)


def test_layer_keeps_every_part():
    x, prev_a, waa, wax, wya, ba, by = (
        np.array(v) for v in ([2.0, 3.0], [0.5], [[4.0]], [[1.0, -1.0]], [[2.0], [6.0]], [-0.75], [1.0, -1.0])
    )
    layer = RNNLayer(Tanh(), Sigmoid())
    layer.forward(x, prev_a, waa, wax, wya, ba, by)
    assert [layer.mul_aa.tolist(), layer.mul_ax.tolist(), layer.add.tolist()] == [[2.0], [-1.0], [0.25]]
    a = math.tanh(0.25)
    close(layer.a, [a])
    close(layer.mul_ya, [2 * a, 6 * a])
    close(layer.z, [2 * a + 1, 6 * a - 1])
    close(layer.y, [sigmoid(2 * a + 1), sigmoid(6 * a - 1)])


def test_state_is_carried_over(model):
    weights(model)
    alone, after = model.forward_propagation([2])[-1], model.forward_propagation([1, 2])[-1]
    assert np.abs(after.a - alone.a).max() > 0.1
    assert np.abs(after.y - alone.y).max() > 0.01


def test_every_sequence_begins_at_zero(model):
    weights(model)
    first = model.forward_propagation([1, 2, 3])
    again = model.forward_propagation([1, 2, 3])
    np.testing.assert_array_equal([layer.a for layer in first], [layer.a for layer in again])
    assert not first[0].mul_aa.any()


def test_empty_sequence_gives_nothing(model):
    assert model.forward_propagation([]) == []
    assert model.predict([]) == []


def test_lowest_id_wins_among_equals(model):
    for name in ("waa", "wax", "wya", "ba", "by"):
        setattr(model, name, np.zeros_like(getattr(model, name)))
    assert model.predict([3]) == [0]
    model.by = np.array([0.0, 1.0, 0.0, 1.0])
    assert model.predict([3]) == [1]


def test_numpy_ids_and_float32_weights_are_computed_in_float64(model):
    w = weights(model)
    for name, value in w.items():
        setattr(model, name, np.array(value, np.float32))
    rounded = {name: np.array(value, np.float32).astype(float).tolist() for name, value in w.items()}
    states, _, predictions = by_hand(rounded, [3, 0])
    layers = model.forward_propagation(np.array([3, 0], np.int32))
    close([layer.a for layer in layers], states)
    close([layer.y for layer in layers], predictions)


@pytest.mark.parametrize("token", [-1, 4, 1000])
def test_token_out_of_range_names_value_and_range(model, token):
    with pytest.raises(IndexError, match=rf"{token} .* 0 to 3"):
        model.forward_propagation([0, token])
    with pytest.raises(IndexError, match=rf"{token} .* 0 to 3"):
        Softmax().loss(np.zeros(4), token)
    with pytest.raises(IndexError, match=rf"{token} .* 0 to 3"):
        Softmax().diff(np.zeros(4), token)


def test_token_that_is_no_integer_is_refused(model):
    with pytest.raises(TypeError):
        model.forward_propagation([1.5])


def test_init_is_uniform_within_the_bound_of_each_matrix():
    model = Model(400, 25)
    assert model.bptt_truncate == 4
    for matrix, shape, inputs in ((model.waa, (25, 25), 25), (model.wax, (25, 400), 400), (model.wya, (400, 25), 25)):
        bound = math.sqrt(1 / inputs)
        assert matrix.shape == shape
        assert 0.95 * bound < matrix.max() <= bound
        assert -bound <= matrix.min() < -0.95 * bound
        assert abs(matrix.std() * math.sqrt(3) / bound - 1) < 0.1  # a uniform distribution's, not a normal one's
    np.testing.assert_array_equal(model.ba, np.zeros(25))
    np.testing.assert_array_equal(model.by, np.zeros(400))


def test_init_is_repeatable_by_its_seed():
    np.testing.assert_array_equal(Model(6, 5).wax, Model(6, 5).wax)
    np.testing.assert_array_equal(Model(6, 5, seed=7).wya, Model(6, 5, seed=7).wya)
    assert (Model(6, 5, seed=7).waa != Model(6, 5, seed=8).waa).all()
    assert (Model(6, 5, seed=None).waa != Model(6, 5, seed=None).waa).all()


def test_gates():
    w, x = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), np.array([10.0, 1.0])
    assert MultiplyGate().forward(w, x).tolist() == [12.0, 34.0, 56.0]
    assert AddGate().forward(x, np.array([0.5, -1.0])).tolist() == [10.5, 0.0]
    assert x.tolist() == [10.0, 1.0]


def test_activations_equal_the_math_module_and_do_not_overflow():
    values = [-30.0, -2.5, -1e-9, 0.0, 0.7, 40.0]
    close(Tanh().forward(np.array(values)), [math.tanh(v) for v in values])
    close(Sigmoid().forward(np.array(values)), [sigmoid(v) for v in values])
    assert Sigmoid().forward(np.array([-1000.0, 1000.0])).tolist() == [0.0, 1.0]


def test_softmax_of_large_logits_does_not_overflow():
    x = np.array([1000.0, 999.0, -1000.0])
    close(Softmax().predict(x), [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1)), 0.0])
    close(Softmax().forward(x), Softmax().predict(x))
    close(Softmax().loss(x, 1), math.log(1 + math.e))
    assert Softmax().loss(x, 2) == pytest.approx(2000 + math.log(1 + math.exp(-1)), rel=1e-15)  # its probability is 0.0


def test_loss_is_the_negative_logarithm_of_the_prediction():
    x = np.array([0.3, -1.2, 2.0, 0.0])
    total = sum(math.exp(v) for v in x.tolist())
    for y in range(4):
        close(Softmax().loss(x, y), -math.log(math.exp(x[y]) / total))


def test_diff_is_the_derivative_of_loss_and_leaves_its_argument_alone():
    softmax, x, h = Softmax(), np.array([0.3, -1.2, 2.0, 0.0]), 1e-5
    before = x.copy()
    for y in range(4):
        slopes = [(softmax.loss(x + h * e, y) - softmax.loss(x - h * e, y)) / (2 * h) for e in np.eye(4)]
        np.testing.assert_allclose(softmax.diff(x, y), slopes, atol=1e-9)
        assert abs(softmax.diff(x, y).sum()) < 1e-15
    np.testing.assert_array_equal(x, before)


def test_tokens_equal_pytorch():
    with np.load(GOLDEN) as golden:
        case = {key.split("/")[1]: value for key, value in golden.items() if key.startswith("rnn_tanh_1_token/")}
    w = {name: tensor.astype(float) for name, tensor in load(case["file"].tobytes()).items()}
    model = Model(6, 7)
    model.waa, model.wya = w["rnn.weight_hh_l0"], w["fc.weight"]
    model.wax = w["rnn.weight_ih_l0"] @ w["emb.weight"].T  # an embedding is a matrix on one-hot vectors
    model.ba, model.by = w["rnn.bias_ih_l0"] + w["rnn.bias_hh_l0"], w["fc.bias"]
    layers = model.forward_propagation(case["xs"])
    np.testing.assert_allclose(layers[-1].a, case["h"][0], atol=1e-6)
    np.testing.assert_allclose([layer.z for layer in layers], case["output"], atol=2e-6)
    assert model.predict(case["xs"]) == case["output"].argmax(1).tolist()
