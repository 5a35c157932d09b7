"""Tokens: what stands for one, and what is refused; states that are handed in."""

import struct

import numpy as np
import pytest

from rnnstream.errors import BadRequest, BadToken
from rnnstream.model.step import Input

from .nets import VARIANTS, network

IDS = Input("token", 5)
WORDS = Input("token", 3, ("a", "b", "ab c"))
VECTOR = Input("dense", 3)
OBJECT = pytest.param(object(), id="object")  # whose repr is another in each process
ITERATOR = pytest.param(iter([1, 2, 3]), id="iterator")


@pytest.mark.parametrize(
    "x", [2, np.int8(2), np.int32(2), np.int64(2), np.uint8(2), np.uint64(2), np.intp(2)], ids=lambda x: type(x).__name__
)
def test_ints(x):
    token = IDS.token(x)
    assert token == 2
    assert type(token) is int


def test_the_first_and_the_last_id():
    assert [IDS.token(0), IDS.token(4)] == [0, 4]


@pytest.mark.parametrize(
    "x",
    [-1, 5, np.int8(-1), np.uint64(2**64 - 1), 10**30, -(10**30), 10**400, 10**5000, -(10**5000)],
    ids=lambda x: str(len(bin(x))),
)
def test_ids_out_of_range(x):
    with pytest.raises(BadToken, match=r"^x is .*; ids go from 0 to 4\.$") as caught:
        IDS.token(x)
    assert caught.value.field == "x"
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "x", [True, False, np.True_, 2.0, np.float32(2), None, b"a", [2], (2,), np.array(2), np.timedelta64(2, "s"), 2j, OBJECT],
    ids=repr,
)  # fmt: skip
def test_what_is_no_id(x):
    for model, takes in ((IDS, "an int id"), (WORDS, "an int id or a str of the vocabulary")):
        with pytest.raises(BadRequest, match=rf"^x is a {type(x).__name__}; this model takes {takes}\.$") as caught:
            model.token(x)
        assert caught.value.field == "x"


def test_many_tokens_are_checked_like_one():
    assert IDS.tokens([4, np.int8(2), 0]) == [4, 2, 0]
    assert WORDS.tokens(["b", 2, "a"]) == [1, 2, 0]
    assert IDS.tokens(iter(())) == []
    assert [type(x) for x in IDS.tokens([np.int64(3), 3])] == [int, int]
    assert [vector.tolist() for vector in VECTOR.tokens([[1, 2, 3], np.zeros(3)])] == [[1, 2, 3], [0, 0, 0]]
    for wrong, error in [(5, BadToken), (-1, BadToken), (True, BadRequest), (1.0, BadRequest), ("a", BadToken)]:
        with pytest.raises(error):
            IDS.tokens([1, wrong, 2])


def test_words():
    assert [WORDS.token(x) for x in ("a", "b", "ab c", np.str_("b"), 1)] == [0, 1, 2, 1, 1]
    for x in ("", "A", "ab", "c" * 1000, "\ud800"):
        with pytest.raises(BadToken, match=r"; the vocabulary of 3 entries does not have it\.$") as caught:
            WORDS.token(x)
        assert len(str(caught.value)) < 200
    with pytest.raises(BadToken, match=r"^x is 'a'; this model has no vocabulary\.$"):
        IDS.token("a")


@pytest.mark.parametrize(
    "x",
    [
        [1, 2.5, -3],
        (1, 2.5, -3),
        [np.float64(1), np.float32(2.5), np.int8(-3)],
        np.array([1, 2.5, -3]),
        np.array([1, 2.5, -3], ">f8"),
        np.array([0, 1, 0, 2.5, 0, -3], np.float16)[1::2],
        struct.pack("<3f", 1, 2.5, -3),
    ],
    ids=["list", "tuple", "scalars", "array", "big-endian", "strided", "bytes"],
)
def test_vectors(x):
    token = VECTOR.token(x)
    assert token.dtype == np.dtype("<f4")
    assert token.tobytes() == struct.pack("<3f", 1, 2.5, -3)


def test_a_vector_is_a_copy():
    x = np.array([1, 2, 3], np.float32)
    token = VECTOR.token(x)
    x[:] = 0
    assert token.tolist() == [1, 2, 3]
    assert VECTOR.token(struct.pack("<3f", 1, 2, 3)).flags.writeable


def test_numbers_are_rounded_to_float32():
    assert VECTOR.token([0.1, 16777217, 1e-60]).tolist() == [float(np.float32(0.1)), 16777216.0, 0.0]
    largest = float(np.finfo(np.float32).max)
    assert VECTOR.token([largest, -largest, largest * (1 + 2**-26)]).tolist() == [largest, -largest, largest]


