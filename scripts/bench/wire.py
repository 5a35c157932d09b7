"""A worker on the wire, beside what the transport can do: rounds of runs in turn, and the ratios within each round.

    python -m scripts.bench.wire
    python -m scripts.bench.wire --loads "16 x 16" --rounds 9 --json wire.json
    python -m scripts.bench.wire --worker-args="--store {new}/store.db"
    python -m scripts.bench.wire --long
    python -m scripts.bench.wire --million

Each run has a server of its own, which is warm before it counts: the worker with a random network, `echo.py`,
`by_hand_server.py` or `uvloop_server.py`. The load comes from `load.c`, which checks every reply. "{new}" in --worker-args is a
fresh folder for each run. On a machine that others use too, absolute figures move; so the ratio of two runs that follow each
other is looked at, and of all rounds the median.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import zmq

from scripts.bench.report import Row, table, write_json
from tests.worker_process import random_model

HERE = Path(__file__).parent
HIDDEN = VOCABULARY = 100
SIZES = f"vanilla RNN, hidden {HIDDEN}, vocabulary {VOCABULARY}, float32, want argmax"
WARM = 5_000  # tokens go before a run, to sessions of their own: what is made once, and what Python adapts, is there then
WORDS = {"echo": ["--echo"], "uvloop": ["--plain"], "by hand": ["--plain"]}  # the generator's for each server
LOG_CHARACTERS = 3_000  # the end of a server's log, where a run has failed: a traceback or two
PATIENCE_S = 10  # for a server that is told to end; a worker with a store writes what waits, which takes far less
SERVERS = ("worker", "echo", "by hand", "uvloop", "unnumbered", "a thousand")
ON_UVLOOP = {"by hand": "scripts.bench.by_hand_server", "uvloop": "scripts.bench.uvloop_server"}  # modules
QUICK = 100  # of --quick: so many times fewer tokens, which shows that all runs, and no figure


@dataclass
class Load:
    """What the generator is told, and what the worker is compared with."""

    name: str
    arguments: str
    count: int  # requests
    figure: str = "per_second"  # which ratio is looked at
    against: str = "echo"  # a server; or "unnumbered", the worker without numbers; or "" for none
    ratio: float | None = None  # target: at least, or of a latency at most
    per_second: float | None = None  # target: at least
    rounds: int = 1  # at least
    one_processor: bool = False  # server and generator: steadier, as nobody waits for another processor to wake up


OPEN_LOOP = "--clients 16 --sessions 16 --rate 50000"
LOADS = (
    Load("1 in flight, one processor", "", 15_000, "p50_us", ratio=1.30, one_processor=True),
    Load("1 x 64 in flight", "--sessions 64 --window 64", 150_000, ratio=0.60),
    Load("16 x 16 in flight", "--clients 16 --sessions 16 --window 16", 150_000, ratio=0.60),
    Load("64 x 4 in flight", "--clients 64 --sessions 4 --window 4", 150_000, ratio=0.55),
    Load(
        "16 x 16, numbered",
        "--clients 16 --sessions 16 --window 16 --number",
        150_000,
        against="unnumbered",
        ratio=0.90,
        rounds=9,  # the difference is small
    ),
    Load(
        "4 x 4 bodies of 64",
        "--clients 4 --sessions 64 --window 4 --requests 64",
        600_000,
        against="by hand",
        ratio=1.5,
        per_second=400_000,
    ),
    Load("4 x 4 bodies of 64, tuned", "--clients 4 --sessions 64 --window 4 --requests 64", 600_000, against="uvloop"),
    Load("open loop, 50,000 a second", OPEN_LOOP, 250_000, "p99_us", ratio=2.0),
    Load("bodies of 256 of one session", "--requests 256 --window 2", 100_000, against="", per_second=60_000),
)
LONG = Load("open loop, 50,000 a second, 10 minutes", f"{OPEN_LOOP} --parts 10", 30_000_000, "p99_us", against="")


# Each session gets three tokens, and each of the thousand 3,000. The first third, which opens a million, is not counted.
MILLION = Load(
    "16 x 16, 992,000 sessions",
    "--clients 16 --sessions 62000 --window 16 --parts 3",
    2_976_000,
    against="a thousand",
    ratio=0.6,
)
A_THOUSAND = ("--sessions 62000", "--sessions 62")
MILLION_HIDDEN = 128


def build(directory: Path) -> Path:
    """The load generator, linked to the libzmq of pyzmq's wheel; to the system's, where pyzmq is no wheel."""
    found = sorted((Path(zmq.__file__).parents[1] / "pyzmq.libs").glob("libzmq*.so*"))
    link = [str(found[0]), f"-Wl,-rpath,{found[0].parent}", "-Wl,--allow-shlib-undefined"] if found else ["-lzmq"]
    program = directory / "load"
    subprocess.run(["gcc", "-O2", str(HERE / "load.c"), "-o", str(program), *link], check=True)
    return program


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[tuple[str, int]]:
    """A server that says "ready ADDRESS" on stdout: its address and process id. It is stopped at the end."""
    with tempfile.TemporaryFile("w+") as log, contextlib.ExitStack() as ending:
        with sigterm_held():
            process = ending.enter_context(
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=HERE.parents[1])
            )
            ending.callback(stop, process)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("ready "):
                raise SystemExit(f"{shlex.join(command)} does not run.")
            yield line.split()[1], process.pid
        except SystemExit:
            log.seek(0)
            print(log.read()[-LOG_CHARACTERS:], file=sys.stderr)
            raise


def stop(process: subprocess.Popen[str]) -> None:
    """Tell a process to end, and kill it if it does not."""
    process.terminate()
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()


def end_on_sigterm() -> None:
    """Have SIGTERM end this process as an exception does, so that its servers end too. 143 is what a shell calls it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


