"""docs/reference.md names every command, option and public name, and no others."""

import re
from pathlib import Path

import click

import rnnstream
from rnnstream.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "reference.md").read_text()
COMMANDS, PYTHON = PAGE.split("## Python")


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
    listed = [name for cell in re.findall(r"^\| (`.+?`) \|", PYTHON, re.M) for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(listed) == rnnstream.__all__


def test_every_command_of_the_readme_is_there():
    text = (Path(__file__).parents[2] / "README.md").read_text()
    named = set(re.findall(r"^\| `rnnstream (\w+)", text, re.M))
    assert named == set(main.commands)
