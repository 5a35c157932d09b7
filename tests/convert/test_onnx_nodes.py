"""What may stand in an ONNX graph: each node and each order of axes, against ONNX Runtime."""

import numpy as np
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from rnnstream.convert import convert
from tests.convert.onnx_graphs import Graph, agrees, kinds, refusal

TOLERANCE = 2e-5


FUNCTIONS = {
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
    "Relu": "relu",
    "HardSigmoid": "hard_sigmoid_fifth",
    "Elu": "elu",
    "Softplus": "softplus",
    "Softsign": "softsign",
}


@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_activation_of_a_cell(tmp_path, op, name):
    graph = Graph()
    functions = {"RNN": [name], "GRU": ["Sigmoid", name], "LSTM": ["Sigmoid", name, name]}[op]
    converted = agrees(graph, tmp_path, graph.cell(op, "x", 5, 3, activations=functions))
    assert converted.spec.layers[0].keys["activation"] == FUNCTIONS[name]


@pytest.mark.parametrize("op", ["GRU", "LSTM"])
@pytest.mark.parametrize(
    ("numbers", "gate"),
    [
        ({}, "hard_sigmoid_fifth"),
        ({"activation_alpha": [1 / 6]}, "hard_sigmoid"),
        ({"activation_alpha": [0.2], "activation_beta": [0.5]}, "hard_sigmoid_fifth"),
    ],
)
def test_the_gate_of_a_cell(tmp_path, op, numbers, gate):
    graph = Graph()
    functions = ["hardsigmoid", "tanh", "tanh"][: 2 if op == "GRU" else 3]  # in lower case, as ONNX Runtime reads them
    converted = agrees(graph, tmp_path, graph.cell(op, "x", 5, 3, activations=functions, **numbers))
    assert converted.spec.layers[0].keys["gate"] == gate


def test_a_number_for_each_activation_in_its_place(tmp_path):
    graph = Graph()
    said = {
        "activations": ["HardSigmoid", "Elu", "Elu"],
        "activation_alpha": [0.2, 1.0, 1.0],
        "activation_beta": [0.5, 0.0, 0.0],
    }
    assert agrees(graph, tmp_path, graph.cell("LSTM", "x", 5, 3, **said)).spec.layers[0].keys["activation"] == "elu"


@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
def test_without_a_bias(tmp_path, op):
    graph = Graph()
    assert not agrees(graph, tmp_path, graph.cell(op, "x", 5, 3, bias=False)).tensors["ba" if op == "RNN" else "ba1"].any()


@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
def test_the_rows_first_in_a_cell(tmp_path, op):
    more = {"h": (2, 1, 3)} | ({"c": (2, 1, 3)} if op == "LSTM" else {})
    graph = Graph((2, "steps", 5), **more)
    ends = ["hn", "cn"][: len(more)]
    graph.cell(op, "x", 5, 3, "", *more, outputs=["Y", *ends], layout=1)
    y = graph.add("Squeeze", "Y", np.array([2]))
    path = graph.save(tmp_path, y, *ends)  # [2, steps, 3], [2, 1, 3]
    model = convert(path).network()
    xs = graph.draw(2, 9, 5)
    states = {name: np.zeros((2, 1, 3), np.float32) for name in more}
    found = ReferenceEvaluator(str(path)).run(None, {"x": xs, **states})  # ONNX Runtime takes no layout 1
    for row in range(2):
        assert np.abs(model.forward(list(xs[row])) - found[0][row]).max() <= TOLERANCE
        assert np.abs(model.run(list(xs[row])) - np.concatenate([end[row, 0] for end in found[1:]])).max() <= TOLERANCE


@pytest.mark.parametrize(
    ("op", "function", "given"),
    [
        *((name, ours, ()) for name, ours in FUNCTIONS.items()),
        ("Selu", "selu", ()),
        ("Exp", "exponential", ()),
        ("Softmax", "softmax", ()),
        ("Clip", "hard_tanh", (np.float32(-1), np.float32(1))),
        ("Clip", "relu6", (np.float32(0), np.float32(6))),
        ("Clip", "relu", (np.float32(0),)),
    ],
)
def test_an_activation(tmp_path, op, function, given):
    graph = Graph()
    y = graph.add("Mul", graph.squeezed("GRU", "x", 5, 4), np.float32(9))  # on both sides of every corner
    y = graph.add("MatMul", graph.add(op, y, *given), graph.draw(4, 3))
    assert kinds(agrees(graph, tmp_path, y)) == ["gru", "scale", function, "dense"]