@contextlib.contextmanager
def sigterm_held() -> Iterator[None]:
    """SIGTERM waits meanwhile: an exception in the midst of starting a process would leave it to nobody."""
    came = []
    before = signal.signal(signal.SIGTERM, lambda *_: came.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if came:
            signal.raise_signal(signal.SIGTERM)


@contextlib.contextmanager
def on_one_processor(really: bool) -> Iterator[None]:
    """What is started meanwhile has one processor, and shares it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)} if really else before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def processor_seconds(pid: int) -> float:
    """Processor time of a process so far, user and system, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Bench:
    """Runs loads against servers.

    Args:
        directory: for the generator and the model.
        worker_args: further ones for `rnnstream serve`.
        hidden: size of the network.
    """

    def __init__(self, directory: Path, worker_args: str = "", hidden: int = HIDDEN) -> None:
        self.generator = build(directory)
        layers: list[dict[str, Any]] = [
            {"kind": "onehot"},
            {"kind": "rnn", "size": hidden},
            {"kind": "dense", "size": VOCABULARY},
        ]
        self.model = str(random_model(directory / "model.safetensors", layers, size=VOCABULARY))
        self.worker_args = worker_args

    def command(self, server: str, new: str) -> list[str]:
        """What starts a server; `new` is a fresh folder."""
        if server == "echo":
            return [sys.executable, "-m", "scripts.bench.echo"]
        if server in ON_UVLOOP:
            return [sys.executable, "-m", ON_UVLOOP[server], self.model]
        more = [word.replace("{new}", new) for word in shlex.split(self.worker_args)]
        return [sys.executable, "-m", "rnnstream", "serve", self.model, "--bind", "tcp://127.0.0.1:*", *more]

    def measure(self, server: str, load: Load) -> dict[str, Any]:
        """One run: what the generator prints, and the server's processor time in µs a request."""
        arguments = load.arguments
        if server == "unnumbered":
            arguments = arguments.replace("--number", "")
        elif server == "a thousand":
            arguments = arguments.replace(*A_THOUSAND)
        words = arguments.split()
        words += WORDS.get(server, [])
        with (
            tempfile.TemporaryDirectory() as new,
            on_one_processor(load.one_processor),
            running(self.command(server, new)) as (address, pid),
        ):
            self._generate(address, "w", min(load.count, WARM), words)
            before = processor_seconds(pid)
            figures = self._generate(address, "s", load.count, words)
            figures["processor_us"] = (processor_seconds(pid) - before) / figures["count"] * 1e6
            if load.name == MILLION.name:
                first, *others = figures["parts_per_second"]
                figures |= {"opening_per_second": first, "per_second": statistics.harmonic_mean(others)}
            if figures["errors"]:
                raise SystemExit(f"{load.name}, {server}: {figures['errors']} of {figures['count']} replies are not right.")
        return figures

    def _generate(self, address: str, name: str, count: int, words: list[str]) -> dict[str, Any]:
        command = [str(self.generator), "--addr", address, "--vocab", str(VOCABULARY), "--name", name, "--count", str(count)]
        done = subprocess.run([*command, *words], stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{shlex.join([*command, *words])} has ended with status {done.returncode}.")
        return json.loads(done.stdout)


def median(values: Iterator[float]) -> float:
    return statistics.median(list(values))


def summary(load: Load, rows: list[dict[str, Any]]) -> Row:
    """A line of the table: medians over the rounds, and whether the targets are reached."""
    by_server = {server: [row for row in rows if (row["load"], row["server"]) == (load.name, server)] for server in SERVERS}
    mine, theirs = by_server["worker"], by_server.get(load.against, [])
    ratio = median(a[load.figure] / b[load.figure] for a, b in zip(mine, theirs, strict=True)) if theirs else None
    per_second = median(row["per_second"] for row in mine)
    lower = load.figure != "per_second"
    reached = [] if load.per_second is None else [per_second >= load.per_second]
    if load.ratio is not None and ratio is not None:
        reached.append(ratio <= load.ratio if lower else ratio >= load.ratio)
    targets = [f"{load.per_second:,.0f}/s"] if load.per_second else []
    targets += [f"{'at most' if lower else 'at least'} {load.ratio:.2f}"] if load.ratio else []
    return {
        "load": load.name,
        "tokens/s": per_second,
        "p50 µs": median(row["p50_us"] for row in mine),
        "p99 µs": median(row["p99_us"] for row in mine),
        "processor µs/token": median(row["processor_us"] for row in mine),
        "ratio of": {"per_second": "tokens/s"}.get(load.figure, load.figure.removesuffix("_us")) if theirs else "",
        "to": load.against if theirs else f"({load.against} is missing)" if load.against else "",
        "ratio": ratio,
        "target": ", ".join(targets),
        "reached": "" if not reached else "yes" if all(reached) else "no",
        "rounds": len(mine),
    }


def compare(bench: Bench, loads: list[Load], rounds: int, path: Path | None = None) -> list[dict[str, Any]]:
    """All runs, one row each. The servers of a load follow each other; which comes first changes from round to round.

    Each round is written to `path` when it has ended, so that a run that fails takes only its own round with it.
    """
    rows: list[dict[str, Any]] = []
    for turn in range(max(rounds, *(load.rounds for load in loads)) if rounds > 1 else 1):
        for load in loads:
            if turn >= max(rounds, load.rounds):
                continue
            servers = ["worker"]
            if load.against and (load.against not in ON_UVLOOP or importlib.util.find_spec("uvloop")):
                servers.insert(turn % 2, load.against)
            for server in servers:
                figures = bench.measure(server, load)
                rows.append({"load": load.name, "round": turn, "server": server, **figures})
                print(
                    f"round {turn}: {load.name}: {server}: {figures['per_second']:,.0f}/s, p50 {figures['p50_us']:,.0f} µs, "
                    f"p99 {figures['p99_us']:,.0f} µs",
                    file=sys.stderr,
                )
        write_json(path, rows)
    return rows


def main() -> None:
    """Measure, and print the table."""
    end_on_sigterm()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="of which the medians are taken (default 5; 9 for numbered)")
    parser.add_argument("--loads", default="", help="only those whose name contains this")
    parser.add_argument("--worker-args", default="", help='further arguments of the worker; "{new}": a fresh folder')
    parser.add_argument("--long", action="store_true", help="10 minutes of the open loop instead, p99 of each minute")
    parser.add_argument("--million", action="store_true", help="a million sessions beside a thousand instead")
    parser.add_argument("--quick", action="store_true", help="one round of few tokens: shows that it runs, and no figure")
    parser.add_argument("--json", type=Path, help="write each run to this file, round by round")
    args = parser.parse_args()
    loads = [LONG] if args.long else [MILLION] if args.million else [load for load in LOADS if args.loads in load.name]
    if not loads:
        parser.error(f"No load has {args.loads!r} in its name.")
    if args.quick:
        loads = [replace(load, count=load.count // QUICK) for load in loads]
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), args.worker_args, MILLION_HIDDEN if args.million else HIDDEN)
        rows = compare(bench, loads, 1 if args.quick or args.long else args.rounds, args.json)
    sizes = SIZES.replace(f"hidden {HIDDEN}", f"hidden {MILLION_HIDDEN}") if args.million else SIZES
    note = f"{sizes}; medians over the rounds; worker arguments: {args.worker_args or 'none'}"
    table(
        "A worker on the wire" + (", A QUICK LOOK, NO FIGURES" if args.quick else ""),
        [summary(load, rows) for load in loads],
        note=note,
    )
    if args.long:
        minutes = rows[0]["parts_p99_us"]
        growth = statistics.median(minutes[-3:]) / statistics.median(minutes[:3])
        lines = [{"minute": i + 1, "p99 µs": p99} for i, p99 in enumerate(minutes)]
        table("p99 of each minute", lines, note=f"median of the last three minutes to that of the first three: {growth:.2f}")


if __name__ == "__main__":
    main()
