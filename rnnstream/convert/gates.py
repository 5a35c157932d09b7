"""The one table of how frameworks lay out their recurrent cells, and the function that brings any of them into ours.

    G gates of a cell (1, 3 or 4)    H its size    K its inputs

Readers know names and arrays; what the rows and columns of an array mean is said here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rnnstream.convert.parts import Part
from rnnstream.errors import ModelError

Array = npt.NDArray[Any]

OURS = {"rnn": "a", "gru": "rzn", "lstm": "ifgo"}  # the blocks of waa, wax, ba in a model file: docs/model-format.md


@dataclass(frozen=True)
class Layout:
    """How one framework stacks the gates of one cell.

    Attributes:
        gates: the blocks in their order in memory, in the letters of our equations.
        matrix: "rows": matrices are [G * H, K], as in the equations. "columns": [K, G * H], their transpose. "cudnn": they say
            that they are [K, G * H], and each block is the memory of an [H, K] matrix.
        halves: which product the first and the second half of a bias of 2 * G * H numbers belong to.
    """

    gates: str
    matrix: Literal["rows", "columns", "cudnn"]
    halves: tuple[str, str] = ("input", "recurrent")


LAYOUTS = {
    ("torch", "rnn"): Layout("a", "rows"),  # torch.nn.RNN, GRU, LSTM and their cells: documentation of the classes
    ("torch", "gru"): Layout("rzn", "rows"),
    ("torch", "lstm"): Layout("ifgo", "rows"),
    ("keras", "rnn"): Layout("a", "columns"),  # keras/src/layers/rnn: np.split in the cells' call()
    ("keras", "gru"): Layout("zrn", "columns"),
    ("keras", "lstm"): Layout("ifgo", "columns"),
    ("cudnn", "gru"): Layout("zrn", "cudnn"),  # CuDNNGRU, CuDNNLSTM of Keras 2: saving/hdf5_format.py, _convert_rnn_weights
    ("cudnn", "lstm"): Layout("ifgo", "cudnn"),
    ("onnx", "rnn"): Layout("a", "rows"),  # onnx/docs/Operators.md: RNN, GRU (zrh), LSTM (iofc)
    ("onnx", "gru"): Layout("zrn", "rows"),
    ("onnx", "lstm"): Layout("iofg", "rows"),
}

# Where a GRU's reset gate works: on the product with waa ("after"), or on the state that goes into it ("before").
RESETS: dict[tuple[str, object], str] = {
    ("torch", None): "after",
    ("cudnn", None): "after",
    ("keras", True): "after",  # reset_after
    ("keras", False): "before",
    ("onnx", 1): "after",  # linear_before_reset
    ("onnx", 0): "before",
}


def cell(
    where: str,
    framework: str,
    kind: str,
    *,
    kernel: Array,
    recurrent: Array,
    bias: Array | None = None,
    reset: object = None,
    activation: str = "tanh",
    gate: str = "sigmoid",
) -> Part:
    """One recurrent layer as a part of the chain.

    Args:
        where: what the layer is called in its file, for errors.
        framework: "torch", "keras", "cudnn" or "onnx".
        kind: "rnn", "gru" or "lstm".
        kernel: the matrix on x<t>, as the framework has it.
        recurrent: the matrix on a<t-1>.
        bias: G * H numbers, or 2 * G * H in two halves, in any shape; None for a layer without.
        reset: of a GRU, what the framework says about its reset gate: the second half of a key of `RESETS`.
        activation: g1.
        gate: the function of the gates.

    Raises:
        ModelError: shapes that do not fit together, or do not fit the kind.
    """
    layout, gates = LAYOUTS[framework, kind], len(OURS[kind])
    wax, waa = _rows(where, kernel, gates, layout), _rows(where, recurrent, gates, layout)
    h = waa.shape[1]
    if waa.shape[0] != gates * h or wax.shape[0] != gates * h:
        raise ModelError(
            f"{where} is a {kind} of {gates} gates whose matrices are {list(kernel.shape)} on the input and "
            f"{list(recurrent.shape)} on the state; these do not fit together."
        )
    halves = dict(zip(layout.halves, _halves(where, bias, gates * h, waa.dtype), strict=True))
    order = [layout.gates.index(letter) for letter in OURS[kind]]

    def ours(array: Array) -> Array:
        return np.concatenate([array[block * h : (block + 1) * h] for block in order])

    tensors = {"waa": ours(waa), "wax": ours(wax)}
    ba, bh = ours(halves["input"]), ours(halves["recurrent"])
    keys: dict[str, Any] = {"size": h, "activation": activation}
    if kind != "rnn":
        keys["gate"] = gate
    if kind == "gru":
        keys["reset"] = RESETS[framework, reset]
        if keys["reset"] == "after":  # the candidate's recurrent bias is under the reset gate, so it stays by itself
            tensors["bh"] = bh[2 * h :].copy()
            bh[2 * h :] = 0
    return Part(kind, keys, tensors | {"ba": ba + bh}, name=where)


def _rows(where: str, matrix: Array, gates: int, layout: Layout) -> Array:  # -> [G * H, K]
    if matrix.ndim != 2 or matrix.shape[layout.matrix != "rows"] % gates:
        raise ModelError(f"{where}: a matrix has the shape {list(matrix.shape)}; it has to hold {gates} blocks.")
    if layout.matrix == "rows":
        return matrix
    if layout.matrix == "columns":
        return matrix.T
    blocks = np.split(matrix, gates, axis=1)  # each says [K, H]
    return np.concatenate([np.ascontiguousarray(block).reshape(block.shape[::-1]) for block in blocks])


def _halves(where: str, bias: Array | None, size: int, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    if bias is None:
        return np.zeros(size, dtype), np.zeros(size, dtype)
    if bias.size == size:
        return bias.reshape(size), np.zeros(size, dtype)
    if bias.size == 2 * size:
        first, second = bias.reshape(2, size)
        return first, second
    raise ModelError(f"{where}: the bias has the shape {list(bias.shape)}; the layer takes {size} numbers, or twice as many.")
