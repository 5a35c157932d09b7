"""Ordinary tokens are told by their bytes: whatever is told is what decoding would have found, and all else is decoded."""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnstream.wire import ordinary
from rnnstream.wire.limits import Limits
from rnnstream.wire.ordinary import ID, PRODUCER, N, Parts, X, uint
from tests.engine.models import network

from .driving import Driver, codes, pack, step

Drive = Callable[..., Driver]

SIZE = 7  # of the network's vocabulary
NAMES = [
    "s",
    "turbine-7",
    "x" * 31,
    "y" * 32,
    "z" * 200,
    "\u00a1x\u0007",
    "\u0861x",
    "\u00a1n\u0001",
    "\u00a8producer",
    "session",
    "",
]


def uints(number: int) -> list[bytes]:
    """All ways to write an unsigned int, and a signed one."""
    ways = [bytes([number])] if number < 128 else []
    for first, form in ((0xCC, "B"), (0xCD, "H"), (0xCE, "I"), (0xCF, "Q"), (0xD3, "q")):
        if number < 1 << 8 * struct.calcsize(">" + form):
            ways.append(bytes([first]) + struct.pack(">" + form, number))
    return ways


def body(session: str, x: bytes, producer: str | None = None, n: bytes = b"") -> bytes:
    """A token in the usual order of its keys."""
    numbered = b"" if producer is None else PRODUCER + msgpack.packb(producer) + N + n
    return bytes([0x82 + 2 * (producer is not None)]) + b"\xa7session" + msgpack.packb(session) + X + x + numbered


def told(parts: Parts, data: bytes) -> tuple[Any, ...] | None:
    """What is told of a body by parts that were met, as `Intake.take` does; None: nothing."""
    head, _, tail = data.rpartition(X)
    if data[:1] == b"\x82":
        return (parts.sessions[head], parts.ids[tail], None, 0, None) if head in parts.sessions and tail in parts.ids else None
    x, _, rest = tail.partition(PRODUCER)
    id = None
    if data[:1] == b"\x85":
        rest, _, part = rest.rpartition(ID)
        id = uint(part)
        if id < 0:
            return None
    producer, _, n = rest.rpartition(N)
    if head not in parts.numbered or x not in parts.ids or producer not in parts.producers or uint(n) < 0:
        return None
    return parts.numbered[head], parts.ids[x], parts.producers[producer], uint(n), id


def meet(parts: Parts, data: bytes) -> tuple[Any, ...] | None:
    """As `Intake.take` with a body that is not told: what decoding finds of an ordinary token; None: it is none."""
    try:
        session, x, producer, n, id = parts.decode(data)
    except Exception:  # of any kind
        return None
    if x is None:
        return None
    parts.remember(data, session, x, producer)
    return session, x, producer, n, id


def decoded(data: bytes) -> Any:
    try:
        return msgpack.unpackb(data)
    except Exception:
        return None


def as_map(session: str, x: int, producer: str | None, n: int, id: int | None = None) -> dict[str, Any]:
    numbered = {} if producer is None else {"producer": producer, "n": n}
    return {"session": session, "x": x} | numbered | ({} if id is None else {"id": id})


def with_id(data: bytes, way: bytes) -> bytes:
    return bytes([data[0] + 1]) + data[1:] + ID + way


def every_body(xs: range, ns: list[int]) -> list[bytes]:
    plain = [body(name, way) for name in NAMES for x in xs for way in uints(x)]
    producers = [None, "p", "p" * 40, "\u00a1n\u0001"]
    numbered = [body(name, b"\x01", p, way) for name in NAMES for p in producers if p for n in ns for way in uints(n)]
    some = (plain + numbered)[::7]
    return plain + numbered + [with_id(data, way) for data in some for n in (0, 5, 300) for way in uints(n)]


def test_what_is_told_is_what_decoding_finds() -> None:
    parts, bodies = Parts(SIZE, {}), every_body(range(SIZE), [1, 127, 128, 255, 256, 65535, 65536, 1 << 40])
    for data in bodies:
        found = meet(parts, data)
        assert found is not None
        assert as_map(*found) == decoded(data)
    assert len(parts.sessions) == len(parts.numbered) // 2 == len(NAMES)
    assert sum(told(parts, data) is not None for data in bodies) > len(bodies) // 2
    told_of = 0
    random = Random(5)
    for data in bodies:
        for _ in range(40):  # changed in one place or two, cut, put together anew
            changed = bytearray(data)
            for _ in range(random.randrange(3)):
                changed[random.randrange(len(changed))] = random.choice(
                    [random.randrange(256), 0xA1, 0x78, 0x82, 0x84, 0xC0, 0xCD]
                )
            other = random.choice(bodies)
            joined = (
                bytes(changed)
                if random.random() < 0.6
                else data[: random.randrange(len(data))] + other[random.randrange(len(other)) :]
            )
            found = told(parts, joined)
            if found is not None:
                told_of += 1
                assert as_map(*found) == decoded(joined), joined
    assert told_of > 10_000


