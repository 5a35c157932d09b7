"""Bounds of what is remembered and under way: each key fills its own, and nobody else notices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import pytest

from rnnstream.engine.numbering import Numbering
from rnnstream.model.blas import one_thread
from rnnstream.names import Owned
from rnnstream.worker.peeks import OWNED_PEEKS
from tests.engine.models import relu

from .company import ALICE, BOB
from .driving import Driver, codes, pack, step
from .keeping import Kept, numbered, op, row

Drive = Callable[..., Driver]
A, B = b"alice", b"bob"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def ways(driver: Driver, end: str) -> None:
    """The worker goes on, or is another one."""
    if end == "crash":
        cast(Kept, driver).crash()
    elif end == "stop":
        cast(Kept, driver).stop()


@pytest.mark.parametrize("end", ["", "crash", "stop", "memory"])
def test_closing_many_sessions_pushes_nobody_elses_out(drive: Drive, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    monkeypatch.setattr("rnnstream.engine.tombstones.OWNED", 5)
    monkeypatch.setattr("rnnstream.engine.tombstones.TOMBSTONES", 7)
    driver = drive(relu(), keys={}) if end == "memory" else Kept(relu(), keys={})
    driver.users = None
    for session in "xy":
        driver.ask(numbered(1, 1, session), op("close", session))
    driver.users = {A: ALICE, B: BOB}
    for session in "xy":
        driver.ask(numbered(1, 1, session), op("close", session), address=A)
    for n in range(20):
        driver.ask(numbered(1, 1, f"s{n}"), op("close", f"s{n}"), address=B)
    ways(driver, end)
    for peer, sessions, why in (
        (A, "xy", "closed"),
        (B, [f"s{n}" for n in range(15, 20)], "closed"),
        (B, [*"xy", *(f"s{n}" for n in range(15) if end == "memory")], "never"),  # rows in a store go later
    ):
        for session in sessions:
            (told,) = driver.ask(op("info", session), address=peer)
            (repeat,) = driver.ask(numbered(1, 1, session), address=peer)
            assert (told["why"], "again" in repeat) == (why, why == "closed")
    driver.users = None
    assert [driver.ask(op("info", session))[0]["why"] for session in "xy"] == ["closed"] * 2


def test_the_store_forgets_the_names_of_whoever_closes_many_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnnstream.engine.tombstones.OWNED", 3)
    driver = Kept(relu(), keys={}, journal_tokens=1)
    driver.users = {A: ALICE, B: BOB}
    for n in range(3):
        driver.ask(step(f"s{n}", 1), op("close", f"s{n}"), address=A)
    for n in range(20):
        driver.ask(step(f"s{n}", 1), op("close", f"s{n}"), address=B)
    for _ in range(300):  # writes that let the journal shrink
        driver.ask(step("other", 1), address=B)
    forgotten = [name for write in driver.store.writes for name in write.forgotten]
    assert forgotten == [Owned(BOB, f"s{n}") for n in range(17)]
    assert all(row(driver, Owned(ALICE, f"s{n}")) for n in range(3))
    assert [bool(row(driver, Owned(BOB, f"s{n}"))) for n in range(20)] == [False] * 17 + [True] * 3


@pytest.mark.parametrize("end", ["", "crash", "stop", "memory"])
def test_producers_of_one_key_leave_the_others_room_and_their_replies(drive: Drive, end: str) -> None:
    bounds = {"most_producers": 40, "producer_s": 1e9}
    numbering = {"numbering": Numbering(**bounds)}
    driver = drive(relu(), keys={}, **numbering) if end == "memory" else Kept(relu(), bounds=bounds, keys={})
    driver.users = {A: ALICE, B: BOB}
    first = driver.ask(*[numbered(1, 1, "s", f"p{n}") for n in range(9)], address=A)
    replies = driver.ask(*[numbered(1, 1, f"s{n % 3}", f"p{n}") for n in range(15)], address=B)
    assert codes(replies)[:10] == [n // 3 + 1 for n in range(10)]  # ten of forty are a key's
    # Those of one body that find the last place share it; they are judged one by one from there on.
    assert set(codes(driver.ask(*[numbered(1, 1, "s0", f"q{n}") for n in range(5)], address=B))) == {"full"}
    ways(driver, end)
    if end != "stop":  # after which sessions are in the store alone, and count when they come back
        assert codes(driver.ask(numbered(1, 1, "s0", "r"), address=B)) == ["full"]
    again = driver.ask(*[numbered(1, 1, "s", f"p{n}") for n in range(9)], address=A)
    assert again == [reply | {"again": True} for reply in first]
    assert codes(driver.ask(numbered(1, 1, "s", "new"), address=A)) == [10]


@pytest.mark.parametrize("end", ["", "crash", "stop", "memory"])
def test_kept_replies_of_one_key_push_no_others_out(drive: Drive, end: str) -> None:
    bounds = {"most_bytes": 40_000}
    numbering = {"numbering": Numbering(**bounds)}
    driver = drive(relu(), keys={}, **numbering) if end == "memory" else Kept(relu(), bounds=bounds, keys={})
    driver.users = {A: ALICE, B: BOB}
    sent = [numbered(n, 1, ack=0) for n in range(1, 11)]
    first = driver.ask(*sent, address=A)
    for start in range(1, 200, 10):
        driver.ask(*[numbered(n, 1, "s", ack=0) for n in range(start, start + 10)], address=B)
    ways(driver, end)
    assert driver.ask(*sent, address=A) == [reply | {"again": True} for reply in first]
    kept = driver.ask(*[numbered(n, 1, "s", ack=0) for n in range(1, 201)], address=B)
    assert 10 < sum("again" in reply for reply in kept) < 60
    assert {reply["error"] for reply in kept if "again" not in reply} == {"stale"}


def test_how_much_a_reply_may_take_depends_on_ones_own_producers(drive: Drive) -> None:
    driver = drive(relu(), keys={})
    driver.users = {A: ALICE, B: BOB}
    for start in range(0, 200, 50):
        driver.ask(*[numbered(1, 1, "s", f"{n:064}") for n in range(start, start + 50)], address=A)
    driver.ask(numbered(1, 1, "s"), address=B)
    driver.handle((A, [op("info", "s")] * 40), (B, [op("info", "s")] * 40))
    driver.finish()
    ((alice,), (bob,)) = (driver.replies.pop(peer) for peer in (A, B))
    assert 0 < sum(reply.get("error") == "too_large" for reply in alice) < 40
    assert len(pack(alice)) <= driver.limits.reply_bytes
    assert [reply["producers"] for reply in bob] == [{"p": 1}] * 40


def test_many_peeks_of_one_key_leave_places_for_others(drive: Drive) -> None:
    driver = drive(relu(), keys={})
    driver.users = {A: ALICE, B: BOB, b"bob2": BOB}
    for peer in (A, B):
        driver.ask(*[op("open", f"s{n}") for n in range(OWNED_PEEKS + 3)], address=peer)
    peeks = [op("peek", f"s{n}", xs=[1] * 20) for n in range(OWNED_PEEKS + 3)]
    driver.handle((B, peeks[:10]), (b"bob2", peeks[10:]), (A, peeks[:3]))
    driver.finish()
    first, second, alice = (driver.replies.pop(peer)[0] for peer in (B, b"bob2", A))
    assert {reply.get("error") for reply in alice} == {None}
    refused = [reply for reply in (*first, *second) if "error" in reply]
    assert [reply["error"] for reply in refused] == ["busy"] * 3
    assert refused[0]["message"] == f"{OWNED_PEEKS} peeks of this key are under way; ask again in 50 ms."
    assert {len(reply["ys"]) for reply in (*first, *second) if "ys" in reply} == {20}
    assert codes(driver.ask(*peeks[-3:], address=B)) == [0, 0, 0]
