"""The files of tests/golden/keras*.npz, as they are and with something in them changed."""

import io
import json
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from rnnstream.convert import convert
from rnnstream.errors import ModelError
from rnnstream.model.network import digest

GOLDEN = {name: np.load(Path(__file__).parents[1] / "golden" / f"{name}.npz") for name in ("keras", "keras_2_15", "keras_2_13")}
FILES = [(source, key) for source, arrays in GOLDEN.items() for key in arrays.files if "/" not in key]


def written(folder, key, source="keras"):
    """One of the files, such as "lstm_1_token.keras", in this folder."""
    path = folder / f"model{Path(key).suffix}"
    path.write_bytes(GOLDEN[source][key].tobytes())
    return path


def numbers(key, what, source="keras"):
    """An array of the case that a file belongs to, or None."""
    name = f"{key.rpartition('.')[0]}/{what}"
    return GOLDEN[source][name] if name in GOLDEN[source].files else None


def changed(folder, key, edit=None, weights=None, source="keras"):
    """A file with another configuration and other weights.

    Args:
        folder: where to put it.
        key: of the file.
        edit: is handed the configuration of the model, to change it.
        weights: is handed the HDF5 file with the weights.
        source: the key of `GOLDEN`.
    """
    path = written(folder, key, source)
    if path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            model = json.loads(file.attrs["model_config"])
            if edit:
                edit(model)
            if weights:
                weights(file)
            if "model_config" in file.attrs:
                file.attrs["model_config"] = json.dumps(model)
        return path
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    model, data = json.loads(members["config.json"]), io.BytesIO(members["model.weights.h5"])
    if edit:
        edit(model)
    if weights:
        with h5py.File(data, "r+") as file:
            weights(file)
    members |= {"config.json": json.dumps(model).encode(), "model.weights.h5": data.getvalue()}
    return zipped(path, members)


def zipped(path, members):
    """A .keras file of these members."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def entry(model, kind, number=0):
    """The entry of the n-th layer of a class in a configuration."""
    layers = model["config"] if isinstance(model["config"], list) else model["config"]["layers"]
    return [layer for layer in layers if layer["class_name"] == kind][number]


def settings(kind, number=0, **new):
    """An edit that gives a layer other settings."""
    return lambda model: entry(model, kind, number)["config"].update(new)


def refused(path, spec=None):
    """The sentence of the refusal."""
    with pytest.raises(ModelError) as caught:
        convert(path, spec)
    return str(caught.value)


def converted_digest(path):
    """What tells the network in a file from any other."""
    found = convert(path)
    return digest(found.spec, found.tensors)
