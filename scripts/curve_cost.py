"""What keys cost: the same worker with and without them, in turn, under the same loads.

    python -m scripts.curve_cost
    python -m scripts.curve_cost --rounds 9 --seconds 5

A load is a plain loop around DEALER sockets in a process of its own, whose bodies are made beforehand; no two that are in
flight have a session in common. It has to encrypt too, and shares the processors with the workers.
"""

import argparse
import contextlib
import datetime
import multiprocessing
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zmq
from rich.console import Console
from rich.table import Table

from rnnstream.keys import read_pair, write_pair
from scripts.flood import machine
from tests.worker_process import random_model, serving

SIZE = 100
WARM_S = 0.3
DEADLINE_S = 60

pack = msgpack.packb
Keys = tuple[str, tuple[str, str]] | None  # the worker's public key, and the client's pair


@dataclass
class Load:
    """So many connections, with so many bodies in flight over each, of so many tokens."""

    connections: int
    flying: int
    tokens: int = 1

    def __str__(self) -> str:
        name = f"{self.connections} x {self.flying} in flight"
        return name if self.tokens == 1 else f"{name}, bodies of {self.tokens} tokens"


LOADS = (Load(1, 1), Load(1, 64), Load(16, 16), Load(1, 1, 64), Load(16, 4, 64))


def connect(context: zmq.Context[Any], address: str, keys: Keys) -> Any:
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    if keys is not None:
        socket.curve_serverkey = keys[0].encode()
        socket.curve_publickey, socket.curve_secretkey = (key.encode() for key in keys[1])
    socket.connect(address)
    return socket


def drive(load: Load, address: str, keys: Keys, seconds: float, told: Connection) -> None:
    """Keep the load up for so long; tell the tokens a second, and p50 and p99 of a body in µs."""
    context: zmq.Context[Any] = zmq.Context()
    poller = zmq.Poller()
    sent: dict[Any, deque[float]] = {}
    bodies: dict[Any, deque[bytes]] = {}
    for i in range(load.connections):
        socket = connect(context, address, keys)
        poller.register(socket, zmq.POLLIN)
        sent[socket] = deque()
        bodies[socket] = deque(
            b"".join(pack({"session": f"{i} {j} {k}", "x": (i + j + k) % SIZE}) for k in range(load.tokens))
            for j in range(load.flying)
        )
    latencies: list[float] = []
    clock = time.perf_counter
    for socket in sent:
        for _ in range(load.flying):
            sent[socket].append(clock())
            socket.send(bodies[socket][0])
            bodies[socket].rotate(-1)
    begin = clock() + WARM_S
    end = begin + seconds
    now = 0.0
    while now < end:
        ready = poller.poll(DEADLINE_S * 1000)
        assert ready, "no reply"
        for socket, _ in ready:
            with contextlib.suppress(zmq.Again):
                while True:
                    socket.recv(zmq.NOBLOCK)
                    now = clock()
                    if now >= begin:
                        latencies.append(now - sent[socket].popleft())
                    else:
                        sent[socket].popleft()
                    sent[socket].append(now)
                    socket.send(bodies[socket][0])
                    bodies[socket].rotate(-1)
    p50, p99 = np.percentile(np.array(latencies) * 1e6, (50, 99)).tolist()
    told.send((len(latencies) * load.tokens / (now - begin), p50, p99))
    context.destroy()


def come(address: str, keys: Keys, seconds: float, told: Connection) -> None:
    """Connect, ask for a ping and go, again and again; tell the times a second, and p50 and p99 in µs."""
    context: zmq.Context[Any] = zmq.Context()
    ping = pack({"op": "ping"})
    latencies = []
    clock = time.perf_counter
    begin = now = clock()
    while now < begin + seconds:
        with connect(context, address, keys) as socket:
            socket.send(ping)
            assert socket.poll(DEADLINE_S * 1000), "no reply"
        latencies.append(clock() - now)
        now = clock()
    p50, p99 = np.percentile(np.array(latencies) * 1e6, (50, 99)).tolist()
    told.send((len(latencies) / (now - begin), p50, p99))
    context.destroy()


def measure(load: Load | None, address: str, keys: Keys, seconds: float) -> tuple[float, float, float]:
    """What a process with this load tells; None: clients that come and go."""
    processes = multiprocessing.get_context("spawn")
    ours, theirs = processes.Pipe(duplex=False)
    arguments = (address, keys, seconds, theirs)
    driver = processes.Process(target=come if load is None else drive, args=arguments if load is None else (load, *arguments))
    driver.start()
    try:
        if not ours.poll(seconds + 2 * DEADLINE_S):
            raise SystemExit("The load has not ended.")
        return ours.recv()
    finally:
        driver.kill()
        driver.join()


@contextlib.contextmanager
def workers(directory: Path) -> Iterator[list[tuple[str, Keys]]]:
    """The same worker without and with keys: their addresses, and what a client needs."""
    layers = [{"kind": "onehot"}, {"kind": "rnn", "size": SIZE}, {"kind": "dense", "size": SIZE}]
    model = random_model(directory / "model.safetensors", layers, size=SIZE)
    allow = directory / "allow"
    allow.mkdir(mode=0o700)
    _, secret = write_pair(directory / "worker")
    public, theirs = write_pair(directory / "user")
    public.rename(allow / public.name)
    with serving(model) as (open_address, _), serving(model, "--server-key", secret, "--allow", allow) as (address, _):
        yield [(open_address, None), (address, (read_pair(secret)[0], read_pair(theirs)))]


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="of which the medians are taken (default 5)")
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement (default 3)")
    args = parser.parse_args()
    found: dict[tuple[str, bool], list[tuple[float, float, float]]] = {}
    rows = {str(load) if load else "connect, ping, go": load for load in (*LOADS, None)}
    with tempfile.TemporaryDirectory() as directory, workers(Path(directory)) as both:
        for turn in range(args.rounds):
            for name, load in rows.items():
                for address, keys in both if turn % 2 else reversed(both):
                    result = measure(load, address, keys, args.seconds)
                    found.setdefault((name, keys is not None), []).append(result)
    table = Table(title="A worker without keys and with them: tokens (or clients) a second, µs of a body")
    for column in ("", "open", "with keys", "ratio", "p50", "with keys", "ratio", "p99", "with keys", "ratio"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name in rows:
        cells = []
        for i in range(3):
            plain, keyed = (statistics.median(one[i] for one in found[name, with_keys]) for with_keys in (False, True))
            ratio = statistics.median(b[i] / a[i] for a, b in zip(found[name, False], found[name, True], strict=True))
            cells += [f"{plain:,.0f}", f"{keyed:,.0f}", f"{ratio:.2f}"]
        table.add_row(name, *cells)
    console = Console(width=160)
    console.print(table)
    console.print(
        f"medians of {args.rounds} rounds of {args.seconds:g} s, and of ratios within each; hidden {SIZE}, vocabulary {SIZE}"
    )
    console.print(f"{datetime.date.today()}; {machine()}; libzmq {zmq.zmq_version()}, pyzmq {zmq.__version__}")


if __name__ == "__main__":
    main()
