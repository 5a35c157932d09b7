from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest

from rnnstream.client.call import Call
from rnnstream.client.core import Core
from rnnstream.errors import BadToken, ConnectionFailed, NoReply, ProtocolError, RequestError
from rnnstream.wire import replies, requests

from .toy import Counting


def a_core() -> Core:
    return Core("tcp://toy:1", 10.0)


def sent(core: Core, now: float = 0.0) -> bytes:
    [body] = core.outgoing(now)
    return body


def test_a_call_is_sent_once_and_answered() -> None:
    core, worker = a_core(), Counting()
    call = core.step("s", 7, want=2, surprisal=True, t=1)
    [body] = core.outgoing(5.0)
    assert core.outgoing(5.0) == []
    assert core.deadline() == 15.0
    assert core.received(worker.answer(body)) == [call]
    assert worker.bodies == [[{"session": "s", "want": 2, "surprisal": True, "x": 7, "t": 1, "id": 1}]]
    prediction = call.result()
    assert (prediction.t, prediction.y, prediction.surprisal, prediction.opened) == (1, 7, 0.5, True)
    assert core.deadline() is None
    assert not core.take_renewal()
    core.check()


def test_defaults_are_not_sent() -> None:
    core, worker = a_core(), Counting()
    core.step("s", 7)
    worker.answer(sent(core))
    assert worker.bodies == [[{"session": "s", "x": 7, "id": 1}]]


def test_an_error_map_becomes_its_exception() -> None:
    core, worker = a_core(), Counting()
    call = core.step("s", 13)
    core.received(worker.answer(sent(core)))
    with pytest.raises(BadToken, match="not with us") as caught:
        call.result()
    assert caught.value.field == "x"


def test_the_error_of_a_newer_worker_is_a_request_error() -> None:
    core = a_core()
    call = core.ping()
    core.outgoing(0.0)
    core.received(replies.encode({"error": "tired", "message": "zzz", "id": 1}))
    with pytest.raises(RequestError, match="zzz") as caught:
        call.result()
    assert caught.value.code == "tired"


def test_a_reply_to_a_later_body_says_that_the_earlier_ones_were_lost() -> None:
    core, worker = a_core(), Counting()
    first, second, third = (core.step("s", x) for x in (1, 2, 3))
    bodies = core.outgoing(0.0)
    assert core.received(worker.answer(bodies[1])) == [first, second]
    with pytest.raises(NoReply, match=r"tcp://toy:1 was lost.*not known"):
        first.result()
    assert second.result().y == 2
    assert not third.done
    assert not core.take_renewal(), "libzmq has connected again by itself"
    core.check()


def test_after_a_loss_hello_is_asked_again() -> None:
    core, worker = a_core(), Counting()
    hello = core.ask_hello()
    core.received(worker.answer(sent(core)))
    hello.result()
    assert core.hello is not None
    core.step("s", 1)
    core.step("s", 2)
    core.received(worker.answer(core.outgoing(0.0)[1]))
    assert core.hello is None


def test_a_timeout_fails_all_in_flight_and_asks_for_a_new_socket() -> None:
    core = a_core()
    first = core.ping()
    core.outgoing(0.0)
    second = core.step("s", 1)
    core.outgoing(4.0)
    unsent = core.ping()
    assert core.deadline() == 10.0
    assert not core.overdue(9.99)
    assert core.expire(9.99) == []
    assert core.overdue(10.0)
    assert core.expire(10.0) == [first, second]
    with pytest.raises(NoReply, match=r"tcp://toy:1 within 10 s.*info\(\) tells its t"):
        first.result()
    with pytest.raises(TimeoutError, match=r"earlier request within 10 s; reconnecting.*not known"):
        second.result()
    assert core.take_renewal()
    assert not core.take_renewal()
    assert core.deadline() is None
    assert not unsent.done, "what was not sent goes over the new socket"
    assert len(core.outgoing(11.0)) == 1
    core.check()


