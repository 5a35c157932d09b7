"""The --spec of a conversion: what a file cannot say about its network, in TOML or JSON."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from rnnstream.errors import ModelError
from rnnstream.model.kinds import LARGEST
from rnnstream.model.spec import HEADS

TENSORS = ("weight", "bias", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "running_mean", "running_var")
LAYER_KEYS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("from", "kind", "activation", "pool", "residual", *TENSORS), (str,)),
    **dict.fromkeys(("dilation", "window"), (int,)),
    "epsilon": (float,),
    "causal": (bool,),
}


@dataclass
class Hints:
    """A conversion's --spec, checked; every key may be absent. docs/convert.md describes them.

    Attributes:
        name: of the model.
        input: "token" or "dense".
        vocabulary: the entry of each id.
        head: "categorical", "bernoulli" or "linear".
        layers: the order of the parts: objects with the keys `LAYER_KEYS`.
        ignore: patterns, as of file names, of tensors that are left out on purpose.
        start: of an ONNX graph, the tensor that the chain begins with; absent, the graph's input.
        stop: the tensor that it ends with; absent, the graph's output.
        states: for ONNX Runtime, the state inputs and the outputs that are their next values.
        constants: for ONNX Runtime, inputs that are always the same.
        size: for ONNX Runtime, how many ids or numbers a token is of, where the graph leaves it open.
        batch: for ONNX Runtime, run all rows of a batch in one call: faster, and no longer exact. False says no where
            a saved graph says yes.
    """

    name: str | None = None
    input: str | None = None
    vocabulary: list[str] | None = None
    head: str | None = None
    layers: list[dict[str, Any]] | None = None
    ignore: list[str] = field(default_factory=list)
    start: str | None = None
    stop: str | None = None
    states: dict[str, str] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    size: int | None = None
    batch: bool | None = None


def _is(kind: type, words: str) -> Callable[[Any], str]:
    return lambda value: "" if isinstance(value, kind) else words


def _one_of(*allowed: str) -> Callable[[Any], str]:
    return lambda value: "" if value in allowed else f"one of {', '.join(allowed)}"


def _strings(value: Any) -> str:
    return "" if isinstance(value, list) and all(isinstance(entry, str) for entry in value) else "a list of strings"


def _size(value: Any) -> str:
    return "" if type(value) is int and 1 <= value <= LARGEST else f"an int from 1 to {LARGEST:,}"


def _states(value: Any) -> str:
    good = isinstance(value, dict) and all(isinstance(entry, str) for entry in value.values())
    return "" if good else "a table from inputs to outputs"


CHECKS: dict[str, Callable[[Any], str]] = {
    "name": _is(str, "a string"),
    "input": _one_of("token", "dense"),
    "vocabulary": _strings,
    "head": _one_of(*HEADS),
    "layers": _is(list, "a list of layers"),
    "ignore": _strings,
    "start": _is(str, "the name of a tensor"),
    "stop": _is(str, "the name of a tensor"),
    "states": _states,
    "constants": _is(dict, "a table from inputs to their values"),
    "size": _size,
    "batch": _is(bool, "true or false"),
}


def hints(given: Hints | dict[str, Any] | str | PathLike[str] | None) -> Hints:
    """A --spec, from a file (.json, else TOML), from a dict, or none at all.

    Raises:
        ModelError: it cannot be read, or a key is unknown or has another value than it takes.
    """
    if given is None:
        return Hints()
    if isinstance(given, Hints):
        return given
    where, value = ("the spec", given) if isinstance(given, dict) else (str(given), _read(Path(given)))
    if not isinstance(value, dict):
        raise ModelError(f"{where} is no table of keys.")
    for key, entry in value.items():
        if key not in CHECKS:
            raise ModelError(f"{where} has the unknown key {key!r:.60}; it takes {', '.join(CHECKS)}.")
        if wanted := CHECKS[key](entry):
            raise ModelError(f"{where}: {key} is {entry!r:.60}; it is {wanted}.")
    for place, entry in enumerate(value.get("layers", [])):
        if not isinstance(entry, dict) or not entry:
            raise ModelError(f"{where}: layers[{place}] is {entry!r:.60}; it is a table of keys.")
        for key, said in entry.items():
            if key not in LAYER_KEYS:
                raise ModelError(f"{where}: layers[{place}] has the unknown key {key!r:.60}; {', '.join(sorted(LAYER_KEYS))}.")
            if type(said) not in LAYER_KEYS[key]:
                raise ModelError(f"{where}: layers[{place}].{key} is {said!r:.60}; it is a {LAYER_KEYS[key][0].__name__}.")
    return Hints(**value)


def _read(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ModelError(f"There is no file {path}.") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise ModelError(f"{path} cannot be read: {problem}.") from None
    try:
        return json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as problem:
        raise ModelError(f"{path} is not {'JSON' if path.suffix == '.json' else 'TOML'}: {problem}.") from None
