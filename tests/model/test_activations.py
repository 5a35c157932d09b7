"""Activations against math, at ordinary and at extreme arguments, and a row's bits in any company."""

import math

import numpy as np
import pytest

from rnnstream.model.activations import ACTIVATIONS


def logistic(v):
    return 1 / (1 + math.exp(-v)) if v >= 0 else math.exp(v) / (1 + math.exp(v))


BY_HAND = {
    "tanh": math.tanh,
    "sigmoid": logistic,
    "relu": lambda v: max(v, 0.0),
    "hard_sigmoid": lambda v: min(max(v / 6 + 0.5, 0.0), 1.0),
    "identity": lambda v: v,
}


def softmax(row):
    top = max(row)
    e = [math.exp(v - top) for v in row]
    return [v / math.fsum(e) for v in e]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_the_numbers(name, dtype):
    extremes = [0.0, 1e-30, -1e-30, 2.99, -2.99, 3.01, -3.01, 20, -20, 87, -87, 89, -89, 708, -708, 711, -711, 3e4, -3e4]
    z = np.array([extremes, np.random.default_rng(0).uniform(-8, 8, len(extremes))]).astype(dtype)
    given = z.tolist()
    got = ACTIVATIONS[name](z.copy())
    assert got.dtype == z.dtype
    expected = [softmax(row) if name == "softmax" else [BY_HAND[name](v) for v in row] for row in given]
    np.testing.assert_allclose(
        got, expected, rtol=2e-6 if dtype == "float32" else 1e-14, atol=1e-38 if dtype == "float32" else 1e-307
    )


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_nan_stays_in_its_row(name):
    z = np.array([[1.0, np.nan, 2.0], [0.5, -1.0, 2.0]], np.float32)
    got = ACTIVATIONS[name](z.copy())
    assert np.isnan(got[0, 1])
    assert np.isfinite(got[1]).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_a_row_has_the_same_bits_alone_and_in_a_batch(name, dtype):
    rng = np.random.default_rng(2)
    for columns in (1, 2, 7, 8, 9, 31, 100, 1000):
        z = rng.uniform(-5, 5, (67, columns)).astype(dtype)
        z[rng.random(z.shape) < 0.1] = -0.0  # the sign of a zero is a bit too
        together = ACTIVATIONS[name](z.copy())
        for row in range(len(z)):
            assert ACTIVATIONS[name](z[row : row + 1].copy()).tobytes() == together[row].tobytes()
