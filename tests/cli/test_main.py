from __future__ import annotations

import subprocess
import sys

import pytest

from rnnstream.cli import main

from .conftest import DEADLINE_S, run


def test_the_commands() -> None:
    assert sorted(main.commands) == ["bench", "convert", "feed", "inspect", "keygen", "selftest", "serve", "session", "store"]
    assert run("--help").exit_code == 0
    assert run("nothing").exit_code == 2


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "rnnstream", "--help"]
    done = subprocess.run(command, capture_output=True, timeout=DEADLINE_S, text=True, check=True)
    assert done.stdout.startswith("Usage: rnnstream [OPTIONS] COMMAND")


def test_rich_is_not_imported_before_it_is_used() -> None:
    code = "import sys, rnnstream.cli; sys.exit('rich' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], timeout=DEADLINE_S, check=True)


def test_an_interrupted_command_ends_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(ctx: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main.commands["inspect"], "invoke", interrupted)
    result = run("inspect")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "Interrupted.\n")
