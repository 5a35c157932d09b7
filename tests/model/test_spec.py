"""Specifications: sizes, names, defaults."""

import json

import pytest

from rnnstream.model.kinds import LARGEST, LAYERS
from rnnstream.model.spec import parse

from .nets import (
    VARIANTS,
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
)

GOOD = token_spec(onehot(), rnn(4), dense(3), size=3)


def test_defaults_are_filled_in_and_the_text_is_canonical():
    short = token_spec(
        {"kind": "embedding", "size": 2},
        {"kind": "layernorm"},
        {"kind": "conv", "size": 3, "kernel": 2},
        {"kind": "gru", "size": 4},
        {"kind": "rnn", "size": 5},
        {"kind": "lstm", "size": 6},
        size=3,
    )
    full = {
        "head": "categorical",
        "initial_state": False,
        "name": "",
        "dtype": "float32",
        "layers": [
            {"size": 2, "kind": "embedding"},
            {"epsilon": 0.00001, "kind": "layernorm"},
            {"dilation": 1, "size": 3, "kernel": 2, "kind": "conv"},
            {"reset": "after", "gate": "sigmoid", "size": 4, "activation": "tanh", "kind": "gru"},
            {"activation": "tanh", "size": 5, "kind": "rnn"},
            {"gate": "sigmoid", "activation": "tanh", "size": 6, "kind": "lstm"},
        ],
        "input": {"size": 3, "kind": "token"},
        "format": 1,
    }
    assert parse(short) == parse(full)
    assert parse(short).text() == parse(full).text()
    assert parse(short).text() == (
        '{"dtype":"float32","format":1,"head":"categorical","initial_state":false,"input":{"kind":"token","size":3},'
        '"layers":[{"kind":"embedding","size":2},{"epsilon":1e-05,"kind":"layernorm"},'
        '{"dilation":1,"kernel":2,"kind":"conv","size":3},'
        '{"activation":"tanh","gate":"sigmoid","kind":"gru","reset":"after","size":4},'
        '{"activation":"tanh","kind":"rnn","size":5},'
        '{"activation":"tanh","gate":"sigmoid","kind":"lstm","size":6}],"name":""}'
    )
    assert json.loads(parse(short).text()) == full
    assert parse(GOOD | {"input": {"kind": "token", "size": 3, "vocabulary": ["é", "\U0001f600", ""]}}).text().count("é") == 1


@pytest.mark.parametrize("name", VARIANTS)
def test_parsed_again_it_is_the_same(name):
    spec = parse(VARIANTS[name])
    assert parse(json.loads(spec.text())) == spec


NAMES = {
    "one vanilla layer": (GOOD, {"waa": (4, 4), "wax": (4, 3), "ba": (4,), "wya": (3, 4), "by": (3,)}),
    "two": (
        token_spec(onehot(), rnn(4), rnn(5), dense(3), size=3),
        {"waa2": (4, 4), "wax2": (4, 3), "ba2": (4,), "waa3": (5, 5), "wax3": (5, 4), "ba3": (5,), "wya": (3, 5), "by": (3,)},
    ),
    "one vanilla layer between others": (
        token_spec(embedding(2), dense(6), rnn(4), dense(5), activation("relu"), dense(3), size=3),
        {
            **{"e1": (3, 2), "w2": (6, 2), "b2": (6,), "waa": (4, 4), "wax": (4, 6), "ba": (4,), "w4": (5, 4), "b4": (5,)},
            **{"wya": (3, 5), "by": (3,)},
        },
    ),
    "a dense layer that is not the last": (
        token_spec(onehot(), rnn(4), dense(3), activation("tanh"), size=3),
        {"waa": (4, 4), "wax": (4, 3), "ba": (4,), "w3": (3, 4), "b3": (3,)},
    ),
    "gru": (token_spec(onehot(), gru(4), size=3), {"waa2": (12, 4), "wax2": (12, 3), "ba2": (12,), "bh2": (4,)}),
    "gru before": (token_spec(onehot(), gru(4, "before"), size=3), {"waa2": (12, 4), "wax2": (12, 3), "ba2": (12,)}),
    "lstm with a learned start": (
        dense_spec(lstm(4), size=3, initial_state=True),
        {"waa1": (16, 4), "wax1": (16, 3), "ba1": (16,), "a0": (8,)},
    ),
    "rnn and gru": (
        dense_spec(rnn(2), gru(4, "before"), size=3, initial_state=True),
        {"waa1": (2, 2), "wax1": (2, 3), "ba1": (2,), "waa2": (12, 4), "wax2": (12, 2), "ba2": (12,), "a0": (6,)},
    ),
    "no tensors": (dense_spec(activation("tanh"), residual(0), pool("mean", 3), size=3), {}),
    "one vanilla layer, and others with memory that are not recurrent": (
        dense_spec(conv(4, 2), scale(), rnn(4), layernorm(), pool("max", 2), dense(3), size=3, initial_state=True),
        {
            **{"w1": (4, 2, 3), "b1": (4,), "s2": (4,), "b2": (4,), "waa": (4, 4), "wax": (4, 4), "ba": (4,)},
            **{"s4": (4,), "b4": (4,), "wya": (3, 4), "by": (3,), "a0": (11,)},
        },
    ),
    "conv at the end": (dense_spec(dense(2), conv(4, 2, 3), size=3), {"w1": (2, 3), "b1": (2,), "w2": (4, 2, 2), "b2": (4,)}),
}


@pytest.mark.parametrize("case", NAMES)
def test_names_and_shapes_of_the_tensors(case):
    given, shapes = NAMES[case]
    assert parse(given).shapes == shapes


def test_the_names_of_a_chain_never_collide():
    for place in range(12):
        more = [rnn(2), dense(2), lstm(3), gru(2), conv(2, 2), scale(), layernorm(), residual(0), pool("max", 2)]
        spec = parse(dense_spec(*more * 3, dense(place + 1), size=2))
        assert len(spec.shapes) == sum(len(layer.tensors) for layer in spec.layers)


def test_every_kind_is_built():
    used = {layer["kind"] for spec in VARIANTS.values() for layer in spec["layers"]}
    assert used == set(LAYERS)


def test_the_largest_state_that_is_taken():
    spec = parse(dense_spec(pool("max", 2**21 + 1), size=8))
    assert spec.state_size == LARGEST == 16_777_216
