"""Sessions of different owners in one store, through crashes and through workers that know users and that do not."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rnnstream.cli.store import store as store_command
from rnnstream.engine.snapshot import decode
from rnnstream.errors import BadStore
from rnnstream.model.blas import one_thread
from rnnstream.names import Owned
from rnnstream.store.interface import Store
from rnnstream.store.memory import MemoryStore
from rnnstream.store.records import Batch, pack_entry, unpack_entry
from rnnstream.store.sqlite import SQLiteStore
from tests.engine.models import SPOILED, relu
from tests.store.places import another

from .company import ALICE, BOB, CAROL, listed
from .driving import codes, step
from .keeping import Damaged, Kept, numbered, op, row, seen, steps_in_journal

A, B, C, N = b"alice", b"bob", b"carol", b"nobody"
USERS: dict[bytes, str | None] = {A: ALICE, B: BOB, C: CAROL}
KEYS: dict[str, Any] = {"is_admin": lambda key: key == CAROL}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def kept(store: Store | None = None, **options: Any) -> Kept:
    return Kept(relu(seed=1), store, keys=KEYS, **options)


def turn(driver: Kept, end: str, users: bool) -> None:
    """The next worker, which knows users or does not."""
    if end:
        getattr(driver, end)()
    driver.users = dict(USERS) if users else None


def held(driver: Kept, tokens: dict[str, list[int]], address: bytes) -> None:
    """See whether somebody has these sessions, to the bit, and no others."""
    for name, xs in tokens.items():
        t, state = seen(driver, name, address)
        assert (t, state[74:-16]) == (len(xs), driver.model.run(xs).tobytes())
    assert sorted(set(listed(driver, address))) == sorted(tokens)


# Whose is whose ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_resident", [1, 1000])
@pytest.mark.parametrize("end", ["crash", "stop"])
@pytest.mark.parametrize("place", ["memory", "file"])
def test_every_owner_goes_on_with_the_same_names_whoever_was_served_meanwhile(
    tmp_path: Path, place: str, end: str, max_resident: int
) -> None:
    driver = kept(SQLiteStore(tmp_path / "0-s.db") if place == "file" else None, max_resident=max_resident)
    tokens: dict[bytes, dict[str, list[int]]] = {peer: {"s": [], "t": [], f"of {peer.decode()}": []} for peer in (N, A, B)}
    n, told = 0, {}
    for users in (False, True, True, False, True, False):
        turn(driver, end if n else "", users)
        for round_ in range(3):
            n += 1
            for number, peer in enumerate((A, B) if users else (N,)):
                xs = tokens[peer]
                count = len(xs["s"]) + 1
                xs["s"].append((n + number) % SPOILED)
                xs["t"].append((n * 3 + number) % SPOILED)
                request = numbered(count, xs["s"][-1], "s", "p", ack=0)
                (told[peer], *_) = driver.ask(request, step("t", xs["t"][-1]), address=peer)
                assert told[peer]["t"] == count
                other = xs[f"of {peer.decode()}"]
                if round_ == 1:  # numbered ones in waves with those of others
                    other.append(1)
                    driver.ask(numbered(len(other), 1, f"of {peer.decode()}", want="probs"), address=peer)
        if users:
            turns = [(peer, [numbered(len(tokens[peer]["s"]) + 1, 2, "s", "p", ack=0), step("t", 1)]) for peer in (A, B)]
            driver.handle(*turns)  # in one wave, and one journal entry
            driver.finish()
            for peer in (A, B):
                (replies,) = driver.replies.pop(peer)
                told[peer] = replies[0]
                tokens[peer]["s"].append(2)
                tokens[peer]["t"].append(1)
            for peer in (A, B):
                held(driver, tokens[peer], peer)
        else:
            held(driver, tokens[N], N)
            for name in ("of alice", "of bob"):
                assert seen(driver, name, N) == "never"
        for peer in (A, B) if users else (N,):
            count, last = len(tokens[peer]["s"]), tokens[peer]["s"][-1]
            (again,) = driver.ask(numbered(count, last, "s", "p", ack=0), address=peer)
            assert again == told[peer] | {"again": True}
    driver.store.close()


def test_the_journal_of_a_store_holds_steps_of_everybody_side_by_side() -> None:
    driver = kept()
    turn(driver, "", users=False)
    driver.ask(step("s", 1), numbered(1, 2, "n"))
    turn(driver, "crash", users=True)
    driver.handle((A, [step("s", 2), numbered(1, 3, "n")]), (B, [step("s", 3), numbered(1, 4, "n")]), (A, [step("only", 1)]))
    driver.finish()
    batches = [batch for _, entry in driver.store.inner.journal() for batch in unpack_entry(entry)[1]]
    names = [name for batch in batches for name in batch.names]
    assert {("", "s"), (ALICE, "s"), (BOB, "s"), (ALICE, "only")} <= {
        (name.owner, name.name) if isinstance(name, Owned) else ("", name) for name in names
    }
    assert any({Owned(ALICE, "n"), Owned(BOB, "n")} <= set(batch.names) for batch in batches)
    assert steps_in_journal(driver) == 7
    turn(driver, "crash", users=True)
    assert driver.replayed == 7
    held(driver, {"s": [2], "n": [3], "only": [1]}, A)
    held(driver, {"s": [3], "n": [4]}, B)
    turn(driver, "crash", users=False)
    held(driver, {"s": [1], "n": [2]}, N)


@pytest.mark.parametrize("end", ["", "crash", "stop"])
def test_who_serves_without_keys_reaches_nothing_that_is_owned(end: str) -> None:
    driver = kept()
    turn(driver, "", users=True)
    driver.ask(
        *[numbered(n, n, "s") for n in (1, 2)], op("open", "gone"), numbered(1, 1, "gone"), op("close", "gone"), address=A
    )
    state = seen(driver, "s", A)
    turn(driver, end or "crash", users=False)
    for request in (
        op("info", "s"),
        op("snapshot", "s"),
        op("peek", "s", xs=[1]),
        op("close", "s"),
        op("fork", "s", to="t"),
        op("restore", "s", state=state[1]),
        op("info", "gone"),
        op("info", f"{ALICE}s"),
        op("info", f"{ALICE}\0s"),
    ):
        assert driver.ask(request)[0]["why"] == "never"
    for request in (op("info", "s", owner=ALICE), op("close", "s", owner=ALICE), {"op": "sessions", "all": True}):
        assert codes(driver.ask(request)) == ["denied"]
    assert listed(driver, N) == []
    assert codes(driver.ask(numbered(1, 5, "s"), step("gone", 1), op("open", "other"))) == [1, 1, 0]  # as if never seen
    driver.ask(op("close", "s"), op("close", "gone"))
    turn(driver, end or "crash", users=True)
    assert seen(driver, "s", A) == state
    assert seen(driver, "gone", A) == "closed"
    assert codes(driver.ask(numbered(2, 2, "s"), numbered(3, 1, "s"), address=A)) == [2, 3]
    assert listed(driver, A) == ["s"]
    assert listed(driver, B) == []


def test_a_key_that_was_away_finds_all_as_it_was_with_a_store_that_failed_meanwhile() -> None:
    driver = kept()
    turn(driver, "", users=True)
    for peer in (A, B):
        driver.ask(numbered(1, 1, "s"), op("open", "t"), op("close", "t"), address=peer)
    for request in (numbered(2, 3, "s"), op("close", "s"), op("open", "t"), op("reset", "s"), op("fork", "s", to="t")):
        driver.store.next["write"] = 1
        driver.handle((B, [request]), (A, [op("info", "s")]))
        driver.finish()
        assert codes(driver.replies.pop(B)[0]) == ["store_error"]
        driver.replies.clear()
        driver.users = USERS | {b"calm": CAROL}
        driver.calm()
        for peer in (A, B):
            held(driver, {"s": [1]}, peer)
            assert seen(driver, "t", peer) == "closed"
            assert "again" in driver.ask(numbered(1, 1, "s"), address=peer)[0]


# Damage ---------------------------------------------------------------------------------------------------------------


def test_damage_of_one_owners_row_is_that_owners_alone() -> None:
    store = Damaged()
    driver = kept(store)
    turn(driver, "", users=True)
    for peer in (A, B):
        driver.ask(op("open", "s"), address=peer)
    turn(driver, "stop", users=True)
    store.bad = (Owned(ALICE, "s"),)
    assert codes(driver.ask(step("s", 1), address=A)) == ["store_error"]
    assert codes(driver.ask(step("s", 1), address=B)) == [1]
    (reply,) = driver.ask(op("info", "s"), address=A)
    assert reply["message"] == "s: its row in the store is damaged (see rnnstream store check); reset starts it anew."


@pytest.mark.parametrize("bad", [("s", Owned(ALICE, "s")), (Owned(BOB, "r"), Owned(ALICE, "s"), "t")])
def test_a_start_is_refused_with_a_sentence_whosever_rows_are_damaged(bad: tuple[Any, ...]) -> None:
    store = Damaged()
    driver = kept(store)
    for users in (False, True):
        turn(driver, "", users)
        for peer in (A, B) if users else (N,):
            driver.ask(*[op("open", name) for name in "rst"], *[step(name, 1) for name in "rst"], address=peer)
    store.bad = bad
    with pytest.raises(BadStore, match=f"the row of session {min(map(str, bad))} does not match its checksum"):
        driver.crash()


# Records --------------------------------------------------------------------------------------------------------------

NAMES: list[list[Any]] = [
    ["a", "b"],
    [Owned(ALICE, "a"), Owned(ALICE, "b")],
    [Owned(ALICE, "a"), "a", Owned(BOB, "a"), Owned(ALICE, "é\0"), ""],
    [Owned(BOB, ""), f"{BOB}a"],
    [],
]


@pytest.mark.parametrize("names", NAMES, ids=lambda names: str(len(set(map(str, names)))))
def test_a_journal_entry_says_whose_each_step_is(names: list[Any]) -> None:
    batch = Batch(list(names), list(range(len(names))))
    if names:
        batch.number(len(names) - 1, "p", 7, 6)
        batch.wants[len(names) - 1] = [3, True]  # type: ignore[assignment]
    now, (found, second) = unpack_entry(pack_entry(2.5, [batch, Batch(["x"], [b"1234"])]))
    assert (now, found, second) == (2.5, batch, Batch(["x"], [b"1234"]))
    assert list(map(type, found.names)) == list(map(type, names))
    good = [place % 2 == 0 for place in range(len(names))]
    only = batch.only(good)
    assert only.names == names[::2]
    ((again,),) = [unpack_entry(pack_entry(0.0, [only]))[1]]
    assert again == only


def test_steps_of_nobody_are_written_as_they_were_before_there_were_owners() -> None:
    batch = Batch(["a", "b"], [1, 2])
    assert pack_entry(1.0, [batch]).hex() == "93cb3ff0000000000000c4009792a161a162920102" + "90909090" + "80"


# Looking --------------------------------------------------------------------------------------------------------------


def told(*arguments: Any) -> list[dict[str, Any]]:
    result = CliRunner().invoke(store_command, [*map(str, arguments)])
    return [json.loads(line) for line in result.output.splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of which nothing is open, with sessions of two keys and of nobody, some of them in the journal alone."""
    path = tmp_path / "0-s.db"
    driver = kept(SQLiteStore(path))
    turn(driver, "", users=False)
    driver.ask(op("open", "s"), step("s", 1), step("journal", 1))
    turn(driver, "crash", users=True)
    for count, peer in enumerate((A, B), 2):
        driver.ask(*[numbered(n, 2, "s") for n in range(1, count + 1)], op("open", "gone"), op("close", "gone"), address=peer)
        driver.ask(op("open", "saved"), address=peer)
    driver.store.close()
    return tmp_path / "1-s.db"