@given(
    st.lists(st.binary(max_size=60), min_size=2, max_size=4),
    st.sampled_from([b"", b"\x82\xa7session", b"\x85\xa7session\xa1s\xa1x"]),
)
def test_bytes_of_any_kind_are_not_told_wrong(some: list[bytes], prefix: bytes) -> None:
    parts = Parts(SIZE, {})
    for data in some * 2:
        for found in (meet(parts, prefix + data), told(parts, prefix + data)):
            assert found is None or as_map(*found) == decoded(prefix + data)


@pytest.mark.parametrize(
    "data",
    [
        body("s", b"\x07"),
        body("s", b"\xc3"),
        body("s", b"\xff"),
        body("s", b"\xcd\x00"),
        body("s", b""),
        body("s", b"\xd0\x01"),
        body("s", b"\xcd\x01"),
        body("s", b"\xca\x00\x00\x00\x00"),
        body("s", b"\x01", "p", b"\xff"),
        body("s", b"\x01", "p", b"\xc3"),
        body("s", b"\x01", "p", b""),
        body("s", b"\x01", "p", b"\xa1\x02"),
        b"\x82\xa7session\xa2\xff\xfe" + X + b"\x01",
        b"\x82\xa7session\xa9s" + X + b"\x01",
        b"\x83\xa7session\xa1s" + X + b"\x01",
        b"s" + X + b"\x01",
        X + b"\x01",
        b"",
        msgpack.packb({"session": "s", "x": 1, "want": "none"}),
        msgpack.packb({"session": "s", "x": 1, "n": 1}),
        msgpack.packb({"session": "s", "x": 1, "producer": "p", "n": 1, "ack": 0}),
        msgpack.packb({"session": "s", "x": 1, "id": "a"}),
        msgpack.packb({"session": "s", "x": 1, "id": None}),
        msgpack.packb({"session": "s", "x": True}),
        msgpack.packb({"x": 1.0, "session": "s"}),
        msgpack.packb({"x": -1, "session": "s"}),
    ],
)
def test_what_is_not_ordinary_is_left_to_others(data: bytes) -> None:
    parts = Parts(SIZE, {})
    for known in (body("s", b"\x01"), body("s", b"\x01", "p", b"\x01")):
        assert meet(parts, known) is not None
    assert told(parts, data) is None
    found = meet(parts, data)
    assert found is None or found[3] < 0 or data == body("s", b"\xd0\x01"), (
        "the only one that says the same as an ordinary token"
    )


def test_keys_in_another_order_and_ids_are_decoded() -> None:
    parts = Parts(SIZE, {})
    assert parts.decode(msgpack.packb({"x": 3, "session": "s"})) == ("s", 3, None, 0, None)
    assert parts.decode(msgpack.packb({"session": "s", "x": 3, "id": 9})) == ("s", 3, None, 0, 9)
    assert parts.decode(msgpack.packb({"session": "s", "x": 3, "id": -9})) == ("s", 3, None, 0, -9)
    assert parts.decode(msgpack.packb({"session": "s", "x": 3, "n": 2, "producer": "p"})) == ("s", 3, "p", 2, None)
    assert parts.decode(msgpack.packb({"n": 2, "producer": "p", "session": "s", "x": 3, "id": 0})) == ("s", 3, "p", 2, 0)


@pytest.mark.parametrize("n", [b"\xa1\x02", b"\xc4\x02", b"\xca\x00\x00\x00\x02"])
def test_a_number_that_is_none_where_all_else_was_met(drive: Drive, n: bytes) -> None:
    driver = drive(network())
    for number in (b"\x01", b"\x02"):
        driver.handle((b"a", body("s", b"\x01", "p", number)))
    before = driver.states()
    driver.handle((b"a", body("s", b"\x01", "p", n.replace(b"\x02", b"\x03"))))
    assert codes(driver.replies[b"a"].pop()) == ["bad_message" if n[0] == 0xC4 else "bad_request"]
    assert driver.states() == before


def test_parts_are_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordinary, "KNOWN", 5)
    monkeypatch.setattr(ordinary, "FEW_SESSIONS", 5)
    names: dict[str, int] = {}
    parts = Parts(SIZE, names)
    for i in range(20):
        meet(parts, body(f"s{i}", b"\x01", f"p{i}", b"\x01"))
        meet(parts, body(f"s{i}", b"\x01"))
        assert max(len(known) for known in (parts.sessions, parts.numbered, parts.producers, parts.ids)) <= 5
        assert told(parts, body(f"s{i}", b"\x01")) == (f"s{i}", 1, None, 0, None)
    names.update({f"s{i}": i for i in range(6)})  # so many that few would be met again
    before = dict(parts.sessions)
    meet(parts, body("another", b"\x01"))
    assert parts.sessions == before
    assert told(parts, body("s19", b"\x01")) is not None


