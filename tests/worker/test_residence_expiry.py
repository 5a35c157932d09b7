"""Who expires of the sessions in a store, in memory or not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rnnstream.model.blas import one_thread
from rnnstream.worker.residence import REST_S, SWEPT
from tests.engine.models import network

from .driving import codes, step
from .keeping import Kept, numbered, op, row, seen


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


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


@pytest.mark.parametrize("request_", [step("a", 1), op("info", "a"), numbered(2, 1, "a"), op("fork", "a", to="c")])
def test_who_is_asked_for_in_the_store_when_it_is_due_has_expired(request_: dict[str, Any]) -> None:
    driver = Kept(network(), idle_timeout_s=100.0)
    driver.ask(numbered(1, 1, "a"))
    driver.now = 60.0
    driver.ask(step("b", 1))
    driver.stop()
    driver.store.chance["page"] = 1  # by no sweep
    driver.now = 120.0
    told, alive = driver.ask(request_, op("info", "b"))
    assert (told["error"], told["why"], alive["t"]) == ("unknown_session", "expired", 1)
    assert driver.stats()["expired"] == 1
    assert row(driver, "a").status == "expired"  # type: ignore[union-attr]
    driver.crash()
    assert seen(driver, "a") == "expired"
    assert driver.ask(numbered(1, 1, "a"))[0]["again"]


def test_a_copy_to_a_name_that_is_due_has_room() -> None:
    driver = Kept(network(), idle_timeout_s=100.0)
    driver.ask(step("a", 1))
    driver.now = 60.0
    driver.ask(step("b", 1))
    driver.stop()
    driver.store.chance["page"] = 1
    driver.now = 120.0
    assert driver.ask(op("fork", "b", to="a")) == [{"session": "b", "to": "a", "t": 1}]
    assert driver.stats()["open"] == 2
    driver.crash()
    assert [seen(driver, name)[0] for name in "ab"] == [1, 1]


def test_the_sweep_finds_all_that_are_due_and_only_those() -> None:
    driver = Kept(network(), idle_timeout_s=100.0, max_resident=5, tick_s=0.02)
    driver.ask(*[step(f"old{i}", 1) for i in range(450)])
    driver.now = 80.0
    driver.ask(*[step(f"new{i}", 1) for i in range(300)])
    driver.store.calls.clear()
    left = []
    for driver.now in (110.0, 140.0):  # from where the sweep was, and from the beginning
        for _ in range(10):
            driver.ask({"op": "ping"})
            left.append(driver.stats()["open"])
            assert driver.store.calls["page"] <= len(left) * 2
            assert len(driver.engine.table.rows) <= 5
    assert left[0] >= 750 - 2 * SWEPT
    assert left == sorted(left, reverse=True)
    assert left[-1] == 300
    assert driver.stats()["expired"] == driver.stats()["tombstones"] == driver.stats()["store"]["loads"] == 450
    pages = driver.store.calls["page"]
    for _ in range(10):
        driver.ask({"op": "ping"})
    assert driver.store.calls["page"] == pages  # not before a quarter of the time is over
    driver.crash()
    assert [seen(driver, name) for name in ("old0", "old449")] == ["expired"] * 2
    assert driver.stats()["open"] == 300
    for driver.now in (300.0, 330.0):
        for _ in range(5):
            driver.ask({"op": "ping"})
    assert driver.stats()["open"] == 0


def test_a_sweep_that_fails_is_tried_again() -> None:
    driver = Kept(network(), idle_timeout_s=100.0)
    driver.ask(step("a", 1))
    driver.stop()
    driver.now = 200.0
    driver.store.next["page"] = 1
    assert driver.ask({"op": "ping"})[0]["ok"]
    assert driver.store.failed["page"] == 1
    driver.now += 1 + REST_S
    driver.ask({"op": "ping"})
    driver.ask({"op": "ping"})
    assert (driver.stats()["open"], driver.stats()["expired"]) == (0, 1)