def test_hard_sigmoid_with_a_sixth(tmp_path):
    graph = Graph()
    y = graph.add("HardSigmoid", graph.cell("GRU", "x", 5, 4), alpha=1 / 6)
    assert kinds(agrees(graph, tmp_path, y)) == ["gru", "hard_sigmoid"]


def test_x_times_its_sigmoid_is_silu(tmp_path):
    graph = Graph()
    y = graph.cell("GRU", "x", 5, 4)
    assert kinds(agrees(graph, tmp_path, graph.add("Mul", graph.add("Sigmoid", y), y))) == ["gru", "silu"]


def test_swish_is_silu(tmp_path):
    graph = Graph()
    assert kinds(agrees(graph, tmp_path, graph.add("Swish", graph.cell("GRU", "x", 5, 4)), opset=24)) == ["gru", "silu"]


def test_an_old_graph_whose_axes_are_attributes(tmp_path):
    graph = Graph(("rows", 5, "steps"))
    y = graph.add("Slice", graph.add("Conv", "x", graph.draw(5, 5, 3), pads=[2, 2]), starts=[0], ends=[-2], axes=[2])
    y = graph.add("Transpose", y, perm=[2, 0, 1])
    y = graph.add("Squeeze", graph.cell("GRU", y, 5, 4), axes=[1])
    y = graph.add("Softmax", graph.add("Clip", y, min=-1.0, max=1.0), axis=2)
    converted = agrees(graph, tmp_path, y, opset=9)
    assert kinds(converted) == ["conv", "gru", "hard_tanh"]
    assert converted.spec.head == "categorical"


def test_constants_are_biases_and_scales(tmp_path):
    graph = Graph()
    y = graph.add("Div", graph.add("Sub", "x", graph.draw(5)), graph.draw(1, 1, 5) + 2)
    y = graph.add("MatMul", graph.squeezed("GRU", y, 5, 4), graph.draw(1, 4, 3))
    y = graph.add("Sub", np.float32(1), graph.add("Add", graph.draw(3), y))
    y = graph.add("Mul", graph.add("Sub", graph.add("MatMul", y, graph.draw(3, 2)), graph.draw(2)), graph.draw(2))
    converted = agrees(graph, tmp_path, y)
    assert kinds(converted) == ["scale", "scale", "gru", "dense", "scale", "dense", "scale"]
    assert converted.tensors["b4"].any()


def test_a_number_of_its_own_for_the_whole_input(tmp_path):
    graph = Graph()
    assert kinds(agrees(graph, tmp_path, graph.cell("GRU", graph.add("Mul", "x", np.float32(0.1)), 5, 4))) == ["scale", "gru"]


def test_normalisations(tmp_path):
    graph = Graph()
    y = graph.add("Transpose", graph.squeezed("GRU", "x", 5, 4), perm=[1, 2, 0])
    variance = np.abs(graph.draw(4)) + 0.1
    y = graph.add("BatchNormalization", y, graph.draw(4), graph.draw(4), graph.draw(4), variance, epsilon=0.01)
    y = graph.add("LayerNormalization", graph.add("Transpose", y, perm=[2, 0, 1]), graph.draw(4), graph.draw(4), epsilon=0.02)
    y = graph.add("LayerNormalization", y, graph.draw(4))
    assert kinds(agrees(graph, tmp_path, y)) == ["gru", "scale", "layernorm", "layernorm"]


def test_residuals(tmp_path):
    graph = Graph()
    one = graph.squeezed("GRU", "x", 5, 5)
    two = graph.add("Add", one, "x")
    three = graph.add("Add", two, graph.squeezed("LSTM", two, 5, 5))
    four = graph.add("Add", three, three)
    converted = agrees(graph, tmp_path, graph.add("Softmax", graph.add("Add", four, one)))
    assert kinds(converted) == ["gru", "residual", "lstm", "residual", "residual", "residual"]
    assert [layer.keys["of"] for layer in converted.spec.layers if layer.kind == "residual"] == [0, 2, 4, 1]
    assert converted.spec.head == "categorical"