def test_nothing_is_remembered_of_sessions_and_producers_that_are_not_there(drive: Drive) -> None:
    driver = drive(network(), explicit_open=True)
    driver.ask({"op": "open", "session": "s"})
    parts = driver.core._intake.parts
    for i in range(20):
        driver.handle((b"a", body(f"s{i}", b"\x01")))
        driver.handle((b"a", body("s", b"\x01", f"p{i}", b"\x05")))
        driver.handle((b"a", body(f"s{i}", b"\x01", "p", b"\x01")))
    assert not parts.sessions
    assert not parts.numbered
    assert not parts.producers
    driver.handle((b"a", body("s", b"\x01")))
    assert list(parts.sessions.values()) == ["s"]


def test_a_flood_of_tokens_that_are_not_ordinary_is_refused_the_cheap_way(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = drive(network(), limits=Limits(waiting=4, frame_requests=4))
    driver.ask(step("s", 1))
    driver.core.take([b"a"], [pack([step("s", 1)] * 4)], 0.0)
    refused: list[Any] = []
    with monkeypatch.context() as counted:
        counted.setattr(driver.core._intake, "_take_flood", lambda *arguments: refused.append(arguments))
        flood = [step("s", 1), step("s", 1, want="none"), step("s", "word"), step("s", 99)]
        driver.core.take([b"b"] * 4, [pack([one]) for one in flood], 0.0)
    assert len(refused) == 4
    while driver.core.waiting:
        driver.core.turn(0.0)


def decoded_all(data: bytes) -> list[Any] | None:
    """All of a body, by msgpack itself; None: it is not whole."""
    unpacker = msgpack.Unpacker(strict_map_key=False)
    unpacker.feed(data)
    try:
        found = list(unpacker)
    except Exception:
        return None
    return found if unpacker.tell() == len(data) else None


def test_what_is_told_of_a_body_is_what_decoding_finds() -> None:
    random, parts, told_of = Random(7), Parts(SIZE, {}), 0
    names = [*NAMES, "\u0802\u00a7session", "a\u20a7session"]
    odd = [
        X,
        b"\x82",
        b"\x82\xa7session",
        b"\x83\xa7session",
        b"\x01",
        b"\xa1s",
        b"\xc0",
        b"\x82\xa7session\xa1s\xa1x\x01\xa1x\x01",
    ]
    for _ in range(20_000):
        tokens = [body(random.choice(names), random.choice(uints(random.randrange(SIZE)))) for _ in range(random.randrange(5))]
        data = b"".join(tokens)
        found = parts.tell(data, 9)
        if found is None and len(tokens) > 1:
            parts.remember_all(data, decoded_all(data) or [])
            found = parts.tell(data, 9)
        # An id may be written in a longer way than is remembered.
        if found is not None:
            told_of += 1
            assert [as_map(name, x, None, 0) for name, x in zip(*found, strict=True)] == decoded_all(data)
        if data and random.random() < 0.7:
            at = random.randrange(len(data))
            changed = data[:at] + random.choice(odd) + data[at + random.randrange(12) :]
            found = parts.tell(changed, 9)
            if found is not None:
                assert [as_map(name, x, None, 0) for name, x in zip(*found, strict=True)] == decoded_all(changed), changed
            parts.remember_all(changed, decoded_all(data) or [])  # of tokens that are not its own: nothing wrong comes of it
    assert told_of > 5_000
    assert len(parts.in_bodies) == len(names) - 1  # the last one has the beginning of a token in it


def test_parts_of_bodies_are_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordinary, "KNOWN", 5)
    monkeypatch.setattr(ordinary, "FEW_SESSIONS", 5)
    names: dict[str, int] = {}
    parts = Parts(SIZE, names)
    for i in range(20):
        data = body(f"s{i}", b"\x01") + body(f"t{i}", b"\x01")
        parts.remember_all(data, decoded_all(data) or [])
        assert len(parts.in_bodies) <= 5
    assert parts.tell(data, 9) == parts.tell(data, 2) == (("s19", "t19"), (1, 1))
    assert parts.tell(data, 1) is None  # more are not even looked at
    assert parts.tell(data * 5, 9) is None
    names.update({f"s{i}": i for i in range(6)})
    assert parts.tell(data, 9) is None
    parts.in_bodies.clear()
    parts.remember_all(data, decoded_all(data) or [])
    assert not parts.in_bodies


