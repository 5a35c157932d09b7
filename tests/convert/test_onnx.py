"""ONNX graphs as chains against ONNX Runtime's own numbers (tests/golden, by scripts/golden_onnx.py)."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from rnnstream.convert import convert, gates, onnx_chain
from rnnstream.convert.check import check
from rnnstream.convert.hints import Hints
from tests.convert.onnx_graphs import runtime

GOLDEN = Path(__file__).parents[1] / "golden"
SILERO = GOLDEN / "silero_vad_lstm.onnx"
TOLERANCE = 2e-5
CELL_TOLERANCE = 5e-5  # of an LSTM's cells, relative where they are larger than 1
CELLS = ("rnn_tanh", "rnn_relu", "gru_after", "gru_before", "lstm")
MADE = [f"{cell}_{layers}_{kind}" for cell in CELLS for layers in (1, 2, 3) for kind in ("token", "dense")]
EXPORTED = [
    "torch_gru_2_script_states",
    "torch_lstm_2_script",
    "torch_rnn_2_script_fixed",
    "torch_lstm_1_script_last",
    "torch_lstm_2_dynamo_states",
    "torch_gru_2_dynamo",
    "torch_gru_1_dynamo_fixed",
    "torch_lstm_1_dynamo_fixed_states",
]


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "onnx.npz") as file:
        return {key: file[key] for key in file}


def case(golden, name, directory):
    """The arrays of a case, and its file."""
    found = {key.partition("/")[2]: array for key, array in golden.items() if key.startswith(f"{name}/")}
    path = directory / f"{name}.onnx"
    path.write_bytes(found.pop("file").tobytes())
    return found, path


def off(ours, theirs):
    """The largest difference, relative where the numbers are larger than 1."""
    return float((np.abs(ours - theirs) / np.maximum(1, np.abs(theirs))).max())


def streamed(model, xs):
    """Every output and the last state of a sequence, token by token."""
    a, ys = model.initial_state(), []
    for x in xs:
        a, y = model.step(a, x)
        ys.append(y)
    return np.array(ys), a


def differences(converted, found, rows_first):
    """How far the outputs and the last states, streamed row by row, are from ONNX Runtime's."""
    model = converted.network()
    sizes = [layer.state_size for layer in converted.spec.layers if layer.state_size]
    parts = {"output": 0.0, "h": 0.0, "c": 0.0}
    for row, xs in enumerate(found["xs"] if rows_first else found["xs"].swapaxes(0, 1)):
        ys, a = streamed(model, xs)
        if found["output"].ndim == 2:  # of the last token alone
            parts["output"] = max(parts["output"], off(ys[-1], found["output"][row]))
        else:
            parts["output"] = max(parts["output"], off(ys, found["output"][:, row]))
        for layer, state in enumerate(np.split(a, np.cumsum(sizes)[:-1])):
            halves = dict(zip("hc", np.split(state, 2) if "c" in found else [state], strict=False))
            for name, half in halves.items():
                if name in found:
                    parts[name] = max(parts[name], off(half, found[name][layer, row]))
    return parts


@pytest.mark.parametrize("name", MADE)
def test_onnx_runtime_agrees(golden, tmp_path, name):
    found, path = case(golden, name, tmp_path)
    converted = convert(path)
    kind, layers = name.split("_")[0], int(name.split("_")[-2])
    around = ([] if "dense" in name else ["embedding"], [] if "dense" in name else ["dense"])
    assert [layer.kind for layer in converted.spec.layers] == [*around[0], *[kind] * layers, *around[1]]
    assert converted.spec.head == ("linear" if "dense" in name else "categorical")
    assert {"h"} | ({"c"} if kind == "lstm" else set()) | {"output", "xs"} == set(found)
    worst = differences(converted, found, rows_first="token" in name)
    assert max(worst["output"], worst["h"]) <= TOLERANCE
    assert worst["c"] <= CELL_TOLERANCE


@pytest.mark.parametrize("name", EXPORTED)
def test_an_export_of_pytorch_agrees(golden, tmp_path, name):
    found, path = case(golden, name, tmp_path)
    converted = convert(path)
    layers = [layer.kind for layer in converted.spec.layers]
    assert layers[-int(name.split("_")[2]) - 1 :] == [name.split("_")[1]] * int(name.split("_")[2]) + ["dense"]
    first = name in ("torch_gru_2_script_states", "torch_rnn_2_script_fixed", "torch_lstm_1_script_last", "torch_gru_2_dynamo")
    worst = differences(converted, found, first or name == "torch_lstm_1_dynamo_fixed_states")
    assert max(worst.values()) <= TOLERANCE


