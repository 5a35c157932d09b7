"""`rnnstream keygen`: a pair of keys, in two files."""

from __future__ import annotations

import os

import click

from rnnstream.cli import options, out
from rnnstream.keys import write_pair


def _name(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    if not os.path.basename(value):
        raise click.BadParameter(f"{value!r} has no file name at its end.")
    return value


@click.command()
@click.argument("name", callback=_name)
@options.as_json
def keygen(name: str, as_json: bool) -> None:
    """Make a pair of keys: NAME.key, which is public, and NAME.key_secret. NAME may be a path.

    Each worker has a pair, and so has each user:

    \b
      the worker's NAME.key_secret  stays with it: rnnstream serve --server-key NAME.key_secret --allow DIR
      the worker's NAME.key         goes to all its users: --server-key of their commands
      a user's NAME.key             goes to the worker's operator, who puts it into DIR
      a user's NAME.key_secret      stays with the user: --key of that user's commands

    A secret file is given to nobody, and never leaves its machine. Whoever gets a public file must be sure from whom it comes.
    The paths of both files are printed, the public one first. Nothing is written where one of them is there already.
    """  # noqa: D301 - click is to see \b as the character: a paragraph that it does not wrap
    public, secret = write_pair(name)
    if as_json:
        click.echo(out.json_line({"public": str(public), "secret": str(secret)}))
        return
    click.echo(public)
    click.echo(secret)
