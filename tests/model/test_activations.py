"""Activations against math, at ordinary and at extreme arguments, and a row's bits in any company."""

import math

import numpy as np
import pytest

from rnnstream.model.activations import ACTIVATIONS, OVER_A_ROW


def logistic(v):
    return 1 / (1 + math.exp(-v)) if v >= 0 else math.exp(v) / (1 + math.exp(v))


BY_HAND = {
    "tanh": math.tanh,
    "sigmoid": logistic,
    "relu": lambda v: max(v, 0.0),
    "hard_sigmoid": lambda v: min(max(v / 6 + 0.5, 0.0), 1.0),
    "hard_sigmoid_fifth": lambda v: min(max(v / 5 + 0.5, 0.0), 1.0),
    "hard_tanh": lambda v: min(max(v, -1.0), 1.0),
    "relu6": lambda v: min(max(v, 0.0), 6.0),
    "elu": lambda v: v if v > 0 else math.expm1(v),
    "selu": lambda v: 1.0507009873554804934 * (v if v > 0 else 1.6732632423543772848 * math.expm1(v)),
    "softplus": lambda v: max(v, 0.0) + math.log1p(math.exp(-abs(v))),
    "softsign": lambda v: v / (1 + abs(v)),
    "silu": lambda v: v * logistic(v),
    "exponential": math.exp,
    "identity": lambda v: v,
}


def softmax(row):
    top = max(row)
    e = [math.exp(v - top) for v in row]
    return [v / math.fsum(e) for v in e]


def unit_length(row):
    length = math.sqrt(math.fsum(v * v for v in row))
    return [v / max(length, 1e-12) for v in row]


OF_ROWS = {"softmax": softmax, "unit_length": unit_length}
# 88 and 709 are where exp() ends; below -88 silu is x exp(-88) where it should be x exp(x), either way no number to speak of.
TINY = {"float32": 1e-38, "float64": 1e-307}
TINY_OF_SILU = {"float32": 1e-36, "float64": 1e-305}


def by_hand(name, row):
    return OF_ROWS[name](row) if name in OF_ROWS else [BY_HAND[name](v) for v in row]


def test_each_has_a_function_to_compare_with():
    assert sorted([*BY_HAND, *OF_ROWS]) == sorted(ACTIVATIONS)
    assert set(OF_ROWS) == set(OVER_A_ROW)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_the_numbers(name, dtype):
    extremes = [0.0, 1e-30, -1e-30, 2.99, -2.99, 3.01, -3.01, 20, -20, 87, -87, 89, -89, 708, -708, 711, -711, 3e4, -3e4]
    z = np.array([extremes, np.random.default_rng(0).uniform(-8, 8, len(extremes))]).astype(dtype)
    if name == "exponential":
        z = np.minimum(z, {"float32": 88, "float64": 709}[dtype]).astype(dtype)
    kept = z.tobytes()
    got = ACTIVATIONS[name](z)
    assert got.dtype == z.dtype
    assert z.tobytes() == kept
    assert np.shares_memory(got, z) == (name == "identity")
    tiny = TINY_OF_SILU if name == "silu" else TINY
    np.testing.assert_allclose(
        got, [by_hand(name, row) for row in z.tolist()], rtol=2e-6 if dtype == "float32" else 1e-14, atol=tiny[dtype]
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", sorted({*ACTIVATIONS} - {"exponential"} - {*OF_ROWS}))
def test_the_largest_numbers(name, dtype):
    """What does not overflow by itself is the number that it should be, up to the ends of the range."""
    most = float(np.finfo(dtype).max)
    got = ACTIVATIONS[name](np.array([[most / 2, -most / 2]], dtype))[0]
    ends = {name: [most / 2, 0.0] for name in ("relu", "softplus", "silu")} | {
        name: [1.0, -1.0] for name in ("tanh", "hard_tanh")
    }
    ends |= {name: [1.0, 0.0] for name in ("sigmoid", "hard_sigmoid", "hard_sigmoid_fifth")} | {"relu6": [6.0, 0.0]}
    ends |= {"elu": [most / 2, -1.0], "softsign": [1.0, -1.0], "identity": [most / 2, -most / 2]}
    ends |= {"selu": [1.0507009873554805 * (most / 2), -1.7580993408473766]}
    np.testing.assert_allclose(got, ends[name], rtol=1e-6, atol=TINY_OF_SILU[dtype])


def test_the_unit_length_of_nothing_is_nothing():
    assert ACTIVATIONS["unit_length"](np.zeros((2, 3), np.float32)).tolist() == [[0, 0, 0], [0, 0, 0]]
    row = ACTIVATIONS["unit_length"](np.array([[3, -4], [3e-13, 4e-13]], np.float64))
    assert np.abs(row - [[0.6, -0.8], [0.3, 0.4]]).max() < 1e-15


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
        together = ACTIVATIONS[name](z)
        wide = np.full((67, 3 * columns), np.nan, dtype)
        wide[:, columns : 2 * columns] = z
        assert ACTIVATIONS[name](wide[:, columns : 2 * columns]).tobytes() == together.tobytes()
        for row in range(len(z)):
            assert ACTIVATIONS[name](z[row : row + 1]).tobytes() == together[row].tobytes()
