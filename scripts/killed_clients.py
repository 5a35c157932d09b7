"""Has clients come by the hundred, send, and be killed before they read a reply; looks at what they leave behind in the worker.

The tests do the same in small: tests/process/test_killed_clients.py.

    python -m scripts.killed_clients
    python -m scripts.killed_clients --seconds 600 --seed 7
"""

import argparse
import tempfile
import time
from pathlib import Path

from tests.process.killed import run


def main() -> None:
    """Run it, and say what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60, help="how long (default 60)")
    parser.add_argument("--seed", type=int, default=1, help="of what they send, and of who is killed when (default 1)")
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        report = run(Path(directory), args.seed, warm_up=2, go_on=lambda rounds: time.monotonic() - began < args.seconds)
    before, after = report.descriptors
    print(f"{report.clients:,} clients killed after the warm-up, in {time.monotonic() - began:.0f} s in all")
    print(f"the worker's sessions at the end: {report.sessions}, of 500 that they share and the polite producer's")
    print(f"its open files and sockets: {before} before, {after} at the end")
    print(f"its memory grew by {report.grown:,} bytes after the warm-up: {report.grown / report.clients:.1f} a client")
    print(f"{report.checked:,} predictions of the polite producer beside them had the right bits")


if __name__ == "__main__":
    main()