def test_a_timeout_names_the_size_of_a_body_that_may_have_been_cut_off() -> None:
    core = a_core()
    call = core.step("s", bytes(2 << 20))
    core.outgoing(0.0)
    core.expire(10.0)
    with pytest.raises(NoReply, match=r"had 20971\d\d bytes.*frame_bytes"):
        call.result()


def test_a_late_reply_is_dropped() -> None:
    core, worker = a_core(), Counting()
    core.step("s", 1)
    late = worker.answer(sent(core))
    core.expire(10.0)
    assert core.take_renewal()
    call = core.step("s", 2)
    body = sent(core, 10.0)
    assert core.received(late) == []
    assert core.received(worker.answer(body)) == [call]
    assert core.received(worker.answer(body)) == [], "and so is a repeated one"
    assert not core.take_renewal()
    assert call.result().y == 2


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
    core.received(worker.answer(body))
    core.received(worker.answer(sent(core)))
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
    assert core.received(body) == calls
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
    core.received(replies.encode({"t": 1, "id": 1}) + replies.encode(end))
    assert call.replies == [{"t": 1, "id": 1}, end, end, end]


def test_a_body_whose_id_could_not_be_read_answers_the_oldest() -> None:
    core = a_core()
    call, other = core.step("s", 1), core.ping()
    core.outgoing(0.0)
    assert core.received(replies.encode({"error": "bad_message", "message": "what?"})) == [call]
    assert not other.done


def test_hello_of_another_version_is_refused() -> None:
    core = a_core()
    call = core.ask_hello()
    core.outgoing(0.0)
    core.received(replies.encode({"protocol": 2, "id": 1}))
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


@pytest.mark.parametrize("timeout_s", [0, -1.0, float("nan")])
def test_a_timeout_is_above_zero(timeout_s: float) -> None:
    with pytest.raises(ValueError, match="timeout_s"):
        Core("tcp://toy:1", timeout_s)


@pytest.mark.parametrize("seed", range(60))
def test_whatever_happens_a_call_gets_its_own_reply_or_none(seed: int) -> None:
    """A random walk: calls, sends, replies, bodies and replies lost with connections, time, calls given up."""
    chance = random.Random(seed)
    core, now = a_core(), 0.0
    line: deque[bytes] = deque()  # bodies that the worker has not read
    back: deque[bytes] = deque()  # replies that the client has not read
    open_calls: dict[int, tuple[Call[Any], list[int]]] = {}
    count = answered = 0
    for _ in range(400):
        match chance.choice("aaassswwwwrrrrltg"):
            case "a":
                xs = list(range(count, count + chance.randint(1, 5)))
                count += len(xs)
                call = core.ask([{"session": "s", "x": x} for x in xs], dict)
                open_calls[call.id] = call, xs
            case "s":
                line.extend(core.outgoing(now))
            case "w" if line:
                maps, _ = requests.decode(line.popleft(), 1024)
                echo = [{"t": 1, "y": item["x"]} | ({"id": item["id"]} if "id" in item else {}) for item in maps]
                back.append(b"".join(replies.encode(reply) for reply in echo))
            case "r" if back:
                done = core.received(back.popleft())
                assert done
                for call in done:
                    _, xs = open_calls.pop(call.id)
                    if call.error is None:
                        answered += 1
                        assert [reply["y"] for reply in call.replies] == xs
                    else:
                        assert isinstance(call.error, NoReply)
            case "l":  # the connection is lost, with some of what was on it; libzmq makes a new one
                back.clear()
                for _ in range(chance.randint(0, len(line))):
                    line.popleft()
            case "t":
                now += chance.choice([0.1, 3.0])
                for call in core.expire(now):
                    open_calls.pop(call.id)
                    assert isinstance(call.error, NoReply)
            case "g" if open_calls:
                call, _ = chance.choice(list(open_calls.values()))
                core.give_up(call)
                if call.done:
                    del open_calls[call.id]
        if core.take_renewal():
            line.clear()
            back.clear()
        deadline = core.deadline()
        assert deadline is None or now < deadline <= now + 10.0
        assert all(not call.done for call, _ in open_calls.values())
        core.check()
    assert answered > 10
