"""What a producer whose key is admitted notices of strangers: its latency alone and beside each kind, side by side.

    python -m scripts.strangers
    python -m scripts.strangers --rounds 9 --seconds 5

The producer has one token in flight, every 2 ms, or later where a reply takes longer; it is a bare loop around a socket, and
all of its predictions are held against the whole sequence run at once. It shares the second processor with the strangers, as in
scripts/flood.py. Those kinds that the worker cuts once the time for a handshake is over are measured for longer than that.
The tests do the same in small: tests/process/test_strangers.py.
"""

import argparse
import contextlib
import datetime
import os
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zmq
from rich.console import Console
from rich.table import Table

from rnnstream import StepModel, load
from rnnstream.worker.router import HANDSHAKE_MS
from scripts.flood import PACE_S, REST, SETTLE_S, first_in_line, machine
from tests.process.besieged import Besieged, Producer, besieged
from tests.process.siege import under
from tests.process.strangers import BUSY, IDLE, KINDS, LARGE, SLOW, Report

ROWS = ("", BUSY, *KINDS)
LONG = (IDLE, SLOW, LARGE)
LONGER_S = HANDSHAKE_MS / 1000 + 2


@dataclass
class Measured:
    """One measurement: latencies in µs, ms until a newcomer and then a ping are answered, and what the worker did beside it.

    Attributes:
        rate: connections of strangers a second that were taken.
        grown: MB of memory of the worker while they were there, and once they had gone.
        lines: of its log.
        checked: predictions with the right bits.
        report: what the strangers saw.
    """

    p50: float
    p99: float
    most: float
    newcomer: float
    ping: float
    rate: float
    grown: tuple[float, float]
    lines: int
    checked: int
    report: Report


def measure(worker: Besieged, producer: Producer, model: StepModel, kind: str, seed: int, seconds: float) -> Measured:
    """The producer beside strangers of a kind, or alone."""
    before = worker.health()
    producer.begin(f"{kind} {seed}", model.input.size, seed)
    with under(worker.siege(kind, seed), REST) if kind else contextlib.nullcontext(Report()) as report:
        began = time.perf_counter()
        time.sleep(SETTLE_S)
        due = end = time.perf_counter()
        end += seconds
        while due < end:
            time.sleep(max(due - time.perf_counter(), 0.0))
            producer.step()
            due = max(due + PACE_S, time.perf_counter())
        newcomer = worker.newcomer()
        during, took = worker.health(), time.perf_counter() - began
    asked = time.perf_counter()
    producer.ask({"op": "ping"})
    ping = time.perf_counter() - asked
    after = worker.settle(before.descriptors)
    p50, p99 = np.percentile(np.array(producer.latencies) * 1e6, (50, 99)).tolist()
    return Measured(
        p50,
        p99,
        max(producer.latencies) * 1e6,
        newcomer * 1e3,
        ping * 1e3,
        (report.connections - report.away) / took,
        ((during.resident - before.resident) / 1e6, (after.resident - before.resident) / 1e6),
        after.lines - before.lines,
        producer.check(model),
        report,
    )


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="of which the medians are taken (default 5)")
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement (default 3)")
    parser.add_argument("--kind", action="append", help="only strangers of these kinds, whose names begin so")
    args = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("This needs two processors.")
    rows = [row for row in ROWS if row in ("", BUSY) or not args.kind or row.startswith(tuple(args.kind))]
    model = load()
    found: dict[str, list[Measured]] = {row: [] for row in rows}
    with tempfile.TemporaryDirectory() as directory, besieged(Path(directory)) as worker:
        priority = first_in_line()
        with worker.producer() as producer:
            producer.ask({"op": "ping"})
            first = worker.health()
            for seed in range(args.rounds):
                for row in rows:
                    seconds = LONGER_S if row in LONG else args.seconds
                    found[row].append(measure(worker, producer, model, row, seed, seconds))
            last = worker.settle(first.descriptors)
    show(found, args.rounds, args.seconds)
    print(f"the worker: {first.resident / 1e6:.0f} MB before and {last.resident / 1e6:.0f} MB at the end,", end=" ")
    print(
        f"{first.descriptors} and {last.descriptors} descriptors, {last.lines} lines of log; strangers share processor {REST}",
        end=" ",
    )
    print(f"with the producer; {priority}")


def show(found: dict[str, list[Measured]], rounds: int, seconds: float) -> None:
    """Print the table, and what the strangers have heard."""
    table = Table(title="Latency of a producer with a key, µs, beside")
    columns = (
        "",
        "p50",
        "p99",
        "max",
        "p50 / alone",
        "p99 / alone",
        "newcomer, ms",
        "ping after, ms",
        "strangers/s",
        "most MB",
        "left",
        "log",
    )
    for column in columns:
        table.add_column(column, justify="right" if column else "left", no_wrap=True)

    def median(row: str, what: str) -> float:
        return statistics.median(getattr(one, what) for one in found[row])

    heard: Counter[str] = Counter()
    for row, measured in found.items():
        p50, p99 = median(row, "p50"), median(row, "p99")
        table.add_row(
            row or "nobody: alone",
            *(f"{us:,.0f}" for us in (p50, p99, median(row, "most"))),
            f"{p50 / median('', 'p50'):.1f}",
            f"{p99 / median('', 'p99'):.1f}",
            *(f"{median(row, what):.1f}" for what in ("newcomer", "ping")),
            f"{median(row, 'rate'):,.0f}",
            # The most: an allocator keeps what one round has grown by, and the next ones find it there.
            *(f"{max(one.grown[i] for one in measured):,.1f}" for i in (0, 1)),
            f"{median(row, 'lines'):.0f}",
        )
        for one in measured:
            heard += one.report.heard
    console = Console(width=160)
    console.print(table)
    console.print(f"medians of {rounds} rounds of {seconds:g} s, or {LONGER_S:g}; {datetime.date.today()}; {machine()}")
    console.print(f"libzmq {zmq.zmq_version()}, pyzmq {zmq.__version__}")
    checked = sum(one.checked for measured in found.values() for one in measured)
    console.print(f"{checked:,} predictions, none lost, all with the right bits")
    connections = sum(one.report.connections for measured in found.values() for one in measured)
    told = ", ".join(f"{count:,} {name}" for name, count in heard.most_common())
    other = [data for measured in found.values() for one in measured for data in one.report.other]
    console.print(
        f"{connections:,} connections of strangers, which heard: {told}; and {other[:3] if other else 'nothing'} else"
    )


if __name__ == "__main__":
    main()
