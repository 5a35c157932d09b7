"""The load without sockets: the bodies, and what replies are held to."""

from __future__ import annotations

import math
from typing import Any

import msgpack
import numpy as np
import pytest

from rnnstream import ProtocolError
from rnnstream.cli.load import Load, Traffic, random_tokens
from rnnstream.cli.outcome import Latencies
from rnnstream.wire import requests


def load(**given: Any) -> Load:
    keys = {"clients": 1, "sessions": 2, "window": 8, "body": 1, "rate": None, "numbered": False, "want": "argmax"}
    return Load(**(keys | given))


def traffic(asked: Load, *, names: str = "ab") -> Traffic:
    return Traffic(asked, list(names), [msgpack.packb(x) for x in (5, 6, 7)], "me")


def maps(body: bytes) -> list[dict[str, Any]]:
    found, problem = requests.decode(body, 512)
    assert problem is None
    for item in found:
        requests.parse(item)
    return found


def body(*replies: dict[str, Any]) -> bytes:
    return b"".join(map(msgpack.packb, replies))


def counted(traffic: Traffic) -> Latencies:
    latencies = Latencies()
    traffic.fold(latencies)
    return latencies


def test_random_ids_are_the_models() -> None:
    ids = [msgpack.unpackb(token) for token in random_tokens("token", 3, np.random.default_rng(0))]
    assert set(ids) == {0, 1, 2}


def test_random_vectors_are_as_long_as_the_models() -> None:
    tokens = random_tokens("dense", 300, np.random.default_rng(0))
    rows = np.array([np.frombuffer(msgpack.unpackb(token), "<f4") for token in tokens])
    assert rows.shape == (1021, 300)
    assert abs(rows.mean()) < 0.01
    assert abs(rows.std() - 1) < 0.01
    assert len(random_tokens("dense", 1 << 20, np.random.default_rng(0))) == 1, "not without bound"


def test_sessions_get_tokens_in_turn() -> None:
    one = traffic(load())
    found = [maps(one.body(0.0)) for _ in range(4)]
    assert found == [[{"session": session, "x": x}] for session, x in (("a", 5), ("b", 6), ("a", 7), ("b", 5))]
    many = traffic(load(body=3, want=7))
    assert maps(many.body(0.0)) == [{"session": session, "want": 7, "x": x} for session, x in (("a", 5), ("b", 6), ("a", 7))]
    assert [item["session"] for item in maps(many.body(0.0))] == ["b", "a", "b"]


def test_numbers() -> None:
    one = traffic(load(numbered=True))
    found = [maps(one.body(0.0))[0] for _ in range(3)]
    assert found[0] == {"session": "a", "producer": "me", "x": 5, "n": 1}
    assert found[2] == {"session": "a", "producer": "me", "x": 7, "n": 2, "ack": 0}, "1 is under way"
    assert [item["n"] for item in found] == [1, 1, 2]
    for session in "ab":
        one.take(body({"session": session, "t": 1}), 1.0)
    found = [maps(one.body(0.0))[0] for _ in range(3)]
    assert [(item["session"], item["n"], item.get("ack")) for item in found] == [("b", 2, None), ("a", 3, 1), ("b", 3, 1)]


def test_bodies_of_several_acknowledge() -> None:
    many = traffic(load(numbered=True, body=3))
    assert [(item["n"], item["ack"]) for item in maps(many.body(0.0))] == [(1, 0), (1, 0), (2, 0)]
    many.take(body({"session": "a", "t": 1}, {"session": "b", "t": 1}, {"session": "a", "t": 2}), 1.0)
    found = [(item["session"], item["n"], item["ack"]) for item in maps(many.body(0.0))]
    assert found == [("b", 2, 1), ("a", 3, 2), ("b", 3, 1)]


def test_a_latency_counts_from_what_was_told() -> None:
    one = traffic(load())
    for since in (10.0, 20.0):
        one.body(since)
    one.take(body({"session": "a", "t": 1, "y": 3}), 20.25)
    one.take(body({"session": "b", "t": 1, "y": 3}), 20.5)
    found = counted(one)
    assert (found.counts.sum(), one.counted) == (2, 2)
    assert (0.5 <= found.percentile(50) < 0.505, found.most_s) == (True, 10.25)
    one.body(30.0)
    one.take(body({"session": "a", "t": 2}), 30.75)
    assert counted(one).most_s == 0.75, "what was folded is not folded again"


@pytest.mark.parametrize(
    ("size", "reply", "told"),
    [
        (1, body({"session": "a", "t": 2}), "Where t=1 of the session 'a' was to come, t=2 of the session 'a' came"),
        (1, body({"session": "b", "t": 1}), "t=1 of the session 'b' came"),
        (1, body({"session": "a"}), "t=None of"),
        (1, body({"session": "a", "t": 1}, {"session": "b", "t": 1}), "1 requests were answered with 2 replies"),
        (2, body({"session": "a", "t": 1}), "2 requests were answered with 1 replies"),
        (2, body({"session": "a", "t": 1}, {"session": "a", "t": 2}), "t=2 of the session 'a' came"),
        (1, b"\xc1", "not MessagePack"),
        (1, b"\x01", "not a row of whole MessagePack maps"),
        (1, body({"error": 5}), "not a row of whole MessagePack maps"),
    ],
)
def test_a_reply_that_is_none(size: int, reply: bytes, told: str) -> None:
    one = traffic(load(body=size))
    one.body(0.0)
    with pytest.raises(ProtocolError, match=told):
        one.take(reply, 1.0)


