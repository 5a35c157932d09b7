from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from rnnstream.client.token import read_prediction, wire_token
from rnnstream.errors import BadToken, ProtocolError


@pytest.mark.parametrize(
    ("x", "carried"),
    [
        (17, 17),
        (-1, -1),
        (np.int64(17), 17),
        (np.array(17), 17),
        (np.uint8(3), 3),
        ("ä", "ä"),
        (np.str_("ab"), "ab"),
        (b"\0\0\0\0", b"\0\0\0\0"),
        (bytearray(b"\1\2"), b"\1\2"),
        (True, True),
        (0.5, 0.5),
        ([1, 2.5], struct.pack("<2f", 1, 2.5)),
        ((0.1,), struct.pack("<f", 0.1)),
        (range(3), struct.pack("<3f", 0, 1, 2)),
        ([], b""),
        (np.array([1, 2], ">f8"), struct.pack("<2f", 1, 2)),
        (np.arange(6, dtype=np.int16)[::2], struct.pack("<3f", 0, 2, 4)),
        ([1e39, -1e39, float("nan")], struct.pack("<3f", float("inf"), -float("inf"), float("nan"))),
    ],
)
def test_a_token_is_carried(x: Any, carried: Any) -> None:
    assert wire_token(x) == carried
    assert type(wire_token(x)) is type(carried)


@pytest.mark.parametrize(
    "x", [None, object(), {}, 1 << 64, -(1 << 63) - 1, "\ud800", np.zeros((2, 2)), [[1, 2]], [1, [2]], ["a"], [True], [1j]]
)
def test_what_is_no_token_is_refused_before_it_is_sent(x: Any) -> None:
    with pytest.raises(BadToken, match="x ") as caught:
        wire_token(x)
    assert caught.value.field == "x"


def test_the_whole_range_of_64_bits_is_carried() -> None:
    assert wire_token((1 << 64) - 1) == (1 << 64) - 1
    assert wire_token(-(1 << 63)) == -(1 << 63)


def test_a_prediction_is_read() -> None:
    row = struct.pack("<2f", 0.5, 0.25)
    prediction = read_prediction({"t": 3, "y": row, "probs": row, "top": [[4, 0.5]], "new": 1})
    assert prediction.t == 3
    assert prediction.y.tolist() == prediction.probs.tolist() == [0.5, 0.25]  # type: ignore[union-attr]
    assert prediction.top == [(4, 0.5)]
    assert prediction.logits is None
    assert prediction.opened is False


@pytest.mark.parametrize("reply", [{}, {"t": 1, "y": b"123"}, {"t": 1, "probs": 3}, {"t": 1, "top": [1]}])
def test_a_reply_that_is_none_is_a_protocol_error(reply: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match="is this an rnnstream worker"):
        read_prediction(reply)
