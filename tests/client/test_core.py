from __future__ import annotations

from typing import Any

import pytest

from rnnstream.client.call import Call
from rnnstream.client.core import Core
from rnnstream.errors import BadToken, ConnectionFailed, Denied, NoReply, ProtocolError, RequestError, UnknownSession
from rnnstream.names import Owned
from rnnstream.wire import replies

from .toy import Counting


def a_core() -> Core:
    return Core("tcp://toy:1", 10.0, "me")


def sent(core: Core, now: float = 0.0) -> bytes:
    [body] = core.outgoing(now)
    return body


def test_a_call_is_sent_once_and_answered() -> None:
    core, worker = a_core(), Counting()
    call = core.step("s", 7, want=2, surprisal=True, t=1)
    [body] = core.outgoing(5.0)
    assert core.outgoing(5.0) == []
    assert core.deadline() == 5.25, "patience ends first"
    assert core.received(worker.answer(body), 0.0) == [call]
    assert worker.bodies == [
        [{"session": "s", "want": 2, "surprisal": True, "x": 7, "t": 1, "producer": "me", "n": 1, "id": 1}]
    ]
    prediction = call.result()
    assert (prediction.t, prediction.y, prediction.surprisal, prediction.opened) == (1, 7, 0.5, True)
    assert core.deadline() is None
    assert not core.take_renewal()
    core.check()


def test_defaults_are_not_sent() -> None:
    core, worker = a_core(), Counting()
    core.step("s", 7)
    worker.answer(sent(core))
    assert worker.bodies == [[{"session": "s", "x": 7, "producer": "me", "n": 1, "id": 1}]]


def test_an_error_map_becomes_its_exception() -> None:
    core, worker = a_core(), Counting()
    call = core.step("s", 13)
    core.received(worker.answer(sent(core)), 0.0)
    with pytest.raises(BadToken, match="not with us") as caught:
        call.result()
    assert caught.value.field == "x"


def test_the_error_of_a_newer_worker_is_a_request_error() -> None:
    core = a_core()
    call = core.ping()
    core.outgoing(0.0)
    core.received(replies.encode({"error": "tired", "message": "zzz", "id": 1}), 0.0)
    with pytest.raises(RequestError, match="zzz") as caught:
        call.result()
    assert caught.value.code == "tired"


def test_a_reply_to_a_later_body_says_that_the_earlier_ones_were_lost() -> None:
    core, worker = a_core(), Counting()
    first, second, third = (core.step(name, 7) for name in "abc")
    bodies = core.outgoing(0.0)
    assert core.received(worker.answer(bodies[1]), 0.1) == [second]
    assert not core.take_renewal(), "libzmq has connected again by itself"
    core.check()
    [again] = core.outgoing(0.1)
    assert core.received(worker.answer(bodies[2]), 0.2) == [third]
    assert core.received(worker.answer(again), 0.2) == [first]
    assert [item["id"] for item in worker.steps()] == [2, 3, 4], "ids ascend"
    assert first.result().t == 1


def test_after_a_loss_hello_is_asked_again() -> None:
    core, worker = a_core(), Counting()
    hello = core.ask_hello()
    core.received(worker.answer(sent(core)), 0.0)
    hello.result()
    assert core.hello is not None
    core.step("s", 1)
    core.step("s", 2)
    core.received(worker.answer(core.outgoing(0.0)[1]), 0.0)
    assert core.hello is None


def silence(core: Core, until: float) -> tuple[list[Call[Any]], list[bytes]]:
    """Nothing comes until then: the calls that were given up, and the bodies that were sent."""
    done: list[Call[Any]] = []
    bodies: list[bytes] = []
    while (due := core.deadline()) is not None and due <= until:
        done += core.expire(due)
        bodies += core.outgoing(due)
        core.check()
    return done, bodies


def test_a_timeout_fails_a_call_and_no_other() -> None:
    core = a_core()
    first = core.ping()
    core.outgoing(0.0)
    assert silence(core, 4.0)[0] == []
    second = core.step("s", 1)
    core.outgoing(4.0)
    assert silence(core, 9.99)[0] == []
    core.take_renewal()
    assert core.expire(10.0) == [first]
    with pytest.raises(NoReply, match=r"Nobody has answered at tcp://toy:1 within 10 s; is a worker running there\?$"):
        first.result()
    assert not second.done
    assert core.take_renewal(), "what lies unsent in the socket must not count later"
    assert not core.take_renewal()
    assert len(core.outgoing(10.0)) == 1
    assert silence(core, 14.0)[0] == [second]
    with pytest.raises(NoReply, match=r"not sent any more.*may still count: the session's info tells its t"):
        second.result()
    assert core.deadline() is None
    core.check()


