from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rnnstream.model.blas import one_thread
from rnnstream.model.step import StepModel
from rnnstream.worker import waves

from .driving import Driver


@pytest.fixture
def a_wave_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several waves of one session do not run in one turn, for tests that count by turns what waits, or the time."""
    monkeypatch.setattr(waves, "RUN", 1)


@pytest.fixture
def drive() -> Iterator[Callable[..., Driver]]:
    """Makes drivers; at the end nothing may wait in them."""
    drivers: list[Driver] = []

    def drive(model: StepModel, **options: Any) -> Driver:
        drivers.append(Driver(model, **options))
        return drivers[-1]

    with one_thread():
        yield drive
        for driver in drivers:
            driver.finish()
