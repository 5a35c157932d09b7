"""The same network in ONNX Runtime and PyTorch: one step of a batch, from states and ids to new states and logits.

    B rows of a batch    H size of the layer    V ids

Each is given its states as it likes them, gathered and in its own kind of array, and gives new ones back; nothing is looked up
and nothing chosen. One thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Step = Callable[[], Any]  # -> the new states, then the logits

CELLS = {"rnn": 1, "gru": 3, "lstm": 4}  # and how many gates each has
ORDERS = {"rnn": [0], "gru": [1, 0, 2], "lstm": [0, 3, 1, 2]}  # of ONNX's gates, in ours
ONE_HOT = 1000  # ids up to which those that take vectors get one-hot ones: a matrix of 50,000 by 50,000 fits nowhere


class Weights(NamedTuple):
    """Of one recurrent layer behind one-hot ids, and a dense layer: as the equations have them, with our order of gates."""

    wax: Array  # [gates * H, V]
    waa: Array  # [gates * H, H]
    ba: Array  # [gates * H]
    wya: Array  # [V, H]
    by: Array  # [V]


def steps(cell: str, weights: Weights, states: Array, ids: npt.NDArray[np.int64]) -> dict[str, Step]:
    """What is installed of ORT's operator, ORT's graph of products, and torch's cell; all on these states and ids."""
    found: dict[str, Step] = {}
    parts = np.split(states, 2, axis=1) if cell == "lstm" else [states]  # a, and the cell of an LSTM
    parts = [np.ascontiguousarray(part) for part in parts]
    try:
        found["ORT products"] = _products(cell, weights, parts, ids)
        if len(weights.by) <= ONE_HOT:
            found["ORT operator"] = _operator(cell, weights, parts, ids)
    except ImportError:
        pass
    try:
        if len(weights.by) <= ONE_HOT:
            found["torch cell"] = _torch(cell, weights, parts, ids)
    except ImportError:
        pass
    return found


def _session(nodes: list[Any], constants: dict[str, Any], given: dict[str, Array], outputs: list[str]) -> Step:
    """An ONNX graph of these nodes, and the call that runs it on what is given."""
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    kinds = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64}
    graph = helper.make_graph(
        nodes,
        "step",
        [helper.make_tensor_value_info(name, kinds[array.dtype], [None] * array.ndim) for name, array in given.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()],
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, given)


def _operator(cell: str, weights: Weights, parts: list[Array], ids: Any) -> Step:
    """RNN, GRU or LSTM as one operator, which takes one-hot vectors: rows of the identity."""
    from onnx.helper import make_node as node

    h = parts[0].shape[1]

    def ordered(matrix: Array) -> Array:
        return np.concatenate([matrix[gate * h : (gate + 1) * h] for gate in ORDERS[cell]])

    ba = ordered(weights.ba)
    constants = {
        "eye": np.eye(len(weights.by), dtype=np.float32),
        "W": ordered(weights.wax)[np.newaxis],
        "R": ordered(weights.waa)[np.newaxis],
        "B": np.concatenate([ba, np.zeros_like(ba)])[np.newaxis],
        "wya": weights.wya.T,
        "by": weights.by,
        "first": np.array([0]),
    }
    before, after = [f"before{i}" for i in range(len(parts))], [f"after{i}" for i in range(len(parts))]
    keys = {"hidden_size": h} | ({"linear_before_reset": 1} if cell == "gru" else {})
    nodes = [
        node("Gather", ["eye", "ids"], ["x"], axis=0),
        node("Unsqueeze", ["x", "first"], ["xs"]),
        node(cell.upper(), ["xs", "W", "R", "B", "", *before], ["", *after], **keys),
        node("Squeeze", ["after0", "first"], ["a"]),
        node("Gemm", ["a", "wya", "by"], ["y"]),
    ]
    given = {"ids": ids} | {name: part[np.newaxis] for name, part in zip(before, parts, strict=True)}
    return _session(nodes, constants, given, [*after, "y"])


