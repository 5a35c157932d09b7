"""How the tokens come into an ONNX graph, how its states begin and are handed on, and where it ends."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rnnstream.convert import convert, onnx_chain
from rnnstream.convert.check import check
from rnnstream.convert.hints import hints
from tests.convert.onnx_graphs import Graph, agrees, kinds, runtime

TOLERANCE = 2e-5
SIX = (
    "the graph takes 6 tokens at a time, so that what it does with more of them cannot be seen; the chain takes them one by "
    "one and goes on."
)


@pytest.mark.parametrize("kind", ["ids", "float"])
def test_ids_into_a_table(tmp_path, kind):
    graph = Graph(("rows", "steps"), kind)
    y = graph.add("Gather", graph.draw(6, 5), graph.add("Cast", "x", to=TensorProto.INT32))
    converted = agrees(graph, tmp_path, graph.cell("RNN", graph.add("Transpose", y, perm=[1, 0, 2]), 5, 3))
    assert kinds(converted) == ["embedding", "rnn"]
    assert (converted.spec.input_kind, converted.spec.input_size) == ("token", 6)


def test_ids_as_one_hot_vectors(tmp_path):
    graph = Graph(("rows", "steps"), "ids")
    y = graph.add("Cast", graph.add("OneHot", "x", np.int64(6), np.array([0, 1])), to=TensorProto.FLOAT)
    converted = agrees(graph, tmp_path, graph.cell("RNN", graph.add("Transpose", y, perm=[1, 0, 2]), 6, 3))
    assert kinds(converted) == ["onehot", "rnn"]


def test_vectors_that_are_said_to_be_one_hot(tmp_path):
    graph = Graph()
    spec = {"input": "token", "vocabulary": list("abcde"), "head": "categorical", "name": "letters"}
    converted = agrees(graph, tmp_path, graph.cell("LSTM", "x", 5, 5), spec=spec)
    assert kinds(converted) == ["onehot", "lstm"]
    assert (converted.spec.vocabulary, converted.spec.head, converted.spec.name) == (tuple("abcde"), "categorical", "letters")
    assert converted.notes == ["the 5 numbers of a token are taken to be one-hot."]


def test_a_graph_of_halves(tmp_path):
    graph = Graph(kind="half")
    weights = [graph.draw(*shape).astype(np.float16) for shape in ((1, 16, 5), (1, 16, 4), (1, 32))]
    path = graph.save(tmp_path, graph.add("LSTM", "x", *weights, hidden_size=4))
    converted = convert(path)
    assert converted.notes == ["the graph computes in float16, the chain in float32."]
    assert converted.tensors["wax1"].dtype == np.float32
    assert check(path, None, converted, steps=16).largest <= 2e-3


@pytest.mark.parametrize("place", ["of the tokens", "of the weights"])
def test_halves_in_the_midst_of_a_graph(tmp_path, place):
    graph, weights = Graph(), Graph(seed=1).draw(5, 5).astype(np.float16)
    if place == "of the tokens":
        y = graph.add("MatMul", graph.add("Cast", "x", to=TensorProto.FLOAT16), weights)
        y, notes = graph.add("Cast", y, to=TensorProto.FLOAT), ["the graph computes in float16, the chain in float32."]
    else:  # they are widened, and then everything is in float32
        y, notes = graph.add("MatMul", "x", graph.add("Cast", weights, to=TensorProto.FLOAT)), []
    path = graph.save(tmp_path, graph.cell("GRU", y, 5, 4))
    assert (convert(path).notes, kinds(convert(path))) == (notes, ["dense", "gru"])


def test_a_branch_that_the_weights_decide(tmp_path):
    graph = Graph()
    y = graph.squeezed("GRU", "x", 5, 4)
    wide = graph.add("Equal", graph.add("Gather", graph.add("Shape", "x"), np.array(2)), np.array(5))
    branches = {}
    for key, op in (("then_branch", "Tanh"), ("else_branch", "Relu")):
        out = [helper.make_tensor_value_info(f"{op} out", TensorProto.FLOAT, ["p", "q", 4])]
        branches[key] = helper.make_graph([helper.make_node(op, [y], [f"{op} out"])], op, [], out)
    assert kinds(agrees(graph, tmp_path, graph.add("If", wide, **branches))) == ["gru", "tanh"]


def test_functions_of_the_model_and_weights_in_another_file(tmp_path):
    graph = Graph()
    y = graph.add("Twice", graph.cell("GRU", "x", 5, 64), domain="own")
    plain = helper.make_graph(
        graph.nodes,
        "made",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["steps", "rows", 5])],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, ["steps", 1, "rows", 64])],
        graph.weights,
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    nodes = [helper.make_node("Tanh", ["a"], ["b"]), helper.make_node("Sigmoid", ["b"], ["c"])]
    function = helper.make_function("own", "Twice", ["a"], ["c"], nodes, imports[:1])
    model = helper.make_model(plain, opset_imports=imports, functions=[function], ir_version=8)
    path = tmp_path / "made.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=100)
    assert (tmp_path / "weights.bin").stat().st_size > 4 * 3 * 64 * 64
    converted = convert(path)
    assert (kinds(converted), converted.spec.head) == (["gru", "tanh"], "bernoulli")
    assert check(path, None, converted, steps=16).largest <= TOLERANCE


def test_a_part_of_a_graph(tmp_path):
    graph = Graph(("rows", 8))  # so many numbers at once, of which a convolution makes tokens of 3 numbers
    tokens = graph.add("Conv", graph.add("Unsqueeze", "x", np.array([1])), graph.draw(3, 1, 4), strides=[4], name="front")
    tokens = graph.add("Transpose", graph.add("Abs", tokens), perm=[2, 0, 1])
    y = graph.squeezed("GRU", tokens, 3, 4)
    end = graph.add("ReduceMax", y, axes=[0])
    path = graph.save(tmp_path, end)
    spec = {"start": tokens, "stop": y}
    converted = convert(path, spec)
    assert kinds(converted) == ["gru"]
    assert converted.notes == [
        f"left out, because the chain ends with {y}: {end}.",
        f"the chain begins with {tokens}; what computes it is left out.",
    ]
    xs = list(graph.draw(9, 3))
    ys = onnx_chain.run_source(path, hints(spec), converted, xs)[1]
    assert np.abs(ys - converted.network().forward(xs)).max() <= TOLERANCE


def computed(graph, axis, h, fill=0.0):
    """An initial state as exporters compute it, from the shape of the input."""
    rows = graph.add("Gather", graph.add("Shape", "x"), np.array([axis]))
    shape = graph.add("Concat", np.array([1]), rows, np.array([h]), axis=0)
    return graph.add("ConstantOfShape", shape, value=numpy_helper.from_array(np.array([fill], np.float32)))


@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("rows", ["rows", 1, 4])
def test_states_that_begin_at_zero(tmp_path, op, rows):
    graph = Graph(("steps", rows, 5))
    count = 2 if op == "LSTM" else 1
    y = graph.squeezed(op, "x", 5, 4, "", *[computed(graph, 1, 4) for _ in range(count)])
    zeros = "" if rows == "rows" else np.zeros((1, rows, 3), np.float32)
    y = graph.cell(op, y, 4, 3, "", *[zeros] * count)
    assert kinds(agrees(graph, tmp_path, y)) == [op.lower()] * 2


def test_lengths_that_are_all_the_same(tmp_path):
    graph = Graph()
    shape = graph.add("Shape", "x")
    lengths = graph.add("Expand", graph.add("Gather", shape, np.array([0])), graph.add("Gather", shape, np.array([1])))
    lengths = graph.add("Cast", lengths, to=TensorProto.INT32)
    assert kinds(agrees(graph, tmp_path, graph.cell("GRU", "x", 5, 4, lengths))) == ["gru"]


@pytest.mark.parametrize("steps", [1, "steps", 6])
def test_states_that_are_handed_in_and_out(tmp_path, steps):
    graph = Graph((steps, "rows", 5), h=(2, "rows", 4), c=(2, "rows", 4))
    y, ends = "x", []
    for layer in range(2):
        first = [graph.add("Slice", name, np.array([layer]), np.array([layer + 1]), np.array([0])) for name in "hc"]
        names = [f"Y{layer}", f"h{layer}", f"c{layer}"]
        graph.cell("LSTM", y, 5 if not layer else 4, 4, "", *first, outputs=names)
        y = graph.add("Squeeze", names[0], np.array([1]))
        ends.append(names[1:])
    h, c = (graph.add("Concat", *pair, axis=0) for pair in zip(*ends, strict=True))
    if steps == 6:
        y = graph.add("Reshape", y, np.array([6, -1, 4]))
    converted = agrees(graph, tmp_path, y, h, c)
    assert kinds(converted) == ["lstm", "lstm"]
    notes = [
        "the state is zero at first and then kept, so that nothing is handed in for h, c.",
        f"left out, because they are the state: {h}, {c}.",
        SIX,
    ]
    assert converted.notes == notes[: 3 if steps == 6 else 2]


def test_one_token_at_a_time_whose_output_is_the_state(tmp_path):
    graph = Graph((1, 1, 5), h=(1, 1, 4))
    graph.cell("GRU", "x", 5, 4, "", "h", outputs=["", "hn"])
    y = graph.add("Gemm", graph.add("Squeeze", "hn", np.array([0])), graph.draw(4, 3))
    assert kinds(agrees(graph, tmp_path, y, "hn")) == ["gru", "dense"]


@pytest.mark.parametrize(
    ("dims", "state"),
    [
        (("steps", "rows", 5), (1, 1, 4)),  # made for one row, whatever it says of its input
        (("rows", "steps", 5), (1, 1, 4)),
        (("steps", "rows", 5), (1, None, 4)),
        (("rows", "steps", 5), (1, None, 4)),
        ((3, "steps", 5), (1, 3, 4)),
        (("steps", 3, 5), (1, None, 4)),
    ],
)
def test_how_many_rows_a_state_has(tmp_path, dims, state):
    graph = Graph(dims, h=state)
    first = dims[1] == "steps"
    y = graph.squeezed("GRU", graph.add("Transpose", "x", perm=[1, 0, 2]) if first else "x", 5, 4, "", "h")
    assert kinds(agrees(graph, tmp_path, graph.add("Transpose", y, perm=[1, 0, 2]) if first else y)) == ["gru"]


@pytest.mark.parametrize("how", ["Y_h", "Gather", "Slice"])
def test_a_graph_that_answers_after_the_last_token(tmp_path, how):
    graph = Graph()
    graph.cell("GRU", "x", 5, 4, outputs=["Y", "hn"])
    if how == "Y_h":
        y = graph.add("Squeeze", "hn", np.array([0]))
    elif how == "Gather":
        y = graph.add("Gather", graph.add("Squeeze", "Y", np.array([1])), np.array(-1), axis=0)
    else:
        y = graph.add("Slice", "Y", np.array([-1]), np.array([np.iinfo(np.int64).max]), np.array([0]))
    converted = agrees(graph, tmp_path, graph.add("MatMul", y, graph.draw(4, 3)))
    assert kinds(converted) == ["gru", "dense"]
    assert converted.notes == ["the graph gives the output of the last token only; here every token has one."]


def test_a_graph_whose_only_output_is_the_last_state(tmp_path):
    graph = Graph()
    graph.cell("GRU", "x", 5, 4, outputs=["", "last"])
    assert kinds(agrees(graph, tmp_path, graph.add("Squeeze", "last", np.array([0])))) == ["gru"]


def test_a_length_that_nothing_in_the_graph_depends_on_is_none(tmp_path):
    graph = Graph((6, 2, 5))
    y = graph.add("Gather", graph.squeezed("GRU", "x", 5, 4), np.array(-1), axis=0)
    assert "tokens at a time" not in str(agrees(graph, tmp_path, y).notes)


def test_a_graph_of_a_fixed_length_gives_the_first_outputs(tmp_path):
    graph = Graph((6, 2, 5))
    path = graph.save(tmp_path, graph.add("Reshape", graph.cell("GRU", "x", 5, 4), np.array([6, 2, 4])))
    converted = convert(path)
    assert converted.notes == [SIX]
    xs = graph.draw(9, 5)
    ys = onnx_chain.run_source(path, hints(None), converted, list(xs))[1]
    theirs = runtime(path, x=np.stack([xs[:6], xs[3:]], axis=1))[0][:, 0]
    assert ys.shape == (6, 4)
    assert np.abs(ys - theirs).max() <= TOLERANCE
    assert np.abs(converted.network().forward(list(xs[:6])) - theirs).max() <= TOLERANCE


def test_a_graph_of_a_fixed_length_with_a_convolution_cannot_go_on(tmp_path):
    graph = Graph((6, 1, 5), h=(1, 1, 4))
    y = graph.add("Conv", graph.add("Transpose", "x", perm=[1, 2, 0]), graph.draw(5, 5, 3), pads=[2, 0])
    y = graph.add("Reshape", graph.add("Transpose", y, perm=[2, 0, 1]), np.array([6, 1, 5]))
    graph.cell("GRU", y, 5, 4, "", "h", outputs=["Y", "hn"])
    path = graph.save(tmp_path, "Y", "hn")
    converted, xs = convert(path), graph.draw(12, 5)
    ys = onnx_chain.run_source(path, hints(None), converted, list(xs))[1]
    assert ys.shape == (6, 4)  # the next 6 would begin with a convolution that has forgotten
    assert np.abs(ys - converted.network().forward(list(xs))[:6]).max() <= TOLERANCE
