from __future__ import annotations

import os
from pathlib import Path

import pytest

from rnnstream.keys import read_pair, read_public

from .conftest import lines, run


def test_a_pair_of_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkdir("keys")
    result = run("keygen", "keys/alice")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "keys/alice.key\nkeys/alice.key_secret\n", "")
    assert read_pair("keys/alice.key_secret")[0] == read_public("keys/alice.key")
    assert lines(run("keygen", "bob", "--json")) == [{"public": "bob.key", "secret": "bob.key_secret"}]
    assert read_public("bob.key") == read_pair("bob.key_secret")[0] != read_public("keys/alice.key")


def test_a_pair_that_is_there_stays(tmp_path: Path) -> None:
    run("keygen", tmp_path / "alice")
    before = read_pair(tmp_path / "alice.key_secret")
    result = run("keygen", tmp_path / "alice")
    told = f"{tmp_path}/alice.key_secret is there already, and a key is never written over; choose another name."
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"Error: {told}\n")
    assert read_pair(tmp_path / "alice.key_secret") == before


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    result = run("keygen", tmp_path / "none" / "alice")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.endswith("none/alice.key_secret cannot be written: No such file or directory.\n")


@pytest.mark.parametrize("arguments", [[], [""], ["folder/"], ["a", "b"]])
def test_wrong_use(arguments: list[str]) -> None:
    assert run("keygen", *arguments).exit_code == 2
