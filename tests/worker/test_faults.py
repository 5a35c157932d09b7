"""What is wrong with one request, or with the model, and what that does to the others: nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from rnnstream.wire.limits import Limits
from tests.engine.models import SPOILED, network, relu

from .driving import Driver, codes, pack, step
from .moody import Moody

Drive = Callable[..., Driver]
A, B, C = b"aaaaa", b"bbbbb", b"ccccc"


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
