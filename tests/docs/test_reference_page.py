"""docs/reference.md names every command, option and public name, and no others."""

import re
from pathlib import Path

import click

import rnnstream
from rnnstream.cli import main
from tests.worker_process import serving

PAGE = (Path(__file__).parents[2] / "docs" / "reference.md").read_text()
COMMANDS, PYTHON = PAGE.split("## Python")
NAMES = PYTHON.split("## Methods")[0]


def options(group: click.Group, prefix: str = "") -> set[tuple[str, str]]:
    """(command, option) pairs of a group."""
    found = set()
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found |= options(command, f"{prefix}{name} ")
        else:
            found |= {
                (prefix + name, option)
                for parameter in command.params
                if isinstance(parameter, click.Option)
                for option in parameter.opts
            }
    return found


def test_every_option_of_every_command_is_on_the_page():
    listed = {
        (command, option)
        for command, cell in re.findall(r"^\| `([\w ]+)` \| (.+?) \|", COMMANDS, re.M)
        for option in re.findall(r"`(--[\w-]+)`", cell)
    }
    assert listed == options(main)


def test_every_public_name_is_on_the_page():
    listed = [name for cell in re.findall(r"^\| (`.+?`) \|", NAMES, re.M) for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(listed) == rnnstream.__all__


def test_every_command_of_the_readme_is_there():
    text = (Path(__file__).parents[2] / "README.md").read_text()
    named = set(re.findall(r"^\| `rnnstream (\w+)", text, re.M))
    assert named == set(main.commands)


def test_the_model_of_your_own_is_served(tmp_path, monkeypatch):
    (tmp_path / "sensors.py").write_text(re.search(r"```python\n(.*?)```", PYTHON, re.S).group(1))
    monkeypatch.chdir(tmp_path)
    with serving("sensors:model") as (address, _), rnnstream.Client(address) as client:
        session = client.session("three sensors")
        assert session.step([10, 0, -10]).y.tolist() == [1, 0, -1]
        assert session.step([1.0, 10.0, -1.0]).y.tolist() == [1, 1, -1]