def test_a_reply_that_nobody_asked_for() -> None:
    with pytest.raises(ProtocolError, match="to which there is no request"):
        traffic(load()).take(body({"session": "a", "t": 1}), 1.0)


def test_errors_are_counted_and_are_no_latencies() -> None:
    many = traffic(load(body=4))
    many.body(0.0)
    busy = {"error": "busy", "message": "wait", "session": "a"}
    many.take(body(busy, {"session": "b", "t": 1}, busy | {"message": "more"}, {"session": "b", "t": 2}), 1.0)
    assert (many.counted, many.errors, many.said) == (2, {"busy": 2}, {"busy": "wait"})
    assert counted(many).counts.sum() == 2
    many.body(1.0)
    many.take(body({"session": "a", "t": 1}, *[{"error": "full"}] * 3), 2.0)
    assert (many.counted, many.errors, many.said["full"]) == (3, {"busy": 2, "full": 3}, "")


def test_what_is_forgotten_is_counted_no_more_and_sessions_go_on() -> None:
    one = traffic(load(sessions=1), names="a")
    one.body(0.0)
    one.take(body({"session": "a", "t": 1}), 1.0)
    one.forget()
    one.body(0.0)
    one.take(body({"session": "a", "t": 2}), 1.0)
    assert one.counted == counted(one).counts.sum() == 1


@pytest.mark.parametrize("size", [1, 3, 5])
def test_a_number_is_never_used_for_two_tokens_that_count(size: int) -> None:
    """Against a worker that is busy at random, with many bodies in flight at a time."""
    rng = np.random.default_rng(size)
    many = traffic(load(numbered=True, body=size), names="abc")
    last = dict.fromkeys("abc", 0)
    heard = dict.fromkeys("abc", 0)  # the last number whose reply has come
    under_way: list[bytes] = []
    for turn in range(3000):
        if turn < 2500 and len(under_way) < 8 and rng.random() < 0.6:
            under_way.append(many.body(0.0))
            for item in maps(under_way[-1]):
                assert item.get("ack", item["n"] - 1 if size == 1 else 0) <= heard[item["session"]]
        elif under_way:
            answers = []
            for item in maps(under_way.pop(0)):
                session, n = item["session"], item["n"]
                assert n > last[session], "a conflict"
                if n > last[session] + 1:
                    answers.append({"error": "gap", "session": session, "expected": last[session] + 1})
                elif rng.random() < 0.05:
                    answers.append({"error": "busy", "session": session})
                else:
                    last[session] = n
                    answers.append({"session": session, "t": n})
            many.take(body(*answers), 1.0)
            heard |= {answer["session"]: answer["t"] for answer in answers if "t" in answer}
    assert many.counted == sum(last.values()) > 300 * size, "it gets over a number that was refused"
    assert many.errors["busy"] > 10
    assert many.errors["gap"] > 10


def test_a_closed_loop_keeps_its_window_full_to_the_end() -> None:
    one = traffic(load(window=2))
    assert one.wake_at() == math.inf, "replies alone make room"
    for now in (3.0, 4.0):
        assert one.next(now, 9.0) == now
        one.body(now)
    assert one.next(5.0, 9.0) is None
    one.take(body({"session": "a", "t": 1}), 6.0)
    assert (one.next(8.99, 9.0), one.next(9.0, 9.0)) == (8.99, None)
    assert (one.late(9.0, found := Latencies()), found.counts.sum()) == (0, 0)


def test_an_open_loop_sends_what_is_due_and_nothing_else() -> None:
    one = traffic(load(rate=2.0))
    one.due = 10.0
    assert (one.next(9.9, 11.5), one.wake_at()) == (None, 10.0)
    assert (one.next(10.1, 11.5), one.wake_at()) == (10.0, 10.5), "a latency counts from when it was due"
    assert [one.next(20.0, 11.5) for _ in range(3)] == [10.5, 11.0, None], "what was due is not left out, however late it is"


def late(traffic: Traffic, end: float) -> list[float]:
    """The waits of what is late, to half a second."""
    found = Latencies()
    tokens = traffic.late(end, found)
    seconds = 2.0**-20 * 2 ** (np.repeat(np.arange(len(found.counts)), found.counts) / 128)
    assert tokens == len(seconds)
    return (np.round(2 * seconds) / 2).tolist()


def test_an_open_loop_that_is_behind() -> None:
    one = traffic(load(rate=2.0, window=2))
    one.due = 10.0
    for since in (10.0, 10.5):
        assert one.next(10.6, 13.0) == since
        one.body(since)
    assert (one.next(11.1, 13.0), one.wake_at()) == (None, math.inf)
    assert late(one, 13.0) == [0.5, 1.0, 1.5, 2.0]
    one.take(body({"session": "a", "t": 1}), 12.0)
    assert one.next(12.0, 13.0) == 11.0
    assert late(one, 13.0) == [0.5, 1.0, 1.5]
    assert late(one, 11.5) == late(one, 9.0) == []


def test_a_schedule_has_the_rate_in_all() -> None:
    assert load(clients=16, body=4, rate=1000.0).interval_s == 0.064
    assert load(clients=16, body=4).interval_s == 0
    assert (load(window=100, body=64).bodies, load(window=128, body=64).bodies, load(window=3).bodies) == (1, 2, 3)
