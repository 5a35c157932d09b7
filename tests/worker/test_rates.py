"""How much of a key may wait, and how fast it may send: beyond, it is told when to come again, and nobody else is."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rnnstream.model.blas import one_thread
from rnnstream.wire.limits import Limits
from rnnstream.worker.quotas import Quotas, Rates
from tests.engine.models import network

from .company import ALICE, BOB
from .driving import Driver, Reply, codes, step
from .keeping import numbered, op

Drive = Callable[..., Driver]
A, B = b"alice", b"bob"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


# Requests that wait -----------------------------------------------------------------------------------------------------

WAITING = Limits(frame_requests=10, waiting=20)
TEN: dict[str, Any] = {"quotas": Quotas(waiting=10)}
BUSY = "10 requests of a key may wait, and with this body's there would be more; ask again in 50 ms."


@pytest.mark.usefixtures("a_wave_a_turn")
def test_a_body_that_goes_beyond_what_may_wait_is_busy_as_one(drive: Drive) -> None:
    driver = drive(network(), limits=WAITING, keys=TEN)
    driver.users = {A: ALICE, b"alice2": ALICE, B: BOB}
    driver.ask(step("s", 1), step("t", 1), address=A)
    driver.handle((A, [step("s", 1)] * 8))
    mixed = [step("t", 2), op("info", "s"), {"op": "ping"}, {"op": "stats", "id": 3}, step("new", 1), {"op": 5}]
    driver.handle((b"alice2", mixed), (B, [step("s", 1)] * 10), (b"alice2", [step("t", 2)] * 2))
    driver.finish()
    refused, taken = driver.replies[b"alice2"]
    assert [reply["error"] for reply in refused] == ["busy"] * 6
    assert {(reply["message"], reply["retry_after_ms"]) for reply in refused} == {(BUSY, 50)}
    assert refused[3]["id"] == 3
    # Those that were refused count until their body leaves, which it does in the turn in which it came.
    assert codes(taken) in ([2, 3], ["busy"] * 2)
    assert codes(driver.replies[B][0]) == list(range(1, 11))
    assert "new" not in {str(name) for name in driver.engine.table.rows}
    assert driver.core._intake.order.requests_of(ALICE) == driver.core._intake.order.requests_of(BOB) == 0


@pytest.mark.parametrize("waiting", [1, 5])
@pytest.mark.usefixtures("a_wave_a_turn")
def test_whoever_has_nothing_waiting_may_send_any_body(drive: Drive, waiting: int) -> None:
    driver = drive(network(), limits=WAITING, keys={"quotas": Quotas(waiting=waiting)})
    driver.users = {A: ALICE, b"alice2": ALICE, B: BOB}
    for first in (1, 11):
        assert codes(driver.ask(*[step("s", 1)] * 10, address=A)) == list(range(first, first + 10))
    driver.handle((A, [step("s", 1)] * 10))
    driver.handle((b"alice2", [{"op": "ping"}]), (B, [step("s", 1)] * 10))
    assert codes(driver.replies.pop(b"alice2")[0]) == ["busy"]
    driver.finish()
    assert codes(driver.replies.pop(B)[0]) == list(range(1, 11))
    assert "ok" in driver.ask({"op": "ping"}, address=b"alice2")[0]


def test_stats_tell_how_many_requests_of_the_key_wait(drive: Drive) -> None:
    driver = drive(network(), keys={})
    driver.users = {A: ALICE, b"alice2": ALICE, B: BOB, b"bob2": BOB}
    driver.handle((A, [step("s", 1)] * 7), (B, [step("s", 1)] * 9))
    for peer, count in ((b"alice2", 7), (b"bob2", 9)):
        driver.handle((peer, [{"op": "stats"}]))
        assert driver.replies.pop(peer)[0][0]["waiting"] == count
    driver.finish()
    assert [driver.ask({"op": "stats"}, address=peer)[0]["waiting"] for peer in (A, B)] == [0, 0]


def test_what_one_key_has_unanswered_makes_no_other_busy(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnnstream.worker.standing.CONNECTION_BYTES", 20_000)
    monkeypatch.setattr("rnnstream.worker.intake.CROWDED_BYTES", 90_000)
    driver = drive(network(), keys={})
    driver.users = {A: ALICE, B: BOB, b"bob2": BOB, b"nobody": None}
    driver.ask(step("s", 1), address=A)
    driver.handle((B, [step("s", 1)] * 40))
    driver.handle((b"bob2", [{"op": "ping"}]), (A, [step("s", 1)] * 9), (A, [step("s", 1)]))
    (busy,) = driver.replies.pop(b"bob2")[0]
    assert busy["error"] == "busy"
    assert busy["message"].startswith("Of a key, replies that wait")
    for _ in range(30):
        driver.handle((b"nobody", [{"op": "ping"}] * 100))
    driver.finish()
    assert [codes(replies) for replies in driver.replies[A]] == [list(range(2, 11)), [11]]
    assert not driver.core.take_crowded()


# Rates ----------------------------------------------------------------------------------------------------------------


class Timed(Driver):
    """Its time stands still until somebody moves it."""

    now = 1e6 / 7  # a clock that has run for long has few digits behind the point

    def clock(self) -> float:
        return self.now


def timed(rate: float) -> Timed:
    driver = Timed(network(), keys={"quotas": Quotas(rate=rate)})
    driver.users = {A: ALICE, b"alice2": ALICE, B: BOB, b"nobody": None}
    return driver


def pings(driver: Driver, peer: bytes, count: int) -> list[Reply]:
    return driver.ask(*[{"op": "ping"}] * count, address=peer)


@pytest.mark.parametrize("rate", [0.3, 1, 7, 10, 1 / 3, 99.9])
def test_whoever_is_told_to_wait_is_let_in_after_that_time_and_not_long_before(rate: float) -> None:
    driver, rng = timed(rate), random.Random(0)
    waits = 0
    for _ in range(150):
        replies = pings(driver, A, rng.choice([1, 1, 2, 3, rng.randint(1, 200)]))
        if "ok" in replies[0]:
            assert all("ok" in reply for reply in replies)
            driver.now += rng.choice([0, 0, rng.random(), rng.randrange(3) / rate])
            continue
        waits += 1
        (wait_ms,) = {reply["retry_after_ms"] for reply in replies}
        told = f"A key may send {rate:g} requests a second, and this one has sent more; ask again in {wait_ms} ms."
        assert {(reply["error"], reply["message"]) for reply in replies} == {("busy", told)}
        assert wait_ms > 0
        began = driver.now
        for part in (0.3, 0.9):
            driver.now = began + part * (wait_ms - 2) / 1000
            assert wait_ms < 3 or "error" in pings(driver, A, 1)[0]
        driver.now = began + wait_ms / 1000
        assert "ok" in pings(driver, A, 1)[0]
    assert waits > 10


@pytest.mark.parametrize("size", [1, 3, 40])
@pytest.mark.parametrize("rate", [2, 50])
def test_no_more_is_let_in_than_the_rate_and_what_was_saved_up(rate: float, size: int) -> None:
    driver, taken = timed(rate), 0
    for _ in range(400):
        taken += sum("ok" in reply for reply in pings(driver, A, size))
        driver.now += 0.05
    seconds = 400 * 0.05
    assert min(seconds * rate * 0.9 - size, 400 * size) <= taken <= seconds * rate + max(1, rate) + size
    driver.now += 1e6
    burst = 0
    while "ok" in pings(driver, A, 1)[0]:
        burst += 1
    assert burst == rate  # a second's, however long the silence was


def test_every_request_of_a_body_counts_and_so_does_what_is_none() -> None:
    driver = timed(10)
    garbage = b"\x81\xa2op\xa4ping" * 5 + b"\xc1"  # five requests, and what cannot be read
    driver.handle((A, garbage))
    assert len(driver.replies.pop(A)[0]) == 6
    for _ in range(4):
        driver.handle((A, b"\xc1"))
    assert [reply["error"] for (reply,) in driver.replies.pop(A)] == ["bad_message"] * 4
    assert "retry_after_ms" in pings(driver, A, 1)[0]
    driver.now += 0.1
    driver.handle((A, b""))
    assert "retry_after_ms" in pings(driver, A, 1)[0]


def test_a_rate_is_of_the_key_and_of_no_other() -> None:
    driver = timed(2)
    assert [codes(pings(driver, peer, 1)) for peer in (A, b"alice2", A, b"alice2")] == [["?"], ["?"], ["busy"], ["busy"]]
    assert codes(pings(driver, B, 2)) == ["?", "?"]
    assert codes(pings(driver, b"nobody", 1)) == ["denied"]
    assert codes(driver.ask(step("s", 1), address=A)) == ["busy"]
    driver.now += 0.5001
    assert [codes(driver.ask(step("s", 1), address=peer)) for peer in (A, b"alice2")] == [[1], ["busy"]]


@pytest.mark.parametrize("kind", [{}, {"want": "none"}])
def test_the_bodies_of_a_connection_are_answered_in_their_order_though_some_are_refused(kind: dict[str, Any]) -> None:
    driver = timed(3)
    driver.ask(op("open", "s"), address=B)
    driver.now += 1
    driver.handle(*[(B, [step("s", 1, id=n, **kind)]) for n in range(5)], (A, [{"op": "ping", "id": 0}]))
    driver.finish()
    assert [reply["id"] for (reply,) in driver.replies[B]] == [0, 1, 2, 3, 4]
    assert codes(reply for (reply,) in driver.replies[B]) == [1, 2, 3, "busy", "busy"]


def test_a_refused_number_has_not_counted() -> None:
    driver = timed(2)
    driver.ask(numbered(1, 1), numbered(2, 1), address=A)
    assert codes(driver.ask(numbered(3, 1), address=A)) == ["busy"]
    driver.now += 1
    assert codes(driver.ask(numbered(3, 1), address=A)) == [3]


@pytest.mark.parametrize("rate", [0.01, 5, 1e6])
def test_rates_by_the_second(rate: float) -> None:
    rates = Rates(rate)
    most = max(1, int(rate))
    assert rates.spend("a", 5.0) == 0
    rates.owe("a", most - 1)
    wait_s = rates.spend("a", 5.0)
    assert wait_s == pytest.approx(1 / rate, rel=1e-6)
    assert rates.spend("a", 5.0) == wait_s  # to be refused costs nothing
    assert rates.spend("b", 5.0) == 0
    assert rates.spend("a", 5.0 + wait_s * 1.001) == 0
