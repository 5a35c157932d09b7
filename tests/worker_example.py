"""The worker core behind the examples of docs/protocol.md, and how bytes are shown there."""

import io
import json
from typing import Any

import msgpack
import numpy as np

from rnnstream import Engine, Network
from rnnstream.model.spec import parse
from rnnstream.wire.limits import Limits
from rnnstream.worker.core import Core


def example_core() -> Core:
    """Four ids, "a" to "d", three hidden units, all weights zero: the bits are the same on every machine."""
    spec = parse(
        {
            "format": 1,
            "name": "four letters",
            "input": {"kind": "token", "size": 4, "vocabulary": ["a", "b", "c", "d"]},
            "layers": [{"kind": "onehot"}, {"kind": "rnn", "size": 3}, {"kind": "dense", "size": 4}],
            "head": "categorical",
        }
    )
    model = Network(spec, {name: np.zeros(shape, np.float32) for name, shape in spec.shapes.items()})
    model.numerics = "openblas 0.3.31 Haswell 120585e626a2ef6d"
    return Core(Engine(model), worker="6b1f0c2d9a3e4f58", version="0.1.0", limits=Limits())


def shown(body: bytes) -> str:
    """The maps of a body as JSON, bytes as "<bin hex>", a cut end as "...";"""
    maps = [json.dumps(item, default=lambda value: f"<bin {value.hex()}>") for item in _whole(body)]
    return " ".join(maps)


def _whole(body: bytes) -> list[Any]:
    return list(msgpack.Unpacker(io.BytesIO(body)))
