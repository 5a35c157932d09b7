"""Layers of Keras that are refused, and the sentences: files that Keras saved, with one thing in them changed."""

import pytest

from tests.convert.keras_files import changed, entry, refused, settings, written

NO_AHEAD = "and looks ahead; a Conv1D with padding='causal', or a ZeroPadding1D("
MINE = {"module": "builtins", "class_name": "function", "config": "mine>tanh", "registered_name": "function"}
LAMBDA = {"class_name": "__lambda__", "config": {"value": "4wEA"}}
LEAKY = {"class_name": "ReLU", "config": {"negative_slope": 0.1}}
INT8 = {"class_name": "QuantizedDTypePolicy", "config": {"mode": "int8", "source_name": "float32"}}
SETTINGS = [  # a file, a layer in it, its new settings, and what is said of it
    ("gru_after_1_dense", "GRU", {"go_backwards": True}, "reads the sequence from its end (go_backwards=True), so it cannot"),
    (
        "lstm_1_dense",
        "LSTM",
        {"time_major": True},
        "has time_major=True, which is not read here; build it with time_major=False.",
    ),
    (
        "lstm_2_dense",
        "LSTM",
        {"return_sequences": False},
        "is behind lstm, which gives one output, and so has no sequence to go along",
    ),
    (
        "gru_after_1_dense",
        "GRU",
        {"activation": "gelu"},
        "has 'gelu' for activation; known are elu, exponential, hard_sigmoid, ",
    ),
    (
        "gru_after_1_dense",
        "GRU",
        {"recurrent_activation": "softmax"},
        "has 'softmax' for recurrent_activation; known are elu, ",
    ),
    ("lstm_1_dense", "Dense", {"activation": MINE}, "has 'mine>tanh' for activation; known are "),
    ("lstm_1_dense", "Dense", {"activation": LAMBDA}, "has '__lambda__' for activation; known are "),
    ("lstm_1_dense", "Dense", {"activation": LEAKY}, "has 'ReLU' for activation; known are "),
    ("gait_mean", "Conv1D", {"padding": "same"}, f"has padding='same' {NO_AHEAD}(6, 0)) directly in front of padding='valid'"),
    (
        "gait_mean",
        "Conv1D",
        {"padding": "valid"},
        "has padding='valid' and needs 6 zeros in front of the sequence and gets 0; ",
    ),
    ("valid", "Conv1D", {"dilation_rate": [4]}, "has padding='valid' and needs 8 zeros in front of the sequence and gets 6; "),
    (
        "valid",
        "ZeroPadding1D",
        {"padding": [3, 3]},
        "has padding [3, 3]; only zeros in front of the sequence, as (2, 0), can be",
    ),
    ("gait_mean", "Conv1D", {"strides": [2]}, "has strides, so it gives fewer outputs than there are tokens."),
    ("gait_mean", "Conv1D", {"groups": 3}, "has groups; only a convolution over all inputs is known here."),
    ("gait_mean", "Conv1D", {"data_format": "channels_first"}, "has channels_first; only channels_last is read here."),
    ("gait_mean", "AveragePooling1D", {"strides": [3]}, "has strides, so it gives fewer outputs than there are tokens."),
    ("gait_mean", "AveragePooling1D", {"strides": None}, "has strides = None; it is a number from 1 up."),
    ("gait_max", "MaxPooling1D", {"padding": "same"}, f"has padding='same' {NO_AHEAD}(1, 0)) "),
    (
        "gait_mean",
        "BatchNormalization",
        {"axis": 1},
        "works along axis 1; a stream has only the last, the features of a token.",
    ),
    (
        "last_only",
        "BatchNormalization",
        {"axis": 2},
        "works along axis 2; a stream has only the last, the features of a token.",
    ),
    ("normalised", "LayerNormalization", {"axis": [1, 2]}, "works along axis [1, 2]; "),
    ("gait_mean", "UnitNormalization", {"axis": 1}, "works along axis 1; "),
    ("gait_mean", "BatchNormalization", {"renorm": True}, "has renorm, which is not read here."),
    ("normalised", "LayerNormalization", {"rms_scaling": True}, "has rms_scaling, which is not read here."),
    (
        "functions",
        "ReLU",
        {"threshold": 1.0},
        "has settings that are not known here: a ReLU ends at nothing or 6, an ELU has alpha=1.",
    ),
    (
        "functions",
        "ELU",
        {"alpha": 0.5},
        "has settings that are not known here: a ReLU ends at nothing or 6, an ELU has alpha=1.",
    ),
    (
        "lstm_1_dense",
        "Dense",
        {"dtype": INT8},
        "is quantised or of a precision that is not known here ('int8'); save it in float32.",
    ),
    (
        "lstm_1_dense",
        "Dense",
        {"quantization_config": INT8},
        "is quantised or of a precision that is not known here ('float32'); ",
    ),
    ("lstm_1_dense", "LSTM", {"units": 7}, "has the weight kernel of [3, 20]; by its settings and its input it is [3, 28]."),
    ("lstm_1_dense", "LSTM", {"units": "5"}, "has units = '5'; it is a number from 1 up."),
    (
        "gru_before_1_dense",
        "GRU",
        {"reset_after": True},
        "has the weight bias of [15]; by its settings and its input it is [2, 15].",
    ),
    (
        "lstm_1_token",
        "Embedding",
        {"input_dim": 5},
        "has the weight embeddings of [6, 4]; by its settings and its input it is [5, 4].",
    ),
]


