from __future__ import annotations

from pathlib import Path

import pytest

from rnnstream import Client

from .conftest import lines, run


def test_info(client: Client, addresses: dict[str, str], session: str) -> None:
    for char in "abc":
        client.session(session).step(char)
    [found] = lines(run("session", "info", session, "--connect", addresses["letters"], "--json"))
    expected = client.session(session).info()
    assert (found["session"], found["t"], found["norm"]) == (session, 3, expected["norm"])
    assert found.keys() == expected.keys()
    shown = run("session", "info", session, "--connect", addresses["letters"]).stdout.splitlines()
    assert ["t", "3"] in [line.split() for line in shown]
    assert ["session", session] in [line.split(maxsplit=1) for line in shown]


def test_info_of_none(addresses: dict[str, str]) -> None:
    result = run("session", "info", "nobody", "--connect", addresses["letters"])
    assert (result.exit_code, result.stdout) == (1, "")
    told = "The session nobody is not open, and not among the names closed of late; open or reset opens it."
    assert result.stderr == f"Error: {told}\n"


def test_reset_and_close(client: Client, addresses: dict[str, str], session: str) -> None:
    client.session(session).step("a")
    at = ("--connect", addresses["letters"])
    assert lines(run("session", "reset", session, *at, "--json")) == [{"session": session, "t": 0}]
    assert client.session(session).info()["t"] == 0
    assert run("session", "close", session, *at).stdout == f"{session} is closed\n"
    assert session not in client.sessions()
    assert run("session", "close", session, *at).exit_code == 1
    assert run("session", "reset", session, *at).stdout == f"{session} is at t=0\n"
    assert lines(run("session", "close", session, *at, "--json")) == [{"session": session, "closed": True}]


def test_fork(client: Client, addresses: dict[str, str], session: str) -> None:
    client.session(session).feed("abc")
    at = ("--connect", addresses["letters"])
    copy = f"{session}/copy"
    assert run("session", "fork", session, copy, *at).stdout == f"{copy} is a copy of {session}, at t=3\n"
    assert lines(run("session", "fork", session, f"{copy}2", *at, "--json")) == [{"session": session, "to": f"{copy}2", "t": 3}]
    client.session(copy).step("a")
    assert client.session(session).snapshot() == client.session(f"{copy}2").snapshot() != client.session(copy).snapshot()
    result = run("session", "fork", session, copy, *at)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "open already" in result.stderr


def test_snapshot_and_restore(client: Client, addresses: dict[str, str], session: str, tmp_path: Path) -> None:
    one, at, file = client.session(session), ("--connect", addresses["letters"]), tmp_path / "state"
    one.feed("abc")
    state = one.snapshot()
    assert run("session", "snapshot", session, file, *at).stdout == f"{session} is saved: {len(state)} bytes\n"
    assert file.read_bytes() == state
    assert lines(run("session", "snapshot", session, file, *at, "--json")) == [{"session": session, "bytes": len(state)}]
    assert run("session", "snapshot", session, "-", *at).stdout_bytes == state
    one.feed("cab")
    assert run("session", "restore", session, file, *at).stdout == f"{session} is at t=3\n"
    assert one.snapshot() == state
    assert lines(run("session", "restore", f"{session}/new", file, *at, "--json")) == [{"session": f"{session}/new", "t": 3}]
    assert client.session(f"{session}/new").snapshot() == state
    file.write_bytes(state[:-1] + b"?")
    for name in (session, f"{session}/never"):
        result = run("session", "restore", name, file, *at)
        assert (result.exit_code, result.stdout, "damaged" in result.stderr) == (1, "", True)
    assert one.snapshot() == state
    assert f"{session}/never" not in client.sessions()
    missing = run("session", "snapshot", "nobody", tmp_path / "none", *at)
    assert (missing.exit_code, (tmp_path / "none").exists()) == (1, False)


def test_list(client: Client, addresses: dict[str, str], session: str) -> None:
    names = [f"{session}/{n}" for n in range(150)] + [f"{session}/\x1b[31mé\n"]  # more than a page
    for name in names:
        client.session(name).reset()
    at = ("--connect", addresses["letters"], "--prefix", f"{session}/")
    assert sorted(line["session"] for line in lines(run("session", "list", *at, "--json"))) == sorted(names)
    shown = run("session", "list", *at).stdout.splitlines()
    assert sorted(shown) == sorted([*names[:-1], f'"{session}/\\u001b[31m\\u00e9\\n"'])


@pytest.mark.parametrize(
    "arguments",
    [
        ["info"],
        ["info", ""],
        ["reset", "x" * 201],
        ["list", "name"],
        ["forget", "x"],
        ["fork", "x"],
        ["restore", "x", "/nowhere"],
    ],
)
def test_wrong_use(arguments: list[str]) -> None:
    assert run("session", *arguments).exit_code == 2


def test_an_address_that_is_none() -> None:
    result = run("session", "list", "--connect", "nowhere")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert result.stderr.startswith("Error: Cannot connect to 'nowhere'")
