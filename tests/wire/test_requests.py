"""Request bodies: what is read from bytes, and what is held against the table of operations."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnstream.errors import BadRequest
from rnnstream.wire.limits import PEEK_TOKENS
from rnnstream.wire.requests import MOST_KEYS, OPS, Request, decode, encode, parse, readable

MOST = 1024
MAPS: list[dict[str, Any]] = [
    {"session": "turbine-7", "x": 17},
    {"op": "reset", "session": "é" * 20, "id": b"\x00\xff"},
    {"session": "s", "x": [0.5, -1, 2**40], "want": "probs", "surprisal": True, "t": 70_000},
    {"op": "sessions", "prefix": "", "after": 300, "limit": 5, "id": -7},
]

# Decoding -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", range(1, len(MAPS) + 1))
def test_a_body_gives_its_maps_in_order(count: int) -> None:
    assert decode(encode(MAPS[:count]), MOST) == (MAPS[:count], None)


def test_encode_puts_the_maps_back_to_back() -> None:
    assert encode(MAPS) == b"".join(msgpack.packb(item) for item in MAPS)
    assert encode([]) == b""


def test_a_body_cut_anywhere_gives_the_maps_before_the_cut_and_says_so() -> None:
    body = encode(MAPS)
    ends = [len(encode(MAPS[:count])) for count in range(len(MAPS) + 1)]
    for cut in range(1, len(body)):
        whole = sum(end <= cut for end in ends[1:])
        items, problem = decode(body[:cut], MOST)
        assert items == MAPS[:whole], cut
        if cut in ends:
            assert problem is None
        else:
            assert problem is not None
            assert problem.code == "bad_message"
            assert f"Object {whole + 1} of the body" in str(problem)


DEEP = b"\x81\xa1x" + b"\x91" * 5000 + b"\x01"
NOT_MESSAGES = {
    "a reserved byte": b"\xc1",
    "an int": msgpack.packb(5),
    "nil": msgpack.packb(None),
    "a list of maps": msgpack.packb(MAPS),
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "a list as a key": b"\x81\x91\x01\x02",
    "a map as a key": b"\x81\x81\x01\x02\x03",
    "text that is not UTF-8": b"\x81\xa1x\xa2\xc3\x28",
    "a lone surrogate": b"\x81\xa7session\xa3\xed\xa0\x80",
    "too deep": DEEP,
    "a list longer than the body": b"\x81\xa1x\xdd\xff\xff\xff\xff",
    "a map longer than the body": b"\xdf\x7f\xff\xff\xff",
    "a string longer than the body": b"\x81\xa1x\xdb\xff\xff\xff\xff",
    "an extension type": b"\x81\xa1x\xd4\x05\x00",
    "a timestamp": b"\x81\xa1x" + msgpack.packb(msgpack.Timestamp(5, 6)),
}


@pytest.mark.parametrize("fault", NOT_MESSAGES)
def test_what_is_no_map_is_told_and_what_stands_before_it_is_read(fault: str) -> None:
    for before in ([], MAPS[:2]):
        items, problem = decode(encode(before) + NOT_MESSAGES[fault] + encode(MAPS[2:]), MOST)
        assert items == before
        assert problem is not None
        assert problem.code == "bad_message"
        assert str(problem).startswith(f"Object {len(before) + 1} of the body")
        assert len(str(problem)) < 300


def test_an_empty_body_is_no_message() -> None:
    items, problem = decode(b"", MOST)
    assert items == []
    assert problem is not None
    assert problem.code == "bad_message"


@pytest.mark.parametrize("count", [3, 4, 5, 9])
def test_maps_beyond_the_limit_are_not_read(count: int) -> None:
    body = encode([{"session": "s", "x": i} for i in range(count)])
    items, problem = decode(body, 4)
    assert [item["x"] for item in items] == list(range(min(count, 4)))
    assert (problem is None) == (count <= 4)
    if problem is not None:
        assert "Object 5" in str(problem)
        assert "limit of 4" in str(problem)


def test_what_stands_behind_as_many_maps_as_may_be_is_seen() -> None:
    for behind in (b"\xc0", b"\xc1", b"\x05", b"\x81", encode(MAPS[:1])):
        items, problem = decode(encode(MAPS) + behind, len(MAPS))
        assert items == MAPS
        assert problem is not None
    assert decode(encode(MAPS), len(MAPS)) == (MAPS, None)


def test_keys_that_are_no_text_are_a_matter_of_the_request_not_of_the_body() -> None:
    items, problem = decode(b"\x81\x05\x01" + encode(MAPS[:1]), MOST)
    assert problem is None
    assert items == [{5: 1}, MAPS[0]]


def test_keys_of_equal_hash_are_not_taken() -> None:
    """Timestamps hash like tuples of ints, without a seed: keys of a body could all be made to collide."""
    keys = b"".join(b"\xc7\x0c\xff" + struct.pack(">Iq", i, i) + b"\x00" for i in range(100))
    items, problem = decode(b"\xde\x00\x64" + keys, MOST)
    assert items == []
    assert problem is not None


@given(st.binary(max_size=200))
def test_no_bytes_make_decode_raise(garbage: bytes) -> None:
    items, problem = decode(garbage, MOST)
    assert all(type(item) is dict for item in items)
    assert problem is None or problem.code == "bad_message"
    assert items or problem is not None


@given(st.data())
def test_no_damage_to_a_body_makes_it_raise_or_changes_what_stands_before(data: st.DataObject) -> None:
    body = bytearray(encode(MAPS))
    place = data.draw(st.integers(0, len(body) - 1))
    body[place] = data.draw(st.integers(0, 255))
    before = sum(len(encode(MAPS[:count])) <= place for count in range(1, len(MAPS) + 1))
    items, _ = decode(bytes(body), MOST)
    assert items[:before] == MAPS[:before]
    for item in items:
        with contextlib.suppress(BadRequest):
            assert type(parse(item)) is Request
        assert set(readable(item)) <= {"session", "id"}


# Checking -------------------------------------------------------------------------------------------------------------

RIGHT: dict[str, list[Any]] = {
    "session": ["s", "x" * 200, "é" * 100, "𝄞" * 50, "\x00", " "],
    "x": [0, -5, 2**63, None, "word", b"\x00", [1.5], {"a": 1}, True],  # only the model knows its tokens
    "want": ["argmax", "none", "probs", "logits", 1, 100],
    "surprisal": [True, False],
    "all": [True, False],
    "owner": ["", "A" * 40, "!" * 40],
    "t": [0, 1, 2**64 - 1],
    "producer": ["p", "p" * 64, "é" * 32, "𝄞" * 16],
    "n": [1, 2**64 - 1],
    "ack": [0, 1, 2**64 - 1],
    "to": ["s", "x" * 200, "é" * 100],
    "state": [b"", b"x" * 1000],
    "xs": [[0], [None, "word", [1.5]], [1] * PEEK_TOKENS],
    "id": ["", "x" * 64, "é" * 32, "𝄞" * 16, b"", b"x" * 64, 0, -1, 2**64 - 1, -(2**63)],
    "prefix": ["", "s", "x" * 200, "é" * 100],
    "after": [0, 1, 2**64 - 1],
    "limit": [1, 1000],
}
NO_NAMES: list[Any] = ["x" * 201, "é" * 101, "𝄞" * 51, "\ud800", 5, None, b"s", ["s"], True, {"s": 1}]
WRONG: dict[str, list[Any]] = {
    "session": ["", *NO_NAMES],
    "want": [1.0, True, False, None, b"argmax", ["argmax"], {}],  # which words and numbers, the model decides
    "surprisal": [0, 1, "true", None, []],
    "all": [0, 1, "true", None],
    "owner": [None, 5, b"A" * 40, "A" * 39, "A" * 41, "é" * 40, "é" * 20, []],
    "t": [-1, 1.0, True, "1", None, [1]],
    "producer": ["", "p" * 65, "é" * 33, 5, None, b"p", ["p"]],
    "n": [0, -1, 1.0, True, "1", None],
    "ack": [-1, 1.0, True, "1", None],
    "to": ["", *NO_NAMES],
    "state": ["", "state", None, 5, [1]],
    "xs": [[], [1] * (PEEK_TOKENS + 1), "word", 5, None, {"a": 1}, b"x"],
    "id": ["x" * 65, "é" * 33, "𝄞" * 17, b"x" * 65, 1.5, True, None, [], {}],
    "prefix": NO_NAMES,
    "after": [-1, 1.0, True, "1", None],
    "limit": [0, 1001, -1, 1.0, True, "1", None],
}
NEEDED = {"session": "s", "x": 3, "xs": [3], "to": "copy", "state": b"state"}
NOT_NEEDED = ("open", "state")
NUMBERED = ("step", "open", "reset", "close", "fork", "restore")
DEFAULTS = Request()


def needed(op: str) -> set[str]:
    return {key for key in NEEDED if key in OPS[op] and (op, key) != NOT_NEEDED}


def least(op: str, key: str = "") -> dict[str, Any]:
    """The smallest right request of an operation that may have this key."""
    numbered = {"producer": "p", "n": 1} if key in ("producer", "n", "ack") else {}
    return {"op": op} | {key: NEEDED[key] for key in needed(op)} | numbered


CASES = [(op, key) for op in OPS for key in ("id", *OPS[op])]


def test_the_operations_and_their_keys() -> None:
    assert {op: keys for op, keys in OPS.items() if op not in NUMBERED} == {
        "peek": ("session", "xs", "want", "surprisal"),
        "snapshot": ("session",),
        "info": ("session", "owner"),
        "hello": (),
        "ping": (),
        "sessions": ("prefix", "after", "limit", "all"),
        "stats": (),
    }
    numbering = ("t", "producer", "n", "ack")
    assert {op: OPS[op][: -len(numbering)] for op in NUMBERED} == {
        "step": ("session", "x", "want", "surprisal"),
        "open": ("session", "state"),
        "reset": ("session",),
        "close": ("session", "owner"),
        "fork": ("session", "to"),
        "restore": ("session", "state"),
    }
    assert all(OPS[op][-len(numbering) :] == numbering for op in NUMBERED)


@pytest.mark.parametrize("op", OPS)
def test_keys_that_are_absent_have_their_defaults(op: str) -> None:
    request = parse(least(op))
    for key in Request.__slots__:
        expected = {"op": op, **least(op)}.get(key, getattr(DEFAULTS, key))
        assert getattr(request, key) == expected


def test_the_defaults() -> None:
    assert parse({"session": "s", "x": 1}) == Request(
        "step", "s", 1, "argmax", False, None, None, 0, None, "", None, None, None, "", 0, 100, None, False
    )


@pytest.mark.parametrize(("op", "key"), CASES)
def test_right_values_are_taken_as_they_are(op: str, key: str) -> None:
    for value in RIGHT[key]:
        found = getattr(parse({**least(op, key), key: value}), key)
        assert found == value
        assert type(found) is type(value)


@pytest.mark.parametrize(("op", "key"), [(op, key) for op, key in CASES if key != "x"])
def test_wrong_values_are_told_by_their_field(op: str, key: str) -> None:
    for value in WRONG[key]:
        with pytest.raises(BadRequest) as error:
            parse({**least(op, key), key: value})
        assert error.value.field == key
        assert str(error.value).startswith(f"{key} is ")
        assert len(str(error.value)) < 300


@pytest.mark.parametrize("op", NUMBERED)
@pytest.mark.parametrize("keys", [("producer",), ("n",), ("ack",), ("n", "ack"), ("producer", "ack")])
def test_numbering_comes_whole(op: str, keys: tuple[str, ...]) -> None:
    for order in (keys, keys[::-1]):
        with pytest.raises(BadRequest, match="producer and n come together") as error:
            parse(least(op) | {key: "p" if key == "producer" else 1 for key in order})
        assert error.value.field == keys[0]


def test_what_makes_a_repeat_the_same_request() -> None:
    def identity(**keys: Any) -> Any:
        return parse(least(keys.get("op", "step")) | keys).identity()

    assert identity(x=3) == identity(x=3, want="none", t=5, id=1, surprisal=True)
    different = [
        identity(x=3),
        identity(x=4),
        *(identity(op=op) for op in NUMBERED if op != "step"),
        identity(op="open", state=b""),
        identity(op="open", state=b"a" * 1000),
        identity(op="restore", state=b"a" * 1000),
        identity(op="fork", to="other"),
    ]
    assert len(set(different)) == len(different)
    vectors = [Request(x=np.array(x, np.float32)).identity() for x in ([1, 2], [1, 2], [2, 1])]
    assert vectors[0] == vectors[1] != vectors[2]
    assert len(vectors[0]) == 16


@pytest.mark.parametrize("op", OPS)
def test_keys_that_an_operation_does_not_take(op: str) -> None:
    strangers = {key for keys in OPS.values() for key in keys} - set(OPS[op]) | {"sesion", "Session", "again", ""}
    for key in strangers:
        with pytest.raises(BadRequest, match=f"{op} has no key {key!r}") as error:
            parse({**least(op), key: 1})
        assert error.value.field == key


@pytest.mark.parametrize("op", OPS)
def test_keys_that_an_operation_needs(op: str) -> None:
    for key in needed(op):
        item = least(op)
        del item[key]
        with pytest.raises(BadRequest, match=f"{op} needs the key {key!r}") as error:
            parse(item)
        assert error.value.field == key


@pytest.mark.parametrize("op", ["", "Step", "forks", 5, None, ["step"], {"step": 1}, b"step", True])
def test_operations_that_are_not_there(op: Any) -> None:
    with pytest.raises(BadRequest) as error:
        parse({"op": op, "session": "s", "x": 1})
    assert error.value.field == "op"


@pytest.mark.parametrize("key", [5, 1.5, None, b"session", True, -(2**63)])
def test_keys_that_are_no_text(key: Any) -> None:
    with pytest.raises(BadRequest) as error:
        parse({"session": "s", "x": 1, key: 1})
    assert error.value.field == repr(key)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


LONG: dict[str, Any] = {
    "deep": nested(1000),
    "str": "𝄞" * 250_000,
    "bytes": b"y" * 1_000_000,
    "list": list(range(300_000)),
    "map": dict.fromkeys(range(100_000), "y"),
    "wide": [["𝄞" * 1000] * 10] * 10,
}


@pytest.mark.parametrize("key", ["op", "session", "t", "id", "surprisal", "nonsense"])
@pytest.mark.parametrize("value", LONG.values(), ids=LONG)
def test_an_error_sentence_is_short_whatever_the_value(key: str, value: Any) -> None:
    with pytest.raises(BadRequest) as error:
        parse({"session": "s", "x": 1, key: value})
    assert len(str(error.value).encode()) < 500
    assert error.value.field == key


def test_an_unknown_key_does_not_come_back_at_full_length() -> None:
    for key in ("k" * 900_000, "𝄞" * 200_000, b"k" * 900_000):
        with pytest.raises(BadRequest) as error:
            parse({"op": "ping", key: 1})
        assert len(str(error.value).encode()) < 500
        assert len(error.value.field.encode()) <= 256


# For error replies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["session", "id"])
def test_what_can_be_read_comes_back_and_what_is_wrong_does_not(key: str) -> None:
    other = {"session": "id", "id": "session"}[key]
    for value in RIGHT[key]:
        assert readable({key: value, "nonsense": 1, "op": []}) == {key: value}
        assert readable({key: value, other: 1.5}) == {key: value}
        assert readable({key: value, other: "s"}) == {key: value, other: "s"}
    for value in WRONG[key]:
        assert readable({key: value}) == {}


@pytest.mark.parametrize("item", [None, 5, "session", ["session"], b"id", {}])
def test_nothing_can_be_read_of_what_is_no_map(item: Any) -> None:
    assert readable(item) == {}


@pytest.mark.parametrize("inside", [False, True], ids=["the request", "its x"])
def test_a_map_of_more_keys_than_any_request_has_is_refused_before_it_is_built(inside: bool) -> None:
    """Python's dicts can be made slow by int keys that were chosen for it, with any seed."""
    for keys, good in ((MOST_KEYS, True), (MOST_KEYS + 1, False)):
        large = dict.fromkeys(range(keys), 0)
        items, problem = decode(msgpack.packb({"session": "s", "x": large} if inside else large), 10)
        assert (len(items), problem is None) == (good, good)