@pytest.mark.parametrize(
    ("before", "pads", "after"),
    [
        (None, [4, 0], 0),
        ([4, 0], [0, 0], 0),
        ([3, 0], [1, 0], 0),
        (None, [4, 4], 4),
        ([5, 2], [0, 0], (1, 2)),
    ],
)
def test_a_convolution_that_does_not_look_ahead(tmp_path, before, pads, after):
    graph = Graph(("rows", 5, "steps"))
    y = "x" if before is None else graph.add("Pad", "x", np.array([0, 0, before[0], 0, 0, before[1]]))
    if isinstance(after, tuple):
        y = graph.add("Slice", y, np.array([after[0]]), np.array([-after[1]]), np.array([2]))
    y = graph.add("Relu", graph.add("Conv", y, graph.draw(6, 5, 3), graph.draw(6), dilations=[2], pads=pads))
    if after and not isinstance(after, tuple):
        y = graph.add("Slice", y, np.array([0]), np.array([-after]), np.array([2]))
    y = graph.squeezed("GRU", graph.add("Transpose", y, perm=[2, 0, 1]), 6, 4)
    converted = agrees(graph, tmp_path, y)
    assert kinds(converted) == ["conv", "relu", "gru"]
    assert converted.spec.layers[0].keys == {"size": 6, "kernel": 3, "dilation": 2}


def test_an_old_padding(tmp_path):
    graph = Graph(("rows", 5, "steps"))
    y = graph.add("Conv", graph.add("Pad", "x", pads=[0, 0, 2, 0, 0, 0]), graph.draw(4, 5, 3))
    assert kinds(agrees(graph, tmp_path, y, opset=10)) == ["conv"]
    graph.nodes[0].attribute.append(helper.make_attribute("value", 0.5))
    assert "pads with other numbers than zeros" in refusal(graph, tmp_path, y, opset=10)


def test_a_convolution_over_one_token_is_dense_and_ones_that_pad_themselves(tmp_path):
    graph = Graph(("rows", 5, "steps"))
    y = graph.add(
        "Conv", graph.add("Conv", "x", graph.draw(4, 5, 1)), graph.draw(3, 4, 2), graph.draw(3), auto_pad="SAME_LOWER"
    )
    assert kinds(agrees(graph, tmp_path, y)) == ["dense", "conv"]


def test_gemm_and_axes_of_size_one(tmp_path):
    graph = Graph(("steps", 5))
    y = graph.add("Squeeze", graph.cell("LSTM", graph.add("Unsqueeze", "x", np.array([1])), 5, 3), np.array([1, 2]))
    y = graph.add("Gemm", y, graph.draw(4, 3), graph.draw(1, 4), transB=1, alpha=0.5, beta=2.0)
    assert kinds(agrees(graph, tmp_path, graph.add("Reshape", y, np.array([1, -1, 4])))) == ["lstm", "dense"]


@pytest.mark.parametrize("dims", [("steps",), ("steps", 1), (1, "steps"), ("rows", "steps")])
def test_tokens_of_one_number_and_outputs_of_one(tmp_path, dims):
    graph = Graph(dims)
    y = graph.add("Transpose", "x") if dims in [(1, "steps"), ("rows", "steps")] else "x"
    y = graph.add("Reshape", y, np.array([0, -1, 1]))
    y = graph.add("MatMul", graph.squeezed("LSTM", y, 1, 3), graph.draw(3, 1))
    assert agrees(graph, tmp_path, graph.add("Reshape", y, np.array([-1]))).spec.output_size == 1


def test_rows_and_tokens_in_one_axis_for_a_while(tmp_path):
    graph = Graph(("rows", "steps", 5))
    y = graph.add("Transpose", graph.squeezed("GRU", graph.add("Transpose", "x", perm=[1, 0, 2]), 5, 4), perm=[1, 0, 2])
    y = graph.add("Gemm", graph.add("Flatten", y, axis=2), graph.draw(4, 3))
    shape = graph.add(
        "Concat", graph.add("Slice", graph.add("Shape", "x"), np.array([0]), np.array([2])), np.array([-1]), axis=0
    )
    assert kinds(agrees(graph, tmp_path, graph.add("Reshape", y, shape))) == ["gru", "dense"]
