"""Other frameworks' files into our specification and tensors.

A reader for each kind of file gives `parts.Part`s; `parts.assemble` makes a network of them; `gates` has the one table of how
each framework lays out its cells; `hints` is the --spec, which says what a file cannot.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from rnnstream.convert.hints import Hints, hints
from rnnstream.convert.parts import Converted
from rnnstream.errors import ModelError
from rnnstream.model.file import is_model_file

STATE_DICTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".npz")
KERAS = (".keras", ".h5", ".hdf5")
ONNX = (".onnx",)


def convert(source: str | PathLike[str], spec: Hints | dict[str, Any] | str | PathLike[str] | None = None) -> Converted:
    """The network in another framework's file, as a chain of our layers.

    Args:
        source: the file; its suffix says what it is: .pt, .pth, .ckpt, .bin, .safetensors, .npz, .keras, .h5, .hdf5, .onnx.
        spec: what the file does not say, as docs/convert.md describes it: a dict, or a TOML or JSON file.

    Raises:
        ModelError: it cannot be read, holds what cannot be streamed or is not known here, or does not say enough.
    """
    path, said = Path(source), hints(spec)
    suffix = path.suffix.lower()
    if not path.exists():
        raise ModelError(f"There is no file {path}.")
    try:
        if is_model_file(path):
            raise ModelError("it is a model file of rnnstream already.")
        if suffix in STATE_DICTS:
            from rnnstream.convert import state_dict

            return state_dict.read(path, said)
        if suffix in KERAS:
            from rnnstream.convert import keras_file

            return keras_file.read(path, said)
        if suffix in ONNX:
            from rnnstream.convert import onnx_chain

            return onnx_chain.read(path, said)
    except ModelError as problem:
        raise type(problem)(f"{path}: {problem}") if str(path) not in str(problem) else problem from None
    known = ", ".join(STATE_DICTS + KERAS + ONNX)
    raise ModelError(f"{path} ends with {path.suffix or 'no suffix'}; what can be read ends with one of {known}.")
