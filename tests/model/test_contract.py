"""The contract of step models, over networks and over models that are none."""

import numpy as np
import pytest

from .contract import Average, Last, check_contract
from .nets import VARIANTS, network


def xs_of(model, count=14):
    rng = np.random.default_rng(8)
    size = model.input.size
    return rng.integers(0, size, count).tolist() if model.input.kind == "token" else rng.normal(0, 1, (count, size)).tolist()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", VARIANTS)
def test_networks(name, dtype):
    model = network(VARIANTS[name] | {"dtype": dtype}, seed=7)
    check_contract(model, xs_of(model))


@pytest.mark.parametrize("made", [Average, Last])
def test_others(made):
    model = made()
    check_contract(model, xs_of(model))
    assert not model.surprisal


def test_the_average_is_one():
    a, y = Average().step(np.array([1.0, 2.0]), [9, 2])
    assert a.tolist() == [2, 2]
    assert y.tolist() == [4, 2]


class Forgetful(Average):
    """Keeps a state of its own."""

    count = 0

    def advance(self, states, inputs):
        self.count += 1
        return super().advance(states + self.count, inputs)


class Overwriting(Average):
    def advance(self, states, inputs):
        new, features = super().advance(states, inputs)
        states[:] = new
        return new, features


class Shared(Average):
    start = np.zeros(2)

    def initial_state(self):
        return self.start


class Crowded(Average):
    def advance(self, states, inputs):
        new, _ = super().advance(states, inputs)
        new += (len(new) - 1) * 2e-16
        return new, new


class OtherFeatures(Average):
    def features(self, states):
        return 2 * states


@pytest.mark.parametrize("wrong", [Forgetful, Overwriting, Shared, Crowded, OtherFeatures])
def test_the_suite_finds_what_is_wrong(wrong):
    with pytest.raises(AssertionError):
        check_contract(wrong(), xs_of(wrong()))
