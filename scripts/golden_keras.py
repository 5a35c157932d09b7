"""Write tests/golden/keras*.npz: files that Keras saved, and what Keras itself computes from them at every token.

    pip install -e . --group frameworks h5py
    KERAS_BACKEND=torch python scripts/golden_keras.py                       writes keras.npz, by Keras 3
    pip install tensorflow-cpu==2.15.1 && python scripts/golden_keras.py     in another environment: keras_2_15.npz
    pip install tensorflow-cpu==2.13.1 && python scripts/golden_keras.py     in a third one: keras_2_13.npz

T tokens, K numbers of a token, V outputs. The arrays of a case:

    {case}.keras, {case}.h5    the file's bytes, as uint8; some cases have one of the two
    {case}/x                   [T] ids, or [T, K] numbers
    {case}/y                   [T, V] the model's outputs
    {case}/state               of plain stacks: the last state of each recurrent layer, first layer first; of an LSTM h and c

Weights are drawn by NumPy, so that their mantissas are full, no bias is zero and no statistic of a normalisation is trivial.
"""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import h5py
import keras
import numpy as np
from keras import layers
from keras_models import CELLS, MAJOR, MINOR, SIZES, K, T, V, last_only, models

NAME = "keras.npz" if MAJOR == 3 else f"keras_{MAJOR}_{MINOR}.npz"
OUTPUT = Path(__file__).resolve().parents[1] / "tests" / "golden" / NAME
SEED = 3


def draw(model: Any, rng: np.random.Generator) -> None:
    """Fill every weight: uniform over [-0.8, 0.8), variances over [0.3, 2)."""
    values = []
    for weight in model.weights:
        lowest, highest = (0.3, 2.0) if "variance" in (weight.path if MAJOR == 3 else weight.name) else (-0.8, 0.8)
        values.append(rng.uniform(lowest, highest, weight.shape).astype(numbers(weight).dtype))
    model.set_weights(values)


def numbers(tensor: Any) -> np.ndarray:
    """A tensor of the backend as an array."""
    return np.asarray(keras.ops.convert_to_numpy(tensor) if MAJOR == 3 else tensor)


def run(model: Any, x: np.ndarray) -> np.ndarray:
    """The model's outputs over a sequence."""
    return numbers(model(x[np.newaxis], training=False))[0]


def last_state(model: Any, x: np.ndarray) -> np.ndarray:
    """The last states of a Sequential's recurrent layers."""
    z, found = x[np.newaxis], []
    for layer in model.layers:
        if isinstance(layer, layers.SimpleRNN | layers.GRU | layers.LSTM):
            layer.return_state = True
            z, *states = layer(z)
            layer.return_state = False
            found += [numbers(state)[0] for state in states]
        else:
            z = layer(z)
    return np.concatenate(found)


def saved(model: Any, forms: str) -> dict[str, bytes]:
    """The bytes of the files of a model, by their suffix."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for form in forms.split():
            path = Path(folder) / f"model.{form}"
            model.save(path)
            found[form] = path.read_bytes()
    return found


def edited(data: bytes, edit: Callable[[h5py.File], None]) -> bytes:
    """An .h5 file with something in it changed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.h5"
        path.write_bytes(data)
        with h5py.File(path, "r+") as file:
            edit(file)
        return path.read_bytes()


def as_keras_2_2(file: h5py.File) -> None:
    """What Keras 2.2.2, which does not run any more, wrote otherwise: a bare list of layers, and fewer settings."""
    model = json.loads(file.attrs["model_config"])
    entries = [entry for entry in model["config"]["layers"] if entry["class_name"] != "InputLayer"]
    entries[0]["config"]["batch_input_shape"] = [None, None, K]
    for entry in entries:
        for setting in ("time_major", "reset_after"):
            entry["config"].pop(setting, None)
    file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": entries}).encode()
    file.attrs["keras_version"] = b"2.2.2"


def cudnn(rng: np.random.Generator) -> dict[str, Any]:
    """CuDNNGRU and CuDNNLSTM, which run on GPUs alone; Keras brings their weights into a GRU and an LSTM, which run here."""
    import tensorflow

    old = tensorflow.compat.v1.keras.layers
    kinds = [(old.CuDNNGRU, layers.GRU), (old.CuDNNLSTM, layers.LSTM), (old.CuDNNGRU, layers.GRU)]
    model, same = (
        keras.Sequential(
            [
                layers.Input((None, K)),
                *(kind[new](units, return_sequences=True) for kind, units in zip(kinds, SIZES, strict=True)),
            ]
        )
        for new in (0, 1)
    )
    draw(model, rng)
    with tempfile.TemporaryDirectory() as folder:
        weights = str(Path(folder) / "weights.h5")
        model.save_weights(weights, save_format="h5")
        same.load_weights(weights)
    x = rng.uniform(-1, 1, (T, K)).astype(np.float32)
    files = {f"cudnn.{form}": np.frombuffer(data, np.uint8) for form, data in saved(model, "h5").items()}
    return files | {"cudnn/x": x, "cudnn/y": run(same, x), "cudnn/state": last_state(same, x)}


def main() -> None:
    rng = np.random.default_rng(SEED)
    arrays: dict[str, Any] = {}

    def add(case: str, files: dict[str, bytes], model: Any) -> None:
        token = len(model.input_shape) == 2
        x = rng.integers(1, V, T) if token else rng.uniform(-1, 1, (T, K)).astype(np.float32)
        arrays.update({f"{case}.{form}": np.frombuffer(data, np.uint8) for form, data in files.items()})
        arrays.update({f"{case}/x": x, f"{case}/y": run(model, x)})
        if case.rpartition("_")[0].rpartition("_")[0] in CELLS:
            arrays[f"{case}/state"] = last_state(model, x)

    for case, model, forms in models():
        if (MAJOR, MINOR) == (2, 13):  # whose .h5 files are those of 2.15
            forms = "keras"
        draw(model, rng)
        add(case, saved(model, forms), model)
        keras.backend.clear_session()  # the names of layers begin anew
    short, every = last_only()
    draw(short, rng)
    every.set_weights(short.get_weights())
    add("last_only", saved(short, "keras"), every)
    if (MAJOR, MINOR) == (2, 15):
        arrays |= cudnn(rng)
        gru = layers.GRU(4, return_sequences=True, recurrent_activation="hard_sigmoid", reset_after=False)
        model = keras.Sequential([layers.Input((None, K)), gru, layers.Dense(2)])
        draw(model, rng)
        add("keras_2_2", {form: edited(data, as_keras_2_2) for form, data in saved(model, "h5").items()}, model)
    np.savez_compressed(OUTPUT, **arrays)
    print(f"{OUTPUT.name}: {len(arrays)} arrays, {OUTPUT.stat().st_size:,} bytes, by Keras {keras.__version__}")


if __name__ == "__main__":
    main()
