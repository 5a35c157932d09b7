"""The network as an object: its tensors are held against the specification, copied, and named by the digest."""

import hashlib

import numpy as np
import pytest

from rnnstream.errors import ModelError
from rnnstream.model import step
from rnnstream.model.blas import one_thread
from rnnstream.model.network import Network, digest, measure_step, random_network
from rnnstream.model.spec import parse

from .nets import (
    VARIANTS,
    activation,
    dense,
    dense_spec,
    embedding,
    gru,
    lstm,
    network,
    onehot,
    rnn,
    token_spec,
    tokens,
    weights,
)
from .test_tiles import FAULTS, broken

SPEC = token_spec(onehot(), rnn(4), dense(3), size=3)


def test_missing():
    w = weights(SPEC)
    del w["waa"]
    with pytest.raises(ModelError, match=r"^The tensor waa \[4, 4\] is missing\.$"):
        Network(SPEC, w)


def test_unused():
    with pytest.raises(ModelError, match=r"^The tensor waa2 is not asked for; these are: ba, by, waa, wax, wya\.$"):
        Network(SPEC, weights(SPEC) | {"waa2": np.zeros((4, 4), np.float32)})


@pytest.mark.parametrize("shape", [(3, 4), (12,), (4, 3, 1), (4, 4), ()])
def test_misshaped(shape):
    w = weights(SPEC) | {"wax": np.zeros(shape, np.float32)}
    with pytest.raises(ModelError, match=r"^The tensor wax is float32 \[.*\]; by the specification float32 \[4, 3\]\.$"):
        Network(SPEC, w)


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", ">f4", "bool", "complex64"])
def test_another_dtype(dtype):
    w = weights(SPEC)
    with pytest.raises(ModelError, match=r"^The tensor ba is .* \[4\]; by the specification float32 \[4\]\.$"):
        Network(SPEC, w | {"ba": w["ba"].astype(dtype)})


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["waa", "by"])
def test_not_finite(name, number):
    w = weights(SPEC)
    w[name].flat[-1] = number
    with pytest.raises(ModelError, match=rf"^The tensor {name} holds NaN or infinity\.$"):
        Network(SPEC, w)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("name", VARIANTS)
def test_the_tensors_are_copied_whatever_their_layout(name, order):
    w = {key: np.array(tensor, order=order) for key, tensor in weights(VARIANTS[name], seed=2).items()}
    kept = {key: tensor.tobytes() for key, tensor in w.items()}
    model = Network(VARIANTS[name], w)
    given = tokens(model, 5)
    before = model.forward(given)
    assert {key: tensor.tobytes() for key, tensor in w.items()} == kept
    for tensor in w.values():
        tensor += 1
    assert model.forward(given).tobytes() == before.tobytes()


def test_the_layout_of_the_tensors_is_no_part_of_the_bits():
    for spec in VARIANTS.values():
        w = weights(spec, seed=2)
        turned = {key: np.asfortranarray(tensor) for key, tensor in w.items()}
        one, other = Network(spec, w), Network(spec, turned)
        given = tokens(one, 5)
        assert one.forward(given).tobytes() == other.forward(given).tobytes()
        assert one.digest == other.digest


def test_initial_state_is_zero_without_a0():
    model = network(VARIANTS["lstm"])
    assert model.initial_state().tobytes() == np.zeros(70, np.float32).tobytes()


def test_a0_is_used_and_handed_out_as_a_copy():
    spec = token_spec(embedding(3), lstm(4), gru(3), dense(5), size=5, initial_state=True)
    w = weights(spec)
    model = Network(spec, w)
    start = model.initial_state()
    assert start.tobytes() == w["a0"].tobytes()
    expected = model.forward([1, 2]).tobytes()
    assert model.forward([1, 2], w["a0"]).tobytes() == expected
    assert model.forward([1, 2], np.zeros(11, np.float32)).tobytes() != expected
    start[:] = 9
    w["a0"][:] = 9
    assert model.forward([1, 2]).tobytes() == expected
    assert (model.initial_state() != 9).all()


def test_a_learned_start_of_no_memory_is_empty():
    model = network(token_spec(onehot(), dense(3), size=3, initial_state=True))
    assert model.initial_state().shape == (0,)
    assert model.exact


@pytest.mark.parametrize("layers", [[activation("tanh")], [activation("tanh"), dense(4)], [dense(4), rnn(3)]])
def test_float64_is_float64_from_the_first_layer_on(layers):
    """Dense tokens are float32; whatever is computed from them has the model's dtype."""
    model = network(dense_spec(*layers, size=4, dtype="float64"))
    x = np.array([0.1, -0.7, 0.3, 0.9], np.float32)
    a, y = model.step(model.initial_state(), x)
    assert y.dtype == a.dtype == np.float64
    if len(layers) == 1:
        assert np.abs(y - np.tanh(x.astype(float))).max() < 1e-15


def test_float64_dense_tokens_through_panels():
    """A matrix that is cut into panels on some kernels: (300, 300)."""
    model = network(dense_spec(dense(300), size=300, dtype="float64"))
    w = weights(model.spec.json)
    x = model.input.token(np.random.default_rng(0).normal(0, 1, 300))
    assert np.abs(model.step(model.initial_state(), x)[1] - (w["wya"] @ x.astype(float) + w["by"])).max() < 1e-12


def test_digest_is_what_the_document_says():
    """Recomputed by the rule in docs/model-format.md, not by the code."""
    for spec in VARIANTS.values():
        w = weights(spec)
        data = parse(spec).text().encode()
        for name in sorted(w):
            shape = ", ".join(map(str, w[name].shape)) + ("," if w[name].ndim == 1 else "")
            data += f"\0{name}\0<f4\0({shape})\0".encode() + w[name].astype("<f4").tobytes()
        assert Network(spec, w).digest == hashlib.sha256(data).hexdigest()


