"""An ONNX graph between its data input and its output: read, checked, and run over a short sequence.

What a node makes of its input cannot always be seen in the graph: shapes and weights are often computed. So the graph is
run once; every tensor then has a shape, and those that do not depend on the input's numbers have a value.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnstream.errors import ModelError

try:
    import onnx
    import onnxruntime
except ImportError as problem:
    raise ModelError(f"ONNX graphs need onnx and onnxruntime: pip install 'rnnstream[onnx]' ({problem}).") from None

Array = npt.NDArray[Any]
Node = Any  # onnx.NodeProto
RECURRENT = {"RNN": "rnn", "GRU": "gru", "LSTM": "lstm"}
MOVING = ("Identity", "Squeeze", "Unsqueeze", "Transpose", "Reshape", "Flatten", "Concat", "Slice", "Gather", "Cast")
RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")
HALVES = {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16}
RUNTIME = f"onnxruntime {onnxruntime.__version__}"


class NotAChain(ModelError):
    """An ONNX graph that is readable and is no chain of our layers; ONNX Runtime may run it as it is."""


@dataclass(frozen=True)
class Tensor:
    """An input of a graph.

    Attributes:
        dtype: of its numbers.
        dims: a size, the name of a free one, or None.
    """

    dtype: np.dtype[Any]
    dims: tuple[int | str | None, ...]


@dataclass
class Graph:
    """The part of a graph between `start` and `stop`.

    Attributes:
        model: the whole; rewritten where that does not change a number.
        start: the tensor that the tokens come in by.
        stop: the tensor that the outputs go out by.
        inputs: what can be handed in, by name: the graph's inputs, and `start`.
        states: the inputs that are only initial states of recurrent nodes.
    """

    model: Any
    start: str
    stop: str
    inputs: dict[str, Tensor]
    states: list[str] = field(default_factory=list)

    @property
    def opset(self) -> int:
        """The version of the operators."""
        return max((one.version for one in self.model.opset_import if one.domain in ("", "ai.onnx")), default=0)

    def nodes(self, *outputs: str, initial: bool = True) -> list[Node]:
        """The nodes that these tensors are computed by, in order; `start` and the inputs are not computed.

        Args:
            outputs: their names.
            initial: with those that only make an initial state of a recurrent node.
        """
        wanted, found = set(outputs), []
        for node in reversed(self.model.graph.node):
            if (wanted - set(self.inputs)).intersection(node.output):
                found.append(node)
                wanted.update(uses(node) if initial else _driven_by(node))
        return found[::-1]

    def cells(self) -> dict[str, str]:
        """The operators of the recurrent nodes, by an output of each."""
        return {_key(node): node.op_type for node in self.nodes(self.stop) if node.op_type in RECURRENT}

    def depends(self, *outputs: str) -> dict[str, set[str]]:
        """The inputs whose numbers each tensor depends on: not by its shape, nor by a recurrent node's initial state."""
        found = {name: {name} for name in self.inputs}
        for node in self.nodes(*outputs):
            names = [] if node.op_type in ("Shape", "Size") else _driven_by(node)
            for name in filter(None, node.output):
                found.setdefault(name, set().union(*(found.get(one, set()) for one in names)))
        return found

    def run(self, outputs: list[str], feeds: dict[str, Array]) -> dict[str, Any]:
        """These tensors, by ONNX Runtime.

        Raises:
            NotAChain: it refuses the graph, or these inputs.
        """
        return self.runner(outputs)(feeds)

    def runner(self, outputs: list[str]) -> Any:  # a function: feeds -> tensors by name
        """What `run` does, to do it several times."""
        nodes = self.nodes(*outputs)
        names = {name for node in nodes for name in uses(node)} | set(outputs)
        inputs = [name for name in self.inputs if name in names]
        model = onnx.ModelProto(ir_version=self.model.ir_version)
        model.opset_import.extend(self.model.opset_import)
        model.graph.name = "part"
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(one for one in self.model.graph.initializer if one.name in names)
        for name in inputs:
            kind = onnx.helper.np_dtype_to_tensor_dtype(self.inputs[name].dtype)
            model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, [None] * len(self.inputs[name].dims)))
        inner = [name for name in outputs if name not in inputs]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what is wrong comes back as an exception
        options.intra_op_num_threads = 1
        try:
            session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as problem:  # of its own kinds, some of them direct children of Exception
            raise NotAChain(f"ONNX Runtime does not take the graph: {short(problem)}.") from None

        def run(feeds: dict[str, Array]) -> dict[str, Any]:
            try:
                found = session.run(inner, {name: feeds[name] for name in inputs})
            except Exception as problem:
                raise NotAChain(f"ONNX Runtime does not run the graph: {short(problem)}.") from None
            return dict(zip(inner, found, strict=True)) | {name: feeds[name] for name in outputs if name in inputs}

        return run

    def constants(self) -> dict[str, Array]:
        """The initializers."""
        return {one.name: onnx.numpy_helper.to_array(one) for one in self.model.graph.initializer}

    def unfolded(self, values: dict[str, Any]) -> Graph | None:
        """The graph with the branch that is taken in the place of each If whose condition is constant; None without any."""
        depends = self.depends(self.stop)
        decided = [node for node in self.nodes(self.stop) if node.op_type == "If" and not depends.get(node.input[0])]
        if not decided:
            return None
        nodes, inner = [], []
        for node in self.model.graph.node:
            if node not in decided:
                nodes.append(node)
                continue
            branch = attributes(node)["then_branch" if values[node.input[0]] else "else_branch"]
            inner.extend(branch.initializer)
            nodes.extend(branch.node)
            nodes.extend(
                onnx.helper.make_node("Identity", [made.name], [name])
                for made, name in zip(branch.output, node.output, strict=True)
            )
        model = rewritten(self.model, nodes)
        model.graph.initializer.extend(inner)
        return replace(self, model=model)


