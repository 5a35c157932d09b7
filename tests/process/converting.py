"""A file of another framework, converted by the command, served by a real worker, and streamed token by token."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import rnnstream
from rnnstream.engine.snapshot import decode, encode
from tests.worker_process import DEADLINE_S, serving


def convert(source: Path, target: Path, spec: dict[str, Any]) -> rnnstream.StepModel:
    """`rnnstream convert`, and what it wrote."""
    said = target.with_suffix(".json")
    said.write_text(json.dumps(spec))
    command = [sys.executable, "-m", "rnnstream", "convert", str(source), str(target), "--spec", str(said)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    return rnnstream.load(target)


def stream(model: rnnstream.StepModel, path: Path, xs: list, start: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Every token through a worker: the states [T, S] and the outputs [T, V] (the probabilities of a categorical head)."""
    states, outputs = [], []
    with serving(path) as (address, _), rnnstream.Client(address) as client:
        session = client.session("real")
        if start is not None:
            session.open(encode(start, 0, model.digest))
        for x in xs:
            prediction = session.step(x, want="probs" if model.output.kind == "categorical" else "argmax")
            outputs.append(prediction.y if prediction.probs is None else prediction.probs)
            state, t = decode(session.snapshot(), dtype=model.dtype, state_size=model.state_size, digest=model.digest)
            assert t == len(outputs)
            states.append(state)
    return np.array(states), np.array(outputs)


def apart(got: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative where the numbers are larger than 1."""
    assert got.shape == expected.shape
    return float((np.abs(got - expected) / np.maximum(1, np.abs(expected))).max())


def softmax(logits: np.ndarray) -> np.ndarray:  # [T, V] -> [T, V]
    e = np.exp(logits.astype(float) - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


G2P_DECODER = {
    "name": "g2p decoder",
    "ignore": ["enc_*"],
    "layers": [
        {"kind": "embedding", "weight": "dec_emb"},
        {"weight_ih": "dec_w_ih", "weight_hh": "dec_w_hh", "bias_ih": "dec_b_ih", "bias_hh": "dec_b_hh"},
        {"weight": "fc_w", "bias": "fc_b"},
    ],
}
