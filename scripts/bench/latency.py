"""Latency of a token against the rate at which tokens come, up to the rate that a worker no longer keeps up with.

    python -m scripts.bench.latency
    python -m scripts.bench.latency --rounds 5 --seconds 10 --json latency.json

An open loop: tokens are due at times fixed beforehand, over 16 connections with 16 sessions each, and latency counts from then.
Worker and `echo.py` take turns. Between looks at the clock the generator naps for 20 µs, which is part of every latency.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from scripts.bench.report import table, write_json
from scripts.bench.wire import SIZES, Bench, Load, end_on_sigterm

RATES = (5_000, 10_000, 20_000, 30_000, 40_000, 50_000, 60_000, 80_000, 100_000, 125_000, 150_000, 200_000, 250_000, 300_000)
KEPT_UP = 0.97  # of the rate; whoever answers fewer a second is behind, and its latency is a matter of how long this lasts


def measure(bench: Bench, rates: list[int], rounds: int, seconds: float, path: Path | None = None) -> list[dict[str, Any]]:
    """All runs, one row each. For each server a round ends with the first rate that it does not keep up with.

    Each round is written to `path` when it has ended, so that a run that fails takes only its own round with it.
    """
    rows: list[dict[str, Any]] = []
    for turn in range(rounds):
        behind: set[str] = set()
        for rate in rates:
            for server in ("echo", "worker") if turn % 2 else ("worker", "echo"):
                if server in behind:
                    continue
                arguments = f"--clients 16 --sessions 16 --rate {rate}"
                figures = bench.measure(server, Load(f"{rate} a second", arguments, max(1, int(rate * seconds))))
                kept_up = figures["per_second"] >= KEPT_UP * rate
                if not kept_up:
                    behind.add(server)
                rows.append({"server": server, "offered_per_second": rate, "round": turn, "kept_up": kept_up, **figures})
                print(f"round {turn}: {server}, {rate:,} a second: p99 {figures['p99_us']:,.0f} µs", file=sys.stderr)
        write_json(path, rows)
    return rows


def main() -> None:
    """Measure, and print the table."""
    end_on_sigterm()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="of which the medians are taken (default 3)")
    parser.add_argument("--seconds", type=float, default=3, help="of tokens, at each rate (default 3)")
    parser.add_argument("--rates", type=int, nargs="+", default=RATES, help="tokens a second")
    parser.add_argument("--worker-args", default="", help='further arguments of the worker; "{new}": a fresh folder')
    parser.add_argument("--json", type=Path, help="write each run to this file, round by round")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        rows = measure(Bench(Path(directory), args.worker_args), sorted(args.rates), args.rounds, args.seconds, args.json)
    lines = []
    for rate in sorted({row["offered_per_second"] for row in rows}):
        line: dict[str, Any] = {"tokens/s": rate}
        for server in ("worker", "echo"):
            found = [row for row in rows if (row["server"], row["offered_per_second"]) == (server, rate)]
            for key in ("p50", "p99") if found else ():
                line[f"{server} {key} µs"] = statistics.median(row[f"{key}_us"] for row in found)
            if found:
                line[f"{server} kept up"] = f"{sum(row['kept_up'] for row in found)} of {len(found)}"
        lines.append(line)
    note = f"{SIZES}; {args.seconds:g} s at each rate; medians of the rounds; worker arguments: {args.worker_args or 'none'}"
    table("Latency against the rate of tokens", lines, note=note)


if __name__ == "__main__":
    main()
