"""docs/convert.md: its example runs where PyTorch is installed, and its tables are those of the code."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rnnstream.convert import KERAS, ONNX, STATE_DICTS
from rnnstream.convert.hints import CHECKS, LAYER_KEYS
from tests.worker_process import DEADLINE_S, serving

PAGE = (Path(__file__).parents[2] / "docs" / "convert.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.S)
SHELL = re.findall(r"^    rnnstream (.*)$", PAGE, re.M)


def run(*command: str, directory: Path) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # PyTorch's threads wait for each other where cores are few and busy
    done = subprocess.run(
        [sys.executable, *command], cwd=directory, env=environment, capture_output=True, text=True, timeout=2 * DEADLINE_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_is_short():
    lines = [line for block in PYTHON for line in block.splitlines() if line] + SHELL
    assert len(lines) < 40


def test_from_pytorch_to_a_stream(tmp_path):
    pytest.importorskip("torch")
    run("-c", PYTHON[0], directory=tmp_path)
    convert, serve = SHELL
    found = run("-m", "rnnstream", *convert.split(), directory=tmp_path)
    assert "PASS: largest difference" in found
    assert serve.split()[0] == "serve"
    with serving(tmp_path / serve.split()[1]) as (address, _):
        lines = run("-c", PYTHON[1].replace("tcp://127.0.0.1:5555", address), directory=tmp_path).splitlines()
    assert len(lines) == len("to be or not to b")
    assert lines[-1].split()[0] == "e"


def test_the_tables():
    def listed(head: str) -> list[str]:
        rows = PAGE[PAGE.index(head) :].split("\n\n")[0].splitlines()[2:]
        return [name for row in rows for name in re.findall(r"`([.\w]+)`", row.split("|")[1])]

    assert sorted(listed("| key | what it says |")) == sorted(CHECKS)
    assert set(listed("| file | from |")) == {*STATE_DICTS, *KERAS, *ONNX}
    entries = PAGE[PAGE.index("An entry of `layers`") : PAGE.index("## What is refused")]
    assert all(f"`{key}" in entries or f"{{{key} = " in entries or f" {key} = " in entries for key in LAYER_KEYS)
