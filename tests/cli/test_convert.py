"""`rnnstream convert`: files in, a model file and what was assumed out."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

import rnnstream
from rnnstream.cli import main
from rnnstream.convert import gates

RNG = np.random.default_rng(2)


def run(*arguments, status=0):
    done = CliRunner().invoke(main, ["convert", *map(str, arguments)])
    assert done.exit_code == status, done.output
    return done


@pytest.fixture
def article(tmp_path) -> Path:
    """A vanilla network with the equations' names."""
    shapes = {"waa": (4, 4), "wax": (4, 6), "ba": (4,), "wya": (6, 4), "by": (6,)}
    np.savez(tmp_path / "article.npz", **{name: RNG.uniform(-1, 1, shape) for name, shape in shapes.items()})
    return tmp_path / "article.npz"


@pytest.fixture
def gru(tmp_path) -> Path:
    """PyTorch's names."""
    shapes = {"weight_ih_l0": (21, 5), "weight_hh_l0": (21, 7), "bias_ih_l0": (21,), "bias_hh_l0": (21,)}
    tensors = {f"rnn.{name}": RNG.uniform(-1, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "gru.safetensors")
    return tmp_path / "gru.safetensors"


def test_what_is_printed_and_written(article, tmp_path):
    done = run(article, tmp_path / "out.safetensors", "--check")
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "rnn 6 -> 4 (tanh)" in done.stdout
    assert "note     g1 is taken to be tanh" in done.stdout
    assert "PASS: largest difference" in lines["check"]
    assert lines["check"].endswith("logits of 100 random tokens against the equations in float64")
    model = rnnstream.load(tmp_path / "out.safetensors")
    assert model.digest == lines["digest"].split()[1] == rnnstream.load(article).digest
    assert model.forward([1, 2]).tobytes() == rnnstream.load(article).forward([1, 2]).tobytes()


def test_json(article, tmp_path):
    done = run(article, tmp_path / "out.safetensors", "--json", "--check")
    found = json.loads(done.stdout)
    assert found["check"]["passed"] is True
    assert 0 <= found["check"]["largest_difference"] < 1e-12
    assert found["digest"] == rnnstream.load(tmp_path / "out.safetensors").digest
    assert len(found["notes"]) == 3


def test_a_spec(article, tmp_path):
    (tmp_path / "spec.toml").write_text('input = "dense"\nname = "vectors"\nlayers = [{kind = "rnn", activation = "relu"}]\n')
    run(article, tmp_path / "out.safetensors", "--spec", tmp_path / "spec.toml", "--check")
    model = rnnstream.load(tmp_path / "out.safetensors")
    assert (model.name, model.input.kind) == ("vectors", "dense")


def test_a_fault_is_found_and_nothing_written(article, tmp_path, monkeypatch):
    from rnnstream.convert import equations

    right = equations.run_source

    def wrong(*arguments):
        source, outputs = right(*arguments)
        return source, outputs + 2e-4

    monkeypatch.setattr(equations, "run_source", wrong)
    done = run(article, tmp_path / "out.safetensors", "--check", status=1)
    assert "FAIL: largest difference" in done.stdout
    assert "differ by more than 0.0001" in done.stderr
    assert not (tmp_path / "out.safetensors").exists()


def test_against_pytorch(gru, tmp_path, monkeypatch):
    if importlib.util.find_spec("torch") is None:
        done = run(gru, tmp_path / "out.safetensors", "--check", status=1)
        assert "--check runs the framework that wrote" in done.stderr
        assert not (tmp_path / "out.safetensors").exists()
        return
    assert "PASS" in run(gru, tmp_path / "out.safetensors", "--check").stdout
    monkeypatch.setitem(gates.LAYOUTS, ("torch", "gru"), gates.Layout("zrn", "rows"))
    assert "FAIL" in run(gru, tmp_path / "wrong.safetensors", "--check", status=1).stdout


def test_wrong_use(article, gru, tmp_path):
    assert "does not exist" in run(tmp_path / "no.npz", tmp_path / "out.safetensors", status=2).stderr
    done = run(article, tmp_path / "out.onnx", status=1)
    assert "out.onnx would be a model file; give it a name that ends with .safetensors." in done.stderr
    done = run(article, tmp_path / "no" / "out.safetensors", status=1)
    assert "cannot be written" in done.stderr
    before = gru.read_bytes()
    assert "would be written over itself" in run(gru, gru.parent / "." / gru.name, status=1).stderr
    assert gru.read_bytes() == before
    (tmp_path / "model.txt").write_text("")
    assert "what can be read ends with one of" in run(tmp_path / "model.txt", tmp_path / "out.safetensors", status=1).stderr
    assert "Error" in run(article, article.with_suffix(".safetensors"), "--spec", tmp_path / "no.toml", status=1).stderr
