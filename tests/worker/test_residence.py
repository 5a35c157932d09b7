"""Which sessions are in memory: who leaves, who comes back, and what is the same for those that are not there."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from rnnstream.engine.snapshot import encode
from rnnstream.model.blas import one_thread
from rnnstream.worker.residence import PAGE, STORED
from tests.engine.models import V, network

from .driving import codes, step
from .keeping import Kept, numbered, op, row, seen, steps_in_journal


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def waited_for(driver: Kept) -> int:
    return sum(driver.core._intake.waited_for(row) for row in driver.engine.table.rows.values())


# Who leaves -----------------------------------------------------------------------------------------------------------


def test_those_that_moved_least_recently_leave_first() -> None:
    driver = Kept(network(), max_resident=3)
    for name in "abcab":
        driver.ask(step(name, 1))
    assert sorted(driver.states()) == ["a", "b", "c"]
    for name, left in (("d", "abd"), ("e", "bde"), ("b", "bde"), ("f", "bef"), ("d", "bdf")):
        driver.ask(step(name, 1))
        assert sorted(driver.states()) == list(left)
    stats = driver.stats()
    assert stats["open"] == 6
    assert stats["store"] == {"failing": False, "failures": 0, "resident": 3, "loads": 1, "evictions": 4, "damaged": 0}
    assert [seen(driver, name)[0] for name in "abcdef"] == [2, 3, 1, 2, 1, 1]


def test_many_leave_at_once_the_oldest_of_them() -> None:
    driver = Kept(network(), max_resident=50)
    order = list(range(120))
    random.Random(1).shuffle(order)
    for i in order:
        driver.ask(step(f"s{i}", i % V))
        assert len(driver.engine.table.rows) <= 50
    assert set(driver.states()) == {f"s{i}" for i in order[-50:]}
    for i in order:
        assert seen(driver, f"s{i}") == (1, encode(driver.model.run([i % V]), 1, driver.model.digest))
    assert driver.replayed == 0


def test_those_that_moved_last_stay_after_a_replay() -> None:
    driver = Kept(network())
    order = list(range(120))
    random.Random(2).shuffle(order)
    for t in (1, 2):
        for i in order:
            assert codes(driver.ask(step(f"s{i}", 1))) == [t]
        order.reverse()
    driver.max_resident = 50
    driver.crash()
    order.reverse()
    assert set(driver.states()) == {f"s{i}" for i in order[-50:]}


def test_whoever_was_to_leave_and_moved_stays() -> None:
    driver = Kept(network(), max_resident=100)
    for i in range(101):
        driver.ask(step(f"s{i}", 1))
    driver.ask(*[step(f"s{i}", 1) for i in range(1, 20)])
    for name in ("new", "newer", "newest"):
        driver.ask(step(name, 1))
    assert {f"s{i}" for i in range(1, 20)} < set(driver.states())


def test_whoever_is_waited_for_stays() -> None:
    model = network()
    driver = Kept(model, max_resident=1)
    driver.handle((b"", [step("a", 1), step("a", 2), step("b", 3), step("a", 4), step("c", 5)]))
    assert list(driver.states()) == ["a"]
    assert [row(driver, name).t for name in "bc"] == [1, 1]  # type: ignore[union-attr]
    assert row(driver, "a") is None
    driver.handle((b"x", [step("b", 1), step("b", 1)]))
    driver.finish()
    assert codes(driver.replies[b""][0]) == [1, 2, 1, 3, 1]
    assert codes(driver.replies[b"x"][0]) == [2, 3]
    assert len(driver.states()) == 1
    assert seen(driver, "a") == (3, encode(model.run([1, 2, 4]), 3, model.digest))


def test_memory_holds_no_more_than_it_may_and_those_that_are_waited_for() -> None:
    for seed in range(3):
        rng = random.Random(seed)
        driver = Kept(network(), max_resident=20, journal_tokens=rng.choice([0, 500, 100_000]))
        ts = dict.fromkeys((f"s{i}" for i in range(100)), 0)
        for _ in range(150):
            names = rng.choices([*ts], k=rng.choice([1, 2, 10, 60]))
            for name in names:
                ts[name] += 1
            driver.handle((b"", [step(name, 1) for name in names]))
            driver.handle()  # see below: one turn later at most
            assert len(driver.engine.table.rows) <= max(20, waited_for(driver))
        driver.finish()
        assert all(len({saved.name for saved in write.saved}) == len(write.saved) for write in driver.store.writes)
        assert driver.stats()["open"] == sum(t > 0 for t in ts.values())
        assert {name: seen(driver, name)[0] for name in ts if ts[name]} == {name: t for name, t in ts.items() if t}


def test_those_that_were_to_leave_and_moved_do_not_keep_others_beyond_the_bound() -> None:
    driver = Kept(network(), max_resident=100)
    for i in range(101):
        driver.ask(step(f"s{i}", 1))
    assert len(driver.states()) == 100
    driver.ask(*[step(f"s{i}", 1) for i in range(1, 20)])
    driver.ask(step("new", 1))
    assert len(driver.states()) == 100


def test_whoever_leaves_is_saved_as_it_is() -> None:
    model = network()
    driver = Kept(model, max_resident=1)
    told = driver.ask(*[numbered(n, n, "a") for n in range(1, 5)])
    saved = []
    for request in (step("b", 1), op("info", "a"), op("info", "b"), op("info", "a")):
        driver.ask(request)
        saved.append([s.name for s in driver.store.writes[-1].saved])
    assert saved == [["a"], ["b"], [], []]
    assert steps_in_journal(driver) <= 1
    assert driver.ask(*[numbered(n, n, "a") for n in range(1, 5)]) == [reply | {"again": True} for reply in told]
    driver.crash()
    assert driver.replayed <= 1
    assert seen(driver, "a") == (4, encode(model.run([1, 2, 3, 4]), 4, model.digest))


def test_a_session_that_comes_back_has_no_past_in_its_row() -> None:
    """Neither is what another session of the same row had not saved taken for its own."""
    driver = Kept(network(), max_resident=2, journal_tokens=100_000)
    for t in range(1, 6):
        for name in "abcd":
            assert codes(driver.ask(step(name, t))) == [t]
    driver.ask(op("close", "a"))
    driver.crash()
    assert seen(driver, "a") == "closed"
    expected = encode(driver.model.run([1, 2, 3, 4, 5]), 5, driver.model.digest)
    assert [seen(driver, name) for name in "bcd"] == [(5, expected)] * 3
    assert driver.replayed <= 3


# Who is not there -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (op("fork", "b", to="a"), {"error": "exists"}),
        (op("fork", "a", to="b"), {"error": "exists"}),
        (op("fork", "a", to="new"), {"t": 1, "to": "new"}),
        (op("fork", "b", to="gone"), {"t": 1, "to": "gone"}),
        (op("open", "a"), {"error": "exists"}),
        (op("reset", "a"), {"t": 0}),
        (op("close", "a"), {"closed": True}),
        (step("a", 1, t=3), {"error": "conflict", "t": 1}),
        (step("a", 1), {"t": 2}),
        (step("gone", 1), {"error": "unknown_session", "why": "closed"}),
        (step("new", 1), {"t": 1, "opened": True}),
        (op("peek", "a", xs=[1]), {"t": 1}),
    ],
)
def test_what_is_only_in_the_store_is_there(request_: dict[str, Any], expected: dict[str, Any]) -> None:
    driver = Kept(network())
    driver.ask(step("a", 1), step("b", 1), op("open", "gone"))
    driver.ask(op("close", "gone"))
    driver.stop()
    assert driver.states() == {}
    (told,) = driver.ask(request_)
    assert expected.items() <= told.items()
    assert len(driver.listing()) == driver.stats()["open"]


def test_a_copy_of_a_name_that_is_asked_for_in_the_same_body() -> None:
    driver = Kept(network(), max_resident=1)
    driver.ask(step("a", 1), step("b", 1), step("c", 1))
    told = driver.ask(op("fork", "a", to="b"), step("b", 2), step("new", 1), op("fork", "c", to="d"), step("c", 1))
    assert codes(told) == ["exists", 2, 1, 1, 2]
    assert len(driver.engine.table.rows) == 1


def test_sessions_that_are_not_in_memory_count() -> None:
    driver = Kept(network(), max_resident=1, max_sessions=3)
    driver.ask(*[step(name, 1) for name in "abc"])
    assert driver.engine.table.absent == 2
    for request in (step("d", 1), op("open", "d"), op("reset", "d"), op("fork", "a", to="d")):
        assert codes(driver.ask(request)) == ["full"]
    driver.stop()
    assert codes(driver.ask(step("d", 1), step("a", 1))) == ["full", 2]
    driver.ask(op("close", "b"))
    assert codes(driver.ask(step("d", 1), step("e", 1))) == [1, "full"]
    assert driver.stats()["open"] == 3


def test_a_listing_has_every_session_once_and_those_in_the_store_too() -> None:
    driver = Kept(network(), max_resident=4)
    names = [f"{'xy'[i % 2]}{i}" for i in range(25)]
    driver.ask(*[step(name, 1) for name in names])
    driver.ask(op("close", names.pop()))
    driver.ask(step("x-new", 1), op("open", "y-new"))
    for limit in (1, 3, 100):
        assert sorted(driver.listing(limit=limit)) == sorted([*names, "x-new", "y-new"])
        assert sorted(driver.listing("y", limit)) == sorted([name for name in names if name[0] == "y"] + ["y-new"])
    assert driver.listing("z") == []
    (page,) = driver.ask({"op": "sessions", "after": STORED, "limit": 5})
    assert (len(page["sessions"]), page["next"] > STORED) == (5, True)


def test_a_listing_looks_at_a_bounded_part_of_the_store() -> None:
    driver = Kept(network(), max_resident=10)
    for start in range(0, 1500, 500):
        driver.ask(*[step(f"s{i}", 1) for i in range(start, start + 500)])
    (page,) = driver.ask({"op": "sessions", "after": STORED, "limit": 1000, "prefix": "no"})
    assert page == {"sessions": [], "next": STORED + PAGE}
    (page,) = driver.ask({"op": "sessions", "after": STORED + PAGE, "limit": 1000, "prefix": "s"})
    assert "next" not in page
    (same,) = driver.ask({"op": "sessions", "after": STORED + PAGE, "limit": len(page["sessions"]), "prefix": "s"})
    assert same == page
    assert 480 <= len(page["sessions"]) <= 500
