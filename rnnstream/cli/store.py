"""`rnnstream store`: look into a store without a worker."""

from __future__ import annotations

import base64
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click
import numpy as np

from rnnstream.cli import options, out
from rnnstream.engine.snapshot import encode
from rnnstream.errors import BadStore
from rnnstream.names import Name, named, owner_of
from rnnstream.store.layout import FORMAT
from rnnstream.store.look import Behind, Look, Problem, Session, looking

path = click.argument("path", type=click.Path())


@click.group()
def store() -> None:
    """Look into a store, whether or not a worker has it open; nothing is changed."""


@store.command()
@path
@options.as_json
def info(path: str, as_json: bool) -> None:
    """What is in the store PATH.

    Whose sessions and how many, how much there is to replay after a crash, and whether a worker has it open.
    """
    with looking(path) as look:
        found = describe(look)
    if as_json:
        click.echo(out.json_line(found))
        return
    entries, tokens = found["entries"], found["behind"]
    rows = [
        ("format", found["format"]),
        ("model", out.literal(found["name"], 200)),
        ("digest", found["digest"]),
        ("kernels", found["numerics"]),
        ("state", f"{found['state_size']:,} numbers of {found['dtype']}"),
        ("sessions", f"{found['open']:,} open; of late {found['closed']:,} closed and {found['expired']:,} expired"),
        ("journal", f"{entries:,} entries, {f'{tokens:,} tokens behind saved states' if tokens else 'nothing to replay'}"),
        ("size", f"{found['bytes']:,} bytes, and {found['log_bytes']:,} in the write-ahead log"),
        ("in use", "by a worker" if found["in_use"] else "no"),
    ]
    out.table("", ("", ""), rows)


def describe(look: Look) -> dict[str, Any]:
    """Everything about a store, ready for JSON.

    Raises:
        BadStore: its journal is damaged.
    """
    journal = look.journal()
    if journal.problems:
        raise BadStore(f"The store {look.path} is damaged. {journal.problems[0].sentence}")
    ended = look.ended()
    return {
        "format": FORMAT,
        "name": look.meta["name"],
        "digest": look.meta["digest"],
        "numerics": look.meta["numerics"],
        "dtype": look.dtype.name,
        "state_size": look.state_size,
        "open": look.rows - sum(ended.values()) + sum(not behind.stored for behind in journal.behind.values()),
        "closed": ended["closed"],
        "expired": ended["expired"],
        "entries": look.entries,
        "behind": sum(len(behind.xs) for behind in journal.behind.values()),
        "bytes": look.bytes,
        "log_bytes": look.log_bytes,
        "in_use": look.in_use,
    }


@store.command()
@path
@options.as_json
def check(path: str, as_json: bool) -> None:
    """Find what is damaged in the store PATH.

    All of it is read. A sentence tells each problem; exit status 1 if there is one. With --json, an object for each problem,
    and one at the end with how many there are.
    """
    with looking(path) as look:
        with _progress() as tell:
            problems = list(look.problems(tell))
        whole = "" if problems else f"{path} is whole: {look.rows:,} names, {look.entries:,} journal entries"
    for problem in problems:
        where = {"entry": problem.entry} if problem.entry is not None else {}
        where |= _whose(problem.session) if problem.session is not None else {}
        click.echo(out.json_line({"problem": problem.sentence, **where}) if as_json else problem.sentence)
    if as_json:
        click.echo(out.json_line({"problems": len(problems)}))
    elif whole:
        click.echo(whole)
    if problems:
        raise BadStore(f"The store {path} is damaged; problems found: {len(problems):,}.")


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int | None], None]]:
    """A bar on stderr, where that is a terminal; gives a function to call with how much is done, and of how much if known."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _names(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(options.session_name(ctx, parameter, value) for value in values)


@store.command()
@path
@click.option("--session", "names", multiple=True, callback=_names, help="Only the session of this name; may be repeated.")
@click.option("--owner", callback=options.key, help="Only sessions of this public key, or of its file; - for nobody's.")
def export(path: str, names: tuple[str, ...], owner: str | None) -> None:
    """Write all sessions in the store PATH.

    One JSON object a line for each name:

    \b
      session    the name
      owner      whose it is: a public key; absent where it is nobody's
      status     open, closed or expired; of an ended one, only producers follow
      t          step count of the state
      age_s      seconds since it was opened,
      idle_s     and since it moved, when the store was written last
      producers  the last number of each that counted
      state      as "session snapshot" saves it, in base64; the initial one if absent
      behind     tokens that counted after this state, in their order, if any
      damaged    true: its row is damaged; nothing else is told

    Exit status 1 where anything is damaged, or a --session is not there.
    """  # noqa: D301 - click is to see \b as the character: a paragraph that it does not wrap
    with looking(path) as look:
        wanted = [named(owner, name) for name in names]
        told = f" of {owner}" if owner else ""
        journal = look.journal(wanted)
        problems, missing = list(journal.problems), dict.fromkeys(wanted)
        for found in look.sessions(tuple(missing)):
            if isinstance(found, Problem):
                problems.append(found)
                if found.session is None:
                    continue
                name, line = found.session, _whose(found.session) | {"damaged": True}
            else:
                name, line = found.saved.name, _line(look, found, journal.behind.get(found.saved.name), journal.clock)
            missing.pop(name, None)
            if owner is None or owner_of(name) == owner:
                click.echo(out.json_line(line))
        for name, behind in journal.behind.items():
            if not behind.stored and (owner is None or owner_of(name) == owner):
                missing.pop(name, None)
                opened = _whose(name) | {"status": "open", "t": 0, "age_s": journal.clock - behind.first}
                click.echo(out.json_line(opened | _behind(behind, journal.clock)))
    if problems:
        raise BadStore(f"The store {path} is damaged, and not all of it is here. {problems[0].sentence}")
    if missing:
        raise BadStore(f"The store {path} keeps nothing of {', '.join(out.name(str(name)) for name in missing)}{told}.")


def _whose(name: Name) -> dict[str, Any]:
    return {"session": str(name)} | ({"owner": owner_of(name)} if owner_of(name) else {})


def _line(look: Look, found: Session, behind: Behind | None, clock: float) -> dict[str, Any]:
    """What is told of a name that has a row."""
    saved = found.saved
    line = _whose(saved.name) | {"status": saved.status}
    if saved.status != "open":
        return line | {"producers": found.producers}
    line |= {"t": saved.t, "age_s": clock - saved.opened_at, "idle_s": clock - saved.moved_at, "producers": found.producers}
    line["state"] = base64.b64encode(encode(found.state, saved.t, look.meta["digest"])).decode()
    if behind:
        told = _behind(behind, clock)
        told["producers"] = found.producers | told["producers"]
        line |= told
    return line


def _behind(behind: Behind, clock: float) -> dict[str, Any]:
    """What is told of what the journal has of a session."""
    xs = [x if isinstance(x, int) else np.frombuffer(x, "<f4").tolist() for x in behind.xs]
    return {"idle_s": clock - behind.last, "producers": behind.producers, "behind": xs}
