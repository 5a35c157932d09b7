"""Reply bodies, and errors on their way through one."""

from __future__ import annotations

import contextlib
import pickle
import struct
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnstream import errors
from rnnstream.errors import ProtocolError, RequestError
from rnnstream.prediction import Prediction
from rnnstream.wire import replies
from rnnstream.wire.replies import (
    STEP_T,
    WaveReplies,
    decode,
    encode,
    error_map,
    step_reply,
    with_again,
    with_id,
)

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=50)
one = st.tuples(names, st.integers(0, STEP_T), st.integers(0, 9), st.floats(0, 1))


def columns(wave: list[tuple[str, int, int, float]]) -> tuple[Any, ...]:
    names, ts, ys, ps = zip(*wave, strict=True)
    return names, np.array(ts), np.array(ys), np.array(ps)


# Ordinary replies -----------------------------------------------------------------------------------------------------


@given(st.lists(one, min_size=1, max_size=200), st.booleans())
def test_ordinary_replies_are_the_bytes_of_their_maps(wave: list[tuple[str, int, int, float]], with_labels: bool) -> None:
    vocabulary = [f"{'ü' * i}{i}" for i in range(10)]
    made = WaveReplies(vocabulary if with_labels else None, ())
    bodies = made.make(*columns(wave))
    assert bodies == [step_reply(name.encode(), t, y, p, made.labels) for name, t, y, p in wave]
    assert bodies == made.make(*columns(wave))  # from what is kept
    assert made.make(*columns(wave[:1])) == bodies[:1]
    expected = [
        {"session": name, "t": t, "y": y, "p": p} | ({"label": vocabulary[y]} if with_labels else {}) for name, t, y, p in wave
    ]
    assert [msgpack.unpackb(body) for body in bodies] == expected
    assert decode(b"".join(bodies)) == expected


@pytest.mark.parametrize("size", [1, 31, 32, 200])  # one byte of length, or two from 32
def test_ordinary_replies_for_names_of_every_length_class(size: int) -> None:
    body = step_reply(b"n" * size, STEP_T, 2**32 - 1, 1 / 3, None)
    assert [body] == WaveReplies(None, ()).make(*columns([("n" * size, STEP_T, 2**32 - 1, 1 / 3)]))
    assert msgpack.unpackb(body) == {"session": "n" * size, "t": STEP_T, "y": 2**32 - 1, "p": 1 / 3}
    assert body.endswith(struct.pack(">d", 1 / 3))


@pytest.mark.parametrize("number", [0, 127, 128, 2**16, 2**32, 2**64 - 1, -1, -32, -33, -(2**63)])
@pytest.mark.parametrize("reply", [{}, {"session": "s", "t": 1}, {str(i): i for i in range(14)}])
def test_an_id_behind_a_reply(reply: dict[str, Any], number: int) -> None:
    assert with_id(msgpack.packb(reply), number) == msgpack.packb({**reply, "id": number})


def test_a_kept_reply_says_so_before_its_id() -> None:
    reply = {"session": "s", "t": 1, "top": [[1, 0.5]], "probs": b"1234"}
    assert with_again(msgpack.packb(reply)) == msgpack.packb({**reply, "again": True})
    assert with_id(with_again(msgpack.packb(reply)), "i") == msgpack.packb({**reply, "again": True, "id": "i"})


@pytest.mark.parametrize("vocabulary", [None, ["a", "b"]])
def test_a_step_count_beyond_the_fixed_width_is_never_a_wrong_number(vocabulary: list[str] | None) -> None:
    with pytest.raises(struct.error):
        step_reply(b"s", STEP_T + 1, 0, 0.5, None)
    wave = [("a", STEP_T, 0, 0.5), ("b", STEP_T + 1, 1, 0.25), ("c", 1, 0, 0.75), ("d", 1 << 40, 1, 0.5)]
    assert decode(b"".join(WaveReplies(vocabulary, ()).make(*columns(wave)))) == [
        {"session": name, "t": t, "y": y, "p": p} | ({"label": vocabulary[y]} if vocabulary else {}) for name, t, y, p in wave
    ]


def test_beginnings_of_replies_are_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "KNOWN", 5)
    monkeypatch.setattr(replies, "FEW_SESSIONS", 5)
    names: dict[str, int] = {}
    made = WaveReplies(None, names)
    for i in range(20):
        made.make(*columns([(f"s{i}", 1, 2, 0.5), ("t", 1, 2, 0.5)]))
        assert 0 < len(made._heads) <= 5
    names.update(dict.fromkeys("abcdef", 0))
    kept = dict(made._heads)
    assert made.make(*columns([("new", 1, 2, 0.5)])) == [step_reply(b"new", 1, 2, 0.5, None)]
    assert made._heads == kept


# Decoding -------------------------------------------------------------------------------------------------------------

