"""A million sessions through a worker that holds fifty thousand of them in memory: what it costs, and how soon it is back.

python -m scripts.million_sessions
python -m scripts.million_sessions --sessions 100000 --resident 5000
"""

import argparse
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from datetime import date
from itertools import islice
from pathlib import Path

import msgpack
import numpy as np
import zmq

from tests.worker_process import random_model

HIDDEN, SIZE = 128, 100
BODY = 64  # tokens in a body
FLYING = 16  # bodies
ZIPF = 1.1


class Worker:
    """`rnnstream serve` with a store, in a process of its own."""

    def __init__(self, model: Path, store: Path, resident: int) -> None:
        self.started = time.monotonic()
        command = [sys.executable, "-m", "rnnstream", "serve", str(model), "--bind", "tcp://127.0.0.1:*", "--store", str(store)]
        command += ["--max-resident", str(resident)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split()[1]
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(self.address)
        self.ask(step("session-0", 1))
        self.first_answer_s = time.monotonic() - self.started

    def ask(self, body: bytes) -> dict:
        """Send one request, and wait for its reply."""
        self.socket.send(body)
        assert self.socket.poll(120_000), "no answer"
        return msgpack.unpackb(self.socket.recv())

    def memory(self, key: str = "VmRSS") -> float:
        """Resident memory now, or at most (VmHWM), in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition(f"{key}:")[2].split()[0]) / 1024

    def feed(self, bodies: Iterable[bytes]) -> None:
        """Send bodies, some of them in flight at a time, and look whether all of their tokens count."""
        waiting: Iterator[bytes] = iter(bodies)
        flying = 0
        for body in islice(waiting, FLYING):
            self.socket.send(body)
            flying += 1
        while flying:
            assert self.socket.poll(120_000), "no answer"
            assert b"\xa5error" not in self.socket.recv()
            flying -= 1
            for body in islice(waiting, 1):
                self.socket.send(body)
                flying += 1

    def end(self, number: signal.Signals) -> float:
        """End it, and say how long that took."""
        self.socket.close()
        began = time.monotonic()
        self.process.send_signal(number)
        self.process.communicate(timeout=120)
        return time.monotonic() - began


def step(session: str, x: int) -> bytes:
    return msgpack.packb({"session": session, "x": x})


def bodies(numbers: np.ndarray) -> list[bytes]:
    """Bodies of tokens for the sessions of these numbers."""
    packed = [step(f"session-{number}", int(number) % SIZE) for number in numbers.tolist()]
    return [b"".join(packed[start : start + BODY]) for start in range(0, len(packed), BODY)]


def run(worker: Worker, what: str, numbers: np.ndarray) -> None:
    """Feed a token to each of these, and print how it went."""
    prepared = bodies(numbers)
    before = worker.ask(msgpack.packb({"op": "stats"}))["store"]
    began = time.monotonic()
    worker.feed(prepared)
    seconds = time.monotonic() - began
    after = worker.ask(msgpack.packb({"op": "stats"}))["store"]
    fetched = (after["loads"] - before["loads"]) / len(numbers)
    print(
        f"{what}: {len(numbers):,} tokens, {len(numbers) / seconds:,.0f} a second, {fetched:.0%} of them fetched; "
        f"memory {worker.memory():.0f} MB, at most {worker.memory('VmHWM'):.0f} MB",
        flush=True,
    )


def main() -> None:
    """Run it, and say what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sessions", type=int, default=1_000_000, help="(default 1,000,000)")
    parser.add_argument("--resident", type=int, default=50_000, help="in memory (default 50,000)")
    parser.add_argument("--tokens", type=int, default=200_000, help="of each load (default 200,000)")
    parser.add_argument("--directory", help="of the store; a temporary one if absent")
    args = parser.parse_args()
    rng = np.random.default_rng(1)
    directory = Path(tempfile.mkdtemp(dir=args.directory))
    try:
        model = random_model(directory / "m.safetensors", [{"kind": "onehot"}, {"kind": "rnn", "size": HIDDEN}], size=SIZE)
        store = directory / "sessions.store"
        print(f"{date.today()}, {platform.machine()}, {os.cpu_count()} processors; hidden {HIDDEN}")
        bound = 1.5 * args.resident * HIDDEN * 4 / 1e6 + 150
        worker = Worker(model, store, args.resident)
        print(f"empty: {worker.memory():.0f} MB; first answer after {worker.first_answer_s:.2f} s; bound {bound:.0f} MB")
        run(worker, "opened", np.arange(args.sessions))
        run(worker, "uniform", rng.integers(0, args.sessions, args.tokens))
        ranks = np.arange(1, args.sessions + 1) ** -ZIPF
        shuffled = rng.permutation(args.sessions)
        run(worker, f"Zipf {ZIPF}", shuffled[rng.choice(args.sessions, args.tokens, p=ranks / ranks.sum())])
        print(f"file: {store.stat().st_size / 1e6:.0f} MB")
        for number in (signal.SIGTERM, signal.SIGKILL):
            seconds = worker.end(number)
            worker = Worker(model, store, args.resident)
            replayed = worker.ask(msgpack.packb({"op": "hello"}))["store"]["replayed"]
            print(
                f"{number.name}: ended in {seconds:.2f} s; the next answers {worker.first_answer_s:.2f} s after its start, "
                f"{replayed:,} tokens replayed; memory {worker.memory():.0f} MB"
            )
            run(worker, "uniform", rng.integers(0, args.sessions, args.tokens))
        worker.end(signal.SIGTERM)
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
