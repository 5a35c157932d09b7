"""A store, a port, and the workers that follow one another there: their clients notice nothing of a restart but time."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.process.faults import ROOT
from tests.worker_process import DEADLINE_S

CHUNK = 1 << 16


class Place:
    """Where workers come and go; what they log is kept.

    Args:
        model: that is served, as `rnnstream serve` takes it.
        directory: of the store, which is alone there; made if it is not there.
        options: of `rnnstream serve`, further ones.
        program: module that is run, and what comes before the command.
    """

    def __init__(
        self, model: str | Path, directory: Path, options: Sequence[str] = (), program: Sequence[str] = ("rnnstream",)
    ) -> None:
        directory.mkdir(exist_ok=True)
        self.store = directory / "sessions.db"
        # Bound and not listening: nobody else is given the port while no worker is there.
        self._held = socket.socket()
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.bind(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._held.getsockname()[1]}"
        command = ["serve", str(model), "--bind", self.address, "--store", str(self.store), *options]
        self._command = [sys.executable, "-m", *program, *command]
        self._logged = b""
        self._reader, self._writer = os.pipe()  # a file would be full where the worker may not write to files
        os.set_blocking(self._reader, False)
        self.process: subprocess.Popen[str] | None = None

    def start(self, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a worker, with this added to its environment."""
        self.process = subprocess.Popen(
            self._command,
            stdout=subprocess.PIPE,
            stderr=self._writer,
            text=True,
            cwd=ROOT,
            env=os.environ | (environment or {}),
        )
        return self.process

    def ready(self) -> None:
        """Wait until the worker listens."""
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line == f"ready {self.address}\n", f"the worker did not start: {line!r}\n{self.logged()[-2000:]}"

    def end(self, number: signal.Signals) -> bool:
        """End the worker, which may have been killed. Whether it had listened."""
        assert self.process is not None
        self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=DEADLINE_S)
        assert self.process.returncode == (0 if number == signal.SIGTERM else -number), self.logged()[-2000:]
        self.logged()
        return bool(out)

    def logged(self) -> str:
        """All that the workers have logged."""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._reader, CHUNK):
                self._logged += part
        return self._logged.decode()

    def look(self) -> dict[str, tuple[int, bytes]]:
        """After a worker that ended by itself, the store is one whole file: step count and state of each session in it."""
        assert [path.name for path in self.store.parent.iterdir()] == [self.store.name]
        with contextlib.closing(sqlite3.connect(self.store)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            rows = connection.execute("SELECT name, t, state FROM sessions WHERE status = 'open'").fetchall()
        return {name: (t, state) for name, t, state in rows}

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self._held.close()
        os.close(self._reader)
        os.close(self._writer)


@contextlib.contextmanager
def placed(
    model: str | Path, directory: Path, options: Sequence[str] = (), program: Sequence[str] = ("rnnstream",)
) -> Iterator[Place]:
    """A place, for as long as this lasts; nothing has gone wrong in its workers unnoticed."""
    place = Place(model, directory, options, program)
    try:
        yield place
        assert "Traceback" not in place.logged(), place.logged()[-5000:]
    finally:
        place.close()
