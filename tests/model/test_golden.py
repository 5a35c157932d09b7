"""The network with PyTorch's weights against PyTorch's own numbers (tests/golden, by scripts/make_golden.py)."""

from pathlib import Path

import numpy as np
import pytest

from rnnstream.model.network import Network

GOLDEN = Path(__file__).parents[1] / "golden" / "torch_cells.npz"
TOLERANCE = 1e-5
DENSE = [f"{cell}_{layers}" for cell in ("rnn_tanh", "rnn_relu", "gru", "lstm") for layers in (1, 2)]
TOKEN = ["token_rnn_tanh_1", "token_gru_1"]


def golden(case):
    with np.load(GOLDEN) as file:
        return {key.partition("/")[2]: file[key] for key in file if key.startswith(f"{case}/")}


def cell_tensors(torch, layer, number, kind):
    """One recurrent layer of PyTorch under our names."""
    w_ih, w_hh, b_ih, b_hh = (torch[f"{name}_l{layer}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    h = w_hh.shape[1]
    tensors = {f"waa{number}": w_hh, f"wax{number}": w_ih}
    if kind == "gru":
        ba = b_ih.copy()
        ba[: 2 * h] += b_hh[: 2 * h]
        return tensors | {f"ba{number}": ba, f"bh{number}": b_hh[2 * h :]}
    return tensors | {f"ba{number}": b_ih + b_hh}


def translate(case, torch):
    """The specification and tensors that stand for a case."""
    kind = next(kind for kind in ("rnn", "gru", "lstm") if f"{kind}_" in case)
    size = torch["weight_hh_l0"].shape[1]
    cell = {"kind": kind, "size": size} | ({"activation": "relu"} if "relu" in case else {})
    layers = [cell] * int(case[-1])
    if case in TOKEN:
        first = {"kind": "embedding", "size": 4} if "gru" in case else {"kind": "onehot"}
        layers = [first, *layers, {"kind": "dense", "size": 6}]
    ids = case in TOKEN
    spec = {
        "format": 1,
        "input": {"kind": "token", "size": 6} if ids else {"kind": "dense", "size": torch["x"].shape[1]},
        "layers": layers,
        "head": "categorical" if ids else "linear",
    }
    tensors = {"wya": torch["linear.weight"], "by": torch["linear.bias"]} if ids else {}
    if "embedding.weight" in torch:
        tensors["e1"] = torch["embedding.weight"]
    plain = kind == "rnn" and case[-1] == "1"
    for layer in range(int(case[-1])):
        tensors |= cell_tensors(torch, layer, "" if plain else layer + 1 + ids, kind)
    return spec, tensors


def worst(model, torch):
    """The largest difference from PyTorch, over every number that the file holds."""
    kind = model.spec.layers[-1 - ("logits" in torch)].kind
    a, found = model.initial_state(), []
    for t, x in enumerate(torch["ids"] if "ids" in torch else torch["x"]):
        a, y = model.step(a, x)
        features = model.features(a[np.newaxis])
        found.append(features[0] - torch["output"][t])
        if "logits" in torch:
            found.append(model.head(features)[0] - torch["logits"][t])
        found.append(y - torch["probabilities" if "logits" in torch else "output"][t])
    parts = a.reshape(len(torch["h_n"]), -1)  # [L, H] or [L, 2H]
    h = torch["h_n"].shape[1]
    found.append((parts[:, :h] - torch["h_n"]).ravel())
    if kind == "lstm":
        found.append((parts[:, h:] - torch["c_n"]).ravel())
    else:
        assert parts.shape == torch["h_n"].shape
    return max(float(np.abs(numbers).max()) for numbers in found)


@pytest.mark.parametrize("case", DENSE + TOKEN)
def test_pytorch_agrees(case):
    torch = golden(case)
    assert worst(Network(*translate(case, torch)), torch) < TOLERANCE


def swapped(tensors, one, other, gates):
    """The tensors of the last recurrent layer with two of its gates exchanged."""
    number = max(name[3:] for name in tensors if name.startswith("waa"))
    tensors = dict(tensors)
    for name in (f"waa{number}", f"wax{number}", f"ba{number}"):
        parts = np.split(tensors[name], gates)
        parts[one], parts[other] = parts[other], parts[one]
        tensors[name] = np.concatenate(parts)
    return tensors


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [("gru", 0, 1), ("gru", 0, 2), ("gru", 1, 2)] + [("lstm", one, other) for one in range(4) for other in range(one)],
)
def test_another_order_of_the_gates_would_be_seen(kind, one, other, layers):
    torch = golden(f"{kind}_{layers}")
    spec, tensors = translate(f"{kind}_{layers}", torch)
    assert worst(Network(spec, swapped(tensors, one, other, 3 if kind == "gru" else 4)), torch) > 1000 * TOLERANCE


@pytest.mark.parametrize("half", ["bias_ih_l", "bias_hh_l"])
@pytest.mark.parametrize("case", DENSE + TOKEN)
def test_a_forgotten_half_of_the_bias_would_be_seen(case, half):
    torch = golden(case)
    last = int(case[-1]) - 1
    changed = torch | {f"{half}{last}": np.zeros_like(torch[f"{half}{last}"])}
    assert worst(Network(*translate(case, changed)), torch) > 1000 * TOLERANCE


@pytest.mark.parametrize("case", ["gru_1", "gru_2", "token_gru_1"])
def test_the_gru_s_own_bias_is_not_the_common_one(case):
    torch = golden(case)
    spec, tensors = translate(case, torch)
    number = max(name[2:] for name in tensors if name.startswith("bh"))
    ba, bh = tensors[f"ba{number}"].copy(), tensors[f"bh{number}"]
    ba[-len(bh) :] += bh
    assert worst(Network(spec, tensors | {f"ba{number}": ba, f"bh{number}": np.zeros_like(bh)}), torch) > 1000 * TOLERANCE


@pytest.mark.parametrize("case", ["gru_1", "gru_2"])
def test_reset_before_is_another_cell(case):
    torch = golden(case)
    spec, tensors = translate(case, torch)
    spec["layers"] = [layer | {"reset": "before"} for layer in spec["layers"]]
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("bh")}
    assert worst(Network(spec, tensors), torch) > 1000 * TOLERANCE
