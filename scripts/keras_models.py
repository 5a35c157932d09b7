"""The models of scripts/golden_keras.py, for Keras 3, 2.15 and 2.13."""

from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import layers

MAJOR, MINOR = (int(number) for number in keras.__version__.split(".")[:2])
T, V, K, E, SIZES = (
    12,
    6,
    3,
    4,
    (5, 4, 3),
)  # steps, ids, numbers of a dense token, of an embedding; units of the layers of a stack

CELLS: dict[str, Callable[..., Any]] = {
    "rnn_tanh": layers.SimpleRNN,
    "rnn_relu": lambda units, **keys: layers.SimpleRNN(units, activation="relu", **keys),
    "gru_after": lambda units, **keys: layers.GRU(units, reset_after=True, **keys),
    "gru_before": lambda units, **keys: layers.GRU(units, reset_after=False, **keys),
    "lstm": layers.LSTM,
}
FUNCTIONS = ["tanh", "sigmoid", "relu", "hard_sigmoid", "elu", "selu", "softplus", "softsign", "silu", "exponential", "softmax"]
if MAJOR == 3:
    FUNCTIONS += ["relu6", "hard_tanh"]


def stack(cell: str, depth: int, *, token: bool) -> Any:
    """A Sequential of recurrent layers between an embedding and a softmax, or between numbers and numbers."""
    front = [layers.Input((None,)), layers.Embedding(V, E)] if token else [layers.Input((None, K))]
    cells = [CELLS[cell](units, return_sequences=True) for units in SIZES[:depth]]
    return keras.Sequential([*front, *cells, layers.Dense(V, activation="softmax") if token else layers.Dense(2)])


def gait(last: str) -> Any:
    """A convolution, its statistics, a pool, a cell, and a direction."""
    window = [layers.ZeroPadding1D((2, 0)), layers.AveragePooling1D(3, strides=1)]
    if last == "max":
        window = [layers.ZeroPadding1D((1, 0)), layers.Dropout(0.5), layers.MaxPooling1D(2, strides=1)]
    direction = layers.UnitNormalization() if last == "mean" else layers.Activation("sigmoid")
    return keras.Sequential(
        [
            layers.Input((None, K)),
            layers.Conv1D(5, 4, padding="causal", dilation_rate=2, activation="tanh"),
            layers.BatchNormalization(),
            *window,
            layers.GRU(4, return_sequences=True, dropout=0.2),
            layers.Dense(3),
            direction,
        ]
    )


def valid_convolution() -> Any:
    return keras.Sequential(
        [
            layers.Input((None, K)),
            layers.ZeroPadding1D((6, 0)),
            layers.Conv1D(4, 3, dilation_rate=3, use_bias=False),
            layers.BatchNormalization(scale=False),
            layers.Conv1D(3, 1, activation="relu"),
            layers.LSTM(4, return_sequences=True),
        ]
    )


def hard_sigmoid() -> Any:
    return keras.Sequential(
        [
            layers.Input((None, K)),
            layers.GRU(4, return_sequences=True, activation="softsign", recurrent_activation="hard_sigmoid"),
            layers.LSTM(3, return_sequences=True, recurrent_activation="hard_sigmoid", activation="elu"),
        ]
    )


def functions() -> Any:
    """All activations, each between a matrix and a sum, and no normalisation that shrinks what they give."""
    x = layers.Input((None, K))
    z = layers.Dense(5)(x)
    blocks = [[layers.Dense(5, activation=name)] for name in FUNCTIONS]
    blocks += [[layers.Dense(5), layer] for layer in (layers.ReLU(), layers.ReLU(6.0), layers.ELU(), layers.Softmax())]
    for block in blocks:
        before = z
        for layer in block:
            z = layer(z)
        z = layers.LayerNormalization(center=False, scale=False)(layers.Add()([before, z]))
    return keras.Model(x, z)


def each_token() -> Any:
    block = keras.Sequential([layers.Dense(4, activation="relu"), layers.LayerNormalization(), layers.Dense(3)])
    return keras.Sequential(
        [
            layers.Input((None, K)),
            layers.LSTM(4, return_sequences=True, use_bias=False),
            layers.TimeDistributed(layers.Dense(5, activation="tanh")),
            layers.TimeDistributed(layers.Dense(4)),
            layers.TimeDistributed(block),
            layers.TimeDistributed(layers.Activation("softsign")),
        ]
    )


