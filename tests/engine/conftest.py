from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rnnstream.engine.engine import Engine
from rnnstream.model.step import StepModel


@pytest.fixture
def make() -> Iterator[Callable[..., Engine]]:
    """Makes engines; each is checked at the end."""
    engines: list[Engine] = []

    def make(model: StepModel, **options: Any) -> Engine:
        engines.append(Engine(model, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.check()
