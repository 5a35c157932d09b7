"""What is read off the logits, against plain Python."""

import math

import numpy as np
import pytest

from rnnstream.model.blas import one_thread
from rnnstream.model.outcomes import most_likely, surprisals, top
from rnnstream.model.step import Output

from .test_activations import softmax

V = 17
SOFTMAX = Output("categorical", V).g2


@pytest.fixture(autouse=True)
def _quiet():
    with one_thread():  # which also keeps NumPy quiet about infinity less infinity
        yield


def logits(dtype="float32", rows=50, seed=0):
    """Rows with many ties: few different numbers, huge ones among them."""
    rng = np.random.default_rng(seed)
    z = rng.choice([-3.5, 0.25, 1.75, 2.5], (rows, V))
    z[rows // 2 :] = rng.normal(0, 3, (rows - rows // 2, V))
    z[0], z[1, 3], z[2] = 0, 1e30, -1e30
    return z.astype(dtype)


def ordered(row):
    """Ids by probability, lowest id first among equals."""
    return sorted(range(len(row)), key=lambda i: (-row[i], i))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_most_likely(dtype):
    z = logits(dtype)
    ids, p = most_likely(z.copy())
    probs = SOFTMAX(z)
    for row in range(len(z)):
        assert ids[row] == ordered(probs[row].tolist())[0]
        assert p[row].tobytes() == probs[row, ids[row]].tobytes()
        assert p[row] == pytest.approx(softmax(z[row].tolist())[ids[row]], rel=1e-6)
    assert ids[0] == 0
    assert p[1] == 1
    assert ids[2] == 0
    assert p.dtype == dtype


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("columns", [1, 2, 8, 9, 31, 100, 1000])
def test_p_is_the_probability_bit_for_bit(dtype, columns):
    z = np.random.default_rng(columns).normal(0, 4, (200, columns)).astype(dtype)
    ids, p = most_likely(z)
    probs = Output("categorical", columns).g2(z)
    assert p.tobytes() == probs[np.arange(200), ids].tobytes()
    assert (ids == probs.argmax(axis=1)).all()
    for row in range(0, 200, 17):
        alone = most_likely(z[row : row + 1])
        assert (alone[0][0], alone[1].tobytes()) == (ids[row], p[row].tobytes())


@pytest.mark.parametrize(("logit", "expected"), [(1.0, 1), (0.1, 0)])
@pytest.mark.parametrize("rows", [1, 2])
def test_nearly_equal_logits_whose_probabilities_are_equal(rows, logit, expected):
    """The tie is one of probabilities, so that y is the first maximum of the probs that the same request would get."""
    z = np.array([[logit, np.nextafter(np.float32(logit), np.float32(2)), 0.0]] * rows, np.float32)
    probs = Output("categorical", 3).g2(z)
    ids, p = most_likely(z)
    assert ids.tolist() == [expected] * rows  # near 0.1 numbers lie closer than exp() tells apart
    assert ids[0] == probs[0].argmax()
    assert p[0] == probs[0, ids[0]]
    assert top(probs[0], 1) == [(int(ids[0]), float(p[0]))]


@pytest.mark.parametrize("k", [1, 2, 5, V - 1, V, V + 1, 100])
def test_top(k):
    for row in SOFTMAX(logits()):
        numbers = row.tolist()
        assert top(row, k) == [(i, numbers[i]) for i in ordered(numbers)[:k]]
        assert all(type(i) is int and type(p) is float for i, p in top(row, k))


def test_top_and_most_likely_agree():
    z = logits(seed=3)
    ids, p = most_likely(z)
    assert [top(row, 3)[0] for row in SOFTMAX(z)] == list(zip(ids.tolist(), p.tolist(), strict=True))


def test_nan_logits():
    z = logits(rows=4)
    z[3, 5] = np.nan
    z[0, :] = np.inf
    ids, p = most_likely(z)
    assert math.isnan(p[3])
    assert math.isnan(p[0])
    assert (ids[[0, 3]] == 0).all()
    pairs = top(SOFTMAX(z)[3], 4)
    assert [i for i, _ in pairs] == [0, 1, 2, 3]
    assert all(math.isnan(p) for _, p in pairs)
    assert math.isnan(surprisals(z, np.array([0, 0, 0, 1]))[3])
    others = most_likely(z[1:3])
    assert (ids[1:3].tobytes(), p[1:3].tobytes()) == (others[0].tobytes(), others[1].tobytes())


def test_top_with_some_nan():
    probs = np.array([0.2, np.nan, 0.5, 0.2], np.float32)
    pairs = top(probs, 4)
    assert [i for i, _ in pairs] == [2, 0, 3, 1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_surprisals(dtype):
    z = np.random.default_rng(1).normal(0, 5, (40, V)).astype(dtype)
    ids = np.random.default_rng(2).integers(0, V, 40)
    got = surprisals(z, ids)
    for row, x in enumerate(ids):
        expected = -math.log(softmax(z[row].tolist())[x])
        assert got[row] == pytest.approx(expected, rel=1e-5 if dtype == "float32" else 1e-12, abs=1e-6)
        assert surprisals(z[row : row + 1], ids[row : row + 1]).tobytes() == got[row].tobytes()


def test_a_surprisal_is_finite_where_the_probability_is_rounded_to_zero():
    z = np.array([[0, 1000, -2000], [3e4, -3e4, 0]], np.float32)
    assert surprisals(z, np.array([2, 1])).tolist() == [3000, 60000]
    assert surprisals(z, np.array([1, 0])).tolist() == [0, 0]
    assert not np.signbit(surprisals(z, np.array([1, 0]))).any()


@pytest.mark.parametrize("largest", [1e4, 1e30, 3e38])
def test_huge_logits_do_not_overflow(largest):
    z = np.array([[largest, 0, largest], [-largest, 0, -1]], np.float32)
    ids, p = most_likely(z)
    assert ids.tolist() == [0, 1]
    assert p.tolist() == pytest.approx([0.5, softmax([0, -1])[0]])
    assert Output("categorical", 3).g2(z)[0].tolist() == [0.5, 0, 0.5]


def test_the_logits_stay_as_they_are():
    z = logits()
    kept = z.copy()
    most_likely(z)
    surprisals(z, np.zeros(len(z), int))
    SOFTMAX(z)
    Output("bernoulli", V).g2(z)
    Output("linear", V).g2(z)[:] = 7
    assert z.tobytes() == kept.tobytes()
