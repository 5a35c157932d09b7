"""Which inputs of a graph are states, and what is refused: each with a sentence that says what to do."""

import builtins
import re
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from rnnstream.adapters import OnnxStep
from rnnstream.adapters.onnx_graph import Value, pairs
from rnnstream.adapters.onnx_step import has_hints
from rnnstream.errors import ModelError

from .graphs import H, K, V, elman, lstm, model, node, value

F = np.dtype(np.float32)


def step(graph, **hints):
    return OnnxStep(graph.SerializeToString(), hints)


def values(*names, dims=("B", 4)):
    return [Value(name, F, dims) for name in names]


PAIRS = [
    ("h", "hn"),
    ("h0 c0", "hn cn"),
    ("h c", "hn cn"),
    ("h_0 c_0", "h_n c_n"),
    ("h c", "h_out c_out"),
    ("hin cin", "hout cout"),
    ("h_in c_in", "h_out c_out"),
    ("state", "stateN"),
    ("state_in", "state_out"),
    ("state", "new_state"),
    ("state", "state_next"),
    ("state", "stateOut"),
    ("prev_state", "state"),
    ("decoder.state", "decoder.state_n"),
    ("past_x", "present_x"),
    ("state_0 state_1", "new_state_0 new_state_1"),
    ("h.0 h.1", "h_n.0 h_n.1"),
    ("cache_key cache_value", "new_cache_key new_cache_value"),
    ("conv_cache tra_cache inter_cache", "conv_cache_out tra_cache_out inter_cache_out"),
    ("in_state0 in_state1", "out_state0 out_state1"),
    ("lstm_hidden_input lstm_cell_input", "lstm_hidden_output lstm_cell_output"),
]


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_states_are_found_by_their_names(before, after):
    before, after = before.split(), after.split()
    found = pairs(values("input", *before, "x"), values("output", *reversed(after), "y"), {})
    assert found == dict(zip(before, after, strict=True))


def test_tokens_and_outputs_are_no_states():
    assert pairs(values("input_1", "h"), values("output_1", "hn"), {}) == {"h": "hn"}
    assert pairs(values("in", "h"), values("out", "hn"), {}) == {"h": "hn"}


@pytest.mark.parametrize("dims", [("B", 5), (1, "B", 4)])
def test_a_state_of_another_shape_is_none(dims):
    with pytest.raises(ModelError, match="This graph takes whole sequences, or has no memory"):
        pairs(values("h"), values("hn", dims=dims), {})
    with pytest.raises(ModelError, match="This graph takes whole sequences, or has no memory"):
        pairs(values("h"), [Value("hn", np.dtype(np.float64), ("B", 4))], {})


def test_states_of_other_names_are_said():
    with pytest.raises(ModelError, match=re.escape('by their shapes: states = {"onnx::0" = "25"}.')):
        pairs(values("onnx::0"), values("25"), {})
    assert pairs(values("onnx::0"), values("25"), {"onnx::0": "25"}) == {"onnx::0": "25"}


def test_more_than_one_reading_is_asked_about():
    sentence = (
        "It is not clear which output is the next value of which state: "
        '"h" = "hn", "h" = "hnext". Write the right ones as states = {"h" = "hn"} and pass it as a spec.'
    )
    with pytest.raises(ModelError, match=re.escape(sentence)):
        pairs(values("h"), values("hn", "hnext"), {})
    with pytest.raises(ModelError, match=re.escape('"h" = "hn", "h0" = "hn"')):
        pairs(values("h", "h0"), values("hn"), {})


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"x": "hn"}, "`states` names the input 'x'; the graph's inputs are h."),
        ({"h": "y"}, "`states` names the output 'y'; the graph's outputs are hn."),
    ],
)
def test_states_that_are_not_there(said, sentence):
    with pytest.raises(ModelError, match=re.escape(sentence)):
        pairs(values("h"), values("hn"), said)


def test_an_output_is_the_next_value_of_one_state():
    with pytest.raises(ModelError, match="`states` names the output 'hn' twice"):
        pairs(values("h", "g"), values("hn", "y"), {"h": "hn", "g": "hn"})


def counting():
    return elman(
        inputs=[value("pos", [1], "i")], outputs=[value("pos_out", [1], "i")], more=[node("Add", "pos pos", "pos_out")]
    )


