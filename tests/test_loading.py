"""What a model may be named by: files of others, entry points of other packages."""

import logging

import numpy as np
import pytest

import rnnstream
from rnnstream.errors import ModelError

PLUGIN = """
import numpy as np
import rnnstream

class Counter(rnnstream.StepModel):
    name, digest, numerics, exact = "counter", "counter 1", "", True
    dtype, state_size, layers = np.float32, 1, ["a counter"]
    input, output = rnnstream.Input("token", 3), rnnstream.Output("linear", 1)
    def __init__(self, path=None): self.start = float(path.read_text()) if path else 0.0
    def initial_state(self): return np.full(1, self.start, np.float32)
    def advance(self, states, inputs): return states + np.float32(1), states + np.float32(1)
    def head(self, features): return features

def broken():
    raise OSError("no luck")
"""
ENTRY_POINTS = """
[rnnstream.models]
counting = counting_plugin:Counter
.count = counting_plugin:Counter
gone = counting_plugin:nothing
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Another package, installed with entry points."""
    folder = tmp_path / "site"
    (folder / "counting_plugin-1.0.dist-info").mkdir(parents=True)
    (folder / "counting_plugin.py").write_text(PLUGIN)
    (folder / "counting_plugin-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: counting-plugin\nVersion: 1.0\n"
    )
    (folder / "counting_plugin-1.0.dist-info" / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(folder)


@pytest.mark.usefixtures("plugin")
def test_an_entry_point_by_its_name_and_by_a_suffix(tmp_path):
    model = rnnstream.load("counting")
    assert model.forward([0, 0, 0]).ravel().tolist() == [1, 2, 3]
    (tmp_path / "five.count").write_text("5")
    assert rnnstream.load(tmp_path / "five.count").forward([0]).tolist() == [[6]]
    with pytest.raises(ModelError, match=r"The entry point gone \(counting_plugin:nothing\) cannot be loaded"):
        rnnstream.load("gone")
    with pytest.raises(ModelError, match="There is no file counted"):
        rnnstream.load("counted")
    with pytest.raises(ModelError, match="counting_plugin:broken: making the model failed: OSError: no luck"):
        rnnstream.load("counting_plugin:broken")


def test_another_frameworks_file_is_loaded_and_what_was_assumed_is_logged(tmp_path, caplog):
    shapes = {"waa": (4, 4), "wax": (4, 6), "ba": (4,), "wya": (6, 4), "by": (6,)}
    np.savez(tmp_path / "article.npz", **{name: np.full(shape, 0.1) for name, shape in shapes.items()})
    model = rnnstream.load(tmp_path / "article.npz")
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    assert [record.message.partition(": ")[2][:23] for record in caplog.records][:1] == ["g1 is taken to be tanh;"]
    assert model.forward([0]).shape == (1, 6)
    said = rnnstream.load(tmp_path / "article.npz", spec={"head": "linear", "name": "raw"})
    assert (said.name, said.output.kind) == ("raw", "linear")


def test_a_spec_is_not_for_our_own_files():
    with pytest.raises(ModelError, match="a spec is for another framework's file"):
        rnnstream.load("no_such_file.rnn", spec={"head": "linear"})
    with pytest.raises(ModelError, match="a spec is for another framework's file"):
        rnnstream.load(spec={"head": "linear"})
