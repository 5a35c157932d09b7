"""Pictures of what the benchmarks have measured, from the files that they write.

    python -m scripts.bench.plots latency.json sessions.json steps.json

What a file holds is seen from its rows. Each picture says in its last line what machine the figures are from.
"""

import argparse
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter

from scripts.bench.report import read_json

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
STYLE = {
    "figure.figsize": (7, 4.2),
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.prop_cycle": plt.cycler(color=["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]),  # Okabe and Ito
    "font.size": 11,
    "grid.alpha": 0.3,
    "lines.linewidth": 2,
    "lines.markersize": 5,
    "svg.fonttype": "none",  # text stays text: a tenth of the bytes
    "svg.hashsalt": "rnnstream",  # the same figures, the same file
}

DASHED = ("p99", "free")  # lines whose names end so

Line = Mapping[float, Iterable[float]]  # for each place, what was measured there: the median is drawn
Rows = list[dict[str, Any]]


def short(value: float, _: int = 0) -> str:
    """A number on an axis: 5, 1,024, 20k, 1.5M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size and value * 10 % size == 0:
            return f"{value / size:g}{letter}"
    return f"{value:,g}"


def draw(
    path: Path,
    lines: Mapping[str, Line],
    machine: Mapping[str, Any],
    *,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
) -> None:
    """One picture.

    Args:
        path: the SVG file.
        lines: by their names in the legend; those that begin with the same word have a colour, and one of them may be dashed.
        machine: as `report.machine()` gives it.
        x: what the horizontal axis shows, with its unit.
        y: likewise.
        log_x: each step to the right is a factor.
        log_y: each step up is a factor.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots()
        firsts = list(dict.fromkeys(name.split()[0] for name in lines))
        for name, line in lines.items():
            places = sorted(line)
            dashed = name.split()[-1] in DASHED
            colour = f"C{firsts.index(name.split()[0])}" if len(firsts) < len(lines) else None
            medians = [statistics.median(line[place]) for place in places]
            axes.plot(places, medians, marker="o", label=name, linestyle="--" if dashed else "-", color=colour)
        if log_x:
            axes.set_xscale("log")
            axes.set_xticks(sorted({place for line in lines.values() for place in line}))
            axes.minorticks_off()
        if log_y:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter(FuncFormatter(short))
        axes.yaxis.set_major_formatter(FuncFormatter(short))
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if len(lines) > 1:
            axes.legend(frameon=False)
        words = ", ".join(str(machine[key]) for key in ("processor", "kernels", "date"))
        figure.supxlabel(f"{words}; {machine['processors']} processors", fontsize=8, color="#666666")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def gathered(rows: Rows, x: str, y: str) -> Line:
    """What was measured under the key `y`, by the key `x`; rows that have not both are passed over."""
    line: dict[float, list[float]] = {}
    for row in rows:
        if row.get(x) is not None and row.get(y) is not None:
            line.setdefault(row[x], []).append(row[y])
    return line


def latency(rows: Rows, machine: Mapping[str, Any], to: Path) -> None:
    """Of `latency.py`: p50 and p99, up to the last rate that a server has always kept up with."""
    lines = {}
    for server in ("worker", "echo"):
        mine = [row for row in rows if row["server"] == server]
        limit = min((row["offered_per_second"] for row in mine if not row["kept_up"]), default=float("inf"))
        for key in ("p50", "p99"):
            lines[f"{server} {key}"] = gathered(
                [row for row in mine if row["offered_per_second"] < limit], "offered_per_second", f"{key}_us"
            )
    draw(to / "latency.svg", lines, machine, x="tokens a second, offered", y="latency, µs", log_y=True)


def sessions(rows: Rows, machine: Mapping[str, Any], to: Path) -> None:
    """Of `sessions.py`: the speed among so many sessions."""
    ending = ", tokens/s"
    names = [key.removesuffix(ending) for key in rows[0] if key.endswith(ending)]
    lines = {name: gathered(rows, "sessions", name + ending) for name in names}
    draw(to / "sessions.svg", lines, machine, x="sessions in memory", y="tokens a second", log_x=True)


def steps(rows: Rows, machine: Mapping[str, Any], to: Path) -> None:
    """Of `steps.py`: the engine's speed by hidden size and by vocabulary, and exact beside free products by rows of a batch.

    What does not vary in a picture is, of what was measured, the smallest network and the largest batch.
    """
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    fixed = {"hidden": min, "vocabulary": min, "rows": max}
    axes = {"hidden": "hidden size", "vocabulary": "vocabulary", "rows": "tokens in a batch"}
    for key, label in axes.items():
        rest = {other: choose(row[other] for row in rows) for other, choose in fixed.items() if other != key}
        mine = [row for row in rows if all(row[other] == value for other, value in rest.items())]
        if key == "rows":
            ways = {"exact": "calls", "free": "free"}
            lines = {f"{cell} {way}": speeds(mine, cell, key, figure) for cell in cells for way, figure in ways.items()}
        else:
            lines = {cell: speeds(mine, cell, key, "engine") for cell in cells}
        if len({row[key] for row in mine}) > 1:
            told = ", ".join(f"{axes[other]} {value:,}" for other, value in rest.items())
            draw(
                to / f"steps-{key}.svg", lines, machine,
                x=f"{label} ({told})", y="tokens a second of one processor", log_x=True, log_y=True,
            )  # fmt: skip


def speeds(rows: Rows, cell: str, x: str, figure: str) -> Line:
    """Tokens a second of a cell, from a figure in µs a token."""
    line = gathered([row for row in rows if row["cell"] == cell], x, figure)
    return {place: [1e6 / us for us in found] for place, found in line.items()}


KINDS = {"offered_per_second": latency, "sessions": sessions, "cell": steps}  # by a key that only the rows of one script have


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the pictures of the given files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, help="written by --json of the benchmarks")
    parser.add_argument("--to", type=Path, default=PICTURES, help="folder (default docs/pictures)")
    args = parser.parse_args(arguments)
    for file in args.files:
        machine, rows = read_json(file)
        found = [draws for key, draws in KINDS.items() if rows and key in rows[0]]
        if not found:
            parser.error(f"{file} has no rows that can be drawn.")
        found[0](rows, machine, args.to)


if __name__ == "__main__":
    main()
