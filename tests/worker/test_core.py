"""The worker's core: the replies to every request, and the order of things."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rnnstream.engine.engine import Engine
from rnnstream.wire.limits import Limits
from rnnstream.worker.core import Core
from tests.engine.models import SPOILED, V, dense, network, relu

from .driving import Driver, codes, step

Drive = Callable[..., Driver]
A, B, C = b"aaaaa", b"bbbbb", b"ccccc"


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
    assert len(intake.waves.waiting) == len(driver.engine.table.names) <= 4
    assert (intake.order.held, intake.waves.closing, len(intake.waves._waves)) == ({}, set(), 1)


def test_an_engine_is_all_a_core_needs() -> None:
    core = Core(Engine(network()), worker="w", version="v", limits=Limits())
    assert core.handle([], [], 0.0) == []
    core.check()
