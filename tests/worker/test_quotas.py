"""What a key may have: refused beyond with the bound named, counted right whatever happens, and nobody else's."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rnnstream.errors import StoreError
from rnnstream.model.blas import one_thread
from rnnstream.names import Owned, owner_of
from rnnstream.store.interface import Store, Write
from rnnstream.store.memory import MemoryStore
from rnnstream.worker.quotas import Quotas
from tests.engine.models import SPOILED, relu

from .company import ALICE, BOB, CAROL, User, listed, page
from .driving import Driver, Reply, codes, step
from .keeping import Damaged, Kept, numbered, op, seen

Drive = Callable[..., Driver]
A, B, C = b"alice", b"bob", b"carol"
USERS = {A: ALICE, B: BOB, C: CAROL, b"calm": ALICE, b"listing": CAROL, b"stats": CAROL}
THREE: dict[str, Any] = {"quotas": Quotas(sessions=3), "is_admin": lambda key: key == CAROL}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def kept(store: Store | None = None, keys: dict[str, Any] = THREE, **options: Any) -> Kept:
    driver = Kept(relu(), store, keys=keys, **options)
    driver.users = dict(USERS)
    return driver


@pytest.fixture(params=["memory", "stored", "evicting"])
def driver(request: pytest.FixtureRequest, drive: Drive) -> Driver:
    """Of a worker where a key may have three sessions."""
    if request.param != "memory":
        return kept(max_resident=1000 if request.param == "stored" else 1)
    found = drive(relu(), keys=THREE)
    found.users = dict(USERS)
    return found


def opened(driver: Driver, peer: bytes) -> int:
    """How many sessions a user has, as it is told."""
    (told,) = driver.ask({"op": "stats"}, address=peer)
    return int(told["open"])


def beyond(name: str, has: int = 3, most: int = 3) -> Reply:
    told = f"{name}: this key has {has} sessions open, and {most} is the limit for a key; close one of them."
    return {"error": "denied", "message": told}


# Sessions -------------------------------------------------------------------------------------------------------------

OPENING: list[dict[str, Any]] = [
    step("new", 1),
    step("new", 1, want="none"),
    numbered(1, 1, "new"),
    op("open", "new"),
    op("open", "new", producer="p", n=1),
    op("reset", "new"),
    op("fork", "s0", to="new"),
    op("reset", "gone"),
    op("open", "gone"),
    op("fork", "s1", to="gone"),
]


@pytest.mark.parametrize("request_", OPENING, ids=lambda request: "-".join(map(str, request.values())))
def test_no_way_leads_to_more_sessions_than_a_key_may_have(driver: Driver, request_: dict[str, Any]) -> None:
    driver.ask(op("open", "gone"), op("close", "gone"), address=A)
    driver.ask(*[step(f"s{n}", n) for n in range(3)], address=A)
    before = [seen(driver, f"s{n}", A) for n in range(3)]
    name = request_.get("to", request_["session"])
    assert driver.ask(request_, address=A) == [beyond(name) | {"session": request_["session"]}]
    assert driver.ask(*[request_] * 3, address=A) == [beyond(name) | {"session": request_["session"]}] * 3
    assert [seen(driver, f"s{n}", A) for n in range(3)] == before
    assert opened(driver, A) == 3
    (told,) = driver.ask(op("info", name), address=A)
    assert told["why"] == ("closed" if name == "gone" else "never")
    assert "error" not in driver.ask(op("reset", "s0"), op("close", "s2"), address=A)  # what is open may be reset
    assert "error" not in driver.ask(request_, address=A)[0]
    assert opened(driver, A) == 3


def test_a_state_that_is_opened_or_restored_counts_once(driver: Driver) -> None:
    driver.ask(*[step(f"s{n}", 1) for n in range(2)], address=A)
    (told,) = driver.ask(op("snapshot", "s0"), address=A)
    state = told["state"]
    assert codes(driver.ask(op("open", "s2", state=state), op("restore", "s1", state=state), address=A)) == [1, 1]
    assert driver.ask(op("open", "s3", state=state), address=A) == [beyond("s3") | {"session": "s3"}]
    assert codes(driver.ask(op("restore", "s0", state=state), op("restore", "s3", state=state), address=A)) == [
        1,
        "unknown_session",
    ]
    assert codes(driver.ask(op("open", "s3", state=state[:-1]), address=A)) == ["bad_state"]
    assert opened(driver, A) == 3


def test_the_sessions_of_a_key_are_no_other_keys(driver: Driver) -> None:
    driver.ask(*[step(f"s{n}", 1) for n in range(5)], address=A)
    assert codes(driver.ask(*[step(f"s{n}", 1) for n in range(4)], address=B)) == [1, 1, 1, "denied"]
    driver.ask(op("close", "s0"), address=B)
    assert codes(driver.ask(step("s3", 1), address=A)) == ["denied"]
    assert codes(driver.ask(step("s3", 1), address=B)) == [1]
    assert (opened(driver, A), opened(driver, B)) == (3, 3)


def test_an_opening_that_came_to_nothing_takes_no_place(driver: Driver) -> None:
    for n in range(5):
        assert (
            codes(driver.ask(*[step(f"s{n}", SPOILED)] * 2, step(f"t{n}", SPOILED, want="none"), address=A))
            == ["not_finite"] * 3
        )
        assert codes(driver.ask(numbered(1, SPOILED, f"u{n}"), address=A)) == ["not_finite"]
    assert codes(driver.ask(op("open", "v", t=5), step("v", 1, t=7), op("open", "v", state=b""), address=A)) == [
        "conflict",
        "conflict",
        "bad_state",
    ]
    assert opened(driver, A) == 0
    assert codes(driver.ask(*[step(f"s{n}", 1) for n in range(4)], address=A)) == [1, 1, 1, "denied"]


def test_an_administrator_who_closes_a_session_makes_room_for_its_owner(driver: Driver) -> None:
    driver.ask(*[step(f"s{n}", 1) for n in range(3)], address=A)
    driver.ask(op("close", "s1", owner=ALICE), address=C)
    assert codes(driver.ask(step("s3", 1), step("s4", 1), address=A)) == [1, "denied"]


def test_expired_sessions_make_room() -> None:
    driver = kept(idle_timeout_s=10.0)
    driver.ask(*[step(f"s{n}", 1) for n in range(3)], address=A)
    driver.now += 11
    assert codes(driver.ask(*[step(f"t{n}", 1) for n in range(4)], address=A)) == [1, 1, 1, "denied"]
    driver.max_resident = 1
    driver.crash()
    driver.now += 11
    for _ in range(5):  # those in the store are looked for now and then
        driver.now += 3
        driver.handle()
    assert opened(driver, A) == 0
    assert codes(driver.ask(*[step(f"u{n}", 1) for n in range(4)], address=A)) == [1, 1, 1, "denied"]


@pytest.mark.parametrize("max_resident", [1, 1000])
@pytest.mark.parametrize("end", ["crash", "stop"])
def test_whoever_has_more_than_the_next_worker_allows_keeps_them(end: str, max_resident: int) -> None:
    driver = kept(keys=THREE | {"quotas": Quotas(sessions=10)}, max_resident=max_resident)
    driver.ask(*[step(f"s{n}", 1) for n in range(8)], op("open", "s8"), address=A)
    driver.ask(step("s0", 1), address=B)
    driver.keys = THREE
    getattr(driver, end)()
    assert (opened(driver, A), opened(driver, B)) == (9, 1)
    assert codes(driver.ask(*[step(f"s{n}", 1) for n in range(9)], address=A)) == [2] * 8 + [1]
    assert driver.ask(step("new", 1), address=A) == [beyond("new", has=9) | {"session": "new"}]
    driver.ask(*[op("close", f"s{n}") for n in range(6)], address=A)
    assert codes(driver.ask(step("new", 1), address=A)) == ["denied"]
    driver.ask(op("close", "s6"), address=A)
    getattr(driver, end)()
    assert codes(driver.ask(step("new", 1), step("more", 1), address=A)) == [1, "denied"]
    assert sorted(listed(driver, A)) == ["new", "s7", "s8"]


def test_what_could_not_be_kept_is_not_counted() -> None:
    driver = kept()
    driver.ask(op("open", "s0"), step("t0", 1), address=A)
    for request in (op("open", "s1"), step("s1", 1), op("close", "s0"), op("close", "t0"), op("fork", "s0", to="s1")):
        driver.store.next["write"] = 1
        assert codes(driver.ask(request, address=A)) == ["store_error"]
        driver.calm()
        assert opened(driver, A) == 2
    assert sorted(listed(driver, A)) == ["s0", "t0"]
    assert codes(driver.ask(step("s1", 1), step("s2", 1), address=A)) == [1, "denied"]


class Vague(MemoryStore):
    """Keeps a write, and says that it has failed, as after an fsync that does.

    Attributes:
        fails: the next one.
    """

    fails = False

    def write(self, write: Write) -> int:
        oldest = super().write(write)
        if self.fails:
            self.fails = False
            raise StoreError("no fsync today")
        return oldest


@pytest.mark.parametrize("max_resident", [1, 1000])
def test_what_was_kept_although_it_seemed_to_fail_is_counted(max_resident: int) -> None:
    store = Vague()
    driver = kept(store, max_resident=max_resident)
    driver.ask(op("open", "s0"), step("s1", 1), address=A)
    for request, has in (
        (op("open", "s2"), {"s0", "s1", "s2"}),
        (op("close", "s0"), {"s1", "s2"}),
        (op("reset", "s1"), {"s1", "s2"}),
        (step("s3", 1), {"s1", "s2", "s3"}),
        (op("close", "s3"), {"s1", "s2"}),
    ):
        store.fails = True
        assert codes(driver.ask(request, address=A)) == ["store_error"]
        driver.calm()
        driver.ask({"op": "info", "session": request["session"]}, address=A)
        assert set(listed(driver, A)) == has
        assert opened(driver, A) == len(has)
    driver.crash()
    assert opened(driver, A) == 2
    assert codes(driver.ask(step("s4", 1), step("s5", 1), address=A)) == [1, "denied"]


def test_what_expires_before_all_is_put_together_again_is_counted_once() -> None:
    driver = kept(idle_timeout_s=10.0)
    driver.ask(op("open", "old"), address=A)
    driver.now += 8
    driver.ask(op("open", "lost"), step("lost", 1), address=A)
    driver.store.next["write"] = 1
    assert codes(driver.ask(step("lost", 1), address=A)) == ["store_error"]
    driver.now += 1
    driver.store.next["load"] = 1  # it works again, but cannot be read yet
    assert codes(driver.ask(step("lost", 1), address=A)) == ["store_error"]
    driver.now += 3  # `old` expires
    driver.store.next["write"] = 1
    assert codes(driver.ask(step("lost", 1), address=A)) == ["store_error"]
    assert driver.engine.table.owned[ALICE] == 2  # for that could not be kept
    driver.calm()
    assert opened(driver, A) == 1
    assert sorted(listed(driver, A)) == ["lost"]


@pytest.mark.parametrize("hold_s", [0.0, 1e9])
@pytest.mark.parametrize("then", [[], [op("close", "s0")], [op("close", "s0"), op("open", "s0"), step("s0", 1)]])
def test_a_session_whose_row_is_damaged_counts_until_it_is_reset_and_then_once(hold_s: float, then: list[Any]) -> None:
    store = Damaged()
    driver = kept(store, hold_s=hold_s)
    driver.ask(*[op("open", f"s{n}") for n in range(2)], address=A)
    driver.stop()
    store.bad = (Owned(ALICE, "s0"),)
    assert codes(driver.ask(op("info", "s0"), address=A)) == ["store_error"]
    assert opened(driver, A) == 2
    assert codes(driver.ask(step("s2", 1), address=A)) == [1]
    assert codes(driver.ask(op("fork", "s2", to="s0"), step("s0", 1), address=A)) == ["store_error"] * 2
    assert codes(driver.ask(op("open", "s3"), address=A)) == ["denied"]
    assert codes(driver.ask(op("reset", "s0"), *then, address=A))[0] == 0  # it was counted already
    store.bad = ()
    still = 0 if len(then) == 1 else 1
    assert opened(driver, A) == 2 + still
    assert not driver.keeper.residence.damaged
    assert codes(driver.ask(op("info", "s0"), address=A)) == [len(then) // 3 if still else "unknown_session"]
    assert listed(driver, C, all=True).count("s0") == still
    assert driver.stats()["open"] == 2 + still
    driver.crash()
    assert opened(driver, A) == 2 + still


# A walk ---------------------------------------------------------------------------------------------------------------


def truth(driver: Kept) -> Counter[str]:
    """How many sessions each key has open, by the listing of an administrator."""
    found, after = set[tuple[str, str]](), 0  # one that is saved meanwhile may come twice
    while after is not None:
        reply = page(driver, C, all=True, limit=1000, after=after)
        found.update(zip(reply["owners"], reply["sessions"], strict=True))
        after = reply.get("next")
    return Counter(owner for owner, _ in found)


@pytest.mark.parametrize("seed", range(3))
def test_the_counts_are_right_whatever_crashes_or_fails(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnnstream.worker.replay.CHUNK", 20)
    monkeypatch.setattr("rnnstream.engine.tombstones.OWNED", 3)
    rng = random.Random(seed)
    options = [{"max_resident": 2}, {"idle_timeout_s": 40.0, "max_resident": 3}, {"hold_s": 0.05}][seed]
    quotas = [Quotas(sessions=3), Quotas(sessions=5, waiting=30)]
    driver = kept(keys=THREE | {"quotas": quotas[0]}, journal_tokens=rng.choice([20, 10_000]), **options)
    names = [f"s{n}" for n in range(12)]
    walkers = [User(10 * seed + n, owner, names=names) for n, owner in enumerate((ALICE, BOB, CAROL))]
    by_peer = {peer: user for user in walkers for peer in user.peers}
    assert driver.users is not None
    driver.users |= {peer: user.owner for peer, user in by_peer.items()}
    kinds: Counter[str] = Counter()

    def call(*arrivals: Any) -> None:
        for address, body in driver.handle(*arrivals):
            by_peer[address[0] if isinstance(address, tuple) else address].hear(driver.calls, address, body)
        here = Counter(
            owner_of(driver.engine.table.names[row] or "") for row, live in enumerate(driver.engine.table.live) if live
        )
        assert all(count <= driver.engine.table.owned[owner] <= 5 for owner, count in here.items())

    for _ in range(25):
        driver.now += rng.choice([0, 0, 15, 50])
        for operation in ("write", "load", "journal", "page"):
            driver.store.chance[operation] = rng.choice([0, 0, 0.2])
        for _ in range(rng.choice([3, 10])):
            call(*[body for user in walkers for body in user.bodies()])
        if rng.random() < 0.3:
            driver.store.chance.clear()
            driver.keys = THREE | {"quotas": rng.choice(quotas)}
            driver.crash()
            for user in walkers:
                user.interrupted()
            kinds["crash"] += 1
        else:
            while driver.core.waiting:
                call()
        driver.calm()
        tick_s, driver.tick_s = driver.tick_s, 0.0
        assert +driver.engine.table.owned == truth(driver)
        assert driver.stats()["open"] == truth(driver).total()
        assert {peer: opened(driver, peer) for peer in (A, B)} == {A: truth(driver)[ALICE], B: truth(driver)[BOB]}
        driver.tick_s = tick_s
    driver.stop()
    assert +driver.engine.table.owned == truth(driver)
    for user in walkers:
        kinds += user.kinds
    assert {"denied", "store_error", "crash", "step", "reset", "close", "unknown_session closed"} <= set(kinds)
    assert "internal" not in kinds
    assert "unknown_session expired" in kinds or seed != 1
