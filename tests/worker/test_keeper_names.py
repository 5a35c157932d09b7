"""Names in a store: those that were closed, forgotten or damaged, and the numbers and times that go on with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rnnstream.engine.snapshot import encode
from rnnstream.errors import BadStore
from rnnstream.model.blas import one_thread
from tests.engine.models import network

from .driving import codes, step
from .keeping import Damaged, Kept, numbered, op, row, seen, steps_in_journal


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def few_tombstones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnnstream.engine.tombstones.TOMBSTONES", 2)


# Names that are forgotten ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("few_tombstones")
@pytest.mark.parametrize("request_", [numbered(1, session="a"), step("a", 1), op("reset", "a"), op("open", "a")])
@pytest.mark.parametrize(("journal_tokens", "later"), [(200_000, 0), (0, 5)])
def test_a_name_that_is_opened_in_the_wave_that_pushes_its_tombstone_out(
    request_: dict[str, Any], journal_tokens: int, later: int
) -> None:
    driver = Kept(network(), journal_tokens=journal_tokens)
    for name in "abcx":
        driver.ask(op("open", name))
    driver.ask(op("close", "a"), op("close", "x"))
    driver.ask(op("close", "b"), op("close", "c"), request_)
    before = seen(driver, "a")
    for i in range(later):  # until the journal needs nothing from before
        driver.ask(op("open", f"n{i}"))
    driver.crash()
    assert seen(driver, "a") == before


@pytest.mark.usefixtures("few_tombstones")
def test_the_row_of_a_forgotten_name_goes_when_the_journal_has_no_step_of_it() -> None:
    driver = Kept(network(), journal_tokens=100)
    for name in "abc":
        driver.ask(step(name, 1))
    driver.ask(step("busy", 1))
    for name in "abc":
        driver.ask(op("close", name))
    assert list(driver.engine.table.tombstones) == ["b", "c"]
    kept, needed = [], []
    for _ in range(30):
        driver.ask(step("busy", 1))
        kept.append(row(driver, "a") is not None)
        needed.append(next(iter(driver.store.inner.journal()))[0] == 1)  # which is the step of a
    assert kept == sorted(kept, reverse=True)
    assert needed[0]
    assert not kept[-1]
    assert needed.index(False) <= kept.index(False) < 20
    driver.crash()
    assert driver.listing() == ["busy"]
    assert [row(driver, name).status for name in "bc"] == ["closed", "closed"]  # type: ignore[union-attr]
    assert seen(driver, "a") == "never"
    assert driver.ask(step("a", 1))[0]["opened"]


@pytest.mark.usefixtures("few_tombstones")
def test_a_name_that_is_opened_closed_and_forgotten_in_one_write_stays_forgotten() -> None:
    driver = Kept(network(), hold_s=1e9)
    driver.ask(op("open", "b"), op("open", "c"))
    ends = [op(what, name) for name in "bc" for what in ("info", "info", "close")]
    assert len(driver.ask(step("a", 1), op("close", "a"), step("busy", 1), *ends)) == 9
    assert list(driver.engine.table.tombstones) == ["b", "c"]
    for _ in range(3):
        driver.ask(step("busy", 1))
        driver.crash()
        assert driver.listing() == ["busy"]


@pytest.mark.usefixtures("few_tombstones")
def test_the_youngest_tombstones_are_remembered_after_a_crash() -> None:
    for i in range(20):  # a set of names has another order each time
        names = [f"{name}{i}" for name in "abc"]
        driver = Kept(network())
        driver.ask(*[step(name, 1) for name in names], step("busy", 1))
        for name in names:
            driver.ask(op("close", name))
        driver.crash()
        assert driver.listing() == ["busy"]
        assert list(driver.engine.table.tombstones) == names[1:]  # the journal has steps of the one that is forgotten


@pytest.mark.usefixtures("few_tombstones")
def test_a_forgotten_name_that_is_opened_again_keeps_its_row() -> None:
    model = network()
    driver = Kept(model, journal_tokens=50)
    for name in "abc":
        driver.ask(step(name, 1))
        driver.ask(op("close", name))
    driver.ask(op("reset", "a"))
    driver.ask(step("a", 2))
    for _ in range(20):
        driver.ask(step("busy", 1))
        driver.ask(step("busy", 1))
    driver.crash()
    assert seen(driver, "a") == (1, encode(model.run([2]), 1, model.digest))


@pytest.mark.usefixtures("few_tombstones")
@pytest.mark.parametrize("then", [step("a", 1), numbered(1, 1, "a", "new")])
def test_a_name_that_is_on_the_way_to_be_forgotten_is_remembered_again_when_it_is_asked_for(then: dict[str, Any]) -> None:
    driver = Kept(network())
    for name in "abc":
        driver.ask(numbered(1, 1, name))
        driver.ask({"op": "close", "session": name, "producer": "p", "n": 2})
    assert "a" not in driver.engine.table.tombstones
    assert codes(driver.ask(then, numbered(4, 1, "a"))) == ["unknown_session", "gap"]
    assert list(driver.engine.table.tombstones) == ["c", "a"]
    assert driver.ask({"op": "close", "session": "a", "producer": "p", "n": 2})[0]["again"]
    for i in range(5):
        driver.ask(op("open", f"n{i}"))
    assert [row(driver, name) is None for name in "abc"] == [False, True, False]


@pytest.mark.usefixtures("few_tombstones")
def test_more_tombstones_than_are_remembered_after_a_crash() -> None:
    driver = Kept(network())
    for name in "abcde":
        driver.ask(step(name, 1))
        driver.ask(op("close", name))
    driver.crash()
    assert list(driver.engine.table.tombstones) == ["d", "e"]
    assert driver.stats()["open"] == 0
    assert driver.listing() == []
    driver.stop()
    for name in "xyz":
        driver.ask(op("open", name))
    assert [row(driver, name) is None for name in "abcde"] == [True, True, True, False, False]


# Damage ---------------------------------------------------------------------------------------------------------------


REQUESTS: list[dict[str, Any]] = [
    step("s", 1),
    step("s", 1, want="none"),
    numbered(1),
    op("open", "s"),
    op("close", "s"),
    op("info", "s"),
    op("snapshot", "s"),
    op("peek", "s", xs=[1]),
    op("fork", "s", to="new"),
    op("fork", "other", to="s"),
]


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_session_whose_row_is_damaged_is_no_fresh_one(request_: dict[str, Any]) -> None:
    driver = Kept(network(), store := Damaged())
    driver.ask(step("s", 1), step("other", 1))
    driver.stop()
    before = row(driver, "s")
    store.bad = ("s",)
    for t in (2, 3):
        refused, other = driver.ask(request_ | {"id": 5}, step("other", 1))
        assert (refused["error"], refused["retry_after_ms"], refused["id"]) == ("store_error", 60_000, 5)
        assert refused["session"] == request_["session"]
        assert other["t"] == t
    assert driver.stats()["store"]["damaged"] == 1
    assert driver.stats()["open"] == 2
    driver.stop()
    store.bad = ()
    assert row(driver, "s") == before
    assert seen(driver, "s")[0] == 1


def test_a_session_whose_row_is_damaged_starts_anew_by_a_reset() -> None:
    driver = Kept(network(), store := Damaged())
    driver.ask(step("s", 1), step("other", 1))
    driver.stop()
    store.bad = ("s",)
    (refused,) = driver.ask(step("s", 1))
    assert refused["error"] == "store_error"
    assert driver.ask(op("reset", "s")) == [{"session": "s", "t": 0}]
    store.bad = ()
    assert driver.ask(step("s", 2))[0]["t"] == 1
    assert (driver.stats()["open"], driver.stats()["store"]["damaged"]) == (2, 0)
    driver.crash()
    assert seen(driver, "s")[0] == 1
    assert driver.stats()["open"] == 2


def test_a_damaged_row_of_a_session_that_the_journal_has_steps_of_refuses_the_start() -> None:
    driver = Kept(network(), store := Damaged())
    driver.ask(op("open", "s"), op("open", "t"), step("s", 1), step("other", 1))
    store.bad = ("t",)  # which nobody has to have
    driver.crash()
    store.bad = ("s", "t")
    with pytest.raises(BadStore, match="the row of session s does not match"):
        driver.crash()
    store.bad = ()
    driver.begin()  # it was let go of
    assert driver.replayed == 2


# Numbers and times ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["crash", "stop", "evict"])
def test_replies_that_were_not_acknowledged_are_kept(end: str) -> None:
    driver = Kept(network(), max_resident=1 if end == "evict" else 1000)
    told = driver.ask(*[numbered(n, n % 7) for n in range(1, 8)])
    driver.ask(numbered(8, 1, ack=3))
    if end == "evict":
        driver.ask(step("other", 1))
        assert list(driver.states()) == ["other"]
    else:
        getattr(driver, end)()
    again = driver.ask(*[numbered(n, n % 7) for n in range(1, 8)])
    assert codes(again) == ["stale"] * 3 + [4, 5, 6, 7]
    assert again[3:] == [reply | {"again": True} for reply in told[3:]]
    assert codes(driver.ask(numbered(5, 6), numbered(8, 2), numbered(10), numbered(9))) == ["conflict", "conflict", "gap", 9]


@pytest.mark.parametrize("more", [{}, {"want": "none"}])
def test_replies_that_were_acknowledged_do_not_come_back(more: dict[str, Any]) -> None:
    driver = Kept(network())
    for n in (1, 2, 3):
        driver.ask(numbered(n) | more)  # each came alone, and so acknowledges all before it
    driver.crash()
    assert codes(driver.ask(numbered(1), numbered(2), numbered(3))) == ["stale", "stale", 3]


def test_producers_that_were_heard_of_late_are_not_forgotten_because_they_were_away() -> None:
    driver = Kept(network(), bounds={"producers": 2, "producer_s": 10})
    driver.now = 100.0
    driver.ask(numbered(1, producer="a"))
    driver.now = 103.0
    driver.ask(numbered(1, producer="b"))
    driver.stop()
    driver.now = 108.0
    assert codes(driver.ask(numbered(1, producer="c"))) == ["full"]
    driver.now = 112.0
    assert codes(driver.ask(numbered(1, producer="c"))) == [3]
    assert driver.ask(op("info", "s"))[0]["producers"] == {"b": 1, "c": 1}


def test_numbers_go_on_through_a_close_a_crash_and_another_opening() -> None:
    model = network()
    driver = Kept(model)
    close = {"op": "close", "session": "s", "producer": "p", "n": 3}
    reset = {"op": "reset", "session": "s", "producer": "p", "n": 4}
    driver.ask(numbered(1))
    driver.ask(numbered(2))
    (closed,) = driver.ask(close)
    driver.crash()
    assert driver.ask(close) == [closed | {"again": True}]
    assert codes(driver.ask(numbered(3))) == ["conflict"]
    assert codes(driver.ask(numbered(4))) == ["unknown_session"]
    (put,) = driver.ask(reset)
    driver.crash()
    assert driver.ask(reset) == [put | {"again": True}]
    assert codes(driver.ask(numbered(5, 6))) == [1]
    driver.crash()
    assert driver.replayed == 1
    assert codes(driver.ask(numbered(1), numbered(5, 6), numbered(6, 2))) == ["stale", 1, 2]
    driver.crash()
    assert driver.ask(op("info", "s"))[0]["producers"] == {"p": 6}
    assert driver.states() == {"s": (2, model.run([6, 2]).tobytes())}


@pytest.mark.parametrize("end", ["crash", "stop"])
@pytest.mark.parametrize("kind", ["plain", "with number", "with wish"])
def test_age_and_idleness_go_on_from_the_last_write(end: str, kind: str) -> None:
    driver = Kept(network(), tick_s=0.0)
    for now, name, n in ((5.0, "a", 1), (10.0, "b", 1), (30.0, "a", 2), (50.0, "c", 1)):
        driver.now = now
        driver.ask({"plain": step(name, 1), "with number": numbered(n, 1, name), "with wish": step(name, 1, want="none")}[kind])
    driver.now = 60.0
    driver.ask(op("info", "a"))  # changes nothing, and so is not written
    getattr(driver, end)()
    assert driver.now == (60.0 if end == "stop" else 50.0)
    last, driver.now = driver.now, driver.now + 100
    told = driver.ask(*[op("info", name) for name in "abc"])
    assert [(reply["age_s"], reply["idle_s"]) for reply in told] == [
        (last + 95, last + 70),
        (last + 90, last + 90),
        (last + 50, last + 50),
    ]


def test_steps_that_came_at_different_times_are_as_old_as_they_are_after_a_crash() -> None:
    driver = Kept(network(), tick_s=0.0, idle_timeout_s=100.0)
    driver.now = 10.0
    driver.ask(step("a", 1))
    driver.now = 80.0
    driver.ask(step("b", 1))
    driver.crash()
    assert steps_in_journal(driver) == 2
    driver.now = 111.0
    (gone, here) = driver.ask(step("a", 1), step("b", 1))
    assert (gone["why"], here["t"]) == ("expired", 2)
