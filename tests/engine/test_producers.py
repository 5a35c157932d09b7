"""How many producers are remembered, and which of them make room."""

from __future__ import annotations

import pytest

from rnnstream.engine import numbering as module
from rnnstream.engine.numbering import ORDINARY_BYTES
from rnnstream.engine.producers import Producers
from rnnstream.errors import Full, Gap

from .counting import Counting


def test_a_newcomer_displaces_the_one_that_has_been_silent_for_longest_and_long_enough() -> None:
    counting = Counting(producers=3, producer_s=10)
    for now, producer in enumerate("abc"):
        counting.turn("s", producer, 1, now=now)
    counting.turn("s", "a", 1, now=5)  # a repeat is a sign of life
    for now in (5, 10, 10.9):
        with pytest.raises(Full) as error:
            counting.turn("s", "new", 1, now=now)
        assert str(error.value) == (
            "s: producer new is new, and there is room for 3 in a session and 2000000 in all; "
            "one is forgotten after 10 s of silence."
        )
        assert counting.sessions["s"].keys() == set("abc")
    assert counting.turn("s", "new", 1, now=11) is None
    assert counting.sessions["s"].keys() == {"a", "c", "new"}
    with pytest.raises(Full):
        counting.turn("s", "newer", 1, now=11.5)
    with pytest.raises(Gap):  # it is a newcomer itself now
        counting.turn("s", "b", 2, now=11.5)
    assert counting.turn("s", "c", 2, now=30) is None
    assert counting.turn("other", "newer", 1, now=11.5) is None


def test_nobody_is_displaced_by_a_request_that_is_refused() -> None:
    counting = Counting(producers=1, producer_s=10)
    counting.turn("s", "old", 1, reply=b"1")
    assert counting.turn("s", "new", 1, now=99, counts=False) is None
    with pytest.raises(Gap):
        counting.turn("s", "new", 2, now=99)
    assert counting.turn("s", "old", 1, now=99) == b"1"
    with pytest.raises(Full):
        counting.turn("s", "new", 1, now=100)


def test_those_who_are_known_need_no_room() -> None:
    counting = Counting(producers=2, most_producers=2)
    for n in range(1, 9):
        assert counting.turn("s", "a", n) is None
        assert counting.turn("s", "b", n) is None
        with pytest.raises(Full):
            counting.turn("s", "c", 1)


def test_in_all_a_newcomer_takes_the_place_of_those_long_silent_in_any_session() -> None:
    counting = Counting(most_producers=6, producer_s=10)
    for i in range(6):
        counting.turn(f"s{i % 3}", f"p{i}", 1, reply=bytes(ORDINARY_BYTES + 1), now=i)
    with pytest.raises(Full, match="6 in all"):
        counting.turn("new", "p", 1, now=9)
    with pytest.raises(Full, match="6 in all"):
        counting.turn("s0", "p", 1, now=9)
    assert counting.turn("new", "p", 1, now=11) is None  # p0 and p1 have been silent for ten seconds
    assert {session: sorted(known) for session, known in counting.sessions.items()} == {
        "s0": ["p3"],
        "s1": ["p4"],
        "s2": ["p2", "p5"],
        "new": ["p"],
    }
    assert counting.numbering.count == 5


def test_a_newcomer_looks_through_a_bounded_number_of_producers_and_the_next_one_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LOOKED_AT", 10)
    counting = Counting(most_producers=30, producer_s=10)
    for i in range(30):
        counting.turn(f"s{i}", "p", 1, now=0 if i == 29 else 100)
    for now in (100, 101):
        for _ in range(5):  # newcomers of one moment look once
            with pytest.raises(Full):
                counting.turn("new", "p", 1, now=now)
    assert counting.turn("new", "p", 1, now=102) is None
    assert not counting.sessions["s29"]


def test_a_newcomer_may_displace_the_only_producer_of_its_session() -> None:
    """The session is then looked at once in a round, as before."""
    counting = Counting(producers=1, producer_s=10)
    for now in range(0, 100, 10):
        for i in range(10):
            assert counting.turn(f"s{i}", f"p{now}", 1, now=now) is None
            assert counting.sessions[f"s{i}"].keys() == {f"p{now}"}
    assert len(counting.numbering._round) == counting.numbering.count == 10


def test_sessions_without_producers_are_not_remembered_for_ever() -> None:
    counting = Counting()
    for i in range(1000):
        counting.turn(f"s{i}", "p", 1)
        counting.forget(f"s{i}")
    assert len(counting.numbering._round) < 5


def test_newcomers_judged_in_one_batch_displace_nobody_who_was_heard_of_late() -> None:
    counting = Counting(most_producers=3, producer_s=10)
    counting.turn("a", "p", 1)
    counting.turn("b", "q", 1)
    numbering, sessions = counting.numbering, counting.sessions
    sessions["c"] = Producers()
    for name in "ca":  # one place is left, and both see it
        assert numbering.judge(name, sessions[name], "new", 1, "step", 0) is None
        numbering.welcome(name, sessions[name], "new", 1)
    for name in "ca":
        numbering.keep(sessions[name], "new", 1, "step", b"", 0, 1)
    assert sessions["a"].keys() == {"p", "new"}
    counting.check()


def test_large_last_replies_fill_the_bound() -> None:
    counting = Counting(replies=3)
    for n in range(1, 9):
        counting.turn("s", "p", n, reply=bytes(ORDINARY_BYTES + 1))
    assert list(counting.kept("s", "p")) == [6, 7, 8]
