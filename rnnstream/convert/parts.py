"""What every reader gives back: the parts of a chain, and how they become a specification and its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnstream.errors import ModelError
from rnnstream.model.network import Network, check_tensors
from rnnstream.model.spec import Spec, parse

Array = npt.NDArray[Any]

HEADS = {"softmax": "categorical", "sigmoid": "bernoulli"}  # an activation at the end, and the head that it is


@dataclass
class Part:
    """One layer of a chain.

    Attributes:
        kind: as in a model file's `layers`.
        keys: its keys there; the `of` of a residual is the `name` of a part, or "" or "input".
        tensors: by their names in the equations, without a number: waa, wax, ba, bh, w, b, e, s.
        name: what it is called in its file.
    """

    kind: str
    keys: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Array] = field(default_factory=dict)
    name: str = ""


@dataclass
class Converted:
    """A network out of another framework's file.

    Attributes:
        spec: its specification.
        tensors: by their names in the model file.
        notes: sentences about what the file did not say and was taken to be so, and what was left out because it changes
            nothing here.
        has_head: the file has g2, so that its own outputs are y<t>; otherwise they are the logits.
    """

    spec: Spec
    tensors: dict[str, Array]
    notes: list[str]
    has_head: bool

    def network(self) -> Network:
        """The network, ready to step."""
        return Network(self.spec, self.tensors)


def assemble(
    parts: list[Part],
    *,
    name: str,
    tokens: bool,
    size: int,
    head: str | None,
    vocabulary: list[str] | None = None,
    notes: list[str] | None = None,
) -> Converted:
    """The chain as a specification and tensors.

    Args:
        parts: first layer first.
        name: of the model.
        tokens: the input is ids; behind no embedding they are one-hot.
        size: how many ids, or numbers of a dense token.
        head: of the specification; None: what the last activation says. One that says the same becomes the head.
        vocabulary: for token input.
        notes: handed on.

    Raises:
        ModelError: the chain does not fit together.
    """
    parts = [part for part in parts if part.kind != "activation" or part.keys["function"] != "identity"]
    last = HEADS.get(parts[-1].keys.get("function", "")) if parts else None
    has_head = last is not None and head in (None, last)
    if has_head:
        parts = parts[:-1]
    head = head or last or "linear"
    if tokens and (not parts or parts[0].kind != "embedding"):
        parts = [Part("onehot"), *parts]
    numbers = {"": 0, "input": 0} | {part.name: number for number, part in enumerate(parts, 1) if part.name}
    layers = []
    for part in parts:
        if part.kind == "residual" and part.keys["of"] not in numbers:
            raise ModelError(f"A residual adds the output of {part.keys['of']!r:.60}; these are there: {_names(numbers)}.")
        keys = {"of": numbers[part.keys["of"]]} if part.kind == "residual" else part.keys
        layers.append({"kind": part.kind, **keys})
    dtype = _dtype([tensor for part in parts for tensor in part.tensors.values()])
    source: dict[str, Any] = {"kind": "token" if tokens else "dense", "size": size}
    if vocabulary is not None:
        source["vocabulary"] = vocabulary
    spec = parse({"format": 1, "name": name[:200], "dtype": dtype, "input": source, "layers": layers, "head": head})
    tensors: dict[str, Array] = {}
    for part, layer in zip(parts, spec.layers, strict=True):
        for equation, array in part.tensors.items():
            tensors[layer.tensors[equation]] = np.ascontiguousarray(array, dtype)
    check_tensors(spec, tensors)
    return Converted(spec, tensors, notes or [], has_head)


def dense(name: str, w: Array, b: Array | None) -> Part:  # [N, K], [N]
    """A dense layer; without a bias, zeros."""
    if w.ndim != 2 or (b is not None and b.shape != w.shape[:1]):
        raise ModelError(f"{name}: a matrix {list(w.shape)} and a bias {list(b.shape) if b is not None else ''} do not fit.")
    return Part("dense", {"size": len(w)}, {"w": w, "b": np.zeros(len(w), w.dtype) if b is None else b}, name)


def embedding(name: str, table: Array) -> Part:  # [V, N]
    """A table of vectors, one for each id."""
    if table.ndim != 2:
        raise ModelError(f"{name}: an embedding has the shape {list(table.shape)}; it has two dimensions.")
    return Part("embedding", {"size": table.shape[1]}, {"e": table}, name)


def activation(function: str, name: str = "") -> Part:
    """An activation, by our name for it."""
    return Part("activation", {"function": function}, name=name)


def batch_norm(
    name: str, gamma: Array | None, beta: Array | None, mean: Array, variance: Array, epsilon: float
) -> Part:  # all [K]
    """Batch normalisation, its statistics folded into one factor and one offset for each feature."""
    s = (1.0 if gamma is None else gamma.astype(float)) / np.sqrt(variance.astype(float) + epsilon)
    b = (0.0 if beta is None else beta) - mean * s
    return Part("scale", {}, {"s": s.astype(mean.dtype), "b": b.astype(mean.dtype)}, name)


def layer_norm(name: str, gamma: Array | None, beta: Array | None, size: int, dtype: Any, epsilon: float) -> Part:
    """Layer normalisation over the features of a token."""
    s = np.ones(size, dtype) if gamma is None else gamma
    b = np.zeros(size, dtype) if beta is None else beta
    return Part("layernorm", {"epsilon": epsilon}, {"s": s, "b": b}, name)


def conv(name: str, w: Array, b: Array | None, dilation: int = 1) -> Part:  # [N, W, K], [N]
    """A causal convolution over time, the oldest token's weights first; over one token it is a dense layer."""
    if w.shape[1] == 1:
        return dense(name, w[:, 0], b)
    keys = {"size": len(w), "kernel": w.shape[1], "dilation": dilation}
    return Part("conv", keys, {"w": w, "b": np.zeros(len(w), w.dtype) if b is None else b}, name)


def _dtype(tensors: list[Array]) -> str:
    """float64 where a tensor is; everything else, halves included, is exact in float32."""
    return "float64" if any(tensor.dtype == np.float64 for tensor in tensors) else "float32"


def _names(numbers: Mapping[str, int]) -> str:
    return ", ".join(repr(name) for name in numbers if name) or "none"