def growing():
    return model(
        [node("Concat", "past_x x", "present_x", axis=1), node("ReduceMean", "present_x", "y", axes=[1], keepdims=0)],
        [value("x", ["B", 1, K]), value("past_x", ["B", "past", K])],
        [value("y", None), value("present_x", ["B", "now", K])],
    )


def random():
    return elman(more=[node("RandomNormalLike", "y", "noise"), node("Add", "y noise", "noisy")])


def gained():
    return elman(inputs=[value("gain", [2])], more=[node("Mul", "y gain", "loud")])


def columns():
    """Ids that pick columns of a matrix."""
    graph = elman(("B",), ids=True)
    graph.graph.node[0].attribute.append(helper.make_attribute("axis", 1))
    return graph


def worded():
    return elman(inputs=[helper.make_tensor_value_info("word", TensorProto.STRING, [1])])


def foreign():
    return elman(more=[helper.make_node("Flux", ["y"], ["yy"], domain="capacitor")])


def two_outputs():
    return elman(more=[node("Neg", "y", "less")], outputs=[value("less", None)])


REFUSED = [
    (lambda: elman(names=("a", "b")), {}, 'If one is, say so in a spec; by their shapes: states = {"a" = "b"}.'),
    (counting, {}, "The state pos int64 [1] is kept as part of a session's state vector, which is float32 or float64"),
    (growing, {}, "The state past_x grows with every token; a session's state has a fixed size."),
    (lambda: elman(h=("B", "")), {}, "A step with x [1, 3], h [1, 1] fails in ONNX Runtime: "),
    (lambda: elman(h=None), {}, "The state h float32 of any shape has no shape in the graph; export it with one."),
    (lambda: elman(x=None), {}, "The input x float32 of any shape has no shape in the graph; export it with one."),
    (lambda: elman(x=("B", "")), {}, "does not say how many numbers a token has: the input is x float32 [B, ?]. Write size ="),
    (lambda: elman(x=("B", "")), {"size": 4}, "A step with x [1, 4], h [1, 8] fails in ONNX Runtime: "),
    (elman, {"size": 4}, "`size` is 4; the input x float32 [B, 3] takes 3 numbers."),
    (lambda: elman((7,), ("B", 1, H), ids=True), {}, "The input x int64 [7] takes 7 ids at once; a token is one."),
    (lambda: elman(("B",), ids=True), {"size": 6}, "There are 6 ids by the spec; the table that x picks from has 5 rows."),
    (lambda: elman(("B",), ids=True), {"input": "dense"}, "`input` is dense; the graph's token is x int64 [B]."),
    (elman, {"vocabulary": ["a"]}, "`vocabulary` is for token ids; the graph's token is x float32 [B, 3]."),
    (elman, {"stop": "z"}, "`stop` is 'z'; the graph's outputs are y, hn."),
    (elman, {"start": "x"}, "`layers`, `ignore` and `start` are for conversions; this graph is run as it is."),
    (two_outputs, {}, 'The outputs y, less are left; say in a spec which one is wanted: stop = "y".'),
    (gained, {}, "The inputs x, gain are left, and one of them is the token. Give the values of the others in a spec"),
    (gained, {"constants": {"x": 1, "gain": [1, 2]}}, "No input is left for the token: h are taken for states"),
    (gained, {"constants": {"volume": 1}}, "`constants` names the input 'volume'; the graph's inputs are x, h, gain."),
    (gained, {"constants": {"gain": "loud"}}, "constants.gain is 'loud'; the graph takes gain float32 [2]."),
    (gained, {"constants": {"gain": [[1, 2]]}}, "constants.gain has the shape [1, 2]; the graph takes gain float32 [2]."),
    (counting, {"constants": {"pos": 1.5}}, "constants.pos is 1.5; the graph takes pos int64 [1]."),
    (
        worded,
        {"constants": {"word": "loud"}},
        "The input word (no numbers) [1] cannot be given under `constants`; it takes numbers.",
    ),
    (columns, {}, "The graph does not say how many ids there are for x int64 [B]; write size = ... or a vocabulary in a spec."),
    (foreign, {}, "does not take this graph: "),
]


@pytest.mark.parametrize(("make", "said", "sentence"), REFUSED)
def test_refused(make, said, sentence):
    with pytest.raises(ModelError, match=re.escape(sentence)):
        step(make(), **said)


