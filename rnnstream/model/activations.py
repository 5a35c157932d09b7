"""Elementwise functions g1, g2 and the softmax, each written to give a row the same bits in every batch.

All of them take a C-ordered array [B, N] that they may overwrite, and return the result.

Sigmoid and softmax neither overflow nor warn: the exponent is bounded from above, and far below zero exp() is 0 as it should.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_LARGEST_EXPONENT = {"f": 88.0, "d": 709.0}  # exp() of more is infinite in float32, float64


def identity(z: Array) -> Array:
    """g(z) = z."""
    return z


def tanh(z: Array) -> Array:
    """g(z) = tanh z."""
    return np.tanh(z, out=z)


def relu(z: Array) -> Array:
    """g(z) = max(z, 0); NaN stays NaN."""
    return np.maximum(z, 0, out=z)


def sigmoid(z: Array) -> Array:
    """g(z) = 1 / (1 + exp(-z))."""
    np.negative(z, out=z)
    np.minimum(z, _LARGEST_EXPONENT[z.dtype.char], out=z)
    np.exp(z, out=z)
    z += 1
    return np.reciprocal(z, out=z)


def hard_sigmoid(z: Array) -> Array:
    """g(z) = min(max(z / 6 + 1/2, 0), 1), as in PyTorch and Keras 3."""
    z /= 6
    z += 0.5
    np.maximum(z, 0, out=z)
    return np.minimum(z, 1, out=z)


def softmax(z: Array) -> Array:
    """g(z)_i = exp(z_i - max z) / sum_j exp(z_j - max z), over each row."""
    z -= z.max(axis=-1, keepdims=True)
    np.exp(z, out=z)
    z /= z.sum(axis=-1, keepdims=True)
    return z


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": tanh,
    "sigmoid": sigmoid,
    "relu": relu,
    "hard_sigmoid": hard_sigmoid,
    "softmax": softmax,
    "identity": identity,
}
