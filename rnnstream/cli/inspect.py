"""`rnnstream inspect`: what is in a model file."""

from __future__ import annotations

import math
from typing import Any

import click

from rnnstream.cli import options, out
from rnnstream.cli.options import load_model
from rnnstream.model.network import Network
from rnnstream.model.step import StepModel

ENTRIES = 12  # of a vocabulary that are shown


@click.command()
@click.argument("model", required=False)
@options.as_json
def inspect(model: str | None, as_json: bool) -> None:
    """What is in MODEL: its layers, sizes, vocabulary, tensors and digest, and how its products are computed here.

    MODEL is a model file, another framework's file, module:attribute or an entry point; absent, the model that ships with the
    package.
    """
    network = load_model(model)
    found = describe(network)
    if as_json:
        click.echo(out.json_line(found))
        return
    vocabulary = found["vocabulary"]
    rows: list[tuple[str, object]] = [
        ("name", out.literal(network.name, 200)),
        ("digest", network.digest),
        ("numbers", found["dtype"]),
        ("input", f"{network.input.kind}, {network.input.size:,}"),
        ("output", f"{network.output.kind}, {network.output.size:,}"),
        ("vocabulary", "none" if vocabulary is None else f"{len(vocabulary):,} entries: {_entries(vocabulary)}"),
        *((f"layer {number}", line) for number, line in enumerate(network.layers, 1)),
        ("state", f"{network.state_size:,} numbers, {network.state_size * network.dtype.itemsize:,} bytes"),
        ("surprisal", "yes" if network.surprisal else "no"),
        ("exact here", "yes" if network.exact else "no"),
        ("kernels", network.numerics),
    ]
    if "parameters" in found:
        rows.append(("parameters", f"{found['parameters']:,}, {found['bytes']:,} bytes"))
    out.table("", ("", ""), rows)
    if isinstance(network, Network):
        tiles = {name: tile for name, (_, tile) in _tiles(network).items()}
        for title, table in (
            ("Tensors", [(name, " x ".join(map(str, shape))) for name, shape in sorted(network.spec.shapes.items())]),
            ("Products: the tile, rows x columns, that is exact here", sorted(tiles.items())),
        ):
            click.echo()
            out.table(title, ("name", "shape" if title == "Tensors" else "tile"), table)


def describe(model: StepModel) -> dict[str, Any]:
    """Everything about a model, ready for JSON; of one that is no `Network` there are no parameters, tensors and products."""
    found: dict[str, Any] = {
        "name": model.name,
        "digest": model.digest,
        "dtype": str(model.dtype),
        "input": {"kind": model.input.kind, "size": model.input.size},
        "output": {"kind": model.output.kind, "size": model.output.size},
        "vocabulary": None if model.input.vocabulary is None else list(model.input.vocabulary),
        "layers": list(model.layers),
        "state_size": model.state_size,
        "surprisal": model.surprisal,
        "exact": model.exact,
        "numerics": model.numerics,
    }
    if isinstance(model, Network):
        shapes = model.spec.shapes
        found["format"] = model.spec.json["format"]
        found["parameters"] = sum(math.prod(shape) for shape in shapes.values())
        found["bytes"] = found["parameters"] * model.dtype.itemsize
        found["tensors"] = {name: list(shape) for name, shape in sorted(shapes.items())}
        found["products"] = {
            name: {"shape": list(shape), "tile": [tile.rows, tile.columns]} for name, (shape, tile) in _tiles(model).items()
        }
    return found


def _tiles(model: Network) -> dict[str, tuple[tuple[int, int], Any]]:
    return {name: (product.shape, product.tile) for name, product in model.products.items()}


def _entries(vocabulary: list[str]) -> str:
    shown = " ".join(out.literal(entry, 20) for entry in vocabulary[:ENTRIES])
    return shown + (" ..." if len(vocabulary) > ENTRIES else "")