def test_outputs_are_left_where_names_mislead():
    graph = model(
        [node("Add", "audio state", "s"), node("Tanh", "s", "state_out"), node("Mul", "state_out gain", "audio_out")],
        [value("audio", ["B", K]), value("gain", ["B", K]), value("state", ["B", K])],
        [value("audio_out", ["B", K]), value("state_out", ["B", K])],
    )
    sentence = (
        'The outputs audio_out, state_out are left; say in a spec which one is wanted: stop = "audio_out". Taken for states '
        'and their next values are "audio" = "audio_out", "state" = "state_out"; if that is not so, write the right ones as '
    )
    with pytest.raises(ModelError, match=re.escape(sentence)):
        step(graph)
    assert step(graph, states={"state": "state_out"}, constants={"gain": [[1] * K]}).hints.stop == "audio_out"


def test_an_operation_that_nobody_knows_is_named():
    graph = elman(more=[helper.make_node("Flux", ["y"], ["yy"], domain="capacitor")])
    graph.opset_import.append(helper.make_opsetid("capacitor", 1))
    with pytest.raises(ModelError, match="capacitor:Flux"):
        step(graph)


def test_a_random_step_is_refused():
    graph = random()
    graph.graph.output[0].name = "noisy"
    with pytest.raises(ModelError, match="something in it is random or keeps a state of its own"):
        step(graph)


def test_an_output_that_was_not_wanted_may_be_there():
    assert (
        step(two_outputs(), stop="less").forward([[1, 2, 3]])[0, 0] == -step(two_outputs(), stop="y").forward([[1, 2, 3]])[0, 0]
    )


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "graph.onnx"
    with pytest.raises(ModelError, match=f"^There is no file {path}.$"):
        OnnxStep(path)
    assert not has_hints(path)
    whole = elman().SerializeToString()
    for damaged in (b"", b"junk", whole[: len(whole) // 2], whole[:20]):
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match=f"^{path}: It is damaged, or no ONNX graph: "):
            OnnxStep(path)
        assert not has_hints(path)
    with pytest.raises(ModelError, match=f"^{tmp_path}: It cannot be read: Is a directory.$"):
        OnnxStep(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", '"text"', "[" * 100_000])
def test_hints_in_the_file_that_are_none(tmp_path, text):
    graph = elman()
    graph.metadata_props.add(key="rnnstream", value=text)
    with pytest.raises(ModelError, match="Its metadata 'rnnstream' is no JSON object"):
        step(graph)


def test_a_hint_in_the_file_that_is_not_known():
    graph = elman()
    graph.metadata_props.add(key="rnnstream", value='{"run": "this"}')
    with pytest.raises(ModelError, match="unknown key 'run'"):
        step(graph)


def test_tensors_beside_the_file(tmp_path):
    path, inside = tmp_path / "graph.onnx", step(lstm())
    onnx.save(lstm(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    outside = OnnxStep(path)
    assert outside.digest == inside.digest
    xs = np.ones((4, K))
    assert outside.forward(xs).tobytes() == inside.forward(xs).tobytes()
    outside.save(tmp_path / "saved.onnx")
    with pytest.raises(ModelError, match="The tensor w is in another file; give the path of the graph, not its bytes"):
        OnnxStep(path.read_bytes())
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match="Its tensors are in another file, which cannot be read: "):
        OnnxStep(path)
    assert OnnxStep(tmp_path / "saved.onnx").digest == inside.digest


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_its_packages_it_says_what_to_install(monkeypatch, package):
    graph = elman().SerializeToString()
    real = builtins.__import__

    def absent(name, *rest):
        if name == package:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ModelError, match=re.escape("pip install 'rnnstream[onnx]'")):
        OnnxStep(graph)


def test_nothing_heavy_is_imported_before_it_is_used():
    check = "import sys, rnnstream.adapters, rnnstream.testing; print({'torch', 'onnx', 'onnxruntime'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    with pytest.raises(ImportError):
        exec("from rnnstream.adapters import TensorflowStep")


def test_a_constant_of_one_number_takes_the_shape_that_is_asked():
    for dims in ([], [1], [1, 1]):
        graph = elman(inputs=[value("gain", dims)], more=[node("Mul", "y gain", "loud")])
        graph.graph.output[0].name = "loud"
        found = step(graph, constants={"gain": 2})
        assert found.forward([[1, 2, 3]]).tobytes() == (2 * step(elman()).forward([[1, 2, 3]])).tobytes()
    assert found.output.size == V