def test_what_the_transport_knows_is_told_until_something_is_heard() -> None:
    core, worker = a_core(), Counting()
    early = core.ping()
    core.outgoing(0.0)
    core.expire(0.25, "it rains")
    while not early.done:
        core.expire(core.deadline() or 0.0)
        core.outgoing(1.0)
    with pytest.raises(NoReply, match=r"^No reply from tcp://toy:1 within 10 s: it rains\.$"):
        early.result()
    call, later = core.ping(), core.step("s", 1)
    body, _ = core.outgoing(11.0)
    assert core.received(worker.answer(body), 11.5) == [call]
    while not later.done:
        core.expire(core.deadline() or 0.0)
        core.outgoing(12.0)
    with pytest.raises(NoReply, match=r"^No reply from tcp://toy:1 within 10 s\. The request is not sent any more"):
        later.result()


ALICES, NOBODYS = Owned("A" * 40, "s"), Owned("", "s")


def test_what_is_said_to_somebody_elses_session_has_its_owner_and_no_number() -> None:
    core, worker = a_core(), Counting()
    worker.ts["s"] = 1
    worker.others = {ALICES: 7, NOBODYS: 8}
    calls: list[Call[Any]] = [core.step("s", 5)]
    calls += [core.info(ALICES), core.change("close", ALICES), core.info(NOBODYS), core.change("close", "s")]
    for body in core.outgoing(0.0):
        core.received(worker.answer(body), 0.0)
    assert [body[0] for body in worker.bodies] == [
        {"session": "s", "x": 5, "producer": "me", "n": 1, "id": 1},
        {"op": "close", "session": "s", "producer": "me", "n": 2, "ack": 0, "id": 2},
        {"op": "info", "session": "s", "owner": "A" * 40, "id": 3},
        {"op": "close", "session": "s", "owner": "A" * 40, "id": 4},
        {"op": "info", "session": "s", "owner": "", "id": 5},
    ]
    assert [call.result() for call in calls[1:]] == [{"session": "s", "t": 7}, None, {"session": "s", "t": 8}, None]
    assert worker.others == {NOBODYS: 8}
    core.check()


def test_to_close_somebody_elses_session_is_no_news_of_ones_own() -> None:
    core, worker = a_core(), Counting()
    worker.others = {ALICES: 7}
    for ask in (lambda: core.step("s", 5), lambda: core.change("close", ALICES), lambda: core.step("s", 6)):
        call: Call[Any] = ask()
        core.received(worker.answer(sent(core)), 0.0)
        call.result()
    assert worker.applied == {"s": [5, 6]}
    assert [item["n"] for item in worker.steps()] == [1, 2]


def test_a_close_of_somebody_elses_session_is_sent_again_and_may_find_it_closed() -> None:
    core, worker = a_core(), Counting()
    worker.others = {ALICES: 7}
    call, behind = core.change("close", ALICES), core.info(ALICES)
    bodies = core.outgoing(0.0)
    worker.answer(bodies[0])
    assert core.expire(0.25) == []
    for body in core.outgoing(0.25):
        core.received(worker.answer(body), 0.3)
    for done in (call, behind):
        with pytest.raises(UnknownSession) as caught:
            done.result()
        assert caught.value.why == "closed"
    core.check()


def test_a_close_of_somebody_elses_session_that_is_given_up_may_still_count() -> None:
    core = a_core()
    call = core.change("close", ALICES)
    core.outgoing(0.0)
    silence(core, 20.0)
    with pytest.raises(NoReply, match="it may still count"):
        call.result()


def test_other_operations_on_somebody_elses_session_are_refused_before_they_are_sent() -> None:
    core, worker = a_core(), Counting()
    for ask in (
        lambda: core.step(ALICES, 5),
        lambda: core.snapshot(ALICES),
        lambda: core.fork(ALICES, "t"),
        lambda: core.peek(NOBODYS, [1], 1, True),
        lambda: core.change("reset", ALICES),
        lambda: core.change("restore", NOBODYS, state=b"1"),
    ):
        with pytest.raises(
            ValueError, match="'s' is somebody else's session: an admin has its info and close, and nothing else"
        ):
            ask()
    assert core.outgoing(0.0) == []
    denied = core.info(ALICES)
    core.received(worker.answer(sent(core)), 0.0)
    with pytest.raises(Denied, match="no admin's"):
        denied.result()