def test_bodies_that_are_told_are_answered_as_those_that_are_decoded(drive: Drive) -> None:
    limits = Limits(waiting=10, frame_requests=6)
    told, careful = drive(network(), limits=limits), drive(network(), limits=limits)
    careful.core._intake.parts.tell = lambda body, most: None  # type: ignore[method-assign]
    taken = []
    take_told = told.core._intake._take_told
    told.core._intake._take_told = lambda *body: taken.append(take_told(*body)) or taken[-1]  # type: ignore[method-assign, func-returns-value]
    random, seen, sessions = Random(11), set(), ["a", "b"]
    for _ in range(1500):
        arrivals = []
        for _ in range(random.randrange(1, 6)):
            if random.random() < 0.6:  # else the same ones again, which wait in the same waves
                sessions = random.sample("abcdefgh", random.randrange(1, 8))
            requests = [step(name, random.choice([0, 1, 2, 3, 4, 5, 6])) for name in sessions]
            if random.random() < 0.2:
                place = random.randrange(len(requests))
                requests[place] = random.choice(
                    [
                        step(sessions[place], 9),
                        step(sessions[0], 1),
                        step(sessions[place], 2) | {"id": 5},
                        {"op": "close", "session": sessions[place]},
                        {"op": "reset", "session": sessions[place]},
                        {"op": "reset", "session": sessions[place]},
                        {"op": "peek", "session": sessions[place], "xs": [1]},
                    ]
                )
            arrivals.append((random.choice([b"one", b"two", b"three"]), pack(requests)))
        rests = random.random() < 0.6
        for driver in (told, careful):
            driver.handle(*arrivals)
            if rests:
                driver.finish()
        assert told.core.waiting == careful.core.waiting
        seen |= {code for bodies in told.replies.values() for replies in bodies for code in codes(replies) if type(code) is str}
    for driver in (told, careful):
        driver.finish()
    assert told.replies == careful.replies
    assert told.states() == careful.states()
    assert taken.count(True) > 200
    assert taken.count(False) > 50
    assert seen >= {"bad_token", "unknown_session", "bad_message", "busy"}


def test_bodies_that_are_told_go_no_further_than_the_bounds_and_open_nothing(drive: Drive) -> None:
    limits, data = Limits(waiting=10, frame_requests=6), pack([step("a", 1), step("b", 1)])
    told, careful = drive(network(), limits=limits), drive(network(), limits=limits)
    careful.core._intake.parts.tell = lambda body, most: None  # type: ignore[method-assign]
    for driver in (told, careful):
        for _ in range(2):  # opened, then met
            driver.ask(step("a", 1), step("b", 1))
        driver.handle(*[(bytes([i]), data) for i in range(12)])
        driver.finish()
        driver.ask({"op": "close", "session": "b"})
        driver.handle((b"one", pack([{"op": "open", "session": "b", "state": b"none"}, step("a", 1)])), (b"two", data))
        driver.finish()
    assert told.core._intake.parts.tell(data, 9) == (("a", "b"), (1, 1))
    assert told.replies == careful.replies
    assert codes(told.replies[b"\x08"][0]) == [11, 11]
    assert codes(told.replies[b"\x0b"][0]) == ["busy", "busy"]
    assert codes(told.replies[b"two"][0])[1] == "unknown_session"


def test_replies_are_those_that_decoding_gets(drive: Drive) -> None:
    """Tokens good and bad, told by their bytes and decoded: the same replies, and the same sessions."""
    short, careful = drive(network()), drive(network())
    nothing = SimpleNamespace(
        sessions={},
        numbered={},
        ids={},
        producers={},
        decode=lambda body: 1 / 0,
        tell=lambda body, most: None,
        remember_all=lambda body, tokens: None,
    )
    careful.core._intake.parts = nothing  # type: ignore[assignment]
    careful.core.alone = None
    random, seen = Random(3), set()
    ns = {"a": 0, "b": 0}
    for _ in range(1500):
        name = random.choice(["a", "b", "c", "d"])
        request = step(name, random.choice([0, 1, 2, 3, 6, 6, 7, -1]))
        if name in ns and random.random() < 0.7:
            n = ns[name] + random.choice([1, 1, 1, 1, 1, 0, 2])
            request |= {"producer": "p", "n": n}
        if random.random() < 0.1:
            request |= {"id": random.choice([1, "a"])}
        if random.random() < 0.03:
            request = {"op": random.choice(["close", "reset"]), "session": name}
        if random.random() < 0.1:
            request = dict(random.sample(list(request.items()), len(request)))
        replies = short.ask(request)
        assert replies == careful.ask(request)
        if "producer" in request and "error" not in replies[0] and "again" not in replies[0]:
            ns[name] += 1
        seen |= set(codes(replies)) & {"bad_token", "gap", "unknown_session", "conflict"}
    assert short.states() == careful.states()
    assert len(seen) == 4
