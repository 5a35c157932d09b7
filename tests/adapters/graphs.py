"""Small ONNX graphs of one step, made by hand, and the same steps in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

OPSET, IR = 17, 9  # that every supported onnxruntime takes
TYPES = {"f": TensorProto.FLOAT, "d": TensorProto.DOUBLE, "e": TensorProto.FLOAT16, "i": TensorProto.INT64}
K, H, V = 3, 8, 5
rng = np.random.default_rng(3)
WX, WH, WY, TABLE = (rng.uniform(-1, 1, shape).astype(np.float32) for shape in ((K, H), (H, H), (H, V), (V, K)))


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    """A node, its names separated by blanks; "-" is an input left out."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(kind, names, outputs.split(), **attributes)


def value(name: str, dims: Any, kind: str = "f") -> Any:
    return helper.make_tensor_value_info(name, TYPES[kind], dims)


def model(nodes: list[Any], inputs: list[Any], outputs: list[Any], tensors: dict[str, Any] | None = None, **opsets: int) -> Any:
    """The onnx.ModelProto."""
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in (tensors or {}).items()]
    graph = helper.make_graph(nodes, "by hand", inputs, outputs, initializers)
    imports = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(name, version) for name, version in opsets.items())]
    return helper.make_model(graph, opset_imports=imports, ir_version=IR)


def elman(
    x: Any = ("B", K),
    h: Any = ("B", H),
    *,
    names: tuple[str, str] = ("h", "hn"),
    ids: bool = False,
    end: str = "",
    dtype: str = "f",
    more: list[Any] | None = None,
    inputs: list[Any] | None = None,
    outputs: list[Any] | None = None,
) -> Any:
    """hn = tanh(x WX + h WH), y = hn WY, with x numbers or ids of TABLE's rows, and a function at the end.

    Args:
        x: dims of the token.
        h: dims of the state.
        names: of the state, before and after.
        ids: whether tokens are ids.
        end: "", or an operation behind y.
        dtype: of everything but ids.
        more, inputs, outputs: added to the graph.
    """
    kind = np.dtype(dtype)
    nodes = [node("Gather", "table x", "e")] if ids else []
    nodes += [
        node("MatMul", f"{'e' if ids else 'x'} wx", "dx"),
        node("MatMul", f"{names[0]} wh", "dh"),
        node("Add", "dx dh", "s"),
    ]
    nodes += [node("Tanh", "s", names[1]), node("MatMul", f"{names[1]} wy", "z" if end else "y")]
    if end:
        nodes.append(node(end, "z", "y", **({"axis": -1} if "Softmax" in end else {})))
    tensors = {"wx": WX.astype(kind), "wh": WH.astype(kind), "wy": WY.astype(kind)} | (
        {"table": TABLE.astype(kind)} if ids else {}
    )
    return model(
        nodes + (more or []),
        [value("x", x, "i" if ids else dtype), value(names[0], h, dtype), *(inputs or [])],
        [value("y", None, dtype), value(names[1], h, dtype), *(outputs or [])],
        tensors,
    )


def elman_by_hand(xs: Any, h: Any = None) -> tuple[Any, Any]:
    """The logits and the last state of `elman` over a sequence, in float64."""
    h, logits = np.zeros(H) if h is None else h, []
    for x in xs:
        h = np.tanh((TABLE[x] if np.ndim(x) == 0 else np.asarray(x, np.float32)) @ WX.astype(float) + h @ WH.astype(float))
        logits.append(h @ WY)
    return np.array(logits), h


def softmax(z: Any) -> Any:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def lstm(tokens: Any = 1) -> Any:
    """An LSTM with h0, c0 and hn, cn as torch.onnx.export names them, over so many tokens in one call."""
    weights = np.random.default_rng(4)
    tensors = {
        name: weights.uniform(-1, 1, shape).astype(np.float32)
        for name, shape in (("w", (1, 4 * H, K)), ("r", (1, 4 * H, H)), ("b", (1, 8 * H)))
    }
    return model(
        [node("LSTM", "x w r b - h0 c0", "y4 hn cn", hidden_size=H), node("Squeeze", "y4 one", "y")],
        [value("x", [tokens, "batch", K]), value("h0", [1, "batch", H]), value("c0", [1, "batch", H])],
        [value("y", [tokens, "batch", H]), value("hn", [1, "batch", H]), value("cn", [1, "batch", H])],
        tensors | {"one": np.array([1])},
    )