@pytest.mark.parametrize(("case", "kind", "new", "why"), SETTINGS)
def test_settings(case, kind, new, why, tmp_path):
    number = 1 if case == "lstm_2_dense" else 0
    names = []

    def edit(model):
        names.append(entry(model, kind, number)["config"]["name"])
        entry(model, kind)["config"].update(new)

    sentence = refused(changed(tmp_path, f"{case}.keras", edit))
    assert f"The layer {names[0]} ({kind}) {why}" in sentence


OTHERS = [
    (
        "valid",
        "ZeroPadding1D",
        {"padding": [5, 0]},
        "The layer conv1d (Conv1D) has padding='valid' and needs 6 zeros in front of ",
    ),
    (
        "valid",
        "Conv1D",
        {"padding": "causal"},
        "The layer zero_padding1d (ZeroPadding1D) pads conv1d; only in front of a window ",
    ),
    ("lstm_1_dense", "Dense", {"use_bias": False}, "It holds weights that none of its layers has: layers/dense/vars/1."),
    (
        "lstm_1_dense",
        "InputLayer",
        {"batch_shape": [None, 3]},
        "[None, 3]; that of a stream has the axes batch, time and features.",
    ),
    (
        "lstm_1_token",
        "InputLayer",
        {"batch_shape": [None, 9, 6]},
        "[None, 9, 6]; that of a stream has the axes batch and time.",
    ),
    (
        "lstm_1_dense",
        "InputLayer",
        {"batch_shape": [None, None, 4]},
        "The layer lstm (LSTM) has the weight kernel of [3, 20]; by ",
    ),
    ("normalised", "LayerNormalization", {"epsilon": 0}, "epsilon is 0; it is a number from "),
]


@pytest.mark.parametrize(("case", "kind", "new", "sentence"), OTHERS)
def test_settings_that_another_layer_suffers_from(case, kind, new, sentence, tmp_path):
    assert sentence in refused(changed(tmp_path, f"{case}.keras", settings(kind, **new)))


def test_zeros_behind_the_last_layer(tmp_path):
    def edit(model):
        layers = model["config"]["layers"]
        layers.append(layers.pop(1))
        entry(model, "Conv1D")["config"]["padding"] = "causal"

    assert "The layer zero_padding1d (ZeroPadding1D) pads the outputs of the model." in refused(
        changed(tmp_path, "valid.keras", edit)
    )


def renamed(kind, new, number=0, **more):
    """An edit that makes another class of a layer."""
    return lambda model: entry(model, kind, number).update(class_name=new, **more)


CLASSES = {
    "Bidirectional": "(Bidirectional) reads the sequence from both ends, so it cannot be streamed.",
    "Lambda": "(Lambda) is a piece of Python, and nothing out of a file is run.",
    "Masking": "(Masking) passes over tokens by their values; save the model without it and leave such tokens out ",
    "GlobalAveragePooling1D": "(GlobalAveragePooling1D) takes the whole sequence at once, so it cannot be streamed.",
    "TextVectorization": "(TextVectorization) turns text into ids; save the model without it, and give the words as `voc",
    "ConvLSTM1D": "(ConvLSTM1D) is not known here; known are Activation, ActivityRegularization, Add, ",
    "mine>Cell": "is a mine>Cell, a class of one's own, whose code is not in the file.",
}


