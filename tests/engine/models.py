"""Small networks with a way to overflow."""

from __future__ import annotations

from typing import Any

import numpy as np

from rnnstream.model.network import Network
from rnnstream.model.spec import parse

V = 9
HUGE, SPOILED = V - 1, V - 2  # tokens of `relu`
DTYPES = ("float32", "float64")


def network(kind: str = "gru", *, seed: int = 0, vocabulary: bool = False, head: str = "categorical", **spec: Any) -> Network:
    """A network of one layer with random weights; tokens in, `V` ids, unless `spec` says otherwise."""
    words = [f"w{i}" for i in range(V)] if vocabulary else None
    parsed = parse(
        {
            "format": 1,
            "name": "test",
            "dtype": "float32",
            "input": {"kind": "token", "size": V} | ({"vocabulary": words} if words else {}),
            "layers": [{"kind": "onehot"}, {"kind": kind, "size": 7}, {"kind": "dense", "size": V}],
            "head": head,
            **spec,
        }
    )
    return Network(parsed, weights(parsed.shapes, parsed.dtype, seed), measure=False)


def weights(shapes: dict[str, tuple[int, ...]], dtype: str, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(-1, 1, shape).astype(dtype) for name, shape in sorted(shapes.items())}


def dense(head: str, dtype: str = "float32", seed: int = 0) -> Network:
    """Vectors of three numbers in, five outputs."""
    layers = [{"kind": "lstm", "size": 4}, {"kind": "dense", "size": 5}]
    return network(seed=seed, head=head, dtype=dtype, input={"kind": "dense", "size": 3}, layers=layers)


def relu(dtype: str = "float32", seed: int = 0, *, vocabulary: bool = False) -> Network:
    """A relu network that can leave the finite numbers.

    `HUGE` puts a state near the largest number, which the next tokens may or may not overflow; `SPOILED` is infinite from any
    state, the first one too; all others are ordinary.
    """
    words = {"vocabulary": [f"w{i}" for i in range(V)]} if vocabulary else {}
    spec = parse(
        {
            "format": 1,
            "name": "relu",
            "dtype": dtype,
            "input": {"kind": "token", "size": V, **words},
            "layers": [{"kind": "onehot"}, {"kind": "rnn", "size": 6, "activation": "relu"}, {"kind": "dense", "size": V}],
            "head": "categorical",
        }
    )
    tensors = weights(spec.shapes, dtype, seed)
    largest = np.finfo(dtype).max * 0.9
    tensors["waa"] *= 1.5
    tensors["ba"][0] = largest  # with the input's column: 0 for ordinary tokens, infinite for SPOILED
    tensors["wax"][0] = -largest
    tensors["wax"][0, SPOILED] = largest
    tensors["wax"][0, HUGE] = -largest / 2
    return Network(spec, tensors, measure=False)
