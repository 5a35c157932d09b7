"""PyTorch's state_dicts, converted and streamed, against PyTorch's own numbers (scripts/golden_torch.py)."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from rnnstream.convert import convert, gates

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "torch.npz")
CASES = sorted({name.partition("/")[0] for name in GOLDEN.files} - {"around"})
TOLERANCE, CELL_TOLERANCE = 2e-5, 5e-5


def converted(case, directory):
    path = directory / "network.safetensors"
    path.write_bytes(GOLDEN[f"{case}/file"].tobytes())
    said = str(GOLDEN[f"{case}/spec"])
    return convert(path, json.loads(said) if said else None)


def worst(case, directory):
    """The largest difference from PyTorch over all outputs and last states, in multiples of its tolerance."""
    model = converted(case, directory).network()
    a, found = model.initial_state(), []
    for x, expected in zip(GOLDEN[f"{case}/xs"], GOLDEN[f"{case}/output"], strict=True):
        a, _ = model.step(a, x)
        logits = model.head(model.features(a[np.newaxis]))[0]
        assert logits.shape == expected.shape
        found.append(np.abs(logits - expected).max() / TOLERANCE)
    h = GOLDEN[f"{case}/h"]
    parts = a.reshape(len(h), -1)  # [L, H], or for an LSTM [L, 2H]
    found.append(np.abs(parts[:, : h.shape[1]] - h).max() / TOLERANCE)
    if "lstm" in case:
        found.append(np.abs(parts[:, h.shape[1] :] - GOLDEN[f"{case}/c"]).max() / CELL_TOLERANCE)
    return max(found)


def test_the_matrix_is_whole():
    cells, layers, kinds = ("gru", "lstm", "rnn_relu", "rnn_tanh"), (1, 2, 3), ("dense", "token")
    assert [f"{c}_{n}_{k}" for c in cells for n in layers for k in kinds] == CASES


@pytest.mark.parametrize("case", CASES)
def test_pytorch_agrees(case, tmp_path):
    assert worst(case, tmp_path) < 1


def orders(kind):
    """The gates of a cell with two of them exchanged, in every way."""
    right = gates.LAYOUTS["torch", kind].gates
    for one, other in itertools.combinations(range(len(right)), 2):
        wrong = list(right)
        wrong[one], wrong[other] = wrong[other], wrong[one]
        yield "".join(wrong)


@pytest.mark.parametrize(("kind", "order"), [(kind, order) for kind in ("gru", "lstm") for order in orders(kind)])
def test_gates_in_another_order_would_be_seen(kind, order, tmp_path, monkeypatch):
    monkeypatch.setitem(gates.LAYOUTS, ("torch", kind), gates.Layout(order, "rows"))
    assert all(worst(case, tmp_path) > 1000 for case in CASES if case.startswith(kind))


def test_halves_of_the_bias_in_another_order_would_be_seen(tmp_path, monkeypatch):
    monkeypatch.setitem(gates.LAYOUTS, ("torch", "gru"), gates.Layout("rzn", "rows", ("recurrent", "input")))
    assert all(worst(case, tmp_path) > 1000 for case in CASES if case.startswith("gru"))


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("case", CASES)
def test_a_forgotten_half_of_the_bias_would_be_seen(case, half, tmp_path, monkeypatch):
    halves = gates._halves

    def forget(*arguments):
        found = list(halves(*arguments))
        found[half] = np.zeros_like(found[half])
        return tuple(found)

    monkeypatch.setattr(gates, "_halves", forget)
    assert worst(case, tmp_path) > 1000


def test_a_reset_at_another_place_would_be_seen(tmp_path, monkeypatch):
    monkeypatch.setitem(gates.RESETS, ("torch", None), "before")
    assert all(worst(case, tmp_path) > 1000 for case in CASES if case.startswith("gru"))


def test_what_may_stand_around_the_cells(tmp_path):
    found = converted("around", tmp_path)
    assert found.has_head
    assert np.abs(found.network().forward(list(GOLDEN["around/xs"])) - GOLDEN["around/output"]).max() < TOLERANCE
    kinds = [layer.kind for layer in found.spec.layers]
    assert kinds == ["conv", "activation", "scale", "pool", "dense", "activation", "gru", "residual", "layernorm", "dense"]
