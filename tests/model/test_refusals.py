"""Specifications that are refused, each with its sentence."""

import json

import pytest

from rnnstream.errors import ModelError
from rnnstream.model.kinds import LARGEST
from rnnstream.model.spec import parse

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
)

GOOD = token_spec(onehot(), rnn(4), dense(3), size=3)


def with_input(**keys):
    return GOOD | {"input": {"kind": "token", "size": 3} | keys}


def layers(*entries):
    return GOOD | {"layers": list(entries)}


def without(key, layer):
    return {name: value for name, value in layer.items() if name != key}


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
    "gate": (layers(onehot(), gru(3, gate="tanhh")), "layers[1].gate is 'tanhh'; it is one of tanh, sigmoid,"),
    "a gate over a row": (
        layers(onehot(), lstm(3, gate="softmax")),
        "layers[1].gate is 'softmax'; it is one of tanh, sigmoid,",
    ),
    "another one": (layers(onehot(), gru(3, gate="unit_length")), "layers[1].gate is 'unit_length'; it is one of tanh,"),
    "a gate of an rnn": (layers(onehot(), rnn(3) | {"gate": "sigmoid"}), "layers[1] has the unknown key 'gate'; it takes act"),
    "activation of a gru": (layers(onehot(), gru(3, activation=None)), "layers[1].activation is None; it is one of tanh,"),
    "activation of an lstm": (layers(onehot(), lstm(3, activation="")), "layers[1].activation is ''; it is one of tanh,"),
    "size of a scale": (layers(embedding(3), scale() | {"size": 3}), "layers[1] has the unknown key 'size'; it takes kind."),
    "no kernel": (layers(embedding(3), without("kernel", conv(3, 2))), "layers[1].kernel is None; it is an int from 1 to"),
    "kernel 0": (layers(embedding(3), conv(3, 0)), "layers[1].kernel is 0; it is an int from 1 to 16,777,216."),
    "kernel true": (layers(embedding(3), conv(3, True)), "layers[1].kernel is True; it is an int from 1 to 16,777,216."),
    "kernel of another type": (layers(embedding(3), conv(3, 2.0)), "layers[1].kernel is 2.0;"),
    "dilation 0": (layers(embedding(3), conv(3, 2, 0)), "layers[1].dilation is 0; it is an int from 1 to 16,777,216."),
    "negative dilation": (layers(embedding(3), conv(3, 2, -1)), "layers[1].dilation is -1;"),
    "no dilation": (layers(embedding(3), conv(3, 2, None)), "layers[1].dilation is None;"),
    "no size of a conv": (layers(embedding(3), without("size", conv(3, 2))), "layers[1].size is None;"),
    "window 0": (layers(embedding(3), pool("max", 0)), "layers[1].window is 0; it is an int from 1 to 16,777,216."),
    "no window": (layers(embedding(3), without("window", pool("max", 1))), "layers[1].window is None;"),
    "function of a pool": (layers(embedding(3), pool("sum", 2)), "layers[1].function is 'sum'; it is one of mean, max."),
    "no function of a pool": (layers(embedding(3), without("function", pool("max", 1))), "layers[1].function is None;"),
    **{
        f"epsilon {value!r}": (
            layers(embedding(3), layernorm(epsilon=value)),
            f"layers[1].epsilon is {value!r}; it is a number from 1e-30 to below 1.",
        )
        for value in (0, 0.0, 1, 1.0, 2, -1e-5, 1e-31, True, "x", None, float("nan"), float("inf"), [1e-5])
    },
    "no of": (
        layers(embedding(3), {"kind": "residual"}),
        "layers[1].of is None; it is the number of a layer in front, or 0 for",
    ),
    "of a negative": (
        layers(embedding(3), residual(-1)),
        "layers[1].of is -1; it is the number of a layer in front, or 0 for the",
    ),
    "of a name": (
        layers(embedding(3), residual("e")),
        "layers[1].of is 'e'; it is the number of a layer in front, or 0 for the",
    ),
    "of true": (layers(embedding(3), residual(True)), "layers[1].of is True; it is the number of a layer in front,"),
    "of 1.0": (layers(embedding(3), residual(1.0)), "layers[1].of is 1.0; it is the number of a layer in front,"),
    "residual of itself": (
        layers(embedding(3), rnn(3), residual(3)),
        "layers[2].of is 3; this is layer 3, and only one in front of it can be added, or 0, the input.",
    ),
    "residual of a later one": (
        layers(embedding(3), residual(3), rnn(3)),
        "layers[1].of is 3; this is layer 2, and only one in",
    ),
    "residual of none": (layers(embedding(3), residual(10**300)), "layers[1].of is 1000"),
    "a first residual of itself": (
        dense_spec(residual(1), size=2),
        "layers[0].of is 1; this is layer 1, and only one in front of it can be added, or 0, the input.",
    ),
    "residual of ids": (
        layers(embedding(3), residual(0)),
        "layers[1].of is 0, which gives ids; only numbers can be added.",
    ),
    "residual of one-hot ids": (
        layers(onehot(), rnn(3), residual(1)),
        "layers[2].of is 1, which gives ids; only numbers can be added.",
    ),
    "residual of another size": (
        layers(embedding(4), rnn(3), residual(1)),
        "layers[2].of is 1, which gives 4 numbers; 3 come in, and as many can be added.",
    ),
    "residual of an input of another size": (
        dense_spec(rnn(3), residual(0), size=2),
        "layers[1].of is 0, which gives 2 numbers; 3 come in, and as many can be added.",
    ),
    "conv behind onehot": (
        layers(onehot(), conv(3, 2)),
        "layers[1] is conv; behind onehot comes one of dense, rnn, gru, lstm.",
    ),
    **{
        f"{layer['kind']} behind onehot": (layers(onehot(), layer), f"layers[1] is {layer['kind']}; behind onehot comes one of")
        for layer in (scale(), layernorm(), pool("max", 2), residual(0))
    },
    **{
        f"ids into {layer['kind']}": (
            layers(layer),
            f"layers[0] is {layer['kind']}, behind token ids; an onehot or embedding layer",
        )
        for layer in (scale(), layernorm(), pool("max", 2), residual(0), conv(3, 1))
    },
    "a conv with too large a state": (
        layers(embedding(2), conv(3, 3, 2**22 + 1)),
        "layers[1] would keep 16,777,220 numbers of state; 16,777,216 are the most.",
    ),
    "a pool with too large a state": (
        layers(embedding(2**13), pool("mean", 2**13)),
        "layers[1] would keep 67,100,672 numbers of state; 16,777,216 are the most.",
    ),
    "an lstm with too large a state": (layers(onehot(), lstm(2**24)), "layers[1] would keep 33,554,432 numbers of state;"),
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
