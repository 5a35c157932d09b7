"""The contract of stores, held by each of them, however the worker before ended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .contract import Contract
from .places import InFile, InFileKilled, InMemory, Place


class TestMemory(Contract):
    @pytest.fixture
    def place(self) -> Iterator[Place]:
        place = InMemory()
        yield place
        place.close()


class TestSQLite(Contract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[Place]:
        place = InFile(tmp_path)
        yield place
        place.close()


class TestSQLiteKilled(Contract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[Place]:
        place = InFileKilled(tmp_path)
        yield place
        place.close()
