"""The worker's core: the order of things, and what one request does to others."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rnnstream.engine.engine import Engine
from rnnstream.model.step import StepModel
from rnnstream.wire.limits import Limits
from rnnstream.worker.core import Core
from tests.engine.models import SPOILED, V, dense, network, relu

from .driving import Driver, codes, pack, step

Drive = Callable[..., Driver]
A, B, C = b"aaaaa", b"bbbbb", b"ccccc"


def hello(driver: Driver) -> dict[str, Any]:
    return driver.ask({"op": "hello"}, address=b"hello")[0]


# Answers --------------------------------------------------------------------------------------------------------------


def test_the_reply_to_an_ordinary_token(drive: Drive) -> None:
    for vocabulary in (False, True):
        model = network(vocabulary=vocabulary)
        driver, xs = drive(model), [3, 1, 4, 1, 5]
        ys = model.forward(xs)
        for t, x in enumerate(xs, 1):
            y = int(ys[t - 1].argmax())
            expected = {"session": "s", "t": t, "y": y, "p": float(ys[t - 1][y])}
            expected |= ({"label": f"w{y}"} if vocabulary else {}) | ({"opened": True} if t == 1 else {})
            assert driver.ask(step("s", f"w{x}" if vocabulary and t % 2 else x)) == [expected]


@pytest.mark.parametrize("head", ["linear", "bernoulli", "categorical"])
def test_the_replies_to_vectors(drive: Drive, head: str) -> None:
    model = dense(head)
    driver, xs = drive(model), [[1, 2.5, -3], [0, 0, 1e-3], [4, 5, 6]]
    ys = model.forward(xs)
    for t, x in enumerate(xs, 1):
        reply = driver.ask(step("s", np.array(x, "<f4").tobytes() if t == 2 else x, want="logits"))[0]
        opened, p = ["opened"] * (t == 1), ["p"] * (head == "categorical")
        assert list(reply) == ["session", "t", *opened, "y", *p, "logits"]
        y = ys[t - 1]
        assert reply["y"] == (int(y.argmax()) if head == "categorical" else y.tobytes())
        assert model.output.g2(np.frombuffer(reply["logits"], np.float32)[np.newaxis]).tobytes() == y.tobytes()


def test_hello(drive: Drive) -> None:
    model = network(vocabulary=True)
    reply = drive(model, limits=Limits(frame_requests=7, waiting=9)).ask({"op": "hello", "id": 5})[0]
    limits, told = reply.pop("limits"), reply.pop("model")
    assert reply == {"protocol": 1, "version": "v", "worker": "w", "id": 5}
    assert limits["frame_requests"] == 7
    assert limits["waiting"] == 9
    assert set(limits) == {"frame_bytes", "frame_requests", "waiting", "replies", "reply_bytes", "producers", "producer_s"}
    assert told == {
        "name": "test",
        "digest": model.digest,
        "exact": True,
        "numerics": model.numerics,
        "layers": model.layers,
        "state_size": 7,
        "surprisal": True,
        "vocabulary": True,
        "input": {"kind": "token", "size": V},
        "output": {"kind": "categorical", "size": V},
    }


def test_info_and_sessions(drive: Drive) -> None:
    model = network()
    driver = drive(model)
    driver.handle((A, [step("a", 1), step("b", 1), step("a", 2)]))
    driver.finish()
    (info,) = driver.ask({"op": "info", "session": "a", "id": "i"})
    assert info.pop("norm") == pytest.approx(np.linalg.norm(model.run([1, 2])))
    assert info == {"session": "a", "t": 2, "age_s": 2.0, "idle_s": 1.0, "producers": {}, "id": "i"}
    first = driver.ask({"op": "sessions", "limit": 1})[0]
    second = driver.ask({"op": "sessions", "limit": 1, "after": first["next"]})[0]
    assert sorted(first["sessions"] + second["sessions"]) == ["a", "b"]
    assert "next" not in second
    assert driver.ask({"op": "sessions", "prefix": "b"}) == [{"sessions": ["b"]}]


def test_an_id_comes_back_whatever_the_reply(drive: Drive) -> None:
    driver = drive(relu(), max_sessions=2)
    ids: list[Any] = ["", "é" * 32, b"\x00" * 64, 0, -1, 2**64 - 1]
    requests: list[dict[str, Any]] = [
        step("s", 1),
        step("s", 2),
        step("s", 2, want="probs", surprisal=True),
        {"op": "info", "session": "s"},
        step("s", 1, t=1),
        step("s", 99),
        step("s", SPOILED),
        step("s", 1, nonsense=1),
        {"op": "reset", "session": "s"},
        {"op": "close", "session": "s"},
        {"op": "close", "session": "s"},
        {"op": "hello"},
        {"op": "ping"},
        {"op": "sessions"},
        {"op": "nonsense"},
        step("other", 1),
        step("third", 1),
        step("fourth", 1),
    ]
    for id in ids:
        replies = driver.ask(*({**request, "id": id} for request in requests))
        assert [reply["id"] for reply in replies] == [id] * len(requests)
        driver.ask({"op": "reset", "session": "s"}, *({"op": "close", "session": name} for name in ("other", "third")))
    assert driver.ask(step("s", 1, id=[]), step("s", 1, id=True))[0].get("id") is None


@pytest.mark.parametrize("id", [0, 1, 127, 2**32, 2**64 - 1, -1, -(2**63)])
def test_an_ordinary_token_with_a_number_for_an_id(drive: Drive, id: int) -> None:
    driver = drive(relu())
    driver.ask(*(step(name, 1) for name in "abcd"))
    first = step("a", 1, id=id), step("b", SPOILED, id=id), step("c", 1), step("d", SPOILED)
    driver.handle(*((bytes([i]) * 5, [item]) for i, item in enumerate(first)), (B, [*first, *first]))
    driver.finish()
    alone = [driver.replies[bytes([i]) * 5][0][0] for i in range(4)]
    for replies, t in ((alone, 2), (driver.replies[B][0][:4], 3), (driver.replies[B][0][4:], 4)):
        assert codes(replies) == [t, "not_finite", t, "not_finite"]
        assert [reply.get("id", "none") for reply in replies] == [id, id, "none", "none"]
        assert [reply["session"] for reply in replies] == [*"abcd"]
        assert len({(reply["y"], reply["p"]) for reply in (replies[0], replies[2])}) == 1


# Order ----------------------------------------------------------------------------------------------------------------


def test_a_step_behind_a_close_is_judged_when_its_turn_comes(drive: Drive) -> None:
    driver = drive(network())
    driver.ask(step("s", 1))
    body = [
        step("s", 2),
        {"op": "close", "session": "s"},
        step("s", 3),
        step("s", 4, want="none"),
        {"op": "info", "session": "s"},
    ]
    replies = driver.ask(*body, {"op": "reset", "session": "s"}, step("s", 5))
    assert codes(replies) == [2, "?", "unknown_session", "unknown_session", "unknown_session", 0, 1]
    assert [reply["why"] for reply in replies[2:5]] == ["closed"] * 3
    assert driver.states() == {"s": (1, driver.engine.model.run([5]).tobytes())}


def test_tokens_of_other_bodies_behind_a_close_are_judged_too(drive: Drive) -> None:
    driver = drive(network())
    driver.ask(step("s", 1))
    driver.handle((A, [step("s", 2), step("s", 3), {"op": "close", "session": "s"}]), (B, [step("s", 4)]))
    driver.handle((C, [step("s", 5), step("s", 6)]), (B, [step("s", 7)]))
    driver.finish()
    assert codes(driver.replies[A][0]) == [2, 3, "?"]
    assert [codes(body) for body in driver.replies[B] + driver.replies[C]] == [["unknown_session"]] * 2 + [
        ["unknown_session"] * 2
    ]
    assert driver.states() == {}


def test_a_session_that_is_closed_and_reset_takes_the_short_way_again(drive: Drive) -> None:
    driver = drive(network())
    driver.ask(step("s", 1), {"op": "close", "session": "s"}, {"op": "reset", "session": "s"})
    driver.core.check()
    assert codes(driver.ask(step("s", 1), step("s", 2))) == [1, 2]


@pytest.mark.parametrize("second", [1, "surprisal"])
def test_a_step_behind_a_failed_opening_step_opens(drive: Drive, second: Any) -> None:
    model = relu()
    driver = drive(model)
    more = {"surprisal": True} if second == "surprisal" else {}
    first, then, last = driver.ask(step("s", SPOILED), step("s", 1, **more), step("s", 2))
    assert first["error"] == "not_finite"
    assert (then["t"], then["opened"]) == (1, True)
    assert (last["t"], "opened" in last) == (2, False)
    assert driver.states() == {"s": (2, model.run([1, 2]).tobytes())}


def test_what_waits_behind_a_failed_opening_step_finds_no_session(drive: Drive) -> None:
    driver = drive(relu())
    replies = driver.ask(step("s", SPOILED), {"op": "info", "session": "s"}, {"op": "close", "session": "s"}, step("s", 1, t=2))
    assert codes(replies) == ["not_finite", "unknown_session", "unknown_session", "conflict"] or codes(replies)[3] == 0
    assert [reply["why"] for reply in replies[1:3]] == ["never", "never"]
    assert (replies[3]["field"], replies[3]["t"]) == ("t", 0)
    assert driver.states() == {}


def test_a_reset_between_steps(drive: Drive) -> None:
    model = network()
    driver = drive(model)
    replies = driver.ask(step("s", 1), step("s", 2), {"op": "reset", "session": "s"}, step("s", 3), step("s", 4, t=2))
    assert codes(replies) == [1, 2, 0, 1, 2]
    assert replies[3]["y"] == int(model.forward([3])[0].argmax())
    assert driver.states() == {"s": (2, model.run([3, 4]).tobytes())}


@pytest.mark.parametrize("op", ["step", "reset", "close"])
def test_a_precondition_that_does_not_hold_changes_nothing(drive: Drive, op: str) -> None:
    driver = drive(network())
    driver.ask(step("s", 1), step("s", 2))
    before = driver.states()
    request = {"op": op, "session": "s"} | ({"x": 3} if op == "step" else {})
    for t in (0, 1, 2, 4, 2**64 - 1):
        (reply,) = driver.ask({**request, "t": t})
        assert (reply["error"], reply["field"], reply["t"]) == ("conflict", "t", 2)
        assert driver.states() == before
    assert "error" not in driver.ask({**request, "t": 3})[0]
    assert driver.states() != before


def test_requests_of_two_connections_to_one_session_are_applied_as_they_arrive(drive: Drive) -> None:
    model = network()
    driver = drive(model)
    driver.handle((A, [step("s", 1), step("s", 2)]), (B, [step("s", 3)]), ((A, b""), [step("s", 4, id=4), step("s", 5)]))
    driver.handle((B, [step("s", 6)]))
    driver.finish()
    assert [codes(body) for body in driver.replies[A] + driver.replies[A, b""]] == [[1, 2], [4, 5]]
    assert [codes(body) for body in driver.replies[B]] == [[3], [6]]
    assert driver.states() == {"s": (6, model.run([1, 2, 3, 4, 5, 6]).tobytes())}


def test_a_quick_answer_waits_for_the_slow_ones_of_its_connection_and_for_no_others(drive: Drive) -> None:
    driver = drive(network())
    driver.ask(step("t", 1))
    slow = [step("s", i % V) for i in range(20)]
    out = driver.handle((A, slow), (A, [{"op": "ping"}]), (B, [{"op": "ping"}]), ((A, b""), [step("t", 1)]), (A, b"\xc1"))
    assert [address for address, _ in out] == [B]
    driver.handle((C, [step("t", 1)]), (B, [step("t", 1)]))
    assert [len(driver.replies[peer]) for peer in (A, B, C)] == [0, 1, 1]
    driver.finish()
    assert [codes(body) for body in driver.replies[A]] == [list(range(1, 21)), ["?"], ["bad_message"]]
    assert [codes(body) for body in driver.replies[A, b""]] == [[2]]
    assert driver.calls < 30


def test_ordinary_tokens_before_and_behind_another_body_of_the_same_drain(drive: Drive) -> None:
    driver = drive(network())
    driver.ask(step("s", 1), step("t", 1))
    out = driver.handle(
        (A, [step("s", 1)]), (A, [{"op": "ping", "id": 1}]), (A, [step("t", 1)]), (A, [{"op": "ping", "id": 2}])
    )
    assert len(out) == 4  # and `handle` has seen to the order of what is unequal
    bodies = driver.replies[A]
    assert [(body[0].get("session"), body[0].get("id")) for body in bodies] == [("s", None), (None, 1), ("t", None), (None, 2)]


def test_a_session_with_much_to_say_delays_nobody_else(drive: Drive) -> None:
    driver = drive(network())
    driver.ask(step("little", 1), step("much", 1))
    driver.handle((A, [step("much", i % V) for i in range(256)]))
    for i in range(60):
        out = driver.handle((B, [step("little", i % V)]), (C, [step(f"new{i}", 1)]))
        assert sorted(address for address, _ in out) == [B, C]
    assert codes(body[0] for body in driver.replies[B]) == list(range(2, 62))
    driver.finish(256)
    assert codes(driver.replies[A][0]) == list(range(2, 258))


def test_waves_take_one_token_of_each_session(drive: Drive) -> None:
    driver = drive(network())
    driver.handle((A, [step(name, i) for i in range(5) for name in "abcdefgh"]))
    driver.finish(4)
    assert driver.calls == 5


# Bounds ---------------------------------------------------------------------------------------------------------------

SMALL = Limits(frame_requests=10, waiting=10)
KINDS: dict[str, dict[str, Any]] = {"ordinary": {}, "with more": {"id": 1}}


@pytest.mark.parametrize("kind", KINDS)
def test_a_body_that_would_make_a_queue_too_long_is_busy_as_one(drive: Drive, kind: str) -> None:
    driver, more = drive(network(), limits=SMALL), KINDS[kind]
    driver.ask(step("s", 1), step("t", 1))
    driver.handle((A, [step("s", 1, **more)] * 8))  # 7 wait behind the one that ran
    driver.handle((B, [step("t", 1), *[step("s", 2, **more)] * 4, step("t", 2)]))
    driver.handle((C, [step("s", 3, **more)] * 4))  # 6 waited when it came
    driver.finish()
    assert codes(driver.replies[A][0]) == list(range(2, 10))
    assert codes(driver.replies[B][0]) == [2, "busy", "busy", "busy", "busy", 3]
    assert codes(driver.replies[C][0]) == [10, 11, 12, 13]
    for reply in driver.replies[B][0][1:5]:
        assert reply["retry_after_ms"] > 0
        assert {key: reply[key] for key in more} == more
    assert driver.states()["s"] == (13, driver.engine.model.run([1] * 9 + [3] * 4).tobytes())


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_queue_takes_any_body(drive: Drive, kind: str) -> None:
    driver = drive(network(), limits=SMALL)
    for first in (1, 11):
        replies = driver.ask(*[step("s", 1, **KINDS[kind])] * 10)
        assert codes(replies) == list(range(first, first + 10))


@pytest.mark.parametrize(
    "refused",
    [step("s", 99), step("s", 1, want="nonsense"), {"op": "nonsense", "session": "s"}, step("s", True), {"session": "s"}],
)
def test_a_refused_request_does_not_hold_the_door_open_for_those_behind_it(drive: Drive, refused: dict[str, Any]) -> None:
    driver = drive(network(), limits=SMALL)
    driver.ask(step("s", 1))
    for peer in (A, B, C):
        driver.handle((peer, [refused, *[step("s", 1, id=1)] * 8]))
        assert driver.depth("s") <= SMALL.waiting
    driver.finish()
    assert codes(driver.replies[A][0])[1:] == list(range(2, 10))
    assert codes(driver.replies[B][0])[1:] == ["busy"] * 8


def test_a_busy_session_leaves_the_others_of_the_body_alone(drive: Drive) -> None:
    driver = drive(network(), limits=SMALL)
    driver.handle((A, [step("s", 1)] * 10))
    driver.handle((B, [step(name, 1) for name in "sabsc"]))
    driver.finish()
    assert codes(driver.replies[B][0]) == ["busy", 1, 1, "busy", 1]


@pytest.mark.parametrize("want", ["probs", "logits", 100])
def test_too_large_is_decided_before_anything_is_done(drive: Drive, want: str | int) -> None:
    layers = [{"kind": "onehot"}, {"kind": "rnn", "size": 3}, {"kind": "dense", "size": 2000}]
    driver = drive(network(layers=layers))
    limit = hello(driver)["limits"]["reply_bytes"]
    requests = [step(f"s{i}", 1, want=want, id="i" * 64) for i in range(500)]
    replies = driver.ask(*requests)
    assert len(pack(replies)) <= limit
    refused = [reply for reply in replies if "error" in reply]
    assert {(reply["error"], reply["limit"], reply["id"]) for reply in refused} == {("too_large", limit, "i" * 64)}
    names = {reply["session"] for reply in refused}
    assert set(driver.engine.sessions()) == {f"s{i}" for i in range(500)} - names
    assert 0 < len(names) < 500
    assert codes(driver.ask(*(step(name, 1) for name in names))) == [1] * len(names)


def test_no_reply_body_is_larger_than_hello_says(drive: Drive) -> None:
    driver = drive(network(vocabulary=True))
    limit = hello(driver)["limits"]["reply_bytes"]
    wide = "𝄞" * 50
    most = driver.limits.frame_requests
    names = [f"{i:04}".ljust(200, "n") for i in range(most)]
    driver.ask(*(step(name, 1) for name in names))
    long, id = "n" * 200, "𝄞" * 16
    bodies: list[list[dict[str, Any]]] = [
        [{"op": "hello", "id": id}] * most,
        [{"op": "sessions", "limit": 1000, "id": id}] * most,
        [{"op": "sessions", "id": id}] * most,
        [step(name, 1, id=id) for name in names],
        [step(name, 1, want=100, id=id, surprisal=True) for name in names],
        [step(name, 1, want="probs", id=id) for name in names],
        [step(long, wide * 10, id=id)] * most,
        [step(long, 1, id=id, **{wide * 4: 1})] * most,
        [step(long, 1, id=id, want=wide * 4)] * most,
        [{"op": wide * 4, "session": wide, "id": id}] * most,
        [{"op": "info", "session": wide, "id": id}] * most,
        [step(long, 1, t=2**63, id=id)] * most,
        [{"op": "ping", "k" * 400_000: 1}] * 2,
        [step(long, 1, want="w" * 400_000)] * 2,
        [step(long, 1, want=-(2**63)), *[{"op": "sessions", "limit": 1000}] * (most - 1)],
    ]
    for body in bodies:
        driver.handle((A, pack(body)))
        driver.finish()
        replies = driver.replies[A].pop()
        assert len(replies) == len(body)
        assert len(pack(replies)) <= limit, body[0]


@pytest.mark.parametrize("extreme", [-(2**63), -1, 2**64 - 1])
def test_what_waits_is_not_miscounted_for_a_request_that_is_refused(drive: Drive, extreme: int) -> None:
    driver = drive(network())
    driver.ask(step("s", 1))
    refused = [step("s", 1, want=extreme), *[{"op": "sessions", "limit": 1000}] * 500]
    driver.handle((A, [step("s", 1), step("s", 1), *refused]))
    assert not driver.replies[A]
    assert not driver.core.full
    assert 0 <= driver.core._intake.order.bytes <= 2 * driver.limits.reply_bytes
    driver.finish()
    assert driver.core._intake.order.bytes == 0
    assert codes(driver.replies[A][0])[:3] == [2, 3, "bad_request"]


def test_answers_that_wait_behind_others_are_counted_until_they_are_gone(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnnstream.worker.intake.MOST_HELD_BYTES", 5 << 20)
    driver = drive(network())
    driver.handle((A, [step("slow", 1)] * 50))
    for _ in range(40):
        if driver.core.full:
            break
        driver.handle((A, [{"op": "ping"}] * 512))
    assert driver.core.full
    assert driver.core.waiting
    driver.finish()
    assert not driver.core.full
    assert codes(driver.replies[A][0]) == list(range(1, 51))


def test_requests_that_wait_are_counted_until_they_are_done(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnnstream.worker.intake.MOST_WAITING", 100)
    driver = drive(network())
    driver.handle((A, [step("s", 1)] * 100))
    assert (driver.core.waiting, driver.core.full) == (99, False)
    driver.handle((B, [step("s", 1), step("t", 1, id=1), step("t", 1), step("t", 1)]))
    assert (driver.core.waiting, driver.core.full) == (101, True)
    driver.finish()
    assert (driver.core.waiting, driver.core.full) == (0, False)


def test_a_full_worker_opens_no_more_and_knows_what_it_knew(drive: Drive) -> None:
    driver = drive(network(), max_sessions=3)
    driver.ask(*(step(name, 1) for name in "abx"), {"op": "close", "session": "x"})
    driver.ask(step("c", 1))
    before = driver.states()
    new = [step("d", 1), step("e", 1, want="none"), {"op": "reset", "session": "f"}, {"op": "reset", "session": "x"}]
    assert codes(driver.ask(*new)) == ["full"] * 4
    assert driver.states() == before
    known = driver.ask(
        {"op": "info", "session": "d"}, {"op": "close", "session": "d"}, step("x", 1), {"op": "info", "session": "x"}
    )
    assert codes(known) == ["unknown_session"] * 4
    assert [reply["why"] for reply in known] == ["never", "never", "closed", "closed"]
    assert codes(driver.ask(step("a", 2), step("b", 2), step("c", 2))) == [2, 2, 2]
    driver.ask({"op": "close", "session": "a"})
    assert codes(driver.ask(step("d", 1))) == [1]


# What is wrong --------------------------------------------------------------------------------------------------------


def test_what_stood_before_garbage_is_applied_and_what_stands_behind_it_is_not(drive: Drive) -> None:
    model = network()
    driver = drive(model)
    for i, garbage in enumerate([b"\xc1", b"\x05", b"\x82\xa7session", b"\x81\x91\x01\x02", b"\xff" * 50]):
        name = f"s{i}"
        driver.handle((A, pack([step(name, 1), step(name, 2)]) + garbage + pack([step(name, 3)])), (A, garbage), (A, b""))
        driver.finish()
        assert [codes(body) for body in driver.replies.pop(A)] == [[1, 2, "bad_message"], ["bad_message"], ["bad_message"]]
        assert driver.states()[name] == (2, model.run([1, 2]).tobytes())


def test_maps_beyond_the_limit_of_a_body(drive: Drive) -> None:
    driver = drive(network(), limits=Limits(frame_requests=3))
    assert codes(driver.ask(*[step("s", 1)] * 5)) == [1, 2, 3, "bad_message"]
    assert driver.states()["s"][0] == 3


def test_a_wrong_request_in_the_middle_of_a_body_harms_no_other(drive: Drive) -> None:
    model = relu()
    driver = drive(model)
    wrong: list[Any] = [
        step("s", 99),
        step("s", -1),
        step("s", True),
        step("s", 1.0),
        step("s", None),
        step("s", "w1"),
        step("s", [1]),
        step("s", 1, want="?"),
        step("s", 1, n=1),
        step("s", 1, t=9),
        step("s", SPOILED),
        step("", 1),
        step("s" * 201, 1),
        {"session": "s"},
        {"x": 1},
        {},
        {"session": ["s"], "x": 1},
        {"session": {"s": 1}, "x": {}},
        {5: 1, "x": 1},
        {"op": "step", "session": "s", "x": 1, b"t": 1},
        {"op": "?"},
        {"session": "s", "x": 1, "t": [[[]]] * 1000},
    ]
    expected = ["bad_token"] * 2 + ["bad_request"] * 3 + ["bad_token"] + ["bad_request"] * 3 + ["conflict", "not_finite"]
    expected += ["bad_request"] * 11
    for request, code in zip(wrong, expected, strict=True):
        before = driver.states().get("s", (0, b""))[0]
        replies = driver.ask(step("s", 1), request, step("s", 2), request, step("other", 1))
        assert [reply.get("error") for reply in replies] == [None, code, None, code, None], request
        assert (replies[0]["t"], replies[2]["t"]) == (before + 1, before + 2)
    assert driver.states()["s"][1] == model.run([1, 2] * len(wrong)).tobytes()


def test_nesting_as_deep_as_messagepack_goes_is_the_requests_fault(drive: Drive, caplog: pytest.LogCaptureFixture) -> None:
    driver = drive(network())
    for depth in (10, 500, 900, 990, 1000, 1010, 1020, 1023, 1024, 1025, 5000):
        for key in ("x", "t", "want", "session", "op", "id", "nonsense"):
            body = b"\x83\xa7session\xa1s\xa1x\x01" + bytes([0xA0 + len(key)]) + key.encode() + b"\x91" * depth + b"\x01"
            driver.handle((A, body), (B, [step("t", 1)]))
            driver.finish()
            assert {reply["error"] for reply in driver.replies.pop(A)[0]} <= {"bad_request", "bad_message"}
    assert driver.states().keys() == {"t"}
    assert caplog.records == []


class Moody(StepModel):
    """A counter whose parts raise on demand.

    Attributes:
        mood: the part that raises when it sees token 3: "advance", "head", "features", or "".
    """

    name, digest, exact, numerics, layers = "moody", "", True, "", []
    dtype, state_size = np.dtype(np.float32), 1

    def __init__(self) -> None:
        twin = network()
        self.mood, self.input, self.output = "", twin.input, twin.output

    def initial_state(self) -> Any:
        return np.zeros(1, np.float32)

    def advance(self, states: Any, inputs: Any) -> Any:
        if self.mood == "advance" and (inputs == 3).any():
            raise OSError("no such luck")
        return states + 1, inputs[:, np.newaxis]

    def head(self, features: Any) -> Any:
        if self.mood == "head" and (features == 3).any():
            raise OSError("no such luck")
        return np.zeros((len(features), V), np.float32)

    def features(self, states: Any) -> Any:
        if self.mood == "features" and states.any():
            raise OSError("no such luck")
        return states


@pytest.mark.parametrize("mood", ["advance", "head", "features"])
def test_a_bug_in_a_step_is_told_to_everyone_in_the_wave_and_the_worker_goes_on(
    drive: Drive, caplog: pytest.LogCaptureFixture, mood: str
) -> None:
    model = Moody()
    driver = drive(model)
    driver.ask(*(step(f"s{i}", 1) for i in range(3)))
    before = driver.states()
    model.mood = mood
    bad = step("s1", 3, id="i") | ({"surprisal": True} if mood == "features" else {})
    with caplog.at_level(logging.CRITICAL + 1, "rnnstream.worker"):
        driver.handle((A, [step("s0", 1)]), (B, [bad, step("s2", 1), {"op": "reset", "session": "r"}]), (C, [step("new", 1)]))
        assert codes(driver.replies.pop(A)[0]) == ["internal"]
        assert codes(driver.replies.pop(C)[0]) == ["internal"]
        replies = driver.replies.pop(B)[0]
    assert codes(replies) == ["internal", "internal", 0]
    assert replies[0] == {"error": "internal", "message": replies[0]["message"], "session": "s1", "id": "i"}
    del before["s0"], before["s1"], before["s2"]
    assert {name: t for name, (t, _) in driver.states().items()} == {"s0": 1, "s1": 1, "s2": 1, "r": 0}
    model.mood = ""
    replies = driver.ask(step("s0", 3), step("s1", 3), step("new", 3))
    assert codes(replies) == [2, 2, 1]
    assert replies[2]["opened"]


@pytest.mark.parametrize("op", ["info", "close", "reset"])
def test_a_bug_in_another_operation_is_told_with_its_id(drive: Drive, monkeypatch: pytest.MonkeyPatch, op: str) -> None:
    driver = drive(network())
    driver.ask(step("s", 1))

    def fail(*arguments: Any) -> Any:
        raise OSError("no such luck")

    monkeypatch.setattr(driver.core._answers, "change", fail)
    (reply,) = driver.ask({"op": op, "session": "s", "id": b"\xff"})
    assert reply == {"error": "internal", "message": reply["message"], "session": "s", "id": b"\xff"}
    assert driver.states().keys() == {"s"}


def test_a_failing_model_fills_the_log_with_one_traceback_a_wave(drive: Drive, caplog: pytest.LogCaptureFixture) -> None:
    model = Moody()
    driver = drive(model)
    driver.ask(*(step(f"s{i}", 1) for i in range(50)))
    model.mood = "advance"
    driver.handle((A, [step(f"s{i}", 3) for i in range(50)]), (B, [step("t", 3, want="none")]))
    driver.finish()
    assert codes(driver.replies[A][0]) == ["internal"] * 50
    assert sum(record.exc_info is not None for record in caplog.records) == 1


# Long lives -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", [False, True])
def test_step_counts_beyond_32_bits(drive: Drive, vocabulary: bool) -> None:
    driver = drive(network(vocabulary=vocabulary))
    first = driver.ask(step("old", 1), step("young", 1), step("older", 1))
    table = driver.engine.table
    table.t[table.rows["old"]] = 2**32 - 3
    table.t[table.rows["older"]] = 2**40
    for i in range(1, 6):
        replies = driver.ask(step("old", 1), step("young", 1), step("older", 1), step("old", 1, want="none"))
        assert codes(replies) == [2**32 - 4 + 2 * i, 1 + i, 2**40 + i, 2**32 - 3 + 2 * i]
        assert [reply.keys() | {"opened"} for reply in replies[:3]] == [first[0].keys()] * 3
        assert len({(reply["y"], reply["p"]) for reply in replies[1:3]}) == 1


def test_a_core_takes_over_the_sessions_of_its_engine(drive: Drive) -> None:
    model = network()
    driver = drive(model)
    driver.engine.step([("a", 1), ("b", 2), ("gone", 3)])
    driver.engine.close("gone")
    driver.core = Core(driver.engine, worker="w", version="v", limits=driver.limits)
    driver.core.check()
    driver.handle((A, [step("a", 3)]), (B, [step("b", 4, id=1), step("new", 5)]), (C, [step("gone", 1)]))
    driver.finish()
    assert [codes(driver.replies[peer][0]) for peer in (A, B, C)] == [[2], [2, 1], ["unknown_session"]]
    assert driver.states() == {
        name: (len(xs), model.run(xs).tobytes()) for name, xs in {"a": [1, 3], "b": [2, 4], "new": [5]}.items()
    }


def test_sessions_that_come_and_go_leave_nothing_behind(drive: Drive) -> None:
    driver = drive(network())
    for i in range(300):
        body = [step(f"s{i}", 1), {"op": "info", "session": f"n{i}"}, {"op": "close", "session": f"s{i}"}, step(f"s{i}", 1)]
        driver.handle((f"{i:05}".encode(), body))
        driver.finish()
    intake = driver.core._intake
    assert len(intake._waiting) == len(intake.heads) == len(driver.engine.table.names) <= 4
    assert (intake.order.held, intake._closing, len(intake._waves)) == ({}, set(), 1)


def test_an_engine_is_all_a_core_needs() -> None:
    core = Core(Engine(network()), worker="w", version="v", limits=Limits())
    assert core.handle([], [], 0.0) == []
    core.check()
