"""How sessions are put together again after nothing could be written: cases made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rnnstream.engine.snapshot import encode
from rnnstream.errors import BadStore, StoreError
from rnnstream.model.blas import one_thread
from rnnstream.store.interface import Write
from rnnstream.store.memory import MemoryStore
from rnnstream.store.records import Batch, pack_entry
from rnnstream.worker.keeper import LATER_MS
from rnnstream.worker.saving import saved_row
from tests.engine.models import network

from .driving import codes, step
from .keeping import Damaged, Kept, numbered, op, row, seen, steps_in_journal


class Small(MemoryStore):
    """There is room for so many bytes at a time."""

    room = 1 << 30

    def write(self, write: Write) -> int:
        if len(write.entry) + sum(len(saved.state) + len(saved.producers) for saved in write.saved) > self.room:
            raise StoreError("full", retry_after_ms=1)
        return super().write(write)


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


def test_the_sessions_of_what_failed_are_put_together_to_the_bit(driver: Kept) -> None:
    model = driver.model
    driver.ask(step("other", 5))
    driver.store.next["write"] = 1
    told = driver.ask(numbered(3, 6, ack=0), step("other", 7), step("new", 8), op("reset", "gone"))
    assert codes(told) == ["store_error"] * 4
    assert driver.states() == {}
    assert driver.stats()["open"] == 2
    driver.now += 1
    told = driver.ask(*[numbered(n, x, ack=0) for n, x in ((1, 3), (2, 4), (3, 6))], op("info", "s"), op("info", "gone"))
    assert codes(told) == [1, 2, 3, 3, "unknown_session"]
    assert [reply.get("again") for reply in told[:3]] == [True, True, None]
    assert told[3]["producers"] == {"p": 3}
    assert driver.states() == {"s": (3, model.run([3, 4, 6]).tobytes()), "other": (1, model.run([5]).tobytes())}
    driver.crash()
    assert seen(driver, "s") == (3, encode(model.run([3, 4, 6]), 3, model.digest))
    assert seen(driver, "other") == (1, encode(model.run([5]), 1, model.digest))


def test_what_is_put_together_again_does_not_count_again(driver: Kept) -> None:
    driver.store.next["write"] = 1
    driver.ask(step("other", 1), step("s", 1))
    before = driver.stats()
    driver.now += 1
    driver.ask(op("info", "s"))
    after = driver.stats()
    assert (after["tokens"], after["batches"]) == (before["tokens"], before["batches"])
    assert steps_in_journal(driver) <= 1


@pytest.mark.parametrize("stricter", [{"max_sessions": 1}, {"explicit_open": True}])
def test_a_worker_that_allows_less_has_all_that_was_open(stricter: dict[str, Any]) -> None:
    driver = Kept(network())
    driver.ask(numbered(1, 1, "a"), step("b", 1), step("c", 1, want="none"), numbered(1, 1, "d", want="none"))
    driver.options |= stricter
    driver.crash()
    assert driver.replayed == 4
    assert {name: seen(driver, name)[0] for name in "abcd"} == dict.fromkeys("abcd", 1)
    assert codes(driver.ask(step("new", 1), numbered(2, 1, "a"))) == [
        "full" if "max_sessions" in stricter else "unknown_session",
        2,
    ]


def test_no_other_session_is_let_go_of(driver: Kept) -> None:
    driver.ask(step("other", 5))
    driver.store.next["write"] = 1
    driver.ask(step("s", 1))
    assert list(driver.states()) == ["other"]
    assert driver.stats()["open"] == 2
    driver.now += 1
    driver.store.next["journal"] = 1
    assert codes(driver.ask(step("other", 5))) == ["store_error"]
    assert list(driver.states()) == ["other"]
    assert codes(driver.ask(step("other", 5), step("s", 1))) == [2, 3]


@pytest.mark.parametrize("operation", ["load", "journal"])
def test_what_cannot_be_read_yet_is_put_together_later(driver: Kept, operation: str) -> None:
    before = seen(driver, "s")
    driver.store.next["write"] = 1
    driver.ask(step("s", 1), step("new", 2))
    driver.now += 1
    driver.store.next[operation] = 3
    for _ in range(3):
        assert codes(driver.ask(step("other", 1), op("info", "s"))) == ["store_error"] * 2
        assert driver.states() == {}
        assert driver.stats()["open"] == 1
        assert not driver.stats()["store"]["failing"]
    assert seen(driver, "s") == before
    assert codes(driver.ask(step("s", 1), step("new", 2), step("other", 1))) == [3, 1, 1]
    assert driver.engine.table.open_count == driver.stats()["open"] == 3


def test_a_damaged_journal_stops_no_worker(driver: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged() -> Iterator[tuple[int, bytes]]:
        raise BadStore("journal entry 7 does not match its checksum")

    before = seen(driver, "s")
    driver.store.next["write"] = 1
    driver.ask(step("s", 1))
    driver.now += 1
    monkeypatch.setattr(driver.store.inner, "journal", damaged)
    for _ in range(2):
        (told,) = driver.ask(step("s", 1))
        assert (told["error"], told["retry_after_ms"]) == ("store_error", 1000)
        assert "entry 7" in told["message"]
    monkeypatch.undo()
    assert seen(driver, "s") == before


def test_a_listing_waits_until_all_is_put_together(driver: Kept) -> None:
    listing = {"op": "sessions", "limit": 9}
    assert driver.ask(listing)[0]["sessions"] == []
    assert driver.listing() == ["s"]
    driver.store.next["write"] = 1
    driver.ask(step("s", 1), step("new", 2))
    for _ in range(2):
        (told,) = driver.ask(listing | {"id": 3})
        assert (told["error"], told["retry_after_ms"], told["id"]) == ("store_error", LATER_MS, 3)
        driver.now += 1  # nobody has tried
    driver.ask(op("info", "s"))
    assert driver.listing() == ["s"]
    driver.store.next["page"] = 1
    assert driver.ask(listing | {"after": 1 << 40})[0]["error"] == "store_error"
    assert driver.listing() == ["s"]


def test_what_was_too_large_is_tried_again_with_as_many_bytes() -> None:
    driver = Kept(network(), small := Small())
    driver.ask(op("open", "s"), step("s", 1))
    small.room = 200
    large = [numbered(1, 1, f"s{i}") for i in range(30)]
    assert codes(driver.ask(*large)) == ["store_error"] * 30
    for _ in range(5):  # a token alone would find room
        driver.now += 1
        assert codes(driver.ask(step("s", 1))) == ["store_error"]
    assert driver.stats()["store"]["failures"] == 6
    small.room = 1 << 30
    driver.now += 1
    assert codes(driver.ask(step("s", 1), *large)) == [2] + [1] * 30
    small.room = 200
    driver.now += 1
    assert codes(driver.ask(*[op("reset", f"s{i}") for i in range(9)])) == ["store_error"] * 9
    small.room = 9 * driver.model.state_size * 4
    driver.now += 1
    kept = len(driver.store.writes)
    assert codes(driver.ask(step("s", 1))) == ["store_error"]
    assert len(driver.store.writes) == kept  # not even nothing was


def test_the_journal_keeps_what_the_dropped_sessions_need() -> None:
    """Until they are together again, and saved."""
    model = network()
    driver = Kept(model, journal_tokens=0)
    driver.ask(*[step(f"s{i}", 1) for i in range(3)])
    driver.ask(step("s0", 2))
    assert steps_in_journal(driver) <= 4
    driver.store.next["write"] = 1
    driver.ask(*[step(f"s{i}", 3) for i in range(3)])
    for _ in range(4):
        driver.now += 1
        driver.store.next["load"] = 1
        assert codes(driver.ask(step("other", 1))) == ["store_error"]
    driver.crash()
    expected = {
        f"s{i}": (1 + (i == 0), encode(model.run([1, 2][: 1 + (i == 0)]), 1 + (i == 0), model.digest)) for i in range(3)
    }
    assert {name: seen(driver, name) for name in expected} == expected


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


def test_what_expires_meanwhile_does_not_cost_the_dropped_sessions_their_journal() -> None:
    driver = Kept(network(), idle_timeout_s=100.0)
    driver.ask(op("open", "idle"), op("open", "s"))
    driver.now = 90.0
    driver.ask(step("s", 3))
    driver.store.next["write"] = 1
    driver.ask(step("s", 4))
    driver.now, driver.store.next["load"] = 110.0, 3
    for _ in range(3):
        assert codes(driver.ask(step("new", 1))) == ["store_error"]
    assert row(driver, "idle").status == "expired"  # type: ignore[union-attr]
    assert seen(driver, "s") == (1, encode(driver.model.run([3]), 1, driver.model.digest))


def test_a_worker_that_ends_while_it_replays_has_lost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnnstream.worker.replay.CHUNK", 2)
    model, store = network(), MemoryStore()
    first = Kept(model, store)
    first.ask(step("a", 1), step("b", 1))
    saved = [saved_row(first.engine.table, first.engine.table.rows[name], 2) for name in "ab"]
    store.write(Write(2, pack_entry(1.0, []), saved))
    store.write(Write(3, pack_entry(1.0, [Batch(["c", "d"], [1, 2])])))
    store.close()
    monkeypatch.setattr(store, "journal", lambda journal=store.journal: interrupted(journal()))
    with pytest.raises(StoreError, match="interrupted"):
        Kept(model, store, max_resident=1)
    monkeypatch.undo()
    again = Kept(model, store, max_resident=1)
    assert {name: seen(again, name)[0] for name in "abcd"} == dict.fromkeys("abcd", 1)


def interrupted(entries: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """One entry only."""
    yield next(entries)
    raise StoreError("interrupted")


def test_a_stop_that_cannot_save_leaves_all_that_was_acknowledged(driver: Kept) -> None:
    before = seen(driver, "s")
    driver.store.next["write"] = 1
    with pytest.raises(StoreError):
        driver.stop()
    driver.begin()
    assert driver.replayed == 1
    assert seen(driver, "s") == before
    assert row(driver, "s").t == 1  # type: ignore[union-attr]
