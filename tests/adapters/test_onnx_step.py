"""ONNX graphs of one step as step models: the numbers, and what is said of the graph."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from rnnstream.adapters import OnnxStep
from rnnstream.adapters.onnx_step import has_hints
from rnnstream.errors import ModelError
from rnnstream.testing import check_step_model

from .graphs import TABLE, H, K, V, elman, elman_by_hand, lstm, model, node, softmax, value

rng = np.random.default_rng(5)
XS = rng.normal(0, 1, (20, K)).astype(np.float32)
IDS = rng.integers(0, V, 20).tolist()


def step(graph, **hints):
    return OnnxStep(graph.SerializeToString(), hints)


@pytest.mark.parametrize(
    ("x", "h", "shape"),
    [
        (("B", K), ("B", H), [1, K]),
        ((1, K), (1, H), [1, K]),
        (("T", "B", K), (1, "B", H), [1, 1, K]),
        (("B", 1, K), ("B", "L", H), [1, 1, K]),
        ((K,), (H,), [K]),
    ],
)
def test_the_equations_over_vectors(x, h, shape):
    found = step(elman(x, h))
    check_step_model(found)
    logits, last = elman_by_hand(XS)
    np.testing.assert_allclose(found.forward(XS), logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.run(XS), last, rtol=1e-5, atol=1e-6)
    assert (found.exact, found.state_size, found.dtype) == (True, H, np.float32)
    assert (found.input.kind, found.input.size, found.output.kind, found.output.size) == ("dense", K, "linear", V)
    assert found.layers[1] == f"token x {shape}: 3 numbers"


@pytest.mark.parametrize(("x", "h"), [(("B",), ("B", H)), (("B", "T"), ("B", 1, H)), ((), (H,)), ((1, 1), (1, 1, H))])
def test_the_equations_over_ids(x, h):
    found = step(elman(x, h, ids=True))
    check_step_model(found)
    np.testing.assert_allclose(found.forward(IDS), elman_by_hand(IDS)[0], rtol=1e-5, atol=1e-6)
    assert (found.exact, found.input.kind, found.input.size) == (True, "token", V)


def test_a_size_of_the_state_that_only_a_run_shows():
    graph = model(
        [node("Add", "h x", "s"), node("Tanh", "s", "hn"), node("Neg", "hn", "y")],
        [value("x", ["B", K]), value("h", ["B", ""])],
        [value("y", None), value("hn", None)],
    )
    found = step(graph)
    check_step_model(found)
    assert found.state_size == K
    np.testing.assert_allclose(found.forward(XS[:2])[1], -np.tanh(np.tanh(XS[0]) + XS[1]), rtol=1e-5)


def test_a_cell_gives_its_state_out():
    graph = elman()
    del graph.graph.node[-1], graph.graph.output[0]
    found = step(graph)
    check_step_model(found)
    np.testing.assert_allclose(found.forward(XS)[-1], elman_by_hand(XS)[1], rtol=1e-5, atol=1e-6)
    cell = lstm()
    del cell.graph.output[0]
    with pytest.raises(ModelError, match=r'The outputs hn, cn are left; say in a spec which one is wanted: stop = "hn"\.'):
        step(cell)
    found = step(cell, stop="hn")
    assert found.forward(XS).tobytes() == step(lstm()).forward(XS).tobytes()


def test_float64_is_kept():
    found = step(elman(dtype="d"))
    check_step_model(found)
    np.testing.assert_allclose(found.forward(XS), elman_by_hand(XS)[0], rtol=1e-13)
    assert found.dtype == np.float64


def test_step_by_step_is_the_whole_sequence_in_one_run():
    found = step(lstm())
    check_step_model(found)
    whole = onnxruntime.InferenceSession(lstm(len(XS)).SerializeToString(), providers=["CPUExecutionProvider"])
    zero = np.zeros((1, 1, H), np.float32)
    y, h, c = whole.run(None, {"x": XS[:, np.newaxis], "h0": zero, "c0": zero})
    np.testing.assert_allclose(found.forward(XS), y[:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.run(XS), np.concatenate([h.ravel(), c.ravel()]), rtol=1e-5, atol=1e-6)
    assert found.hints.states == {"h0": "hn", "c0": "cn"}
    assert found.layers[2:4] == ["state h0 [1, 1, 8] -> hn", "state c0 [1, 1, 8] -> cn"]


# -- the head


@pytest.mark.parametrize(("end", "kind"), [("Softmax", "categorical"), ("Sigmoid", "bernoulli")])
def test_the_function_at_the_end_becomes_the_head(end, kind):
    found = step(elman(("B", 1), ("B", 1, H), ids=True, end=end))
    logits = elman_by_hand(IDS)[0]
    check_step_model(found)
    wanted = softmax(logits) if end == "Softmax" else 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(found.forward(IDS), wanted, rtol=1e-5, atol=1e-6)
    states = found.initial_state()[np.newaxis]
    seen = found.head(found.advance(states, np.array(IDS[:1]))[1])
    np.testing.assert_allclose(seen[0], logits[0], rtol=1e-5, atol=1e-6)
    assert found.output.kind == kind
    assert found.layers[-1] == f"{kind} head, in place of the {end} at the end of the graph"
    linear = step(elman(("B", 1), ("B", 1, H), ids=True, end=end), head="linear")
    np.testing.assert_allclose(linear.forward(IDS), wanted, rtol=1e-5, atol=1e-6)
    assert linear.layers[-1] == f"linear head: outputs as the graph gives them, behind its {end}"


def test_a_softmax_behind_which_only_the_shape_changes():
    graph = elman(("B", 1), ("B", 1, H), ids=True)
    graph.graph.node.extend([node("Softmax", "y", "p3", axis=2), node("Squeeze", "p3 one", "p")])
    graph.graph.initializer.append(helper.make_tensor("one", TensorProto.INT64, [1], [1]))
    graph.graph.output[0].name = "p"
    found = step(graph)
    np.testing.assert_allclose(found.forward(IDS), softmax(elman_by_hand(IDS)[0]), rtol=1e-5, atol=1e-6)
    assert found.output.kind == "categorical"


def test_a_softmax_over_another_axis_stays_where_it_is():
    graph = elman(("B", K), ("B", H))
    graph.graph.node.append(node("Softmax", "y", "p", axis=0))
    graph.graph.output[0].name = "p"
    found = step(graph)
    assert found.output.kind == "linear"
    assert (found.forward(XS) == 1).all()
    with pytest.raises(ModelError, match="`head` is categorical, and the Softmax of the outputs cannot be taken out"):
        step(graph, head="categorical")


def test_a_softmax_that_the_state_sees_stays_where_it_is():
    graph = model(
        [node("Softmax", "x", "p"), node("Add", "h p", "hn"), node("Identity", "p", "y")],
        [value("x", ["B", K]), value("h", ["B", K])],
        [value("y", None), value("hn", ["B", K])],
    )
    found = step(graph)
    assert found.output.kind == "linear"
    np.testing.assert_allclose(found.forward(XS[:1])[0], softmax(XS[0]), rtol=1e-5)


@pytest.mark.parametrize(("axis", "kind"), [(1, "categorical"), (2, "linear")])
def test_a_mean_of_one_probability_is_the_probability(axis, kind):
    graph = elman(("B", 1), ("B", 1, H), ids=True)
    graph.graph.node.extend([node("Softmax", "y", "p3", axis=2), node("ReduceMean", "p3", "p", axes=[axis], keepdims=0)])
    graph.graph.output[0].name = "p"
    found, wanted = step(graph), softmax(elman_by_hand(IDS)[0])
    assert found.output.kind == kind
    np.testing.assert_allclose(found.forward(IDS), wanted if axis == 1 else 0.2 * np.ones((20, 1)), rtol=1e-5, atol=1e-6)


def test_a_head_that_is_asked_for():
    found = step(elman(("B", 1), ("B", 1, H), ids=True), head="categorical", vocabulary=["a", "b", "c", "d", "e"])
    np.testing.assert_allclose(found.forward(["abcde"[i] for i in IDS]), softmax(elman_by_hand(IDS)[0]), rtol=1e-5, atol=1e-6)
    assert found.output.vocabulary == ("a", "b", "c", "d", "e")
    log = step(elman(("B", 1), ("B", 1, H), ids=True, end="LogSoftmax"), head="categorical")
    np.testing.assert_allclose(log.forward(IDS), found.forward(["abcde"[i] for i in IDS]), rtol=1e-5, atol=1e-6)


def test_probabilities_are_not_put_through_the_head_again():
    with pytest.raises(ModelError, match=r'the outputs come out of a Softmax; write head = "categorical" or "linear"\.'):
        step(elman(end="Softmax"), head="bernoulli")
    hidden = elman(end="Softmax", more=[node("Mul", "y one", "p")])
    hidden.graph.initializer.append(helper.make_tensor("one", TensorProto.FLOAT, [1], [1]))
    hidden.graph.output[0].name = "p"
    with pytest.raises(ModelError, match="`head` is categorical, and the outputs add up to 1 already"):
        step(hidden, head="categorical")
    assert step(hidden).output.kind == "linear"


def test_a_sigmoid_inside_a_branch_is_seen_and_stays():
    graph = elman(inputs=[value("yes", [], "i")])
    branch = helper.make_graph([node("Identity", "p", "out")], "branch", [], [value("out", None)])
    other = helper.make_graph([node("Neg", "p", "out2")], "other", [], [value("out2", None)])
    graph.graph.node.extend(
        [
            node("Sigmoid", "y", "p"),
            node("Cast", "yes", "sure", to=TensorProto.BOOL),
            node("If", "sure", "q", then_branch=branch, else_branch=other),
        ]
    )
    graph.graph.output[0].name = "q"
    found = step(graph, constants={"yes": 1})
    np.testing.assert_allclose(found.forward(XS), 1 / (1 + np.exp(-elman_by_hand(XS)[0])), rtol=1e-5)
    assert found.layers[-1] == "linear head: outputs as the graph gives them, behind its Sigmoid"
    assert "constant yes = 1" in found.layers
    with pytest.raises(ModelError, match="the Sigmoid of the outputs cannot be taken out of the graph"):
        step(graph, constants={"yes": 1}, head="bernoulli")


# -- batches


@pytest.mark.parametrize(
    ("x", "h", "ids"),
    [
        (("B", K), ("B", H), False),
        (("T", "B", K), (1, "B", H), False),
        (("", "", K), (1, "", H), False),
        (("B", "T"), ("B", 1, H), True),
        (("T", "B"), ("T", "B", H), True),
    ],
)
def test_rows_together(x, h, ids):
    graph, xs = elman(x, h, ids=ids, end="Softmax"), IDS if ids else XS
    alone, together = step(graph), step(graph, batch=True)
    check_step_model(together)
    assert (alone.exact, together.exact) == (True, False)
    np.testing.assert_allclose(together.forward(xs), alone.forward(xs), rtol=1e-5, atol=1e-6)
    states = np.stack([alone.run(xs[:i]) for i in range(4)])
    inputs = alone.input.batch([alone.input.token(x) for x in xs[4:8]])
    for one, other in zip(together.advance(states, inputs), alone.advance(states, inputs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert together.layers[0].endswith("nodes, rows together")
    assert alone.layers[0].endswith("nodes, each row alone")
    assert alone.digest != together.digest


def test_rows_together_of_an_lstm():
    check_step_model(step(lstm(), batch=True), XS)


def test_rows_together_on_another_axis_in_each_state():
    more = [node("Transpose", "y", "t", perm=[1, 0, 2]), node("Add", "g t", "gn")]
    ends = [value("gn", ["L", "B", V])]
    graph = elman(("B", "L"), ("B", "L", H), ids=True, inputs=[value("g", ["L", "B", V])], outputs=ends, more=more)
    check_step_model(step(graph, batch=True))
    more, ends = [node("Add", "g y", "gn")], [value("gn", ["", "", V])]
    graph = elman(("", K), ("", H), inputs=[value("g", ["", "", V])], outputs=ends, more=more)
    check_step_model(step(graph, batch=True))


def test_rows_together_need_an_axis():
    with pytest.raises(ModelError, match=r"no axis was found that takes rows: the input is x float32 \[1, 3\], the states are"):
        step(elman((1, K), (1, H)), batch=True)
    mixed = elman(more=[node("CumSum", "y zero", "c")])
    mixed.graph.initializer.append(helper.make_tensor("zero", TensorProto.INT64, [], [0]))
    mixed.graph.output[0].name = "c"
    with pytest.raises(ModelError, match="no axis was found"):
        step(mixed, batch=True)
    assert step(mixed).exact


# -- the file


def test_what_is_saved_says_enough_by_itself(tmp_path):
    graph = elman(("B", "K"), inputs=[value("gain", [1])], more=[node("Mul", "y gain", "scaled")])
    graph.graph.output[0].name = "scaled"
    (tmp_path / "graph.onnx").write_bytes(graph.SerializeToString())
    before = OnnxStep(tmp_path / "graph.onnx", {"size": K, "constants": {"gain": 0.5}, "head": "categorical"})
    assert before.name == "graph"
    assert not has_hints(tmp_path / "graph.onnx")
    before.save(tmp_path / "saved.onnx")
    assert has_hints(tmp_path / "saved.onnx")
    after = OnnxStep(str(tmp_path / "saved.onnx"))
    assert (after.digest, after.numerics, after.name, after.hints) == (before.digest, before.numerics, "graph", before.hints)
    assert after.forward(XS).tobytes() == before.forward(XS).tobytes()
    np.testing.assert_allclose(after.forward(XS), softmax(0.5 * elman_by_hand(XS)[0]), rtol=1e-5)
    after.save(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "saved.onnx").read_bytes()
    louder = OnnxStep(tmp_path / "saved.onnx", {"constants": {"gain": 2.0}})
    np.testing.assert_allclose(louder.forward(XS), softmax(2 * elman_by_hand(XS)[0]), rtol=1e-5)
    assert louder.digest != before.digest
    assert OnnxStep(tmp_path / "saved.onnx", {"name": "other"}).digest == before.digest


def test_a_saved_batch_can_be_taken_back(tmp_path):
    OnnxStep(elman().SerializeToString(), {"batch": True}).save(tmp_path / "saved.onnx")
    assert OnnxStep(tmp_path / "saved.onnx").batch
    alone = OnnxStep(tmp_path / "saved.onnx", {"batch": False})
    assert (alone.batch, alone.exact) == (False, True)
    assert alone.digest == step(elman(), batch=False).digest == step(elman()).digest


def test_the_digest_tells_weights_and_vocabularies_apart():
    graph = elman(("B",), ids=True)
    found = {step(graph).digest, step(graph, vocabulary=list("abcde")).digest, step(graph, vocabulary=list("edcba")).digest}
    graph.graph.initializer[0].raw_data = (
        bytes([graph.graph.initializer[0].raw_data[0] ^ 1]) + (graph.graph.initializer[0].raw_data[1:])
    )
    found.add(step(graph).digest)
    assert len(found) == 4


def test_numerics_name_the_library_and_its_bits():
    one, other = step(elman()), step(elman(("B",), ids=True))
    start = f"onnxruntime {onnxruntime.__version__} CPUExecutionProvider "
    assert one.numerics.startswith(start)
    assert one.numerics == step(elman()).numerics
    assert one.numerics != other.numerics
    assert len(bytes.fromhex(one.numerics.rpartition(" ")[2])) == 8


def test_tables_and_vocabularies_give_the_size():
    graph = elman(("B",), ids=True)
    assert step(graph).input.size == len(TABLE)
    padded = step(graph, vocabulary=["a", "b", "c"])
    assert padded.input.size == 3
    assert step(graph, size=4).input.size == 4
    onehot = elman(("B",))
    onehot.graph.input[0].CopyFrom(value("ids", ["B"], "i"))
    onehot.graph.node.insert(0, node("OneHot", "ids depth ends", "x"))
    onehot.graph.initializer.append(helper.make_tensor("depth", TensorProto.INT64, [], [K]))
    onehot.graph.initializer.append(helper.make_tensor("ends", TensorProto.FLOAT, [2], [0, 1]))
    found = step(onehot)
    assert (found.input.kind, found.input.size) == ("token", K)
    np.testing.assert_allclose(found.forward([0, 2]), elman_by_hand(np.eye(K)[[0, 2]])[0], rtol=1e-5, atol=1e-6)
