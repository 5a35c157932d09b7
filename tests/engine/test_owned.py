"""The table where names belong to keys: rows, quotas, tombstones and numbering of each."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from rnnstream.engine.engine import Engine
from rnnstream.engine.numbering import SHARE, Numbering
from rnnstream.engine.own_rows import SLACK, OwnRows
from rnnstream.engine.producers import Producers
from rnnstream.engine.table import Table
from rnnstream.engine.tombstones import Tombstone, Tombstones
from rnnstream.errors import Denied, Full
from rnnstream.names import Name, Owned, named, owner_of

from .models import network

Make = Callable[..., Engine]
ALICE, BOB = "A" * 40, "B" * 40
OWNERS = ["", ALICE, BOB]


# Names ----------------------------------------------------------------------------------------------------------------


def test_a_name_is_its_owners() -> None:
    assert named(ALICE, "a") == Owned(ALICE, "a") != Owned(BOB, "a")
    assert named("", "a") == named(None, "a") == "a"
    assert Owned(ALICE, "a") != "a"
    assert (owner_of("a"), owner_of(Owned(ALICE, "a"))) == ("", ALICE)
    assert f"{Owned(ALICE, 'a')}" == str(Owned(ALICE, "a")) == "a"
    assert len({"a", Owned(ALICE, "a"), Owned(BOB, "a"), f"{ALICE}a"}) == 4


# Rows of a key --------------------------------------------------------------------------------------------------------


def test_own_rows_keep_their_order_whatever_is_given_back() -> None:
    rng, own = random.Random(0), OwnRows()
    taken: list[tuple[int, int]] = []  # place, row
    last = 0
    for _ in range(800):
        if taken and rng.random() < 0.48:
            own.remove(taken.pop(rng.randrange(len(taken)))[1])
        else:
            row = rng.choice([row for row in range(len(taken) + 5) if row not in {row for _, row in taken}])
            own.add(row)
            last += 1
            taken.append((last, row))
        own.check({row for _, row in taken})
        after = rng.choice([0, last, rng.randrange(last + 2), 2**64 - 1])
        found = [own.at(index) for index in range(own.behind(after), len(own))]
        assert [pair for pair in found if pair[1] >= 0] == [pair for pair in taken if pair[0] > after]
        assert all(place > after for place, _ in found)
        assert len(own) <= 2 * len(taken) + SLACK


# The table ------------------------------------------------------------------------------------------------------------


def table_of(make: Make, **options: Any) -> Table:
    table = make(network(), **options).table
    table.most_owned = 3
    return table


def test_a_quota_is_of_each_key_and_of_nobody_else(make: Make) -> None:
    table = table_of(make, max_sessions=8, max_rows=20)
    for owner in (ALICE, BOB):
        for name in "abc":
            table.open(table.take(named(owner, name)), 0.0)
        row = table.take(named(owner, "d"))
        with pytest.raises(Denied) as error:
            table.open(row, 0.0)
        assert str(error.value) == "d: this key has 3 sessions open, and 3 is the limit for a key; close one of them."
        table.free(row)
    for name in "ab":
        table.open(table.take(name), 0.0)  # nobody has no quota
    for name in ("c", Owned("C" * 40, "c")):
        with pytest.raises(Full) as error:
            table.open(table.take(name), 0.0)
        told = "8 sessions are open, the limit" if name == "c" else "c: the worker has no room for another session at present"
        assert str(error.value).startswith(f"{told}; close one, or ")
        table.free(table.rows[name])
    table.check()
    table.close(table.rows[Owned(ALICE, "a")])
    row = table.take(Owned(ALICE, "d"))
    table.open(row, 0.0)
    table.open(row, 1.0)  # anew, as a reset does
    assert (table.owned[ALICE], table.owned[BOB], table.open_count) == (3, 3, 8)


def test_a_quota_counts_what_is_elsewhere_and_nothing_twice(make: Make) -> None:
    table = table_of(make)
    rows = [table.take(Owned(ALICE, name)) for name in "abc"]
    for row in rows:
        table.open(row, 0.0)
    state = table.states[rows[0]].copy()
    table.evict(rows[0])
    table.evict(rows[1])
    table.check()
    with pytest.raises(Denied):
        table.hold_room(Owned(ALICE, "d"))
    row = table.take(Owned(ALICE, "a"))
    table.place(row, state, 5, 0.0, 0.0, {})
    assert (table.owned[ALICE], table.open_count, table.absent) == (3, 2, 1)
    table.withdraw(row)
    assert table.owned[ALICE] == 2
    assert +table.owned_since == {Owned(ALICE, "b"): 1, Owned(ALICE, "c"): 1}
    table.hold_room(Owned(ALICE, "d"))
    table.free(row)


@pytest.mark.parametrize("limit", [1, 2, 5, 1000])
@pytest.mark.parametrize("scan", [1, 3, 1000])
def test_pages_have_each_owners_open_sessions_once_and_no_others(make: Make, limit: int, scan: int) -> None:
    engine, rng = make(network()), random.Random(limit * scan)
    table = engine.table
    live: dict[str, set[str]] = {owner: set() for owner in OWNERS}
    for _ in range(150):
        owner, name = rng.choice(OWNERS), f"{rng.choice('pq')}{rng.randrange(20)}"
        if name in live[owner] and rng.random() < 0.7:
            table.close(table.rows[named(owner, name)])
            table.free(table.rows[named(owner, name)])
            live[owner].remove(name)
        else:
            table.open(table.take(named(owner, name)), 0.0)
            live[owner].add(name)
    waited_for = table.take(Owned(ALICE, "waited for"))
    for owner in (*OWNERS, None, "Z" * 40):
        for prefix in ("", "p"):
            found: list[Name] = []
            after: int | None = 0
            while after is not None:
                names, after, looked_at = engine.page(prefix, after, limit, scan, owner)
                assert len(names) <= limit
                assert looked_at <= scan
                found += names
            owners = OWNERS if owner is None else [owner]
            wanted = [named(some, name) for some in owners for name in live.get(some, ()) if name.startswith(prefix)]
            assert sorted(found, key=repr) == sorted(wanted, key=repr)
    assert engine.page("", 2**64 - 1, limit, scan, ALICE) == ([], None, 0)
    table.free(waited_for)


def test_a_page_looks_at_the_rows_of_its_owner_alone(make: Make) -> None:
    engine = make(network())
    for n in range(500):
        engine.table.open(engine.table.take(Owned(ALICE, f"s{n}")), 0.0)
    engine.table.open(engine.table.take(Owned(BOB, "s")), 0.0)
    assert engine.page("", 0, 1000, 10, BOB) == ([Owned(BOB, "s")], None, 1)
    assert engine.page("", 0, 2, 10, ALICE) == ([Owned(ALICE, "s0"), Owned(ALICE, "s1")], 2, 2)
    assert engine.page("", 1, 1000, 1000, BOB) == ([], None, 0)


# Tombstones -----------------------------------------------------------------------------------------------------------


def test_each_owner_remembers_its_own_names_last_closed_first_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnnstream.engine.tombstones.OWNED", 3)
    monkeypatch.setattr("rnnstream.engine.tombstones.TOMBSTONES", 5)
    rng, tombstones = random.Random(0), Tombstones()
    truth: dict[str, list[str]] = {owner: [] for owner in OWNERS}
    for _ in range(800):
        owner, name = rng.choice(OWNERS), rng.choice("abcdefgh")
        if rng.random() < 0.3:
            assert (tombstones.pop(named(owner, name)) is not None) == (name in truth[owner])
            truth[owner] = [other for other in truth[owner] if other != name]
        else:
            pushed_out = tombstones.put(named(owner, name), Tombstone("closed", None))
            truth[owner] += [name] * (name not in truth[owner])
            oldest = truth[owner].pop(0) if len(truth[owner]) > (3 if owner else 5) else None
            assert (pushed_out[0] if pushed_out else None) == (named(owner, oldest) if oldest else None)
        tombstones.check()
        assert set(tombstones) == {named(owner, name) for owner in OWNERS for name in truth[owner]}
        assert len(tombstones) == sum(map(len, truth.values()))
        assert [tombstones.count(owner) for owner in OWNERS] == [len(truth[owner]) for owner in OWNERS]
        assert (Owned(ALICE, "a") in tombstones) == ("a" in truth[ALICE])


def test_forgotten_names_are_those_of_whoever_closes_many(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnnstream.engine.tombstones.OWNED", 2)
    table = make(network()).table
    table.forgotten = []
    for name in (Owned(ALICE, "a"), "a", *(Owned(BOB, f"b{n}") for n in range(5))):
        row = table.take(name)
        table.open(row, 0.0)
        table.close(row)
        table.free(row)
    assert table.forgotten == [Owned(BOB, f"b{n}") for n in range(3)]
    assert set(table.tombstones) == {Owned(ALICE, "a"), "a", Owned(BOB, "b3"), Owned(BOB, "b4")}


# Numbering ------------------------------------------------------------------------------------------------------------


def keep(numbering: Numbering, known: Producers, producer: str, n: int) -> None:
    numbering.welcome("s", known, producer, 0.0)
    numbering.keep(known, producer, n, "request", b"r" * 100, 0, 0.0)


def test_a_share_is_a_part_of_the_room_and_filled_by_nobody_else() -> None:
    whole = Numbering(replies=50, producers=4, most_producers=40, most_bytes=10_000)
    shares = [whole.share() for _ in range(3)]
    known: list[Producers] = [Producers() for _ in shares]
    assert {(share.most_producers, share.most_bytes) for share in shares} == {(40 // SHARE, 10_000 // SHARE)}
    assert {(share.replies, share.producers, share.reply_bytes) for share in shares} == {(50, 4, whole.reply_bytes)}
    sessions: list[Producers] = [Producers() for _ in range(4)]
    for n in range(10):
        keep(shares[0], sessions[n // 3], f"p{n}", 1)
    with pytest.raises(Full, match="room for 4 in a session and 10 in all"):
        keep(shares[0], sessions[3], "new", 1)
    for n in range(1, 40):
        keep(shares[1], known[1], "p", n)
    assert shares[1].held_bytes <= 2500
    assert shares[1].judge("s", known[1], "p", 39, "request", 0) == b"r" * 100
    keep(shares[2], known[2], "p", 1)
    assert (whole.count, whole.held_bytes, shares[2].count) == (0, 0, 1)
    for share, some in zip(shares, (sessions, [known[1]], [known[2]]), strict=True):
        share.check(some)
    assert Numbering(most_producers=2).share().most_producers == 1


def test_the_table_has_a_numbering_for_each_key(make: Make) -> None:
    engine = make(network(), numbering=Numbering(most_producers=8))
    table = engine.table
    for owner in OWNERS:
        for n in range(2):
            row = table.take(named(owner, f"s{n}"))
            table.open(row, 0.0)
            assert engine.judge(named(owner, f"s{n}"), "p", 1, "request", 0.0) is None
            engine.keep(row, "p", 1, "request", b"reply", 0, 0.0)
    assert {owner: numbering.count for owner, numbering in table.numberings.items()} == {"": 2, ALICE: 2, BOB: 2}
    assert table.numbering_of("s0") is table.numbering
    row = table.take(Owned(BOB, "s2"))
    with pytest.raises(Full, match="2 in all"):
        engine.judge(Owned(BOB, "s2"), "p", 1, "request", 0.0)
    assert engine.judge("s2", "p", 1, "request", 0.0) is None
    table.free(row)
    for name in (Owned(ALICE, "s0"), Owned(ALICE, "s1")):
        table.evict(table.rows[name])
    assert {owner: numbering.count for owner, numbering in table.numberings.items()} == {"": 2, ALICE: 0, BOB: 2}
    table.bury(Owned(ALICE, "s9"), "closed", {})
