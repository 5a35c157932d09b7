"""A file of Keras run by Keras itself, for the comparison with what it was converted to.

T tokens    V outputs
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnstream.convert.hints import Hints
from rnnstream.convert.parts import Converted
from rnnstream.errors import ModelError

Array = npt.NDArray[Any]

SHAPES = ("batch_shape", "batch_input_shape", "build_input_shape")
PLAIN = {  # settings without which a sequence is like a stream
    "return_sequences": True,
    "stateful": False,
    "mask_zero": False,  # id 0 is a token like any other
    "mask": None,
    "axis": -1,  # the last it is, and where only the last output went on there is one axis more now
}


def run_source(path: Path, said: Hints, converted: Converted, xs: Sequence[Any]) -> tuple[str, Array]:
    """The model in Keras over a sequence, from zero states, with an output at every token.

    The model is built anew from its own configuration, with return_sequences=True everywhere and a sequence of any length.

    Args:
        path: of the file.
        said: the --spec that it was converted with.
        converted: what it was converted to.
        xs: T tokens: ids, or vectors.

    Returns:
        The name and version of Keras, and the outputs [T, V].

    Raises:
        ImportError: Keras is not installed, or its backend.
        ModelError: this Keras does not run the file.
    """
    import keras

    source, keras_3 = f"keras {keras.__version__}", keras.__version__.startswith("3")
    # Keras 3 has another hard_sigmoid than the Keras 2 that trained this model
    fifth = keras_3 and any("hard_sigmoid_fifth" in layer.keys.values() for layer in converted.spec.layers)
    try:
        with warnings.catch_warnings(action="ignore"):  # about the form of settings, and of inputs that are not in a list
            saved = keras.models.load_model(path, compile=False)  # in its safe mode: Lambda layers are not loaded
            config = _at_every_step(
                saved.get_config(),
                ids=converted.spec.layers[0].kind == "embedding",
                dtype=converted.spec.dtype,
                hard_sigmoid=_hard_sigmoid_fifth if fifth else None,
            )
            model = type(saved).from_config(config)
            model.set_weights(saved.get_weights())
            tokens = np.asarray(xs)
            if converted.spec.input_kind == "token" and converted.spec.layers[0].kind == "onehot":
                tokens = np.eye(converted.spec.input_size, dtype=np.float32)[tokens]
            y = model(tokens[np.newaxis], training=False)
        return source, np.asarray(keras.ops.convert_to_numpy(y) if keras_3 else y)[0].astype(converted.spec.dtype)
    except Exception as problem:  # Keras and its backends raise many kinds
        first = f"{type(problem).__name__}: {problem}".splitlines()[0]
        raise ModelError(f"{source} does not run it ({first:.200}).") from problem


def _at_every_step(config: Any, *, ids: bool, dtype: str, hard_sigmoid: Any, each_token: bool = False) -> Any:
    """A configuration of the same layers that gives an output at every token, for a batch and a sequence of any size.

    Args:
        config: of a model, or anything in it.
        ids: the model takes ids, so that shapes of two axes are theirs.
        dtype: to compute in.
        hard_sigmoid: to use in place of Keras's own; None leaves that.
        each_token: it is inside of a TimeDistributed, where there is no axis of time.
    """

    def inner(value: Any, each_token: bool = each_token) -> Any:
        return _at_every_step(value, ids=ids, dtype=dtype, hard_sigmoid=hard_sigmoid, each_token=each_token)

    if isinstance(config, list | tuple):
        return type(config)([inner(entry) for entry in config])
    if not isinstance(config, dict):
        return config
    new: dict[str, Any] = {}
    for key, value in config.items():
        if key in SHAPES and value and not each_token:
            new[key] = (None, None, *value[2 if ids or len(value) > 2 else 1 :])
        elif key in PLAIN:
            new[key] = PLAIN[key]
        elif key == "dtype":
            new[key] = dtype
        elif key in ("activation", "recurrent_activation") and value == "hard_sigmoid" and hard_sigmoid:
            new[key] = hard_sigmoid
        elif key != "build_config":
            new[key] = inner(value, each_token or (key == "layer" and isinstance(value, dict)))
    return new


def _hard_sigmoid_fifth(z: Any) -> Any:
    import keras

    return keras.ops.clip(0.2 * z + 0.5, 0.0, 1.0)
