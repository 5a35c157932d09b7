"""Listings: each user's own sessions, by cursors and pages that tell of nobody else's."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rnnstream.model.blas import one_thread
from rnnstream.store.memory import MemoryStore
from rnnstream.store.sqlite import SQLiteStore
from rnnstream.worker.cursors import Cursors
from tests.engine.models import network

from .company import ALICE, BOB, CAROL, CURSORS, listed, open_all, page, pages
from .driving import Driver, step
from .keeping import Kept, op

Drive = Callable[..., Driver]
A, B, C = b"alice", b"bob", b"carol"
SECRET = b"0123456789abcdef"
KEYS: dict[str, Any] = {"secret": SECRET, "is_admin": lambda key: key == CAROL}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(params=["memory", "stored", "evicting", "file"])
def driver(request: pytest.FixtureRequest, drive: Drive, tmp_path: Path) -> Iterator[Driver]:
    """Of a worker with three users, Carol being its administrator."""
    found: Driver
    if request.param == "memory":
        found = drive(network(), keys=KEYS)
    else:
        store = SQLiteStore(tmp_path / "0-s.db") if request.param == "file" else MemoryStore()
        found = Kept(network(), store, keys=KEYS, max_resident=1000 if request.param == "stored" else 5)
    found.users = {A: ALICE, B: BOB, C: CAROL}
    yield found
    if isinstance(found, Kept):
        found.store.close()


# Sealing --------------------------------------------------------------------------------------------------------------


def test_sealing_is_a_permutation_of_64_bits_for_each_owner_and_secret() -> None:
    rng = random.Random(0)
    plain = [*range(300), *(2**40 + n for n in range(300)), 2**63, 2**64 - 1, *(rng.randrange(2**64) for _ in range(300))]
    sealed = {
        (owner, secret): [Cursors(secret).sealed(cursor, owner) for cursor in plain]
        for owner in (ALICE, BOB)
        for secret in (SECRET, SECRET[::-1])
    }
    for (owner, secret), cursors in sealed.items():
        assert [Cursors(secret).unsealed(cursor, owner) for cursor in cursors] == plain
        assert len(set(cursors)) == len(plain)
        assert all(0 <= cursor < 2**64 for cursor in cursors)
        ones = sum(cursor.bit_count() for cursor in cursors) / len(cursors)
        assert 31 < ones < 33  # half of the bits, though most of the plain ones have few
        steps = [abs(later - before) for before, later in itertools.pairwise(cursors[:300])]
        assert sum(step < 2**56 for step in steps) < 20  # neighbours are as far from each other as any two
    everything = [cursor for cursors in sealed.values() for cursor in cursors]
    assert len(set(everything)) == len(everything)


@pytest.mark.parametrize("cursor", [*CURSORS, 5])
def test_what_was_never_sealed_is_some_cursor(cursor: int) -> None:
    cursors = Cursors(SECRET)
    assert 0 <= cursors.unsealed(cursor, ALICE) < 2**64
    assert cursors.sealed(cursors.unsealed(cursor, ALICE), ALICE) == cursor


# Pages ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 3, 1000])
def test_sessions_that_stay_are_listed_once_while_others_come_and_go(driver: Driver, limit: int) -> None:
    rng = random.Random(limit)
    stays = {peer: {f"{chr(97 + n % 3)}stay{n}" for n in range(12)} for peer in (A, B)}
    for peer in (A, B):
        for n in range(12):
            driver.ask(op("open", f"{chr(97 + n % 3)}stay{n}"), step(f"{peer.decode()}{n}", 1), address=peer)
    for prefix in ("", "a"):
        found: dict[bytes, list[str]] = {A: [], B: []}
        cursors: dict[bytes, int | None] = {A: 0, B: 0}
        while cursors != {A: None, B: None}:
            for peer in (A, B):
                after = cursors[peer]
                if after is not None:
                    reply = page(driver, peer, limit=limit, after=after, prefix=prefix)
                    assert set(reply) <= {"sessions", "next"}
                    assert len(reply["sessions"]) <= limit
                    found[peer] += reply["sessions"]
                    cursors[peer] = reply.get("next")
                name = f"{prefix}come{rng.randrange(6)}"
                driver.ask(op(rng.choice(["open", "close", "reset"]), name), step(f"{name}!", 1), address=peer)
        for peer, other in ((A, B), (B, A)):
            counts = Counter(found[peer])
            assert {counts[name] for name in stays[peer] if name.startswith(prefix)} == {1}
            assert all(name.startswith(prefix) for name in counts)
            assert not any(name.startswith(other.decode()) for name in counts)


def churned(drive: Drive, company: bool) -> list[Any]:
    """Everything that Bob's listings say while Alice opens and closes, if she is there."""
    driver = drive(network(), keys=KEYS)
    driver.users = {A: ALICE, B: BOB}
    rng, told = random.Random(5), []

    def alice() -> None:
        if company:
            driver.handle((A, [op(rng.choice(["open", "close"]), f"s{rng.randrange(9)}") for _ in range(4)]))
            driver.finish()

    for round_ in range(14):
        for request in (op("open", f"s{round_ % 8}"), op("close", f"s{round_ * 3 % 8}"), step(f"t{round_ % 5}", 1)):
            alice()
            told.append(driver.ask(request, address=B))
        for limit in (1, 2, 100):
            after = 0
            while after is not None:
                alice()
                told.append(page(driver, B, limit=limit, after=after))
                after = told[-1].get("next")
    return told


