"""The nodes of an ONNX graph that are refused, each with its sentence."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from rnnstream.convert import convert
from tests.convert.onnx_graphs import Graph, refusal


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({}, "looks 2 tokens ahead, or leaves them out; padded by 2 zeros in front, it would be causal and could be streamed."),
        ({"pads": [1, 1]}, "looks 1 tokens ahead, or leaves them out; padded by 2 zeros in front"),
        ({"auto_pad": "SAME_UPPER"}, "looks 1 tokens ahead"),
        ({"pads": [3, 0]}, "is padded by 1 tokens too many; padded by 2 zeros in front"),
        ({"strides": [2], "pads": [2, 0]}, "has 1 groups and strides [2]; here all are 1."),
    ],
)
def test_a_convolution_that_cannot_be_streamed(tmp_path, said, sentence):
    graph = Graph(("rows", 5, "steps"))
    y = graph.add("Conv", "x", graph.draw(5, 5, 3), name="conv", **said)
    assert sentence in refusal(graph, tmp_path, y)


def test_other_convolutions(tmp_path):
    graph = Graph(("rows", 6, "steps"))
    assert "has 3 groups" in refusal(graph, tmp_path, graph.add("Conv", "x", graph.draw(6, 2, 3), group=3, pads=[2, 0]))
    graph = Graph(("rows", 5, "steps"))
    padded = graph.add("Conv", "x", graph.draw(6, 5, 3), pads=[2, 2])
    assert "has 2 tokens more than the input, which a padding put there" in refusal(graph, tmp_path, padded)
    graph = Graph(("rows", 5, "steps"))
    y = graph.add("Sigmoid", graph.add("Pad", "x", np.array([0, 0, 2, 0, 0, 0])), name="early")
    y = graph.add("Conv", y, graph.draw(6, 5, 3))
    assert refusal(graph, tmp_path, y) == "the Sigmoid node 'early' stands between a padding and its convolution."
    graph = Graph(("rows", 5, "steps"))
    assert "pads with other numbers than zeros" in refusal(
        graph, tmp_path, graph.add("Pad", "x", np.array([0, 0, 2, 0, 0, 0]), np.float32(1))
    )


@pytest.mark.parametrize(
    ("start", "end", "axis", "step", "sentence"),
    [
        (-2, 1 << 62, 0, 1, "cuts tokens out of the sequence, as an unrolled loop does"),
        (1, 1 << 62, 0, 1, "cuts tokens out of the sequence"),
        (0, -1, 0, 1, "cuts tokens out of the sequence"),
        (6, 7, 0, 1, "cuts tokens out of the sequence"),  # the last one of 7, and not of 11
        (0, 1, 1, 1, "takes 1 of 3 along an axis that is not the tokens."),
        (0, 2, 2, 1, "takes 2 of 4 along an axis that is not the tokens."),
        (-1, -(1 << 62), 0, -1, "goes through an axis in steps of -1; a chain takes every token, in their order."),
    ],
)
def test_a_slice(tmp_path, start, end, axis, step, sentence):
    graph = Graph()
    y = graph.add("Slice", graph.squeezed("GRU", "x", 5, 4), *[np.array([one]) for one in (start, end, axis, step)])
    assert sentence in refusal(graph, tmp_path, y)


def test_what_is_not_alike_for_all_tokens_and_rows(tmp_path):
    graph = Graph()
    count = graph.add("Cast", graph.add("Gather", graph.add("Shape", "x"), np.array(0)), to=TensorProto.FLOAT)
    y = graph.add("Div", graph.squeezed("GRU", "x", 5, 4), count)
    assert "does something else with longer sequences or more rows" in refusal(graph, tmp_path, y)
    for dims in ("rows", 2):
        graph = Graph((7, dims, 5))
        y = graph.add("Add", graph.squeezed("GRU", "x", 5, 4), graph.draw(7, 1, 4), name="places")
        assert refusal(graph, tmp_path, y) == (
            "the Add node 'places' takes [7, 1, 4], which is not one number for each feature."
        )
    graph = Graph()
    y = graph.add("Softmax", graph.squeezed("GRU", "x", 5, 4), axis=1, name="rows")
    assert refusal(graph, tmp_path, y) == "the Softmax node 'rows' is no softmax over the features of a token."
    graph = Graph()
    y = graph.add("Squeeze", graph.cell("GRU", "x", 5, 4), axes=[1])
    y = graph.add("Softmax", y, name="rows and features")  # up to opset 12, over all axes from the second one on
    assert refusal(graph, tmp_path, y, opset=12).startswith("the Softmax node 'rows and features' is no softmax")


@pytest.mark.parametrize("way", ["divided", "chosen", "branched"])
def test_what_is_right_for_one_number_of_tokens(tmp_path, way):
    graph = Graph((6, 2, 5))
    y, count = graph.squeezed("GRU", "x", 5, 4), graph.add("Gather", graph.add("Shape", "x"), np.array(0))
    if way == "divided":  # differs between any two numbers
        number = graph.add("Cast", count, to=TensorProto.FLOAT)
    elif way == "chosen":  # differs between 6 and the others alone
        number = graph.add("Where", graph.add("Equal", count, np.array(6)), np.float32(2), np.float32(3))
    else:
        branches = {}
        for key, size in (("then_branch", 2), ("else_branch", 3)):
            made = helper.make_node("Constant", [], [key], value_float=float(size))
            out = [helper.make_tensor_value_info(key, TensorProto.FLOAT, [])]
            branches[key] = helper.make_graph([made], key, [], out)
        number = graph.add("If", graph.add("Equal", count, np.array(6)), **branches)
    assert refusal(graph, tmp_path, graph.add("Div", y, number)) == (
        "the graph takes 6 tokens at a time and would do something else with another number of them; in a chain all tokens "
        "are alike."
    )


def test_statistics_and_scales_that_are_not_fixed_for_a_feature(tmp_path):
    graph = Graph(("steps", 5))
    tensors = [graph.draw(5), graph.draw(5), graph.draw(5), np.abs(graph.draw(5))]
    y = graph.add("BatchNormalization", "x", *tensors, outputs=["y", "m", "v", "sm", "sv"], name="train")[0]
    assert refusal(graph, tmp_path, y, opset=9).startswith("the BatchNormalization node 'train' does not normalise")
    for more in (0, 1):
        graph = Graph((7, "rows", 5))
        given = [graph.draw(5)] * more + [graph.draw(7, 1, 5)]
        y = graph.add("LayerNormalization", "x", *given, name="places")
        assert refusal(graph, tmp_path, y) == (
            "the LayerNormalization node 'places' takes [7, 1, 5], which is not one number for each feature."
        )


@pytest.mark.parametrize("op", ["RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli"])
def test_numbers_at_random(tmp_path, op):
    graph = Graph()
    given = () if op in ("RandomNormal", "RandomUniform") else (np.full((5, 5), 0.5, np.float32),)
    matrix = graph.add(op, *given, seed=1.0, name="dice", **({} if given else {"shape": [5, 5]}))
    sentence = f"the {op} node 'dice' draws numbers at random, which no layer here does."
    assert refusal(graph, tmp_path, graph.add("MatMul", "x", matrix)) == sentence


def test_the_last_token_is_not_the_beginning_of_a_sequence(tmp_path):
    graph = Graph()
    graph.cell("GRU", "x", 5, 4, outputs=["", "last"])
    y = graph.cell("GRU", "last", 4, 4, name="decoder")
    assert refusal(graph, tmp_path, y).startswith("the GRU node 'decoder' works on axes that are not tokens, rows and features")


def test_axes_that_are_mixed(tmp_path):
    graph = Graph(("rows", 6, 5))
    y = graph.squeezed("GRU", graph.add("Transpose", "x", perm=[1, 0, 2]), 5, 4)
    y = graph.add("Flatten", graph.add("Transpose", y, perm=[1, 0, 2]), axis=1)
    y = graph.add("Gemm", y, graph.draw(24, 3), name="all of them")
    assert refusal(graph, tmp_path, y).startswith("the Gemm node 'all of them' multiplies along another axis than the features")
    graph = Graph()
    y = graph.add("Reshape", graph.squeezed("GRU", "x", 5, 4), np.array([0, 0, 2, 2]), name="heads")
    assert refusal(graph, tmp_path, y) == (
        "the Reshape node 'heads' makes [7, 3, 2, 2] of [7, 3, 4], which cuts tokens or features in pieces."
    )
    graph = Graph()
    assert "cannot be told from its nodes" in refusal(graph, tmp_path, graph.add("Tanh", "x"))


def test_nodes_without_a_layer(tmp_path):
    graph = Graph()
    y = graph.add("ReduceMean", graph.squeezed("GRU", "x", 5, 4), axes=[-1], name="mean")
    sentence = "the ReduceMean node 'mean' is no layer here; `stop` in --spec can end the chain in front of it."
    assert refusal(graph, tmp_path, y) == sentence
    graph = Graph()
    branches = {}
    for key, op in (("then_branch", "Tanh"), ("else_branch", "Relu")):
        out = [helper.make_tensor_value_info(f"{op} out", TensorProto.FLOAT, ["p", "q", 5])]
        branches[key] = helper.make_graph([helper.make_node(op, ["x"], [f"{op} out"])], op, [], out)
    many = graph.add("Less", graph.add("Gather", graph.add("Shape", "x"), np.array(0)), np.array(9))
    y = graph.cell("GRU", graph.add("If", many, **branches), 5, 4)
    assert "does something else with longer sequences" in refusal(graph, tmp_path, y)
    graph = Graph()
    positive = graph.add("Less", np.float32(0), graph.add("ReduceSum", "x", keepdims=0, name="sum"))
    y = graph.cell("GRU", graph.add("If", positive, **branches), 5, 4)
    assert refusal(graph, tmp_path, y).startswith("the ReduceSum node 'sum' is no layer here")


def test_numbers_that_are_rounded(tmp_path):
    graph = Graph()
    y = graph.cell(
        "GRU", graph.add("Cast", graph.add("Cast", "x", to=TensorProto.INT64), to=TensorProto.FLOAT, name="back"), 5, 4
    )
    assert refusal(graph, tmp_path, y).startswith("the Cast node 'back' makes features of whole numbers")


def test_a_tensor_that_is_in_the_chain_no_more(tmp_path):
    graph = Graph()
    product = graph.add("MatMul", "x", graph.draw(5, 5))
    y = graph.squeezed("GRU", graph.add("Add", product, graph.draw(5)), 5, 5)  # the product and its bias are one layer
    y = graph.add("Add", y, graph.add("Add", product, graph.draw(5), name="again"))
    assert refusal(graph, tmp_path, y) == (
        f"the Add node 'again' works on {product!r}, which is no tensor of the chain any more, or a cell's state."
    )


def test_the_features_of_a_token_are_one_axis(tmp_path):
    graph = Graph()
    y = graph.add("Unsqueeze", graph.squeezed("GRU", "x", 5, 4), np.array([3]))
    assert "multiplies along another axis than the features" in refusal(
        graph, tmp_path, graph.add("MatMul", y, graph.draw(1, 3))
    )
    graph = Graph(("steps", 5, 5))
    y = graph.add("Transpose", graph.add("MatMul", "x", graph.draw(5, 5)), perm=[0, 2, 1])  # rows and features changed about
    assert "works on axes that are not tokens, rows and features" in refusal(graph, tmp_path, graph.cell("GRU", y, 5, 4))
    graph = Graph()
    y = graph.add("Pad", graph.add("MatMul", "x", graph.draw(5, 4)), np.array([0, 0, 2, 0, 0, 0]))
    assert "pads another axis than the tokens" in refusal(graph, tmp_path, y)
    graph = Graph()
    y = graph.add("Mul", graph.squeezed("GRU", "x", 5, 1), graph.draw(4))
    assert "takes [4], which is not one number for each feature." in refusal(graph, tmp_path, y)


def test_the_last_token_where_a_padding_is_not_cut_off(tmp_path):
    for how in ("Slice", "Y_h"):
        graph = Graph(("rows", 5, "steps"))
        y = graph.add("Transpose", graph.add("Conv", "x", graph.draw(5, 5, 3), pads=[2, 2]), perm=[2, 0, 1])
        if how == "Y_h":
            graph.cell("GRU", y, 5, 4, outputs=["", "last"])
            assert "works on 'last', which is no tensor" in refusal(graph, tmp_path, graph.add("Tanh", "last"))
        else:
            y = graph.add("Slice", y, np.array([-1]), np.array([np.iinfo(np.int64).max]), np.array([0]))
            assert "cuts tokens out of the sequence" in refusal(graph, tmp_path, y)


def test_a_window_in_a_graph_for_one_token(tmp_path):
    graph = Graph(("rows", 5, 1))
    y = graph.add("Conv", "x", graph.draw(5, 5, 3), pads=[2, 0])
    assert "works on axes that are not rows, features and tokens" in refusal(graph, tmp_path, y)
    graph = Graph(("rows", 5, 1))
    y = graph.add("Conv", graph.add("Pad", "x", np.array([0, 0, 2, 0, 0, 0])), graph.draw(5, 5, 3))
    assert "pads another axis than the tokens" in refusal(graph, tmp_path, y)


def test_gates_of_branches(tmp_path):
    graph = Graph()
    y = graph.add("Mul", "x", graph.add("Sigmoid", graph.add("MatMul", "x", graph.draw(5, 5))))
    assert "here only a sum and x * sigmoid(x) can be." in refusal(graph, tmp_path, y)
    graph = Graph()
    y = graph.squeezed("GRU", "x", 5, 4)
    two = graph.add("MatMul", y, graph.draw(4, 4))
    y = graph.add("Add", two, graph.add("Gather", y, np.array(-1), axis=0))
    assert "joins two branches; only an earlier tensor of the chain can be added" in refusal(graph, tmp_path, y)
    graph = Graph()
    y = graph.squeezed("GRU", "x", 5, 4)
    assert "divides by features" in refusal(graph, tmp_path, graph.add("Div", np.float32(1), y))


def test_ids_that_are_no_ids(tmp_path):
    graph = Graph(("steps", "rows"), "ids")
    y = graph.add("Add", graph.add("Gather", graph.draw(6, 5), "x"), graph.add("Gather", graph.draw(6, 5), "x", name="second"))
    assert refusal(graph, tmp_path, graph.cell("GRU", y, 5, 4)).startswith("the Gather node 'second' takes ids in the midst")
    graph = Graph(("steps", "rows"), "ids")
    y = graph.add("OneHot", "x", np.int64(5), np.array([1, 0], np.float32))
    assert "does not put a 1 among zeros along the last axis" in refusal(graph, tmp_path, graph.cell("GRU", y, 5, 4))
    graph = Graph(("steps", "rows"), "ids")
    y = graph.add("Gather", graph.draw(5, 6), "x", axis=1)
    assert "an embedding is the rows of a matrix" in refusal(graph, tmp_path, y)
    graph = Graph()
    y = graph.add("Gather", graph.draw(6, 5), graph.add("Cast", graph.squeezed("GRU", "x", 5, 4), to=TensorProto.INT64))
    assert "rounds the numbers of a layer" in refusal(graph, tmp_path, y)


def test_products_from_the_other_side(tmp_path):
    graph = Graph((4, "steps"))
    assert "multiplies from the left" in refusal(graph, tmp_path, graph.add("Gemm", "x", graph.draw(4, 3), transA=1))
    graph = Graph((4, "steps"))
    assert "multiplies from the left" in refusal(graph, tmp_path, graph.add("MatMul", graph.draw(3, 4), "x"))
    graph = Graph((3, 5))
    y = graph.add("Gemm", "x", graph.draw(5, 3), graph.draw(3, 1))
    assert "adds [3, 1], which is not a number for each output" in refusal(graph, tmp_path, y)


def test_weights_that_are_no_constants(tmp_path):
    graph = Graph()
    y = graph.squeezed("GRU", "x", 5, 4)
    y = graph.add("MatMul", y, graph.add("Transpose", y, perm=[0, 2, 1]), name="attention")
    sentence = "the MatMul node 'attention' takes 'transpose2', which is computed from the input, where a layer here has fixed"
    assert refusal(graph, tmp_path, y) == f"{sentence} numbers."


def test_whole_numbers_that_are_multiplied(tmp_path):
    graph = Graph(("steps", "rows", 5), "ids")
    y = graph.add("MatMul", "x", np.arange(10).reshape(5, 2), name="ints")
    y = graph.add("Cast", y, to=TensorProto.FLOAT)
    assert refusal(graph, tmp_path, y) == "the MatMul node 'ints' works on whole numbers, as if they were no ids."


def test_dropout_as_in_training(tmp_path):
    graph = Graph()
    y = graph.add("Dropout", graph.cell("GRU", "x", 5, 4), np.float32(0.5), np.array(True))
    assert "drops numbers at random, as in training" in refusal(graph, tmp_path, y)
    graph = Graph()
    graph.add("Dropout", graph.cell("GRU", "x", 5, 4), np.float32(0.5), outputs=["y"])
    assert convert(graph.save(tmp_path, "y")).spec.layers[-1].kind == "gru"
