"""Model files: safetensors, with the specification as JSON under the metadata key `rnnstream`. Nothing in them can run code.

A file is somebody else's bytes: before anything is made that takes memory or time, it is held against what the file has.
"""

from __future__ import annotations

import json
import math
import reprlib
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from rnnstream.errors import ModelError
from rnnstream.model.network import Network, check_tensors
from rnnstream.model.spec import Spec, parse

KEY = "rnnstream"
SHIPPED = Path(__file__).parent.parent / "data" / "tunes.safetensors"
MOST_TEXT = 16 << 20  # characters of JSON, of which Python may make thirty times as many bytes; a million words take half of it
# What a token may cost: the numbers that go into layers, come out of them and are kept. When a file is loaded, each is computed
# some hundred times, to see whether that is exact; so many take seconds and 60 MB at worst. Large tensors take as long anyway,
# so they make room for more: a number for every eight of theirs.
FREE_NUMBERS, HELD_NUMBERS = 1 << 18, 8
SHOWN = 20  # names of tensors in a sentence
_DTYPES = {"F16": "float16", "F32": "float32", "F64": "float64"}  # what safetensors calls them: what NumPy does


def is_model_file(path: str | PathLike[str]) -> bool:
    """Whether this is a safetensors file with our metadata key; of any other, another framework may know more."""
    try:
        with safe_open(path, framework="numpy") as file:
            return KEY in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def load_file(path: str | PathLike[str]) -> Network:
    """The network in a file.

    Raises:
        ModelError: not there, not a safetensors file, without a specification, or not as its specification says.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(KEY)
            if text is None:
                raise ModelError(f"{path} has no metadata key {KEY!r}: it is not an rnnstream model file.")
            spec = parse(_json(text))
            _hold_costs(spec)
            _hold_header(file, spec)
            return Network(spec, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except FileNotFoundError:
        raise ModelError(f"There is no file {path}.") from None
    except (OSError, SafetensorError) as problem:
        why = "it is a folder" if Path(path).is_dir() else _shown(str(problem), 300)
        raise ModelError(f"{path} cannot be read as a safetensors file: {why}.") from None
    except RecursionError:  # from the JSON itself, or from a sentence that would have shown a part of it
        raise ModelError(f"{path}: The metadata key {KEY!r} is nested too deeply.") from None
    except ModelError as problem:
        raise ModelError(f"{path}: {problem}") if str(path) not in str(problem) else problem from None


def _json(text: str) -> Any:
    _hold_length(text)
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except ModelError:
        raise
    except ValueError as problem:  # also an int of more digits than Python converts
        raise ModelError(f"The metadata key {KEY!r} is not JSON: {problem}.") from None


def _hold_length(text: str) -> None:
    if len(text) > MOST_TEXT:
        raise ModelError(f"The metadata key {KEY!r} has {len(text):,} characters; {MOST_TEXT:,} are the most.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:  # which of the two counts, no two readers need agree on
            raise ModelError(f"The metadata key {KEY!r} has an object with the key {key!r:.60} in it twice.")
        found[key] = value
    return found


def _constant(word: str) -> Any:
    raise ModelError(f"The metadata key {KEY!r} is not JSON: {word} is no number there.")


def _hold_costs(spec: Spec) -> None:
    """Hold what a token costs against what the tensors hold, for a line of JSON can ask for a thousand layers without any.

    Raises:
        ModelError: it costs more.
    """
    most = FREE_NUMBERS + sum(math.prod(shape) for shape in spec.shapes.values()) // HELD_NUMBERS
    cost = spec.input_size if spec.input_kind == "dense" else 0
    cost += sum(layer.state_size + layer.outputs for layer in spec.layers if layer.kind != "onehot")
    if cost > most:
        raise ModelError(
            f"The inputs, states and outputs of all layers come to {cost:,} numbers a token; with these tensors, {most:,} are "
            "the most."
        )


def _hold_header(file: Any, spec: Spec) -> None:
    """Hold the header of a file against the specification, before a tensor is read.

    There are shapes that NumPy cannot make, though no bytes belong to them: [0, 2**62], or with a hundred dimensions.

    Raises:
        ModelError: a tensor is not asked for, or of another shape or dtype.
    """
    for name in sorted(file.keys()):
        if name not in spec.shapes:
            asked = sorted(spec.shapes)
            more = f" and {len(asked) - SHOWN:,} more" if len(asked) > SHOWN else ""
            raise ModelError(
                f"The tensor {_shown(name, 60)} is not asked for; these are: {', '.join(asked[:SHOWN]) or 'none'}{more}."
            )
        there, asked_shape = file.get_slice(name), spec.shapes[name]
        shape, dtype = there.get_shape(), there.get_dtype()
        if tuple(shape) != asked_shape or _DTYPES.get(dtype) != spec.dtype:
            raise ModelError(
                f"The tensor {name} is {_DTYPES.get(dtype, dtype)} {reprlib.repr(shape)}; by the specification {spec.dtype} "
                f"{list(asked_shape)}."
            )


def _shown(text: str, most: int) -> str:
    """A text out of a file as it goes into a sentence: short, and nothing in it that a terminal would obey."""
    text = text[:most]
    return text if text.isprintable() else repr(text)[1:-1]


def save(path: str | PathLike[str], spec: Spec | dict[str, Any], tensors: dict[str, npt.NDArray[Any]]) -> None:
    """Write a model file.

    Raises:
        ModelError: a specification or tensor that could not be read back; nothing is written then.
    """
    spec = spec if isinstance(spec, Spec) else parse(spec)
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    check_tensors(spec, contiguous)
    _hold_costs(spec)
    text = spec.text()
    _hold_length(text)
    unfinished = Path(f"{path}.unfinished")  # so that no half of a file ever stands under the name
    unfinished.write_bytes(to_bytes(contiguous, {KEY: text}))
    unfinished.replace(path)
