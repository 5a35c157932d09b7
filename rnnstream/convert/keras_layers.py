"""Keras's layers as parts of our chain: `KINDS` is the one table of those that are known.

K inputs    N outputs    H size of a recurrent layer    G its gates    W tokens of a window
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from rnnstream.convert import gates, parts
from rnnstream.convert.keras_graph import Layer
from rnnstream.convert.keras_settings import (
    AGAINST_TIME,
    Chain,
    activated,
    function,
    hold_axis,
    of_layer,
    one_int,
    precision,
)
from rnnstream.convert.keras_windows import conv, padding, pool
from rnnstream.convert.parts import Part

Array = npt.NDArray[Any]
NARROW = "Keras computes by the policy {} in fewer digits; here everything is computed in float32."
NOT_TRAINED = ("moving_mean", "moving_variance")  # weights that .h5 files put last


@dataclass(frozen=True)
class Kind:
    """A row of the table of layers.

    Attributes:
        read: the parts that it becomes; it may change `size`, `padding` and `last` of the chain.
        weights: settings -> the names of its weights, in the order of the file.
        time: it goes along the axis of time, so there has to be one.
    """

    read: Callable[[Layer, Chain], list[Part]]
    weights: Callable[[dict[str, Any]], list[str]] = lambda config: []
    time: bool = False


def weights_of(layer: Layer) -> list[str]:
    """The names of a layer's weights, in the order of the file.

    Raises:
        ModelError: it is not known.
    """
    if layer.kind not in KINDS:
        raise layer.refuse(f"is not known here; known are {', '.join(sorted(KINDS))}")
    return KINDS[layer.kind].weights(layer.config)


def parts_of(layers: list[Layer], *, size: int, version: int) -> tuple[list[Part], list[str]]:
    """The layers as parts, and notes about them.

    Args:
        layers: in the order of the chain, with their weights.
        size: the number of ids, or of numbers of a dense input.
        version: the first number of the Keras that wrote the file.

    Raises:
        ModelError: a layer cannot be streamed, or its weights do not fit.
    """
    chain = Chain(version, size)
    chain.outputs[""] = ("", size)
    for layer in layers:
        kind = KINDS[layer.kind]
        policy = precision(layer)
        if policy not in ("float32", "float64") and (note := NARROW.format(policy)) not in chain.notes:
            chain.notes.append(note)
        if kind.time and (chain.last or layer.each_token):
            why = "is inside of a TimeDistributed" if layer.each_token else f"is behind {chain.last}, which gives one output"
            raise layer.refuse(f"{why}, and so has no sequence to go along; recurrent layers need return_sequences=True")
        padding = chain.padding
        found = kind.read(layer, chain)
        if padding is not None and chain.padding is padding and found:
            raise padding[0].refuse(f"pads {layer.name}; only in front of a window that it fills exactly can it be streamed")
        chain.parts += found
        if chain.padding is None:
            chain.outputs[layer.name] = (chain.parts[-1].name if chain.parts else "", chain.size)
    if chain.padding is not None:
        raise chain.padding[0].refuse("pads the outputs of the model")
    if chain.dropped:
        chain.notes.append(f"Left out, because it works in training alone: {', '.join(chain.dropped)}.")
    return chain.parts, chain.notes


def _embedding(layer: Layer, chain: Chain) -> list[Part]:
    if chain.parts or layer.each_token:
        raise layer.refuse("is not the first layer, and ids come in there alone")
    n = one_int(layer, "output_dim")
    table = layer.needed("embeddings", chain.size, n)
    if layer.config.get("mask_zero"):
        chain.notes.append(f"Id 0 is padding for {layer.name}: in Keras it would not move the state. Never stream it.")
    chain.size = n
    return [parts.embedding(layer.name, table)]


def _dense(layer: Layer, chain: Chain) -> list[Part]:
    k, chain.size = chain.size, one_int(layer, "units")
    w, b = layer.needed("kernel", k, chain.size), layer.weight("bias", chain.size)
    return activated(parts.dense(layer.name, w.T, b), layer, chain)


def _recurrent(kind: str, framework: str = "keras") -> Callable[[Layer, Chain], list[Part]]:
    def read(layer: Layer, chain: Chain) -> list[Part]:
        config = layer.config
        for key, why in AGAINST_TIME.items():
            if config.get(key):
                raise layer.refuse(why)
        k, chain.size = chain.size, one_int(layer, "units")
        rows = len(gates.OURS[kind]) * chain.size
        reset: bool | None = None
        bias: tuple[int, ...] = (rows,)
        if framework == "cudnn":
            bias = (2 * rows,)
        elif kind == "gru":  # Keras 2 before 2.1.3 knew only False, and wrote nothing
            reset = bool(config.get("reset_after", chain.version > 2))
            bias = (2, rows) if reset else (rows,)
        keys = {}
        if framework == "keras":
            keys["activation"] = function(layer, "activation", chain.version)
            if kind != "rnn":
                keys["gate"] = function(layer, "recurrent_activation", chain.version, gate=True)
        part = gates.cell(
            layer.name,
            framework,
            kind,
            kernel=layer.needed("kernel", k, rows),
            recurrent=layer.needed("recurrent_kernel", chain.size, rows),
            bias=layer.weight("bias", *bias),
            reset=reset,
            **keys,
        )
        if config.get("dropout") or config.get("recurrent_dropout"):
            chain.dropped.append(f"the dropout of {layer.name}")
        if config.get("stateful"):
            chain.notes.append(f"{layer.name} is stateful in Keras; here each session has a state of its own, zero at first.")
        if not config.get("return_sequences"):
            chain.last = layer.name
            chain.outputs.clear()  # whole sequences, which can no longer be added
            chain.notes.append(f"{layer.name} gives only its last output in Keras; here an output comes at every token.")
        return [part]

    return read


def _batch_norm(layer: Layer, chain: Chain) -> list[Part]:
    hold_axis(layer, axes=chain.axes(layer))
    if layer.config.get("renorm"):
        raise layer.refuse("has renorm, which is not read here")
    gamma, beta = layer.weight("gamma", chain.size), layer.weight("beta", chain.size)
    mean, variance = layer.needed("moving_mean", chain.size), layer.needed("moving_variance", chain.size)
    return [parts.batch_norm(layer.name, gamma, beta, mean, variance, layer.config["epsilon"])]


def _layer_norm(layer: Layer, chain: Chain) -> list[Part]:
    hold_axis(layer, axes=chain.axes(layer))
    if layer.config.get("rms_scaling"):
        raise layer.refuse("has rms_scaling, which is not read here")
    gamma, beta = layer.weight("gamma", chain.size), layer.weight("beta", chain.size)
    dtype = "float32" if gamma is None else gamma.dtype
    return [parts.layer_norm(layer.name, gamma, beta, chain.size, dtype, layer.config["epsilon"])]


def _activation(layer: Layer, chain: Chain) -> list[Part]:
    if layer.kind == "Activation":
        g: str | None = function(layer, "activation", chain.version)
    else:
        if "axis" in layer.config:
            hold_axis(layer, axes=chain.axes(layer))
        g = of_layer(layer.kind, layer.config | {"axis": -1})
    if g is None:
        raise layer.refuse("has settings that are not known here: a ReLU ends at nothing or 6, an ELU has alpha=1")
    return [] if g == "identity" else [parts.activation(g, layer.name)]


def _add(layer: Layer, chain: Chain) -> list[Part]:
    if layer.added not in chain.outputs:
        raise layer.refuse(f"adds {layer.added or 'the input'}, of which Keras has the whole sequence there, or a padded one")
    name, size = chain.outputs[layer.added]
    if size != chain.size:
        raise layer.refuse(f"adds the {size} numbers of {layer.added or 'the input'} to {chain.size}")
    return [Part("residual", {"of": name}, name=layer.name)]


def _nothing(layer: Layer, chain: Chain) -> list[Part]:
    if layer.kind != "Identity":
        chain.dropped.append(layer.name)
    return []


def _with_bias(*names: str) -> Callable[[dict[str, Any]], list[str]]:
    return lambda config: [*names, "bias"] if config.get("use_bias", True) else [*names]


def _norm(*statistics: str) -> Callable[[dict[str, Any]], list[str]]:
    def names(config: dict[str, Any]) -> list[str]:
        given = {"gamma": config.get("scale", True), "beta": config.get("center", True)}
        return [*(name for name, there in given.items() if there), *statistics]

    return names


_matrices = _with_bias("kernel", "recurrent_kernel")
KINDS = {
    "Embedding": Kind(_embedding, lambda config: ["embeddings"]),
    "Dense": Kind(_dense, _with_bias("kernel")),
    "SimpleRNN": Kind(_recurrent("rnn"), _matrices, time=True),
    "GRU": Kind(_recurrent("gru"), _matrices, time=True),
    "LSTM": Kind(_recurrent("lstm"), _matrices, time=True),
    "CuDNNGRU": Kind(_recurrent("gru", "cudnn"), _matrices, time=True),
    "CuDNNLSTM": Kind(_recurrent("lstm", "cudnn"), _matrices, time=True),
    "Conv1D": Kind(conv, _with_bias("kernel"), time=True),
    "ZeroPadding1D": Kind(padding, time=True),
    "AveragePooling1D": Kind(pool("mean"), time=True),
    "MaxPooling1D": Kind(pool("max"), time=True),
    "BatchNormalization": Kind(_batch_norm, _norm("moving_mean", "moving_variance")),
    "LayerNormalization": Kind(_layer_norm, _norm()),
    "Add": Kind(_add),
    **dict.fromkeys(("Activation", "ReLU", "ELU", "Softmax", "UnitNormalization"), Kind(_activation)),
    **dict.fromkeys(
        (
            "Dropout",
            "SpatialDropout1D",
            "AlphaDropout",
            "GaussianDropout",
            "GaussianNoise",
            "ActivityRegularization",
            "Identity",
        ),
        Kind(_nothing),
    ),
}