def rewritten(model: Any, nodes: list[Node]) -> Any:
    """The model with other nodes."""
    new = onnx.ModelProto()
    new.CopyFrom(model)
    del new.graph.node[:]
    new.graph.node.extend(nodes)
    return new


def uses(node: Node) -> list[str]:
    """The tensors that a node takes, those of the graphs inside it included."""
    inner = [one.g for one in node.attribute if one.HasField("g")]
    return [name for name in node.input if name] + [
        name
        for graph in inner
        for name in [name for one in graph.node for name in uses(one)] + [one.name for one in graph.output]
    ]


def _driven_by(node: Node) -> list[str]:
    """The same, without the initial states of a recurrent node."""
    return [name for name in (*node.input[:5], *node.input[7:]) if name] if node.op_type in RECURRENT else uses(node)


def attributes(node: Node) -> dict[str, Any]:
    """A node's attributes, its bytes as str."""
    return {one.name: _text(onnx.helper.get_attribute_value(one)) for one in node.attribute}


def called(node: Node) -> str:
    """What errors call a node."""
    domain = "" if node.domain in ("", "ai.onnx") else f"{node.domain}."
    return f"the {domain}{node.op_type} node {node.name or node.output[0]!r}"


def initial_of(graph: Graph, name: str) -> set[tuple[str, int]]:
    """The recurrent nodes, each by an output, and the slots, 5 or 6, of their states that begin at a state input."""
    depends = graph.depends(graph.stop)
    return {
        (_key(node), slot)
        for node in graph.nodes(graph.stop)
        if node.op_type in RECURRENT
        for slot in (5, 6)
        if len(node.input) > slot and name in depends.get(node.input[slot], set())
    }


def last_of(graph: Graph, name: str) -> set[tuple[str, int]]:
    """The recurrent nodes and slots whose last states a tensor is; empty if it is something else."""
    makers = {output: node for node in graph.model.graph.node for output in node.output}
    depends = graph.depends(name)
    found, names = set(), [name]
    while names:
        name = names.pop()
        node = makers.get(name)
        if node is None:
            return set()
        place = list(node.output).index(name)
        if node.op_type in RECURRENT and place:
            found.add((_key(node), place + 4))  # Y_h and Y_c, handed in again as inputs 5 and 6
        elif node.op_type in MOVING:
            names += [one for one in uses(node) if depends.get(one)]
        else:
            return set()
    return found


def _key(node: Node) -> str:
    return next(filter(None, node.output))


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return [_text(one) for one in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def short(problem: Exception) -> str:
    """What a library's exception says, in one line."""
    return " ".join(str(problem).split())[:300].rstrip(".")
