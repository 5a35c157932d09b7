"""Stores of format version 1, which knew no owners: a worker goes on with them, or leaves them as they are."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from rnnstream.cli.store import store as store_command
from rnnstream.errors import BadStore
from rnnstream.model.blas import one_thread
from rnnstream.model.network import Network
from rnnstream.model.spec import parse
from rnnstream.store.interface import Identity, Saved
from rnnstream.store.layout import FORMAT, FROM_1, row_of
from rnnstream.store.look import looking
from rnnstream.store.sqlite import SQLiteStore
from tests.worker.company import ALICE, CAROL, listed, page
from tests.worker.driving import codes, step
from tests.worker.keeping import Kept, numbered, op, row, seen

from .places import another, file_size_limit

OLD = Path(__file__).with_name("format_1.sql").read_text()
DEADLINE_S = 30
# What its worker had told when it was killed.
TOKENS = {
    "a": [1, 2, 3, 0, 1, 2, 3],
    "é": [3, 3, 1],
    "b": [2, 0],
    "copy of a": [1, 2, 3, 0, 1, 3],
    "s0": [0],
    "s1": [1],
    "s2": [2],
    "s3": [3],
    "journal only": [0, 1],
}
ENDED = {"gone": "closed", "old": "expired", "sleeper": "expired"}
KEPT: list[tuple[dict[str, Any], dict[str, Any]]] = [  # requests whose replies are kept, and those
    (numbered(2, 3, "gone"), {"t": 2, "y": 0}),
    (numbered(1, 2, "sleeper"), {"t": 1, "y": 0}),
    (numbered(6, 2, "a", ack=0), {"t": 6, "y": 0}),
    (numbered(7, 3, "a", ack=0), {"t": 7, "y": 0}),
    (numbered(2, 1, "journal only", "q"), {"t": 2, "y": 0}),
]
SENTENCE = "has the format version 1; the next worker that serves it brings it to 2."


def whole() -> Network:
    """A model whose weights are whole numbers, so that every machine comes to the same bits."""
    spec = parse(
        {
            "format": 1,
            "name": "whole",
            "dtype": "float32",
            "input": {"kind": "token", "size": 4},
            "layers": [{"kind": "onehot"}, {"kind": "rnn", "size": 3, "activation": "relu"}, {"kind": "dense", "size": 4}],
            "head": "categorical",
        }
    )
    rng = np.random.default_rng(0)
    tensors = {name: rng.integers(-1, 2, shape).astype("float32") for name, shape in sorted(spec.shapes.items())}
    return Network(spec, tensors, measure=False)


IDENTITY = Identity(whole().digest, "whole", "<f4", 3, "the kernels of another machine")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of format 1."""
    path = tmp_path / "0-s.db"
    with another(path) as connection:
        connection.executescript(OLD)
    return path


def content(path: Path) -> tuple[int, str]:
    """The format version, and everything that is in a file."""
    with another(path, "ro") as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        return version, "\n".join(connection.iterdump())


def rows(path: Path, columns: str) -> list[tuple[Any, ...]]:
    with another(path, "ro") as connection:
        return connection.execute(f"SELECT {columns} FROM sessions ORDER BY id").fetchall()


def open_once(path: Path) -> None:
    store = SQLiteStore(path)
    try:
        store.open(IDENTITY)
    finally:
        store.close()