def normalised() -> Any:
    return keras.Sequential(
        [
            layers.Input((None,)),
            layers.Embedding(V, E),
            layers.LayerNormalization(center=False, epsilon=1e-5),
            layers.GRU(4, return_sequences=True, use_bias=False),
            layers.LayerNormalization(scale=False),
            layers.Dense(V),
            layers.BatchNormalization(center=False),
            layers.Softmax(),
        ]
    )


def residual() -> Any:
    x = layers.Input((None, K))
    first = layers.GRU(K, return_sequences=True)(x)
    second = layers.Add()([layers.Dropout(0.1)(first), x])
    third = layers.LSTM(K, return_sequences=True)(second)
    z = layers.Dense(K, activation="tanh")(third)
    z = layers.Add()([first, z])
    return keras.Model(x, layers.Add()([z, z]))


def nested(*, frozen: bool = False) -> Any:
    """Models in a model, with a sum inside of one, and weights that training leaves alone behind those that it changes."""
    inside = layers.Input((None, 4))
    z = layers.Dense(4, activation="relu", name="both")(inside)
    z = layers.BatchNormalization()(z)
    z = layers.Dense(4, name="between")(z)
    block = keras.Model(inside, layers.Add()([inside, z]), name="block")
    deep = keras.Sequential(
        [keras.Sequential([layers.Dense(3), layers.BatchNormalization()], name="in"), layers.Dense(4)], name="out"
    )
    x = layers.Input((None, K))
    z = layers.SimpleRNN(4, return_sequences=True)(x)
    entry = z
    z = deep(block(z))
    z = layers.Add()([z, entry])
    model = keras.Model(x, layers.Dense(2)(z))
    if frozen:
        block.get_layer("both").trainable = False
        deep.get_layer("in").trainable = False
    return model


def masked() -> Any:
    x = layers.Input((None,))
    z = layers.Embedding(V, E, mask_zero=True)(x)
    z = layers.Add()([layers.GRU(E, return_sequences=True)(z), z])
    return keras.Model(x, layers.Dense(V, activation="softmax")(layers.LSTM(4, return_sequences=True)(z)))


def last_only() -> tuple[Any, Any]:
    """A model that gives one output, and the same with an output at every token."""

    def build(every: bool) -> Any:
        return keras.Sequential(
            [
                layers.Input((None if every else 7, K)),
                layers.GRU(4, return_sequences=True),
                layers.LSTM(3, return_sequences=every),
                layers.BatchNormalization(),
                layers.LayerNormalization(),
                layers.Dense(1, activation="sigmoid"),
            ]
        )

    return build(False), build(True)


def wrapped() -> Any:
    cells = [layers.GRUCell(4), layers.LSTMCell(3), layers.GRUCell(2)]
    return keras.Sequential(
        [
            layers.Input((None, K)),
            layers.RNN(layers.SimpleRNNCell(4), return_sequences=True),
            layers.RNN(cells, return_sequences=True),
        ]
    )


def models() -> Iterator[tuple[str, Any, str]]:
    """The cases: a name, the model, and the forms it is saved in."""
    for cell in CELLS:
        for depth in (1, 2, 3):
            for token in (True, False):
                if MAJOR == 3:
                    both = depth == 2 and token
                    yield (
                        f"{cell}_{depth}_{'token' if token else 'dense'}",
                        stack(cell, depth, token=token),
                        "keras h5" if both else "keras",
                    )
                elif depth == 2 and not token:
                    yield f"{cell}_2_dense", stack(cell, 2, token=False), "keras h5"
    yield "hard_sigmoid", hard_sigmoid(), "keras h5"
    yield "each_token", each_token(), "keras h5"
    yield "residual", residual(), "keras h5"
    yield "nested", nested(), "keras h5"
    yield "frozen", nested(frozen=True), "keras h5"
    yield "masked", masked(), "keras h5"
    yield "functions", functions(), "keras h5"
    if MAJOR == 3 or MINOR == 15:
        yield "normalised", normalised(), "keras h5"
        yield "gait_mean", gait("mean"), "keras h5"
    if MAJOR == 3:
        yield "gait_max", gait("max"), "keras"
        yield "valid", valid_convolution(), "keras"
        yield "wrapped", wrapped(), "keras h5"
        keras.config.set_floatx("float64")
        yield "float64", stack("gru_after", 1, token=False), "keras"
        keras.config.set_floatx("float32")
