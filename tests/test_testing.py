"""`rnnstream.testing` finds what is wrong with a model, and says so."""

import re
from pathlib import Path

import numpy as np
import pytest

import rnnstream.testing
from rnnstream.errors import BadToken
from rnnstream.model.step import Input, Output, StepModel
from rnnstream.testing import check_step_model


class Good(StepModel):
    """a<t> = tanh(0.5 a<t-1> + x<t> / 10 + i), number by number, with a softmax over it."""

    def __init__(self):
        self.name, self.digest, self.exact, self.numerics = "good", "good 1", True, ""
        self.dtype, self.state_size, self.layers = np.dtype(np.float32), 3, ["three numbers"]
        self.input, self.output = Input("token", 5), Output("categorical", 3)

    def initial_state(self):
        return np.full(3, 0.25, np.float32)

    def advance(self, states, inputs):
        new = np.tanh(states * np.float32(0.5) + (inputs[:, np.newaxis] + np.arange(3)).astype(np.float32) / np.float32(10))
        return new, new

    def head(self, features):
        return features * np.float32(2)


class Dense(Good):
    def __init__(self):
        super().__init__()
        self.input, self.output = Input("dense", 3), Output("bernoulli", 3)

    def advance(self, states, inputs):
        new = states * np.float32(0.5) + inputs
        return new, new


class Single(Good):
    """With a twin for one row, which does the same with fewer axes, or nearly so."""

    nearly = np.float32(0)

    def for_one(self):
        twin = Good()
        twin.advance = lambda state, x: tuple(
            part[0] + self.nearly for part in Good.advance(self, state[np.newaxis], np.array([x]))
        )
        return twin


def changed(**attributes):
    """A good model with other attributes."""

    def make():
        model = Good()
        vars(model).update(attributes)
        return model

    return make


class NearlySingle(Single):
    nearly = np.float32(1e-6)


class Forgetful(Good):
    """Keeps a state of its own."""

    count = 0

    def advance(self, states, inputs):
        self.count += 1
        return super().advance(states + np.float32(self.count), inputs)


class Overwriting(Good):
    def advance(self, states, inputs):
        new, features = super().advance(states, inputs)
        states[:] = new
        return new, features


class OverwritingInputs(Dense):
    def advance(self, states, inputs):
        inputs *= np.float32(0.5)
        return super().advance(states, inputs)


class OverwritingFeatures(Good):
    def head(self, features):
        features *= 2
        return features


class OneBuffer(Good):
    """Gives the same array out every time."""

    def __init__(self):
        super().__init__()
        self.buffer = np.zeros((64, 3), np.float32)

    def head(self, features):
        logits = self.buffer[: len(features)]
        logits[:] = features
        return logits


class Shared(Good):
    start = np.zeros(3, np.float32)

    def initial_state(self):
        return self.start


class Endless(Good):
    def initial_state(self):
        return np.full(3, np.inf, np.float32)


class Crowded(Good):
    """Sees how many rows there are."""

    def advance(self, states, inputs):
        new, _ = super().advance(states, inputs)
        new = new + np.float32((len(new) > 1) * 1e-6)
        return new, new


class Placed(Good):
    """Mixes up the rows."""

    def advance(self, states, inputs):
        new, features = super().advance(states, inputs)
        return new, features[::-1]


class Neighbourly(Good):
    """Each row sees a multiple of zero of the row before."""

    def advance(self, states, inputs):
        new, _ = super().advance(states, inputs)
        new[1:] += 0 * new[:-1]
        return new, new


class MemoryOrder(Good):
    """Reads the memory of the states as it lies."""

    def advance(self, states, inputs):
        return super().advance(np.ravel(states, order="K").reshape(states.shape), inputs)


class OtherFeatures(Good):
    def features(self, states):
        return states + np.float32(1)


class WrongDtype(Good):
    def advance(self, states, inputs):
        return super().advance(states.astype(np.float64), inputs)


class NoPair(Good):
    def advance(self, states, inputs):
        return super().advance(states, inputs)[0]


class FlatFeatures(Good):
    def advance(self, states, inputs):
        new, features = super().advance(states, inputs)
        return new, features.ravel()


class WrongHead(Good):
    def head(self, features):
        return features[:, :2]


class Unmoved(Good):
    def advance(self, states, inputs):
        return states.copy(), super().advance(states, inputs)[1]


class Blind(Good):
    def head(self, features):
        return np.zeros((len(features), 3), np.float32)


class NoSoftmax(Good):
    def __init__(self):
        super().__init__()

        class Raw(Output):
            def g2(self, logits):
                return logits.copy()

        self.output = Raw("categorical", 3)


