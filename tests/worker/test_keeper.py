"""What is written when, and what a crash leaves: cases made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rnnstream.engine.snapshot import encode
from rnnstream.errors import BadStore
from rnnstream.model.blas import one_thread
from rnnstream.model.network import Network
from rnnstream.store.interface import Identity, Write
from rnnstream.store.memory import MemoryStore
from rnnstream.store.records import Batch, pack_entry
from rnnstream.worker.keeper import SLICE, WAVE_TOKENS
from tests.engine.models import V, network, relu

from .driving import codes, step
from .keeping import Kept, numbered, op, row, seen, steps_in_journal


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


class Counted(Network):
    """Counts the rows of each of its batches."""

    def __init__(self) -> None:
        self.__dict__ |= network().__dict__
        self.batches: list[int] = []

    def advance(self, states: Any, inputs: Any) -> Any:
        self.batches.append(len(states))
        return super().advance(states, inputs)


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


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"t": 1},
        {"x": "w3"},
        {"op": "step"},
        {"ack": 0},
        {"want": "probs"},
        {"want": "none"},
        {"want": 2, "surprisal": True},
        {"surprisal": True},
    ],
)
def test_a_reply_that_is_made_again_says_the_same(more: dict[str, Any]) -> None:
    driver = Kept(network(vocabulary=True))
    driver.ask(op("open", "s"))
    (first,) = driver.ask(numbered(1, 3) | more)
    assert first["t"] == 1
    assert driver.ask(numbered(1, 3)) == [first | {"again": True}]
    driver.crash()
    assert driver.replayed == 1
    assert driver.ask(numbered(1, 3)) == [first | {"again": True}]


def test_producers_stay_within_their_bound_in_a_replay() -> None:
    driver = Kept(network(), bounds={"producers": 2, "producer_s": 10})
    for producer in "abcde":
        assert "error" not in driver.ask(numbered(1, producer=producer))[0]
        driver.now += 20
    before = driver.ask(op("info", "s"))[0]
    assert before["producers"] == {"d": 1, "e": 1}
    driver.crash()
    assert driver.ask(op("info", "s"))[0]["producers"] == {"d": 1, "e": 1}


def test_a_replay_forgets_the_producers_that_were_forgotten() -> None:
    """Those that had been silent for longest then, however many steps are replayed as one."""
    driver = Kept(network(), bounds={"producers": 2, "producer_s": 10})
    for producer, n in (("a", 1), ("b", 1), ("a", 2), ("c", 1)):
        driver.ask(numbered(n, producer=producer))
        driver.now += 20
    assert driver.ask(op("info", "s"))[0]["producers"] == {"a": 2, "c": 1}
    driver.crash()
    assert driver.ask(op("info", "s"))[0]["producers"] == {"a": 2, "c": 1}


def test_a_long_journal_is_replayed_in_few_batches() -> None:
    """Every session's tokens came one behind the other, each in a batch of its own."""
    model, store = Counted(), MemoryStore()
    store.open(Identity(model.digest, model.name, "<f4", model.state_size, model.numerics))
    for i in range(3000):
        store.write(Write(i + 1, pack_entry(i, [Batch([f"s{i}"], [(i + t) % V]) for t in range(10)])))
    store.close()
    driver = Kept(model, store)
    assert driver.replayed == sum(model.batches) == 30_000
    assert len(model.batches) == 20
    assert driver.stats()["open"] == 3000
    for i in (0, 1999, 2999):
        expected = network().run([(i + t) % V for t in range(10)])
        assert seen(driver, f"s{i}") == (10, encode(expected, 10, model.digest))
    (told,) = driver.ask(op("info", "s7"))
    assert (told["age_s"], told["idle_s"]) == pytest.approx((driver.now - 7, driver.now - 7))


def test_a_replay_asks_for_no_leave() -> None:
    """Neither names that are not open, nor a full worker, nor a name that was closed in between stop what has counted."""
    model = network()
    driver = Kept(model, explicit_open=True, max_sessions=2)
    driver.ask(op("open", "a"), op("open", "b"), numbered(1, 1, "a"), step("b", 2))
    driver.ask(numbered(2, 2, "a", t=2), op("close", "b"), op("open", "c"), step("c", 3))
    driver.crash()
    assert driver.replayed == 3
    assert driver.states() == {"a": (2, model.run([1, 2]).tobytes()), "c": (1, model.run([3]).tobytes())}
    assert codes(driver.ask(step("b", 1), op("open", "d"), op("close", "a"))) == ["unknown_session", "full", "?"]


def test_tokens_that_did_not_count_are_not_in_the_journal() -> None:
    model = relu()
    driver = Kept(model)
    spoiled = 7
    told = driver.ask(numbered(1, 1, "a"), step("b", spoiled), numbered(1, 2, "c", want="none"), step("d", 3))
    assert codes(told) == [1, "not_finite", 1, 1]
    assert steps_in_journal(driver) == 3
    driver.crash()
    assert driver.replayed == 3
    assert driver.states() == {name: (1, model.run([x]).tobytes()) for name, x in {"a": 1, "c": 2, "d": 3}.items()}
    assert driver.ask(numbered(1, 2, "c")) == [told[2] | {"again": True}]
    assert driver.ask(numbered(1, 1, "a")) == [told[0] | {"again": True}]


def test_a_journal_that_does_not_fit_its_sessions_is_refused() -> None:
    store = MemoryStore()
    model = network()
    store.open(Identity(model.digest, model.name, "<f4", model.state_size, model.numerics))
    store.write(Write(1, pack_entry(1.0, [Batch(["a"], [V])])))
    store.close()
    with pytest.raises(BadStore, match="does not fit its sessions: 1 steps"):
        Kept(model, store)


