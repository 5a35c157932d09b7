from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest

from rnnstream.cli import out


def test_a_json_line_is_strict() -> None:
    line = out.json_line(
        {"y": np.array([1, np.nan, 0.5], np.float32), "p": float("inf"), "top": [(1, float("nan"))], "x": "é\n"}
    )
    assert line.isascii()
    assert json.loads(line) == {"y": [1, None, 0.5], "p": None, "top": [[1, None]], "x": "é\n"}


def test_literals_are_short_and_printable() -> None:
    assert out.literal("a\x1b") == r"'a\x1b'"
    assert out.literal("x" * 40) == repr("x" * 40)
    assert out.literal("x" * 41, 10) == "'xxxxxxxxx...'"
    assert (out.name("turbine 7 é"), out.name("a\nb")) == ("turbine 7 é", '"a\\nb"')


def test_a_table_in_a_pipe_is_aligned_text(capsys: pytest.CaptureFixture[str]) -> None:
    out.table("Sizes", ("name", "n"), [("a", 1), ("longer", 22)])
    assert capsys.readouterr().out == "Sizes\nname    n\na       1\nlonger  22\n"
    out.table("", ("", ""), [("key", "value")])
    assert capsys.readouterr().out == "key  value\n"
    out.table("", ("name",), [])
    assert capsys.readouterr().out == "name\n"


def test_a_table_on_a_terminal_takes_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    out.table("Entries", ("entry",), [("[red]x[/red] :smile:",)])
    assert "[red]x[/red] :smile:" in terminal.getvalue()
