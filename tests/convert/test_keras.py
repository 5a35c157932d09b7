"""Files that Keras 3, 2.15 and 2.13 saved, converted and streamed, against Keras's own numbers (scripts/golden_keras.py)."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rnnstream.convert import convert, gates, keras_file, keras_settings
from rnnstream.convert.check import check
from rnnstream.convert.hints import Hints
from rnnstream.model.network import Network
from tests.convert.keras_files import FILES, changed, converted_digest, entry, numbers, settings, written

AO_GAIT = Path(__file__).parents[1] / "golden" / "ao_gait_gru"
TOLERANCE, CELL_TOLERANCE = 2e-5, 5e-5


def worst(folder, key, source="keras", weights=None):
    """The largest difference from Keras over all outputs and last states, in multiples of the tolerance."""
    found = convert(changed(folder, key, weights=weights, source=source))
    model = Network(found.spec, found.tensors, measure=False)  # whether it is exact is measured elsewhere
    a, found = model.initial_state(), []
    for x, expected in zip(numbers(key, "x", source), numbers(key, "y", source), strict=True):
        a, y = model.step(a, x)
        assert y.shape == expected.shape
        found.append(np.abs(y - expected).max() / TOLERANCE)
    state = numbers(key, "state", source)
    if state is not None:
        assert a.shape == state.shape
        found.append(np.abs(a - state).max() / (CELL_TOLERANCE if key.startswith(("lstm", "cudnn")) else TOLERANCE))
    return max(found)


@pytest.mark.parametrize(("source", "key"), FILES)
def test_keras_agrees(source, key, tmp_path):
    assert worst(tmp_path, key, source) < 1


def test_the_files_are_those_that_are_meant():
    cells = ("rnn_tanh", "rnn_relu", "gru_after", "gru_before", "lstm")
    stacks = {f"{cell}_{depth}_{kind}" for cell in cells for depth in (1, 2, 3) for kind in ("token", "dense")}
    cases = {(source, key.rpartition(".")[0]) for source, key in FILES}
    assert {("keras", case) for case in stacks} <= cases
    assert {case for source, case in cases if source == "keras"} - stacks == {
        *("hard_sigmoid", "each_token", "residual", "nested", "frozen", "masked", "functions", "normalised"),
        *("gait_mean", "gait_max", "valid", "wrapped", "float64", "last_only"),
    }
    assert {("keras_2_15", "cudnn"), ("keras_2_15", "keras_2_2"), ("keras_2_13", "nested")} <= cases


TWICE = [key for source, key in FILES if source == "keras" and key.endswith(".h5")]


@pytest.mark.parametrize("key", TWICE)
def test_both_forms_of_a_model_are_the_same_model(key, tmp_path):
    new, old = (converted_digest(written(tmp_path, key.replace(".h5", form))) for form in (".keras", ".h5"))
    assert new == old


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [("gru", *pair) for pair in itertools.combinations(range(3), 2)]
    + [("lstm", *pair) for pair in itertools.combinations(range(4), 2)],
)
def test_another_order_of_the_gates_would_be_seen(kind, one, other, depth, tmp_path, monkeypatch):
    layout = gates.LAYOUTS["keras", kind]
    letters = list(layout.gates)
    letters[one], letters[other] = letters[other], letters[one]
    monkeypatch.setitem(gates.LAYOUTS, ("keras", kind), replace(layout, gates="".join(letters)))
    for cell in ("lstm",) if kind == "lstm" else ("gru_after", "gru_before"):
        assert worst(tmp_path, f"{cell}_{depth}_dense.keras") > 100


@pytest.mark.parametrize("key", ["gru_after_1_dense.keras", "gru_after_3_token.keras", "gru_after_2_token.h5"])
def test_exchanged_halves_of_a_bias_would_be_seen(key, tmp_path, monkeypatch):
    layout = gates.LAYOUTS["keras", "gru"]
    monkeypatch.setitem(gates.LAYOUTS, ("keras", "gru"), replace(layout, halves=layout.halves[::-1]))
    assert worst(tmp_path, key) > 100


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_reset_in_the_wrong_place_would_be_seen(depth, tmp_path, monkeypatch):
    monkeypatch.setitem(gates.RESETS, ("keras", True), "before")
    monkeypatch.setitem(gates.RESETS, ("keras", False), "after")
    assert worst(tmp_path, f"gru_before_{depth}_dense.keras") > 100
    assert worst(tmp_path, f"gru_after_{depth}_dense.keras") > 100


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_the_memory_and_the_order_of_cudnn_are_its_own(kind, tmp_path, monkeypatch):
    layout = gates.LAYOUTS["cudnn", kind]
    for wrong in (replace(layout, matrix="columns"), replace(layout, gates=layout.gates[::-1])):
        monkeypatch.setitem(gates.LAYOUTS, ("cudnn", kind), wrong)
        assert worst(tmp_path, "cudnn.h5", "keras_2_15") > 100


def test_the_halves_of_a_bias_of_cudnn_are_not_alike(tmp_path, monkeypatch):
    layout = gates.LAYOUTS["cudnn", "gru"]
    monkeypatch.setitem(gates.LAYOUTS, ("cudnn", "gru"), replace(layout, halves=layout.halves[::-1]))
    assert worst(tmp_path, "cudnn.h5", "keras_2_15") > 100


@pytest.mark.parametrize("name", sorted(set(keras_settings.FUNCTIONS) - {"linear", "swish"}))
def test_another_activation_would_be_seen(name, tmp_path, monkeypatch):
    monkeypatch.setitem(keras_settings.FUNCTIONS, name, "identity")
    assert worst(tmp_path, "functions.keras") > 100


@pytest.mark.parametrize(("source", "version"), [("keras", "2.15.0"), ("keras_2_15", "3.0.5")])
def test_the_hard_sigmoid_of_another_keras_would_be_seen(source, version, tmp_path):
    assert worst(tmp_path, "hard_sigmoid.h5", source, lambda file: file.attrs.update(keras_version=version)) > 100


def test_a_trained_network_of_others_on_real_samples():
    model = convert(AO_GAIT.with_suffix(".keras")).network()
    with np.load(AO_GAIT.with_suffix(".npz")) as file:
        raw, h, y = file["raw"], file["h"], file["y"]
    assert raw.shape == (250, 2)
    a = model.initial_state()
    for t, x in enumerate(raw):
        a, found = model.step(a, x)
        assert np.abs(found - y[t]).max() < TOLERANCE
        assert np.abs(a[-h.shape[1] :] - h[t]).max() < TOLERANCE


NOTES = {
    "each_token.keras": [],
    "masked.keras": ["Id 0 is padding for embedding: in Keras it would not move the state. Never stream it."],
    "last_only.keras": ["lstm gives only its last output in Keras; here an output comes at every token."],
    "gait_max.keras": ["Left out, because it works in training alone: dropout, the dropout of gru."],
}


@pytest.mark.parametrize("key", NOTES)
def test_what_is_not_the_same_in_a_stream_is_told(key, tmp_path):
    assert convert(written(tmp_path, key)).notes == NOTES[key]


def test_of_several_cells_in_a_wrapper_the_last_one_gives_the_output(tmp_path):
    notes = convert(changed(tmp_path, "wrapped.keras", settings("RNN", 1, return_sequences=False))).notes
    assert notes == [
        "rnn_1/stacked_rnn_cells/gru_cell_1 gives only its last output in Keras; here an output comes at every token."
    ]


@pytest.mark.parametrize("axis", [-1, 2, [-1], [2]])
def test_an_axis_may_be_written_in_several_ways(axis, tmp_path):
    path = changed(tmp_path, "gait_mean.keras", settings("BatchNormalization", axis=axis))
    assert converted_digest(path) == converted_digest(written(tmp_path, "gait_mean.keras"))


def test_a_layer_s_precision_and_its_state_over_batches_are_told(tmp_path):
    new = {"dtype": {"class_name": "DTypePolicy", "config": {"name": "mixed_bfloat16"}}, "stateful": True}
    assert convert(changed(tmp_path, "lstm_2_dense.keras", settings("LSTM", **new))).notes == [
        "Keras computes by the policy mixed_bfloat16 in fewer digits; here everything is computed in float32.",
        "lstm is stateful in Keras; here each session has a state of its own, zero at first.",
    ]


@pytest.mark.parametrize("key", ["lstm_2_dense.keras", "hard_sigmoid.h5"])
def test_the_weights_of_a_half_precision_are_widened(key, tmp_path):
    halves = {}

    def narrow(file):
        found = {}
        file.visititems(lambda name, item: found.update({name: item[()]}) if hasattr(item, "shape") else None)
        for name, array in found.items():
            bits = array.astype("<f4").view("<u4") & 0xFFFF0000
            halves[name] = bits.view("<f4")
            del file[name]
            file[name] = (bits >> 16).astype("<u2").view("V2")  # as Keras writes bfloat16

    path = changed(tmp_path, key, weights=narrow)
    tensors = convert(path).tensors
    stored = {float(number) for array in halves.values() for number in array.ravel()}
    assert {float(number) for name, array in tensors.items() if name.startswith("w") for number in array.ravel()} <= stored


def test_a_spec_says_the_rest(tmp_path):
    words = list("abcdef")
    model = convert(written(tmp_path, "gru_after_1_token.keras"), {"name": "six", "vocabulary": words})
    assert (model.spec.name, list(model.spec.vocabulary), model.spec.head) == ("six", words, "categorical")
    assert convert(written(tmp_path, "gru_after_1_token.keras")).spec.name == "model"
    onehot = convert(written(tmp_path, "lstm_1_dense.keras"), {"input": "token", "head": "bernoulli"}).spec
    assert [layer.kind for layer in onehot.layers] == ["onehot", "lstm", "dense"]
    assert (onehot.input_kind, onehot.input_size, onehot.head) == ("token", 3, "bernoulli")


def test_a_head_is_the_last_activation(tmp_path):
    heads = {key: convert(written(tmp_path, key)).spec.head for key in ("last_only.keras", "gait_max.keras", "gait_mean.keras")}
    assert heads == {"last_only.keras": "bernoulli", "gait_max.keras": "bernoulli", "gait_mean.keras": "linear"}
    assert convert(written(tmp_path, "lstm_1_token.keras")).has_head
    assert not convert(written(tmp_path, "lstm_1_token.keras"), {"head": "linear"}).has_head


def test_a_shape_may_be_one_of_tensorflow(tmp_path):
    shape = {"class_name": "TensorShape", "items": [None, None, 3]}
    path = changed(tmp_path, "gru_after_2_dense.h5", settings("InputLayer", batch_input_shape=shape), source="keras_2_15")
    assert convert(path).spec.input_size == 3


@pytest.mark.parametrize("shape", [None, [None, None, None]])
def test_a_size_that_is_not_written_down_is_that_of_the_first_matrix(shape, tmp_path):
    def edit(model):
        model["config"].pop("build_input_shape", None)
        layers = model["config"]["layers"]
        if shape is None:
            layers.remove(entry(model, "InputLayer"))
        else:
            entry(model, "InputLayer")["config"]["batch_shape"] = shape

    assert convert(changed(tmp_path, "gait_mean.keras", edit)).spec.input_size == 3


@pytest.mark.filterwarnings("ignore")  # of Keras and PyTorch
class TestTheSourceItself:
    """Where Keras is installed: `--check` runs the file in it."""

    @pytest.fixture(autouse=True)
    def keras(self, monkeypatch):
        monkeypatch.setenv("KERAS_BACKEND", "torch")
        pytest.importorskip("torch")
        return pytest.importorskip("keras")

    @pytest.mark.parametrize(
        "key",
        [
            "gru_before_2_token.h5",
            "nested.keras",
            "masked.keras",
            "last_only.keras",
            "wrapped.keras",
            "gait_mean.keras",
            "float64.keras",
        ],
    )
    def test_it_agrees_at_every_step(self, key, tmp_path, keras):
        path = written(tmp_path, key)
        found = check(path, None, convert(path))
        assert (found.source, found.steps) == (f"keras {keras.__version__}", 100)
        assert 0 < found.largest < TOLERANCE

    def test_an_old_file_has_its_own_hard_sigmoid(self, tmp_path):
        def as_later(model):  # Keras 3 wants an input layer, and reset_after, as Keras 2.3 wrote it
            model["config"][0]["config"]["reset_after"] = False
            shape = {"batch_input_shape": model["config"][0]["config"].pop("batch_input_shape"), "name": "input"}
            layers = [{"class_name": "InputLayer", "config": shape}, *model["config"]]
            model["config"] = {"name": "sequential", "layers": layers}

        path = changed(tmp_path, "keras_2_2.h5", as_later, source="keras_2_15")
        assert check(path, None, convert(path)).largest < TOLERANCE
        xs = numbers("keras_2_2.h5", "x", "keras_2_15")
        y = keras_file.run_source(path, Hints(), convert(path), xs)[1]
        assert np.abs(y - numbers("keras_2_2.h5", "y", "keras_2_15")).max() < TOLERANCE

    def test_it_computes_in_the_precision_of_the_weights(self, tmp_path):
        policy = {"class_name": "DTypePolicy", "module": "keras", "config": {"name": "mixed_float16"}, "registered_name": None}
        path = changed(tmp_path, "lstm_1_dense.keras", settings("LSTM", dtype=policy))
        assert check(path, None, convert(path)).largest < TOLERANCE

    def test_ids_go_into_a_dense_input_as_one_hot_vectors(self, tmp_path):
        path, said = written(tmp_path, "lstm_1_dense.keras"), {"input": "token"}
        assert check(path, said, convert(path, said)).passed

    def test_the_fixed_batch_of_a_file_is_no_limit(self):
        path = AO_GAIT.with_suffix(".keras")
        assert check(path, None, convert(path)).largest < TOLERANCE

    def test_another_network_is_told_apart(self, tmp_path):
        path = written(tmp_path, "gru_after_1_dense.keras")
        model = convert(path)
        model.tensors["bh1"] += 0.1
        assert not check(path, None, model).passed
