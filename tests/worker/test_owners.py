"""Whatever a user does, by any name, it neither reaches what is another's nor hears of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rnnstream.engine.numbering import Numbering
from rnnstream.model.blas import one_thread
from rnnstream.names import Owned
from rnnstream.store.memory import MemoryStore
from rnnstream.store.sqlite import SQLiteStore
from rnnstream.wire.limits import Limits
from rnnstream.wire.requests import OPS
from rnnstream.worker.quotas import Quotas
from tests.engine.models import relu

from .company import ALICE, BOB, CAROL, GARBAGE, REACHING, User, kept_of, live
from .driving import Driver, Reply, step
from .keeping import Kept, numbered, op

Drive = Callable[..., Driver]
A, B, C = b"alice", b"bob", b"carol"
SECRET = b"0123456789abcdef"
EVERYTHING = [
    "step",
    "open",
    "reset",
    "close",
    "fork",
    "restore",
    "peek",
    "snapshot",
    "info",
    "hello",
    "ping",
    "stats",
    "again",
]
EVERYTHING += ["exists", "gap", "stale", "conflict", "bad_request", "bad_token", "bad_state", "denied", "garbage"]
EVERYTHING += ["unknown_session never", "unknown_session closed"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


# In company and alone -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "keys", "options"),
    [
        (0, {}, {}),
        (1, {}, {"explicit_open": True, "limits": Limits(frame_requests=8, waiting=8)}),
        (2, {}, {"idle_timeout_s": 6.0}),
        (3, {"quotas": Quotas(sessions=3, waiting=25, rate=9.0)}, {}),
    ],
    ids=["plain", "narrow", "expiring", "quotas"],
)
@pytest.mark.usefixtures("a_wave_a_turn")
def test_a_user_hears_the_same_bytes_in_company_and_alone(
    drive: Drive, seed: int, keys: dict[str, Any], options: dict[str, Any]
) -> None:
    model = relu(seed=1)
    keys = keys | {"secret": SECRET, "is_admin": lambda key: key == CAROL}

    def lived(*owners: str | None) -> tuple[Driver, list[User]]:
        driver = drive(model, keys=keys, numbering=Numbering(replies=4, producers=2), **options)
        users = [User(10 * seed + number, owner) for number, owner in enumerate([ALICE, BOB, None]) if owner in owners]
        live(driver, users, 250, seed=seed)
        return driver, users

    together, everybody = lived(ALICE, BOB, None)
    for user in everybody:
        alone, (same,) = lived(user.owner)
        assert user.heard == same.heard
        assert user.kinds == same.kinds
        if user.owner is None:
            assert {"denied", "garbage"} <= set(user.kinds) <= {"denied", "bad_message", "garbage"}
            assert not alone.engine.table.names
            assert alone.core.stats.tokens == 0
        else:
            assert kept_of(together, user.owner) == kept_of(alone, user.owner)
            assert "internal" not in user.kinds
            assert set(EVERYTHING) <= set(user.kinds) or seed
            assert "unknown_session expired" in user.kinds or "idle_timeout_s" not in options
            assert "busy" in user.kinds or "quotas" not in keys


@pytest.mark.parametrize(
    ("seed", "options", "crashes"),
    [
        (0, {}, []),
        (1, {"max_resident": 3, "listing": False}, []),
        (2, {"journal_tokens": 30, "max_resident": 3, "listing": False, "idle_timeout_s": 0.5}, [40, 80, 130]),
        (5, {"max_resident": 4, "listing": False, "keys": {"quotas": Quotas(sessions=3)}}, [60, 110]),
    ],
)
def test_a_user_hears_the_same_with_a_store(
    tmp_path: Path, seed: int, options: dict[str, Any], crashes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for how a number is written, and the pages of listings where sessions leave memory for others."""
    monkeypatch.setattr("rnnstream.worker.replay.CHUNK", 40)
    model, listing = relu(seed=1), options.pop("listing", True)
    keys = options.pop("keys", {}) | {"secret": SECRET}

    def lived(*owners: str | None) -> tuple[Kept, list[User]]:
        store = SQLiteStore(tmp_path / f"{len(owners)}{owners[0]}-0.db") if seed == 2 else MemoryStore()
        driver = Kept(model, store, bounds={"replies": 4, "producers": 2}, keys=keys, **options)
        users = [User(10 * seed + n, owner, listing=listing) for n, owner in enumerate([ALICE, BOB, None]) if owner in owners]
        live(driver, users, 150, seed=seed, crashes=crashes)
        driver.store.close()
        return driver, users

    together, everybody = lived(ALICE, BOB, None)
    for user in everybody:
        alone, (same,) = lived(user.owner)
        assert user.told == same.told
        assert together.engine.table.owned[user.owner or ""] == alone.engine.table.owned[user.owner or ""]
        assert "internal" not in user.kinds
        assert "store_error" not in user.kinds
    assert crashes or together.crashes == 0