@pytest.mark.parametrize("form", ["keras", "h5"])
@pytest.mark.parametrize("new", CLASSES)
def test_classes(new, form, tmp_path):
    assert f"The layer lstm {CLASSES[new]}" in refused(changed(tmp_path, f"lstm_2_token.{form}", renamed("LSTM", new)))


@pytest.mark.parametrize(
    "more",
    [
        {"module": "mine.layers"},
        {"registered_name": "mine>LSTM"},
        {"module": None, "registered_name": "LSTM"},  # of a script, __main__
        {"module": "keras_mine.layers", "registered_name": "LSTM"},
    ],
)
def test_a_class_of_one_s_own_with_the_name_of_one_of_keras(more, tmp_path):
    path = changed(tmp_path, "lstm_1_dense.keras", renamed("LSTM", "LSTM", **more))
    assert "a class of one's own, whose code is not in the file." in refused(path)


def test_an_unknown_cell_in_a_wrapper(tmp_path):
    def edit(model):
        entry(model, "RNN", 1)["config"]["cell"]["config"]["cells"][1]["class_name"] = "PeepholeLSTMCell"

    assert refused(changed(tmp_path, "wrapped.keras", edit)).endswith(
        "The layer rnn_1 (RNN) has a PeepholeLSTMCell for a cell; known are SimpleRNNCell, GRUCell, LSTMCell."
    )


def test_a_recurrent_layer_for_each_token_by_itself(tmp_path):
    def edit(model):
        wrapper = entry(model, "TimeDistributed")["config"]
        wrapper["layer"] = {"class_name": "ZeroPadding1D", "config": {"name": "inside", "padding": [1, 0]}}

    path = changed(tmp_path, "each_token.keras", edit, lambda file: file["layers/time_distributed/layer/vars"].clear())
    assert (
        "The layer time_distributed/inside (ZeroPadding1D) is inside of a TimeDistributed, and so has no sequence"
        in refused(path)
    )


def test_a_whole_model_of_one_s_own(tmp_path):
    assert "The layer the model is a mine>Model, a class of one's own" in refused(
        changed(tmp_path, "lstm_1_dense.keras", lambda model: model.update(registered_name="mine>Model"))
    )
    assert "The model is a Dense; a Sequential or Functional model can be read." in refused(
        changed(tmp_path, "lstm_1_dense.keras", lambda model: model.update(class_name="Dense"))
    )


def test_an_embedding_behind_another_layer(tmp_path):
    def edit(model):
        layers = model["config"]["layers"]
        layers.append(layers.pop(1))
        entry(model, "InputLayer")["config"]["batch_shape"] = [None, None, 4]

    assert "The layer embedding (Embedding) is not the first layer, and ids come in there alone." in refused(
        changed(tmp_path, "gru_after_1_token.keras", edit)
    )


def test_a_spec_for_files_that_say_less(tmp_path):
    path = written(tmp_path, "gru_after_1_token.keras")
    for said in ({"layers": [{"from": "gru"}]}, {"ignore": ["dense"]}):
        assert "`layers` and `ignore` in --spec are for files without a model in them; this one says it all itself." in refused(
            path, said
        )
    for said in (
        {"start": "a"},
        {"stop": "b"},
        {"states": {"h": "hn"}},
        {"constants": {"sr": 8}},
        {"batch": True},
        {"size": 6},
    ):
        assert "`start`, `stop`, `states`, `constants`, `batch` and `size` in --spec are for ONNX graphs." in refused(
            path, said
        )
    assert "The layer embedding (Embedding) takes ids, so `input` in --spec cannot be dense." in refused(
        path, {"input": "dense"}
    )
    assert "input.vocabulary has 2 entries" in refused(path, {"vocabulary": ["a", "b"]})


def test_a_network_that_takes_no_one_hot_vectors(tmp_path):
    path = written(tmp_path, "gait_mean.keras")
    assert "layers[1] is conv; behind onehot comes one of dense, rnn, gru, lstm." in refused(path, {"input": "token"})


def test_nothing_but_a_head(tmp_path):
    def edit(model):
        model["config"]["layers"] = [
            entry(model, "InputLayer"),
            {"class_name": "Softmax", "config": {"name": "softmax", "axis": -1}},
        ]

    def weights(file):
        del file["layers"]

    for spec in (None, {"input": "token"}):
        assert refused(changed(tmp_path, "lstm_1_dense.keras", edit, weights), spec).endswith(
            "It has no layer but activations, and nothing that was trained."
        )
