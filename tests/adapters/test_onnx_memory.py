"""Graphs that look ahead or forget are refused; those of which a step can be made are not."""

import re

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from rnnstream.adapters import OnnxStep
from rnnstream.errors import ModelError
from rnnstream.testing import check_step_model

from .graphs import IR, OPSET, H, K, lstm, model, node, value

rng = np.random.default_rng(8)
XS = rng.normal(0, 1, (6, K)).astype(np.float32)
SHAPES = {"w": (1, 3 * H, K), "r": (1, 3 * H, H), "w2": (1, 3 * H, H), "r2": (1, 3 * H, H), "kernel": (K, K, 3)}
SHAPES |= {"wb": (2, 3 * H, K), "rb": (2, 3 * H, H)}
TENSORS = {name: rng.uniform(-1, 1, shape).astype(np.float32) for name, shape in SHAPES.items()}
TENSORS |= {"zero": np.array(0), "one": np.array([1]), "flat": np.array([-1, H])}
TENSORS |= {"zeros": np.zeros((1, 1, H), np.float32), "zeros2": np.zeros((2, 1, H), np.float32)}
AHEAD = "This graph gives another answer for 4 tokens at once than for one after another ("


def step(graph, **hints):
    return OnnxStep(graph.SerializeToString(), hints)


def gru(*before, x="x", start="h0", tokens="T", more=(), ends="y", layers=1, **attributes):
    """A GRU [T, B, K] -> [T, B, H] behind some nodes, of one state, with more nodes behind it."""
    weights = "wb rb" if layers == 2 else "w r"
    nodes = [*before, node("GRU", f"{x} {weights} - - {start}", "y4 hn", hidden_size=H, **attributes)]
    nodes += [node("Squeeze", "y4 one", "y")] if layers == 1 else [node("ReduceMean", "y4", "y", axes=[1], keepdims=0)]
    return model(
        [*nodes, *more],
        [value("x", [tokens, "B", K]), value("h0", [layers, "B", H])],
        [value(ends, None), value("hn", [layers, "B", H])],
        TENSORS,
    )


def convolved(pads, *, tokens="T"):
    """A convolution over time [T, B, K] in front of the GRU."""
    return gru(
        node("Transpose", "x", "xt", perm=[1, 2, 0]),
        node("Conv", "xt kernel", "ct", pads=pads),
        node("LeakyRelu", "ct", "lt"),
        node("Transpose", "lt", "c", perm=[2, 0, 1]),
        x="c",
        tokens=tokens,
    )


def second(start):
    """Another GRU behind the first one."""
    return gru(more=[node("LeakyRelu", "y", "l"), node("GRU", f"l w2 r2 - - {start}", "z4", hidden_size=H)], ends="z4")


def branched(then, otherwise=None):
    """A GRU in both branches of an If, behind another node."""
    starts = {"then": then, "else": otherwise or then}
    branches = {
        f"{name}_branch": helper.make_graph(
            [node("Identity", "x", f"x{name}"), node("GRU", f"x{name} w r - - {start}", f"y{name} hn{name}", hidden_size=H)],
            name,
            [],
            [value(f"y{name}", None), value(f"hn{name}", None)],
        )
        for name, start in starts.items()
    }
    return model(
        [node("Cast", "yes", "sure", to=TensorProto.BOOL), node("If", "sure", "y hn", **branches)],
        [value("x", ["T", "B", K]), value("h0", [1, "B", H]), value("yes", [], "i")],
        [value("y", None), value("hn", [1, "B", H])],
        TENSORS,
    )


def in_a_function():
    """A GRU without a state in a function of the graph's own."""
    graph = gru(node("Remember", "x w2r", "xx", domain="own"), x="xx")
    body = [
        helper.make_node("Constant", [], ["k"], value=numpy_tensor((1, 3 * K, K))),
        helper.make_node("Constant", [], ["axis"], value_ints=[1]),
        node("GRU", "a k r", "b4", hidden_size=K),
        node("Squeeze", "b4 axis", "b"),
    ]
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("own", 1)]
    graph.functions.append(helper.make_function("own", "Remember", ["a", "r"], ["b"], body, opsets[:1]))
    del graph.opset_import[:]
    graph.opset_import.extend(opsets)
    graph.graph.initializer.append(numpy_tensor((1, 3 * K, K), "w2r"))
    graph.ir_version = IR
    return graph


def numpy_tensor(shape, name="k"):
    return helper.make_tensor(name, TensorProto.FLOAT, shape, rng.normal(0, 1, int(np.prod(shape))))


def zeros_by_shape():
    """An initial state of zeros in the shape of the state that is handed on."""
    return gru(node("Shape", "h0", "n"), node("ConstantOfShape", "n", "nothing"), start="nothing")


MEAN = (node("ReduceMean", "x", "m", axes=[0]), node("Sub", "x m", "xm"))
FORGETS = (
    "starts every token with a hidden state of zeros, for it does not come from a state input: it forgets what came before"
)


