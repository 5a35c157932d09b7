"""Options and arguments that several commands take."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from rnnstream.loading import load
from rnnstream.model.step import StepModel
from rnnstream.wire.limits import SESSION_BYTES
from rnnstream.worker.worker import DEFAULT_BIND

Command = TypeVar("Command", bound=Callable[..., Any])


def connect(command: Command) -> Command:
    """--connect."""
    return click.option("--connect", default=DEFAULT_BIND, show_default=True, help="Address of the worker.")(command)


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


def load_model(source: str | None) -> StepModel:
    """What MODEL stands for; a module is looked for in the current directory too, behind the installed ones."""
    if source and ":" in source:
        sys.path.append(os.getcwd())
    return load(source)
