"""The limits in docs/security.md are those of the code."""

import dataclasses
import importlib
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
ROWS = re.findall(r"^\| [^|]+ \| ([^|]+) \| `([\w.]+)` \| [^|]+ \|$", PAGE, re.MULTILINE)
UNITS = {"": 1, "s": 1000, "KiB": 1 << 10, "MiB": 1 << 20}  # times are in ms


def value(place: str) -> object:
    """What stands in the code: a constant of a module, or the default of a dataclass's field."""
    module, name = place.rsplit(".", 1)
    try:
        return getattr(importlib.import_module(f"rnnstream.{module}"), name)
    except ModuleNotFoundError:
        module, cls = module.rsplit(".", 1)
        fields = dataclasses.fields(getattr(importlib.import_module(f"rnnstream.{module}"), cls))
        return next(field.default for field in fields if field.name == name)


@pytest.mark.parametrize(("told", "place"), ROWS, ids=[place for _, place in ROWS])
def test_a_limit_is_the_codes(told: str, place: str) -> None:
    if told.startswith("1/"):
        assert value(place) == int(told[2:])
    else:
        number, _, unit = told.partition(" ")
        assert value(place) == int(number.replace(",", "")) * UNITS[unit]


def test_all_rows_are_read() -> None:
    table = PAGE.split("## Limits")[1].split("\n## ")[0]
    assert len(ROWS) == sum(line.startswith("| ") for line in table.splitlines()) - 1 > 30
