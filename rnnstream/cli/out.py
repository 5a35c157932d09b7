"""How results are written: JSON lines, and tables that are drawn on a terminal and plain, aligned text in a pipe."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from typing import Any

import click
import numpy as np


def json_line(value: dict[str, Any]) -> str:
    """One JSON object without a line break, in ASCII; NaN and infinity, which JSON does not have, as null."""
    return json.dumps(_strict(value), allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, np.ndarray):
        return _strict(value.tolist())
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value


def literal(text: str, most: int = 40) -> str:
    """A string in quotes, cut to about `most` characters, with nothing in it that a terminal would obey."""
    shown = repr(text[: most + 1])
    return shown if len(text) <= most else f"{shown[:most]}...'"


def name(text: str) -> str:
    """A session's name as it is, or in quotes with escapes where a terminal would not show it as it is."""
    return text if text.isprintable() else json.dumps(text)


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table: drawn by rich on a terminal, else a line a row, in columns two spaces apart."""
    cells = [[str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        drawn = Table(title=title or None, title_justify="left", show_header=any(head), show_edge=False)
        for column in head:
            drawn.add_column(column, overflow="fold")
        for row in cells:
            drawn.add_row(*(Text(cell) for cell in row))  # as Text, for brackets in a cell are no markup
        Console().print(drawn)
        return
    if title:
        click.echo(title)
    lines = [list(head), *cells] if any(head) else cells
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))] if lines else []
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
