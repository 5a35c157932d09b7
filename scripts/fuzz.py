"""Sends mutated messages to a worker, and sees each answered or its connection cut.

The tests do the same in small: tests/process/test_fuzz.py.

python -m scripts.fuzz
python -m scripts.fuzz --bodies 1000000 --seed 7
"""

import argparse
import tempfile
from pathlib import Path

from tests.process.fuzz import run


def main() -> None:
    """Run it, and say what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bodies", type=int, default=200_000, help="how many (default 200,000)")
    parser.add_argument("--seed", type=int, default=1, help="of what is mutated (default 1)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        report = run(Path(directory), args.bodies, args.seed, warm_up=20_000)
    print(f"{report.bodies:,} bodies answered, {report.cut} connections cut, in {report.seconds:.0f} s and the warm-up")
    for code, count in report.replies.most_common():
        print(f"{count:11,} {code or 'not an error'}")
    print(f"{report.checked:,} predictions of the polite producer beside them had the right bits")
    print(f"the worker's memory grew by {report.grown:,} bytes after the warm-up: {report.grown / args.bodies:.1f} a body")


if __name__ == "__main__":
    main()
