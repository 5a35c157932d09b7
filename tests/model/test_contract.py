"""The contract of step models, over networks and over models that are none; tests/test_testing.py has models that break it."""

import numpy as np
import pytest

from rnnstream.testing import check_step_model

from .nets import VARIANTS, network
from .others import Average, Last


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", VARIANTS)
def test_networks(name, dtype):
    model = network(VARIANTS[name] | {"dtype": dtype}, seed=7)
    check_step_model(model, make=lambda: network(VARIANTS[name] | {"dtype": dtype}, seed=7))
    assert len(bytes.fromhex(model.digest)) == 32


@pytest.mark.parametrize("made", [Average, Last])
def test_others(made):
    model = made()
    check_step_model(model, make=made)
    assert not model.surprisal


def test_the_average_is_one():
    a, y = Average().step(np.array([1.0, 2.0]), [9, 2])
    assert a.tolist() == [2, 2]
    assert y.tolist() == [4, 2]