# The journal's bound --------------------------------------------------------------------------------------------------


def test_the_journal_stays_bounded_when_thousands_of_sessions_take_one_token_each() -> None:
    driver = Kept(network(), journal_tokens=1000)
    oldest = []
    for start in range(0, 3000, 100):
        driver.handle((b"", [step(f"s{i}", 1) for i in range(start, start + 100)]))
        entries = [id for id, _ in driver.store.inner.journal()]
        assert len(entries) <= 1000 // (100 + WAVE_TOKENS) + 3
        assert steps_in_journal(driver) <= 1000 + 200
        oldest.append(entries[0])
    assert oldest == sorted(oldest)
    assert oldest[-1] > 18
    assert all(len(write.saved) <= SLICE + 2 * 100 for write in driver.store.writes)
    driver.crash()
    assert 900 <= driver.replayed <= 1200
    assert driver.stats()["open"] == 3000
    assert seen(driver, "s0")[0] == seen(driver, "s2999")[0] == 1


@pytest.mark.parametrize(("size", "scale"), [(7, 1), (200, 2), (450, 4.5)])
def test_the_journal_stays_bounded_when_one_session_takes_very_many_tokens(size: int, scale: float) -> None:
    model = network(
        layers=[{"kind": "onehot"}, {"kind": "rnn", "size": size, "activation": "tanh"}, {"kind": "dense", "size": V}]
    )
    assert model.state_size == size
    driver = Kept(model, journal_tokens=900)
    driver.ask(op("open", "s"))
    most = 0
    for t in range(1, 401):
        driver.ask(numbered(t, t % V))
        most = max(most, steps_in_journal(driver))
    assert most == pytest.approx(900 / scale / (1 + WAVE_TOKENS), abs=3)
    saved = [len(write.saved) for write in driver.store.writes]
    assert max(saved) == 1
    assert sum(saved) == pytest.approx(400 / most, abs=2)
    driver.crash()
    assert driver.replayed <= most
    assert seen(driver, "s") == (400, encode(model.run([t % V for t in range(1, 401)]), 400, model.digest))


def test_a_journal_that_is_too_long_shrinks_without_long_writes() -> None:
    driver = Kept(network())
    driver.ask(*[step(f"s{i}", 1) for i in range(500)])
    driver.ask(*[step(f"s{i}", 1) for i in range(500, 1000)])
    driver.journal_tokens = 0
    driver.crash()
    assert driver.replayed == 1000
    left = []
    for _ in range(40):
        driver.ask(step("busy", 1))
        left.append(steps_in_journal(driver))
    saved = [len(write.saved) for write in driver.store.writes]
    assert max(saved) == SLICE + 2
    assert max(left) < 1000 + 1000 // SLICE  # what was replayed as one goes as one
    assert left[-1] <= 2
    assert sum(saved) <= 1000 + 40
    driver.crash()
    assert driver.replayed <= 2
    assert driver.stats()["open"] == 1001


def test_a_stop_leaves_nothing_to_replay() -> None:
    driver = Kept(network(), max_resident=5000)
    for start in range(0, 1200, 300):
        driver.ask(*[numbered(1, i % V, f"s{i}") for i in range(start, start + 300)])
    driver.ask(step("s7", 1), op("close", "s8"))
    states = driver.states()
    driver.stop()
    assert driver.replayed == 0
    assert driver.states() == {}
    assert len(list(driver.store.inner.journal())) == 1
    for start in range(0, 1200, 100):
        driver.ask(*[op("snapshot", f"s{i}") for i in range(start, start + 100)])
    assert driver.states() == states
    assert seen(driver, "s8") == "closed"


def test_a_model_that_is_not_exact_has_its_states_kept() -> None:
    model = network()
    model.exact = False
    driver = Kept(model)
    (first,) = driver.ask(numbered(1, 3, want="probs"))
    driver.ask(step("other", 1))
    assert [[saved.name for saved in write.saved] for write in driver.store.writes] == [["s"], ["other"]]
    assert steps_in_journal(driver) == 0
    driver.crash()
    assert driver.replayed == 0
    assert driver.ask(numbered(1, 3)) == [first | {"again": True}]
    assert seen(driver, "other") == (1, encode(model.run([1]), 1, model.digest))


def test_what_was_replayed_on_other_kernels_is_saved_at_once() -> None:
    model = network()
    driver = Kept(model)
    driver.ask(step("a", 1), numbered(1, 2, "b"))
    before, model.numerics = model.numerics, "other kernels"
    driver.crash()
    assert driver.replayed == 2
    assert driver.ask({"op": "hello"})[0]["store"] == {"durability": "memory", "replayed": 2, "numerics": before}
    driver.crash()
    assert driver.replayed == 0
    assert driver.ask({"op": "hello"})[0]["store"] == {"durability": "memory", "replayed": 0}
    assert [seen(driver, name) for name in "ab"] == [(1, encode(model.run([x]), 1, model.digest)) for x in (1, 2)]


# Names that are remembered, and forgotten -----------------------------------------------------------------------------


def test_what_was_closed_is_closed_after_a_crash() -> None:
    driver = Kept(network())
    driver.ask(numbered(1, 1, "a"), step("b", 1))
    (closed,) = driver.ask({"op": "close", "session": "a", "producer": "p", "n": 2})
    assert closed["closed"]
    saved = row(driver, "a")
    assert saved is not None
    assert (saved.status, saved.state, saved.t) == ("closed", b"", 0)
    driver.crash()
    assert seen(driver, "a") == "closed"
    assert codes(driver.ask(step("a", 1))) == ["unknown_session"]
    assert driver.stats()["tombstones"] == driver.stats()["open"] == 1