def test_whoever_looks_into_it_sees_whose_each_session_is(path: Path) -> None:
    assert CliRunner().invoke(store_command, ["check", str(path)]).exit_code == 0
    lines = told("export", path)
    by_name = {(line.get("owner"), line["session"]): line for line in lines}
    assert len(by_name) == len(lines)
    wanted = {(None, "s"), (None, "journal")} | {(owner, name) for owner in (ALICE, BOB) for name in ("s", "gone", "saved")}
    assert set(by_name) == wanted
    assert [by_name[owner, "s"].get("behind") for owner in (None, ALICE, BOB)] == [[1], [2, 2], [2, 2, 2]]
    assert [by_name[owner, "s"]["producers"] for owner in (None, ALICE, BOB)] == [{}, {"p": 2}, {"p": 3}]
    assert {by_name[owner, "gone"]["status"] for owner in (ALICE, BOB)} == {"closed"}
    model = relu(seed=1)
    state = base64.b64decode(by_name[BOB, "saved"]["state"])
    assert decode(state, dtype=model.dtype, state_size=model.state_size, digest=model.digest)[1] == 0
    assert told("info", "--json", path)[0] | {"open": 6, "closed": 2, "behind": 7} == told("info", "--json", path)[0]


def test_an_export_of_some_names_is_of_one_owner(path: Path) -> None:
    for more, producers in (([], {}), (["--owner", ALICE], {"p": 2}), (["--owner", BOB], {"p": 3})):
        (line,) = told("export", path, "--session", "s", *more)
        assert (line["session"], line.get("owner", ""), line["producers"]) == ("s", more[-1] if more else "", producers)
    for more in (["--session", "gone"], ["--session", "journal", "--owner", ALICE], ["--session", "s", "--owner", "Z" * 40]):
        result = CliRunner().invoke(store_command, ["export", str(path), *more])
        assert isinstance(result.exception, BadStore)
        assert f"keeps nothing of {more[1]}" in str(result.exception)
        assert result.output == ""


