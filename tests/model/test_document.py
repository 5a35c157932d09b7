"""docs/model-format.md: its examples run, its tables are those of the code."""

import re
from pathlib import Path

import numpy as np
import pytest

from rnnstream.model.file import load
from rnnstream.model.network import Network
from rnnstream.model.spec import HEADS, LARGEST, LAYERS, TAKE_ONEHOT, parse

from .nets import activation, dense, embedding, gru, lstm, onehot, rnn
from .test_golden import DENSE, TOLERANCE, golden, translate, worst

TEXT = (Path(__file__).parents[2] / "docs" / "model-format.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def table(header):
    """The cells of the table with this head, row by row."""
    lines = TEXT[TEXT.index(f"\n{header}\n") + 1 :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def keys_of(kind):
    """The keys of a layer kind, in the words of the document."""
    row = LAYERS[kind]
    words = []
    for key, allowed in row.keys.items():
        values = [value + " (if absent)" if value == row.defaults.get(key) else value for value in allowed or ()]
        words.append(f"`{key}`" + (": " + ", ".join(values) if values else ""))
    return ", ".join(words)


def number(text, k, size):
    """What 3H or K stands for."""
    factor, letter = re.fullmatch(r"(\d*)([KHN])", text).groups()
    return int(factor or 1) * (k if letter == "K" else size)


def test_the_table_of_layers():
    rows = table("| kind | keys | tensors | numbers of state | outputs |")
    assert [row[0] for row in rows] == [f"`{kind}`" for kind in LAYERS]
    for kind, keys, tensors, state, outputs in rows:
        row = LAYERS[kind.strip("`")]
        assert keys == keys_of(kind.strip("`"))
        always, _, after = tensors.partition(", with reset after ")
        for reset in ("after", "before"):
            given = {"size": 7} | ({"reset": reset} if "reset" in row.keys else {})
            shapes = {
                name: tuple(number(side, 5, 7) for side in sides.split(", "))
                for name, sides in re.findall(r"`(\w+)#` \[(.*?)\]", always + (after if reset == "after" else ""))
            }
            assert row.tensors(5, given) == shapes
            assert row.state(given) == (0 if state == "0" else number(state, 5, 7))
        assert outputs == ("K" if "size" not in row.keys else "H" if row.state({"size": 1}) else "N")


def test_the_table_of_names():
    build = {"onehot": onehot(), "embedding": embedding(4), "dense": dense(4), "activation": activation("tanh")}
    build |= {"rnn": rnn(4), "gru": gru(4), "lstm": lstm(4)}
    rows = table("| layers | tensors |")
    assert len(rows) == 5
    for layers, names in rows:
        chain = [build[kind] for kind in layers.split(", ")]
        token = chain[0]["kind"] in ("onehot", "embedding")
        spec = {"format": 1, "input": {"kind": "token" if token else "dense", "size": 4}, "layers": chain, "head": "linear"}
        assert list(parse(spec).shapes) == names.replace("`", "").split()


def test_the_keys_and_values():
    spec = parse({"format": 1, "input": {"kind": "dense", "size": 1}, "layers": [dense(1)], "head": "linear"})
    rows = table("| key | value |")
    assert {row[0].strip("`") for row in rows} == set(spec.json)
    assert all(f'`"{head}"`' in dict(rows)["`head`"] for head in HEADS)
    assert f"an int from 1 to {LARGEST:,} |" in TEXT
    *some, last = TAKE_ONEHOT
    assert f"Behind `onehot` comes {', '.join(f'`{kind}`' for kind in some)} or `{last}`." in TEXT


def test_the_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(compile(BLOCKS[0], "docs/model-format.md", "exec"), found)
    model = load(tmp_path / "words.safetensors")
    assert model.name == "three words"
    assert found["ys"].shape == (4, 3)
    w = found["tensors"]
    a = np.zeros(4)
    for x, y in zip((0, 1, 2, 0), found["ys"], strict=True):
        a = np.tanh(w["waa"].astype(float) @ a + w["wax"][:, x] + w["ba"])
        e = np.exp(w["wya"].astype(float) @ a + w["by"])
        assert np.abs(y - e / e.sum()).max() < 1e-6


@pytest.mark.parametrize("case", DENSE)
def test_the_function_for_pytorch(case):
    found = {}
    exec(compile(BLOCKS[1], "docs/model-format.md", "exec"), found)
    torch = golden(case)
    spec, tensors = translate(case, torch)
    count = len(spec["layers"])
    mine = {}
    for layer in range(count):
        parts = [torch[f"{name}_l{layer}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        kind = spec["layers"][0]["kind"]
        mine |= found["from_torch"](kind, "" if (kind, count) == ("rnn", 1) else layer + 1, *parts)
    assert set(mine) == set(tensors)
    assert worst(Network(spec, mine), torch) < TOLERANCE
