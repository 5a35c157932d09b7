"""Disks that are full, or fail, while a worker runs, and have room again; and a client without patience, who keeps count."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zmq

from rnnstream import StepModel
from rnnstream.engine import snapshot
from rnnstream.wire.replies import decode
from tests.process.disk import Errors
from tests.process.place import Place
from tests.process.producer import VOCABULARY
from tests.worker_process import DEADLINE_S

NUMBERED, PLAIN = 5, 2  # sessions whose tokens have numbers, and the others
MOST = 12  # tokens of a body

pack = msgpack.Packer(autoreset=True).pack
Reply = dict[str, Any]


ERRORS = {  # what the operations of a disk get
    "no space": {"writes": errno.ENOSPC},
    "writes": {"writes": errno.EIO},
    "syncs": {"syncs": errno.EIO},
    "everything": {"writes": errno.EIO, "syncs": errno.EIO, "reads": errno.EIO},
}


# -- disks


class Limited:
    """The worker may write no file beyond some size."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def fill(self, chance: random.Random) -> None:
        path = Path(f"{self._place.store}-wal")
        log = path.stat().st_size if path.exists() else 0  # a worker that has just failed begins another one
        self.limit(chance.choice((1, 4096, log, log + chance.randrange(20_000))))

    def free(self) -> None:
        self.limit(resource.RLIM_INFINITY)

    def limit(self, size: int) -> None:
        process = self._place.process
        assert process is not None
        if process.poll() is None:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


class Small:
    """The store is alone on a small file system, but for what fills it."""

    def __init__(self, directory: Path) -> None:
        self._ballast = directory / "ballast"

    def fill(self, chance: random.Random) -> None:
        with self._ballast.open("wb", buffering=0) as file:
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            os.ftruncate(file.fileno(), max(0, file.tell() - 4096 * chance.choice((0, 0, 1, 5))))

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)


class Failing:
    """The store is on the disk of disk.c, whose operations get these errors."""

    def __init__(self, errors: Errors, **kinds: int) -> None:
        self._errors, self._kinds = errors, kinds

    def fill(self, chance: random.Random) -> None:
        self._errors.set(**self._kinds)

    def free(self) -> None:
        self._errors.set()


@contextlib.contextmanager
def mounted(directory: Path, size: int) -> Iterator[bool]:
    """A file system of so many bytes here; False if there cannot be one."""
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", directory], capture_output=True, check=False)
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", directory], check=True)


# -- the client


@dataclass
class Session:
    """What a worker has acknowledged of a session.

    Attributes:
        numbered: its tokens have numbers.
        counted: (x, y, p) of each.
    """

    numbered: bool
    counted: list[tuple[int, int, float]] = field(default_factory=list)


class Counting:
    """Sends tokens, and keeps which of them were acknowledged. It never sends one again by itself.

    Args:
        address: of the worker.
        seed: of its tokens.
    """

    def __init__(self, address: str, seed: int) -> None:
        self.sessions = {f"numbered-{i}": Session(True) for i in range(NUMBERED)}
        self.sessions |= {f"plain-{i}": Session(False) for i in range(PLAIN)}
        self._chance = random.Random(seed)
        self._context = zmq.Context()
        self._dealer = self._context.socket(zmq.DEALER)
        self._dealer.linger = 0
        self._dealer.connect(address)

    def close(self) -> None:
        self._dealer.close()
        self._context.term()

    def ask(self, *requests: Reply) -> list[Reply]:
        """Send a body, and wait for its reply."""
        self._dealer.send(b"".join(map(pack, requests)))
        assert self._dealer.poll(1000 * DEADLINE_S), "the worker does not answer"
        return decode(self._dealer.recv())

    def say(self) -> Counter[str]:
        """Send some tokens: how many counted, as "", and what errors the others got. They have to be `store_error`."""
        names = self._chance.choices(list(self.sessions), k=self._chance.randint(1, MOST))
        requests, told = [], Counter[str]()
        for place, name in enumerate(names):
            session, request = self.sessions[name], {"session": name, "x": self._chance.randrange(VOCABULARY)}
            if session.numbered:
                last = len(session.counted)
                request |= {"producer": "counting", "n": last + 1 + names[:place].count(name), "ack": last}
            requests.append(request)
        refused = set()
        for request, reply in zip(requests, self.ask(*requests), strict=True):
            name, error = request["session"], reply.get("error", "")
            told[error] += 1
            if not error:
                counted = self.sessions[name].counted
                counted.append((request["x"], reply["y"], reply["p"]))
                assert reply["t"] == len(counted), f"{name}: {len(counted)} tokens were acknowledged, now t={reply['t']}"
                assert "again" not in reply, f"{name}: what was refused has counted: {reply}"
            elif error == "gap" and name in refused:
                assert reply["expected"] == len(self.sessions[name].counted) + 1, reply
            else:
                assert error == "store_error", reply
                assert 0 < reply["retry_after_ms"] <= 1000, reply
                refused.add(name)
        return told

    def say_until(self, error: str) -> Counter[str]:
        """Send tokens until some get this error, or "": until all count. What came before is in the result."""
        deadline, pause, told = time.monotonic() + DEADLINE_S, threading.Event(), Counter[str]()
        while True:
            last = self.say()
            told += last
            if error in last and (error or len(last) == 1):
                return told
            assert time.monotonic() < deadline, f"no {error!r}: {told}"
            if not error:
                pause.wait(0.02)

    def compare(self, model: StepModel) -> int:
        """Hold predictions and states against the model over the tokens that were acknowledged; how many there are."""
        for name, session in self.sessions.items():
            xs = [x for x, *_ in session.counted]
            if not xs:
                continue
            ys = model.forward(xs)
            told = list(zip(ys.argmax(axis=1).tolist(), ys.max(axis=1).astype(float).tolist(), strict=True))
            assert [(y, p) for _, y, p in session.counted] == told, name
            [reply] = self.ask({"op": "snapshot", "session": name})
            a, t = snapshot.decode(
                reply["state"], dtype=np.dtype(model.dtype), state_size=model.state_size, digest=model.digest
            )
            assert t == len(xs), f"{name}: {len(xs)} tokens were acknowledged, t={t}"
            assert a.tobytes() == model.run(xs).tobytes(), name
        return sum(len(session.counted) for session in self.sessions.values())