def _products(cell: str, weights: Weights, parts: list[Array], ids: Any) -> Step:
    """A graph of MatMul, Tanh and Sigmoid; a column of wax, with ba, is gathered for each id, as we do it."""
    from onnx.helper import make_node as node

    h = parts[0].shape[1]
    constants = {"columns": weights.wax.T + weights.ba, "R": weights.waa.T, "wya": weights.wya.T, "by": weights.by}
    nodes = [node("Gather", ["columns", "ids"], ["drive"], axis=0), node("MatMul", ["before0", "R"], ["recur"])]
    if cell == "rnn":
        nodes += [node("Add", ["recur", "drive"], ["s"]), node("Tanh", ["s"], ["after0"])]
    elif cell == "gru":
        constants["sizes"] = np.array([2 * h, h])
        nodes += [
            node("Split", ["drive", "sizes"], ["drive_rz", "drive_n"], axis=1),
            node("Split", ["recur", "sizes"], ["recur_rz", "recur_n"], axis=1),
            node("Add", ["drive_rz", "recur_rz"], ["s_rz"]),
            node("Sigmoid", ["s_rz"], ["rz"]),
            node("Split", ["rz"], ["r", "z"], axis=1),
            node("Mul", ["r", "recur_n"], ["reset"]),
            node("Add", ["reset", "drive_n"], ["s_n"]),
            node("Tanh", ["s_n"], ["n"]),
            node("Sub", ["before0", "n"], ["old"]),
            node("Mul", ["old", "z"], ["kept"]),
            node("Add", ["kept", "n"], ["after0"]),
        ]
    else:
        constants["sizes"] = np.array([h, h, h, h])
        nodes += [node("Add", ["recur", "drive"], ["s"]), node("Split", ["s", "sizes"], ["si", "sf", "sg", "so"], axis=1)]
        nodes += [node("Sigmoid", [f"s{gate}"], [gate]) for gate in "ifo"] + [node("Tanh", ["sg"], ["g"])]
        nodes += [
            node("Mul", ["f", "before1"], ["kept"]),
            node("Mul", ["i", "g"], ["added"]),
            node("Add", ["kept", "added"], ["after1"]),
            node("Tanh", ["after1"], ["c"]),
            node("Mul", ["o", "c"], ["after0"]),
        ]
    nodes.append(node("Gemm", ["after0", "wya", "by"], ["y"]))
    given = {"ids": ids} | {f"before{i}": part for i, part in enumerate(parts)}
    return _session(nodes, constants, given, [*(f"after{i}" for i in range(len(parts))), "y"])


def _torch(cell: str, weights: Weights, parts: list[Array], ids: Any) -> Step:
    """RNNCell, GRUCell or LSTMCell on one-hot vectors, and a Linear."""
    import torch

    torch.set_num_threads(1)
    size, h = len(weights.by), parts[0].shape[1]
    kinds = {"rnn": torch.nn.RNNCell, "gru": torch.nn.GRUCell, "lstm": torch.nn.LSTMCell}
    layer, head, eye = kinds[cell](size, h), torch.nn.Linear(h, size), torch.eye(size)
    with torch.no_grad():
        for parameter, values in [
            (layer.weight_ih, weights.wax),
            (layer.weight_hh, weights.waa),
            (layer.bias_ih, weights.ba),
            (layer.bias_hh, np.zeros_like(weights.ba)),
            (head.weight, weights.wya),
            (head.bias, weights.by),
        ]:
            parameter.copy_(torch.from_numpy(values))
    before, tokens = [torch.from_numpy(part) for part in parts], torch.from_numpy(ids)

    def step() -> Any:
        with torch.inference_mode():
            after = layer(eye[tokens], tuple(before) if cell == "lstm" else before[0])
            after = after if cell == "lstm" else (after,)
            return [*after, head(after[0])]

    return step
