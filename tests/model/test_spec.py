"""Specifications: sizes, names, defaults, and a sentence for everything that is refused."""

import json

import pytest

from rnnstream.errors import ModelError
from rnnstream.model.spec import LARGEST, LAYERS, parse

from .nets import VARIANTS, activation, dense, dense_spec, embedding, gru, lstm, onehot, rnn, token_spec

GOOD = token_spec(onehot(), rnn(4), dense(3), size=3)


def with_input(**keys):
    return GOOD | {"input": {"kind": "token", "size": 3} | keys}


def layers(*entries):
    return GOOD | {"layers": list(entries)}


REFUSED = {
    "not an object": ([], "the specification is []; it is a JSON object."),
    "unknown key": (GOOD | {"cells": 1}, "the specification has the unknown key 'cells'; it takes dtype, format, head,"),
    "no format": (
        {key: GOOD[key] for key in GOOD if key != "format"},
        "format is None; this version of rnnstream reads format 1.",
    ),
    "format 2": (GOOD | {"format": 2}, "format is 2; this version of rnnstream reads format 1."),
    "format true": (GOOD | {"format": True}, "format is True;"),
    "format 1.0": (GOOD | {"format": 1.0}, "format is 1.0;"),
    "name of another type": (GOOD | {"name": 5}, "name is 5; it is a str of at most 200 characters."),
    "long name": (GOOD | {"name": "n" * 201}, "name is 'nnn"),
    "name of half a character": (GOOD | {"name": "a\ud800"}, "name is 'a\\ud800'"),
    "dtype": (GOOD | {"dtype": "float16"}, "dtype is 'float16'; it is one of float32, float64."),
    "no input": (GOOD | {"input": None}, "input is None; it is a JSON object."),
    "unknown key of the input": (with_input(length=3), "input has the unknown key 'length'; it takes kind, size, vocabulary."),
    "input kind": (with_input(kind="text"), "input.kind is 'text'; it is one of token, dense."),
    "input size 0": (with_input(size=0), "input.size is 0; it is an int from 1 to 16,777,216."),
    "input size true": (with_input(size=True), "input.size is True;"),
    "input size of another type": (with_input(size=3.0), "input.size is 3.0;"),
    "input size too large": (with_input(size=LARGEST + 1), "input.size is 16777217;"),
    "vocabulary of another type": (with_input(vocabulary="abc"), "input.vocabulary is not a list of str."),
    "vocabulary of ints": (with_input(vocabulary=[1, 2, 3]), "input.vocabulary is not a list of str."),
    "short vocabulary": (with_input(vocabulary=["a"]), "input.vocabulary has 1 entries, 1 of them different; input.size is 3."),
    "an entry twice": (
        with_input(vocabulary=["a", "b", "a"]),
        "input.vocabulary has 3 entries, 2 of them different; input.size is 3.",
    ),
    "half a character": (with_input(vocabulary=["a", "b", "\udfff"]), "input.vocabulary[2] is '\\udfff'"),
    "vocabulary of vectors": (
        dense_spec(rnn(2), size=2) | {"input": {"kind": "dense", "size": 2, "vocabulary": ["a", "b"]}},
        "input.vocabulary belongs to token input; this input is dense.",
    ),
    "head": (GOOD | {"head": "softmax"}, "head is 'softmax'; it is one of categorical, bernoulli, linear."),
    "no head": (GOOD | {"head": None}, "head is None;"),
    "initial_state": (GOOD | {"initial_state": 1}, "initial_state is 1; it is true when the file holds the tensor a0."),
    "no layers": (GOOD | {"layers": []}, "layers is not a list of 1 to 1,000 layers."),
    "too many layers": (layers(*[onehot()] * 1001), "layers is not a list of 1 to 1,000 layers."),
    "layers of another type": (GOOD | {"layers": {"kind": "rnn"}}, "layers is not a list of 1 to 1,000 layers."),
    "unknown kind": (
        layers(onehot(), {"kind": "elman", "size": 3}),
        "layers[1].kind is 'elman'; it is one of onehot, embedding,",
    ),
    "a layer of another type": (layers("onehot"), "layers[0].kind is None;"),
    "unhashable kind": (layers({"kind": ["rnn"]}), "layers[0].kind is ['rnn'];"),
    "unknown key of a layer": (
        layers(onehot(), rnn(3) | {"bias": True}),
        "layers[1] has the unknown key 'bias'; it takes activation,",
    ),
    "a key of another layer": (layers(onehot(), lstm(3) | {"reset": "after"}), "layers[1] has the unknown key 'reset';"),
    "no size": (layers(onehot(), {"kind": "gru"}), "layers[1].size is None; it is an int from 1"),
    "negative size": (layers(onehot(), rnn(-1)), "layers[1].size is -1;"),
    "activation": (layers(onehot(), rnn(3, "gelu")), "layers[1].activation is 'gelu'; it is one of tanh, sigmoid,"),
    "reset": (layers(onehot(), gru(3, "never")), "layers[1].reset is 'never'; it is one of after, before."),
    "function": (layers(onehot(), dense(3), {"kind": "activation"}), "layers[2].function is None;"),
    "onehot before an activation": (
        layers(onehot(), activation("tanh"), rnn(3)),
        "layers[1] is activation; behind onehot comes one of dense, rnn, gru, lstm.",
    ),
    "onehot alone": (
        layers(onehot()),
        "layers ends with onehot, which has no numbers of its own to give; put a layer behind it.",
    ),
    "ids into a cell": (layers(rnn(3)), "layers[0] is rnn, behind token ids; an onehot or embedding layer comes first."),
    "onehot behind numbers": (
        dense_spec(onehot(), rnn(2), size=2),
        "layers[0] is onehot, behind numbers; onehot takes ids and can only come first.",
    ),
    "embedding in the middle": (
        layers(onehot(), rnn(3), embedding(3)),
        "layers[2] is embedding, behind numbers; embedding takes ids and can only come first.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_sentence(case):
    given, sentence = REFUSED[case]
    with pytest.raises(ModelError) as caught:
        parse(given)
    assert str(caught.value).startswith(sentence)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("value", [10**300, "x" * 10**6, [[]] * 1000, {"k": 1}, float("nan"), b"x", -1, None])
@pytest.mark.parametrize(
    "place", ["format", "name", "dtype", "input", "layers", "head", "initial_state", "size", "kind", "entry"]
)
def test_nothing_else_is_raised(place, value):
    spec = json.loads(json.dumps(GOOD))
    if place == "size":
        spec["layers"][1]["size"] = value
    elif place == "kind":
        spec["layers"][1]["kind"] = value
    elif place == "entry":
        spec["layers"][1] = value
    else:
        spec[place] = value
    with pytest.raises(ModelError) as caught:
        parse(spec)
    assert len(str(caught.value)) < 250


def test_defaults_are_filled_in_and_the_text_is_canonical():
    short = token_spec({"kind": "embedding", "size": 2}, {"kind": "gru", "size": 4}, {"kind": "rnn", "size": 5}, size=3)
    full = {
        "head": "categorical",
        "initial_state": False,
        "name": "",
        "dtype": "float32",
        "layers": [
            {"size": 2, "kind": "embedding"},
            {"reset": "after", "size": 4, "kind": "gru"},
            {"activation": "tanh", "size": 5, "kind": "rnn"},
        ],
        "input": {"size": 3, "kind": "token"},
        "format": 1,
    }
    assert parse(short) == parse(full)
    assert parse(short).text() == parse(full).text()
    assert parse(short).text() == (
        '{"dtype":"float32","format":1,"head":"categorical","initial_state":false,"input":{"kind":"token","size":3},'
        '"layers":[{"kind":"embedding","size":2},{"kind":"gru","reset":"after","size":4},'
        '{"activation":"tanh","kind":"rnn","size":5}],"name":""}'
    )
    assert json.loads(parse(short).text()) == full
    assert parse(with_input(vocabulary=["é", "\U0001f600", ""])).text().count("é") == 1


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
    "no tensors": (dense_spec(activation("tanh"), size=3), {}),
}


@pytest.mark.parametrize("case", NAMES)
def test_names_and_shapes_of_the_tensors(case):
    given, shapes = NAMES[case]
    assert parse(given).shapes == shapes


def test_the_names_of_a_chain_never_collide():
    for place in range(12):
        spec = parse(dense_spec(*[rnn(2), dense(2), lstm(3), gru(2)] * 3, dense(place + 1), size=2))
        assert len(spec.shapes) == sum(len(layer.tensors) for layer in spec.layers)


def test_every_kind_is_built():
    used = {layer["kind"] for spec in VARIANTS.values() for layer in spec["layers"]}
    assert used == set(LAYERS)