class Generous(Good):
    """Takes any token."""

    def __init__(self):
        super().__init__()

        class Anything(Input):
            def token(self, x):
                return x % 5 if isinstance(x, int) and type(x) is not bool else super().token(x)

        self.input = Anything("token", 5)


class OtherParts(Good):
    """A sequence is not its tokens one at a time."""

    def forward(self, xs, a=None):
        return super().forward(xs) if len(xs) else super().forward(xs, a)


class Drifting(Good):
    """Every instance takes itself for another model."""

    instances = 0

    def __init__(self):
        super().__init__()
        Drifting.instances += 1
        self.digest = f"number {Drifting.instances}"


CASES = {
    "`digest` is empty; it tells this model from any other, in stores and snapshots.": changed(digest=""),
    "`exact` is 1, of type int; it is of type bool.": changed(exact=1),
    "`layers` is ('one',), of type tuple; it is of type list.": changed(layers=("one",)),
    "`dtype` is dtype('float16'); it is float32 or float64.": changed(dtype=np.dtype(np.float16)),
    "initial_state() gave float32 [3]; it gives float32 [4].": changed(state_size=4),
    "initial_state() gave an array whose numbers a caller can change for the next one; it gives a new array each time.": Shared,
    "initial_state() holds NaN or infinity.": Endless,
    "Two calls of advance() and head() with the same arguments gave different states: the bits differ": Forgetful,
    "advance() has changed its argument `states`; the new ones go into an array of their own.": Overwriting,
    "advance() has changed its argument `inputs`.": OverwritingInputs,
    "head() has changed its argument `features`; the logits go into an array of their own.": OverwritingFeatures,
    "A later step has changed the logits that an earlier one gave.": OneBuffer,
    "a batch of 11, and the same row alone: the bits differ, and `exact` promises equal ones.": Crowded,
    "of a batch of 11, and the same row alone: the bits differ": Placed,
    "of a batch of 11, and the same row of for_one(): the bits differ": NearlySingle,
    "Rows beside others that are NaN or infinite, and the same rows beside ordinary ones: the bits differ": Neighbourly,
    "The states in an array in column-major order, and the same states row by row: the bits differ": MemoryOrder,
    "features() of the new states, and the features that advance() gave with them: the bits differ": OtherFeatures,
    "advance() with B = 1 gave float64 [1, 3]; it gives float32 [1, 3].": WrongDtype,
    "advance() gives a pair, the new states and the features.": NoPair,
    "advance() with B = 1 gave features [3]; there is one row of them for each row.": FlatFeatures,
    "head() with B = 1 gave float32 [1, 2]; it gives float32 [1, 3].": WrongHead,
    "The state is the same after each of 24 tokens: advance() does not move it.": Unmoved,
    "All 24 tokens gave the same outputs: head() does not see them.": Blind,
    "The probabilities of a categorical output add up to 1; here they are": NoSoftmax,
    "step() with the token -1 went through; it raises rnnstream.BadToken.": Generous,
    "forward() in two parts, and in one: the bits differ": OtherParts,
    "and of a second instance 'number 2'; it is the same in every process.": Drifting,
}


@pytest.mark.parametrize("sentence", CASES)
def test_what_is_wrong_is_named(sentence):
    Drifting.instances = 0
    make = CASES[sentence]
    with pytest.raises(AssertionError, match=re.escape(sentence)):
        check_step_model(make(), make=make)


@pytest.mark.parametrize("make", [Good, Dense, Single])
def test_a_good_model_passes(make):
    check_step_model(make(), make=make)


def test_a_model_that_promises_less_is_held_to_a_tolerance():
    model = Crowded()
    model.exact = False
    check_step_model(model)
    with pytest.raises(AssertionError, match=r"the same row alone: they differ by .*e-0[67]; the tolerance is 1e-08\."):
        check_step_model(model, tolerance=1e-8)


def test_the_caller_s_tokens_are_used():
    model = Good()
    seen = []
    advance = model.advance

    def watch(states, inputs):
        seen.extend(inputs.tolist())
        return advance(states, inputs)

    model.advance = watch
    check_step_model(model, [1, 3] * 6)
    assert set(seen) == {1, 3}
    with pytest.raises(ValueError, match="There are 11 tokens; the check takes 12 or more"):
        check_step_model(model, [1] * 11)
    with pytest.raises(BadToken):
        check_step_model(model, [5] * 12)


def test_another_class_is_no_step_model():
    with pytest.raises(AssertionError, match=r"object is no rnnstream\.StepModel; derive the class from it\."):
        check_step_model(object())


def test_it_needs_no_test_framework():
    text = Path(rnnstream.testing.__file__).read_text()
    assert not re.search(r"pytest|^\s*assert ", text, re.M)  # an assert statement is silent under python -O
