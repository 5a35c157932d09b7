"""What is known where a Keras layer is read: the chain in front of it, and what its settings say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rnnstream.convert import parts
from rnnstream.convert.keras_graph import Layer, own_class
from rnnstream.convert.parts import Part

FUNCTIONS = {
    "linear": "identity",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "relu": "relu",
    "hard_sigmoid": "hard_sigmoid",  # of Keras 3; before, the line was steeper: `function`
    "hard_tanh": "hard_tanh",
    "relu6": "relu6",
    "elu": "elu",
    "selu": "selu",
    "softplus": "softplus",
    "softsign": "softsign",
    "silu": "silu",
    "swish": "silu",
    "exponential": "exponential",
    "softmax": "softmax",
}
PRECISIONS = ("float32", "float64", "float16", "bfloat16", "mixed_float16", "mixed_bfloat16")


@dataclass
class Chain:
    """What is known in front of a layer.

    Attributes:
        version: the first number of the Keras that wrote the file.
        size: K.
        parts: of the layers so far.
        notes: about them.
        last: the recurrent layer that gave only its last output, so that there is no axis of time any more.
        padding: a ZeroPadding1D and its number of zeros, for the window behind it.
        outputs: of each layer, the name of the part that gives its output, and how many numbers that has.
        dropped: layers that do nothing in inference.
    """

    version: int
    size: int
    parts: list[Part] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    last: str | None = None
    padding: tuple[Layer, int] | None = None
    outputs: dict[str, tuple[str, int]] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)

    def axes(self, layer: Layer) -> int:
        """How many axes the input of a layer has: batch, time if there is one, features."""
        return 2 if self.last or layer.each_token else 3


def function(layer: Layer, key: str, version: int, *, gate: bool = False) -> str:
    """Our name for the activation under a key of the settings.

    Args:
        layer: whose settings.
        key: "activation" or "recurrent_activation".
        version: the first number of the Keras that wrote the file.
        gate: it has to take each number by itself.

    Raises:
        ModelError: it is not one of ours.
    """
    value = layer.config.get(key)
    found: str | None = None
    shown = value
    if value is None:
        found = "identity"
    elif isinstance(value, dict) and value["class_name"] == "function":  # of one's own; Keras's have only their names
        shown = value["config"]
    elif isinstance(value, dict):
        shown = own_class(value, layer.name)
        found = of_layer(shown, value["config"])
    elif isinstance(value, str):
        found = FUNCTIONS.get(value)
    if found is None or (gate and found == "softmax"):
        raise layer.refuse(f"has {shown!r:.60} for {key}; known are {', '.join(sorted(FUNCTIONS))}")
    return "hard_sigmoid_fifth" if found == "hard_sigmoid" and version < 3 else found


def activated(part: Part, layer: Layer, chain: Chain) -> list[Part]:
    """The part of a layer with weights, and behind it that of its activation, if it has one."""
    g = function(layer, "activation", chain.version)
    return [part] if g == "identity" else [part, parts.activation(g, layer.name)]


def of_layer(kind: str, config: dict[str, Any]) -> str | None:
    """Our name for what an activation layer computes, None if it is not one of ours."""
    if kind == "ReLU" and not config.get("negative_slope") and not config.get("threshold"):
        return {None: "relu", 6: "relu6"}.get(config.get("max_value"))
    if kind == "ELU" and config.get("alpha", 1.0) == 1:
        return "elu"
    if kind == "Softmax" and config.get("axis", -1) in (-1, [-1]):
        return "softmax"
    if kind == "UnitNormalization" and config.get("axis", -1) in (-1, [-1]):
        return "unit_length"
    return None


def one_int(layer: Layer, key: str, default: int | None = None) -> int:
    """A size in the settings; of windows, it may stand in a list of one."""
    value = layer.config.get(key, default)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if type(value) is not int or value < 1:
        raise layer.refuse(f"has {key} = {value!r:.40}; it is a number from 1 up")
    return value


def hold_axis(layer: Layer, *, axes: int) -> None:
    """Hold that a layer works along the features, the last of so many axes."""
    axis = layer.config.get("axis", -1)
    if axis not in (-1, axes - 1, [-1], [axes - 1]):
        raise layer.refuse(f"works along axis {axis!r:.40}; a stream has only the last, the features of a token")


def precision(layer: Layer) -> str:
    """The policy by which Keras computes the layer.

    Raises:
        ModelError: its weights are no plain floating point numbers.
    """
    policy = layer.config.get("dtype") or "float32"
    if isinstance(policy, dict):
        settings = policy["config"]
        policy = settings.get("name") or settings.get("mode") or policy["class_name"]
    if policy not in PRECISIONS or layer.config.get("quantization_config"):
        raise layer.refuse(f"is quantised or of a precision that is not known here ({policy!r:.40}); save it in float32")
    return str(policy)


AGAINST_TIME = {
    "go_backwards": "reads the sequence from its end (go_backwards=True), so it cannot be streamed",
    "time_major": "has time_major=True, which is not read here; build it with time_major=False",
}
