from __future__ import annotations

import base64
import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnstream
from rnnstream.engine.snapshot import decode, encode
from rnnstream.names import Owned
from rnnstream.store.interface import Identity, Saved, Write
from rnnstream.store.records import Batch, KeptProducer, pack_entry, pack_producers
from rnnstream.store.sqlite import SQLiteStore

from .conftest import DEADLINE_S, lines, run

Start = Callable[..., subprocess.Popen[bytes]]
Serve = Callable[[str], tuple[rnnstream.Client, subprocess.Popen[bytes]]]
MARKS = {
    "name": "letters",
    "digest": "d" * 64,
    "numerics": "kernels",
    "dtype": "float32",
    "state_size": 3,
    "format": 2,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@pytest.fixture
def serve(start: Start, files: dict[str, str], path: Path) -> Serve:
    """A worker of this model on the store, in a process of its own, and a client of it."""

    def serve(model: str) -> tuple[rnnstream.Client, subprocess.Popen[bytes]]:
        process = start("serve", files[model], "--store", path, "--bind", "tcp://127.0.0.1:*")
        assert process.stdout
        ready = process.stdout.readline().split()
        assert ready[:1] == [b"ready"]
        return rnnstream.Client(ready[1].decode()), process

    return serve


def stop(process: subprocess.Popen[bytes], *, kill: bool = False) -> None:
    process.kill() if kill else process.terminate()
    assert process.wait(DEADLINE_S) == (-9 if kill else 0)


def exported(path: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    found = lines(run("store", "export", path, *arguments))
    assert len({line["session"] for line in found}) == len(found)
    return {line.pop("session"): line for line in found}


def snapshot(line: dict[str, Any]) -> bytes:
    return base64.b64decode(line["state"], validate=True)


# -- with workers


def test_a_state_goes_on_in_another_worker(
    serve: Serve, path: Path, addresses: dict[str, str], models: dict[str, rnnstream.StepModel], session: str
) -> None:
    client, process = serve("letters")
    with client:
        one = client.session("one")
        one.feed("abcab")
        expected = one.snapshot()
        client.session("ended").step("a")
        client.session("ended").close()
    stop(process)
    [found] = lines(run("store", "info", path, "--json"))
    told = {key: found[key] for key in ("open", "closed", "expired", "behind", "entries", "log_bytes", "in_use", "numerics")}
    model = models["letters"]
    assert told == {
        "open": 1, "closed": 1, "expired": 0, "behind": 0, "entries": 1, "log_bytes": 0, "in_use": False,
        "numerics": model.numerics,
    }  # fmt: skip
    sessions = exported(path)
    assert (sessions["one"]["t"], snapshot(sessions["one"]), "behind" in sessions["one"]) == (5, expected, False)
    assert (sessions["ended"]["status"], "state" in sessions["ended"]) == ("closed", False)
    with rnnstream.Client(addresses["letters"]) as client:
        other = client.session(session)
        other.open(snapshot(sessions["one"]))
        prediction = other.step("c", want="probs")
    assert prediction.probs is not None
    assert (prediction.t, prediction.probs.tobytes()) == (6, model.forward("abcabc")[-1].astype("<f4").tobytes())


@pytest.mark.parametrize("name", ["letters", "rows"])
def test_tokens_behind_a_state_that_was_left(
    serve: Serve, path: Path, models: dict[str, rnnstream.StepModel], name: str, tmp_path: Path
) -> None:
    tokens: Any = (
        [0, 1, 5, 6, 2, 3] if name == "letters" else np.random.default_rng(1).normal(size=(6, 3)).astype("f4").tolist()
    )
    client, process = serve(name)
    with client:
        client.session("one").feed(tokens)
    stop(process)
    client, process = serve(name)
    with client:
        for session, token in zip(["one", "two", "one", "two", "one"], tokens, strict=False):
            client.session(session).step(token)
        stop(process, kill=True)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    sessions = exported(path)
    assert (sessions["one"]["t"], sessions["one"]["behind"]) == (6, tokens[0:5:2])
    assert (sessions["two"]["t"], sessions["two"]["behind"], "state" in sessions["two"]) == (0, tokens[1:5:2], False)
    [told] = lines(run("store", "info", path, "--json"))
    assert (told["open"], told["behind"], told["in_use"], told["log_bytes"] > 0) == (2, 5, False, True)
    assert "behind saved states" in run("store", "info", path).stdout
    assert lines(run("store", "check", path, "--json")) == [{"problems": 0}]
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    (tmp_path / "sessions.db-shm").unlink()
    assert exported(path) == sessions
    model = models[name]
    client, process = serve(name)
    with client:
        for session, line in sessions.items():
            a, t = model.initial_state(), 0
            if "state" in line:
                a, t = decode(snapshot(line), dtype=model.dtype, state_size=model.state_size, digest=model.digest)
            expected = encode(model.run(line["behind"], a), t + len(line["behind"]), model.digest)
            assert client.session(session).snapshot() == expected
            info = client.session(session).info()
            assert line["producers"] == info["producers"] != {}
            assert 0 <= line["idle_s"] <= info["idle_s"]
            assert line["idle_s"] <= line["age_s"] <= info["age_s"]
    stop(process)


def test_while_a_worker_has_it_open(serve: Serve, path: Path) -> None:
    client, process = serve("letters")
    with client:
        [told] = lines(run("store", "info", path, "--json"))
        assert (told["open"], told["behind"], told["in_use"]) == (0, 0, True)
        for n in range(20):
            client.session("one").step("abcab"[n % 5])
            assert len(exported(path)["one"]["behind"]) == n + 1
        assert lines(run("store", "check", path, "--json")) == [{"problems": 0}]
        assert ["in", "use", "by", "a", "worker"] in [line.split() for line in run("store", "info", path).stdout.splitlines()]
        assert client.stats()["store"]["failures"] == 0
    stop(process)
    assert [file.name for file in path.parent.iterdir()] == ["sessions.db"]  # nobody's locks have kept the worker from it


# -- of stores that are made here


@pytest.fixture
def made(path: Path) -> Path:
    """An open session with two tokens behind it, one only in the journal, a closed and an expired one."""
    store = SQLiteStore(path)
    store.open(Identity("d" * 64, "letters", "<f4", 3, "kernels"))
    producers = pack_producers([KeptProducer("p", 4, 2.0, None, None, [])])
    saved = [
        Saved("a", "open", 1, 7, 1.0, 2.0, producers, np.array([1, 2, 3], "<f4").tobytes()),
        Saved("closed", "closed", 1, producers=producers),
        Saved("expired", "expired", 1),
    ]
    store.write(Write(1, pack_entry(2.0, [Batch(["a"], [6])]), saved))
    batch = Batch(["a", "new\n", "a"], [3, 5, 4])
    batch.number(2, "q", 1, 0)
    store.write(Write(2, pack_entry(4.0, [batch])))
    store.write(Write(3, pack_entry(10.0, [])))
    store.close()
    return path


def damage(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    with connection:
        assert connection.execute(statement).rowcount > 0
    connection.close()


LINES: list[dict[str, Any]] = [
    {
        "session": "a", "status": "open", "t": 7, "age_s": 9.0, "idle_s": 6.0, "producers": {"p": 4, "q": 1}, "behind": [3, 4],
        "state": base64.b64encode(encode(np.array([1, 2, 3], np.float32), 7, "d" * 64)).decode(),
    },
    {"session": "closed", "status": "closed", "producers": {"p": 4}},
    {"session": "expired", "status": "expired", "producers": {}},
    {"session": "new\n", "status": "open", "t": 0, "age_s": 6.0, "idle_s": 6.0, "producers": {}, "behind": [5]},
]  # fmt: skip


def test_export(made: Path) -> None:
    assert lines(run("store", "export", made)) == LINES


def test_export_of_some(made: Path) -> None:
    assert lines(run("store", "export", made, "--session", "new\n", "--session", "a", "--session", "a")) == [LINES[0], LINES[3]]
    result = run("store", "export", made, "--session", "a\x1b", "--session", "expired")
    assert (result.exit_code, [json.loads(line) for line in result.stdout.splitlines()]) == (1, [LINES[2]])
    assert result.stderr == f'Error: The store {made} keeps nothing of "a\\u001b".\n'


def test_export_of_an_owners(path: Path) -> None:
    alice, bob = "A" * 40, "B" * 40
    names = ["a", Owned(alice, "a"), Owned(bob, "a"), Owned(alice, "b")]
    store = SQLiteStore(path)
    store.open(Identity("d" * 64, "letters", "<f4", 3, "kernels"))
    rows = [Saved(name, "open", 1, 2, 1.0, 1.0, b"", bytes(12)) for name in names]
    store.write(Write(1, pack_entry(1.0, [Batch([Owned(bob, "behind"), Owned(alice, "behind")], [1, 2])]), rows))
    store.close()

    def told(*arguments: str) -> list[tuple[str, str]]:
        return [(line.get("owner", ""), line["session"]) for line in lines(run("store", "export", path, *arguments))]

    everybodys = [("", "a"), (alice, "a"), (bob, "a"), (alice, "b"), (bob, "behind"), (alice, "behind")]
    assert told() == everybodys
    for owner, given in ((alice, alice), (bob, bob), ("", "-")):
        assert told("--owner", given) == [one for one in everybodys if one[0] == owner]
    assert told("--owner", bob, "--session", "a") == [(bob, "a")]
    assert told("--session", "a") == [("", "a")]
    result = run("store", "export", path, "--owner", bob, "--session", "b")
    assert (result.exit_code, result.stderr) == (1, f"Error: The store {path} keeps nothing of b of {bob}.\n")
    assert run("store", "export", path, "--owner", "alice").exit_code == 2


def test_export_of_a_damaged_one(made: Path) -> None:
    damage(made, "UPDATE sessions SET t = 8 WHERE name = 'a'")
    result = run("store", "export", made)
    damaged = {"session": "a", "damaged": True}
    assert (result.exit_code, [json.loads(line) for line in result.stdout.splitlines()]) == (1, [damaged, *LINES[1:]])
    told = "The row of session 'a' does not match its checksum."
    assert result.stderr == f"Error: The store {made} is damaged, and not all of it is here. {told}\n"
    assert lines(run("store", "export", made, "--session", "closed")) == [LINES[1]]


def test_export_of_a_damaged_journal(made: Path) -> None:
    damage(made, "UPDATE journal SET crc = crc + 1 WHERE id = 2")
    result = run("store", "export", made)
    alone = {key: value for key, value in LINES[0].items() if key != "behind"}
    unknown = {"age_s": None, "idle_s": None, "producers": {"p": 4}}
    assert [json.loads(line) for line in result.stdout.splitlines()] == [alone | unknown, *LINES[1:3]]
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.endswith("Journal entry 2 does not match its checksum.\n")
    for form in ([], ["--json"]):
        result = run("store", "info", made, *form)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == f"Error: The store {made} is damaged. Journal entry 2 does not match its checksum.\n"


def test_info(made: Path) -> None:
    size = made.stat().st_size
    counts = {"open": 2, "closed": 1, "expired": 1, "entries": 3, "behind": 3}
    assert lines(run("store", "info", made, "--json")) == [MARKS | counts | {"bytes": size, "log_bytes": 0, "in_use": False}]
    assert run("store", "info", made).stdout == (
        "format    2\n"
        "model     'letters'\n"
        f"digest    {'d' * 64}\n"
        "kernels   kernels\n"
        "state     3 numbers of float32\n"
        "sessions  2 open; of late 1 closed and 1 expired\n"
        "journal   3 entries, 3 tokens behind saved states\n"
        f"size      {size:,} bytes, and 0 in the write-ahead log\n"
        "in use    no\n"
    )


def test_check(made: Path) -> None:
    result = run("store", "check", made)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{made} is whole: 3 names, 3 journal entries\n"
    damage(made, "UPDATE journal SET crc = crc + 1 WHERE id = 2")
    damage(made, "UPDATE sessions SET moved_at = 3 WHERE name = 'expired'")
    result = run("store", "check", made)
    told = ["The row of session 'expired' does not match its checksum.", "Journal entry 2 does not match its checksum."]
    assert (result.exit_code, result.stdout.splitlines()) == (1, told)
    assert result.stderr == f"Error: The store {made} is damaged; problems found: 2.\n"
    result = run("store", "check", made, "--json")
    assert (result.exit_code, [json.loads(line) for line in result.stdout.splitlines()]) == (
        1,
        [{"problem": told[0], "session": "expired"}, {"problem": told[1], "entry": 2}, {"problems": 2}],
    )


@pytest.mark.parametrize("command", ["info", "check", "export"])
def test_what_is_refused(command: str, made: Path, tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    shutil.copyfile(made, newer)
    connection = sqlite3.connect(newer)
    connection.execute("PRAGMA user_version = 3")
    connection.close()
    (tmp_path / "text").write_text("abc" * 1000)
    for path, told in (
        (tmp_path / "none", f"The store {tmp_path / 'none'} cannot be read: No such file or directory."),
        (tmp_path, f"{tmp_path} is no store of rnnstream: it is a directory."),
        (tmp_path / "text", f"{tmp_path / 'text'} is no store of rnnstream, or damaged: file is not a database."),
        (newer, f"The store {newer} has the format version 3; this version of rnnstream reads 2."),
    ):
        result = run("store", command, path)
        assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"Error: {told}\n")
    assert {file.name for file in tmp_path.iterdir()} == {"sessions.db", "newer", "text"}


@pytest.mark.parametrize("arguments", [["info"], ["export", "x", "--session", ""], ["export", "x", "--json"], ["repair", "x"]])
def test_wrong_use(arguments: list[str]) -> None:
    assert run("store", *arguments).exit_code == 2


def test_a_bar_is_drawn_on_a_terminal_only_on_stderr(start: Start, made: Path) -> None:
    terminal, end = os.openpty()
    process = start("store", "check", made, stderr=end)
    stdout, _ = process.communicate(timeout=DEADLINE_S)
    os.close(end)
    drawn = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert (process.returncode, stdout.decode()) == (0, f"{made} is whole: 3 names, 3 journal entries\n")
    assert "6/6" in drawn


def test_a_reader_that_goes_ends_it_quietly(start: Start, path: Path) -> None:
    store = SQLiteStore(path)
    store.open(Identity("d" * 64, "letters", "<f4", 3, "kernels"))
    store.write(Write(1, pack_entry(2.0, []), [Saved(f"{n:04}", "open", 1, state=bytes(12)) for n in range(5000)]))
    store.close()
    process = start("store", "export", path)
    assert process.stdout
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr
    assert process.stderr.read() == b""
    assert process.wait(DEADLINE_S) == 1