@pytest.mark.parametrize("tokens", ["T", 1])
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda t: gru(tokens=t, direction="reverse"), "The GRU y4 runs reverse: it needs the tokens that are still to come"),
        (lambda t: gru(tokens=t, direction="bidirectional", layers=2), "The GRU y4 runs bidirectional: it needs the tokens"),
        (lambda t: gru(tokens=t, start="-"), f"The GRU y4 {FORGETS}. Export the graph with an input and an output for"),
        (lambda t: gru(tokens=t, start="zeros"), "The GRU y4 starts every token with the same hidden state, for it does not"),
    ],
)
def test_recurrent_nodes_that_make_no_step(make, sentence, tokens):
    with pytest.raises(ModelError, match=re.escape(sentence)):
        step(make(tokens))


@pytest.mark.parametrize(
    ("graph", "hints", "sentence"),
    [
        (second("-"), {}, f"The GRU z4 {FORGETS}"),
        (second("zeros"), {}, "The GRU z4 starts every token with the same hidden state"),
        (second("h0"), {}, f"{AHEAD}the outputs differ by "),  # a state is handed on to it, but not its own
        (zeros_by_shape(), {}, "The GRU y4 starts every token with the same hidden state"),
        (branched("-"), {"constants": {"yes": 1}}, f"The GRU ythen {FORGETS}"),
        (branched("h0", "-"), {"constants": {"yes": 0}}, f"The GRU yelse {FORGETS}"),
        (in_a_function(), {}, FORGETS),
        (gru(*MEAN, x="xm"), {}, f"{AHEAD}the states differ by 0."),
        (convolved([1, 1]), {}, f"{AHEAD}the states differ by 0."),
        (convolved([2, 0]), {}, f"{AHEAD}the states differ by 0."),
        (gru(more=[node("CumSum", "y zero", "z")], ends="z"), {}, f"{AHEAD}the outputs differ by "),
        (
            gru(more=[node("Concat", "y zeros", "z", axis=0)], ends="z"),
            {},
            f"{AHEAD}the outputs are [5, 1, 8] for 4): it looks",
        ),
    ],
)
def test_graphs_that_look_ahead_or_forget(graph, hints, sentence):
    with pytest.raises(ModelError, match=re.escape(sentence)):
        step(graph, **hints)


def test_a_cell_state_of_zeros_is_seen():
    graph = lstm()
    graph.graph.node[0].input[6] = ""
    graph.graph.node[0].name = "decoder"
    with pytest.raises(ModelError, match="The LSTM decoder starts every token with a cell state of zeros"):
        step(graph)


@pytest.mark.parametrize(
    ("graph", "hints"),
    [
        (gru(), {}),
        (gru(more=[node("Squeeze", "hn one", "last")], ends="last"), {}),  # the last output only
        (gru(more=[node("Reshape", "y flat", "z")], ends="z"), {}),
        (gru(node("Split", "h0", "a b", axis=2), node("Concat", "a b", "h", axis=2), start="h"), {}),
        (branched("h0"), {"constants": {"yes": 1}}),
        (branched("h0", "-"), {"constants": {"yes": 1}}),  # the other one is never taken
        (lstm("T"), {}),
        (convolved([2, 0], tokens=1), {}),  # which says that it is a step
    ],
)
def test_steps_and_sequences_that_are_the_same(graph, hints):
    check_step_model(step(graph, **hints))


def test_step_by_step_is_the_whole_sequence():
    graph = gru(more=[node("LeakyRelu", "y", "z")], ends="z")
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    whole = session.run(["z"], {"x": XS[:, np.newaxis], "h0": np.zeros((1, 1, H), np.float32)})[0][:, 0]
    np.testing.assert_allclose(step(graph).forward(XS), whole, rtol=1e-5, atol=1e-6)


def test_a_node_along_the_numbers_of_a_token_is_no_memory():
    """Both ways along the K numbers of a token, as along the frequencies of a frame, and a state over time."""
    weights = {"wf": rng.normal(0, 1, (2, 6, 1)), "rf": rng.normal(0, 1, (2, 6, 2))}
    graph = model(
        [
            node("Reshape", "x places", "f"),
            node("GRU", "f wf rf", "f4", hidden_size=2, direction="bidirectional"),
            node("ReduceMean", "f4", "s", axes=[1, 3], keepdims=0),
            node("Reshape", "s frame", "a"),
            node("Add", "a h", "hn"),
            node("Tanh", "hn", "y"),
        ],
        [value("x", [1, 1, K]), value("h", [1, 1, K])],
        [value("y", None), value("hn", [1, 1, K])],
        {name: array.astype(np.float32) for name, array in weights.items()}
        | {"places": np.array([K, 1, 1]), "frame": np.array([1, 1, K])},
    )
    found = step(graph)
    check_step_model(found)
    assert found.layers[0] == "ONNX graph of 6 nodes, each row alone"