# Served on ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_resident", [1, 1000])
@pytest.mark.parametrize("kernels", ["these", "others"])
def test_a_worker_goes_on_with_it_to_the_bit(path: Path, kernels: str, max_resident: int) -> None:
    model = whole()
    if kernels == "these":
        with another(path) as connection:
            connection.execute("UPDATE meta SET value = ? WHERE key = 'numerics'", (model.numerics,))
    driver = Kept(model, SQLiteStore(path), max_resident=max_resident)
    assert content(path)[0] == FORMAT == 2
    assert driver.replayed == 4
    for end in ("", "crash", "stop"):
        if end:
            getattr(driver, end)()
        for name, tokens in TOKENS.items():
            t, state = seen(driver, name)
            assert (t, state[74:-16]) == (len(tokens), model.run(tokens).tobytes()), name
        assert {name: seen(driver, name) for name in ENDED} == ENDED
        assert set(listed(driver, b"asker")) == set(TOKENS)
        for request, reply in KEPT:
            (again,) = driver.ask(request)
            assert again.pop("again")
            assert {key: again[key] for key in reply} == reply
        assert codes(driver.ask(numbered(3, 3, "a"), numbered(1, 1, "gone"), step("old", 1))) == [
            "stale",
            "stale",
            "unknown_session",
        ]
    (told,) = driver.ask(op("info", "a"))
    assert told["producers"] == {"p": 7}
    assert driver.now - told["age_s"] == pytest.approx(100.07)
    assert codes(driver.ask(numbered(8, 1, "a"), step("é", 1), numbered(3, 2, "journal only", "q"))) == [8, 4, 3]
    assert codes(driver.ask(op("open", "gone"), numbered(3, 1, "gone"))) == [0, 1]
    assert seen(driver, "a")[1][74:-16] == model.run([*TOKENS["a"], 1]).tobytes()
    driver.store.close()


def test_its_sessions_are_nobodys_where_there_are_users(path: Path) -> None:
    driver = Kept(whole(), SQLiteStore(path), keys={"is_admin": lambda key: key == CAROL})
    driver.users = {b"a": ALICE, b"c": CAROL}
    assert listed(driver, b"a") == []
    assert [driver.ask(op("info", name), address=b"a")[0]["why"] for name in (*TOKENS, *ENDED)] == ["never"] * 12
    assert codes(driver.ask(numbered(1, 3, "a"), address=b"a")) == [1]
    everybody, after = [], 0
    while after is not None:
        reply = page(driver, b"c", all=True, limit=1000, after=after)
        everybody += zip(reply["owners"], reply["sessions"], strict=True)
        after = reply.get("next")
    assert sorted(everybody) == sorted([(ALICE, "a"), *(("", name) for name in TOKENS)])
    driver.ask(op("close", "b", owner=""), address=b"c")
    assert driver.ask(op("info", "a", owner=""), address=b"c")[0]["t"] == 7
    driver.users = None
    assert seen(driver, "b") == "closed"
    driver.store.close()


def test_a_row_that_is_damaged_stays_so_and_alone(path: Path) -> None:
    with another(path) as connection:
        connection.execute("UPDATE sessions SET t = t + 1 WHERE name = 's2'")
        connection.execute("DELETE FROM journal WHERE id BETWEEN 17 AND 22")  # nothing of it is replayed
    driver = Kept(whole(), SQLiteStore(path))
    assert driver.ask(op("info", "s2"))[0]["error"] == "store_error"
    assert [seen(driver, name)[0] for name in ("s0", "s1", "é")] == [1, 1, 3]
    driver.store.close()


# Brought up -----------------------------------------------------------------------------------------------------------


def test_all_that_is_in_it_stays_as_it_is(path: Path) -> None:
    columns = "id, name, status, upto, t, opened_at, moved_at, crc, producers, state"
    with another(path) as connection:
        connection.execute("DELETE FROM sessions WHERE id = 3")  # the ids of the others stay
    before, journal = rows(path, columns), content(path)[1].count('INTO "journal"')
    open_once(path)
    assert rows(path, columns) == before
    assert {owner for (owner,) in rows(path, "owner")} == {""}
    assert content(path)[1].count('INTO "journal"') == journal == 24
    for row_ in rows(path, "name, status, upto, t, opened_at, moved_at, producers, state, crc"):
        assert row_of(Saved(*row_[:-1]))[1:] == row_  # the checksum of what is nobody's is what it was
    now = content(path)
    open_once(path)
    assert content(path) == now
    with another(path, "ro") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    new = path.with_name("new")
    open_once(new)

    def layout(of: Path) -> list[Any]:
        with another(of, "ro") as connection:
            return sorted(connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall(), key=str)

    assert layout(path) == layout(new)


