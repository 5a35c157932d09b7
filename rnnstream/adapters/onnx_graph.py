"""What an ONNX graph says about itself as a step: its inputs and outputs, which of them are states, how many ids it knows."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from rnnstream.errors import ModelError

KEY = "rnnstream"  # of metadata_props: our hints, as JSON
MOVE_ONLY = {"Identity", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Transpose", "Cast"}  # they leave numbers as they are
_SUFFIXES = ("n", "new", "next", "out")  # glued to a state's name: hn, stateNew
_WORDS = {"in", "input", "n", "out", "output", "old", "new", "next", "past", "prev", "previous", "present", "last", "initial"}
_WORDS |= {"init", "cur", "current", "updated"}  # that only say which end of the step a state is at


@dataclass(frozen=True)
class Value:
    """An input or output of the graph.

    Attributes:
        name: in the graph.
        dtype: of its numbers; None for what is no tensor, or a tensor of strings.
        dims: an int where the graph gives one, else the name of the dimension or ""; None where not even the rank is given.
    """

    name: str
    dtype: np.dtype[Any] | None
    dims: tuple[int | str, ...] | None

    def __str__(self) -> str:
        dims = "of any shape" if self.dims is None else "[" + ", ".join(str(dim or "?") for dim in self.dims) + "]"
        return f"{self.name} {self.dtype or '(no numbers)'} {dims}"


def needs_onnx() -> Any:
    """The package onnx.

    Raises:
        ModelError: it is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise ModelError("An ONNX graph needs onnx and onnxruntime: pip install 'rnnstream[onnx]'.") from None
    return onnx


def read(source: str | PathLike[str] | bytes) -> Any:
    """The onnx.ModelProto in a file or in bytes, tensors beside the file included.

    Raises:
        ModelError: it is not there, damaged, or a tensor is missing.
    """
    onnx = needs_onnx()
    try:
        if isinstance(source, bytes):
            model = onnx.load_model_from_string(source)
        else:
            model = onnx.load(source, load_external_data=False)
    except FileNotFoundError:
        raise ModelError(f"There is no file {source!s}.") from None
    except OSError as problem:
        raise ModelError(f"It cannot be read: {problem.strerror}.") from None
    except Exception as problem:  # of protobuf, whose classes differ between its versions
        raise ModelError(f"It is damaged, or no ONNX graph: {problem}.") from None
    if not model.graph.node:
        raise ModelError("It is damaged, or no ONNX graph: there is no operation in it.")
    if isinstance(source, bytes):
        outside = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
        if outside:
            raise ModelError(f"The tensor {outside[0].name} is in another file; give the path of the graph, not its bytes.")
        return model
    try:
        onnx.load_external_data_for_model(model, str(Path(source).parent))
    except Exception as problem:  # missing, too short, or a path that leads out of the folder
        raise ModelError(f"Its tensors are in another file, which cannot be read: {problem}") from None
    for tensor in model.graph.initializer:
        tensor.ClearField("data_location")  # as in a file that holds them all
    return model


def metadata(model: Any) -> dict[str, Any] | None:
    """The hints that the graph was saved with, or None.

    Raises:
        ModelError: they are no JSON object.
    """
    for prop in model.metadata_props:
        if prop.key == KEY:
            try:
                found = json.loads(prop.value)
            except (ValueError, RecursionError):
                found = None
            if not isinstance(found, dict):
                raise ModelError(f"Its metadata {KEY!r} is no JSON object.")
            return found
    return None


def inputs(model: Any) -> list[Value]:
    """The graph's inputs but for the tensors that it brings along."""
    own = {tensor.name for tensor in model.graph.initializer}
    return [_value(info) for info in model.graph.input if info.name not in own]


def outputs(model: Any) -> list[Value]:
    """The graph's outputs."""
    return [_value(info) for info in model.graph.output]


def _value(info: Any) -> Value:
    tensor = info.type.tensor_type
    try:
        dtype = needs_onnx().helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    except (KeyError, ValueError):
        dtype = None
    dims = tuple(int(d.dim_value) if d.dim_value > 0 else str(d.dim_param) for d in tensor.shape.dim)
    return Value(info.name, dtype if dtype is not None and dtype.kind in "biuf" else None, _rank(tensor, dims))


def _rank(tensor: Any, dims: tuple[int | str, ...]) -> tuple[int | str, ...] | None:
    return dims if tensor.HasField("shape") else None


