"""Trained networks of others (tests/golden/CREDITS.md), converted by the command and streamed through a real worker."""

from pathlib import Path

import numpy as np
import pytest

from .converting import G2P_DECODER, apart, convert, softmax, stream

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE, CELL_TOLERANCE = 2e-5, 5e-5  # the second, relative, for the cell of an LSTM, which reaches 45 here


def reference(name):
    with np.load(GOLDEN / name) as file:
        return dict(file)


def test_g2p_en(tmp_path):
    r = reference("g2p_en_part.npz")
    spec = G2P_DECODER | {"ignore": ["ids", "h", "logits"]}
    model = convert(GOLDEN / "g2p_en_part.npz", tmp_path / "g2p.safetensors", spec)
    states, probs = stream(model, tmp_path / "g2p.safetensors", r["ids"].tolist())
    assert apart(states, r["h"]) < TOLERANCE
    assert apart(probs, softmax(r["logits"])) < TOLERANCE
    assert np.ptp(probs.argmax(axis=1)) > 10  # it says something


@pytest.mark.parametrize("way", ["chain", "graph"])
def test_silero_vad(tmp_path, way):
    r = reference("silero_vad_lstm.npz")
    target = tmp_path / ("silero.safetensors" if way == "chain" else "silero.onnx")
    spec = {} if way == "chain" else {"states": {"h": "hn", "c": "cn"}}
    model = convert(GOLDEN / "silero_vad_lstm.onnx", target, spec)
    states, prob = stream(model, target, list(r["x"]))
    h, c = states[:, :128], states[:, 128:]
    assert apart(h, r["h"]) < TOLERANCE
    assert apart(c, r["c"]) < CELL_TOLERANCE
    assert apart(prob[:, 0], r["prob"].ravel()) < TOLERANCE
    assert r["prob"].max() > 0.9
    assert model.exact


def test_ao_gait_gru(tmp_path):
    r = reference("ao_gait_gru.npz")
    model = convert(GOLDEN / "ao_gait_gru.keras", tmp_path / "gait.safetensors", {})
    states, y = stream(model, tmp_path / "gait.safetensors", list(r["raw"]))
    assert apart(states[:, -16:], r["h"]) < TOLERANCE
    assert apart(y, r["y"]) < TOLERANCE