@pytest.mark.parametrize("change", ["t = t + 1", f"owner = '{'Z' * 40}'", "name = 'other'"])
def test_a_check_says_whose_row_is_damaged(path: Path, change: str) -> None:
    with another(path) as connection:
        connection.execute(f"UPDATE sessions SET {change} WHERE owner = ? AND name = 'saved'", (BOB,))
    name, owner = ("other", BOB) if "name" in change else ("saved", "Z" * 40 if "owner" in change else BOB)
    result = CliRunner().invoke(store_command, ["check", str(path)])
    assert result.output == f"The row of session {name!r} of {owner!r} does not match its checksum.\n"
    assert "problems found: 1." in str(result.exception)
    problem, count = told("check", "--json", path)
    assert (problem["session"], problem["owner"], count) == (name, owner, {"problems": 1})
    assert {"session": name, "owner": owner, "damaged": True} in told("export", path)
    driver = kept(SQLiteStore(path))
    turn(driver, "", users=True)
    assert codes(driver.ask(op("info", "saved"), address=A)) == [0]
    reached = driver.ask(op("info", name), address=B)[0]
    assert reached["error"] == ("unknown_session" if "owner" in change else "store_error")
    driver.store.close()


def test_the_next_worker_counts_what_is_open(path: Path) -> None:
    driver = kept(SQLiteStore(path))
    assert +driver.engine.table.owned == {ALICE: 2, BOB: 2}
    driver.store.close()


def test_rows_say_whose_they_are() -> None:
    driver = kept(MemoryStore())
    turn(driver, "", users=True)
    driver.ask(op("open", "s"), address=A)
    saved = row(driver, Owned(ALICE, "s"))
    assert saved is not None
    assert saved.name == Owned(ALICE, "s")
    assert row(driver, "s") is None
    assert row(driver, Owned(BOB, "s")) is None
