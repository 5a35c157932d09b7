"""Whole models that Keras saved: .keras, a zip of JSON and HDF5, and .h5 or .hdf5, the older form. Read without Keras.

The forms: keras/src/saving/saving_lib.py, keras/src/legacy/saving/legacy_h5_format.py and, for Keras 2,
keras/src/saving/legacy/hdf5_format.py.
"""

from __future__ import annotations

import importlib.util
import io
import json
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnstream.convert import keras_graph
from rnnstream.convert.hints import Hints
from rnnstream.convert.keras_graph import Entry, Layer
from rnnstream.convert.keras_layers import NOT_TRAINED, parts_of, weights_of
from rnnstream.convert.keras_source import run_source
from rnnstream.convert.parts import Converted, assemble
from rnnstream.errors import ModelError

__all__ = ["read", "run_source"]

Array = npt.NDArray[Any]

MEMBERS = ("config.json", "metadata.json", "model.weights.h5")
MOST_EXPANSION = 1000  # times that a file may grow when it is unpacked: beyond what deflate can do with numbers
NOT_WEIGHTS = re.compile(r"^(optimizer|metrics)/|(^|/)seed_generator[^/]*/")  # of training, and of random numbers
CONTAINER = "_layer_checkpoint_dependencies"  # of Keras 2.12 to 2.14, which is called layers in later files


def read(path: Path, said: Hints) -> Converted:
    """The model in a file that Keras saved.

    Raises:
        ModelError: it cannot be read, cannot be streamed, or holds what is not known here.
    """
    if said.layers is not None or said.ignore:
        raise ModelError("`layers` and `ignore` in --spec are for files without a model in them; this one says it all itself.")
    if said.start or said.stop or said.states or said.constants or said.batch or said.size:
        raise ModelError("`start`, `stop`, `states`, `constants`, `batch` and `size` in --spec are for ONNX graphs.")
    if importlib.util.find_spec("h5py") is None:
        raise ModelError("Keras's files are read with h5py: pip install 'rnnstream[keras]'.")
    if path.is_dir():
        raise ModelError("it is a folder, as TensorFlow saves a model; save it as one file: model.save('model.keras').")
    try:
        model, version, layers = _archive(path) if zipfile.is_zipfile(path) else _legacy(path)
        return _converted(path, said, model, version, layers)
    except ModelError:
        raise
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RecursionError) as problem:
        what = f"{type(problem).__name__}: {problem}"
        raise ModelError(f"its configuration is not as Keras writes it ({what:.100}).") from problem


def _converted(path: Path, said: Hints, model: Entry, version: int, layers: list[Layer]) -> Converted:
    tokens = bool(layers) and layers[0].kind == "Embedding"
    if tokens and said.input == "dense":
        raise layers[0].refuse("takes ids, so `input` in --spec cannot be dense")
    shape = keras_graph.input_shape(model)
    if shape is not None and len(shape) != (2 if tokens else 3):
        axes = "batch and time" if tokens else "batch, time and features"
        raise ModelError(f"Its input has the shape {shape}; that of a stream has the axes {axes}.")
    if tokens:
        size = layers[0].config["input_dim"]
    else:
        size = shape[-1] if shape else None
        weighted = next((layer for layer in layers if layer.weights), None)
        if size is None and weighted is not None:  # where the file does not say it: a matrix has a row for each input
            first = next(iter(weighted.weights.values()))
            size = first.shape[-2] if first.ndim > 1 else first.shape[-1]
    if type(size) is not int:
        raise ModelError(
            "It does not say how many numbers its input has; give its first layer an input shape and save it again."
        )
    parts, notes = parts_of(layers, size=size, version=version)
    if all(part.kind == "activation" for part in parts):
        raise ModelError("It has no layer but activations, and nothing that was trained.")
    return assemble(
        parts,
        name=path.stem if said.name is None else said.name,
        tokens=tokens or said.input == "token",
        size=size,
        head=said.head,
        vocabulary=said.vocabulary,
        notes=notes,
    )