def test_a_silent_connection_is_made_anew_with_growing_patience() -> None:
    core, worker = a_core(), Counting()
    call = core.step("s", 1)
    core.outgoing(0.0)
    dues = []
    for _ in range(5):
        due = core.deadline() or 0.0
        dues.append(due)
        assert core.expire(due - 0.001) == []
        assert core.expire(due) == []
        assert core.take_renewal()
        [body] = core.outgoing(due)
    assert dues == [0.25, 0.75, 1.75, 3.75, 7.75]
    assert core.received(worker.answer(body), 8.0) == [call]
    core.ping()
    core.outgoing(8.0)
    assert core.deadline() == 8.25, "it begins anew when something has come"


def test_patience_grows_with_the_round_trip() -> None:
    core, worker = a_core(), Counting()
    for start in range(0, 100, 2):
        core.ping()
        core.received(worker.answer(sent(core, start)), start + 1.0)
    core.ping()
    core.outgoing(100.0)
    assert core.deadline() == pytest.approx(103.0, abs=0.05)
    slow = Core("tcp://toy:1", 1.0, "me")
    slow._patience.measured(1000.0)
    slow.ping()
    slow.outgoing(0.0)
    assert slow.deadline() == 0.5, "it leaves time for another try"


def test_time_in_which_nobody_looked_is_no_timeout() -> None:
    core, worker = a_core(), Counting()
    call = core.step("s", 1)
    core.outgoing(0.0)
    assert core.expire(1000.0) == []
    assert core.take_renewal()
    assert core.received(worker.answer(sent(core, 1000.0)), 1000.1) == [call]


def test_a_timeout_names_the_size_of_a_body_that_may_have_been_cut_off() -> None:
    core = a_core()
    call = core.step("s", bytes(2 << 20))
    core.outgoing(0.0)
    while not call.done:
        core.expire(core.deadline() or 0.0)
        core.outgoing(1.0)
    with pytest.raises(NoReply, match=r"had 20971\d\d bytes.*frame_bytes"):
        call.result()


def test_a_late_reply_is_dropped() -> None:
    core, worker = a_core(), Counting()
    call = core.step("s", 1)
    late = worker.answer(sent(core))
    core.expire(1.0)
    assert core.take_renewal()
    body = sent(core, 1.0)
    assert core.received(late, 1.0) == []
    assert core.received(worker.answer(body), 1.0) == [call]
    assert core.received(worker.answer(body), 1.0) == [], "and so is a repeated one"
    assert not core.take_renewal()
    assert call.replies[0]["again"] is True
    assert call.result().t == 1


def test_what_is_given_up_is_not_sent_or_its_reply_is_dropped() -> None:
    core, worker = a_core(), Counting()
    given_up = core.step("s", 1)
    body = sent(core)
    unsent = core.step("s", 2)
    core.give_up(given_up)
    core.give_up(unsent)
    core.give_up(unsent)
    assert core.outgoing(0.0) == []
    call = core.step("s", 3)
    core.received(worker.answer(body), 0.0)
    core.received(worker.answer(sent(core)), 0.0)
    assert call.result().t == 2
    core.check()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x01",
        b"HTTP/1.1 400 Bad Request",
        replies.encode({"ok": True}),
        replies.encode({"ok": True, "id": 0}),
        replies.encode({"ok": True, "id": 3}),
        replies.encode({"ok": True, "id": "1"}),
        replies.encode({"ok": True, "id": True}),
        replies.encode({"ok": True, "id": 1}) * 2,
    ],
)
def test_what_is_not_this_protocol_fails_all_in_flight(body: bytes) -> None:
    core = a_core()
    calls: list[Call[Any]] = [core.ping(), core.step("s", 1)]
    core.outgoing(0.0)
    assert core.received(body, 0.0) == calls
    errors = []
    for call in calls:
        with pytest.raises(ProtocolError, match=r"worker|requests") as caught:
            call.result()
        errors.append(caught.value)
    assert errors[0] is not errors[1]
    assert core.take_renewal()
    core.check()


def test_a_body_that_was_read_in_part_is_answered_in_full() -> None:
    core = a_core()
    call = core.ask([{"session": "s", "x": x} for x in range(4)], dict)
    core.outgoing(0.0)
    end = {"error": "bad_message", "message": "too deep"}
    core.received(replies.encode({"t": 1, "id": 1}) + replies.encode(end), 0.0)
    assert call.replies == [{"t": 1, "id": 1}, end, end, end]


def test_a_body_whose_id_could_not_be_read_answers_the_oldest() -> None:
    core = a_core()
    call, other = core.step("s", 1), core.ping()
    core.outgoing(0.0)
    assert core.received(replies.encode({"error": "bad_message", "message": "what?"}), 0.0) == [call]
    assert not other.done


