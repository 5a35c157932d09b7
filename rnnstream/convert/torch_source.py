"""PyTorch itself running the modules of a state_dict, to be held against the converted network.

H size of a layer    T tokens    V outputs
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnstream.convert.arrays import arrays as read_arrays
from rnnstream.convert.hints import Hints
from rnnstream.convert.modules import CELLS, Module
from rnnstream.convert.parts import Converted
from rnnstream.convert.state_dict import EPSILON, plan

Array = npt.NDArray[Any]


def run_source(path: Path, said: Hints, converted: Converted, xs: Sequence[Any]) -> tuple[str, Array]:
    """The whole sequence through PyTorch's own modules, made of the file's own tensors: (what ran, outputs [T, V])."""
    import torch

    arrays, notes = read_arrays(path, said)
    chain = plan(arrays, said, notes)
    spec = converted.spec
    dtype = torch.float64 if spec.dtype == "float64" else torch.float32
    with torch.inference_mode():
        x: Any = torch.tensor(np.asarray(xs))
        if spec.input_kind == "token" and chain[0].kind != "embedding":
            x = torch.nn.functional.one_hot(x, spec.input_size)
        x = x if spec.input_kind == "token" and chain[0].kind == "embedding" else x.to(dtype)
        outputs = {"input": x}
        for module in chain:
            x = _apply(module, x, outputs, dtype)
            outputs[module.name] = x
    return f"modules of torch {torch.__version__}, made of the file's tensors", x.numpy()


def _apply(module: Module, x: Any, outputs: dict[str, Any], dtype: Any) -> Any:  # [T, K] -> [T, N]
    """One module over the whole sequence."""
    import torch

    tensors = {leaf: torch.tensor(array) for leaf, array in module.tensors.items()}
    tensors = {leaf: tensor.to(dtype) if tensor.is_floating_point() else tensor for leaf, tensor in tensors.items()}
    weight: Any = tensors.get("weight")
    bias, said, functional = tensors.get("bias"), module.said, torch.nn.functional
    if module.kind in CELLS.values():
        return _recurrent(module, tensors, x)
    if module.kind == "residual":
        return x + outputs[said["residual"]]
    if module.kind == "pool":
        padded = functional.pad(x.T, (said["window"] - 1, 0))
        pool = functional.avg_pool1d if said["pool"] == "mean" else functional.max_pool1d
        return pool(padded[None], said["window"], 1)[0].T
    if module.kind == "embedding":
        y = functional.embedding(x, weight)
    elif module.kind == "linear":
        y = functional.linear(x, weight, bias)
    elif module.kind == "layernorm":
        y = functional.layer_norm(x, (x.shape[1],), weight, bias, said.get("epsilon", EPSILON))
    elif module.kind == "batchnorm":
        statistics = tensors["running_mean"], tensors["running_var"]
        y = functional.batch_norm(x, *statistics, weight, bias, False, 0.0, said.get("epsilon", EPSILON))
    elif module.kind == "conv":
        dilation = said.get("dilation", 1)
        padded = functional.pad(x.T, ((weight.shape[2] - 1) * dilation, 0))
        y = functional.conv1d(padded[None], weight, bias, dilation=dilation)[0].T
    else:
        y = x
    return _function(said["activation"])(y) if "activation" in said else y


def _recurrent(module: Module, tensors: dict[str, Any], x: Any) -> Any:  # [T, K] -> [T, H]
    import torch

    names = {leaf if leaf.rpartition("_")[2].startswith("l") else f"{leaf}_l0": tensor for leaf, tensor in tensors.items()}
    layers = sum(leaf.startswith("weight_hh") for leaf in names)
    make: Any = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[module.kind]
    more = {"nonlinearity": module.said["activation"]} if module.kind == "rnn" else {}
    cell = make(module.inputs, module.outputs, layers, bias=any(leaf.startswith("bias") for leaf in names), **more).to(x.dtype)
    cell.load_state_dict(names)
    return cell(x)[0]


def _function(name: str) -> Any:
    import torch

    functional = torch.nn.functional
    return {
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "relu": torch.relu,
        "hard_sigmoid": functional.hardsigmoid,
        "hard_sigmoid_fifth": lambda z: torch.clamp(0.2 * z + 0.5, 0, 1),
        "hard_tanh": functional.hardtanh,
        "relu6": functional.relu6,
        "elu": functional.elu,
        "selu": functional.selu,
        "softplus": functional.softplus,
        "softsign": functional.softsign,
        "silu": functional.silu,
        "exponential": torch.exp,
        "softmax": lambda z: torch.softmax(z, -1),
        "unit_length": lambda z: functional.normalize(z, dim=-1),
        "identity": lambda z: z,
    }[name]
