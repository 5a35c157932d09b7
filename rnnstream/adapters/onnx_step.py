"""An ONNX graph with inputs and outputs for its states as a step model, run by ONNX Runtime one token at a time.

    B rows of a batch    S numbers of all states    K numbers of a token    V outputs

A row's state vector is the graph's states one after the other, each flattened.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnstream.adapters import onnx_graph, onnx_memory, onnx_ports
from rnnstream.adapters.onnx_graph import Value
from rnnstream.adapters.onnx_head import head_of, random_tokens
from rnnstream.adapters.onnx_ports import Port
from rnnstream.adapters.onnx_run import PROVIDER, runtime, session
from rnnstream.adapters.rows import RowModel
from rnnstream.convert.hints import Hints
from rnnstream.convert.hints import hints as checked
from rnnstream.errors import ModelError
from rnnstream.model.step import Input, Output

Array = npt.NDArray[Any]


class OnnxStep(RowModel):
    """A step of an ONNX graph as a step model.

    Args:
        source: the .onnx file, or its bytes.
        hints: what the graph does not say: `states`, `constants`, `stop`, `size`, `vocabulary`, `head`, `name`, `batch`; for
            those that are not there, what the file was saved with counts. docs/step-models.md describes them.

    Attributes:
        hints: all that was said, and what was found in the graph or by running it.

    Raises:
        ModelError: the graph cannot be read or run, is no step, or does not say enough; the sentence says what to write.
    """

    def __init__(self, source: str | PathLike[str] | bytes, hints: Hints | dict[str, Any] | None = None) -> None:
        try:
            self._build(source, hints)
        except ModelError as problem:
            if isinstance(source, bytes) or str(problem).startswith("There is no file"):
                raise
            raise ModelError(f"{source!s}: {problem}") from None

    def _build(self, source: str | PathLike[str] | bytes, given: Hints | dict[str, Any] | None) -> None:
        self._graph = graph = onnx_graph.read(source)
        said = _merged(given, onnx_graph.metadata(graph))
        if said.layers is not None or said.ignore or said.start is not None:
            raise ModelError("`layers`, `ignore` and `start` are for conversions; this graph is run as it is.")
        ins, outs = onnx_graph.inputs(graph), onnx_graph.outputs(graph)
        constants = _constants(said.constants, ins)
        ins = [value for value in ins if value.name not in constants]
        if said.stop is not None and said.stop not in [value.name for value in outs]:
            raise ModelError(f"`stop` is {said.stop!r}; the graph's outputs are {_names(outs)}.")
        pairs = onnx_graph.pairs(ins, outs, said.states)
        states = [value for value in ins if value.name in pairs]
        after = [next(value for value in outs if value.name == pairs[state.name]) for state in states]
        x, y = _token(ins, pairs), _output(outs, pairs, said.stop)
        self.batch = bool(said.batch)
        self.input, port = _input(graph, x, said)
        program = onnx_ports.settle(session(graph), constants, port, list(zip(states, after, strict=True)), y)
        self.dtype = np.result_type(*(state.dtype for state in program.states))
        self.state_size = program.state_size
        onnx_memory.check_nodes(graph, program)
        alone, kind, head = head_of(graph, program, self.input, said.head)
        same_ids = kind == "categorical" and program.y.size == self.input.size
        vocabulary = self.input.vocabulary if same_ids else None
        self.output = Output(kind, program.y.size, vocabulary)  # type: ignore[arg-type]
        self._program = alone
        if self.batch:
            self._program = onnx_ports.with_batch(alone, x, states, random_tokens(self.input, onnx_ports.TRIAL_ROWS))
        name = said.name if said.name is not None else graph.graph.name if isinstance(source, bytes) else Path(source).stem
        self.name = name
        self.hints = replace(
            said,
            name=name,
            input=self.input.kind,
            size=self.input.size,
            batch=self.batch or None,  # so that it makes no other digest to say false
            head=kind,
            states=pairs,
            stop=y,
            constants={name: array.tolist() for name, array in constants.items()},
        )
        self.digest = self._digest()
        self.layers = self._lines(head)
        self.settle(f"onnxruntime {runtime().__version__} {PROVIDER} {platform.machine()}")
        onnx_memory.check_sequence(alone, x, self.input)  # after it is known that nothing is random

    def initial_state(self) -> Array:  # -> [S]
        """Zeros."""
        return np.zeros(self.state_size, self.dtype)

    def call(self, states: Array, inputs: Array) -> tuple[Array, Array]:  # [B, S], [B] or [B, K] -> [B, S], [B, V]
        """One run of the graph."""
        new, y = self._program(states, inputs)
        return new.astype(self.dtype, copy=False), y.astype(self.dtype, copy=False)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the graph as it is, with the hints in it, so that the file says enough by itself.

        Raises:
            OSError: the file cannot be written.
        """
        copy = type(self._graph)()
        copy.CopyFrom(_plain(self._graph))
        copy.metadata_props.add(key=onnx_graph.KEY, value=_text(self.hints))
        path = Path(path)
        unfinished = path.with_name(path.name + ".tmp")
        unfinished.write_bytes(copy.SerializeToString())
        unfinished.replace(path)

    def _digest(self) -> str:
        """Over the graph and the hints; a file that was saved has that of the file that it was made of. Not over the name."""
        hasher = hashlib.sha256(_plain(self._graph).SerializeToString(deterministic=True))
        hasher.update(b"\0" + _text(replace(self.hints, name=None)).encode())
        return hasher.hexdigest()

    def _lines(self, head: str) -> list[str]:
        program, size = self._program, self.input.size
        token = f"an id of {size:,}" if self.input.kind == "token" else f"{size:,} numbers"
        return [
            f"ONNX graph of {len(self._graph.graph.node):,} nodes, " + ("rows together" if self.batch else "each row alone"),
            f"token {program.x.name} {list(program.x.shape)}: {token}",
            *(
                f"state {state.name} {list(state.shape)} -> {after.name}"
                for state, after in zip(program.states, program.after, strict=True)
            ),
            *(f"constant {name} = {value!r:.60}" for name, value in self.hints.constants.items()),
            f"output {program.y.name} {list(program.y.shape)}",
            head,
        ]


