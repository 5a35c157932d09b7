"""What sessions cost in memory, without a store: bytes each, with a producer too, and the speed among many of them.

python -m scripts.bench.sessions
python -m scripts.bench.sessions --sessions 1000 100000 --json sessions.json

The core of a worker is driven in this process, set up as `rnnstream serve` does, without a socket. Memory is what the system
counts as resident. Speeds are medians of short blocks, in which the numbers of sessions take turns.
"""

import argparse
import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from secrets import token_hex
from typing import Any

import msgpack
import numpy as np

from rnnstream.cli.serve import keep_memory
from rnnstream.engine.engine import Engine
from rnnstream.model.blas import one_thread
from rnnstream.model.network import Network
from rnnstream.model.spec import parse
from rnnstream.wire.limits import Limits
from rnnstream.worker.core import Core
from scripts.bench.report import table, write_json

HIDDEN, SIZE = 128, 100
BODY = 64  # tokens in a body of many
BODIES = 4  # of these, or BODY * BODIES bodies of one token, are in a turn
TURNS = 20  # in a block of which the speed is taken
BLOCKS = 15

pack = msgpack.Packer().pack


def model() -> Network:
    """A vanilla network with random weights."""
    layers = [{"kind": "onehot"}, {"kind": "rnn", "size": HIDDEN}, {"kind": "dense", "size": SIZE}]
    spec = parse({"format": 1, "input": {"kind": "token", "size": SIZE}, "layers": layers, "head": "categorical"})
    rng = np.random.default_rng(1)
    return Network(
        spec,
        {name: (rng.uniform(-1.5, 1.5, shape) / shape[-1] ** 0.5).astype(spec.dtype) for name, shape in spec.shapes.items()},
    )


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Load:
    """A core with so many sessions, and what is sent to it."""

    def __init__(self, network: Network, sessions: int) -> None:
        self.sessions = sessions
        self.core = Core(Engine(network, max_sessions=sessions), worker="w", version="0", limits=Limits())
        self.producers: list[str] = []
        self.ns = np.ones(sessions, np.int64) - 1  # written to, so that they are in memory from the beginning
        self._random = Random(sessions)
        self._addresses = [b"connection-%02d" % number for number in range(16)]

    def turn(self, bodies: Sequence[bytes]) -> float:
        """Have the core answer these; the seconds that it takes."""
        addresses = [self._addresses[place * 16 // len(bodies)] for place in range(len(bodies))]
        began = time.perf_counter()
        replies = self.core.handle(addresses, bodies, began)
        taken = time.perf_counter() - began
        assert len(replies) == len(bodies)
        assert b"\xa5error" not in replies[-1][1], replies[-1]
        return taken

    def each(self, body: Callable[[int], bytes], *, alone: bool) -> Iterator[float]:
        """A token for each session in turn, in turns of many: the seconds of each."""
        for start in range(0, self.sessions, BODY * BODIES):
            yield self.turn(_bodies(map(body, range(start, min(start + BODY * BODIES, self.sessions))), alone))

    def plain(self, number: int) -> bytes:
        """A token for this session."""
        return pack({"session": f"session-{number}", "x": number % SIZE})

    def numbered(self, number: int) -> bytes:
        """The same, from the session's own producer."""
        self.ns[number] += 1
        n = int(self.ns[number])
        return pack({"session": f"session-{number}", "x": number % SIZE, "producer": self.producers[number], "n": n})

    def block(self, body: Callable[[int], bytes], *, alone: bool) -> float:
        """Tokens a second, for sessions chosen at random, each at most once in a turn."""
        chosen = [self._random.sample(range(self.sessions), BODY * BODIES) for _ in range(TURNS)]
        turns = [_bodies(map(body, numbers), alone) for numbers in chosen]
        return TURNS * BODY * BODIES / sum(map(self.turn, turns))


def _bodies(tokens: Iterator[bytes], alone: bool) -> list[bytes]:
    packed = list(tokens)
    return packed if alone else [b"".join(packed[start : start + BODY]) for start in range(0, len(packed), BODY)]


def measure(counts: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each number of sessions."""
    keep_memory()
    network = model()
    warm = Load(network, 1000)
    for _ in warm.each(warm.plain, alone=False):
        pass
    gc.freeze()
    gc.set_threshold(100_000, 0, 1000)  # as in `rnnstream serve`
    rows: list[dict[str, Any]] = []
    loads = []
    for count in counts:
        before = resident()
        load = Load(network, count)
        waves = sorted(load.each(load.plain, alone=False))
        loads.append(load)
        state = count * network.state_size * network.dtype.itemsize
        rows.append({"sessions": count, "bytes a session": (resident() - before - state) / count})
        rows[-1]["worst wave, opening, ms"] = 1e3 * waves[-1]
    for load, row in zip(loads, rows, strict=True):
        load.producers = [token_hex(16) for _ in range(load.sessions)]  # which the worker makes its own copies of
        before = resident()
        waves = sorted(load.each(load.numbered, alone=True))
        row["with a producer"] = row["bytes a session"] + (resident() - before) / load.sessions
        row["worst wave, producers, ms"] = 1e3 * waves[-1]
    began = time.perf_counter()
    gc.collect()
    print(f"a full collection with all of these: {1e3 * (time.perf_counter() - began):.0f} ms")
    kinds = {"bodies of 64": ("plain", False), "alone": ("plain", True), "numbered, alone": ("numbered", True)}
    for kind, (body, alone) in kinds.items():
        speeds: list[list[float]] = [[] for _ in loads]
        for _ in range(BLOCKS):
            for load, found in zip(loads, speeds, strict=True):
                found.append(load.block(getattr(load, body), alone=alone))
        first = statistics.median(speeds[0])
        for row, found in zip(rows, speeds, strict=True):
            row[f"{kind}, tokens/s"] = statistics.median(found)
            row[f"{kind}, ratio"] = statistics.median(found) / first
    return rows


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sessions", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--json", help="write the figures to this file too")
    args = parser.parse_args()
    with one_thread():
        rows = measure(args.sessions)
    lines = [{"": key} | {f"{row['sessions']:,}": row[key] for row in rows} for key in list(rows[0])[1:]]
    table(f"Sessions in memory, hidden {HIDDEN}, float32: bytes beyond the state", lines)
    write_json(args.json, rows)


if __name__ == "__main__":
    main()
