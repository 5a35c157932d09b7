"""`rnnstream feed`: a file or pipe into a session."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
import numpy as np

from rnnstream.cli import options, out
from rnnstream.cli.feeder import Feeder
from rnnstream.cli.source import Source
from rnnstream.cli.tokens import FORMS, Splitter, form_for, misfit
from rnnstream.client import Client, Token
from rnnstream.model.outcomes import TOP
from rnnstream.prediction import Prediction

Show = Callable[[Token, Prediction], str]
TOKENS_TOLD = 512  # between two looks of the progress bar: it costs as much as a token


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, readable=True, allow_dash=True), default="-")
@click.option("--session", required=True, callback=options.session_name, help="Name of the session.")
@options.connect
@click.option("--as", "form", type=click.Choice(FORMS), help="What a token is in the input; by the worker's model if absent.")
@click.option("--follow", is_flag=True, help="At the end of FILE, wait for it to grow, until Ctrl-C.")
@click.option("--top", type=click.IntRange(1, TOP), help="Print a line for each token, with the K most likely next ones.")
@click.option("--skip-unknown", is_flag=True, help="Pass over tokens that the model does not have.")
@options.as_json
def feed(
    file: str,
    session: str,
    connect: options.Connect,
    form: str | None,
    follow: bool,
    top: int | None,
    skip_unknown: bool,
    as_json: bool,
) -> None:
    """Feed the tokens of FILE, or of standard input, to a session.

    FILE is UTF-8 text. What a token is in it:

    \b
      chars  each character, line breaks too: the default where the model has a vocabulary
      lines  each line, without its line break, is one entry of the vocabulary
      words  what white space separates: each is one entry of the vocabulary
      ids    whole numbers, separated by white space: the default without a vocabulary
      json   a JSON value a line: an id, an entry of the vocabulary, or a list of numbers
      csv    a row of numbers a line, separated by commas: the default where the model takes rows

    A pipe is fed as it comes, and its end is the end. The first token that the model does not have ends it with status 1
    and the token's line and column: all tokens before it have counted, and none behind it.

    With --json or --top there is a line for each token; else one at the end, with the last prediction and the mean surprisal.
    """  # noqa: D301 - click is to see \b as the character: a paragraph that it does not wrap
    with Client(**connect) as client, click.open_file(file, "rb") as opened:
        source = Source(opened, file, follow=follow)
        model = client.hello()["model"]
        form = form or form_for(model)
        if problem := misfit(form, model):
            raise click.UsageError(f"--as {form} does not go with the model at {connect['address']}: {problem}.")
        if top and model["output"]["kind"] != "categorical":
            raise click.UsageError(
                f"--top does not go with the model at {connect['address']}: its output is {model['output']['kind']}."
            )
        show: Show | None = show_json if as_json else show_line if top else None
        feeder = Feeder(
            client.session(session), model, form=form, source=source.name, want=top or "argmax", skip_unknown=skip_unknown
        )
        started = time.monotonic()
        ended = False
        try:
            _run(source, Splitter(form), feeder, show)
            ended = True
        except KeyboardInterrupt:
            ended = True
            raise
        finally:
            if feeder.skipped:
                click.echo(f"Skipped: {_skipped(feeder)}.", err=True)
            if ended:
                click.echo(summary(feeder, time.monotonic() - started), err=show is not None)


def _run(source: Source, splitter: Splitter, feeder: Feeder, show: Show | None) -> None:
    write = sys.stdout.write
    with _progress(source, quiet=show is not None and sys.stdout.isatty()) as tell:
        taken = 0  # bytes
        try:
            for data in source.chunks():
                pieces = splitter.split(data, final=not data)
                for place, (token, prediction) in enumerate(feeder.feed(pieces), 1):
                    if show:
                        write(show(token, prediction) + "\n")
                    if not place % TOKENS_TOLD:
                        tell(taken + len(data) * place // len(pieces), feeder.fed)
                if show:
                    sys.stdout.flush()  # before it waits for more
                taken += len(data)
                tell(taken, feeder.fed)
        finally:
            sys.stdout.flush()


@contextlib.contextmanager
def _progress(source: Source, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, where that is a terminal; gives a function to call with the bytes and tokens fed so far."""
    if quiet or not sys.stderr.isatty():
        yield lambda size, fed: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.fields[fed]:,} tokens"), TextColumn("{task.fields[rate]:,.0f}/s"), TimeElapsedColumn())
    with Progress(BarColumn(), TaskProgressColumn(), *columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=source.size, fed=0, rate=0.0)
        started = time.monotonic()

        def tell(size: int, fed: int) -> None:
            progress.update(task, completed=size, fed=fed, rate=fed / max(time.monotonic() - started, 1e-9))

        yield tell


def show_json(token: Token, prediction: Prediction) -> str:
    """The line for one token, as a JSON object; what the prediction does not have is absent."""
    line: dict[str, Any] = {"t": prediction.t, "x": token}
    if prediction.opened:
        line["opened"] = True
    for key in ("y", "p", "label", "surprisal", "top"):
        value = getattr(prediction, key)
        if value is not None:
            line[key] = value
    return out.json_line(line)


def show_line(token: Token, prediction: Prediction) -> str:
    """The line for one token, for people; ids of the most likely next tokens with their probabilities behind it."""
    top = "  ".join(f"{id} {p:.3f}" for id, p in prediction.top or ())
    x = out.literal(token) if isinstance(token, str) else token
    bits = "" if prediction.surprisal is None else f"  {prediction.surprisal / np.log(2):6.2f} bits"
    return f"{prediction.t:>7}  {x!s:<6}{bits}  {next_token(prediction)}  [{top}]"


def next_token(prediction: Prediction) -> str:
    """What the model expects next, for people."""
    y = prediction.y
    if isinstance(y, np.ndarray):
        return "y = " + " ".join(f"{number:.4g}" for number in y[:8]) + (" ..." if len(y) > 8 else "")
    told = f"{y}" if prediction.label is None else f"{out.literal(prediction.label)} ({y})"
    return f"next {told} p={prediction.p:.3f}"


def summary(feeder: Feeder, seconds: float) -> str:
    """One line on what was fed."""
    fed = f"{feeder.fed:,} tokens in {seconds:.2f} s ({feeder.fed / max(seconds, 1e-9):,.0f}/s)"
    if feeder.last is None:
        return fed
    bits = feeder.bits()
    told = "" if bits is None else f", {bits:.4f} bits a token"
    return f"{fed}: t={feeder.last.t}, {next_token(feeder.last)}{told}"


def _skipped(feeder: Feeder) -> str:
    """How many tokens were passed over, and which most often."""
    most = ", ".join(f"{out.literal(text)} ({count:,})" for text, count in feeder.skipped.most_common(5))
    return f"{feeder.skipped.total():,} tokens that the model does not have, {most}" + (
        ", ..." if len(feeder.skipped) > 5 else ""
    )