def pairs(ins: Sequence[Value], outs: Sequence[Value], said: dict[str, str]) -> dict[str, str]:
    """The state inputs and the outputs that are their next values: as they are said, or by name and shape.

    Raises:
        ModelError: there are none, or more than one reading.
    """
    if said:
        for what, names, values in (("input", list(said), ins), ("output", list(said.values()), outs)):
            known = [value.name for value in values]
            for name in names:
                if name not in known:
                    raise ModelError(f"`states` names the {what} {name!r}; the graph's {what}s are {', '.join(known)}.")
                if names.count(name) > 1:
                    raise ModelError(f"`states` names the {what} {name!r} twice.")
        return said
    found: dict[str, str] = {}
    for matches in (_marked, _same_stem, _later_stem):
        free = [value for value in ins if value.name not in found]
        left = [value for value in outs if value.name not in found.values()]
        hits = {i.name: [o.name for o in left if _fits(i, o) and matches(i.name, o.name)] for i in free}
        for name, candidates in hits.items():
            rivals = [other for other, theirs in hits.items() if other != name and set(theirs) & set(candidates)]
            if len(candidates) > 1 or (candidates and rivals):
                readings = [f'"{i}" = "{o}"' for i in (name, *rivals) for o in hits[i]]
                raise ModelError(
                    f"It is not clear which output is the next value of which state: {', '.join(readings)}. Write the right "
                    f"ones as states = {{{readings[0]}}} and pass it as a spec."
                )
            if candidates:
                found[name] = candidates[0]
    if not found:
        fitting = sorted(((i, o) for i in ins for o in outs if _fits(i, o)), key=lambda pair: pair[0].dims != pair[1].dims)
        possible = [f'"{i.name}" = "{o.name}"' for i, o in fitting]
        raise ModelError(
            "This graph takes whole sequences, or has no memory: no input is a state of which an output is the next value. "
            "Export one step, with inputs and outputs for the states."
            + (f" If one is, say so in a spec; by their shapes: states = {{{possible[0]}}}." if possible else "")
        )
    return found


def _fits(i: Value, o: Value) -> bool:
    if i.dtype != o.dtype or i.dims is None or o.dims is None:
        return i.dtype == o.dtype
    unequal = (a != b for a, b in zip(i.dims, o.dims, strict=False) if isinstance(a, int) and isinstance(b, int))
    return len(i.dims) == len(o.dims) and not any(unequal)


def _stem(name: str) -> list[str]:
    """The parts of a name without those that only say old or new."""
    stem = [part for part in _parts(name) if part not in _WORDS]
    return stem if any(part.isalpha() for part in stem) else _parts(name)


def _parts(name: str) -> list[str]:
    return [part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+", name)]


def _marked(i: str, o: str) -> bool:
    """h_in, h_out; past_x, present_x, where x may be the token."""
    return _same_stem(i, o) and _stem(i) != _parts(i)


def _same_stem(i: str, o: str) -> bool:
    """h, h_out; state, stateN; cache, new_cache."""
    return _stem(i) == _stem(o)


def _later_stem(i: str, o: str) -> bool:
    """h, hn; h0, hn; hin, hout; h_0, h_n."""
    before, after = _stem(i), _stem(o)
    readings = [before, before[:-1]] if before[-1:] == ["0"] else [before]
    return any(len(reading) == len(after) and all(map(_is_later, reading, after)) and bool(reading) for reading in readings)


def _is_later(before: str, after: str) -> bool:
    names = {before, before.removesuffix("in") or before}
    return before == after or after in {name + suffix for name in names for suffix in _SUFFIXES}


def table_rows(model: Any, x: str) -> int | None:
    """How many ids the graph knows: the rows of the table that x picks from, or the width of its one-hot vector."""
    onnx = needs_onnx()
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                shapes[node.output[0]], values[node.output[0]] = tuple(attribute.t.dims), attribute.t
    names = {x}
    for node in model.graph.node:  # which are in an order in which they can be run
        if node.op_type in MOVE_ONLY and node.input[0] in names:
            names.add(node.output[0])
        elif node.op_type == "Gather" and node.input[1] in names and len(shapes.get(node.input[0], ())) == 2:
            if all(attribute.i == 0 for attribute in node.attribute if attribute.name == "axis"):
                return int(shapes[node.input[0]][0])
        elif node.op_type == "OneHot" and node.input[0] in names and node.input[1] in values:
            return int(onnx.numpy_helper.to_array(values[node.input[1]]).reshape(-1)[0])
    return None
