"""ONNX graphs for tests, put together node by node."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from rnnstream.convert import convert
from rnnstream.convert.check import check
from rnnstream.convert.onnx_chain import NotAChain

KINDS = {"float": TensorProto.FLOAT, "ids": TensorProto.INT64, "half": TensorProto.FLOAT16, "double": TensorProto.DOUBLE}
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


class Graph:
    """A graph that grows by `add`; arrays among a node's inputs become initializers."""

    def __init__(self, dims=("steps", "rows", 5), kind="float", seed=0, **inputs):
        self.inputs = {"x": (kind, dims)} | {name: ("float", given) for name, given in inputs.items()}
        self.nodes, self.weights = [], []
        self.rng = np.random.default_rng(seed)

    def draw(self, *shape):
        return self.rng.uniform(-1, 1, shape).astype(np.float32)

    def add(self, op, *inputs, outputs=None, name=None, **attributes):
        """A node; the name of its first output, or of all that were named."""
        names = []
        for given in inputs:
            if isinstance(given, str):
                names.append(given)
            else:
                names.append(f"w{len(self.weights)}")
                self.weights.append(numpy_helper.from_array(np.asarray(given), names[-1]))
        made = outputs or [f"{op.lower()}{len(self.nodes)}"]
        domain = attributes.pop("domain", None)
        self.nodes.append(
            helper.make_node(op, names, made, name=name or f"node {len(self.nodes)}", domain=domain, **attributes)
        )
        return made if outputs else made[0]

    def cell(self, op, x, k, h, *more, bias=True, outputs=None, **attributes):
        """A recurrent node with random weights; `more` are its inputs from sequence_lens on."""
        g = GATES[op]
        b = self.draw(1, 2 * g * h) if bias else ""
        return self.add(
            op, x, self.draw(1, g * h, k), self.draw(1, g * h, h), b, *more, outputs=outputs, hidden_size=h, **attributes
        )

    def squeezed(self, op, x, k, h, *more, **attributes):
        """The same, [steps, rows, h] behind it."""
        return self.add("Squeeze", self.cell(op, x, k, h, *more, **attributes), np.array([1]))

    def save(self, directory, *outputs, opset=17):
        graph = helper.make_graph(
            self.nodes,
            "made",
            [helper.make_tensor_value_info(name, KINDS[kind], dims) for name, (kind, dims) in self.inputs.items()],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            self.weights,
        )
        domains = {node.domain for node in self.nodes} - {""}
        imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
        path = directory / "made.onnx"
        model = onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=imports, ir_version=8))
        onnx.save(model, path)
        return path


def runtime(path, **feeds):
    """All outputs of a graph, by ONNX Runtime."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def agrees(graph, directory, *outputs, spec=None, opset=17, tolerance=2e-5):
    """The graph as a chain, which has to answer as ONNX Runtime does."""
    path = graph.save(directory, *outputs, opset=opset)
    converted = convert(path, spec)
    assert check(path, spec, converted, steps=16).largest <= tolerance
    return converted


def kinds(converted):
    """The layers, with the functions of the activations."""
    return [layer.keys.get("function", layer.kind) for layer in converted.spec.layers]


def refusal(graph, directory, *outputs, spec=None, kind=NotAChain, opset=17):
    """The sentence, without the file's path in front."""
    path = graph.save(directory, *outputs, opset=opset)
    with pytest.raises(kind) as caught:
        convert(path, spec)
    assert isinstance(caught.value, NotAChain) == (kind is NotAChain)
    return str(caught.value).removeprefix(f"{path}: ")
