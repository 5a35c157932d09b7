"""A converted network held against its source: the source's framework and ours side by side on random tokens.

T tokens    V outputs
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnstream.convert import KERAS, ONNX
from rnnstream.convert.hints import Hints, hints
from rnnstream.convert.parts import Converted
from rnnstream.errors import ModelError
from rnnstream.model.blas import one_thread
from rnnstream.model.step import StepModel

Array = npt.NDArray[Any]

STEPS = 100  # tokens that are compared
TOLERANCE = 1e-4  # two frameworks' float32 over 100 steps; a wrong gate is 0.1 and more


@dataclass(frozen=True)
class Checked:
    """What a comparison came to.

    Attributes:
        source: what ran the original, with its version.
        what: what was compared: "logits" or "outputs".
        steps: how many tokens.
        largest: the largest difference, relative where the numbers are larger than 1.
    """

    source: str
    what: str
    steps: int
    largest: float

    @property
    def passed(self) -> bool:
        """It is no larger than two ways of rounding make it."""
        return self.largest <= TOLERANCE


def check(
    path: str | PathLike[str],
    spec: Hints | dict[str, Any] | str | PathLike[str] | None,
    converted: Converted,
    *,
    steps: int = STEPS,
    seed: int = 0,
) -> Checked:
    """Run random tokens through the source's own framework and through the converted network, and compare every output.

    Raises:
        ModelError: the source's framework is not installed, or it does not run the file.
    """
    path, said, model = Path(path), hints(spec), converted.network()
    xs = random_tokens(model, steps, seed)
    try:
        source, theirs = _run_source(path, said, converted, xs)
    except ImportError as problem:
        hint = " Keras takes the backend that KERAS_BACKEND names." if path.suffix.lower() in KERAS else ""
        raise ModelError(f"--check runs the framework that wrote {path}, which is not installed: {problem}.{hint}") from None
    ours = (model.forward(xs) if converted.has_head else _logits(model, xs))[: len(theirs)]  # a graph may have a fixed length
    if theirs.shape != ours.shape:
        raise ModelError(f"{source} gives outputs of the shape {list(theirs.shape)}, the converted network {list(ours.shape)}.")
    largest = float((np.abs(theirs - ours) / np.maximum(1, np.abs(theirs))).max())
    return Checked(source, "outputs" if converted.has_head else "logits", len(theirs), largest)


def random_tokens(model: StepModel, steps: int, seed: int = 0) -> list[Any]:
    """Tokens for a comparison: ids, or vectors of standard normal numbers."""
    rng = np.random.default_rng(seed)
    size = model.input.size
    if model.input.kind == "token":
        return rng.integers(0, size, steps).tolist()
    return list(rng.normal(0, 1, (steps, size)).astype(np.float32))


def _run_source(path: Path, said: Hints, converted: Converted, xs: Sequence[Any]) -> tuple[str, Array]:
    if path.suffix.lower() in KERAS:
        from rnnstream.convert import keras_file

        return keras_file.run_source(path, said, converted, xs)
    if path.suffix.lower() in ONNX:
        from rnnstream.convert import onnx_chain

        return onnx_chain.run_source(path, said, converted, xs)
    from rnnstream.convert import equations, torch_source
    from rnnstream.convert.arrays import arrays

    found = arrays(path, said)[0]
    if equations.are_equations(found):
        return equations.run_source(found, converted, xs)
    return torch_source.run_source(path, said, converted, xs)


def _logits(model: StepModel, xs: Sequence[Any]) -> Array:  # T tokens -> [T, V]
    a, rows = model.initial_state()[np.newaxis], []
    with one_thread():
        for x in xs:
            a, features = model.advance(a, model.input.batch([model.input.token(x)]))
            rows.append(model.head(features)[0])
    return np.array(rows)