@pytest.mark.parametrize("place", range(len(FROM_1) + 1))
def test_what_goes_wrong_on_the_way_leaves_it_as_it_was(path: Path, place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(path)
    with monkeypatch.context() as patch:
        patch.setattr("rnnstream.store.sqlite.FROM_1", [*FROM_1[:place], "SELECT nowhere"])
        with pytest.raises(BadStore, match="cannot be used: no such column: nowhere"):
            open_once(path)
    assert content(path) == before
    open_once(path)
    assert content(path)[0] == FORMAT


def test_a_full_disk_leaves_it_as_it_was(path: Path) -> None:
    before, size = content(path), path.stat().st_size
    with file_size_limit(size), pytest.raises(BadStore, match="cannot be used"):
        open_once(path)
    assert content(path) == before
    open_once(path)
    assert content(path)[0] == FORMAT


KILLED = """
import os, signal, sys
from rnnstream.store import sqlite
from rnnstream.store.interface import Identity

def until_killed(statements, most):
    yield from statements[:most]
    os.kill(os.getpid(), signal.SIGKILL)

sqlite.FROM_1 = until_killed(sqlite.FROM_1, int(sys.argv[2]))
sqlite.SQLiteStore(sys.argv[1]).open(Identity(*sys.argv[3:6], 3, ""))
"""


def test_a_kill_on_the_way_leaves_it_as_it_was(path: Path) -> None:
    before = content(path)
    model = [IDENTITY.digest, IDENTITY.name, IDENTITY.dtype]
    process = subprocess.run([sys.executable, "-c", KILLED, path, str(len(FROM_1)), *model], timeout=DEADLINE_S, check=False)
    assert process.returncode == -signal.SIGKILL
    assert content(path) == before
    driver = Kept(whole(), SQLiteStore(path))
    assert seen(driver, "a")[0] == 7
    driver.store.close()


@pytest.mark.parametrize(
    ("identity", "sentence"),
    [
        (Identity("0" * 64, "another", "<f4", 3, ""), "keeps the sessions of another model: whole df2af6e0845d04c0"),
        (Identity(IDENTITY.digest, "whole", "<f8", 3, ""), "keeps states of 3 numbers of type <f4; this model's have 3 of"),
    ],
)
def test_the_worker_of_another_model_leaves_it_as_it_is(path: Path, identity: Identity, sentence: str) -> None:
    before = content(path)
    store = SQLiteStore(path)
    with pytest.raises(BadStore, match=sentence):
        store.open(identity)
    store.close()
    assert content(path) == before


@pytest.mark.parametrize("version", [0, 3, 99])
def test_other_versions_are_refused_and_stay_as_they_are(path: Path, version: int) -> None:
    with another(path) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    before = content(path)
    with pytest.raises(BadStore, match=f"has the format version {version}; this version of rnnstream reads 2"):
        open_once(path)
    with pytest.raises(BadStore, match=f"format version {version}"), looking(path):
        pass
    assert content(path) == before


# Looked at ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["info"], ["info", "--json"], ["check"], ["export"]])
def test_whoever_looks_into_it_is_told_to_serve_it_first(path: Path, command: list[str]) -> None:
    before = content(path)
    result = CliRunner().invoke(store_command, [*command, str(path)])
    assert isinstance(result.exception, BadStore)
    assert str(result.exception) == f"The store {path} {SENTENCE}"
    assert result.output == ""
    assert content(path) == before
    open_once(path)
    result = CliRunner().invoke(store_command, ["check", str(path)])
    assert result.output == f"{path} is whole: 10 names, 24 journal entries\n"


def test_whoever_reads_it_meanwhile_reads_on(path: Path) -> None:
    with another(path, "ro") as connection:
        connection.execute("BEGIN")
        before = connection.execute("SELECT name FROM sessions").fetchall()
        open_once(path)
        assert connection.execute("SELECT name FROM sessions").fetchall() == before
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        connection.execute("COMMIT")
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            connection.execute("DELETE FROM sessions")
        assert connection.execute("SELECT owner, name FROM sessions").fetchall() == [("", name) for (name,) in before]


def test_a_row_of_it_says_no_owner(path: Path) -> None:
    driver = Kept(whole(), SQLiteStore(path))
    saved = row(driver, "b")
    assert saved is not None
    assert type(saved.name) is str
    driver.store.close()
