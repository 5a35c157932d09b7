"""A Keras configuration as the chain of its layers, with nested models and wrappers unpacked. Nothing in it is run.

A configuration is `{"class_name": ..., "config": ...}` inside of one another, as Keras 2 and 3 write it into their files.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy.typing as npt

from rnnstream.convert import keras_route
from rnnstream.errors import ModelError
from rnnstream.model.spec import MOST_LAYERS

Array = npt.NDArray[Any]
Entry = dict[str, Any]

PACKAGES = ("keras", "tf_keras")
MODELS = ("Sequential", "Functional", "Model")
CELLS = {"SimpleRNNCell": "SimpleRNN", "GRUCell": "GRU", "LSTMCell": "LSTM"}  # in an RNN wrapper
WITH_CELL = ("SimpleRNN", "GRU", "LSTM")  # their weights belong to a cell of theirs
OF_A_SEQUENCE = ("return_sequences", "go_backwards", "stateful", "time_major")  # settings that an RNN wrapper has for its cell

REFUSED = {
    "Bidirectional": "reads the sequence from both ends, so it cannot be streamed",
    "Lambda": "is a piece of Python, and nothing out of a file is run",
    "Masking": "passes over tokens by their values; save the model without it and leave such tokens out of the stream",
    "TFOpLambda": "is an operation of TensorFlow; a sum can be read as keras.layers.Add, other operations as layers",
    "Flatten": "takes the whole sequence at once, so it cannot be streamed",
    "GlobalAveragePooling1D": "takes the whole sequence at once, so it cannot be streamed",
    "GlobalMaxPooling1D": "takes the whole sequence at once, so it cannot be streamed",
    "Attention": "takes the whole sequence at once, so it cannot be streamed",
    "MultiHeadAttention": "takes the whole sequence at once, so it cannot be streamed",
    "RepeatVector": "makes a sequence out of one output, so it cannot be streamed",
    "TextVectorization": "turns text into ids; save the model without it, and give the words as `vocabulary` in --spec",
    "StringLookup": "turns text into ids; save the model without it, and give the words as `vocabulary` in --spec",
}


@dataclass
class Layer:
    """A layer that holds no others.

    Attributes:
        kind: its class, as "GRU".
        name: "dense", or "block/dense" for a layer inside of another.
        config: its settings.
        top: the layer of the outermost model that it is or belongs to.
        path: of its weights in a .keras file.
        place: of it among the layers of the file, model by model.
        frozen: training leaves its weights as they are.
        each_token: it is inside of a TimeDistributed, so that there is no axis of time.
        added: of an Add, the layer whose output is added; "" for the model's input.
        weights: by Keras's names.
    """

    kind: str
    name: str
    config: dict[str, Any]
    top: str
    path: str
    place: tuple[int, ...]
    frozen: bool
    each_token: bool
    added: str | None = None
    weights: dict[str, Array] = field(default_factory=dict)

    def refuse(self, why: str) -> ModelError:
        """The error about this layer."""
        return ModelError(f"The layer {self.name} ({self.kind}) {why}.")

    def weight(self, name: str, *shape: int) -> Array | None:
        """One of its weights, which has to have this shape; None if it has none of this name."""
        array = self.weights.get(name)
        if array is not None and array.shape != shape:
            raise self.refuse(
                f"has the weight {name} of {list(array.shape)}; by its settings and its input it is {list(shape)}"
            )
        return array

    def needed(self, name: str, *shape: int) -> Array:
        """One of its weights that every layer of its kind has."""
        array = self.weight(name, *shape)
        assert array is not None  # whoever filled in the weights had their names from the same table
        return array


@dataclass(frozen=True)
class _Where:
    """Where an entry stands; the fields are those of `Layer`."""

    name: str = ""
    top: str = ""
    path: str = ""
    place: tuple[int, ...] = ()
    frozen: bool = False
    each_token: bool = False
    step: int = 1

    def inner(self, entry: Entry, path: str, number: int = 0) -> _Where:
        """The place of an entry inside of this one."""
        config = entry["config"]
        local = config.get("name") if isinstance(config, dict) else None
        local = local or entry.get("name") or f"{_snake(entry)}_{number}"
        return replace(
            self,
            name=f"{self.name}/{local}" if self.name else local,
            top=self.top or local,
            path=f"{self.path}/{path}" if self.path else path,
            place=(*self.place, number),
            frozen=self.frozen or (isinstance(config, dict) and config.get("trainable") is False),
        )


def chain(model: Entry, *, step: int = 1) -> list[Layer]:
    """The layers from the input to the output.

    Args:
        model: the configuration of the whole model.
        step: by how much the numbers in the paths of layers of one class differ.

    Raises:
        ModelError: it is no chain, or holds classes that are not Keras's own.
    """
    if own_class(model, "the model") not in MODELS:
        raise ModelError(f"The model is a {model['class_name']}; a Sequential or Functional model can be read.")
    return _unpack(model, _Where(step=step), "")


def input_shape(model: Entry) -> list[int | None] | None:
    """The shape that the model says its input has, the batch first, if it says so."""
    entries = _entries(model)
    first = next((entry for entry in entries if entry["class_name"] == "InputLayer"), entries[0] if entries else None)
    if first is None:
        return None
    if first["class_name"] in MODELS:
        return input_shape(first)
    config = first["config"]
    shape = config.get("batch_shape") or config.get("batch_input_shape")
    if shape is None and isinstance(model["config"], dict):
        shape = model["config"].get("build_input_shape")
    return None if shape is None else list(shape)


def _unpack(entry: Entry, where: _Where, before: str) -> list[Layer]:
    """The layers of an entry in the order of the chain; `before` is the layer whose output goes in."""
    kind, config = own_class(entry, where.name), entry["config"]
    if kind in MODELS:
        return _model(entry, where, before)
    if kind == "TimeDistributed":
        inside = replace(where.inner(config["layer"], "layer"), each_token=True)
        return _unpack(config["layer"], inside, before)
    if kind == "RNN":
        return _cells(config, where)
    path = f"{where.path}/cell" if kind in WITH_CELL else where.path
    return [Layer(kind, where.name, config, where.top, path, where.place, where.frozen, where.each_token)]


def _cells(config: dict[str, Any], where: _Where) -> list[Layer]:
    """The cells of an RNN wrapper, one above the other, each as a layer of its own."""
    inside = where.inner(config["cell"], "cell")
    stack, numbers = [config["cell"]], [inside]
    if own_class(config["cell"], inside.name) == "StackedRNNCells":
        stack = config["cell"]["config"]["cells"]
        paths = _paths(stack, "cells", where.step)
        numbers = [inside.inner(cell, path, number) for number, (cell, path) in enumerate(zip(stack, paths, strict=True))]
    layers = []
    for cell, place in zip(stack, numbers, strict=True):
        kind = own_class(cell, place.name)
        if kind not in CELLS:
            raise ModelError(f"The layer {where.name} (RNN) has a {kind} for a cell; known are {', '.join(CELLS)}.")
        keys = cell["config"] | {key: config.get(key, False) for key in OF_A_SEQUENCE}
        if cell is not stack[-1]:
            keys["return_sequences"] = True
        layers.append(Layer(CELLS[kind], place.name, keys, place.top, place.path, place.place, place.frozen, place.each_token))
    return layers


def _model(entry: Entry, where: _Where, before: str) -> list[Layer]:
    entries = _entries(entry)
    if len(entries) > 2 * MOST_LAYERS:
        raise ModelError(f"{where.name or 'The model'} has {len(entries):,} layers; {MOST_LAYERS:,} are the most.")
    sequential = entry["class_name"] == "Sequential"
    if sequential:  # whose layers do not count the input in their paths
        entries = [inner for inner in entries if inner["class_name"] != "InputLayer"]
    places = [
        where.inner(inner, path, number)
        for number, (inner, path) in enumerate(zip(entries, _paths(entries, "layers", where.step), strict=True))
    ]
    for inner, place in zip(entries, places, strict=True):
        own_class(inner, place.name)
    if sequential:
        names = [str(number) for number in range(len(entries))]
        route: list[tuple[str, str | None]] = [(name, None) for name in names]
        ends = {}
    else:
        names = [inner["name"] for inner in entries]
        start, route = keras_route.route(entry["config"], where.name or "The model")
        ends = {start: before}
    found = dict(zip(names, zip(entries, places, strict=True), strict=True))
    layers: list[Layer] = []
    for name, added in route:
        inner, place = found[name]
        new = _unpack(inner, place, layers[-1].name if layers else before)
        if added is not None:
            new[-1].added = ends[added]
        layers += new
        ends[name] = layers[-1].name if layers else before
    return layers


def _entries(model: Entry) -> list[Entry]:
    config = model["config"]
    entries: list[Entry] = config if isinstance(config, list) else config["layers"]  # a list: Keras before 2.2.3
    return entries


def own_class(entry: Entry, where: str) -> str:
    """The class of an entry.

    Raises:
        ModelError: it is not Keras's own, or one that cannot be streamed; the sentence calls it `where`.
    """
    kind, module, registered = str(entry["class_name"]), entry.get("module"), entry.get("registered_name")
    top = module.partition(".")[0] if module else None
    # Keras writes its own classes with a module, or, in older files, with neither a module nor a registered name
    if ">" in kind or (registered and (top is None or ">" in registered)) or top not in (None, *PACKAGES):
        raise ModelError(f"The layer {where} is a {registered or kind}, a class of one's own, whose code is not in the file.")
    if kind in REFUSED:
        raise ModelError(f"The layer {where} ({kind}) {REFUSED[kind]}.")
    return kind


def _paths(entries: list[Entry], container: str, step: int) -> list[str]:
    """Where each entry's weights are: the class in small letters, numbered if there are more of it."""
    seen: Counter[str] = Counter()
    paths = []
    for entry in entries:
        if str(entry.get("module")).startswith("keras.src.ops"):  # an operation, which is no layer
            paths.append("")
            continue
        name = _snake(entry)
        paths.append(f"{container}/{name}_{seen[name] * step}" if seen[name] else f"{container}/{name}")
        seen[name] += 1
    return paths


def _snake(entry: Entry) -> str:
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", entry["class_name"]))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
