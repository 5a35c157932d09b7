"""The one table of layer kinds: their keys, the names and shapes of their tensors, the sizes of their states.

H size of a recurrent layer    K inputs of a layer    N its outputs    M tokens that it remembers
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rnnstream.errors import ModelError
from rnnstream.model.activations import ACTIVATIONS, OVER_A_ROW

LARGEST = 1 << 24  # of any size: a matrix side beyond 16 million is a damaged file
LEAST_EPSILON = 1e-30  # float32 has no normal numbers below 1e-38

Keys = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]
Check = Callable[[Any, str], Any]  # (value, where it stands) -> the value, or ModelError


def check_size(value: Any, where: str) -> int:
    """The value, if it is a size."""
    if type(value) is not int or not 1 <= value <= LARGEST:
        raise ModelError(f"{where} is {value!r:.60}; it is an int from 1 to {LARGEST:,}.")
    return value


def one_of(*allowed: str) -> Check:
    """The check of a key that takes one of these words."""

    def check(value: Any, where: str) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise ModelError(f"{where} is {value!r:.60}; it is one of {', '.join(allowed)}.")
        return value

    return check


def _check_layer(value: Any, where: str) -> int:
    if type(value) is not int or value < 0:
        raise ModelError(f"{where} is {value!r:.60}; it is the number of a layer in front, or 0 for the input.")
    return value


def _check_epsilon(value: Any, where: str) -> float:
    if type(value) is not float or not LEAST_EPSILON <= value < 1:
        raise ModelError(f"{where} is {value!r:.60}; it is a number from {LEAST_EPSILON} to below 1.")
    return value


@dataclass(frozen=True)
class LayerKind:
    """A row of the table.

    Attributes:
        keys: what its entry in the specification may hold beside "kind", and how each is checked.
        defaults: keys that may be absent.
        tensors: (K, its keys) -> shapes by name, without the layer's number.
        state: (K, its keys) -> size of its state, 0 for layers without memory.
        tokens: it takes ids.
        recurrent: what it gives out are the first numbers of its new state.
    """

    keys: dict[str, Check]
    defaults: Keys
    tensors: Callable[[int, Keys], Shapes]
    state: Callable[[int, Keys], int] = lambda k, keys: 0
    tokens: bool = False
    recurrent: bool = False


def _none(k: int, keys: Keys) -> Shapes:
    return {}


def _per_feature(k: int, keys: Keys) -> Shapes:
    return {"s": (k,), "b": (k,)}


def _cell(gates: int, keys: dict[str, Check], defaults: Keys) -> LayerKind:
    """A recurrent kind with so many blocks in its matrices; an LSTM, with four, keeps its cell beside what it gives out."""

    def shapes(k: int, keys: Keys) -> Shapes:
        h = keys["size"]
        found = {"waa": (gates * h, h), "wax": (gates * h, k), "ba": (gates * h,)}
        return found | {"bh": (h,)} if keys.get("reset") == "after" else found

    states = 2 if gates == 4 else 1
    return LayerKind({"size": check_size, **keys}, defaults, shapes, lambda k, keys: states * keys["size"], recurrent=True)


_G = one_of(*ACTIVATIONS)
_GATE = one_of(*(name for name in ACTIVATIONS if name not in OVER_A_ROW))  # a gate opens for each number by itself
_GATED, _GATED_DEFAULTS = {"activation": _G, "gate": _GATE}, {"activation": "tanh", "gate": "sigmoid"}
LAYERS: dict[str, LayerKind] = {
    "onehot": LayerKind({}, {}, _none, tokens=True),
    "embedding": LayerKind({"size": check_size}, {}, lambda k, keys: {"e": (k, keys["size"])}, tokens=True),
    "dense": LayerKind({"size": check_size}, {}, lambda k, keys: {"w": (keys["size"], k), "b": (keys["size"],)}),
    "activation": LayerKind({"function": _G}, {}, _none),
    "scale": LayerKind({}, {}, _per_feature),
    "layernorm": LayerKind({"epsilon": _check_epsilon}, {"epsilon": 1e-5}, _per_feature),
    "residual": LayerKind({"of": _check_layer}, {}, _none),
    "conv": LayerKind(
        {"size": check_size, "kernel": check_size, "dilation": check_size},
        {"dilation": 1},
        lambda k, keys: {"w": (keys["size"], keys["kernel"], k), "b": (keys["size"],)},
        lambda k, keys: (keys["kernel"] - 1) * keys["dilation"] * k,
    ),
    "pool": LayerKind(
        {"function": one_of("mean", "max"), "window": check_size}, {}, _none, lambda k, keys: (keys["window"] - 1) * k
    ),
    "rnn": _cell(1, {"activation": _G}, {"activation": "tanh"}),
    "gru": _cell(3, _GATED | {"reset": one_of("after", "before")}, _GATED_DEFAULTS | {"reset": "after"}),
    "lstm": _cell(4, _GATED, _GATED_DEFAULTS),
}
TAKE_ONEHOT = ("dense", "rnn", "gru", "lstm")  # layers with a matrix of which a one-hot vector picks a column
