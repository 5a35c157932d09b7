"""`rnnstream convert`: another framework's file into a model file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rnnstream.cli import options, out
from rnnstream.convert.check import TOLERANCE, Checked, check
from rnnstream.convert.hints import hints
from rnnstream.convert.parts import Converted
from rnnstream.errors import ModelError
from rnnstream.loading import convert_or_run
from rnnstream.model.file import save
from rnnstream.model.step import StepModel


@click.command("convert")
@click.argument("source", metavar="IN", type=click.Path(exists=True, dir_okay=False))
@click.argument("target", metavar="OUT", type=click.Path(dir_okay=False))
@click.option("--spec", type=click.Path(dir_okay=False), help="What IN does not say about itself: a TOML or JSON file.")
@click.option("--check", "checking", is_flag=True, help="Run the source's framework and ours side by side on random tokens.")
@options.as_json
def convert(source: str, target: str, spec: str | None, checking: bool, as_json: bool) -> None:
    """Convert IN, a network of another framework, into the model file OUT (.safetensors).

    IN is a state_dict of PyTorch (.pt, .pth, .safetensors, .npz), a model of Keras (.keras, .h5), an ONNX graph (.onnx), or an
    .npz file with the names of the equations: waa, wax, ba, wya, by. What had to be assumed is said. An ONNX graph that is no
    chain of our layers is written to OUT (.onnx) as it is, with what --spec says of it, and runs in ONNX Runtime.

    With --check, exit status 1 where the two differ by more than rounding; OUT is not written then.
    """
    path, said = Path(source), hints(spec)
    if path.resolve() == Path(target).resolve():
        raise ModelError(f"{source} would be written over itself; give the model file another name.")
    found = convert_or_run(path, said)
    ends = ".safetensors" if isinstance(found, Converted) else ".onnx"
    if Path(target).suffix != ends:
        what = "a model file" if isinstance(found, Converted) else "an ONNX graph that runs as it is"
        raise ModelError(f"{target} would be {what}; give it a name that ends with {ends}.")
    checked = None
    try:
        if isinstance(found, Converted):
            model: StepModel = found.network()
            notes = found.notes
            checked = check(path, said, found) if checking else None
            if checked is None or checked.passed:
                save(target, found.spec, found.tensors)
        else:
            model, notes = found, ["this graph is no chain of layers; it runs as it is, in ONNX Runtime."]
            if checking:
                notes.append("--check has nothing to compare: what runs is the source itself, one token at a time.")
            found.save(target)
    except OSError as problem:
        raise ModelError(f"{target} cannot be written: {problem.strerror}.") from None
    _print(model, notes, checked, target, as_json)
    if checked and not checked.passed:
        raise ModelError(f"The two differ by more than {TOLERANCE:g}; {target} was not written.")


def _print(model: StepModel, notes: list[str], checked: Checked | None, target: str, as_json: bool) -> None:
    rows: list[tuple[str, Any]] = [
        ("name", model.name),
        ("digest", model.digest),
        ("input", f"{model.input.kind}, {model.input.size:,}"),
        ("output", f"{model.output.kind}, {model.output.size:,}"),
        *((f"layer {number}", line) for number, line in enumerate(model.layers, 1)),
        ("state", f"{model.state_size:,} numbers"),
        *(("note", note) for note in notes),
    ]
    if checked:
        verdict = "PASS" if checked.passed else "FAIL"
        steps = f"{checked.what} of {checked.steps} random tokens against {checked.source}"
        rows.append(("check", f"{verdict}: largest difference {checked.largest:.2g}, {steps}"))
    if not as_json:
        out.table("", ("", ""), rows)
        return
    found: dict[str, Any] = {
        "out": target,
        "name": model.name,
        "digest": model.digest,
        "layers": list(model.layers),
        "notes": notes,
    }
    if checked:
        found["check"] = {
            "passed": checked.passed,
            "largest_difference": checked.largest,
            "steps": checked.steps,
            "compared": checked.what,
            "source": checked.source,
        }
    click.echo(out.json_line(found))
