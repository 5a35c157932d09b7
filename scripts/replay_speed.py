"""How fast a store's journal is replayed, and how much of it there can be: workers are killed in the middle of their streams.

python -m scripts.replay_speed
"""

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgpack
import zmq

from rnnstream import Worker, load
from tests.worker_process import random_model

SIZE = 100
BODY = 64  # tokens in a body
FLYING = 8  # bodies


def fill(model: Path, store: Path, sessions: int, tokens: int) -> None:
    """Have a worker take so many tokens in turn for so many sessions, and kill it."""
    command = [sys.executable, "-m", "rnnstream", "serve", str(model), "--bind", "tcp://127.0.0.1:*", "--store", str(store)]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert worker.stdout is not None
    try:
        with zmq.Context.instance().socket(zmq.DEALER) as socket:
            socket.linger = 0
            socket.connect(worker.stdout.readline().split()[1])
            for sent in range(tokens // BODY + FLYING):
                if sent >= FLYING:
                    assert socket.poll(60_000), "no answer"
                    socket.recv()
                if sent < tokens // BODY:
                    numbers = range(sent * BODY, (sent + 1) * BODY)
                    socket.send(b"".join(msgpack.packb({"session": f"s{n % sessions}", "x": n % SIZE}) for n in numbers))
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.communicate()


def main() -> None:
    """Run it, and say what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=400_000, help="of each stream (default 400,000)")
    parser.add_argument("--hidden", type=int, default=100, help="numbers in a state (default 100)")
    parser.add_argument("--directory", help="of the store; a temporary one if absent")
    args = parser.parse_args()
    directory = Path(tempfile.mkdtemp(dir=args.directory))
    try:
        path = random_model(directory / "m.safetensors", [{"kind": "onehot"}, {"kind": "rnn", "size": args.hidden}], size=SIZE)
        model = load(path)
        for sessions in (1, 16, 256, 10_000, 1_000_000):
            store = directory / f"{sessions}.store"
            fill(path, store, sessions, args.tokens)
            worker = Worker(model, "tcp://127.0.0.1:*", store=store)
            began = time.perf_counter()
            worker.start()
            seconds = time.perf_counter() - began
            worker.stop()
            speed = worker.replayed / seconds
            print(f"{sessions:,} sessions: {worker.replayed:,} tokens to replay, in {seconds:.2f} s, {speed:,.0f} a second")
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
