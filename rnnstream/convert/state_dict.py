"""PyTorch's state_dicts, from .pt, .safetensors or .npz files: tensors by name, and no word about what stands between them.

H size of a recurrent layer    K inputs    N outputs    T tokens    V outputs of the network
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnstream.convert import equations, parts
from rnnstream.convert.arrays import arrays as read_arrays
from rnnstream.convert.gates import cell
from rnnstream.convert.hints import Hints
from rnnstream.convert.modules import (
    CELLS,
    RECURRENT,
    Module,
    guessed_order,
    modules,
    refuse_unused,
    said_order,
)
from rnnstream.convert.parts import Converted, Part, assemble
from rnnstream.errors import ModelError
from rnnstream.model.activations import ACTIVATIONS

Array = npt.NDArray[Any]
EPSILON = 1e-5  # of torch.nn.BatchNorm1d and LayerNorm, where nothing else is said; a state_dict does not have it


def read(path: Path, said: Hints) -> Converted:
    """The network in a file of arrays: PyTorch's names, or those of the equations.

    Raises:
        ModelError: as `convert` has it.
    """
    arrays, notes = read_arrays(path, said)
    if not arrays:
        raise ModelError("there is no tensor in it.")
    if said.start or said.stop or said.states or said.constants or said.batch or said.size:
        raise ModelError("`start`, `stop`, `states`, `constants`, `batch` and `size` in --spec are for ONNX graphs.")
    if equations.are_equations(arrays):
        return equations.network(arrays, said, path.stem, notes)
    chain = plan(arrays, said, notes)
    found = [part for module in chain for part in _parts(module, notes)]
    return _assemble(found, chain, said, path.stem, notes)


def plan(arrays: dict[str, Array], said: Hints, notes: list[str]) -> list[Module]:
    """The modules in their order, as --spec says or as only they can stand; every tensor is used.

    Raises:
        ModelError: the file does not say enough, or has too much.
    """
    if said.layers is not None:
        chain, used = said_order(arrays, said.layers)
        if not chain:
            raise ModelError("`layers` in --spec is empty.")
        refuse_unused(arrays, used)
        return chain
    chain = guessed_order(modules(arrays))
    notes.append("the parts are taken to follow one another directly: " + ", ".join(module.line() for module in chain) + ".")
    return chain


def _assemble(found: list[Part], chain: list[Module], said: Hints, name: str, notes: list[str]) -> Converted:
    first = chain[0]
    if not first.tensors:
        raise ModelError("layers[0] has no tensors; the first layer does, for they say how long a token is.")
    if any(module.name == "input" for module in chain) and any(module.said.get("residual") == "input" for module in chain):
        raise ModelError("A residual says 'input', which is the tokens and a module too; rename the module's tensors.")
    tokens = first.kind == "embedding" or said.input == "token"
    if said.input == "dense" and tokens:
        raise ModelError("`input` says dense, and the first layer is an embedding, which takes token ids.")
    size, head = first.inputs, said.head
    if head is None and found[-1].keys.get("function") in parts.HEADS:
        notes.append("the last activation is the head.")
    elif head is None:
        outputs = next(part.keys["size"] for part in reversed(found) if "size" in part.keys)
        head = "categorical" if tokens and outputs == size else "linear"
        why = "there are as many outputs as ids: softmax" if head == "categorical" else "outputs are given as they are"
        notes.append(f"the head is taken to be {head}, for {why}; `head` says otherwise.")
    return assemble(found, name=said.name or name, tokens=tokens, size=size, head=head, vocabulary=said.vocabulary, notes=notes)


def _parts(module: Module, notes: list[str]) -> list[Part]:
    """One module as parts of our chain."""
    tensors, said, name = module.tensors, module.said, module.name
    weight, bias = tensors.get("weight"), tensors.get("bias")
    if module.kind in CELLS.values():
        return _stack(module)
    if module.kind == "activation":
        return [parts.activation(_function(said["activation"]))]
    if module.kind == "pool":
        return [Part("pool", {"function": said["pool"], "window": said.get("window")})]
    if module.kind == "residual":
        return [Part("residual", {"of": said["residual"]})]
    if module.kind == "batchnorm":
        _needs(module, {"running_mean", "running_var"}, {"weight", "bias", "num_batches_tracked"})
        epsilon = _epsilon(module, notes)
        found = [parts.batch_norm(name, weight, bias, tensors["running_mean"], tensors["running_var"], epsilon)]
    else:
        _needs(module, {"weight"}, {"bias"} if module.kind != "embedding" else set())
        assert weight is not None
        if module.kind == "embedding":
            return [parts.embedding(name, weight)]
        if module.kind == "linear":
            found = [parts.dense(name, weight, bias)]
        elif module.kind == "layernorm":
            found = [parts.layer_norm(name, weight, bias, len(weight), weight.dtype, _epsilon(module, notes))]
        else:
            found = [_conv(module, notes)]
    if said.get("activation", "identity") != "identity":
        found[0].name, last = "", parts.activation(_function(said["activation"]), name)
        found.append(last)
    return found


def _stack(module: Module) -> list[Part]:
    """The layers of a torch.nn.RNN, GRU or LSTM, or its cell."""
    layers: dict[int, dict[str, Array]] = {}
    for leaf, tensor in module.tensors.items():
        found = RECURRENT.fullmatch(leaf)
        assert found
        layers.setdefault(int(found[3] or 0), {})[f"{found[1]}_{found[2]}"] = tensor
    g1 = module.said.get("activation")
    if module.kind == "rnn" and g1 not in ("tanh", "relu"):
        raise ModelError(
            f"{module.name} is a vanilla RNN, and the file does not say whether its nonlinearity is tanh or relu; write "
            f'layers = [..., {{from = "{module.name}", activation = "tanh"}}, ...] and pass it with --spec.'
        )
    biased = any(leaf.startswith("bias") for leaf in module.tensors)
    stack = []
    for number in range(max(layers) + 1):
        tensors = layers.get(number, {})
        where = f"{module.name} layer {number}" if len(layers) > 1 else module.name or module.kind
        for needed in ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if biased else ())):
            if needed not in tensors:
                raise ModelError(f"{where}: the tensor {needed} is missing.")
        bias = np.concatenate([tensors["bias_ih"], tensors["bias_hh"]]) if "bias_ih" in tensors else None
        kernel, recurrent = tensors["weight_ih"], tensors["weight_hh"]
        stack.append(cell(where, "torch", module.kind, kernel=kernel, recurrent=recurrent, bias=bias, activation=g1 or "tanh"))
    stack[-1].name = module.name
    return stack


def _conv(module: Module, notes: list[str]) -> Part:
    """A torch.nn.Conv1d, whose weights are [N, K, W]."""
    weight, dilation = module.tensors["weight"], module.said.get("dilation", 1)
    if weight.ndim != 3:
        raise ModelError(f"{module.name}.weight is {list(weight.shape)}; a convolution over time has [N, K, W].")
    if weight.shape[2] > 1 and module.said.get("causal") is not True:
        raise ModelError(
            f"{module.name} is a convolution over {weight.shape[2]} tokens, and the file does not say whether it looks ahead, "
            f"which cannot be streamed. Where (kernel - 1) * dilation zeros are padded in front and none behind, write "
            f'{{from = "{module.name}", causal = true}}.'
        )
    if weight.shape[2] > 1:
        notes.append(
            f"{module.name} is taken to have stride 1, one group, and dilation {dilation}, which its tensors do not tell."
        )
    return parts.conv(module.name, np.ascontiguousarray(weight.transpose(0, 2, 1)), module.tensors.get("bias"), dilation)


def _epsilon(module: Module, notes: list[str]) -> float:
    if "epsilon" not in module.said:
        notes.append(f"epsilon of {module.name} is taken to be {EPSILON:g}, PyTorch's default; `epsilon` says otherwise.")
    return module.said.get("epsilon", EPSILON)


def _function(name: Any) -> str:
    if name not in ACTIVATIONS:
        raise ModelError(f"The activation {name!r:.60} is not known here; these are: {', '.join(ACTIVATIONS)}.")
    return str(name)


def _needs(module: Module, needed: set[str], allowed: set[str]) -> None:
    for leaf in sorted(needed - set(module.tensors)):
        raise ModelError(f"{module.name or module.kind}: the tensor {leaf} is missing.")
    for leaf in sorted(set(module.tensors) - needed - allowed):
        raise ModelError(f"{module.name or module.kind}: the tensor {leaf} is not one of {module.kind}'s.")
