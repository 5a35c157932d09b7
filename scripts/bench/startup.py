"""How soon the package is imported, and a worker with the model that ships answers.

python -m scripts.bench.startup
python -m scripts.bench.startup --json startup.json

Each is timed from the start of a new process, in turns; the figures are medians, after one turn that is not counted.
"""

import argparse
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import msgpack
import zmq

from scripts.bench.report import table, write_json
from scripts.bench.wire import end_on_sigterm, running


def python(*arguments: str) -> float:
    """Seconds until a Python process that is given these arguments has ended."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def first_answer(*options: str) -> float:
    """Seconds until `rnnstream serve` has answered a token."""
    began = time.perf_counter()
    command = [sys.executable, *options, "-m", "rnnstream", "serve", "--bind", "tcp://127.0.0.1:*"]
    with running(command) as (address, _), zmq.Context.instance().socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(address)
        socket.send(msgpack.packb({"session": "first", "x": 0}))
        if not socket.poll(60_000):
            raise SystemExit(f"{shlex.join(command)} has not answered for a minute.")
        assert msgpack.unpackb(socket.recv())["t"] == 1
        return time.perf_counter() - began


# -B -X pycache_prefix: nothing is found where bytecode would be, and none is left there.
UNCACHED = ("-B", "-X", "pycache_prefix=/nonexistent")
TIMED: dict[str, Callable[[], float]] = {
    "python -c pass": lambda: python("-c", "pass"),
    "import numpy": lambda: python("-c", "import numpy"),
    "import rnnstream": lambda: python("-c", "import rnnstream"),
    "import rnnstream, no bytecode": lambda: python(*UNCACHED, "-c", "import rnnstream"),
    "rnnstream --help": lambda: python("-m", "rnnstream", "--help"),
    "rnnstream serve, first answer": first_answer,
    "rnnstream serve, no bytecode": lambda: first_answer(*UNCACHED),
}


def main() -> None:
    """Measure, and print a table."""
    end_on_sigterm()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--json", help="write the figures to this file too")
    args = parser.parse_args()
    found: dict[str, list[float]] = {what: [] for what in TIMED}
    for turn in range(args.turns + 1):
        for what, measured in TIMED.items():
            seconds = measured()
            if turn:
                found[what].append(seconds)
    rows = [{"what": what, "s": statistics.median(some), "least, s": min(some)} for what, some in found.items()]
    table(f"Starting, medians of {args.turns}", rows)
    write_json(args.json, rows)


if __name__ == "__main__":
    main()
