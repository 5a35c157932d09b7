"""The specification of a model: what the file's JSON says, checked, and the tensors that it asks for.

`LAYERS` is the one table of layer kinds: their keys, and the names and shapes of their tensors.

    V ids of the vocabulary    H size of a recurrent layer    K inputs of a layer    N its outputs    S size of the state
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rnnstream.errors import ModelError
from rnnstream.model.activations import ACTIVATIONS

FORMAT = 1
HEADS = ("categorical", "bernoulli", "linear")
LARGEST = 1 << 24  # of any size: a matrix side beyond 16 million is a damaged file

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class LayerKind:
    """A row of the table of layers.

    Attributes:
        keys: what its entry in the specification may hold beside "kind", with the values that are allowed (None: a size).
        defaults: keys that may be absent.
        tensors: (K, its keys) -> shapes by name, without the layer's number.
        state: (its keys) -> size of its state, 0 for layers without memory.
        tokens: it takes ids.
    """

    keys: dict[str, tuple[str, ...] | None]
    defaults: dict[str, str]
    tensors: Callable[[int, dict[str, Any]], Shapes]
    state: Callable[[dict[str, Any]], int] = lambda keys: 0
    tokens: bool = False


def _gates(number: int) -> Callable[[int, dict[str, Any]], Shapes]:
    def shapes(k: int, keys: dict[str, Any]) -> Shapes:
        h = keys["size"]
        found = {"waa": (number * h, h), "wax": (number * h, k), "ba": (number * h,)}
        return found | {"bh": (h,)} if keys.get("reset") == "after" else found

    return shapes


_G1 = tuple(ACTIVATIONS)
LAYERS: dict[str, LayerKind] = {
    "onehot": LayerKind({}, {}, lambda k, keys: {}, tokens=True),
    "embedding": LayerKind({"size": None}, {}, lambda k, keys: {"e": (k, keys["size"])}, tokens=True),
    "dense": LayerKind({"size": None}, {}, lambda k, keys: {"w": (keys["size"], k), "b": (keys["size"],)}),
    "activation": LayerKind({"function": _G1}, {}, lambda k, keys: {}),
    "rnn": LayerKind({"size": None, "activation": _G1}, {"activation": "tanh"}, _gates(1), lambda keys: keys["size"]),
    "gru": LayerKind({"size": None, "reset": ("after", "before")}, {"reset": "after"}, _gates(3), lambda keys: keys["size"]),
    "lstm": LayerKind({"size": None}, {}, _gates(4), lambda keys: 2 * keys["size"]),
}
TAKE_ONEHOT = ("dense", "rnn", "gru", "lstm")  # layers with a matrix of which a one-hot vector picks a column


@dataclass(frozen=True)
class Layer:
    """One entry of the chain, its sizes worked out.

    Attributes:
        kind: a key of `LAYERS`.
        keys: its own keys, defaults filled in.
        inputs: K; for layers behind a one-hot layer the size of the vocabulary.
        outputs: N.
        state_size: numbers it keeps from token to token.
        tensors: the name of each tensor in the file, by its name in the equations.
        from_onehot: its input is an id that stands for a one-hot vector.
    """

    kind: str
    keys: dict[str, Any]
    inputs: int
    outputs: int
    state_size: int
    tensors: dict[str, str]
    from_onehot: bool


@dataclass(frozen=True)
class Spec:
    """A checked specification.

    Attributes:
        json: as it stands in the file, defaults filled in.
        shapes: the shape of every tensor that the file must hold, by name.
    """

    name: str
    dtype: str
    input_kind: str
    input_size: int
    vocabulary: tuple[str, ...] | None
    layers: tuple[Layer, ...]
    head: str
    output_size: int
    state_size: int
    initial_state: bool
    shapes: Shapes
    json: dict[str, Any]

    def text(self) -> str:
        """The JSON, always the same for the same specification."""
        return json.dumps(self.json, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def parse(given: Any) -> Spec:
    """Check a specification and work out the sizes.

    Args:
        given: the JSON's value, as docs/model-format.md describes it.

    Raises:
        ModelError: with a sentence that names the place and what may stand there.
    """
    known = {"format", "name", "dtype", "input", "layers", "head", "initial_state"}
    spec = _map(given, "the specification", known)
    if type(spec.get("format")) is not int or spec["format"] != FORMAT:
        raise ModelError(f"format is {spec.get('format')!r:.60}; this version of rnnstream reads format {FORMAT}.")
    name = spec.get("name", "")
    if not isinstance(name, str) or len(name) > 200:
        raise ModelError(f"name is {name!r:.60}; it is a str of at most 200 characters.")
    _utf8(name, "name")
    dtype = _one_of(spec.get("dtype", "float32"), ("float32", "float64"), "dtype")
    source = _map(spec.get("input"), "input", {"kind", "size", "vocabulary"})
    kind = _one_of(source.get("kind"), ("token", "dense"), "input.kind")
    size = _size(source.get("size"), "input.size")
    vocabulary = _vocabulary(source, kind, size)
    head = _one_of(spec.get("head"), HEADS, "head")
    initial_state = spec.get("initial_state", False)
    if not isinstance(initial_state, bool):
        raise ModelError(f"initial_state is {initial_state!r:.60}; it is true when the file holds the tensor a0.")

    layers, shapes = _chain(spec.get("layers"), kind, size)
    state_size = sum(layer.state_size for layer in layers)
    if initial_state:
        shapes["a0"] = (state_size,)
    clean = {
        "format": FORMAT,
        "name": name,
        "dtype": dtype,
        "input": {"kind": kind, "size": size} | ({"vocabulary": list(vocabulary)} if vocabulary else {}),
        "layers": [{"kind": layer.kind, **layer.keys} for layer in layers],
        "head": head,
        "initial_state": initial_state,
    }
    outputs = layers[-1].outputs
    return Spec(name, dtype, kind, size, vocabulary, layers, head, outputs, state_size, initial_state, shapes, clean)


def _chain(given: Any, kind: str, size: int) -> tuple[tuple[Layer, ...], Shapes]:
    """The layers with their sizes, and the shapes of all their tensors."""
    if not isinstance(given, list) or not 1 <= len(given) <= 1000:
        raise ModelError("layers is not a list of 1 to 1,000 layers.")
    entries = [_layer(entry, f"layers[{place}]") for place, entry in enumerate(given)]
    cells = [name for name, keys in entries if LAYERS[name].state(keys)]
    plain = cells == ["rnn"]  # one vanilla layer: its tensors are called as in the equations, without a number
    layers: list[Layer] = []
    shapes: Shapes = {}
    ids, onehot = kind == "token", False
    for place, (name, keys) in enumerate(entries):
        row = LAYERS[name]
        if row.tokens != ids:
            takes = "an onehot or embedding layer comes first" if ids else f"{name} takes ids and can only come first"
            raise ModelError(f"layers[{place}] is {name}, behind {'token ids' if ids else 'numbers'}; {takes}.")
        if onehot and name not in TAKE_ONEHOT:
            raise ModelError(f"layers[{place}] is {name}; behind onehot comes one of {', '.join(TAKE_ONEHOT)}.")
        last_dense = name == "dense" and place == len(entries) - 1
        number = "" if plain else str(place + 1)
        names: dict[str, str] = {}
        for tensor, shape in row.tensors(size, keys).items():
            if last_dense:
                names[tensor] = {"w": "wya", "b": "by"}[tensor]
            else:
                names[tensor] = tensor + (number if tensor in ("waa", "wax", "ba", "bh") else str(place + 1))
            shapes[names[tensor]] = shape
        outputs = keys.get("size", size)
        layers.append(Layer(name, keys, size, outputs, row.state(keys), names, onehot))
        ids, onehot, size = False, name == "onehot", outputs
    if onehot:
        raise ModelError("layers ends with onehot, which has no numbers of its own to give; put a layer behind it.")
    return tuple(layers), shapes


def _layer(entry: Any, where: str) -> tuple[str, dict[str, Any]]:
    kind = _one_of(entry.get("kind") if isinstance(entry, dict) else None, tuple(LAYERS), f"{where}.kind")
    row = LAYERS[kind]
    given = _map(entry, where, {"kind", *row.keys})
    keys: dict[str, Any] = {}
    for key, allowed in row.keys.items():
        value = given.get(key, row.defaults.get(key))
        keys[key] = _size(value, f"{where}.{key}") if allowed is None else _one_of(value, allowed, f"{where}.{key}")
    return kind, keys


def _vocabulary(source: dict[str, Any], kind: str, size: int) -> tuple[str, ...] | None:
    entries = source.get("vocabulary")
    if entries is None:
        return None
    if kind != "token":
        raise ModelError("input.vocabulary belongs to token input; this input is dense.")
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise ModelError("input.vocabulary is not a list of str.")
    if len(entries) != size or len(set(entries)) != size:
        raise ModelError(
            f"input.vocabulary has {len(entries)} entries, {len(set(entries))} of them different; input.size is {size}."
        )
    for place, entry in enumerate(entries):
        _utf8(entry, f"input.vocabulary[{place}]")
    return tuple(entries)


def _utf8(text: str, where: str) -> None:
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ModelError(f"{where} is {text!r:.60}; half of a surrogate pair is no character.")


def _map(value: Any, where: str, known: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ModelError(f"{where} is {value!r:.60}; it is a JSON object.")
    for key in value:
        if key not in known:
            raise ModelError(f"{where} has the unknown key {key!r:.60}; it takes {', '.join(sorted(known))}.")
    return value


def _one_of(value: Any, allowed: tuple[str, ...], where: str) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise ModelError(f"{where} is {value!r:.60}; it is one of {', '.join(allowed)}.")
    return value


def _size(value: Any, where: str) -> int:
    if type(value) is not int or not 1 <= value <= LARGEST:
        raise ModelError(f"{where} is {value!r:.60}; it is an int from 1 to {LARGEST:,}.")
    return value
