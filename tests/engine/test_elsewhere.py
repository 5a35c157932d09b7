"""Sessions that are kept elsewhere too: they leave the engine, come back, and nobody sees a difference."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest

from rnnstream.engine import tombstones as module
from rnnstream.engine.engine import Engine
from rnnstream.engine.numbering import ENTRY_BYTES, ORDINARY_BYTES, Numbering
from rnnstream.engine.producers import Producer, Producers
from rnnstream.errors import Full, UnknownSession

from .counting import numbered, step_row
from .models import network
from .sequences import everything

Make = Callable[..., Engine]
Gone = tuple[Any, int, float, float, Producers]


def producer(last: int, *, heard_at: float = 0.0, kept: int = 1, size: int = 1) -> Producer:
    """One that has `last` numbers behind it, and replies to so many of them."""
    mine = Producer()
    mine.last, mine.heard_at = last, heard_at
    if kept:
        mine.request, mine.reply = last, b"%d" % last * size
    mine.more = deque((n, n, b"%d" % n * size) for n in range(last - kept + 1, last)) or None
    return mine


def evicted(engine: Engine, name: str) -> Gone:
    """What an open session is, which leaves."""
    table = engine.table
    row = table.rows[name]
    gone = deepcopy(
        (
            table.states[row],
            int(table.t[row]),
            float(table.opened_at[row]),
            float(table.moved_at[row]),
            table.producers[row] or Producers(),
        )
    )
    for mine in gone[-1].values():
        mine.held_bytes = 0  # nobody keeps it
    table.evict(row)
    return gone


def placed(engine: Engine, name: str, gone: Gone) -> int:
    row = engine.table.take(name)
    engine.table.place(row, *gone)
    return row


# The table ------------------------------------------------------------------------------------------------------------


def test_a_session_that_was_away_is_the_same(make: Make) -> None:
    engine = make(network())
    for n in range(1, 4):
        numbered(engine, "a", "p", n, lambda row: step_row(engine, row, 2, 5.0), reply=b"%d" % n, now=5.0)
    engine.open("b", now=3.0)
    before, told = everything(engine), engine.info("a", now=9.0)
    gone = evicted(engine, "a")
    engine.check()
    assert list(everything(engine)) == ["b"]
    assert (engine.table.open_count, engine.table.absent, engine.table.numbering.count) == (1, 1, 0)
    assert "a" not in engine.table.rows
    assert "a" not in engine.table.tombstones
    engine.open("c")  # which gets the row
    row = placed(engine, "a", gone)
    engine.check()
    engine.close("c")
    assert everything(engine) == before
    assert engine.info("a", now=9.0) == told
    assert (engine.table.open_count, engine.table.absent, engine.table.numbering.count) == (2, 0, 1)
    assert numbered(engine, "a", "p", 2, lambda row: None) == b"2"
    numbered(engine, "a", "p", 4, lambda row: step_row(engine, row, 2, 6.0))
    assert engine.table.t[row] == 4


def test_sessions_elsewhere_are_open(make: Make) -> None:
    engine = make(network(), max_sessions=3, max_rows=9)
    for name in "abc":
        engine.open(name)
    gone = [evicted(engine, name) for name in "ab"]
    assert engine.table.absent == 2
    for attempt in (
        lambda: engine.table.hold_room("d"),
        lambda: engine.open("d"),
        lambda: engine.reset("d"),
        lambda: engine.fork("c", "d"),
        lambda: engine.step([("d", 1)]),
    ):
        with pytest.raises(Full, match="3 sessions are open"):
            attempt()
        engine.check()
    engine.reset("c")  # is open already
    engine.close("c")
    engine.table.hold_room("d")
    engine.open("d")
    with pytest.raises(Full):
        engine.table.hold_room("e")
    for name, session in zip("ab", gone, strict=True):
        placed(engine, name, session)
    assert sorted(everything(engine)) == ["a", "b", "d"]


def test_rows_have_a_bound_of_their_own(make: Make) -> None:
    engine = make(network(), max_sessions=100, max_rows=3)
    for name in "abc":
        engine.open(name)
    with pytest.raises(Full, match="3 sessions are open or waited for"):
        engine.open("d")
    gone = evicted(engine, "a")
    engine.open("d")
    with pytest.raises(Full):
        engine.table.take("a")
    engine.close("d")
    placed(engine, "a", gone)
    assert make(network(), max_sessions=5).table.max_rows == 5


def test_a_tombstone_comes_back(make: Make) -> None:
    engine = make(network(), idle_timeout_s=9.0)
    engine.table.bury("a", "expired", Producers([("p", producer(3))]))
    engine.table.bury("b", "closed", Producers())
    engine.check()
    assert engine.table.numbering.count == 1
    for name, why in (("a", "expired"), ("b", "closed")):
        with pytest.raises(UnknownSession) as problem:
            engine.known(name)
        assert problem.value.extra["why"] == why
    assert numbered(engine, "a", "p", 3, lambda row: None, request=3, waits=False) == b"3"
    engine.reset("a")
    assert numbered(engine, "a", "p", 4, lambda row: step_row(engine, row, 1, 0.0)) is None
    assert engine.info("a")["producers"] == {"p": 4}


def test_a_tombstone_comes_back_while_its_name_is_waited_for(make: Make) -> None:
    engine = make(network())
    row = engine.table.take("a")
    engine.table.bury("a", "closed", Producers([("p", producer(3))]))
    engine.check()
    assert engine.producers("a").keys() == {"p"}
    engine.reset_row(row, 0.0)
    engine.keep(row, "p", 4, "reset", b"4", 0, 0.0)
    engine.table.free(row)
    assert engine.info("a")["producers"] == {"p": 4}


@pytest.mark.parametrize("told", [True, False])
def test_names_that_are_forgotten_are_told_of(make: Make, monkeypatch: pytest.MonkeyPatch, told: bool) -> None:
    monkeypatch.setattr(module, "TOMBSTONES", 2)
    engine = make(network())
    if told:
        engine.table.forgotten = []
    for name in "abc":
        engine.open(name)
        engine.close(name)
    engine.table.bury("d", "closed", Producers([("p", producer(1))]))
    engine.table.bury("e", "closed", Producers([("p", producer(1))]))
    assert engine.table.forgotten == (["a", "b", "c"] if told else None)
    engine.table.bury("f", "closed", Producers())
    assert engine.table.numbering.count == 1
    engine.check()


@pytest.mark.parametrize("waited_for", [True, False])
@pytest.mark.parametrize("kind", ["open", "tombstone", "tombstone with a row", "nothing"])
def test_a_name_that_is_dropped_leaves_no_trace(make: Make, kind: str, waited_for: bool) -> None:
    engine = make(network())
    engine.open("other")
    if kind != "nothing":
        engine.open("a")
        numbered(engine, "a", "p", 1, lambda row: step_row(engine, row, 1, 0.0), reply=b"x" * (ORDINARY_BYTES + 1))
    if kind.startswith("tombstone"):
        engine.close("a")
    has_row = kind in ("open", "tombstone with a row") or (waited_for and kind == "nothing")
    row = engine.table.take("a") if has_row else -1
    engine.table.drop("a", waited_for=waited_for)
    engine.check()
    table = engine.table
    assert (table.numbering.count, table.numbering.held_bytes, table.open_count, table.absent) == (0, 0, 1, 0)
    assert "a" not in table.tombstones
    assert ("a" in table.rows) is (has_row and waited_for)
    if has_row and waited_for:
        assert table.rows["a"] == row
        table.place(row, np.ones(7), 5, 1.0, 2.0, Producers([("q", producer(2))]))
        assert engine.info("a", now=3.0) == {
            "t": 5,
            "age_s": 2,
            "idle_s": 1,
            "producers": {"q": 2},
            "norm": pytest.approx(7**0.5),
        }
        table.absent += 1  # it was none of those that were counted
    else:
        engine.open("a")
        assert engine.info("a")["producers"] == {}


# Expiry ---------------------------------------------------------------------------------------------------------------


def test_a_row_expires_when_it_has_been_idle_for_longer_than_the_timeout(make: Make) -> None:
    engine = make(network(), idle_timeout_s=10.0)
    engine.open("a", now=5.0)
    row = engine.table.rows["a"]
    assert not engine.expire_row(row, 15.0)
    assert everything(engine).keys() == {"a"}
    assert engine.expire_row(row, 15.5)
    assert (engine.expired_count, engine.table.tombstones["a"].why) == (1, "expired")
    engine.table.free(row)
    assert everything(engine) == {}


def test_no_row_expires_without_a_timeout(make: Make) -> None:
    engine = make(network())
    engine.open("a", now=0.0)
    assert not engine.expire_row(engine.table.rows["a"], 1e12)
    assert engine.expired_count == 0


def test_a_session_that_comes_back_is_looked_at_in_time(make: Make) -> None:
    engine = make(network(), idle_timeout_s=10.0)
    engine.open("a", now=1.0)
    gone = evicted(engine, "a")
    engine.open("b", now=9.0)
    assert engine.expire(9.5) == []  # nothing here is due before 19
    placed(engine, "a", gone)
    assert engine.expire(10.9) == []
    assert engine.expire(11.5) == ["a"]


# Numbering ------------------------------------------------------------------------------------------------------------


def test_producers_that_come_back_are_held_to_the_bounds() -> None:
    numbering = Numbering(replies=3, most_bytes=3 * (ENTRY_BYTES + 10))
    known = {"p": producer(9, kept=5, size=10), "q": producer(4, kept=1)}
    numbering.adopt(known)
    numbering.check([known])
    assert [n for n, *_ in known["p"].more or ()] == [7, 8]
    assert numbering.held_bytes == 2 * (ENTRY_BYTES + 10)
    assert numbering.count == 2
    other = {"p": producer(9, kept=3, size=10)}
    numbering.adopt(other)  # together too much: the one that kept the least lately goes first
    numbering.check([known, other])
    assert [n for n, *_ in known["p"].more or ()] == [8]
    assert [n for n, *_ in other["p"].more or ()] == [7, 8]
    numbering.adopt(Producers())
    assert numbering.count == 3
    numbering.forget(known)
    numbering.forget(other)
    numbering.check([])


def test_a_producer_may_keep_few_bytes_when_it_comes_back() -> None:
    numbering = Numbering(reply_bytes=2 * (ENTRY_BYTES + 10))
    known = {"p": producer(9, kept=6, size=10)}
    numbering.adopt(known)
    numbering.check([known])
    assert [n for n, *_ in known["p"].more or ()] == [7, 8]
    assert known["p"].find(6) is None
    assert known["p"].find(9) == (9, b"9" * 10)


def test_what_came_back_is_tidied_as_any_other() -> None:
    numbering = Numbering(most_producers=3, producer_s=10)
    known = [{"p": producer(1, heard_at=float(i))} for i in range(3)]
    for session in known:
        numbering.adopt(session)
    with pytest.raises(Full):
        numbering.welcome("s", Producers(), "new", 9.0)
    numbering.welcome("s", Producers(), "new", 10.5)
    assert [list(session) for session in known] == [[], ["p"], ["p"]]
    numbering.check([session for session in known if session])


@pytest.mark.parametrize("last", [None, 0, 3, 4, 9])
def test_a_number_that_has_counted_counts_again_whatever_is_remembered(last: int | None) -> None:
    numbering = Numbering()
    known = Producers() if last is None else Producers([("p", producer(last, kept=min(last, 2), size=3))])
    if last == 0:
        known = Producers([("p", producer(1))])
    numbering.adopt(known)
    numbering.follow(known, "p", 5, 7.0)
    assert numbering.judge("s", known, "p", 5, "r", 0) is None
    assert (known["p"].last, known["p"].heard_at, numbering.count) == (4, 7.0, 1)
    numbering.keep(known, "p", 5, "r", b"reply", 0, 7.0)
    numbering.check([known])
    kept = {n for n in range(1, 6) if known["p"].find(n)}
    assert kept == ({3, 4, 5} if last == 4 else {5})


def test_whoever_was_silent_for_longest_makes_room_in_a_replay() -> None:
    numbering = Numbering(producers=3, producer_s=1e9)
    known = Producers((name, producer(3, heard_at=at, kept=3, size=9)) for name, at in (("a", 2.0), ("b", 1.0), ("c", 3.0)))
    numbering.adopt(known)
    numbering.follow(known, "c", 4, 4.0)
    assert sorted(known) == ["a", "b", "c"]
    numbering.follow(known, "new", 1, 4.0)
    assert sorted(known) == ["a", "c", "new"]
    numbering.keep(known, "new", 1, "r", b"reply", 0, 4.0)
    numbering.check([known])
    assert numbering.count == 3
