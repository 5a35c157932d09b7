"""`rnnstream session`: look at the sessions of a worker, copy and save them, end or restart them."""

from __future__ import annotations

import os
from typing import IO

import click

from rnnstream.cli import options, out
from rnnstream.client import Client
from rnnstream.errors import Exists

named = click.argument("name", callback=options.session_name)
owned = click.option(
    "--owner",
    metavar="KEY",
    callback=options.key,
    help="As an admin: the session of this owner, a public key in single quotes as list --all shows it; - for nobody's.",
)


@click.group()
def session() -> None:
    """Look at a worker's sessions; copy, save, restore, reset or close them."""


@session.command()
@named
@owned
@options.connect
@options.as_json
def info(name: str, owner: str | None, connect: options.Connect, as_json: bool) -> None:
    """What the worker knows of the session NAME.

    Its t, age and idle time in seconds, the last number of each producer, and the norm of its state.
    """
    with Client(**connect) as client:
        found = client.session(name, owner=owner).info()
    if as_json:
        click.echo(out.json_line(found))
        return
    found["session"] = out.name(name)
    found["producers"] = ", ".join(f"{out.name(producer)}: {last}" for producer, last in found["producers"].items()) or "none"
    out.table("", ("", ""), [(key, f"{value:.6g}" if isinstance(value, float) else value) for key, value in found.items()])


@session.command()
@named
@options.connect
@options.as_json
def reset(name: str, connect: options.Connect, as_json: bool) -> None:
    """Put the session NAME at its initial state, t = 0; opens it if it is not open, or was closed."""
    with Client(**connect) as client:
        client.session(name).reset()
    click.echo(out.json_line({"session": name, "t": 0}) if as_json else f"{out.name(name)} is at t=0")


@session.command()
@named
@owned
@options.connect
@options.as_json
def close(name: str, owner: str | None, connect: options.Connect, as_json: bool) -> None:
    """Forget the state of the session NAME; tokens are refused from then on, until a reset."""
    with Client(**connect) as client:
        client.session(name, owner=owner).close()
    click.echo(out.json_line({"session": name, "closed": True}) if as_json else f"{out.name(name)} is closed")


@session.command()
@named
@click.argument("to", callback=options.session_name)
@options.connect
@options.as_json
def fork(name: str, to: str, connect: options.Connect, as_json: bool) -> None:
    """Copy the session NAME to the name TO, which must not be open; each then goes its own way."""
    with Client(**connect) as client:
        t = client.session(name).fork(to).info()["t"]
    told = {"session": name, "to": to, "t": t}
    click.echo(out.json_line(told) if as_json else f"{out.name(to)} is a copy of {out.name(name)}, at t={t}")


@session.command()
@named
@click.argument("file", type=click.Path(dir_okay=False, writable=True, allow_dash=True))
@options.connect
@options.as_json
def snapshot(name: str, file: str, connect: options.Connect, as_json: bool) -> None:
    """Save the state of the session NAME to FILE (- for stdout), which others may not read; the session goes on."""
    with Client(**connect) as client:
        state = client.session(name).snapshot()
    os.umask(0o077)  # it is made of what somebody typed or did: for its owner's eyes alone
    with click.open_file(file, "wb", atomic=file != "-") as opened:
        opened.write(state)
    told = {"session": name, "bytes": len(state)}
    click.echo(out.json_line(told) if as_json else f"{out.name(name)} is saved: {len(state):,} bytes", err=file == "-")


@session.command()
@named
@click.argument("file", type=click.File("rb"))
@options.connect
@options.as_json
def restore(name: str, file: IO[bytes], connect: options.Connect, as_json: bool) -> None:
    """Put what snapshot has saved in FILE (- for stdin) into the session NAME, which is opened if it is not open."""
    state = file.read()
    with Client(**connect) as client:
        target = client.session(name)
        try:
            target.open(state)
        except Exists:
            target.restore(state)
        t = target.info()["t"]
    click.echo(out.json_line({"session": name, "t": t}) if as_json else f"{out.name(name)} is at t={t}")


@session.command("list")
@click.option("--prefix", default="", help="Only names that begin so.")
@click.option("--all", "everybody", is_flag=True, help="As an admin: everybody's sessions, each with its owner's public key.")
@options.connect
@options.as_json
def list_sessions(prefix: str, everybody: bool, connect: options.Connect, as_json: bool) -> None:
    """The names of the open sessions, one a line, in no given order.

    A name that a terminal would not show as it is comes as a JSON string, in quotes; with --json, every name does. With --all,
    each line begins with the owner and a space; where a session is nobody's, that is -, and with --json "".
    """
    with Client(**connect) as client:
        if everybody:
            for owner, name in client.all_sessions(prefix):
                line = f"{out.name(owner) or options.NOBODY} {out.name(name)}"
                click.echo(out.json_line({"owner": owner, "session": name}) if as_json else line)
            return
        for name in client.sessions(prefix):
            click.echo(out.json_line({"session": name}) if as_json else out.name(name))