MAPS: list[dict[Any, Any]] = [
    {"session": "s", "t": 1, "y": 42, "p": 0.31},
    {"error": "gap", "message": "é", "expected": 7, "id": b"\xff"},
    {"probs": b"\x00" * 40, "top": [[1, 0.5]], 5: None},
]
BODY = b"".join(msgpack.packb(item) for item in MAPS)


def test_a_reply_body_gives_its_maps_in_order() -> None:
    assert decode(BODY) == MAPS
    assert decode(encode(MAPS[0])) == MAPS[:1]


def test_a_reply_body_cut_anywhere_is_not_this_protocol() -> None:
    ends = [len(b"".join(msgpack.packb(item) for item in MAPS[:count])) for count in range(len(MAPS) + 1)]
    for cut in range(len(BODY)):
        if cut in ends:
            assert decode(BODY[:cut]) == MAPS[: ends.index(cut)]
        else:
            with pytest.raises(ProtocolError):
                decode(BODY[:cut])


@pytest.mark.parametrize("bad", [b"\xc1", b"\x05", b"HTTP/1.1 400", b"\xc0", b"\x90", b"\x81\x91\x01\x02", b"\xff"])
def test_a_reply_body_with_anything_else_in_it_is_not_this_protocol(bad: bytes) -> None:
    for body in (bad, BODY + bad, bad + BODY):
        with pytest.raises(ProtocolError, match="rnnstream worker"):
            decode(body)


@given(st.binary(max_size=100))
def test_no_reply_raises_anything_but_protocol_error(garbage: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert all(type(item) is dict for item in decode(garbage))


# Errors ---------------------------------------------------------------------------------------------------------------

EXTRAS: dict[str, dict[str, Any]] = {
    "bad_message": {},
    "bad_request": {"field": "want"},
    "bad_token": {"field": "x"},
    "unknown_session": {"why": "expired"},
    "exists": {},
    "gap": {"expected": 7},
    "stale": {"last": 2**64 - 1},
    "bad_state": {},
    "conflict": {"field": "t", "t": 2**40},
    "not_finite": {},
    "busy": {"retry_after_ms": 50},
    "full": {},
    "store_error": {"retry_after_ms": 200},
    "denied": {},
    "too_large": {"limit": 524_288},
    "internal": {},
}


def test_every_error_has_a_code_of_its_own_and_a_line_in_the_tree() -> None:
    assert set(RequestError.by_code) == set(EXTRAS)
    tree = errors.__doc__ or ""
    for code, cls in RequestError.by_code.items():
        assert cls.code == code
        assert f"─ {cls.__name__} " in tree
        assert f" {code} " in tree


@pytest.mark.parametrize("code", EXTRAS)
def test_an_error_goes_through_a_reply_and_comes_out_the_same(code: str) -> None:
    error = RequestError.by_code[code]("turbine-7: a sentence, é.", **EXTRAS[code])
    reply = error_map(error, session="turbine-7", id=b"\x00")
    assert reply == {
        "error": code,
        "message": "turbine-7: a sentence, é.",
        "session": "turbine-7",
        "id": b"\x00",
        **EXTRAS[code],
    }
    (read,) = decode(encode(reply))
    again = RequestError.from_reply(read)
    assert type(again) is type(error)
    assert again.code == code
    assert str(again) == str(error)
    assert again.extra == {**EXTRAS[code], "session": "turbine-7"}
    for key, value in EXTRAS[code].items():
        assert getattr(again, key) == value
    with pytest.raises(AttributeError, match="no 'id'"):
        _ = again.id


@pytest.mark.parametrize("code", EXTRAS)
def test_an_error_can_be_pickled(code: str) -> None:
    error = RequestError.by_code[code]("why", **EXTRAS[code])
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.extra) == (type(error), "why", EXTRAS[code])


def test_a_code_of_a_newer_worker_is_a_plain_request_error() -> None:
    error = RequestError.from_reply({"error": "asleep", "message": "m", "expected": 7})
    assert type(error) is RequestError
    assert error.code == "asleep"
    assert error.expected == 7
    assert pickle.loads(pickle.dumps(error)).code == "asleep"
    assert RequestError.code == "error"


# Predictions ----------------------------------------------------------------------------------------------------------


def test_a_prediction_is_read_from_every_key_of_a_reply() -> None:
    y = np.array([0.5, -1.5, np.inf], "<f4")
    reply = {"t": 3, "y": y.tobytes(), "p": 0.5, "label": "la", "surprisal": 0.25, "top": [[2, 0.5], [0, 0.25]], "opened": True}
    found = Prediction.from_reply({**reply, "session": "s", "later": 1, "probs": y.tobytes(), "logits": (-y).tobytes()})
    assert (found.t, found.p, found.label, found.surprisal, found.opened) == (3, 0.5, "la", 0.25, True)
    assert found.top == [(2, 0.5), (0, 0.25)]
    for array, expected in ((found.y, y), (found.probs, y), (found.logits, -y)):
        assert isinstance(array, np.ndarray)
        assert array.tobytes() == expected.tobytes()
    assert Prediction.from_reply({"t": 1, "y": 5}) == Prediction(1, 5)
