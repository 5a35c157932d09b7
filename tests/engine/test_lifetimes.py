"""How sessions end, what is remembered of their names, and how numbers go on behind that."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rnnstream.engine.engine import Engine
from rnnstream.engine.numbering import Numbering
from rnnstream.errors import Conflict, Full, Gap, NotFinite, Stale, UnknownSession

from .counting import numbered, step_row
from .models import SPOILED, network, relu
from .sequences import everything, moved

Make = Callable[..., Engine]


def why(engine: Engine, name: str) -> str:
    """Why a step to this name is refused."""
    with pytest.raises(UnknownSession) as error:
        engine.step([(name, 1)], now=1e9)
    engine.check()
    return f"{error.value.why}: {error.value}"


# Expiry ---------------------------------------------------------------------------------------------------------------


def test_a_session_expires_when_it_has_not_moved_for_longer_than_the_timeout(make: Make) -> None:
    engine = make(network(), idle_timeout_s=10)
    engine.step([("a", 1), ("b", 1), ("c", 1)], now=0)
    engine.step([("b", 1)], now=4)
    engine.peek("a", [1, 2])  # neither of these moves it
    engine.info("a", now=5)
    engine.snapshot("a")
    assert [engine.expire(now) for now in (0, 9.9, 10)] == [[], [], []]
    engine.step([("c", 1)], now=10)
    assert engine.expire(10.1) == ["a"]
    assert why(engine, "a") == "expired: The session a expired: it had been idle for too long; open or reset starts it anew."
    assert everything(engine) == moved(engine.model, {"b": [1, 1], "c": [1, 1]})
    assert [engine.expire(now) for now in (14, 14.1, 20, 20.1, 1000)] == [[], ["b"], [], ["c"], []]
    assert (engine.sessions(), engine.expired_count) == ([], 3)
    assert why(engine, "c").startswith("expired: ")
    assert engine.open("a", now=1000) == 0
    assert [engine.expire(now) for now in (1010, 1010.1)] == [[], ["a"]]


@pytest.mark.parametrize("verb", ["step", "reset", "restore", "fork", "open"])
def test_whatever_moves_a_session_keeps_it(make: Make, verb: str) -> None:
    engine = make(network(), idle_timeout_s=10)
    engine.open("origin", now=0)
    state = engine.snapshot("origin")
    if verb not in ("open", "fork"):
        engine.open("a", now=0)
    verbs: dict[str, Callable[[], object]] = {
        "step": lambda: engine.step([("a", 1)], now=8),
        "reset": lambda: engine.reset("a", now=8),
        "restore": lambda: engine.restore("a", state, now=8),
        "fork": lambda: engine.fork("origin", "a", now=8),
        "open": lambda: engine.open("a", state, now=8),
    }
    verbs[verb]()
    assert [engine.expire(now) for now in (10.5, 18, 18.5)] == [["origin"], [], ["a"]]


def test_a_refused_token_does_not_keep_its_session(make: Make) -> None:
    engine = make(relu(), idle_timeout_s=10)
    engine.step([("a", 1)], now=0)
    with pytest.raises(NotFinite):
        engine.step([("a", SPOILED)], now=8)
    assert engine.expire(10.5) == ["a"]


def test_a_session_that_somebody_waits_for_stays_until_nobody_does(make: Make) -> None:
    engine = make(network(), idle_timeout_s=10)
    engine.step([("a", 1), ("b", 1), ("c", 1)])
    rows = engine.table.rows
    assert engine.expire(11, lambda row: row in (rows["a"], rows["b"])) == ["c"]
    engine.step([("b", 2)], now=12)
    assert engine.expire(12.5) == ["a"]
    assert engine.expire(22.5) == ["b"]


def test_nothing_expires_without_a_timeout(make: Make) -> None:
    engine = make(network())
    engine.step([("a", 1)])
    assert engine.expire(1e12) == []
    assert engine.sessions() == ["a"]
    assert make(network(), idle_timeout_s=1).expire(5) == []  # and no session at all


def test_every_session_expires_in_its_time_however_often_it_is_asked(make: Make) -> None:
    engine = make(network(), idle_timeout_s=5)
    ends: dict[str, int] = {}
    for now in range(400):
        name = f"s{now}"
        engine.step([(name, 1), (f"s{now // 7 * 7}", 2)], now=now)
        ends[name] = ends[f"s{now // 7 * 7}"] = now + 5
        if now % 3 == 0:
            due = {name for name, end in ends.items() if end < now + 0.5}
            assert set(engine.expire(now + 0.5)) == due
            ends = {name: end for name, end in ends.items() if name not in due}
            engine.check()
    assert set(engine.sessions()) == set(ends)


# Names ----------------------------------------------------------------------------------------------------------------


def test_names_are_remembered_as_closed_or_expired_and_the_last_word_counts(make: Make) -> None:
    engine = make(network(), idle_timeout_s=10)
    engine.step([("a", 1), ("b", 1)])
    engine.close("a")
    engine.expire(11)
    assert why(engine, "a") == "closed: The session a was closed; open or reset starts it anew."
    assert why(engine, "b").startswith("expired: ")
    for name in "ab":
        engine.reset(name, now=20)
    engine.close("b")
    engine.expire(31)
    assert why(engine, "a").startswith("expired: ")
    assert why(engine, "b").startswith("closed: ")


def test_names_pushed_out_are_as_if_they_had_never_been(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnnstream.engine.tombstones.TOMBSTONES", 3)
    engine = make(network())
    for i in range(10):
        engine.step([(f"s{i}", 1)])
        engine.close(f"s{i}")
        engine.check()
    assert list(engine.table.tombstones) == ["s7", "s8", "s9"]
    assert engine.step([("s6", 1)])[0].opened
    assert why(engine, "s7").startswith("closed: ")


def test_with_explicit_open_only_open_and_reset_and_fork_open_a_name(make: Make) -> None:
    model = network()
    engine = make(model, explicit_open=True, idle_timeout_s=10)
    told = "The session a is not open, and not among the names closed of late; open or reset opens it."
    assert why(engine, "a") == f"never: {told}"
    assert engine.table.rows == {}
    engine.open("a")
    with pytest.raises(UnknownSession, match="session new is not open"):
        engine.step([("a", 1), ("new", 2)])
    engine.reset("b")
    engine.step([("a", 1), ("b", 2)])
    engine.fork("a", "c")
    engine.open("d", engine.snapshot("b"))
    found = engine.step([(name, 3) for name in "abcd"])
    assert [prediction.opened for prediction in found] == [False] * 4
    assert everything(engine) == moved(model, {"a": [1, 3], "b": [2, 3], "c": [1, 3], "d": [2, 3]})
    engine.close("a")
    engine.expire(11)
    assert [why(engine, name).split(":")[0] for name in "abe"] == ["closed", "expired", "never"]


# Numbers --------------------------------------------------------------------------------------------------------------


def test_numbers_belong_to_the_name_whatever_becomes_of_the_session(make: Make) -> None:
    engine = make(network(), idle_timeout_s=10)
    turns: list[tuple[str, Callable[[int], object]]] = [
        ("step", lambda row: step_row(engine, row, 3, 0)),
        ("close", engine.close_row),
        ("open", lambda row: engine.open_row(row, None, 0)),
        ("fork", lambda row: engine.fork_row(row, engine.table.take, "copy", 0)),
        ("restore", lambda row: engine.restore_row(row, engine.snapshot_row(row), 0)),
        ("reset", lambda row: engine.reset_row(row, 0)),
        ("step", lambda row: step_row(engine, row, 4, 0)),
    ]
    for n, (request, do) in enumerate(turns, 1):
        assert numbered(engine, "a", "p", n, do, request=request, reply=b"%d" % n) is None
        for m in range(1, n + 1):
            before = everything(engine)
            assert numbered(engine, "a", "p", m, pytest.fail, request=turns[m - 1][0]) == b"%d" % m
            assert everything(engine) == before
        assert engine.producers("a")["p"].last == n
    assert engine.info("a")["producers"] == {"p": 7}
    assert engine.info("copy")["producers"] == {}
    assert everything(engine) == moved(engine.model, {"a": [4], "copy": []})
    assert engine.expire(11) == ["a", "copy"]
    assert numbered(engine, "a", "p", 7, pytest.fail) == b"7"
    with pytest.raises(Gap) as error:
        numbered(engine, "a", "p", 9, pytest.fail)
    assert error.value.expected == 8
    with pytest.raises(UnknownSession, match="expired"):  # its number is right, and stays unused
        numbered(engine, "a", "p", 8, lambda row: step_row(engine, row, 1, 20))
    assert numbered(engine, "a", "p", 8, lambda row: engine.reset_row(row, 20)) is None
    assert engine.info("a")["producers"] == {"p": 8}


def test_a_number_is_judged_before_existence_and_t(make: Make) -> None:
    engine = make(network())
    numbered(engine, "a", "p", 1, lambda row: step_row(engine, row, 3, 0), reply=b"1")
    with pytest.raises(Conflict) as error:
        numbered(engine, "a", "p", 2, lambda row: step_row(engine, row, 3, 0, t=1))
    assert error.value.field == "t"
    with pytest.raises(Gap):
        numbered(engine, "never", "p", 2, lambda row: step_row(engine, row, 3, 0))
    with pytest.raises(Conflict) as error:
        numbered(engine, "a", "p", 1, pytest.fail, request="other")
    assert error.value.extra == {"field": "n", "t": 1}
    numbered(engine, "a", "p", 2, engine.close_row, request="close", ack=1)
    for n, expected in ((1, Stale), (2, Conflict), (4, Gap)):
        with pytest.raises(expected):
            numbered(engine, "a", "p", n, pytest.fail)


def test_what_conflict_says_of_a_closed_session(make: Make) -> None:
    """It has no steps, also while somebody still waits for its name."""
    engine = make(network())
    for n in (1, 2, 3):
        numbered(engine, "a", "p", n, lambda row: step_row(engine, row, 3, 0))
    row = engine.table.take("a")
    engine.close_row(row)
    for _ in range(2):
        with pytest.raises(Conflict) as error:
            engine.judge("a", "p", 3, "other", 0)
        assert error.value.extra == {"field": "n", "t": 0}
        engine.table.free(row)


def test_whoever_has_been_judged_is_not_forgotten_before_its_request_is_kept(make: Make) -> None:
    """A batch is judged as a whole before anything of it is done."""
    engine = make(network(), numbering=Numbering(most_producers=2, producer_s=10))
    for name in "ab":
        numbered(engine, name, "p", 1, lambda row: step_row(engine, row, 3, 0))
    batch = [("a", "p", 2), ("c", "new", 1)]
    rows = [engine.table.take(name) for name, _, _ in batch]
    for name, producer, n in batch:
        assert engine.judge(name, producer, n, "step", 20) is None
    for row, (_, producer, n) in zip(rows, batch, strict=True):
        step_row(engine, row, 4, 20)
        engine.keep(row, producer, n, "step", b"", 0, 20)
    assert [engine.info(name, now=20)["producers"] for name in "abc"] == [{"p": 2}, {}, {"new": 1}]


def test_numbers_go_with_the_tombstone(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnnstream.engine.tombstones.TOMBSTONES", 2)
    engine = make(network(), numbering=Numbering(most_producers=3))
    for name in "abc":
        numbered(engine, name, "p", 1, lambda row: step_row(engine, row, 3, 0), reply=bytes(5000))
    with pytest.raises(Full, match="3 in all"):
        numbered(engine, "d", "p", 1, pytest.fail)
    for name in "abc":
        assert engine.producers(name)["p"].last == 1
        engine.close(name)
        engine.check()
    assert (engine.producers("a"), engine.table.numbering.count) == ({}, 2)
    assert engine.table.numbering.held_bytes == sum(
        mine.held_bytes for name in "bc" for mine in engine.producers(name).values()
    )
    assert numbered(engine, "a", "p", 1, lambda row: step_row(engine, row, 3, 0)) is None
    assert numbered(engine, "b", "p", 1, pytest.fail) == bytes(5000)


def test_numbers_of_a_name_that_somebody_waits_for_go_when_nobody_does(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnnstream.engine.tombstones.TOMBSTONES", 1)
    engine = make(network())
    for name in "ab":
        numbered(engine, name, "p", 1, lambda row: step_row(engine, row, 3, 0), reply=b"1")
    row = engine.table.take("a")
    engine.close_row(row)
    engine.close("b")  # pushes out the tombstone of a
    engine.check()
    assert engine.judge("a", "p", 1, "step", 0) == b"1"
    assert list(engine.table.tombstones) == ["b"]
    engine.table.free(row)
    engine.check()
    assert engine.producers("a") == {}
    assert engine.table.numbering.count == 1