@pytest.mark.parametrize(
    "number",
    [float("nan"), float("inf"), -float("inf"), 1e39, -1e39, 3.5e38, 1e308, 10**39, 10**400, -(10**400), 10**5000,
     np.float64(1e300), np.longdouble(1e30) ** 2, np.float16("inf")],
    ids=lambda x: type(x).__name__ + (f"{x:.3g}" if isinstance(x, float) else ""),
)  # fmt: skip
@pytest.mark.parametrize("place", [0, 2])
def test_numbers_that_are_not_finite_in_float32(number, place):
    x = [1, 2, 3]
    x[place] = number
    with pytest.raises(BadToken, match=rf"^x\[{place}\] is NaN, infinite or beyond float32; it is a finite number\.$"):
        VECTOR.token(x)


def test_bytes_and_arrays_that_are_not_finite():
    for number in (np.nan, np.inf, -np.inf):
        with pytest.raises(BadToken, match=r"^x\[1\] is NaN, infinite"):
            VECTOR.token(struct.pack("<3f", 1, number, 3))
        with pytest.raises(BadToken, match=r"^x\[1\] is NaN, infinite"):
            VECTOR.token(np.array([1, number, 3]))


@pytest.mark.parametrize(
    "number",
    [True, np.True_, None, "1", b"1", 1j, np.complex64(1), [1], np.array([1]), np.timedelta64(1, "s"), OBJECT],
    ids=repr,
)
def test_elements_that_are_no_numbers(number):
    with pytest.raises(BadRequest, match=rf"^x\[1\] is a {type(number).__name__}; it is a number\.$") as caught:
        VECTOR.token([1, number, 3])
    assert caught.value.field == "x"


@pytest.mark.parametrize(
    "x", [np.zeros((3, 1)), np.zeros((3, 3)), np.array([1j] * 3), np.array([True] * 3), np.array(["1"] * 3)]
)
def test_arrays_of_something_else(x):
    with pytest.raises(BadRequest, match=r"^x\[0\] is a "):
        VECTOR.token(x)


@pytest.mark.parametrize(
    "x", [1, 1.5, None, "abc", True, {1: 2, 3: 4, 5: 6}, {1, 2, 3}, ITERATOR, np.array(5.0), np.float32(1)], ids=repr
)
def test_what_is_no_vector(x):
    with pytest.raises(BadRequest, match=rf"^x is a {type(x).__name__}; this model takes a list of 3 numbers or bytes"):
        VECTOR.token(x)


@pytest.mark.parametrize("count", [0, 2, 4, 1000])
def test_vectors_of_another_length(count):
    for x in ([0] * count, (0.5,) * count, np.zeros(count)):
        with pytest.raises(BadToken, match=rf"^x has {count} numbers; this model takes 3\.$"):
            VECTOR.token(x)


@pytest.mark.parametrize("count", [0, 3, 11, 13, 24])
def test_bytes_of_another_length(count):
    with pytest.raises(BadToken, match=rf"^x has {count} bytes; 3 float32 numbers take 12\.$"):
        VECTOR.token(bytes(count))


def test_batches():
    assert IDS.batch([3, 1]).tolist() == [3, 1]
    assert IDS.batch([3, 1]).dtype == np.intp
    batch = VECTOR.batch([VECTOR.token([1, 2, 3]), VECTOR.token([4, 5, 6])])
    assert batch.dtype == np.float32
    assert batch.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert batch.flags.c_contiguous


@pytest.mark.parametrize("call", ["step", "forward", "run"])
@pytest.mark.parametrize("shape", [(0,), (36,), (38,), (1, 37), (74,)])
def test_a_state_of_another_shape_is_refused(call, shape):
    """One that is too long would otherwise be cut in silence."""
    model, a = network(VARIANTS["vanilla"]), np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match="state"):
        model.step(a, 1) if call == "step" else getattr(model, call)([1], a)


def test_a_state_of_another_dtype_is_taken_as_the_model_s():
    model = network(VARIANTS["vanilla"])
    a = model.run([1, 2, 3])
    expected = model.step(a, 4)
    got = model.step(a.astype(float), 4)
    assert [part.dtype for part in got] == [np.float32] * 2
    assert [part.tobytes() for part in got] == [part.tobytes() for part in expected]


def test_a_bad_token_in_a_sequence_is_refused_before_anything_runs(monkeypatch):
    model = network(VARIANTS["vanilla"])
    monkeypatch.setattr(model, "advance", lambda *_: pytest.fail("a step was made"))
    with pytest.raises(BadToken):
        model.forward([1, 2, 29])
    with pytest.raises(BadRequest):
        model.run([1, 2, True])
