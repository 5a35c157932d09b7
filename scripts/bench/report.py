"""What all benchmarks share: the machine and versions behind the figures, a table, and a JSON file."""

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zmq
from rich.console import Console
from rich.table import Table

from rnnstream.model.blas import kernels

Row = Mapping[str, Any]


def processor() -> str:
    """The name that the processor gives itself."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), platform.machine()
    )


def commit() -> str:
    """The commit that is measured, with "-dirty" behind it if files differ from it; empty outside a git checkout."""
    command = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def machine() -> dict[str, Any]:
    """What figures depend on: processor, kernels, versions; and the date."""
    return {
        "date": str(datetime.date.today()),
        "processor": processor(),
        "processors": len(os.sched_getaffinity(0)),
        "kernels": kernels(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "msgpack": ".".join(map(str, msgpack.version)),
        "pyzmq": zmq.__version__,
        "libzmq": zmq.zmq_version(),
        "commit": commit(),
    }


def cell(value: object) -> str:
    """A figure as people read it: three digits, or whole with separators."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return f"{value:,}" if type(value) is int else str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(title: str, rows: Sequence[Row], columns: Sequence[str] = (), *, note: str = "") -> None:
    """Print the rows, and what machine they are from.

    Args:
        title: above the table.
        rows: its lines; figures are rounded to what they are worth.
        columns: keys of the rows, in order; all that occur, if empty. Units belong into their names.
        note: a line below the table.
    """
    columns = columns or list(dict.fromkeys(key for row in rows for key in row))
    shown = Table(title=title)
    for column in columns:
        figures = any(isinstance(row.get(column), int | float) for row in rows)
        shown.add_column(column, justify="right" if figures else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*(cell(row.get(column)) for column in columns))
    console = Console(width=170)
    console.print(shown)
    if note:
        console.print(note)
    console.print("; ".join(f"{key} {value}" for key, value in machine().items()))


def write_json(path: Path | str | None, rows: Sequence[Row]) -> None:
    """Write {"machine": ..., "rows": [...]}; nothing, where `path` is None."""
    if path is not None:
        Path(path).write_text(json.dumps({"machine": machine(), "rows": list(rows)}, indent=1) + "\n")


def read_json(path: Path | str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The machine and the rows of such a file."""
    content = json.loads(Path(path).read_text())
    return content["machine"], content["rows"]
