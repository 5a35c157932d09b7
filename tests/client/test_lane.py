"""What the simulation reaches rarely: single turns of a session's numbering, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from rnnstream.client.call import Call
from rnnstream.client.core import Core
from rnnstream.client.lane import Lane
from rnnstream.errors import Busy, Conflict, Full, NoReply, RequestError, SessionLost, Stale
from rnnstream.wire import replies, requests

from .toy import Counting


def a_core() -> Core:
    return Core("tcp://toy:1", 10.0, "me")


def maps_of(bodies: list[bytes]) -> list[dict[str, Any]]:
    return [item for body in bodies for item in requests.decode(body, 1000)[0]]


def numbers(bodies: list[bytes]) -> list[tuple[str, int]]:
    return [(item["producer"], item["n"]) for item in maps_of(bodies)]


def said(core: Core, id: int, *maps: dict[str, Any], now: float = 0.0) -> None:
    core.received(b"".join(replies.encode(item | ({} if place else {"id": id})) for place, item in enumerate(maps)), now)
    core.check()


def an_error(code: str, **keys: Any) -> dict[str, Any]:
    return {"error": code, "message": f"it is {code}", **keys}


def test_ack_is_sent_where_it_says_more_than_its_absence() -> None:
    core, worker = a_core(), Counting()
    for x in (1, 2):
        core.step("s", x)
        core.received(worker.answer(core.outgoing(0.0)[0]), 0.0)
    assert [item.get("ack") for item in worker.steps()] == [None, None]
    core.step("s", 3)
    core.step("s", 4)
    core.ask([{"session": "s", "x": 5}, {"session": "s", "x": 6}], dict)
    assert [item.get("ack") for item in maps_of(core.outgoing(0.0))] == [None, 2, 2, None]


def test_numbers_are_those_of_a_session() -> None:
    core = a_core()
    for name in ("a", "b", "a"):
        core.step(name, 1)
    core.info("a")
    core.change("reset", "b")
    bodies = core.outgoing(0.0)
    assert [(item["session"], item.get("n")) for item in maps_of(bodies)] == [
        ("a", 1),
        ("a", 2),
        ("a", None),
        ("b", 1),
        ("b", 2),
    ]


def test_the_number_of_what_was_refused_is_the_next_ones() -> None:
    core = a_core()
    refused, behind = core.step("s", 13), core.step("s", 2)
    core.outgoing(0.0)
    said(core, 1, an_error("bad_token"))
    core.step("s", 3)
    assert core.outgoing(0.0) == [], "before what is under way has come back, nothing is sent"
    said(core, 2, an_error("gap", expected=1))
    assert refused.done
    assert not behind.done
    assert numbers(core.outgoing(0.0)) == [("me", 1), ("me", 2)]


def test_a_number_that_may_yet_count_is_not_given_again() -> None:
    core = a_core()
    core.step("s", 1)
    core.outgoing(0.0)
    core.expire(0.25)
    [body] = core.outgoing(0.25)
    assert numbers([body]) == [("me", 1)]
    said(core, 2, an_error("full"))
    core.step("s", 2)
    assert numbers(core.outgoing(0.3)) == [("me.1", 1)]


def test_behind_such_a_number_nothing_is_sent_twice() -> None:
    core = a_core()
    refused, behind, bad = core.step("s", 1), core.step("s", 2), core.step("t", 13)
    after_bad = core.step("t", 2)
    core.outgoing(0.0)
    core.expire(0.25)
    core.outgoing(0.25)
    said(core, 5, an_error("full"))
    said(core, 6, an_error("gap", expected=1))
    with pytest.raises(Full):
        refused.result()
    with pytest.raises(NoReply, match="refused"):
        behind.result()
    said(core, 7, an_error("bad_token"))
    said(core, 8, an_error("gap", expected=1))
    assert bad.done
    assert not after_bad.done
    assert numbers(core.outgoing(0.3)) == [("me.1", 1)], "a bad token stays one"


def test_what_was_let_go_is_not_sent_again_and_keeps_its_number() -> None:
    core = a_core()
    core.give_up(core.step("never sent", 1))
    kept, gone = core.step("s", 1), core.step("s", 2)
    core.outgoing(0.0)
    core.give_up(gone)
    core.expire(0.25)
    assert numbers(core.outgoing(0.25)) == [("me", 1)]
    after = core.step("s", 3)
    assert core.outgoing(0.3) == [], "one producer id at a time"
    said(core, 3, {"t": 1})
    assert kept.done
    assert numbers(core.outgoing(0.3)) == [("me.1", 1)]
    said(core, 4, {"t": 3})
    assert after.done


def test_what_was_let_go_is_sent_again_where_something_behind_needs_it() -> None:
    core = a_core()
    core.step("s", 1)
    gone = core.step("s", 2)
    core.step("s", 3)
    core.outgoing(0.0)
    core.give_up(gone)
    core.expire(0.25)
    assert numbers(core.outgoing(0.25)) == [("me", 1), ("me", 2), ("me", 3)]


def test_a_busy_session_waits_and_no_other() -> None:
    core = a_core()
    first, second = core.step("s", 1), core.step("s", 2)
    core.outgoing(0.0)
    said(core, 1, an_error("busy", retry_after_ms=100))
    said(core, 2, an_error("gap", expected=1))
    core.step("t", 1)
    assert [item["session"] for item in maps_of(core.outgoing(0.05))] == ["t"]
    said(core, 3, {"t": 1}, now=0.05)
    assert core.deadline() == pytest.approx(0.1)
    core.expire(0.1)
    assert numbers(core.outgoing(0.1)) == [("me", 1), ("me", 2)]
    said(core, 4, an_error("busy", retry_after_ms=60_000), now=0.2)
    said(core, 5, an_error("gap", expected=1), now=0.2)
    assert core.expire(10.0) == [first, second]
    for call in (first, second):
        with pytest.raises(Busy, match="it is busy"):
            call.result()
    core.check()


def test_a_body_that_was_kept_in_part_is_sent_again_whole() -> None:
    core, worker = a_core(), Counting()
    call = core.ask([{"session": "s", "x": x} for x in (1, 2)], dict)
    [body] = core.outgoing(0.0)
    worker.answer(body)
    said(core, 1, {"t": 1}, an_error("store_error", retry_after_ms=1))
    core.expire(0.01)
    [again] = core.outgoing(0.01)
    assert [item.get("ack") for item in maps_of([again])] == [0, None]
    assert core.received(worker.answer(again), 0.02) == [call]
    assert [reply["t"] for reply in call.replies] == [1, 2]


def test_a_worker_that_has_forgotten_is_found_out_before_anything_counts() -> None:
    core, worker = a_core(), Counting()
    core.step("s", 1)
    core.received(worker.answer(core.outgoing(0.0)[0]), 0.0)
    fresh = Counting()
    step, behind, reset = core.step("s", 2), core.step("s", 3), core.change("reset", "s")
    for body in core.outgoing(0.0):
        core.received(fresh.answer(body), 0.0)
    for call in (step, behind):
        with pytest.raises(SessionLost, match="no longer knows what this client sent to s") as lost:
            call.result()
        assert not lost.value.counted
    assert fresh.ts == {}
    [body] = core.outgoing(0.0)
    assert core.received(fresh.answer(body), 0.0) == [reset], "which needs no state, and so goes on"
    after = core.step("s", 4)
    core.received(fresh.answer(core.outgoing(0.0)[0]), 0.0)
    assert after.result().t == 1


def test_a_session_that_a_token_opens_anew_is_never_silent() -> None:
    core, worker = a_core(), Counting()
    core.step("s", 1)
    core.received(worker.answer(core.outgoing(0.0)[0]), 0.0)
    core.give_up(core.step("s", 2))
    gone = core.step("s", 2)
    core.outgoing(0.0)
    core.give_up(gone)
    core.expire(0.25)
    call = core.ask([{"session": "s", "x": 3}, {"session": "s", "x": 4}], dict)
    core.received(Counting().answer(core.outgoing(0.3)[0]), 0.3)
    with pytest.raises(SessionLost, match="opened it anew with this token") as lost:
        call.result()
    assert lost.value.counted
    after = core.step("s", 5)
    core.outgoing(0.3)
    said(core, 4, {"t": 3, "opened": True})
    assert after.result().opened, "it is said once"


def test_a_copy_is_expected_to_be_there() -> None:
    core, worker = a_core(), Counting()
    core.step("s", 1)
    fork = core.fork("s", "copy")
    for body in core.outgoing(0.0):
        core.received(worker.answer(body), 0.0)
    fork.result()
    call = core.step("copy", 2)
    core.received(Counting().answer(core.outgoing(0.0)[0]), 0.0)
    with pytest.raises(SessionLost):
        call.result()


@pytest.mark.parametrize(
    ("error", "kind"),
    [(an_error("stale", last=1), Stale), (an_error("conflict", field="n"), Conflict), (an_error("odd"), RequestError)],
)
def test_errors_of_numbering_reach_the_caller(error: dict[str, Any], kind: type[Exception]) -> None:
    core = a_core()
    call = core.step("s", 1)
    core.outgoing(0.0)
    said(core, 1, error)
    with pytest.raises(kind):
        call.result()
    core.step("s", 2)
    expected = {"stale": ("me", 2), "conflict": ("me.1", 1), "odd": ("me", 1)}
    assert numbers(core.outgoing(0.0)) == [expected[error["error"]]]


def test_no_more_numbers_are_unsettled_than_replies_are_kept() -> None:
    core, worker = a_core(), Counting()
    for x in range(14, 400):
        core.step("s", x)
    bodies = core.outgoing(0.0)
    assert len(bodies) == 256
    core.received(worker.answer(bodies[0]), 0.0)
    assert len(core.outgoing(0.0)) == 1


def test_a_question_behind_a_change_is_answered_behind_it() -> None:
    core, worker = a_core(), Counting()
    core.step("s", 1)
    info = core.info("s")
    bodies = core.outgoing(0.0)
    worker.answer(bodies[0])
    assert core.received(worker.answer(bodies[1]), 0.0) == []
    for body in core.outgoing(0.0):
        core.received(worker.answer(body), 0.0)
    assert info.result()["t"] == 1


def test_sessions_that_are_idle_are_forgotten_and_come_back_under_a_fresh_producer_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnnstream.client.lanes.LANES", 3)
    core, worker = a_core(), Counting()
    for name in ("a", "b", "c", "d", "a"):
        core.step(name, 1)
        core.received(worker.answer(core.outgoing(0.0)[0]), 0.0)
        core.check()
    assert len(core._lanes) == 3
    ids = [item["producer"] for item in worker.steps() if item["session"] == "a"]
    assert len(set(ids)) == 2
    assert worker.ts["a"] == 2


def test_lanes_in_use_are_looked_at_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnnstream.client.lanes.LANES", 40)
    looked: list[str | None] = []
    idle = Lane.idle.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(Lane, "idle", property(lambda lane: looked.append(lane.name) or idle(lane)))  # type: ignore[func-returns-value]
    core, worker = a_core(), Counting()
    calls = [core.step(f"s{number}", 1) for number in range(40)]
    assert looked == []
    core.step("more", 1)
    assert looked == [f"s{number}" for number in range(16)], "those that were made first"
    assert len(core._lanes) == 41, "none was idle"
    for body in core.outgoing(0.0)[30:40]:
        core.received(worker.answer(body), 0.0)
    assert calls[30].done
    for name in "abc":
        core.step(name, 1)
    assert len(core._lanes) == 40, "the next time those behind were looked at"
    core.check()


def test_a_pause_is_never_without_end_or_length() -> None:
    for wait_ms in (0, -5, None, "1", float("nan"), float("inf")):
        core = a_core()
        core.step("s", 1)
        core.outgoing(0.0)
        said(core, 1, an_error("busy", retry_after_ms=wait_ms))
        assert core.outgoing(0.0) == []
        assert 0.001 <= (core.deadline() or 0.0) <= 0.05


def test_a_refusal_is_over_when_a_question_is_answered() -> None:
    core = a_core()
    peek = core.peek("s", [1], "none", False)
    core.outgoing(0.0)
    said(core, 1, an_error("busy", retry_after_ms=1))
    core.expire(0.001)
    core.outgoing(0.001)
    said(core, 2, {"t": 1, "ys": [{}]})
    assert peek.done
    assert core._lanes["s"].refusal is None


@pytest.mark.parametrize("under_way", [False, True])
def test_a_session_that_was_opened_anew_for_nobody_is_news_to_the_next(under_way: bool) -> None:
    core, worker = a_core(), Counting()

    def go(call: Call[Any]) -> Call[Any]:
        for body in core.outgoing(0.0):
            core.received(worker.answer(body), 0.0)
        return call

    go(core.step("s", 1))
    core.step("s", 2)  # lost and let go: what follows comes under a fresh producer id
    core.give_up(next(iter(core._pending)))
    gone = core.step("s", 2)
    core.outgoing(0.0)
    core.give_up(gone)
    core.expire(0.25)
    worker = Counting()
    cancelled = core.step("s", 3)
    behind = core.step("s", 4) if under_way else None
    bodies = core.outgoing(0.3)
    core.give_up(cancelled)
    for body in bodies:
        core.received(worker.answer(body), 0.3)
    go(core.info("s")).result()
    with pytest.raises(SessionLost, match="opened it anew with an earlier token; this request counts behind it") as lost:
        (behind or go(core.step("s", 4))).result()
    assert lost.value.counted
    assert go(core.step("s", 5)).result().t == 3, "it is said once"


def test_it_is_no_news_to_who_starts_over() -> None:
    core, worker = a_core(), Counting()
    core._lanes.lane("s").expect()
    cancelled = core.step("s", 1)
    bodies = core.outgoing(0.0)
    core.give_up(cancelled)
    for body in bodies:
        core.received(worker.answer(body), 0.0)
    core.change("reset", "s")
    after = core.step("s", 2)
    for body in core.outgoing(0.0):
        core.received(worker.answer(body), 0.0)
    assert after.result().t == 1
