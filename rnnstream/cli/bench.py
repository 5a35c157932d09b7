"""`rnnstream bench`: how many tokens a second a worker takes, and how long each of them waits."""

from __future__ import annotations

import contextlib
import itertools
import math
import secrets
import sys
from collections.abc import Iterator
from typing import Any

import click

from rnnstream.cli import options, out
from rnnstream.cli.driver import Tell, drive
from rnnstream.cli.load import Load
from rnnstream.cli.loader import Job
from rnnstream.cli.outcome import Outcome
from rnnstream.client import Client
from rnnstream.errors import RnnstreamError
from rnnstream.model.outcomes import TOP
from rnnstream.worker.logs import visible

PERCENTILES = (50, 90, 99, 99.9)
CLOSED_WINDOW = 16
OPEN_WINDOW = 1024  # many, so that tokens wait in the worker, and not here, until it is far behind
MOST_CLIENTS = 400  # of a process: each has two descriptors, and select knows 1,024
BUSY = 0.9  # of a processor: beyond, the load itself may be what is measured
UNITS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
WANTS = ("argmax", "none", "probs", "logits")


def _want(ctx: click.Context, parameter: click.Parameter, value: str) -> str | int:
    if value in WANTS:
        return value
    if value.isdecimal() and 1 <= int(value) <= TOP:
        return int(value)
    raise click.BadParameter(f"it is one of {', '.join(WANTS)}, or a number from 1 to {TOP}.")


class Number(click.FloatRange):
    """A range that NaN is not in."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, as a range takes it; NaN is wrong use."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is no number.", param, ctx)
        return number


count = click.IntRange(1)
a_rate = Number(0, 1e9, min_open=True)  # a thousand times what a worker takes
a_time = Number(1e-3, 1e6)  # from a reply's time to eleven days


@click.command()
@options.connect
@click.option("--clients", type=count, default=16, show_default=True, help="Connections, in all.")
@click.option(
    "--sessions", type=count, help="Sessions of each connection; as many as tokens in flight, at most 16, unless given."
)
@click.option(
    "--window",
    type=count,
    help="Tokens in flight on each connection, at most; unless given 16, or 1024 with --rate, and at least 4 bodies.",
)
@click.option("--rate", type=a_rate, help="Open loop: so many tokens a second in all, at fixed intervals.")
@click.option("--body", type=count, default=1, show_default=True, help="Tokens in a body.")
@click.option("--numbered", is_flag=True, help="Number the tokens, as the clients of the package do.")
@click.option("--want", default="argmax", show_default=True, callback=_want, help="What comes back: see the protocol.")
@click.option("--seconds", type=a_time, default=5, show_default=True, help="How long it is measured.")
@click.option("--processes", type=count, default=1, show_default=True, help="Processes that share the connections.")
@options.as_json
def bench(
    connect: options.Connect,
    clients: int,
    sessions: int | None,
    window: int | None,
    rate: float | None,
    body: int,
    numbered: bool,
    want: str | int,
    seconds: float,
    processes: int,
    as_json: bool,
) -> None:
    """Load a worker with random tokens, and measure tokens a second and latencies.

    The worker says what its model takes. Each connection has sessions of its own, which get its tokens in turn. They are opened
    and warmed up before the clock starts, and closed at the end, after Ctrl-C too. Every reply is held against the protocol.
    Errors are counted by their codes; a token that got one is in no other figure.

    Closed loop, without --rate: each connection keeps its window full. This finds how much the worker takes; a latency is that
    of a full window, from sending to reply. Open loop, with --rate: tokens come when they are due, whether the worker is behind
    or not, and their latency counts from then. What is due while the window is full is sent when there is room; what still
    waits at the end counts with the time that it has waited.

    A percentile is never too low, and too high by less than 0.8 %; the largest is exact. A token has the latency of its body.

    On one machine the load takes processors from the worker: what it finds is a lower bound. Where a thread of the load took
    nine tenths of a processor it says so, and more --processes may find more; where processors are short, that warning is not
    sure to come.
    """
    if processes > clients:
        raise click.UsageError(f"--processes {processes} have no more than --clients {clients} to share.")
    if -(-clients // processes) > MOST_CLIENTS:
        raise click.UsageError(f"--clients {clients} are too many for --processes {processes}; {MOST_CLIENTS} each at most.")
    window = window or max(OPEN_WINDOW if rate else CLOSED_WINDOW, 4 * body)
    if window < body:
        raise click.UsageError(f"--window {window} has no room for a body of {body}.")
    if rate and rate * seconds < body:
        raise click.UsageError(f"--rate {rate:g} is less than one body of {body} in --seconds {seconds:g}.")
    load = Load(
        clients=clients,
        sessions=sessions or min(window, CLOSED_WINDOW),
        window=window,
        body=body,
        rate=rate,
        numbered=numbered,
        want=want,
    )
    with Client(**connect) as client:
        hello = client.hello()
    if body > hello["limits"]["frame_requests"]:
        raise click.UsageError(f"--body {body} is more than the {hello['limits']['frame_requests']} that this worker reads.")
    prefix = f"bench-{secrets.token_hex(4)}"
    bounds = [place * clients // processes for place in range(processes + 1)]
    jobs = [
        Job(connect, load, first, end - first, prefix, hello["model"]["input"]) for first, end in itertools.pairwise(bounds)
    ]
    with _progress(seconds) as tell:
        end = drive(jobs, seconds, tell)
    found = end.outcome
    if found is not None and found.seconds:
        if as_json:
            _print_json(found, load, hello, processes)
        else:
            _print(found, load, hello, processes, connect["address"])
        if found.busy > BUSY:
            click.echo("The load took all of a processor: more --processes may find more.", err=True)
    left = "" if end.closed else f"Sessions whose names begin with {prefix} may be left open there."
    if end.problem is not None:
        raise RnnstreamError(f"{end.problem} {left}".rstrip())
    if left:
        click.echo(left, err=True)
    if end.interrupted:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _progress(seconds: float) -> Iterator[Tell]:
    """A bar on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda passed, tokens: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.completed:.0f} of {task.total:g} s"), TextColumn("{task.fields[tokens]:,} tokens"))
    with Progress(BarColumn(), *columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=seconds, tokens=0)
        yield lambda passed, tokens: progress.update(task, completed=min(max(passed, 0.0), seconds), tokens=tokens)


