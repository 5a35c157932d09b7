"""What is written when, what happens if it cannot be, and what a crash leaves: cases made by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from rnnstream.engine.snapshot import encode
from rnnstream.model.blas import one_thread
from rnnstream.store.interface import Saved
from rnnstream.store.memory import MemoryStore
from tests.engine.models import network

from .driving import codes, pack, step
from .keeping import Kept


class Damaged(MemoryStore):
    """Says of some rows that they are damaged.

    Attributes:
        bad: their names.
    """

    bad: tuple[str, ...] = ()

    def load(self, names: Sequence[str]) -> tuple[list[Saved], list[str]]:
        found, _ = super().load(names)
        return [saved for saved in found if saved.name not in self.bad], [s.name for s in found if s.name in self.bad]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def few_tombstones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnnstream.engine.table.TOMBSTONES", 2)


def numbered(n: int, x: Any = 1, session: str = "s", producer: str = "p", **more: Any) -> dict[str, Any]:
    return {"session": session, "x": x, "producer": producer, "n": n, **more}


def op(op: str, session: str, **more: Any) -> dict[str, Any]:
    return {"op": op, "session": session, **more}


def seen(driver: Kept, session: str) -> Any:
    """Step count and state of a session, or why it is not open."""
    (told,) = driver.ask(op("snapshot", session))
    return told.get("why") or (told["t"], told["state"])


def raw(driver: Kept, item: dict[str, Any]) -> bytes:
    """The reply to one request as it is sent."""
    out = driver.handle((b"raw", pack([item])))
    while not out:
        out = driver.handle()
    ((_, body),) = out
    driver.replies.clear()
    return body


# Replaying ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_resident", [1, 2, 1000])
def test_sessions_that_leave_during_a_replay_come_back_for_the_rest_of_it(
    monkeypatch: pytest.MonkeyPatch, max_resident: int
) -> None:
    monkeypatch.setattr("rnnstream.worker.replay.CHUNK", 10)
    model = network()
    driver = Kept(model)
    for n in range(1, 7):
        driver.ask(*[numbered(n, n, f"s{i}") for i in range(5)])
    driver.max_resident = max_resident
    driver.crash()
    assert driver.replayed == 30
    assert driver.stats()["open"] == 5
    for i in range(5):
        (told,) = driver.ask(op("info", f"s{i}"))
        assert (told["t"], told["producers"]) == (6, {"p": 6})
        assert seen(driver, f"s{i}") == (6, encode(model.run([1, 2, 3, 4, 5, 6]), 6, model.digest))


@pytest.mark.parametrize("first", [{}, {"want": "probs"}, {"ack": 0, "want": 3, "surprisal": True}])
@pytest.mark.parametrize("then", [{}, {"producer": "q", "n": 1}])
def test_the_reply_that_told_of_the_opening_is_the_same_after_a_crash(first: dict[str, Any], then: dict[str, Any]) -> None:
    driver = Kept(network())
    (told,) = driver.ask(numbered(1, 3, **first))
    driver.ask(step("s", 1, **then))
    assert told["opened"]
    driver.crash()
    assert driver.replayed == 2
    assert driver.ask(numbered(1, 3)) == [told | {"again": True}]


@pytest.mark.parametrize("more", [{}, {"t": 1}, {"x": "w3"}, {"op": "step"}, {"ack": 0}, {"want": "probs"}, {"want": "none"}])
def test_a_reply_that_is_made_again_has_the_same_bytes(more: dict[str, Any]) -> None:
    driver = Kept(network(vocabulary=True))
    driver.ask(op("open", "s"))
    first = raw(driver, numbered(1, 3) | more)
    again = bytes((first[0] + 1,)) + first[1:] + b"\xa5again\xc3"
    assert raw(driver, numbered(1, 3)) == again
    driver.crash()
    assert driver.replayed == 1
    assert raw(driver, numbered(1, 3)) == again


def test_producers_stay_within_their_bound_in_a_replay() -> None:
    driver = Kept(network(), bounds={"producers": 2, "producer_s": 10})
    for producer in "abcde":
        assert "error" not in driver.ask(numbered(1, producer=producer))[0]
        driver.now += 20
    before = driver.ask(op("info", "s"))[0]
    assert before["producers"] == {"d": 1, "e": 1}
    driver.crash()
    assert driver.ask(op("info", "s"))[0]["producers"] == {"d": 1, "e": 1}


# Failing --------------------------------------------------------------------------------------------------------------


def test_what_was_dropped_does_not_expire_by_what_its_row_says_of_it() -> None:
    model = network()
    driver = Kept(model, idle_timeout_s=50.0)
    driver.ask(op("open", "s"))
    for _ in range(10):
        driver.now += 10
        driver.ask(step("s", 1))  # in the journal only: the row is 100 seconds old
    driver.store.next["write"] = 1
    assert codes(driver.ask(step("s", 1))) == ["store_error"]
    driver.now += 1
    driver.store.next["load"] = 1
    assert codes(driver.ask(step("s", 1))) == ["store_error"]
    driver.now += 1
    assert codes(driver.ask(step("s", 1))) == [11]
    assert driver.states() == {"s": (11, model.run([1] * 11).tobytes())}
    assert driver.stats()["open"] == 1


def test_a_damaged_row_of_a_session_that_was_dropped_harms_no_other() -> None:
    driver = Kept(network(), store := Damaged())
    driver.ask(op("open", "s"), step("other", 1))
    store.bad = ("s",)
    assert codes(driver.ask(step("s", 1), step("other", 1))) == [1, 2], "it is in memory"
    driver.store.next["write"] = 1
    assert codes(driver.ask(step("s", 1), step("other", 1))) == ["store_error"] * 2
    for t in (3, 4):
        driver.now += 1
        assert codes(driver.ask(step("s", 1), step("other", 1), step(f"new{t}", 1))) == ["store_error", t, 1]


def test_check_holds_while_replies_are_held() -> None:
    driver = Kept(network(), hold_s=1e9)
    driver.ask(op("open", "s"))
    driver.handle((b"", [op("close", "s"), step("s", 1)]))
    assert driver.core._group
    driver.core.check()
    driver.finish()


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


# Expiry ---------------------------------------------------------------------------------------------------------------


def test_a_session_that_came_back_expires_in_time() -> None:
    driver = Kept(network(), idle_timeout_s=1000.0)
    driver.now = 10.0
    driver.ask(step("a", 1))
    driver.now = 900.0
    driver.ask(step("b", 1))
    driver.stop()
    driver.ask(step("b", 1))  # nothing in memory is due before 1900
    driver.now = 1005.0
    assert codes(driver.ask(op("info", "a"))) == [1]
    driver.now = 1800.0
    assert driver.ask(step("a", 1))[0].get("why") == "expired"
