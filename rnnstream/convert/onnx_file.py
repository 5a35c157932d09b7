"""An .onnx file: read, checked, and the part of its graph that the tokens go through found."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner

from rnnstream.convert.hints import Hints
from rnnstream.convert.onnx_graph import (
    RECURRENT,
    Graph,
    Node,
    NotAChain,
    Tensor,
    attributes,
    called,
    last_of,
    rewritten,
    short,
    uses,
)
from rnnstream.errors import ModelError


def load(path: Path, said: Hints) -> Graph:
    """The graph in a file, between the tensors that --spec names or its data input and its output.

    Raises:
        ModelError: the file is damaged, or --spec names what is not there.
        NotAChain: the graph has several data inputs or outputs, or weights that are not used.
    """
    model = _read(path)
    known = {one.name for one in model.graph.initializer}
    inputs = {one.name: _tensor(one) for one in model.graph.input if one.name not in known}
    outputs = [one.name for one in model.graph.output]
    made = {name for node in model.graph.node for name in node.output}
    _check_weights(model)
    for key, name, there in (("start", said.start, made | set(inputs)), ("stop", said.stop, made)):
        if name is not None and name not in there:
            ends = f"its inputs are {', '.join(inputs)}, its outputs {', '.join(outputs)}"
            raise ModelError(f"`{key}` in --spec is {name!r:.60}, but the graph has no tensor of that name; {ends}.")
    if said.start is not None and said.start not in inputs:
        inputs[said.start] = _inner(model, said.start)
    graph = Graph(model, said.start or "", "", inputs)
    graph.stop = said.stop or _stop(graph, outputs)
    if graph.stop == said.start:
        raise ModelError(f"`start` and `stop` in --spec are both {graph.stop!r}; there is no node in between.")
    depends = graph.depends(graph.stop)
    data = sorted(depends.get(graph.stop, set()), key=list(inputs).index)
    if not data or said.start not in (None, *data):
        raise ModelError(f"the tensor {graph.stop!r} does not depend on {said.start or 'any input'!r}.")
    for node in graph.nodes(graph.stop):
        if node.op_type in RECURRENT and len(node.input) > 4 and len(data) > 1 and depends.get(node.input[4]):
            lengths = min(depends[node.input[4]])
            raise NotAChain(f"{called(node)} takes the lengths of its sequences from the input {lengths!r}.")
    if len(data) > 1:
        raise NotAChain(f"the outputs depend on several inputs: {', '.join(data)}; a chain has one.")
    graph.start = data[0]
    reached = {name for node in graph.nodes(graph.stop) for name in uses(node)}
    graph.states = [name for name in inputs if name in reached and name != graph.start]
    return graph


def _stop(graph: Graph, outputs: list[str]) -> str:
    """The output that is no last state."""
    found = [name for name in outputs if not last_of(graph, name)] if len(outputs) > 1 else outputs
    if len(found) != 1:
        what = "several outputs" if found else "only last states for its outputs"
        raise NotAChain(f"the graph has {what}: {', '.join(found or outputs)}; `stop` in --spec names the one to end with.")
    return found[0]


def _read(path: Path) -> Any:
    try:
        model = onnx.load(path)
    except Exception as problem:  # protobuf's, onnx's and the operating system's
        raise ModelError(f"it cannot be read as an ONNX graph: {short(problem)}.") from None
    try:
        onnx.checker.check_model(str(path))
    except Exception as problem:
        raise NotAChain(f"it is not as ONNX says that a graph is: {short(problem)}.") from None
    if len(model.functions):
        model = onnx.inliner.inline_local_functions(model)
    return rewritten(model, [one for node in model.graph.node for one in _batch_second(node)])


def _batch_second(node: Node) -> Iterable[Node]:
    """A recurrent node with layout 1, the batch's axis first, as one with layout 0, which is all that ONNX Runtime takes."""
    if node.op_type not in RECURRENT or not attributes(node).get("layout"):
        yield node
        return
    new = onnx.NodeProto()
    new.CopyFrom(node)
    for attribute in new.attribute:
        if attribute.name == "layout":
            attribute.i = 0
    for place in (0, 5, 6):
        if len(node.input) > place and node.input[place]:
            new.input[place] = f"{node.output[0] or node.output[1]}/layout 0/{place}"
            yield onnx.helper.make_node("Transpose", [node.input[place]], [new.input[place]], perm=[1, 0, 2])
    after = []
    for place, name in enumerate(node.output):
        if name:
            new.output[place] = f"{name}/layout 0"
            perm = [1, 0, 2] if place else [2, 0, 1, 3]
            after.append(onnx.helper.make_node("Transpose", [new.output[place]], [name], perm=perm))
    yield new
    yield from after


def _check_weights(model: Any) -> None:
    """An initializer that no node takes is a weight that somebody forgot, not one to be dropped."""
    used = {name for node in model.graph.node for name in uses(node)} | {one.name for one in model.graph.output}
    for one in model.graph.initializer:
        kind = onnx.helper.tensor_dtype_to_np_dtype(one.data_type).kind
        if one.name not in used and kind not in "iub" and np.prod(one.dims) > 1:
            raise NotAChain(f"no node takes the initializer {one.name!r} {list(one.dims)}, which looks like weights.")


def _tensor(value: Any) -> Tensor:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
        raise NotAChain(f"the graph does not say what shape the input {value.name!r} has.")
    dims = tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in kind.shape.dim)
    return Tensor(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)), dims)


def _inner(model: Any, name: str) -> Tensor:
    """A tensor in the midst of a graph, as far as its shape can be told without running it."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as problem:
        raise NotAChain(f"the shape of {name!r} cannot be told: {short(problem)}.") from None
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        if value.name == name:
            return _tensor(value)
    raise NotAChain(f"the shape of {name!r} cannot be told.")
