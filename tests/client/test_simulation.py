from __future__ import annotations

import pytest

from .simulation import Simulation


@pytest.mark.parametrize("seed", range(100))
@pytest.mark.parametrize("clients", [1, 2])
@pytest.mark.parametrize("sessions", [1, 3])
def test_whatever_the_network_does_each_token_counts_once(seed: int, clients: int, sessions: int) -> None:
    simulation = Simulation(seed, clients, sessions)
    simulation.run(600)


@pytest.mark.parametrize("seed", range(100))
def test_without_impatience_every_token_gets_its_answer(seed: int) -> None:
    simulation = Simulation(seed, 2, 2, timeout_s=1000.0, trouble=False)
    simulation.run(600)
    assert simulation.resent > 0
