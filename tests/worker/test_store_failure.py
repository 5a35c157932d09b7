"""What happens if nothing can be written, or read: cases made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rnnstream.engine.snapshot import encode
from rnnstream.model.blas import one_thread
from rnnstream.worker.keeper import RETRY_S
from tests.engine.models import network

from .driving import codes, step
from .keeping import Kept, numbered, op, seen, steps_in_journal

EVERY: list[dict[str, Any]] = [
    step("s", 1),
    step("s", 1, want="none"),
    step("new", 1),
    numbered(3),
    numbered(1, session="new"),
    op("open", "new"),
    op("reset", "s"),
    op("close", "s"),
    op("info", "s"),
    op("snapshot", "s"),
    op("peek", "s", xs=[1]),
    op("fork", "s", to="new"),
    op("close", "gone"),
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def driver() -> Kept:
    """Session s has had two numbered tokens, and is saved up to the first; one was closed."""
    driver = Kept(network(), tick_s=0.001)
    driver.ask(numbered(1, 3))
    driver.ask(op("open", "gone"))
    driver.ask(op("close", "gone"))
    driver.stop()
    driver.now = 10.0
    driver.ask(numbered(2, 4, ack=0))
    assert steps_in_journal(driver) == 1
    return driver


def test_every_request_is_refused_while_nothing_can_be_written(driver: Kept) -> None:
    before = seen(driver, "s")
    driver.store.chance["write"] = 1
    for i, request in enumerate(EVERY):
        (told,) = driver.ask(request | {"id": i}, address=b"%d" % i)
        assert told.pop("message")
        if not driver.store.failed["write"]:  # nothing was to be written yet
            assert request["op"] in ("info", "snapshot", "peek")
            continue
        assert told == {"error": "store_error", "retry_after_ms": 7, "session": request["session"], "id": i}
    assert codes(driver.ask(*EVERY)) == ["store_error"] * len(EVERY)
    assert driver.ask({"op": "hello"})[0]["worker"] == driver.ask({"op": "ping"})[0]["worker"] == "w"
    stats = driver.stats()
    assert stats["store"]["failing"]
    assert stats["store"]["failures"] == driver.store.failed["write"] >= 1
    assert stats["open"] == 1
    driver.calm()
    assert not driver.stats()["store"]["failing"]
    assert seen(driver, "s") == before
    assert seen(driver, "new") == "never"
    assert seen(driver, "gone") == "closed"


def test_it_is_tried_again_now_and_then(driver: Kept) -> None:
    driver.store.chance["write"] = 1
    began = driver.now
    for _ in range(300):
        assert codes(driver.ask(step("s", 1), op("info", "s"))) == ["store_error"] * 2
    assert (driver.now - began) / RETRY_S - 2 < driver.store.failed["write"] <= (driver.now - began) / RETRY_S + 1
    failures = driver.store.failed["write"]
    driver.store.chance.clear()
    told = [driver.ask(op("info", "s"))[0] for _ in range(60)]
    assert codes(told[:1] + told[55:]) == ["store_error"] + [2] * 5
    assert driver.store.failed["write"] == failures


@pytest.mark.parametrize(("hold_s", "first"), [(0.0, 1), (0.025, 4)])
def test_what_an_earlier_write_has_kept_is_told_and_the_rest_is_healed_by_a_repeat(hold_s: float, first: int) -> None:
    model = network()
    driver = Kept(model, hold_s=hold_s)
    driver.ask(op("open", "s"), step("other", 1))
    requests = [numbered(n, n % 7, id=n) for n in range(1, 9)] + [step("other", 2, id=9)]
    driver.store.calls.clear()
    driver.handle((b"body", requests))
    while not driver.store.calls["write"]:
        driver.handle()
    assert driver.replies.get(b"body") is None
    driver.store.next["write"] = 1
    driver.finish()
    told = driver.replies.pop(b"body")[0]
    assert codes(told) == [*range(1, first + 1), *["store_error"] * (8 - first), 2]
    assert [reply["id"] for reply in told] == list(range(1, 10))
    assert all(reply["session"] == ("s" if reply["id"] < 9 else "other") for reply in told)
    assert driver.store.calls["write"] == 2
    driver.now += 1
    again = driver.ask(*requests[:8])
    assert codes(again) == list(range(1, 9))
    assert [reply.get("again", False) for reply in again] == [n <= first for n in range(1, 9)]
    assert again[:first] == [reply | {"again": True} for reply in told[:first]]
    assert seen(driver, "s") == (8, encode(model.run([n % 7 for n in range(1, 9)]), 8, model.digest))
    assert seen(driver, "other")[0] == 2


@pytest.mark.parametrize("hold_s", [0.0, 1e9])
def test_all_that_waits_is_refused_with_what_could_not_be_kept(hold_s: float) -> None:
    driver = Kept(network(), hold_s=hold_s)
    driver.ask(*[op("open", name) for name in "abc"])
    driver.store.next["write"] = 1
    bodies = [
        (b"1", [step("a", 1), step("a", 1, id="x"), op("close", "b"), op("open", "b"), op("peek", "c", xs=[1, 2])]),
        (b"2", [step("a", 1)]),
        (b"3", [numbered(1, 1, "c"), step("c", 1), step("new", 1, want="none"), op("nonsense", "c"), op("info", "never")]),
    ]
    driver.handle(*bodies)
    driver.finish()
    found = {address: driver.replies[address][0] for address, _ in bodies}
    assert codes(found[b"1"]) == ["store_error"] * 5
    assert codes(found[b"2"]) == ["store_error"]
    assert codes(found[b"3"]) == ["store_error"] * 3 + ["bad_request", "store_error"]
    for address, items in bodies:
        for item, reply in zip(items, found[address], strict=True):
            assert (reply["session"], reply.get("id")) == (item["session"], item.get("id"))
    driver.calm()
    assert [seen(driver, name)[0] for name in "abc"] == [0, 0, 0]
    assert seen(driver, "new") == seen(driver, "never") == "never"


@pytest.mark.parametrize("wave", [0, 1, 3])
def test_a_peek_under_way_is_refused_once(driver: Kept, wave: int) -> None:
    before = seen(driver, "s")
    driver.handle((b"peek", [op("peek", "s", xs=[1, 2, 3, 4, 5], id=9)]))
    for _ in range(wave):
        driver.handle()
    driver.store.next["write"] = 1
    driver.handle((b"step", [step("other", 1)]))
    driver.finish()
    (told,) = driver.replies[b"peek"].pop()
    assert not driver.replies[b"peek"]
    assert (told["error"], told["session"], told["id"]) == ("store_error", "s", 9)
    assert codes(driver.replies[b"step"].pop()) == ["store_error"]
    driver.now += 1
    assert len(driver.ask(op("peek", "s", xs=[1, 2, 3]))[0]["ys"]) == 3
    assert seen(driver, "s") == before


def test_a_peek_in_the_wave_that_cannot_be_kept_is_refused_once(driver: Kept) -> None:
    driver.store.next["write"] = 1
    told = driver.ask(op("peek", "s", xs=[1, 2, 3]), step("other", 1), op("peek", "other", xs=[1]))
    assert codes(told) == ["store_error"] * 3
    driver.calm()
    assert seen(driver, "s")[0] == 2


def test_nothing_expires_while_nothing_can_be_written() -> None:
    driver = Kept(network(), idle_timeout_s=100.0)
    driver.ask(step("a", 1), step("b", 1))
    driver.now = 50.0
    driver.store.chance["write"] = 1
    driver.ask(step("b", 1))
    driver.now = 200.0
    assert codes(driver.ask(op("info", "a"))) == ["store_error"]
    assert driver.stats()["open"] == 2
    driver.store.chance.clear()
    driver.now = 201.0
    driver.ask(op("info", "never"))
    assert [reply["why"] for reply in driver.ask(op("info", "a"), op("info", "b"))] == ["expired"] * 2
    driver.crash()
    assert [seen(driver, name) for name in "ab"] == ["expired"] * 2


def test_check_holds_while_replies_are_held() -> None:
    driver = Kept(network(), hold_s=1e9)
    driver.ask(op("open", "s"))
    driver.handle((b"", [op("close", "s"), step("s", 1)]))
    assert driver.core._group
    driver.core.check()
    driver.finish()


def test_nothing_is_told_before_it_is_kept() -> None:
    """Listings and counters neither."""
    driver = Kept(network(), hold_s=1e9)
    driver.handle((b"", [op("open", "s"), step("s", 1), step("s", 1)]))
    driver.handle((b"other", [{"op": "sessions"}]))
    driver.store.next["write"] = 1
    driver.finish()
    assert codes(driver.replies[b""].pop()) == ["store_error"] * 3
    assert driver.replies[b"other"].pop()[0].get("sessions", []) == []
