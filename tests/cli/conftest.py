from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pytest

import rnnstream
from rnnstream.cli import main
from rnnstream.model.spec import parse
from tests.worker_process import serving

DEADLINE_S = 20.0  # for a process that is waited for
VOCABULARY = ("a", "b", "c", "\n", " ", "ab", "bc")
SPEC: dict[str, Any] = {
    "format": 1,
    "name": "letters",
    "input": {"kind": "token", "size": len(VOCABULARY), "vocabulary": list(VOCABULARY)},
    "layers": [{"kind": "onehot"}, {"kind": "rnn", "size": 12}, {"kind": "dense", "size": len(VOCABULARY)}],
    "head": "categorical",
}
IDS_SPEC = {**SPEC, "name": "ids", "input": {"kind": "token", "size": len(VOCABULARY)}}
DENSE_SPEC: dict[str, Any] = {
    "format": 1,
    "name": "rows",
    "input": {"kind": "dense", "size": 3},
    "layers": [{"kind": "gru", "size": 9}, {"kind": "dense", "size": 2}],
    "head": "linear",
}


def save(path: Path, given: dict[str, Any]) -> Path:
    rng = np.random.default_rng(5)
    spec = parse(given)
    shapes = spec.shapes.items()
    rnnstream.save(path, spec, {name: rng.uniform(-1, 1, shape).astype(spec.dtype) for name, shape in shapes})
    return path


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Model files by the model's name."""
    folder = tmp_path_factory.mktemp("models")
    specs = (SPEC, IDS_SPEC, DENSE_SPEC)
    return {spec["name"]: str(save(folder / f"{spec['name']}.safetensors", spec)) for spec in specs}


@pytest.fixture(scope="session")
def models(files: dict[str, str]) -> dict[str, rnnstream.StepModel]:
    return {name: rnnstream.load(path) for name, path in files.items()}


@pytest.fixture(scope="module")
def address(files: dict[str, str]) -> Iterator[str]:
    """Of a worker of letters, a process of its own."""
    with serving(files["letters"]) as (address, _):
        yield address


@pytest.fixture
def worker(address: str) -> Iterator[rnnstream.Client]:
    """A client of the worker, on which nothing is open, before and after."""
    with rnnstream.Client(address) as client:
        assert list(client.sessions()) == []
        yield client
        assert list(client.sessions()) == []


@pytest.fixture(scope="module")  # not longer: a worker in this process holds BLAS to one thread
def addresses(models: dict[str, rnnstream.StepModel]) -> Iterator[dict[str, str]]:
    """A running worker for each model; each test takes a session of its own."""
    workers = {name: rnnstream.Worker(model, bind="tcp://127.0.0.1:*") for name, model in models.items()}
    for worker in workers.values():
        worker.start()
    yield {name: worker.addresses[0] for name, worker in workers.items()}
    for worker in workers.values():
        worker.stop()


@pytest.fixture
def session(request: pytest.FixtureRequest) -> str:
    """A name that no other test has."""
    return request.node.nodeid[-150:]


@pytest.fixture
def client(addresses: dict[str, str]) -> Iterator[rnnstream.Client]:
    with rnnstream.Client(addresses["letters"]) as client:
        yield client


def run(*arguments: object, input: str | bytes | None = None) -> click.testing.Result:
    result = click.testing.CliRunner().invoke(main, [str(argument) for argument in arguments], input=input)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def lines(result: click.testing.Result) -> list[dict[str, Any]]:
    """The JSON objects on stdout of a command that worked."""
    assert (result.exit_code, result.stderr.count("Error")) == (0, 0), result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts the command line in a process of its own, which is gone at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: object, stderr: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "rnnstream", *map(str, arguments)]
        pipe = subprocess.PIPE
        env = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}  # the command flushes by itself
        started.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=stderr, env=env))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()
