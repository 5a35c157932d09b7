"""Elementwise functions g1, g2, the softmax and the unit length, each written to give a row the same bits in every batch.

All of them take an array [B, N] of contiguous rows, leave it as it is, and return a new one; `identity` returns the same.

None of them overflows or warns where the result itself is finite: exponents are bounded from above, and far below zero exp() is
0 as it should.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
# By dtype, as arrays: NumPy takes 1 us longer over a number of Python's. Of a larger exponent, exp() is infinite.
_LARGEST_EXPONENT: dict[str, Array] = {"f": np.array(88, np.float32), "d": np.array(709, np.float64)}
_ONE: dict[str, Array] = {"f": np.array(1, np.float32), "d": np.array(1, np.float64)}


def identity(z: Array) -> Array:
    """g(z) = z."""
    return z


def tanh(z: Array) -> Array:
    """g(z) = tanh z."""
    return np.tanh(z)


def relu(z: Array) -> Array:
    """g(z) = max(z, 0); NaN stays NaN."""
    return np.maximum(z, 0)


def sigmoid(z: Array) -> Array:
    """g(z) = 1 / (1 + exp(-z))."""
    kind = z.dtype.char
    y = np.negative(z)
    np.minimum(y, _LARGEST_EXPONENT[kind], out=y)
    np.exp(y, out=y)
    y += _ONE[kind]
    return np.reciprocal(y, out=y)


def hard_sigmoid(z: Array) -> Array:
    """g(z) = min(max(z / 6 + 1/2, 0), 1), as in PyTorch and Keras 3."""
    return _within(z / 6 + 0.5, 0, 1)


def hard_sigmoid_fifth(z: Array) -> Array:
    """g(z) = min(max(z / 5 + 1/2, 0), 1), as in Keras 1 and 2, and the default of ONNX."""
    return _within(z * 0.2 + 0.5, 0, 1)


def hard_tanh(z: Array) -> Array:
    """g(z) = min(max(z, -1), 1)."""
    return _within(z, -1, 1)


def relu6(z: Array) -> Array:
    """g(z) = min(max(z, 0), 6)."""
    return _within(z, 0, 6)


def elu(z: Array) -> Array:
    """g(z) = z, below zero exp(z) - 1 (Clevert et al. 2015)."""
    y = np.expm1(np.minimum(z, 0))
    y += np.maximum(z, 0)
    return y


def selu(z: Array) -> Array:
    """g(z) = 1.0507... elu(z), with 1.6733... times as much below zero (Klambauer et al. 2017)."""
    y = np.expm1(np.minimum(z, 0))
    y *= 1.6732632423543772
    y += np.maximum(z, 0)
    y *= 1.0507009873554805
    return y


def softplus(z: Array) -> Array:
    """g(z) = ln(1 + exp(z)), as max(z, 0) + ln(1 + exp(-abs(z)))."""
    y = np.abs(z)
    np.negative(y, out=y)
    np.exp(y, out=y)
    np.log1p(y, out=y)
    y += np.maximum(z, 0)
    return y


def softsign(z: Array) -> Array:
    """g(z) = z / (1 + abs(z))."""
    return z / (1 + np.abs(z))


def silu(z: Array) -> Array:
    """g(z) = z sigmoid(z); also called swish."""
    z = np.maximum(z, -_LARGEST_EXPONENT[z.dtype.char])  # below, the bound within sigmoid() would show
    y = sigmoid(z)
    y *= z
    return y


def exponential(z: Array) -> Array:
    """g(z) = exp(z)."""
    return np.exp(z)


def unit_length(z: Array) -> Array:
    """g(z) = z / max(sqrt(sum_j z_j^2), 1e-12), over each row, as in Keras UnitNormalization and torch normalize."""
    return z / np.maximum(np.sqrt((z * z).sum(axis=-1, keepdims=True)), 1e-12)


def softmax(z: Array) -> Array:
    """g(z)_i = exp(z_i - max z) / sum_j exp(z_j - max z), over each row."""
    y = z - z.max(axis=-1, keepdims=True)
    np.exp(y, out=y)
    y /= y.sum(axis=-1, keepdims=True)
    return y


def _within(z: Array, least: float, most: float) -> Array:
    y = np.maximum(z, least)
    return np.minimum(y, most, out=y)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": tanh,
    "sigmoid": sigmoid,
    "relu": relu,
    "hard_sigmoid": hard_sigmoid,
    "hard_sigmoid_fifth": hard_sigmoid_fifth,
    "hard_tanh": hard_tanh,
    "relu6": relu6,
    "elu": elu,
    "selu": selu,
    "softplus": softplus,
    "softsign": softsign,
    "silu": silu,
    "exponential": exponential,
    "softmax": softmax,
    "unit_length": unit_length,
    "identity": identity,
}
OVER_A_ROW = ("softmax", "unit_length")  # each number depends on all of its row
