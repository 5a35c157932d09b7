"""Options and arguments that several commands take."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any, TypedDict, TypeVar

import click

from rnnstream.keys import KEY_CHARACTERS, is_key, read_public
from rnnstream.loading import load
from rnnstream.model.step import StepModel
from rnnstream.wire.limits import SESSION_BYTES
from rnnstream.worker.worker import DEFAULT_BIND

NOBODY = "-"  # how the owner of a session that belongs to nobody is written

Command = TypeVar("Command", bound=Callable[..., Any])


class Connect(TypedDict):
    """Where a command connects to, and with which key files: arguments of `rnnstream.Client`."""

    address: str
    server_key: str | None
    client_key: str | None


def connect(command: Callable[..., None]) -> Callable[..., None]:
    """--connect, --server-key and --key; the command gets them as one `Connect`, named connect."""

    @functools.wraps(command)
    def connecting(*arguments: Any, connect: str, server_key: str | None, key: str | None, **others: Any) -> None:
        if (server_key is None) != (key is None):
            raise click.UsageError("--server-key and --key go together: a worker with keys asks for both.")
        command(*arguments, connect=Connect(address=connect, server_key=server_key, client_key=key), **others)

    file = click.Path(exists=True, dir_okay=False)
    for option in (
        click.option("--key", type=file, help="Your own key, by which the worker knows you: a .key_secret file."),
        click.option("--server-key", type=file, help="For a worker with keys: its public key, a .key file."),
        click.option("--connect", default=DEFAULT_BIND, show_default=True, help="Address of the worker."),
    ):
        connecting = option(connecting)
    return connecting


def as_json(command: Command) -> Command:
    """--json."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")(command)


def session_name(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    """Callback: a session's name as the protocol has it.

    Raises:
        click.BadParameter: it is too short or too long, or no Unicode text.
    """
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise click.BadParameter("it is not UTF-8.") from None
    if not 1 <= size <= SESSION_BYTES:
        raise click.BadParameter(f"it has {size} bytes; a session's name has 1 to {SESSION_BYTES}.")
    return value


def key(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Callback: a public key as the protocol has it, from itself or its file; "" for the - that stands for nobody's.

    Raises:
        click.BadParameter: it is none.
    """
    if value is None or is_key(value):
        return value
    if value == NOBODY:
        return ""
    if os.path.isfile(value):
        return read_public(value)
    raise click.BadParameter(
        f"it is no public key, which is {KEY_CHARACTERS} characters of Z85 or a file of one, nor {NOBODY} for nobody's."
    )


def load_model(source: str | None) -> StepModel:
    """What MODEL stands for; a module is looked for in the current directory too, behind the installed ones."""
    if source and ":" in source:
        sys.path.append(os.getcwd())
    return load(source)
