"""Sends the tokens of eight producers through a bad network, without and with restarts of the worker.

The tests do the same in small: tests/process/test_faults.py.

python -m scripts.faults
python -m scripts.faults --tokens 50000 --seed 7
"""

import argparse
import signal
import tempfile
from pathlib import Path

from tests.process.faults import PRODUCERS, run

RESTARTS = ((), (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL))


def main() -> None:
    """Run it, and say what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=10_000, help="of each producer (default 10,000)")
    parser.add_argument("--seed", type=int, default=1, help="of tokens and faults (default 1)")
    args = parser.parse_args()
    for restarts in RESTARTS:
        with tempfile.TemporaryDirectory() as directory:
            report = run(Path(directory), args.tokens, args.seed, restarts=restarts, within_s=60 + args.tokens / 100)
        print(f"{PRODUCERS} producers, {args.tokens:,} tokens each, {len(restarts)} restarts: {report.seconds:.0f} s")
        print(f"  tokens acknowledged, by run of the worker: {dict(sorted(report.acknowledged.items()))}")
        print(f"  predictions with the right bits, likewise: {dict(sorted(report.compared.items()))}")
        print(f"  final states with the right bits: {report.sessions}; tokens answered again by the last run: {report.repeats}")
        print(f"  sessions that producers were told are lost: {report.lost}")
        print(f"  done by the network: {', '.join(f'{count} {kind}' for kind, count in report.done.items())}")


if __name__ == "__main__":
    main()
