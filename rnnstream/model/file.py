"""Model files: safetensors, with the specification as JSON under the metadata key `rnnstream`. Nothing in them can run code."""

from __future__ import annotations

import json
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
            return Network(spec, {name: _tensor(file, name) for name in file.keys()})  # noqa: SIM118
    except FileNotFoundError:
        raise ModelError(f"There is no file {path}.") from None
    except (OSError, SafetensorError) as problem:
        why = "it is a folder" if Path(path).is_dir() else problem
        raise ModelError(f"{path} cannot be read as a safetensors file: {why}.") from None
    except ModelError as problem:
        raise ModelError(f"{path}: {problem}") if str(path) not in str(problem) else problem from None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ModelError(f"The metadata key {KEY!r} is nested too deeply.") from None
    except ValueError as problem:  # also an int of more digits than Python converts
        raise ModelError(f"The metadata key {KEY!r} is not JSON: {problem}.") from None


def _tensor(file: Any, name: str) -> npt.NDArray[Any]:
    try:
        return file.get_tensor(name)
    except (AttributeError, TypeError):  # that is how safetensors asks NumPy for bfloat16 or float8
        raise ModelError(f"The tensor {name} is {file.get_slice(name).get_dtype()}, which NumPy does not have.") from None


def save(path: str | PathLike[str], spec: Spec | dict[str, Any], tensors: dict[str, npt.NDArray[Any]]) -> None:
    """Write a model file.

    Raises:
        ModelError: a specification or tensor that could not be read back; nothing is written then.
    """
    spec = spec if isinstance(spec, Spec) else parse(spec)
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    check_tensors(spec, contiguous)
    unfinished = Path(f"{path}.unfinished")  # so that no half of a file ever stands under the name
    unfinished.write_bytes(to_bytes(contiguous, {KEY: spec.text()}))
    unfinished.replace(path)