def has_hints(path: str | PathLike[str]) -> bool:
    """Whether this is a graph that `OnnxStep.save` wrote; False for what cannot be read.

    Raises:
        ModelError: onnx is not installed.
    """
    onnx = onnx_graph.needs_onnx()
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # of the file system or of protobuf, whose classes differ between its versions
        return False
    return any(prop.key == onnx_graph.KEY for prop in model.metadata_props)


def _merged(given: Hints | dict[str, Any] | None, kept: dict[str, Any] | None) -> Hints:
    said, nothing = checked(given), Hints()
    keys = [field.name for field in fields(Hints) if getattr(said, field.name) != getattr(nothing, field.name)]
    return replace(checked(kept), **{key: getattr(said, key) for key in keys})


def _text(said: Hints) -> str:
    """Hints as JSON, always the same for the same ones."""
    nothing = Hints()
    keys = [field.name for field in fields(Hints) if getattr(said, field.name) != getattr(nothing, field.name)]
    return json.dumps({key: getattr(said, key) for key in keys}, sort_keys=True)


def _plain(graph: Any) -> Any:
    """The graph without our hints."""
    plain = type(graph)()
    plain.CopyFrom(graph)
    kept = [prop for prop in plain.metadata_props if prop.key != onnx_graph.KEY]
    del plain.metadata_props[:]
    plain.metadata_props.extend(kept)
    return plain


def _names(values: Sequence[Value]) -> str:
    return ", ".join(value.name for value in values)


def _constants(said: dict[str, Any], ins: Sequence[Value]) -> dict[str, Array]:
    found = {}
    for name, value in said.items():
        port = next((value for value in ins if value.name == name), None)
        if port is None:
            raise ModelError(f"`constants` names the input {name!r}; the graph's inputs are {_names(ins)}.")
        if port.dtype is None:
            raise ModelError(f"The input {port} cannot be given under `constants`; it takes numbers.")
        try:
            given = np.array(value)
            array = given.astype(port.dtype)
        except ValueError:  # ragged lists, words
            given = array = np.array([])
        if not array.size or given.dtype.kind not in "biuf" or not (np.isclose(array, given, atol=0) | np.isnan(given)).all():
            raise ModelError(f"constants.{name} is {value!r:.60}; the graph takes {port}.")
        if port.dims is not None and array.size == 1:
            array = array.reshape((1,) * len(port.dims))
        if port.dims is not None and len(port.dims) != array.ndim:
            raise ModelError(f"constants.{name} has the shape {list(array.shape)}; the graph takes {port}.")
        found[name] = array
    return found


def _token(ins: Sequence[Value], pairs: dict[str, str]) -> Value:
    left = [value for value in ins if value.name not in pairs]
    if not left:
        raise ModelError(f"No input is left for the token: {_names(ins)} are taken for states; `states` says otherwise.")
    if len(left) > 1:
        raise ModelError(
            f"The inputs {_names(left)} are left, and one of them is the token. Give the values of the others in a spec: "
            f"constants = {{{left[-1].name} = ...}}; those that are states belong under `states`."
        )
    return left[0]


def _output(outs: Sequence[Value], pairs: dict[str, str], stop: str | None) -> str:
    if stop is not None:
        return stop
    left = [value for value in outs if value.name not in pairs.values()]
    left = left or [value for value in outs if value.name in pairs.values()]  # a cell: its state is what it gives out
    if len(left) > 1:
        table = ", ".join(f'"{i}" = "{o}"' for i, o in pairs.items())
        raise ModelError(
            f'The outputs {_names(left)} are left; say in a spec which one is wanted: stop = "{left[0].name}". Taken for '
            f"states and their next values are {table}; if that is not so, write the right ones as states = {{...}}."
        )
    return left[0].name


def _input(graph: Any, x: Value, said: Hints) -> tuple[Input, Port]:
    """What a token is."""
    if x.dtype is None or x.dtype.kind not in "iuf":
        raise ModelError(f"The token {x} is neither ids nor floating point numbers.")
    kind = "dense" if x.dtype.kind == "f" else "token"
    if said.input not in (None, kind):
        raise ModelError(f"`input` is {said.input}; the graph's token is {x}.")
    if kind == "dense":
        if said.vocabulary is not None:
            raise ModelError(f"`vocabulary` is for token ids; the graph's token is {x}.")
        port = Port(x.name, x.dtype, onnx_ports.token_shape(x, said.size))
        return Input("dense", port.size), port
    words = None if said.vocabulary is None else tuple(said.vocabulary)
    rows = onnx_graph.table_rows(graph, x.name)
    size = said.size or (len(words) if words is not None else rows)
    if size is None:
        raise ModelError(f"The graph does not say how many ids there are for {x}; write size = ... or a vocabulary in a spec.")
    if rows is not None and size > rows:
        raise ModelError(f"There are {size} ids by the spec; the table that {x.name} picks from has {rows} rows.")
    return Input("token", size, words), Port(x.name, x.dtype, onnx_ports.token_shape(x, None))
