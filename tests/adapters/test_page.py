"""The examples of docs/step-models.md run, and its tables name all there is."""

import dataclasses
import importlib.util
import inspect
import re
import sys
from pathlib import Path

import pytest

from rnnstream.adapters import OnnxStep
from rnnstream.convert.hints import Hints
from rnnstream.testing import check_step_model

from .graphs import elman

PAGE = (Path(__file__).parents[2] / "docs" / "step-models.md").read_text()
CHECK, ONNX, TORCH = re.findall(r"```python\n(.*?)```", PAGE, re.S)
TABLES = [re.findall(r"^\| (`.+?`) \|", part, re.M) for part in PAGE.split("\n## ")]


def names(table):
    return {name for cell in table for name in re.findall(r"`(\w+)`", cell)}


def test_the_check():
    exec(CHECK, {})


def test_the_onnx_graph(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("step.onnx").write_bytes(elman().SerializeToString())
    exec(ONNX, {})
    shown = re.search(r"says what was found in it:\n\n```\n(.*?)```", PAGE, re.S).group(1)
    assert capsys.readouterr().out == shown
    assert OnnxStep("served.onnx").name == "my model"


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs torch")
def test_the_module():
    page = {}
    exec(TORCH, page)
    check_step_model(page["model"]())


def test_every_key_and_argument_is_on_the_page():
    _, _, check, onnx, torch, _ = TABLES
    ours = {field.name for field in dataclasses.fields(Hints)} - {"layers", "ignore", "start"}  # which are for conversions
    assert names(onnx) == ours
    assert names(check) == set(inspect.signature(check_step_model).parameters)
    source = (Path(sys.modules["rnnstream.adapters"].__file__).parent / "torch_step.py").read_text()
    arguments = re.search(r"def __init__\(\n(.*?)\n    \) -> None:", source, re.S).group(1)
    assert names(torch) == set(re.findall(r"^        (\w+):", arguments, re.M))