@pytest.mark.parametrize("name", ["gru_before_3_token", "lstm_2_dense", *EXPORTED[:5]])
def test_the_check_runs_the_graph_itself(golden, tmp_path, name):
    path = case(golden, name, tmp_path)[1]
    checked = check(path, None, convert(path), steps=30)
    assert checked.source == f"onnxruntime {onnxruntime.__version__}"
    assert checked.largest <= TOLERANCE


def swapped(letters, pair):
    one, other = pair
    return letters.translate(str.maketrans(one + other, other + one))


FAULTS = [(kind, pair) for kind, letters in (("gru", "zrn"), ("lstm", "iofg")) for pair in combinations(letters, 2)]


@pytest.mark.parametrize(("kind", "pair"), FAULTS)
def test_gates_in_another_order_are_seen(golden, tmp_path, monkeypatch, kind, pair):
    layout = gates.LAYOUTS["onnx", kind]
    monkeypatch.setitem(gates.LAYOUTS, ("onnx", kind), replace(layout, gates=swapped(layout.gates, pair)))
    for name in [name for name in MADE if name.startswith(kind) and "_1_" in name]:
        found, path = case(golden, name, tmp_path)
        assert differences(convert(path), found, "token" in name)["output"] > 100 * TOLERANCE


def test_halves_of_the_bias_in_the_other_order_are_seen(golden, tmp_path, monkeypatch):
    layout = gates.LAYOUTS["onnx", "gru"]
    monkeypatch.setitem(gates.LAYOUTS, ("onnx", "gru"), replace(layout, halves=layout.halves[::-1]))
    for name in ("gru_after_1_token", "gru_after_1_dense"):
        found, path = case(golden, name, tmp_path)
        assert differences(convert(path), found, "token" in name)["output"] > 100 * TOLERANCE


def test_a_reset_gate_in_the_other_place_is_seen(golden, tmp_path, monkeypatch):
    other = {("onnx", 0): gates.RESETS["onnx", 1], ("onnx", 1): gates.RESETS["onnx", 0]}
    for key, reset in other.items():
        monkeypatch.setitem(gates.RESETS, key, reset)
    for name in [name for name in MADE if name.startswith("gru") and "_1_" in name]:
        found, path = case(golden, name, tmp_path)
        assert differences(convert(path), found, "token" in name)["output"] > 100 * TOLERANCE


def test_silero_vad_is_a_chain():
    with np.load(GOLDEN / "silero_vad_lstm.npz") as file:
        x, h, c, prob = (file[name] for name in ("x", "h", "c", "prob"))
    converted = convert(SILERO, {"name": "silero-vad 6.2.3, 16 kHz"})
    assert [(layer.kind, layer.outputs) for layer in converted.spec.layers] == [
        ("lstm", 128),
        ("activation", 128),
        ("dense", 1),
    ]
    assert converted.spec.head == "bernoulli"
    assert converted.notes == [
        "the state is zero at first and then kept, so that nothing is handed in for h, c.",
        "left out, because they are the state: hn, cn.",
    ]
    model = converted.network()
    a = model.initial_state()
    assert np.abs(c).max() > 20  # why cells are compared relatively
    for t in range(len(x)):
        a, y = model.step(a, x[t])
        assert off(y, prob[t]) <= TOLERANCE
        assert off(a[:128], h[t]) <= TOLERANCE
        assert off(a[128:], c[t]) <= CELL_TOLERANCE
    assert 0.05 < np.mean(prob < 0.5) < 0.5  # speech and pauses: no constant would pass


def test_silero_vad_is_a_graph_for_one_token_of_several_streams_as_well():
    with np.load(GOLDEN / "silero_vad_lstm.npz") as file:
        x, h, c, prob = (file[name] for name in ("x", "h", "c", "prob"))
    state = [np.zeros((1, 2, 128), np.float32)] * 2
    for t in range(20):
        rows = np.stack([x[t], x[t + 20]])[np.newaxis]
        probs, *state = runtime(SILERO, x=rows, h=state[0], c=state[1])
        assert probs.shape == (2,)
        assert off(probs[0], prob[t]) <= TOLERANCE
        assert off(state[0][0, 0], h[t]) <= TOLERANCE
        assert off(state[1][0, 0], c[t]) <= CELL_TOLERANCE


def test_silero_vad_in_onnx_runtime_over_the_whole_sequence():
    with np.load(GOLDEN / "silero_vad_lstm.npz") as file:
        x, prob = file["x"], file["prob"]
    source, ys = onnx_chain.run_source(SILERO, Hints(), convert(SILERO), list(x))
    assert source == f"onnxruntime {onnxruntime.__version__}"
    assert ys.shape == (60, 1)
    assert off(ys[:, 0], prob) <= TOLERANCE