def _archive(path: Path) -> tuple[Entry, int, list[Layer]]:
    """The configuration, the version and the layers with their weights, of a .keras file."""
    import h5py

    try:
        with zipfile.ZipFile(path) as archive:
            for needed in MEMBERS:
                if needed not in archive.namelist():
                    raise ModelError(f"there is no {needed} in it; a file of model.save('model.keras') has one.")
                if archive.getinfo(needed).file_size > MOST_EXPANSION * path.stat().st_size:
                    raise ModelError(f"its {needed} would be {archive.getinfo(needed).file_size:,} bytes when unpacked.")
            config, metadata, data = (archive.read(member) for member in MEMBERS)
        with h5py.File(io.BytesIO(data)) as file:
            arrays = _arrays(_items(file))
    except (OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as problem:
        raise ModelError(f"it is damaged: {problem}.") from None
    model = json.loads(config, object_hook=_plain)
    major, minor = _version(json.loads(metadata)["keras_version"])
    layers = keras_graph.chain(model, step=2 if (major, minor) < (2, 14) else 1)  # before, each layer was counted twice
    weights = {name.replace(CONTAINER, "layers"): array for name, array in arrays.items()}
    for layer in layers:
        for number, name in enumerate(weights_of(layer)):
            array = weights.pop(f"{layer.path}/vars/{number}", None)
            if array is None:
                raise layer.refuse(f"has no {name} in the file")
            layer.weights[name] = array
    if weights:
        raise ModelError(f"It holds weights that none of its layers has: {', '.join(sorted(weights)):.200}.")
    return model, major, layers


def _legacy(path: Path) -> tuple[Entry, int, list[Layer]]:
    """The same of an .h5 file."""
    import h5py

    try:
        with h5py.File(path) as file:
            if "model_config" not in file.attrs:
                raise ModelError(
                    "it holds weights without the model that they belong to; save the whole model: model.save('model.keras')."
                )
            config, version = file.attrs["model_config"], file.attrs.get("keras_version", "1")
            under = "model_weights/"
            items = {name[len(under) :]: item for name, item in _items(file).items() if name.startswith(under)}
            weights, names = _arrays(items), {name: _names(item.attrs) for name, item in items.items()}
    except (OSError, RuntimeError) as problem:
        raise ModelError(f"it is neither a .keras file nor HDF5, or it is damaged: {problem}.") from None
    model = json.loads(config, object_hook=_plain)
    major, _ = _version(version.decode() if isinstance(version, bytes) else version)
    layers = keras_graph.chain(model)
    for top in dict.fromkeys(layer.top for layer in layers):
        found = names.get(top, [])
        # a group has the weights of all layers of a nested model, those first that training changes
        wanted = [
            (layer.frozen or name in NOT_TRAINED, layer, name)
            for layer in sorted((layer for layer in layers if layer.top == top), key=lambda layer: layer.place)
            for name in weights_of(layer)
        ]
        wanted.sort(key=lambda want: want[0])
        plain = [re.sub(r"(_\d+)?(:\d+)?$", "", name.rpartition("/")[2]) for name in found]  # TensorFlow's kernel_1:0
        if plain != [name for _, _, name in wanted]:
            has = ", ".join(name for _, _, name in wanted) or "none"
            raise ModelError(
                f"The layer {top} has the weights {', '.join(found) or 'none'} in the file; by its settings {has}."
            )
        for (_, layer, name), stored in zip(wanted, found, strict=True):
            if f"{top}/{stored}" not in weights:
                raise layer.refuse(f"has no {stored} in the file")
            layer.weights[name] = weights.pop(f"{top}/{stored}")
    if weights:
        raise ModelError(f"It holds weights that none of its layers has: {', '.join(sorted(weights)):.200}.")
    return model, major, layers


def _plain(entry: dict[str, Any]) -> Any:
    """A list for what stands as a tuple or a shape of TensorFlow in a configuration; anything else as it is."""
    return entry["items"] if entry.get("class_name") in ("__tuple__", "TensorShape") else entry


def _names(attributes: Any) -> list[str]:
    """The names of a layer's weights in their order, out of what its group has; a long list is in pieces."""
    pieces = ["weight_names"] if "weight_names" in attributes else []
    while pieces != ["weight_names"] and f"weight_names{len(pieces)}" in attributes:
        pieces.append(f"weight_names{len(pieces)}")
    return [name.decode() if isinstance(name, bytes) else str(name) for piece in pieces for name in attributes[piece]]


def _version(text: str) -> tuple[int, int]:
    found = re.match(r"(\d+)(?:\.(\d+))?", text)
    major, minor = (int(found[1]), int(found[2] or 0)) if found else (0, 0)
    if major not in (2, 3):
        raise ModelError(f"it was written by Keras {text}; files of Keras 2 and 3 can be read. Save it with one of those.")
    return major, minor


def _items(group: Any) -> dict[str, Any]:
    """All that is below a group, by its path. Links are not followed, so nothing outside of the file is read."""
    found: dict[str, Any] = {}
    group.visititems(lambda name, item: found.update({name: item}))
    return found


def _arrays(items: dict[str, Any]) -> dict[str, Array]:
    """The weights among them."""
    return {name: _array(name, item) for name, item in items.items() if hasattr(item, "shape") and not NOT_WEIGHTS.search(name)}


def _array(name: str, dataset: Any) -> Array:
    if dataset.is_virtual or dataset.external or dataset.nbytes > MOST_EXPANSION * dataset.id.get_storage_size():
        raise ModelError(f"The array {name} {list(dataset.shape)} is not in the file itself.")
    array = np.asarray(dataset)
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:  # bfloat16, the upper half of a float32
        return (array.view("<u2").astype("<u4") << 16).view("<f4")
    if array.dtype.kind != "f":
        raise ModelError(
            f"The array {name} is of {array.dtype}; weights are floating point numbers. Save the model in float32."
        )
    return array