def test_hello_of_another_version_is_refused() -> None:
    core = a_core()
    call = core.ask_hello()
    core.outgoing(0.0)
    core.received(replies.encode({"protocol": 2, "id": 1}), 0.0)
    with pytest.raises(ProtocolError, match="speaks protocol 2, this client 1"):
        call.result()
    assert core.hello is None


def test_a_value_that_cannot_be_written_leaves_nothing_behind() -> None:
    core = a_core()
    with pytest.raises(TypeError):
        core.step("s", 1, want=object())  # type: ignore[arg-type]
    with pytest.raises(BadToken):
        core.step("s", object())
    assert core.outgoing(0.0) == []
    core.check()


def test_a_closed_core_fails_what_is_under_way_and_takes_no_more() -> None:
    core = a_core()
    in_flight = core.ping()
    core.outgoing(0.0)
    unsent = core.ping()
    assert core.close() == [in_flight, unsent]
    assert core.close() == []
    for call in (in_flight, unsent):
        with pytest.raises(ConnectionFailed, match="closed"):
            call.result()
    with pytest.raises(RuntimeError, match="closed"):
        core.ping()


def a_hello(core: Core, **changes: Any) -> Call[Any]:
    """The answer to a hello, with these limits or sizes changed."""
    call = core.ask_hello()
    core.outgoing(0.0)
    limits = {"frame_bytes": 1 << 20, "frame_requests": 512, "waiting": 1024, "reply_bytes": 1 << 20, "replies": 512}
    sizes = {side: {"size": changes.get(side, 5)} for side in ("input", "output")}
    limits.update({key: value for key, value in changes.items() if key in limits})
    core.received(replies.encode({"protocol": 1, "limits": limits, "model": sizes, "id": core._sent}), 0.0)
    return call


@pytest.mark.parametrize("key", ["frame_bytes", "frame_requests", "waiting", "reply_bytes", "replies", "input", "output"])
@pytest.mark.parametrize("value", [float("inf"), 100.0, 0, -1, True, "512", None])
def test_a_limit_that_is_none_is_refused_when_hello_is_read(key: str, value: Any) -> None:
    core = a_core()
    with pytest.raises(ProtocolError, match=rf"says hello with \S*{key}\S* {value!r}; it is an int"):
        a_hello(core, **{key: value}).result()
    assert core.hello is None
    core.step("s", 1)
    assert len(core.outgoing(0.0)) == 1
    a_hello(core).result()
    assert core.hello is not None


@pytest.mark.parametrize("reply", [{}, {"limits": 3}, {"limits": {}, "model": {}}, {"limits": None, "model": 1}])
def test_a_hello_without_limits_is_refused(reply: dict[str, Any]) -> None:
    core = a_core()
    call = core.ask_hello()
    core.outgoing(0.0)
    core.received(replies.encode({"protocol": 1, "id": 1, **reply}), 0.0)
    with pytest.raises(ProtocolError, match="hello without its limits or its model"):
        call.result()


@pytest.mark.parametrize("latency_s", [0.6, 2.0])
def test_a_slow_worker_is_soon_waited_for(latency_s: float) -> None:
    """Its replies are those to calls that were sent several times: each says how long its last sending took."""
    core, worker, now = a_core(), Counting(), 0.0
    sends = []
    for x in range(20, 35):
        call = core.step("s", x)
        bodies = core.outgoing(now)
        while not call.done:
            due = now + latency_s
            while (core.deadline() or now) < due:
                now = core.deadline() or now
                core.expire(now)
                bodies, due = core.outgoing(now), now + latency_s
            now = due
            core.received(worker.answer(bodies[0]), now)
        sends.append(call.sends)
    assert sends[0] > 1
    assert sends[-8:] == [1] * 8


def test_what_is_never_sent_leaves_nothing_behind() -> None:
    """Where there is no socket to send over, `outgoing` is not asked."""
    core = a_core()
    for _ in range(3):
        core.give_up(core.step("s", 1))
        core.give_up(core.ping())
    assert not core._new
    assert not core._pending
    assert all(lane.idle for lane in core._lanes.values())
    core.outgoing(0.0)
    calls = [core.step("s", x) for x in range(5)]
    for call in (calls[2], calls[4]):
        core.give_up(call)
    assert [call.requests[0]["x"] for call in core._lanes["s"].waiting] == [0, 1, 3]
    core.check()


@pytest.mark.parametrize("timeout_s", [0, -1.0, float("nan")])
def test_a_timeout_is_above_zero(timeout_s: float) -> None:
    with pytest.raises(ValueError, match="timeout_s"):
        Core("tcp://toy:1", timeout_s, "me")
