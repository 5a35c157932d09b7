"""What is refused of an ONNX graph, with its sentence; a graph that is no chain may still run as it is."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from rnnstream.convert import convert, onnx_chain
from rnnstream.convert.hints import hints
from rnnstream.convert.onnx_chain import NotAChain
from rnnstream.convert.onnx_ops import OPS
from rnnstream.errors import ModelError
from tests.convert.onnx_graphs import Graph, refusal


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"direction": "reverse"}, "is reverse: it needs the end of the sequence first, and cannot be streamed."),
        ({"clip": 3.0}, "clips its gates at 3, which no layer here does."),
        ({"input_forget": 1}, "couples its input and forget gates (input_forget), which no layer here does."),
        (
            {"activations": ["Sigmoid", "Tanh", "Relu"]},
            "has Tanh for its candidate and Relu for its output; here the two are the same.",
        ),
        ({"activations": ["Sigmoid", "Affine", "Affine"]}, "has the activation Affine, which no layer here has."),
        (
            {"activations": ["Sigmoid", "Elu", "Elu"], "activation_alpha": [0.5, 0.5]},
            "has the activation Elu{'alpha': 0.5}, which no layer here has.",
        ),
        (
            {"activations": ["Sigmoid", "Elu", "Elu"], "activation_alpha": [7.0, 1.0, 1.0]},
            "has activation_alpha [7.0, 1.0, 1.0]; which of these belongs to Elu is not clear.",
        ),
    ],
)
def test_an_attribute_of_a_cell(tmp_path, said, sentence):
    graph = Graph()
    y = graph.cell("LSTM", "x", 5, 4, **said)
    assert refusal(graph, tmp_path, y) == f"the LSTM node 'node 0' {sentence}"


def test_two_directions(tmp_path):
    graph = Graph()
    y = graph.add("GRU", "x", graph.draw(2, 12, 5), graph.draw(2, 12, 4), hidden_size=4, direction="bidirectional", name="both")
    assert refusal(graph, tmp_path, y).startswith("the GRU node 'both' is bidirectional: it needs the end of the sequence")


def test_peepholes(tmp_path):
    graph = Graph()
    y = graph.cell("LSTM", "x", 5, 4, "", "", "", graph.draw(1, 12))
    assert "has peepholes (its input P)" in refusal(graph, tmp_path, y)


def test_sequences_of_different_lengths(tmp_path):
    graph = Graph()
    rows = graph.add("Gather", graph.add("Shape", "x"), np.array([1]))
    y = graph.cell("GRU", "x", 5, 4, graph.add("Cast", graph.add("Expand", np.array([5]), rows), to=TensorProto.INT32))
    assert "takes sequences of different lengths (sequence_lens [5, 5, 5])" in refusal(graph, tmp_path, y)
    graph = Graph()
    graph.inputs["lengths"] = ("ids", ("rows",))
    y = graph.cell("GRU", "x", 5, 4, graph.add("Cast", "lengths", to=TensorProto.INT32), name="cell")
    assert refusal(graph, tmp_path, y) == "the GRU node 'cell' takes the lengths of its sequences from the input 'lengths'."


def test_states_that_do_not_begin_at_zero(tmp_path):
    sentence = "begins at a state (initial_h) that is not zero; a chain out of an ONNX graph begins at zero."
    graph = Graph(("steps", 1, 5))
    assert sentence in refusal(graph, tmp_path, graph.cell("GRU", "x", 5, 4, "", graph.draw(1, 1, 4)))
    graph = Graph(("steps", 1, 5), h=(1, 1, 4))
    h = graph.add("Add", "h", np.float32(0.1))
    assert sentence in refusal(graph, tmp_path, graph.cell("GRU", "x", 5, 4, "", h))
    graph = Graph(("steps", 1, 5))
    y = graph.cell("LSTM", "x", 5, 4, "", "", graph.draw(1, 1, 4))
    assert sentence.replace("_h", "_c") in refusal(graph, tmp_path, y)


def test_a_state_out_of_the_input(tmp_path):
    graph = Graph()
    mean = graph.add("ReduceMean", "x", axes=[0])
    y = graph.cell("GRU", "x", 5, 5, "", mean)
    assert "begins at a state (initial_h) that is computed from the input" in refusal(graph, tmp_path, y)


@pytest.mark.parametrize("more", [(), ("", np.zeros((1, 2, 4), np.float32))])
def test_one_token_without_a_state(tmp_path, more):
    graph = Graph((1, 2, 5))
    assert refusal(graph, tmp_path, graph.cell("GRU", "x", 5, 4, *more)).endswith("so that it remembers nothing.")


def test_branches(tmp_path):
    graph = Graph()
    one, two = graph.squeezed("GRU", "x", 5, 4), graph.cell("GRU", "x", 5, 4, name="other")
    y = graph.add("Add", one, graph.add("Squeeze", two, np.array([1])))
    assert refusal(graph, tmp_path, y) == (
        "the GRU node 'other' works on 'x', where the graph branches; a chain has no branches."
    )
    graph = Graph()
    y = graph.squeezed("GRU", "x", 5, 5)
    assert "joins several tensors; a chain has one." in refusal(graph, tmp_path, graph.add("Concat", y, "x", axis=2))
    assert "joins two branches" in refusal(graph, tmp_path, graph.add("Mul", y, "x"))
    graph = Graph(more=("steps", "rows", 5))
    y = graph.cell("GRU", graph.add("Add", "x", "more"), 5, 4)
    assert refusal(graph, tmp_path, y) == "the outputs depend on several inputs: x, more; a chain has one."


def test_outputs(tmp_path):
    graph = Graph()
    y = graph.squeezed("GRU", "x", 5, 4)
    outputs = y, graph.add("Tanh", y)
    assert refusal(graph, tmp_path, *outputs) == (
        f"the graph has several outputs: {outputs[0]}, {outputs[1]}; `stop` in --spec names the one to end with."
    )
    graph = Graph()
    graph.cell("LSTM", "x", 5, 4, outputs=["", "h", "c"])
    assert refusal(graph, tmp_path, "h", "c").startswith("the graph has only last states for its outputs: h, c; `stop`")
    y = graph.add("Tanh", "c", name="of cells")
    assert refusal(graph, tmp_path, y) == (
        "the Tanh node 'of cells' works on 'c', which is no tensor of the chain any more, or a cell's state."
    )


def test_weights_that_no_node_takes(tmp_path):
    graph = Graph()
    y = graph.cell("GRU", "x", 5, 4)
    graph.weights.append(numpy_helper.from_array(graph.draw(3, 4), "forgotten"))
    assert refusal(graph, tmp_path, y) == "no node takes the initializer 'forgotten' [3, 4], which looks like weights."


def test_shapes_that_do_not_fit_or_are_not_said(tmp_path):
    graph = Graph()
    assert "Input W must have shape {1,12,5}" in refusal(
        graph, tmp_path, graph.add("GRU", "x", graph.draw(1, 12, 6), graph.draw(1, 12, 4), hidden_size=4)
    )
    graph = Graph(("a", "b", "c"))
    assert refusal(graph, tmp_path, graph.cell("GRU", "x", 5, 4)) == (
        "the graph does not say how many numbers a token of its input 'x' has."
    )


def test_numbers_that_are_not_finite(tmp_path):
    graph = Graph()
    y = graph.add("Add", graph.cell("GRU", "x", 5, 4), np.array([1, np.nan, 0, 0], np.float32))
    assert refusal(graph, tmp_path, y, kind=ModelError) == "The tensor b2 holds NaN or infinity."


@pytest.mark.parametrize(
    ("spec", "kind", "sentence"),
    [
        ({"layers": [{"kind": "gru"}]}, ModelError, "`layers` and `ignore` in --spec are for files without a graph"),
        ({"ignore": ["*"]}, ModelError, "`layers` and `ignore` in --spec are for files without a graph"),
        ({"stop": "z"}, ModelError, "`stop` in --spec is 'z', but the graph has no tensor of that name; its inputs are x, its"),
        ({"start": "z"}, ModelError, "`start` in --spec is 'z', but the graph has no tensor of that name; its inputs are x"),
        ({"start": "gru0", "stop": "gru0"}, ModelError, "`start` and `stop` in --spec are both 'gru0'; there is no node"),
        ({"start": "tanh1", "stop": "gru0"}, ModelError, "the tensor 'gru0' does not depend on 'tanh1'."),
        ({"size": 6}, ModelError, "`size` in --spec is 6, but by the graph it is 5."),
        ({"batch": True}, NotAChain, "`states`, `constants` and `batch` in --spec are for graphs that run as they are"),
    ],
)
def test_a_spec_that_does_not_fit(tmp_path, spec, kind, sentence):
    graph = Graph()
    y = graph.add("Tanh", graph.cell("GRU", "x", 5, 4))
    assert refusal(graph, tmp_path, y, spec=spec, kind=kind).startswith(sentence)


def test_nothing_but_a_head(tmp_path):
    graph = Graph()
    sentence = "the graph has no layer but activations, and nothing that was trained."
    assert refusal(graph, tmp_path, graph.add("Softmax", "x")) == sentence


def test_a_node_that_is_made_to_surprise(tmp_path, monkeypatch):
    graph = Graph()
    y = graph.add("Tanh", graph.cell("GRU", "x", 5, 4))
    for problem in (IndexError, ValueError, ZeroDivisionError, RecursionError):
        monkeypatch.setitem(OPS, "Tanh", raising(problem("so it is")))
        assert refusal(graph, tmp_path, y) == (
            f"the graph has something that is not known here ({problem.__name__}: so it is)."
        )


def raising(problem):
    def op(walk, node):
        raise problem

    return op


def test_ids_are_not_dense(tmp_path):
    graph = Graph(("steps", "rows"), "ids")
    y = graph.cell("GRU", graph.add("Gather", graph.draw(6, 5), "x"), 5, 4)
    sentence = "`input` in --spec is dense, but the graph takes the input 'x' for ids."
    assert refusal(graph, tmp_path, y, spec={"input": "dense"}, kind=ModelError) == sentence


@pytest.mark.parametrize("content", [b"", b"not an onnx file", None])
def test_a_damaged_file(tmp_path, content):
    graph = Graph()
    path = graph.save(tmp_path, graph.cell("GRU", "x", 5, 4))
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(ModelError, match=r"made.onnx: it (cannot be read as an ONNX graph|is not as ONNX says)"):
        convert(path)


def test_weights_in_a_file_that_is_gone(tmp_path):
    graph = Graph()
    path = graph.save(tmp_path, graph.cell("GRU", "x", 5, 64))
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=100)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"it cannot be read as an ONNX graph: .*weights\.bin"):
        convert(path)


def test_outputs_that_the_graph_does_not_have(tmp_path):
    graph = Graph((1, 1, 5), h=(1, 1, 4))
    path = graph.save(tmp_path, graph.cell("GRU", "x", 5, 4, "", "h"))
    with pytest.raises(
        ModelError, match="takes one token at a time, and not all of its states are among its inputs and outputs"
    ):
        onnx_chain.run_source(path, hints(None), convert(path), [np.zeros(5)] * 3)
    graph = Graph((6, 2, 5))
    y = graph.add("Reshape", graph.cell("GRU", "x", 5, 4), np.array([6, 2, 4]))
    path = graph.save(tmp_path, graph.add("Gather", y, np.array(-1), axis=0))
    with pytest.raises(ModelError, match="takes 6 tokens and gives the output of the last; it has none of the others"):
        onnx_chain.run_source(path, hints(None), convert(path), [np.zeros(5)] * 6)


def test_without_the_libraries(tmp_path):
    graph = Graph()
    path = graph.save(tmp_path, graph.cell("GRU", "x", 5, 4))
    code = f"import sys; sys.modules['onnxruntime'] = None; from rnnstream.convert import convert; convert({str(path)!r})"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "ModelError" in ended.stderr
    assert "ONNX graphs need onnx and onnxruntime: pip install 'rnnstream[onnx]'" in ended.stderr
