from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .conftest import SPEC, VOCABULARY, lines, run, save


def test_everything_as_json(files: dict[str, str], models: Any) -> None:
    [found] = lines(run("inspect", files["letters"], "--json"))
    model = models["letters"]
    tiles = {name: [product.tile.rows, product.tile.columns] for name, product in model.products.items()}
    assert found == {
        "name": "letters",
        "digest": model.digest,
        "dtype": "float32",
        "input": {"kind": "token", "size": 7},
        "output": {"kind": "categorical", "size": 7},
        "vocabulary": list(VOCABULARY),
        "layers": model.layers,
        "state_size": 12,
        "surprisal": True,
        "exact": True,
        "numerics": model.numerics,
        "format": 1,
        "parameters": 12 * 12 + 12 * 7 + 7 * 12 + 12 + 7,
        "bytes": 4 * (12 * 12 + 12 * 7 + 7 * 12 + 12 + 7),
        "tensors": {"ba": [12], "by": [7], "waa": [12, 12], "wax": [12, 7], "wya": [7, 12]},
        "products": {"waa": {"shape": [12, 12], "tile": tiles["waa"]}, "wya": {"shape": [7, 12], "tile": tiles["wya"]}},
    }


def test_for_people(files: dict[str, str], models: Any) -> None:
    result = run("inspect", files["letters"])
    assert (result.exit_code, result.stderr) == (0, "")
    shown = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "name 'letters'" in shown
    assert f"digest {models['letters'].digest}" in shown
    assert r"vocabulary 7 entries: 'a' 'b' 'c' '\n' ' ' 'ab' 'bc'" in shown
    assert "layer 2 rnn 7 -> 12 (tanh)" in shown
    assert "state 12 numbers, 48 bytes" in shown
    assert "parameters 331, 1,324 bytes" in shown
    assert "waa 12 x 12" in shown


def test_a_vocabulary_cannot_reach_the_terminal(tmp_path: Path) -> None:
    entries = ["\x1b]0;owned\x07", "[red]", "\u202e", "x" * 100, "\x9b31m", "f", "g"]
    spec = {**SPEC, "name": "\x1b[31mred", "input": {**SPEC["input"], "vocabulary": entries}}
    result = run("inspect", save(tmp_path / "m.safetensors", spec))
    assert result.exit_code == 0
    assert all(char.isprintable() or char == "\n" for char in result.stdout)
    assert "'[red]'" in result.stdout
    assert "x" * 30 not in result.stdout
    assert all(char.isascii() for char in run("inspect", tmp_path / "m.safetensors", "--json").stdout)


def test_a_model_without_a_specification() -> None:
    [found] = lines(run("inspect", "cli.test_selftest:honest", "--json"))
    assert found["layers"] == ["leak"]
    assert found["vocabulary"] is None
    assert not {"parameters", "tensors", "products"} & found.keys()
    shown = [" ".join(line.split()) for line in run("inspect", "cli.test_selftest:honest").stdout.splitlines()]
    assert shown[:5] == ["name 'leaky'", "digest " + "0" * 64, "numbers float32", "input token, 5", "output linear, 3"]


@pytest.mark.parametrize(
    ("name", "told"), [("absent", "There is no file"), ("other.txt", "cannot be read as a safetensors file")]
)
def test_what_is_no_model_file(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "other.txt").write_text("not a model")
    for command in ("inspect", "selftest", "serve"):
        result = run(command, tmp_path / name)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("Error: ")
        assert told in result.stderr
        assert result.stderr.count("\n") == 1