def _print_json(found: Outcome, load: Load, hello: dict[str, Any], processes: int) -> None:
    model = hello["model"]
    click.echo(
        out.json_line(
            {
                "version": hello["version"],
                "model": model["name"],
                "digest": model["digest"],
                "numerics": model["numerics"],
                "clients": load.clients,
                "sessions": load.sessions,
                "window": load.window,
                "body": load.body,
                "rate": load.rate,
                "numbered": load.numbered,
                "want": load.want,
                "processes": processes,
                "seconds": found.seconds,
                "tokens": found.tokens,
                "tokens_per_s": found.tokens / found.seconds,
                "latencies_us": {
                    **{f"p{percent:g}": 1e6 * found.latencies.percentile(percent) for percent in PERCENTILES},
                    "max": 1e6 * found.latencies.percentile(100),
                },
                "late": found.late,
                "errors": dict(found.errors),
                "messages": found.said,
                "load_busy": found.busy,
            }
        )
    )


def _print(found: Outcome, load: Load, hello: dict[str, Any], processes: int, address: str) -> None:
    model = hello["model"]
    rows: list[tuple[str, str]] = [
        ("worker", f"{visible(hello['version'])} at {address}"),
        ("model", f"{visible(model['name'])}: {visible('; '.join(model['layers']))}"),
        ("kernels", visible(model["numerics"])),
        ("loop", f"open, {load.rate:,.10g} tokens a second" if load.rate else "closed"),
        ("connections", f"{load.clients}"),
        ("sessions", f"{load.sessions} of each connection"),
        ("in flight", f"{load.window} tokens of each connection" + " at most" * bool(load.rate)),
        ("body", f"{load.body}, " + "numbered, " * load.numbered + f"want {load.want}"),
        ("processes", f"{processes}, busy {found.busy:.0%} of the time"),
        ("tokens", f"{found.tokens:,} in {found.seconds:.2f} s"),
        ("tokens/s", f"{found.tokens / found.seconds:,.0f}"),
        *((f"latency p{percent:g}", _duration(found.latencies.percentile(percent))) for percent in PERCENTILES),
        ("latency max", _duration(found.latencies.percentile(100))),
    ]
    if load.rate:
        rows.append(
            (
                "late",
                f"{found.late:,} tokens were due and could not be sent: worker or load did not keep up"
                if found.late
                else "none",
            )
        )
    rows += [
        (f"error {visible(code)}", f"{times:,}, first: {visible(found.said[code])}")
        for code, times in found.errors.most_common()
    ]
    rows += [] if found.errors else [("errors", "none")]
    out.table("", ("", ""), rows)


def _duration(seconds: float) -> str:
    """Three digits, for people; - for NaN."""
    if math.isnan(seconds):
        return "-"
    unit, size = next((unit, size) for unit, size in UNITS if seconds >= 0.9995 * size or unit == "µs")
    value = seconds / size
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
