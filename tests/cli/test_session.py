from __future__ import annotations

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
    assert result.stderr == "Error: The session nobody is not open, and not among the names closed of late.\n"


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


def test_list(client: Client, addresses: dict[str, str], session: str) -> None:
    names = [f"{session}/{n}" for n in range(150)] + [f"{session}/\x1b[31mé\n"]  # more than a page
    for name in names:
        client.session(name).reset()
    at = ("--connect", addresses["letters"], "--prefix", f"{session}/")
    assert sorted(line["session"] for line in lines(run("session", "list", *at, "--json"))) == sorted(names)
    shown = run("session", "list", *at).stdout.splitlines()
    assert sorted(shown) == sorted([*names[:-1], f'"{session}/\\u001b[31m\\u00e9\\n"'])


@pytest.mark.parametrize("arguments", [["info"], ["info", ""], ["reset", "x" * 201], ["list", "name"], ["forget", "x"]])
def test_wrong_use(arguments: list[str]) -> None:
    assert run("session", *arguments).exit_code == 2


def test_an_address_that_is_none() -> None:
    result = run("session", "list", "--connect", "nowhere")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert result.stderr.startswith("Error: Cannot connect to 'nowhere'")
