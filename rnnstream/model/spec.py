"""The specification of a model: what the file's JSON says, checked, and the tensors that it asks for.

V ids of the vocabulary    K inputs of a layer    N its outputs    S size of the state
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from rnnstream.errors import ModelError
from rnnstream.model.kinds import LARGEST, LAYERS, TAKE_ONEHOT, Keys, Shapes, check_size, one_of

FORMAT = 1
HEADS = ("categorical", "bernoulli", "linear")
MOST_LAYERS = 1000
MOST_CHARACTERS = 1000  # of a vocabulary's entry: it may go into every reply, and a body has room for a kilobyte each


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
    keys: Keys
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
    dtype = one_of("float32", "float64")(spec.get("dtype", "float32"), "dtype")
    source = _map(spec.get("input"), "input", {"kind", "size", "vocabulary"})
    kind = one_of("token", "dense")(source.get("kind"), "input.kind")
    size = check_size(source.get("size"), "input.size")
    vocabulary = _vocabulary(source, kind, size)
    head = one_of(*HEADS)(spec.get("head"), "head")
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
    if not isinstance(given, list) or not 1 <= len(given) <= MOST_LAYERS:
        raise ModelError(f"layers is not a list of 1 to {MOST_LAYERS:,} layers.")
    entries = [_layer(entry, f"layers[{place}]") for place, entry in enumerate(given)]
    recurrent = [name for name, keys in entries if LAYERS[name].recurrent]
    plain = recurrent == ["rnn"]  # one vanilla layer: its tensors are called as in the equations, without a number
    layers: list[Layer] = []
    shapes: Shapes = {}
    ids, onehot = kind == "token", False
    gives = [None if ids else size]  # the input and each layer: how many numbers, None for ids
    for place, (name, keys) in enumerate(entries):
        row = LAYERS[name]
        if row.tokens != ids:
            takes = "an onehot or embedding layer comes first" if ids else f"{name} takes ids and can only come first"
            raise ModelError(f"layers[{place}] is {name}, behind {'token ids' if ids else 'numbers'}; {takes}.")
        if onehot and name not in TAKE_ONEHOT:
            raise ModelError(f"layers[{place}] is {name}; behind onehot comes one of {', '.join(TAKE_ONEHOT)}.")
        if name == "residual":
            _check_residual(keys["of"], gives, f"layers[{place}].of")
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
        state = row.state(size, keys)
        if state > LARGEST:
            raise ModelError(f"layers[{place}] would keep {state:,} numbers of state; {LARGEST:,} are the most.")
        layers.append(Layer(name, keys, size, outputs, state, names, onehot))
        ids, onehot, size = False, name == "onehot", outputs
        gives.append(None if onehot else outputs)
    if onehot:
        raise ModelError("layers ends with onehot, which has no numbers of its own to give; put a layer behind it.")
    return tuple(layers), shapes


def _check_residual(of: int, gives: list[int | None], where: str) -> None:
    """What a residual layer adds has to be numbers from in front of it, as many as come in."""
    if of >= len(gives):
        raise ModelError(
            f"{where} is {of!r:.60}; this is layer {len(gives)}, and only one in front of it can be added, or 0, the input."
        )
    if gives[of] is None:
        raise ModelError(f"{where} is {of}, which gives ids; only numbers can be added.")
    if gives[of] != gives[-1]:
        raise ModelError(f"{where} is {of}, which gives {gives[of]} numbers; {gives[-1]} come in, and as many can be added.")


def _layer(entry: Any, where: str) -> tuple[str, Keys]:
    kind = one_of(*LAYERS)(entry.get("kind") if isinstance(entry, dict) else None, f"{where}.kind")
    row = LAYERS[kind]
    given = _map(entry, where, {"kind", *row.keys})
    return kind, {key: check(given.get(key, row.defaults.get(key)), f"{where}.{key}") for key, check in row.keys.items()}


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
        if len(entry) > MOST_CHARACTERS:
            raise ModelError(f"input.vocabulary[{place}] has {len(entry):,} characters; {MOST_CHARACTERS:,} are the most.")
        _utf8(entry, f"input.vocabulary[{place}]")
    return tuple(entries)


def _utf8(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ModelError(f"{where} is {text!r:.60}; half of a surrogate pair is no character.") from None


def _map(value: Any, where: str, known: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ModelError(f"{where} is {value!r:.60}; it is a JSON object.")
    for key in value:
        if key not in known:
            raise ModelError(f"{where} has the unknown key {key!r:.60}; it takes {', '.join(sorted(known))}.")
    return value
