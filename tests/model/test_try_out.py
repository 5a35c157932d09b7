"""A model of somebody's own is tried out when it is loaded: what is wrong with it is said in a sentence."""

import numpy as np
import pytest

from rnnstream import Input, ModelError, Output, StepModel
from rnnstream.model.step import try_out


class Counter(StepModel):
    """Counts tokens, and expects the count's remainder."""

    name, digest, numerics, exact = "counter", "counter 1", "", True
    dtype, state_size, layers = np.dtype(np.float32), 1, ["a counter"]
    input, output = Input("token", 3), Output("categorical", 3)

    def initial_state(self):
        return np.zeros(1, np.float32)

    def advance(self, states, inputs):
        return states + np.float32(1), states + np.float32(1)

    def head(self, features):
        return np.where(np.arange(3) == features % 3, 9, 0).astype(np.float32)


def test_a_good_one_passes_and_its_dtype_may_be_written_short():
    model = Counter()
    model.dtype = np.float32
    try_out(model, "m")
    assert model.dtype == np.dtype(np.float32)
    assert model.forward([0, 1, 2]).argmax(axis=1).tolist() == [1, 2, 0]


FAULTS = {
    "initial_state gave a list": {"initial_state": lambda self: [0.0]},
    "initial_state gave float32 [2]": {"initial_state": lambda self: np.zeros(2, np.float32)},
    "advance gave float64 [2, 1]": {"advance": lambda self, states, inputs: (states + np.float64(1) * np.ones((2, 1)), states)},
    "advance gave float32 [1]": {"advance": lambda self, states, inputs: (states[0], states)},
    "head gave float32 [2, 2]": {"head": lambda self, features: np.zeros((2, 2), np.float32)},
    "a first step failed: ZeroDivisionError": {"advance": lambda self, states, inputs: 1 / 0},
}


@pytest.mark.parametrize("sentence", FAULTS)
def test_faults(sentence):
    model = type("Faulty", (Counter,), FAULTS[sentence])()
    with pytest.raises(ModelError) as caught:
        try_out(model, "mine:model")
    assert str(caught.value).startswith(f"mine:model: {sentence}")


def test_what_is_missing_is_named():
    with pytest.raises(ModelError, match=r"mine:model is no step model: it lacks .*advance.*; see rnnstream.StepModel"):
        try_out(object(), "mine:model")
