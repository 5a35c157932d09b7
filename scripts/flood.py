"""What a polite producer notices of a neighbour that floods: its latency alone and beside each kind of flood, side by side.

    python -m scripts.flood
    python -m scripts.flood --rounds 9 --seconds 5

The polite producer has one token in flight, every 2 ms, or later where a reply takes longer; it is a bare loop around a socket.
Polite producer and flood share the second processor; the producer goes first there (real-time priority, where the system
allows it), and the flood last. The row "a busy loop" tells what sharing the processor costs by itself. The worker may use both:
held to the first one by --pin, its thread and that of ZeroMQ wait for each other, which alone makes p99 a scheduler's tick of
4 ms.
"""

import argparse
import datetime
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import msgpack
import numpy as np
import zmq
from rich.console import Console
from rich.table import Table

from rnnstream import Client
from tests.process.flooding import KINDS, flood

WORKER, REST = 0, 1  # processors
PACE_S = 0.002
SETTLE_S = 0.5  # for a flood to fill whatever it fills
FLOODS = ("", *KINDS)

pack = msgpack.packb


@dataclass
class Measured:
    """One measurement: the polite producer's latencies in µs, and what the worker did beside it, a second."""

    p50: float
    p99: float
    most: float
    bodies: float
    tokens: float


def polite(address: str, seconds: float) -> list[float]:
    """Latencies in µs of one token at a time, `PACE_S` apart."""
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(address)
    bodies = [pack({"session": "polite", "x": i}) for i in range(50)]
    latencies: list[float] = []
    clock = time.perf_counter
    begin = clock()
    due = begin
    while due < begin + seconds:
        wait = due - clock()
        if wait > 0:
            time.sleep(wait)
        sent = clock()
        socket.send(bodies[len(latencies) % 50])
        if not socket.poll(30_000):
            raise SystemExit("The polite producer got no reply for 30 s.")
        socket.recv()
        latencies.append((clock() - sent) * 1e6)
        due = max(due + PACE_S, clock())
    socket.close()
    context.term()
    return latencies[5:]  # the first ones connect


def measure(kind: str, address: str, seconds: float) -> Measured:
    """The polite producer's latencies beside a flood of this kind, or alone."""
    processes = multiprocessing.get_context("spawn")
    begun = processes.Event()
    flooder = processes.Process(target=flood, args=(kind, address, begun, REST), daemon=True) if kind else None
    try:
        with Client(address, timeout_s=60) as client:
            if flooder:
                flooder.start()
                if not begun.wait(30):
                    raise SystemExit(f"The flood of {kind} has not begun within 30 s.")
            time.sleep(SETTLE_S)
            before, began = client.stats(), time.perf_counter()
            latencies = polite(address, seconds)
            after, took = client.stats(), time.perf_counter() - began
    finally:
        if flooder and flooder.pid:
            flooder.kill()
            flooder.join()
    with Client(address, timeout_s=60) as client:
        client.ping()
    p50, p99 = np.percentile(latencies, (50, 99)).tolist()
    bodies, tokens = ((after[key] - before[key]) / took for key in ("bodies", "tokens"))
    return Measured(p50, p99, max(latencies), bodies, tokens)


def first_in_line() -> str:
    """Put this process before the floods on their processor; how, in words."""
    os.sched_setaffinity(0, {REST})
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(10))
    except OSError:
        return "floods have nice 10"
    return "the polite producer has real-time priority"


def machine() -> str:
    """Processor and system."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} processors, {platform.system()}"


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="of which the medians are taken (default 5)")
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement (default 3)")
    parser.add_argument("--pin", action="store_true", help="hold the worker to a processor of its own")
    args = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("This needs two processors.")
    worker = subprocess.Popen(
        [sys.executable, "-m", "rnnstream", "serve", "--bind", "tcp://127.0.0.1:*"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=(lambda: os.sched_setaffinity(0, {WORKER})) if args.pin else None,
    )
    found: dict[str, list[Measured]] = {kind: [] for kind in FLOODS}
    try:
        address = worker.stdout.readline().split()[1]
        priority = first_in_line()
        with Client(address) as client:
            hello = client.hello()
        for _ in range(args.rounds):
            for kind in FLOODS:
                found[kind].append(measure(kind, address, args.seconds))
    finally:
        worker.terminate()
        worker.communicate()
    table = Table(title="Latency of a polite producer, µs, beside a flood of")
    for column in ("", "p50", "p99", "max", "p50 / alone", "p99 / alone", "bodies/s", "tokens/s"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)

    def median(kind: str, what: str) -> float:
        return statistics.median(getattr(one, what) for one in found[kind])

    for kind in FLOODS:
        p50, p99, most, bodies, tokens = (median(kind, what) for what in ("p50", "p99", "most", "bodies", "tokens"))
        ratios = (f"{p50 / median('', 'p50'):.1f}", f"{p99 / median('', 'p99'):.1f}")
        table.add_row(
            kind or "nothing: alone", *(f"{us:,.0f}" for us in (p50, p99, most)), *ratios, f"{bodies:,.0f}", f"{tokens:,.0f}"
        )
    console = Console(width=160)
    console.print(table)
    console.print(f"medians of {args.rounds} rounds of {args.seconds:g} s; {datetime.date.today()}; {machine()}")
    where = f"alone on processor {WORKER}" if args.pin else "on any processor"
    console.print(f"worker {where}, all else on {REST}, where {priority}")
    console.print(f"model {hello['model']['name']}: {'; '.join(hello['model']['layers'])}; {hello['model']['numerics']}")


if __name__ == "__main__":
    main()