def test_pages_and_cursors_are_the_same_whatever_others_have(drive: Drive) -> None:
    """To the bit: not even the order of names, or that two cursors are equal, tells of a row that another has taken."""
    alone = churned(drive, company=False)
    assert churned(drive, company=True) == alone
    assert len({reply["next"] for reply in alone if "next" in reply}) > 10


def test_rows_that_a_user_gave_back_do_not_tell_who_has_them_now(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnnstream.worker.answers.OWNED_SCAN", 10)

    def all_pages(taken: int) -> list[list[str]]:
        driver = drive(network(), keys=KEYS)
        driver.users = {A: ALICE, B: BOB}
        driver.ask(*[op("open", f"s{n}") for n in range(50)], address=B)
        driver.ask(*[op("close", f"s{n}") for n in range(45)], address=B)
        driver.ask(*[op("open", f"s{n}") for n in range(taken)], address=A)
        return pages(driver, B, 100)

    alone = all_pages(0)
    assert sorted(itertools.chain.from_iterable(alone)) == [f"s{n}" for n in range(45, 50)]
    assert [all_pages(taken) for taken in (5, 30, 45, 90)] == [alone] * 4


def test_the_number_of_pages_in_a_store_is_the_users_own(tmp_path: Path) -> None:
    def all_pages(company: bool) -> list[list[str]]:
        driver = Kept(network(), SQLiteStore(tmp_path / f"{company}.db"), keys=KEYS)
        driver.users = {A: ALICE, B: BOB}
        for n in range(20):
            if company:
                driver.ask(*[op("open", f"a{n}-{i}") for i in range(n)], op("close", f"a{n}-0"), address=A)
            driver.ask(op("open", f"b{n}"), step(f"c{n}", 1), *[op("close", f"b{n}")] * (n % 3 == 0), address=B)
        driver.stop()
        found = pages(driver, B, 4)
        driver.store.close()
        return found

    alone = all_pages(company=False)
    assert sorted(itertools.chain.from_iterable(alone)) == sorted(
        [f"b{n}" for n in range(20) if n % 3] + [f"c{n}" for n in range(20)]
    )
    assert all_pages(company=True) == alone


# Forged cursors -------------------------------------------------------------------------------------------------------


def test_forged_and_foreign_cursors_give_own_sessions_or_nothing(driver: Driver) -> None:
    for n in range(12):
        driver.ask(op("open", f"alice{n}"), step(f"alice+{n}", 1), address=A)
        if n < 4:
            driver.ask(op("open", f"bob{n}"), step(f"bob+{n}", 1), address=B)
    rng = random.Random(0)
    foreign = [page(driver, A, limit=limit).get("next", 1) for limit in range(1, 20)]
    elsewhere = [Cursors(SECRET[::-1]).sealed(cursor, BOB) for cursor in (*range(1, 9), 1 << 40, (1 << 40) + 3)]
    good = [Cursors(SECRET).sealed(cursor, BOB) for cursor in (*range(40), 1 << 40, (1 << 40) + 9)]
    chance = [rng.randrange(2**64) for _ in range(60)] + [Cursors(SECRET).sealed(cursor, BOB) for cursor in CURSORS[6:]]
    ours = {f"bob{sign}{n}" for n in range(4) for sign in ("", "+")}
    told: set[str] = set()
    for after in (*CURSORS, *foreign, *elsewhere, *good, *chance):
        reply = page(driver, B, limit=2, after=after)
        if "error" in reply:
            assert (reply["error"], reply["field"]) == ("bad_request", "after")
            continue
        assert set(reply) <= {"sessions", "next"}, after
        assert set(reply["sessions"]) <= ours
        told.update(reply["sessions"])
    assert told  # the good ones
    assert all("error" in page(driver, B, after=after) for after in chance)  # rather than an end that is none
    for after in (-1, 1.0, "1", None):
        reply = page(driver, B, after=after)
        assert (reply["error"], reply["field"]) == ("bad_request", "after")


@pytest.mark.parametrize("after", CURSORS)
def test_whoever_has_nothing_is_told_nothing_whatever_the_cursor(driver: Driver, after: int) -> None:
    driver.ask(*[step(f"s{n}", 1) for n in range(9)], address=A)
    for cursor in (after, Cursors(SECRET).sealed(after, BOB), Cursors(SECRET).sealed(after, ALICE)):
        reply = page(driver, B, after=cursor)
        assert reply.get("sessions", []) == []
        assert set(reply) <= {"sessions", "next"} or reply["field"] == "after"


# Who sees what --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 5, 1000])
def test_an_administrator_lists_everybody_with_the_owners_beside(driver: Driver, limit: int) -> None:
    wanted = set()
    for n in range(10):
        for peer, owner in ((A, ALICE), (B, BOB), (C, CAROL)):
            driver.ask(*[op("open", f"s{n}")] * (n % 2), *[step(f"t{n}", 1)] * (n % 3 > 0), op("info", f"u{n}"), address=peer)
            wanted |= {(f"s{n}", owner)} if n % 2 else set()
            wanted |= {(f"t{n}", owner)} if n % 3 else set()
    for prefix in ("", "t"):
        found, after = [], 0
        while after is not None:
            reply = page(driver, C, all=True, limit=limit, after=after, prefix=prefix)
            assert len(reply["sessions"]) == len(reply["owners"]) <= limit
            found += zip(reply["sessions"], reply["owners"], strict=True)
            after = reply.get("next")
        assert sorted(found) == sorted((name, owner) for name, owner in wanted if name.startswith(prefix))
    own = sorted(name for name, owner in wanted if owner == CAROL)
    assert listed(driver, C, limit) == own


@pytest.mark.parametrize("first", [ALICE, ""])
def test_nobodys_sessions_are_not_listed_to_the_first_user_of_a_worker_that_begins(first: str) -> None:
    """They are in memory, for they were replayed; the rows of users come later."""
    driver = Kept(network(), keys=KEYS)
    driver.users = {A: first} if first else None
    driver.ask(step("secret", 1), step("other", 1), address=A)
    driver.crash()
    assert driver.replayed == 2
    driver.users = {A: ALICE, B: BOB, C: CAROL}
    assert listed(driver, B) == []
    assert listed(driver, A) == (["other", "secret"] if first else [])
    assert listed(driver, C) == []
    everybody = page(driver, C, all=True)
    assert sorted(everybody["sessions"]) == ["other", "secret"]
    assert everybody["owners"] == [first] * 2
    driver.users = None
    assert listed(driver, A) == ([] if first else ["other", "secret"])


# What a listing costs others --------------------------------------------------------------------------------------------


def test_no_listing_is_cut_short_by_those_of_others(drive: Drive) -> None:
    driver = drive(network(), keys=KEYS)
    driver.users = {A: ALICE, B: BOB}
    open_all(driver, ALICE, [f"s{n}" for n in range(40)])
    open_all(driver, BOB, [f"s{n}" for n in range(3000)])
    driver.handle(
        (B, [{"op": "sessions", "prefix": "z"}] * 5), (A, [{"op": "sessions"}]), (B, [{"op": "sessions", "limit": 9}])
    )
    ((alice,),) = driver.replies.pop(A)
    flood, ((own,)) = driver.replies.pop(B)
    assert len(alice["sessions"]) == 40
    assert "next" not in alice
    assert [("next" in reply) for reply in flood] == [True] * 5
    assert len(own["sessions"]) == 1  # it has looked at all that it may in one turn
    assert len(page(driver, B, limit=9)["sessions"]) == 9


class Counted(list[Any]):
    """Counts how often somebody looks into it."""

    looks = 0

    def __getitem__(self, place: Any) -> Any:
        self.looks += 1
        return super().__getitem__(place)


@pytest.mark.parametrize("peer", [A, B])
def test_a_body_of_listings_looks_at_few_rows(drive: Drive, peer: bytes) -> None:
    driver = drive(network(), keys=KEYS)
    driver.users = {A: ALICE, B: BOB}
    table = driver.engine.table
    open_all(driver, ALICE, [f"s{n}" for n in range(3000)])
    open_all(driver, BOB, "abc")
    table.names = Counted(table.names)
    driver.core.handle([peer], [b"".join([PACKED] * 512)], 0.0, [driver.users[peer]])
    assert table.names.looks <= 2 * 512
    looks = table.names.looks
    driver.core.handle([peer], [b"".join([PACKED_ALL] * 512)], 0.0, [driver.users[peer]])
    assert table.names.looks - looks < 2500 + 2 * 512 + 20


PACKED = b"\x82\xa2op\xa8sessions\xa5limit\x01"
PACKED_ALL = b"\x82\xa2op\xa8sessions\xa6prefix\xa1z"
