"""docs/model-format.md: its examples run, its tables are those of the code."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from rnnstream.errors import ModelError
from rnnstream.loading import load
from rnnstream.model.activations import ACTIVATIONS, OVER_A_ROW
from rnnstream.model.kinds import LARGEST, LAYERS, TAKE_ONEHOT
from rnnstream.model.spec import HEADS, MOST_LAYERS, parse

from .nets import activation, conv, dense, embedding, gru, layernorm, lstm, onehot, pool, residual, rnn, scale
from .test_activations import BY_HAND

TEXT = (Path(__file__).parents[2] / "docs" / "model-format.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def table(header):
    """The cells of the table with this head, row by row."""
    lines = TEXT[TEXT.index(f"\n{header}\n") + 1 :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def keys_of(kind):
    """The keys of a layer kind, in the words of the document."""
    row = LAYERS[kind]
    return ", ".join(f"`{key}`" + (f" ({row.defaults[key]} if absent)" if key in row.defaults else "") for key in row.keys)


LETTERS = {"K": 5, "H": 7, "N": 7, "W": 3, "d": 2}
GIVEN = {"size": LETTERS["N"], "kernel": LETTERS["W"], "window": LETTERS["W"], "dilation": LETTERS["d"]}


def number(text):
    """What 3H, K or (W-1) d K comes to."""
    factors = re.findall(r"\((\w)-1\)|(\d+)|([A-Za-z])", text)
    assert "".join(f"({less}-1)" if less else digits or letter for less, digits, letter in factors) == text.replace(" ", "")
    return math.prod(
        LETTERS[less] - 1 if less else int(digits) if digits else LETTERS[letter] for less, digits, letter in factors
    )


def test_the_table_of_layers():
    rows = table("| kind | keys | tensors | numbers of state | outputs |")
    assert [row[0] for row in rows] == [f"`{kind}`" for kind in LAYERS]
    for kind, keys, tensors, state, outputs in rows:
        row = LAYERS[kind.strip("`")]
        assert keys == keys_of(kind.strip("`"))
        always, _, after = tensors.partition(", with reset after ")
        for reset in ("after", "before"):
            given = {key: value for key, value in (GIVEN | {"reset": reset}).items() if key in row.keys}
            shapes = {
                name: tuple(number(side) for side in sides.split(", "))
                for name, sides in re.findall(r"`(\w+)#` \[(.*?)\]", always + (after if reset == "after" else ""))
            }
            assert row.tensors(LETTERS["K"], given) == shapes
            assert row.state(LETTERS["K"], given) == number(state)
        assert outputs == ("K" if "size" not in row.keys else "H" if row.recurrent else "N")


def taken(check, value):
    """Whether a key takes a value."""
    try:
        return check(value, "here") == value
    except ModelError:
        return False


def test_the_table_of_keys():
    rows = dict(table("| key of a layer | what it is |"))
    told = {}  # (key, kind or None) -> the words beside it
    for names, words in rows.items():
        for key, kind in re.findall(r"`(\w+)`(?: of an? (\w+))?", names):
            told[key, kind or None] = words
    used = {(key, kind) for kind, row in LAYERS.items() for key in row.keys}
    assert {key for key, _ in used} == {key for key, _ in told}
    for key, kind in used:
        check, words = LAYERS[kind].keys[key], told.get((key, kind)) or told[key, None]
        if words.startswith("an int from"):
            least, most = (int(end.replace(",", "")) for end in re.fullmatch(r"an int from (\d+) to ([\d,]+)", words).groups())
            assert [taken(check, value) for value in (least - 1, least, most, most + 1)] == [False, True, True, False]
        elif words.startswith("one of the activations"):
            left_out = re.findall(r"not (\w+)(?: nor (\w+))?:", words)
            assert [name for name in ACTIVATIONS if not taken(check, name)] == list(left_out[0] if left_out else ())
        elif key == "epsilon":
            assert words.startswith("a number from 1e-30 to below 1,")
            assert [taken(check, value) for value in (0.9e-30, 1e-30, 0.999, 1.0, 1)] == [False, True, True, False, False]
        elif key == "of":
            assert words == "the number of a layer in front, counted from 1, or 0 for the input"
            assert [taken(check, value) for value in (-1, 0, 1)] == [False, True, True]
        else:
            with pytest.raises(ModelError, match=f"it is one of {words}\\.$"):
                check("", "here")


def test_the_table_of_activations():
    rows = table("| activation | g(z) | |")
    assert [row[0] for row in rows] == list(ACTIVATIONS)
    names = {"tanh": math.tanh, "exp": math.exp, "ln": math.log, "min": min, "max": max, "abs": abs}
    for name, formula, _ in rows:
        if name in OVER_A_ROW:
            continue
        above, _, below = formula.partition(" where z > 0, else ")
        for z in (-7.5, -6.5, -2.75, -1.5, -0.25, 0.0, 0.125, 0.75, 2.25, 2.75, 6.5):
            value = eval(below if below and z <= 0 else above, names | {"z": z})
            assert math.isclose(value, BY_HAND[name](z), abs_tol=1e-15)


def test_the_table_of_names():
    build = {"onehot": onehot(), "embedding": embedding(4), "dense": dense(4), "activation": activation("tanh")}
    build |= {"rnn": rnn(4), "gru": gru(4), "lstm": lstm(4), "scale": scale(), "layernorm": layernorm()}
    build |= {"conv": conv(4, 2), "pool": pool("max", 2), "residual": residual(1)}
    rows = table("| layers | tensors |")
    assert len(rows) == 6
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
    assert f"A layer keeps at most {LARGEST:,} numbers of state." in TEXT
    assert f"a list of 1 to {MOST_LAYERS:,} objects" in TEXT
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
