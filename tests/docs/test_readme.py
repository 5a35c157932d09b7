"""The README's examples run, against a real worker with the model that ships."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rnnstream import Client
from tests.worker_process import DEADLINE_S, serving

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.S)
SHELL = re.search(r"from each character|expects after each character:\n\n((?:    .*\n)+)", TEXT)


@pytest.fixture(scope="module")
def address():
    with serving() as (address, _):
        yield address


def run(command: list[str], directory: Path) -> str:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_client_example(address, tmp_path):
    code = PYTHON[0].replace("tcp://127.0.0.1:5555", address)
    lines = run([sys.executable, "-c", code], tmp_path).splitlines()
    t, label, p = lines[0].split()
    claimed = re.search(r"# 1 (\w) (0\.\d+)\.\.\.", code)
    assert (t, label, p[: len(claimed.group(2))]) == ("1", *claimed.groups())
    assert len(lines) == 1 + len("R:jig\nM:6/8\n")


def test_the_example_of_what_can_be_done_with_a_state(address, tmp_path):
    check = "\n    print(session.info()['t'], session.snapshot() == state, *client.sessions('what'))"
    lines = run(
        [sys.executable, "-c", PYTHON[1].rstrip().replace("tcp://127.0.0.1:5555", address) + check], tmp_path
    ).splitlines()
    assert lines[-1] == "7 True"
    assert len(lines) == len("M:6/8") + 1


def test_the_asyncio_example(address, tmp_path):
    lines = run([sys.executable, "-c", PYTHON[2].replace("tcp://127.0.0.1:5555", address)], tmp_path).splitlines()
    assert [line.split()[0] for line in lines] == [str(t) for t in range(1, 8)]
    assert lines[0] == "1 'R'"


def test_the_example_without_a_server(tmp_path):
    check = "\nassert ys.shape == (12, 65) and engine.sessions() == ['one', 'two'] and y.shape == (65,)"
    run([sys.executable, "-c", PYTHON[3] + check], tmp_path)


def test_the_shell_example(address, tmp_path):
    binary = tmp_path / "bin"
    binary.mkdir()
    (binary / "rnnstream").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m rnnstream "$@" --connect "$ADDRESS"\n')
    (binary / "rnnstream").chmod(0o755)
    environment = os.environ | {"PATH": f"{binary}:{os.environ['PATH']}", "ADDRESS": address}
    for line in SHELL.group(1).splitlines():
        done = subprocess.run(
            ["sh", "-c", line], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE_S
        )
        assert done.returncode == 0, (line, done.stderr)
        assert "jig" in done.stdout or "reset" not in line


def test_what_was_exported_goes_into_another_worker(address, tmp_path):
    tokens = "\nR:jig\nM:6/8\n"
    store = tmp_path / "a.store"
    with serving("--store", store) as (here, _), Client(here) as client:
        client.session("exported").feed(tokens)
        saved = client.session("exported").snapshot()
        exported = run([sys.executable, "-m", "rnnstream", "store", "export", str(store)], tmp_path)
    (tmp_path / "sessions.jsonl").write_text(exported)
    assert "behind" in exported
    run([sys.executable, "-c", PYTHON[4].replace("tcp://127.0.0.1:5555", address)], tmp_path)
    with Client(address) as client:
        assert client.session("exported").snapshot() == saved
