"""A token counts once: numbers over the wire, however often and over which connections they come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rnnstream.engine.numbering import Numbering
from rnnstream.wire.limits import Limits
from tests.engine.models import SPOILED, dense, network, relu

from .driving import Driver, Reply, codes, step

Drive = Callable[..., Driver]
OLD, NEW = b"old..", b"new.."


def numbered(n: int, x: Any = 1, session: str = "s", producer: str = "p", **more: Any) -> dict[str, Any]:
    return {"session": session, "x": x, "producer": producer, "n": n, **more}


def without(reply: Reply, *keys: str) -> Reply:
    return {key: value for key, value in reply.items() if key not in keys}


@pytest.mark.parametrize("id", [{}, {"id": 7}, {"id": "seven"}])
def test_a_repeat_gets_the_reply_of_the_first_time_and_moves_nothing(drive: Drive, id: dict[str, Any]) -> None:
    driver = drive(network(vocabulary=True))
    for n, x in ((1, 3), (2, 4), (3, 5)):  # the first opens it, the others take the short way
        (first,) = driver.ask(numbered(n, x, **id))
        state = driver.states()
        (again,) = driver.ask(numbered(n, x, id=9))
        assert again == without(first, "id") | {"again": True, "id": 9}
        assert list(again)[-2:] == ["again", "id"]
        assert driver.states() == state
    assert driver.ask({"op": "info", "session": "s"})[0]["producers"] == {"p": 3}
    assert driver.ask({"op": "stats"})[0]["repeats"] == 3


def test_want_id_and_t_are_not_looked_at_in_a_repeat(drive: Drive) -> None:
    driver = drive(network(vocabulary=True))
    driver.ask(numbered(1, 3))
    (first,) = driver.ask(numbered(2, 4, want="probs", surprisal=True, t=2))
    for change in ({"want": "none"}, {"t": 99}, {"x": "w4"}, {"op": "step", "ack": 0}):
        assert driver.ask(numbered(2, 4) | change)[0] == first | {"again": True}


def test_another_request_under_a_number_that_counted(drive: Drive) -> None:
    driver = drive(network())
    driver.ask(numbered(1), numbered(2))
    for other in (numbered(2, 5), without(numbered(2), "x") | {"op": "reset"}):
        (reply,) = driver.ask(other)
        assert without(reply, "message") == {"error": "conflict", "field": "n", "t": 2, "session": "s"}
        assert "n=2" in reply["message"]
    assert driver.states()["s"][0] == 2


@pytest.mark.parametrize("alone", [True, False])
def test_what_is_kept_and_what_is_acknowledged(drive: Drive, alone: bool) -> None:
    driver = drive(network())
    if alone:  # a request alone in its body acknowledges all before it
        for n in (1, 2, 3, 4):
            driver.ask(numbered(n))
        kept = [4]
    else:
        driver.ask(*(numbered(n) for n in (1, 2, 3)))
        assert driver.ask(numbered(4, ack=1))[0]["t"] == 4
        kept = [2, 3, 4]
    for n in (1, 2, 3, 4):
        (reply,) = driver.ask(numbered(n, ack=0))
        assert reply.get("again", reply.get("error")) == (True if n in kept else "stale")
        assert reply.get("last", 4) == 4
    assert driver.ask(numbered(4))[0]["again"], "a repeat acknowledges like any other"
    assert driver.ask(numbered(3, ack=0))[0]["error"] == "stale"
    driver.ask(numbered(5, ack=99), numbered(6, ack=0))
    assert driver.ask(numbered(5, ack=0))[0]["again"], "nobody has the reply to what is only sent now"
    assert driver.ask(numbered(4, ack=0))[0]["error"] == "stale"
    assert driver.ask(numbered(1))[0]["error"] == "stale", "an acknowledgement never goes back"


def test_only_so_many_replies_are_kept(drive: Drive) -> None:
    driver = drive(network(), numbering=Numbering(replies=3))
    driver.ask(*(numbered(n) for n in range(1, 8)))
    told = driver.ask(*(numbered(n) for n in range(1, 8)))
    assert [reply.get("again", reply.get("last")) for reply in told] == [7, 7, 7, 7, True, True, True]


def test_a_number_too_high_uses_none(drive: Drive) -> None:
    driver = drive(network())
    (reply,) = driver.ask(numbered(2))
    assert without(reply, "message") == {"error": "gap", "expected": 1, "session": "s"}
    assert reply["message"] == "s: producer p sent n=2, expected 1."
    assert driver.states() == {}
    assert codes(driver.ask(numbered(1), numbered(3), numbered(2), numbered(3))) == [1, "gap", 2, 3]
    assert codes(driver.ask(numbered(5))) == ["gap"]


@pytest.mark.parametrize("in_one_body", [True, False])
def test_an_error_uses_no_number_and_what_follows_it_is_a_gap(drive: Drive, in_one_body: bool) -> None:
    driver = drive(relu())
    driver.ask(numbered(1))
    state = driver.states()
    wrong = [numbered(2, SPOILED), numbered(2, 99), numbered(2, t=7), numbered(2, nonsense=1)]
    expected = ["not_finite", "bad_token", "conflict", "bad_request"]
    for item, code in zip(wrong, expected, strict=True):
        line = [item, numbered(3), numbered(4)]
        if in_one_body:
            replies = driver.ask(*line)
        else:
            driver.handle(*((OLD, [each]) for each in line))
            driver.finish()
            replies = [reply for (reply,) in driver.replies.pop(OLD)]
        assert codes(replies) == [code, "gap", "gap"]
        assert replies[1]["expected"] == 2
        assert driver.states() == state
    assert codes(driver.ask(numbered(2, 3), numbered(3, 4))) == [2, 3]


def test_a_closed_connections_messages_mixed_with_its_successors(drive: Drive) -> None:
    model = network()
    driver = drive(model)
    xs = [3, 1, 4, 1, 5, 2]
    line = [numbered(n, x) for n, x in enumerate(xs, 1)]
    driver.handle((OLD, line[:1]), (NEW, line[:1]), (OLD, line[1:2]), (NEW, line[1:4]), (OLD, line[2:3]))
    driver.handle((OLD, line[3:4]), (NEW, line[4:5]), (OLD, line[4:6]), (NEW, line[5:6]))
    driver.finish()
    told = [reply for body in driver.replies.pop(NEW) for reply in body]
    assert [reply["t"] for reply in told] == [1, 2, 3, 4, 5, 6]
    assert driver.states() == {"s": (6, model.run(xs).tobytes())}


def test_producers_number_for_themselves_and_others_do_not_number(drive: Drive) -> None:
    driver = drive(network())
    replies = driver.ask(numbered(1), numbered(1, producer="q"), step("s", 2), numbered(2), numbered(1, session="other"))
    assert codes(replies) == [1, 2, 3, 4, 1]
    assert driver.ask({"op": "info", "session": "s"})[0]["producers"] == {"p": 2, "q": 1}


def test_every_operation_that_changes_a_session_counts_once(drive: Drive) -> None:
    driver = drive(network())

    def op(name: str, n: int, **more: Any) -> dict[str, Any]:
        return {"op": name, "session": "s", "producer": "p", "n": n, **more}

    (state,) = (driver.ask(step("a", 1), {"op": "snapshot", "session": "a"})[1]["state"],)
    line = [
        op("open", 1),
        numbered(2),
        op("fork", 3, to="copy"),
        op("restore", 4, state=state),
        op("reset", 5),
        op("close", 6),
        op("open", 7, state=state),
        op("close", 8),
        op("reset", 9),
    ]
    for item in line:
        (first,) = driver.ask(item)
        assert "error" not in first, (item, first)
        before = driver.states()
        assert driver.ask(item) == [first | {"again": True}]
        assert driver.states() == before
    assert driver.ask(op("open", 10))[0]["error"] == "exists"
    assert driver.ask({"op": "info", "session": "copy"})[0]["producers"] == {}, "a fork starts with none"
    assert driver.ask({"op": "info", "session": "s"})[0]["producers"] == {"p": 9}
    assert driver.ask(op("open", 9) | {"state": state})[0]["error"] == "conflict"


def test_numbers_go_on_behind_a_tombstone(drive: Drive) -> None:
    driver = drive(network(), idle_timeout_s=5.0)
    driver.ask(numbered(1), numbered(2))
    for _ in range(8):
        driver.handle()
    assert codes(driver.ask(numbered(2), numbered(1), numbered(4), numbered(3))) == [2, 1, "gap", "unknown_session"]
    assert driver.ask(step("s", 1))[0]["why"] == "expired"
    assert codes(driver.ask({"op": "reset", "session": "s", "producer": "p", "n": 3}, numbered(4))) == [0, 1]


def test_a_number_is_judged_before_existence_and_t_even_where_no_room_is(drive: Drive) -> None:
    driver = drive(network(), max_sessions=1)
    driver.ask(numbered(1), {"op": "close", "session": "s", "producer": "p", "n": 2})
    driver.ask(step("other", 1))
    assert driver.ask({"op": "close", "session": "s", "producer": "p", "n": 2})[0].get("again")
    assert codes(driver.ask(numbered(3))) == ["unknown_session"]
    assert codes(driver.ask({"op": "reset", "session": "s", "producer": "p", "n": 4})) == ["gap"]
    assert codes(driver.ask({"op": "reset", "session": "s", "producer": "p", "n": 3})) == ["full"]


def test_a_newcomer_gets_full_until_somebody_has_been_silent(drive: Drive) -> None:
    driver = drive(network(), numbering=Numbering(producers=2, producer_s=10))
    driver.ask(numbered(1, producer="a"), numbered(1, producer="b"))
    state = driver.states()
    assert codes(driver.ask(numbered(1, producer="c"))) == ["full"]
    assert codes(driver.ask(numbered(2, producer="c"))) == ["gap"]
    assert driver.states() == state
    for _ in range(12):
        driver.handle()
    assert codes(driver.ask(numbered(2, producer="b"))) == [3]
    assert codes(driver.ask(numbered(1, producer="c"))) == [4]
    assert codes(driver.ask(numbered(2, producer="a"))) == ["gap"], "the one who was silent is forgotten"
    assert codes(driver.ask(numbered(3, producer="b"), numbered(2, producer="c"))) == [5, 6]


@pytest.mark.parametrize("more", [{}, {"ack": 0}, {"want": "none"}])
@pytest.mark.parametrize("alone", [True, False])
def test_a_producer_whose_token_is_in_the_wave_is_not_forgotten_for_a_newcomer(
    drive: Drive, alone: bool, more: dict[str, Any]
) -> None:
    driver = drive(network(), numbering=Numbering(most_producers=2, producer_s=10))
    driver.ask(numbered(1, session="a"), numbered(1, session="b", producer="q"))
    for _ in range(12):
        driver.handle()
    body = [numbered(2, session="a", **more)] + ([] if alone else [step("a", 1)])
    driver.handle((OLD, body), (NEW, [numbered(1, session="c", producer="r")]))
    driver.finish()
    assert codes([*driver.replies.pop(OLD)[0], *driver.replies.pop(NEW)[0]]) == [2, *([] if alone else [3]), 1]
    assert codes(driver.ask(numbered(3, session="a"))) == [3 if alone else 4]
    assert codes(driver.ask(numbered(2, session="b", producer="q"))) == ["gap"], "who was silent is forgotten"


def test_info_of_many_producers_is_held_to_the_size_of_a_reply(drive: Drive) -> None:
    driver = drive(network(), limits=Limits(reply_bytes=25_000))
    for i in range(250):
        driver.ask(numbered(1, producer=f"{i:064}"))
    assert codes(driver.ask({"op": "info", "session": "s"})) == [250]
    assert codes(driver.ask({"op": "info", "session": "s"}, {"op": "info", "session": "s"})) == [250, "too_large"]


def test_vectors_are_compared_as_what_they_stand_for(drive: Drive) -> None:
    model = dense("linear")
    driver = drive(model)
    x = [1.0, 2.5, -3.0]
    (first,) = driver.ask(numbered(1, x))
    assert driver.ask(numbered(1, np.array(x, "<f4").tobytes())) == [first | {"again": True}]
    assert driver.ask(numbered(1, [1.0, 2.5, -2.0]))[0]["error"] == "conflict"
    assert driver.states() == {"s": (1, model.run([x]).tobytes())}


def test_a_bug_in_a_step_uses_no_number(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = drive(network())
    driver.ask(numbered(1))
    with monkeypatch.context() as broken:
        broken.setattr(driver.engine, "likely", lambda *arguments: 1 / 0)
        broken.setattr(driver.engine, "predict_one", lambda *arguments: 1 / 0)
        assert codes(driver.ask(numbered(2))) == ["internal"]
        assert codes(driver.ask(numbered(2), numbered(3), step("s", 1))) == ["internal", "gap", "internal"]
    assert codes(driver.ask(numbered(2), numbered(3))) == [2, 3]
