"""The served network against the article's own, `rnnstream.reference`, with the same weights."""

import numpy as np
import pytest

from rnnstream.model.network import Network
from rnnstream.reference import Model, Sigmoid, Tanh

from .nets import dense, onehot, rnn, token_spec

TOKENS, V, H = 1000, 30, 40


@pytest.fixture(scope="module", params=[("tanh", "categorical"), ("sigmoid", "bernoulli")])
def pair(request):
    g1, head = request.param
    article = Model(V, H, g1={"tanh": Tanh(), "sigmoid": Sigmoid()}[g1], g2=None if head == "categorical" else Sigmoid())
    rng = np.random.default_rng(4)
    size = {
        "waa": 0.25,
        "wax": 1,
        "wya": 1,
        "ba": 0.5,
        "by": 0.5,
    }  # beyond 0.27 the state would be chaotic: bits then become digits
    tensors = {name: rng.uniform(-most, most, getattr(article, name).shape) for name, most in size.items()}
    for name, tensor in tensors.items():
        setattr(article, name, tensor)
    spec = token_spec(onehot(), rnn(H, g1), dense(V), size=V, head=head, dtype="float64")
    ids = rng.integers(0, V, TOKENS).tolist()
    return article.forward_propagation(ids), Network(spec, tensors), ids


def test_the_whole_sequence_agrees(pair):
    layers, model, ids = pair
    assert np.abs(model.forward(ids) - [layer.y for layer in layers]).max() < 1e-12
    assert np.abs(model.run(ids) - layers[-1].a).max() < 1e-12


def test_streamed_it_agrees(pair):
    layers, model, ids = pair
    a = model.initial_state()
    for layer, x in zip(layers, ids, strict=True):
        a, y = model.step(a, x)
        assert np.abs(a - layer.a).max() < 1e-12
        assert np.abs(y - layer.y).max() < 1e-12