# Who has no standing, or none to reach others ---------------------------------------------------------------------------

REQUESTS: list[dict[str, Any]] = [
    step("s", 1),
    step("s", 1, producer="p", n=1),
    step("s", "nope"),
    op("open", "s"),
    op("reset", "s"),
    op("close", "s"),
    op("fork", "s", to="t"),
    op("restore", "s", state=b""),
    op("peek", "s", xs=[1]),
    op("snapshot", "s"),
    op("info", "s"),
    op("info", "s", owner=ALICE),
    *({"op": about} for about in ("hello", "ping", "sessions", "stats", "nonsense")),
    {"op": "sessions", "all": True},
    {},
    {"op": None, 5: []},
]


@pytest.mark.parametrize("rate", [None, 1e6])
def test_a_connection_that_has_no_right_to_its_routing_id_gets_nothing(drive: Drive, rate: float | None) -> None:
    driver = drive(relu(), keys={"quotas": Quotas(rate=rate), "is_admin": lambda key: True})
    driver.users = {A: ALICE, B: None}
    driver.ask(*[numbered(n, 1, "s") for n in range(1, 4)], address=A)
    before = kept_of(driver, ALICE)
    for request in REQUESTS:
        for id in ({}, {"id": 7}, {"id": b"\xff"}):
            told = {"error": "denied"} | {key: request[key] for key in ("session",) if key in request} | id
            for bodies in ([request | id], [request | id] * 3, [request | id, step("s", 1)]):
                replies = driver.ask(*bodies, address=B)
                assert len(replies) == len(bodies)
                assert "routing id" in replies[0].pop("message")
                assert replies[0] == told
                assert {reply["error"] for reply in replies} == {"denied"}
    for garbage in (b"", *GARBAGE):
        driver.handle((B, b"\x80" + garbage), (B, garbage))
        first, second = driver.replies.pop(B)
        assert [reply["error"] for reply in first] == ["denied", "bad_message"][: 1 + bool(garbage)]
        assert [reply["error"] for reply in second] == ["bad_message"]
    assert kept_of(driver, ALICE) == before
    assert driver.core.stats.tokens == 3
    assert (set(driver.engine.table.rows), len(driver.engine.table.tombstones)) == ({Owned(ALICE, "s")}, 0)


def test_what_has_no_standing_is_answered_in_the_order_in_which_it_came(drive: Drive) -> None:
    driver = drive(relu(), keys={})
    driver.users = {A: ALICE, B: None}
    driver.handle(*[(peer, [step("s", 1, id=n)]) for n in range(5) for peer in (B, A)])
    driver.finish()
    for peer in (A, B):
        assert [reply["id"] for (reply,) in driver.replies[peer]] == [0, 1, 2, 3, 4]
    assert [reply["t"] for (reply,) in driver.replies[A]] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("stored", [True, False])
