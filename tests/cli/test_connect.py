"""The commands that connect, with keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rnnstream.cli import main
from rnnstream.keys import read_public
from tests.client.curve import CurveToy

from .conftest import lines, run


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[CurveToy]:
    worker = CurveToy(tmp_path)
    worker.start()
    yield worker
    worker.stop()


@pytest.fixture
def at(worker: CurveToy) -> list[object]:
    """The options of a user who is admitted."""
    public, secret = worker.pair("alice")
    worker.admit(public)
    return ["--connect", worker.address, "--server-key", worker.public, "--key", secret]


def test_each_command_takes_keys(worker: CurveToy, at: list[object], tmp_path: Path) -> None:
    fed = run("feed", "--session", "s", *at, "--as", "ids", input="20 21 22")
    assert (fed.exit_code, fed.stderr) == (0, "")
    assert worker.model.applied == {"s": [20, 21, 22]}
    assert lines(run("session", "info", "s", *at, "--json")) == [{"session": "s", "t": 3, "idle_s": 0.5}]
    assert run("session", "fork", "s", "copy", *at).stdout == "copy is a copy of s, at t=3\n"
    assert run("session", "snapshot", "s", tmp_path / "state", *at).exit_code == 0
    assert run("session", "restore", "t", tmp_path / "state", *at).stdout == "t is at t=3\n"
    assert run("session", "reset", "copy", *at).stdout == "copy is at t=0\n"
    assert run("session", "close", "t", *at).stdout == "t is closed\n"
    assert run("session", "list", *at).stdout == "copy\ns\n"


def test_every_command_that_connects_has_the_options() -> None:
    session = main.commands["session"]
    for command in (main.commands["feed"], main.commands["bench"], *session.commands.values()):  # type: ignore[attr-defined]
        names = [option for parameter in command.params for option in parameter.opts]
        place = names.index("--connect")
        assert names[place : place + 3] == ["--connect", "--server-key", "--key"]


@pytest.mark.parametrize("command", [["feed", "--session", "s"], ["session", "info", "s"], ["session", "list"]])
def test_one_key_needs_the_other(command: list[str], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for option in ("--key", "--server-key"):
        result = run(*command, option, file)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "--server-key and --key go together: a worker with keys asks for both." in result.stderr
    missing = run(*command, "--key", tmp_path / "none", "--server-key", file)
    assert (missing.exit_code, "does not exist" in missing.stderr) == (2, True)


def test_a_key_file_that_cannot_be_used(worker: CurveToy, at: list[object]) -> None:
    Path(str(at[-1])).chmod(0o640)
    result = run("session", "list", *at)
    told = f"{at[-1]} holds a secret key, and its mode 0640 lets others at it; chmod 600 {at[-1]}"
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"Error: {told}\n")


ALICE = "-" + "A" * 39  # a key may begin so; what takes it as an option's value must not mind


@pytest.fixture
def others(worker: CurveToy) -> dict[tuple[str, str], int]:
    worker.model.others = {(ALICE, "s"): 7, ("", "s"): 8, (ALICE, "kiln\n"): 9}
    return worker.model.others


def test_everybodys_sessions(worker: CurveToy, at: list[object], others: dict[tuple[str, str], int]) -> None:
    shown = run("session", "list", "--all", *at).stdout.splitlines()
    assert sorted(shown) == sorted(["- s", f"{ALICE} s", f'{ALICE} "kiln\\n"'])
    found = lines(run("session", "list", "--all", "--json", *at, "--prefix", "kiln"))
    assert found == [{"owner": ALICE, "session": "kiln\n"}]


def test_somebody_elses_session(worker: CurveToy, at: list[object], others: dict[tuple[str, str], int]) -> None:
    [found] = lines(run("session", "info", "s", "--owner", ALICE, *at, "--json"))
    assert found == {"session": "s", "t": 7}
    assert lines(run("session", "info", "s", "--owner", "-", *at, "--json")) == [{"session": "s", "t": 8}]
    assert run("session", "close", "s", "--owner", ALICE, *at).stdout == "s is closed\n"
    assert sorted(others) == [("", "s"), (ALICE, "kiln\n")]
    assert lines(run("session", "close", "s", "--owner", "-", *at, "--json")) == [{"session": "s", "closed": True}]
    assert run("session", "info", "s", *at).exit_code == 1, "there is none of one's own"


def test_an_owner_is_as_list_all_shows_it(worker: CurveToy, at: list[object]) -> None:
    key = read_public(worker.public)
    worker.model.others = {(key, "s"): 7}
    assert run("session", "list", "--all", *at).stdout == f"{key} s\n"
    for owner in (key, str(worker.public)):  # or its file
        assert lines(run("session", "info", "s", "--owner", owner, *at, "--json"))[0]["t"] == 7


def test_whoever_is_no_admin_is_denied(worker: CurveToy, at: list[object]) -> None:
    for command in (["list", "--all"], ["info", "s", "--owner", ALICE], ["close", "s", "--owner", "-"]):
        result = run("session", *command, *at)
        assert (result.exit_code, result.stdout, result.stderr) == (1, "", "Error: This key is no admin's.\n")


@pytest.mark.parametrize("key", ["", "alice.key", "A" * 39, "#" * 40])
def test_an_owner_that_is_no_key(key: str) -> None:
    result = run("session", "close", "s", "--owner", key)
    assert (
        result.exit_code,
        "it is no public key, which is 40 characters of Z85 or a file of one, nor -" in " ".join(result.stderr.split()),
    ) == (
        2,
        True,
    )