def test_digest_changes_with_every_weight_bit():
    spec = parse(SPEC)
    w = weights(SPEC)
    seen = {digest(spec, w)}
    bits = 0
    for name in w:
        for place in range(w[name].size):
            for bit in (0, 1, 22, 31):
                bits += 1
                changed = w[name].copy()
                changed.view(np.uint32).flat[place] ^= 1 << bit
                seen.add(digest(spec, w | {name: changed}))
    assert len(seen) == bits + 1


def test_digest_changes_with_every_name_and_key():
    w = weights(SPEC)
    renamed = {{"ba": "by", "by": "ba"}.get(name, name): tensor for name, tensor in w.items()}
    seen = {digest(parse(SPEC), w), digest(parse(SPEC), renamed)}
    for key, value in [
        ("name", "another"),
        ("head", "linear"),
        ("initial_state", True),
        ("dtype", "float64"),
        ("input", {"kind": "token", "size": 3, "vocabulary": ["a", "b", "c"]}),
        ("input", {"kind": "token", "size": 3, "vocabulary": ["a", "c", "b"]}),
        ("layers", [onehot(), rnn(4, "relu"), dense(3)]),
    ]:
        seen.add(digest(parse(SPEC | {key: value}), w))
    assert len(seen) == 9


def test_the_vocabulary_of_the_output():
    words = ["a", "b", "c"]
    vocabulary = {"kind": "token", "size": 3, "vocabulary": words}
    assert network(SPEC | {"input": vocabulary}).output.vocabulary == ("a", "b", "c")
    assert network(SPEC | {"input": vocabulary, "head": "bernoulli"}).output.vocabulary is None
    wider = SPEC | {"input": vocabulary, "layers": [onehot(), rnn(4), dense(5)]}
    assert network(wider).output.vocabulary is None
    assert network(SPEC).output.vocabulary is None


def test_surprisal():
    assert network(SPEC).surprisal
    assert not network(SPEC | {"head": "linear"}).surprisal
    assert not network(SPEC | {"layers": [onehot(), rnn(4), dense(5)]}).surprisal
    assert not network(VARIANTS["no memory, tokens"]).surprisal
    assert not network(VARIANTS["dense rnn"]).surprisal


def test_lines_and_products():
    model = network(token_spec(embedding(3), gru(4, "before"), lstm(5), activation("relu"), dense(6), size=7))
    assert model.layers == [
        "embedding 7 -> 3",
        "gru 3 -> 4 (tanh, sigmoid, before)",
        "lstm 4 -> 5 (tanh, sigmoid)",
        "activation 5 -> 5 (relu)",
        "dense 5 -> 6",
        "categorical head",
    ]
    assert {name: product.shape for name, product in model.products.items()} == {
        "waa2 (r, z)": (8, 4),
        "waa2 (n)": (4, 4),
        "wax2": (12, 3),
        "waa3": (20, 5),
        "wax3": (20, 4),
        "wya": (6, 5),
    }
    assert set(network(SPEC).products) == {"waa", "wya"}  # a one-hot vector picks a column


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["vanilla", "gru after", "gru before", "lstm", "stack", "dense rnn"])
def test_a_step_that_is_not_exact_is_found_out(monkeypatch, name, fault):
    network(VARIANTS[name])  # its tiles are measured before the products are broken
    broken(monkeypatch, fault)
    assert not measure_step(parse(VARIANTS[name]))
    assert not network(VARIANTS[name]).exact


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("name", ["vanilla", "gru after", "gru before", "lstm", "stack", "dense rnn"])
def test_two_rows_that_have_other_bits_are_found_out(monkeypatch, name, place):
    """They may be a form of their own."""

    def fault(out, x):
        if len(out) == 2:  # a few ulp, so that no sum behind the product swallows them
            out[place] *= np.float32(1 + 2**-20)

    network(VARIANTS[name])  # its tiles are measured before the products are broken
    assert measure_step(parse(VARIANTS[name]))
    broken(monkeypatch, fault)
    assert not measure_step(parse(VARIANTS[name]))


def test_random_weights_that_overflow_are_no_sign_against_it():
    """Infinite and NaN in every company alike: the twin's weights are not the model's."""
    spec = dense_spec(*[activation("exponential")] * 4, dense(5), lstm(3), size=40)
    with one_thread():
        x = np.random.default_rng(0).uniform(-2, 2, (1, 40)).astype(np.float32)
        twin = random_network(parse(spec))
        assert not np.isfinite(twin.advance(twin.initial_state()[np.newaxis], x)[0]).all()
    assert measure_step(parse(spec))


@pytest.mark.parametrize(("head", "function"), [("categorical", "softmax"), ("bernoulli", "sigmoid")])
def test_an_activation_that_is_not_exact_is_found_out(monkeypatch, head, function):
    right = getattr(step, function)

    def wrong(z):
        y = right(z)
        y[1:] = np.nextafter(y[1:], np.float32(2))
        return y

    assert measure_step(parse(SPEC | {"head": head}))
    monkeypatch.setattr(step, function, wrong)
    assert not measure_step(parse(SPEC | {"head": head}))


def test_random_weights_have_full_mantissas():
    model = random_network(parse(token_spec(embedding(30), lstm(20), dense(40), size=40)), seed=3)
    bits = model.forward(list(range(40))).view(np.uint32)
    for bit in range(8):  # the lowest ones: about half are set
        assert 0.4 < (bits >> bit & 1).mean() < 0.6
    other = random_network(parse(token_spec(embedding(30), lstm(20), dense(40), size=40)), seed=3)
    assert other.digest == model.digest