def test_to_reach_others_is_denied_whether_or_not_there_is_anything(drive: Drive, there: bool, stored: bool) -> None:
    keys = {"is_admin": lambda key: key == CAROL}
    driver = Kept(relu(), keys=keys) if stored else drive(relu(), keys=keys)
    driver.users = {A: ALICE, B: BOB}
    if there:
        driver.ask(*[numbered(n, 1, "a") for n in (1, 2)], op("open", "gone"), op("close", "gone"), address=A)
    before = kept_of(driver, ALICE)
    for reaching in REACHING:
        for session in ("a", "gone", "never"):
            request = reaching if reaching["op"] == "sessions" else {"session": session, **reaching}
            (reply,) = driver.ask(request, address=B)
            key = "all" if reaching["op"] == "sessions" else "owner"
            if reaching[key] not in ("A" * 40, "B" * 40, "Z" * 40, "") and reaching[key] is not True:
                assert (reply["error"], reply["field"]) == ("bad_request", key)
                continue
            told = f"{reaching['op']} has {key}; only an administrator's key may ask for the sessions of others."
            assert reply == {"error": "denied", "message": told} | {k: request[k] for k in ("session",) if k in request}
    assert kept_of(driver, ALICE) == before
    assert kept_of(driver, BOB) == {"quota": 0, "tombstones": {}}


@pytest.mark.parametrize("takes", OPS)
def test_no_operation_reaches_others_but_those_that_are_an_administrators(drive: Drive, takes: str) -> None:
    driver = drive(relu(), keys={"is_admin": lambda key: key == CAROL})
    driver.users = {A: ALICE, C: CAROL}
    driver.ask(step("s", 1), address=A)
    before = kept_of(driver, ALICE)
    full = {"session": "s", "x": 1, "xs": [1], "to": "t", "state": b""}
    theirs = {"info": "owner", "close": "owner", "sessions": "all"}.get(takes)
    for key, value in (("owner", ALICE), ("all", True)):
        if key == theirs:
            continue
        request = {"op": takes, key: value} | {name: full[name] for name in OPS[takes] if name in full}
        (reply,) = driver.ask(request, address=C)
        assert (reply["error"], reply["field"]) == ("bad_request", key)
    assert kept_of(driver, ALICE) == before


def test_an_administrator_looks_at_what_is_others_and_closes_it(drive: Drive) -> None:
    driver = Kept(relu(), keys={"is_admin": lambda key: key == CAROL})
    driver.users = None
    driver.ask(step("s", 1), step("s", 2), step("s", 3))  # nobody's
    driver.users = {A: ALICE, B: BOB, C: CAROL}
    driver.ask(step("s", 1), address=A)
    driver.ask(step("s", 1), step("s", 2), address=B)
    driver.ask(*[step("s", 1)] * 4, address=C)

    def info(**more: Any) -> Reply:
        (reply,) = driver.ask(op("info", "s", **more), address=C)
        return reply

    assert [info(**more)["t"] for more in ({}, {"owner": ""}, {"owner": ALICE}, {"owner": BOB})] == [4, 3, 1, 2]
    assert info(owner="Z" * 40)["why"] == "never"
    everybody = driver.ask({"op": "sessions", "all": True}, address=C)[0]
    assert Counter(zip(everybody["sessions"], everybody["owners"], strict=True)) == Counter(
        ("s", owner) for owner in ("", ALICE, BOB, CAROL)
    )
    assert driver.ask({"op": "sessions"}, address=C)[0]["sessions"] == ["s"]
    numbered_close = driver.ask(op("close", "s", owner=ALICE, producer="p", n=1), address=C)[0]
    assert (numbered_close["error"], numbered_close["field"]) == ("bad_request", "producer")  # the numbers there are Alice's
    assert driver.ask(op("close", "s", owner=ALICE), address=C) == [{"session": "s", "closed": True}]
    assert driver.ask(op("close", "s", owner=""), address=C) == [{"session": "s", "closed": True}]
    assert info(owner=ALICE)["why"] == info(owner="")["why"] == "closed"
    assert [info(**more)["t"] for more in ({}, {"owner": BOB})] == [4, 2]
    assert driver.ask(op("info", "s"), step("s", 1), address=A)[1]["why"] == "closed"
    assert driver.ask({"op": "stats"}, address=C)[0]["open"] == 2
    assert driver.ask({"op": "stats"}, address=B)[0] == {"worker": "w", "open": 1, "tombstones": 0, "waiting": 0}
