"""A real worker in a process of its own, for as long as a `with` statement."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from rnnstream import save
from rnnstream.model.spec import parse

DEADLINE_S = 30


@contextlib.contextmanager
def serving(*arguments: str | Path, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`rnnstream serve` with these arguments on a free loopback port: its address and its process.

    At the end it is asked to stop, and has to end with status 0.
    """
    with tempfile.TemporaryFile("w+") as log:  # takes all that is logged; a pipe that nobody drains would hold the worker up
        yield from _served(arguments, environment, log)


def _served(
    arguments: tuple[str | Path, ...], environment: dict[str, str], log: IO[str]
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "rnnstream", "serve", *map(str, arguments), "--bind", "tcp://127.0.0.1:*"],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=os.environ | environment,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("ready "), _read(log)
        yield line.split()[1], process
        process.send_signal(signal.SIGTERM)
        process.wait(DEADLINE_S)
        told = _read(log)
        assert process.returncode == 0, told
        assert "Traceback" not in told, told
    finally:
        process.kill()
        process.communicate()


def _read(log: IO[str]) -> str:
    log.seek(0)
    return log.read()


def random_model(path: Path, layers: list[dict], *, size: int, kind: str = "token", head: str = "categorical", **more) -> Path:
    """A model file with seeded random weights in +-1.5 / sqrt(inputs)."""
    spec = parse(
        {"format": 1, "name": path.stem, "input": {"kind": kind, "size": size}, "layers": layers, "head": head, **more}
    )
    rng = np.random.default_rng(len(spec.text()))
    save(
        path,
        spec,
        {name: (rng.uniform(-1.5, 1.5, shape) / shape[-1] ** 0.5).astype(spec.dtype) for name, shape in spec.shapes.items()},
    )
    return path
