"""`rnnstream session`: look at the sessions of a worker, and end or restart them."""

from __future__ import annotations

import click

from rnnstream.cli import options, out
from rnnstream.client import Client

named = click.argument("name", callback=options.session_name)


@click.group()
def session() -> None:
    """Look at a worker's sessions; reset or close them."""


@session.command()
@named
@options.connect
@options.as_json
def info(name: str, connect: str, as_json: bool) -> None:
    """What the worker knows of the session NAME: its t, age and idle time in seconds, and the norm of its state."""
    with Client(connect) as client:
        found = client.session(name).info()
    if as_json:
        click.echo(out.json_line(found))
        return
    found["session"] = out.name(name)
    out.table("", ("", ""), [(key, f"{value:.6g}" if isinstance(value, float) else value) for key, value in found.items()])


@session.command()
@named
@options.connect
@options.as_json
def reset(name: str, connect: str, as_json: bool) -> None:
    """Put the session NAME at its initial state, t = 0; opens it if it is not open, or was closed."""
    with Client(connect) as client:
        client.session(name).reset()
    click.echo(out.json_line({"session": name, "t": 0}) if as_json else f"{out.name(name)} is at t=0")


@session.command()
@named
@options.connect
@options.as_json
def close(name: str, connect: str, as_json: bool) -> None:
    """Forget the state of the session NAME; tokens are refused from then on, until a reset."""
    with Client(connect) as client:
        client.session(name).close()
    click.echo(out.json_line({"session": name, "closed": True}) if as_json else f"{out.name(name)} is closed")


@session.command("list")
@click.option("--prefix", default="", help="Only names that begin so.")
@options.connect
@options.as_json
def list_sessions(prefix: str, connect: str, as_json: bool) -> None:
    """The names of the open sessions, one a line, in no given order.

    A name that a terminal would not show as it is comes as a JSON string, in quotes; with --json, every name does.
    """
    with Client(connect) as client:
        for name in client.sessions(prefix):
            click.echo(out.json_line({"session": name}) if as_json else out.name(name))
