"""The contract of step models as a check, for whoever writes one; it needs no test framework.

B rows of a batch    S numbers of a state    F features    V outputs    T tokens
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnstream.errors import BadRequest, BadToken
from rnnstream.model.blas import one_thread
from rnnstream.model.step import Input, Output, StepModel

Array = npt.NDArray[Any]

ROWS = 11  # of the batches: no multiple of anything that kernels work in
TOKENS = 24  # of the sequence that is made where none is given
TOLERANCE = 1e-4  # float32 rounded in other ways over some dozen steps


def check_step_model(
    model: StepModel,
    xs: Sequence[Any] | None = None,
    *,
    tolerance: float = TOLERANCE,
    make: Callable[[], StepModel] | None = None,
) -> None:
    """Hold a step model against all that rnnstream asks of one.

    Args:
        model: any; it is stepped some hundred times.
        xs: at least 12 tokens of it, not all alike. Absent, random ids, or vectors of standard normal numbers.
        tolerance: of a model that is not `exact`: the largest difference, relative where numbers are larger than 1, between a
            row alone and the same row in a batch, and between one run and the next. An exact model has to give the same bits.
        make: makes the model anew, as the next process will; it is held to give the same model.

    Raises:
        AssertionError: what is broken, in a sentence: which method gave what, and what is asked.
        ValueError: fewer than 12 tokens.
    """
    _names(model)
    _initial_state(model)
    xs = _random(model.input) if xs is None else list(xs)
    if len(xs) < ROWS + 1:
        raise ValueError(f"There are {len(xs)} tokens; the check takes {ROWS + 1} or more.")
    tokens = [model.input.token(x) for x in xs]
    hold = _Bits(model, tolerance)
    _pure(model, tokens, hold)
    _batches(model, tokens, hold)
    _sequences(model, xs, hold)
    _outputs(model, xs)
    _refusals(model)
    if make is not None:
        _made_again(model, make(), xs, hold)


class _Bits:
    """Compares what two ways to the same numbers gave: bit for bit for an exact model, else within the tolerance."""

    def __init__(self, model: StepModel, tolerance: float) -> None:
        self.exact, self.tolerance = model.exact, tolerance

    def same(self, one: Array, other: Array, what: str) -> None:
        if self.exact:
            _hold(one.tobytes() == other.tobytes(), f"{what}: the bits differ, and `exact` promises equal ones.")
            return
        agree = (one == other) | (np.isnan(one) & np.isnan(other))
        with np.errstate(all="ignore"):
            apart = np.where(agree, 0, np.abs(one - other) / np.maximum(1, np.abs(other)))
        largest = float(np.nan_to_num(apart, nan=np.inf).max(initial=0))
        _hold(largest <= self.tolerance, f"{what}: they differ by {largest:.3g}; the tolerance is {self.tolerance:g}.")


def _hold(holds: bool, sentence: str) -> None:
    if not holds:  # no assert statement, which `python -O` leaves out
        raise AssertionError(sentence)


def _random(taken: Input) -> list[Any]:
    rng = np.random.default_rng(0)
    shape = (TOKENS, taken.size)
    return rng.integers(0, taken.size, TOKENS).tolist() if taken.kind == "token" else list(rng.normal(0, 1, shape))


def _array(array: Any, shape: tuple[int, ...], dtype: Any, what: str) -> None:
    """Hold an array to its shape and dtype."""
    if not isinstance(array, np.ndarray):
        raise AssertionError(f"{what} gave a {type(array).__name__}; it gives a NumPy array.")
    wanted = f"{np.dtype(dtype)} {list(shape)}"
    _hold(array.shape == shape and array.dtype == dtype, f"{what} gave {array.dtype} {list(array.shape)}; it gives {wanted}.")


def _names(model: StepModel) -> None:
    """The attributes are there and of their types."""
    cls = type(model).__name__
    _hold(isinstance(model, StepModel), f"{cls} is no rnnstream.StepModel; derive the class from it.")
    asked: dict[str, Any] = {"name": str, "digest": str, "numerics": str, "exact": bool, "state_size": int, "layers": list}
    for attribute, kind in (asked | {"input": Input, "output": Output}).items():
        _hold(hasattr(model, attribute), f"{cls} lacks the attribute `{attribute}`, of type {kind.__name__}.")
        value = getattr(model, attribute)
        found = f"`{attribute}` is {value!r:.60}, of type {type(value).__name__}; it is of type {kind.__name__}."
        _hold(isinstance(value, kind) and (kind is not int or type(value) is not bool), found)
    _hold(model.digest != "", "`digest` is empty; it tells this model from any other, in stores and snapshots.")
    _hold(model.state_size >= 0, f"`state_size` is {model.state_size}; it is 0 or more.")
    _hold(all(isinstance(line, str) for line in model.layers), "`layers` holds something else than lines of text.")
    dtype = getattr(model, "dtype", None)
    _hold(dtype in (np.float32, np.float64), f"`dtype` is {dtype!r}; it is float32 or float64.")
    predicts = model.output.kind == "categorical" and model.output.size == model.input.size
    if model.surprisal:
        _hold(predicts, "`surprisal` is true, and the outputs are not as many probabilities as there are ids.")


def _initial_state(model: StepModel) -> None:
    """It is the same each time, and each time a new array."""
    first = model.initial_state()
    _array(first, (model.state_size,), model.dtype, "initial_state()")
    _hold(bool(np.isfinite(first).all()), "initial_state() holds NaN or infinity.")
    kept = first.copy()
    first += 1
    second = model.initial_state()
    _hold(
        not np.shares_memory(first, second) and second.tobytes() == kept.tobytes(),
        "initial_state() gave an array whose numbers a caller can change for the next one; it gives a new array each time.",
    )


def _step(model: StepModel, states: Array, inputs: Array) -> tuple[Array, Array, Array]:
    """New states, features and logits of a batch, in their shapes."""
    with one_thread():
        result = model.advance(states, inputs)
        _hold(isinstance(result, tuple) and len(result) == 2, "advance() gives a pair, the new states and the features.")
        new, features = result
        _array(new, (len(states), model.state_size), model.dtype, f"advance() with B = {len(states)}")
        rows = f"advance() with B = {len(states)} gave features"
        _hold(isinstance(features, np.ndarray), f"{rows} that are a {type(features).__name__}; they are a NumPy array.")
        _hold(features.shape[:1] == (len(states),), f"{rows} {list(features.shape)}; there is one row of them for each row.")
        logits = model.head(features)
        _array(logits, (len(states), model.output.size), model.dtype, f"head() with B = {len(states)}")
    return new, features, logits


def _begun(model: StepModel, tokens: list[Any]) -> tuple[Array, Array]:  # -> [ROWS, S], [ROWS] or [ROWS, K]
    """States after some tokens, each row's another number of them; and the next token of each."""
    states = [model.initial_state()]
    for token in tokens[: ROWS - 1]:
        states.append(_step(model, states[-1][np.newaxis], model.input.batch([token]))[0][0])
    return np.stack(states), model.input.batch(tokens[1 : ROWS + 1])


def _pure(model: StepModel, tokens: list[Any], hold: _Bits) -> None:
    """The arguments stay as they are, and a call depends on its arguments alone."""
    states, inputs = _begun(model, tokens)
    kept = states.tobytes(), inputs.tobytes()
    new, features, logits = _step(model, states, inputs)
    _hold(
        states.tobytes() == kept[0], "advance() has changed its argument `states`; the new ones go into an array of their own."
    )
    _hold(inputs.tobytes() == kept[1], "advance() has changed its argument `inputs`.")
    seen, given = features.tobytes(), [part.copy() for part in (new, features, logits)]
    with one_thread():
        model.head(features)
    _hold(features.tobytes() == seen, "head() has changed its argument `features`; the logits go into an array of their own.")
    _step(model, states[::-1].copy(), inputs[::-1].copy())  # other rows, which a hidden state would take in
    for now, before, what in zip((new, features, logits), given, ("states", "features", "logits"), strict=True):
        _hold(now.tobytes() == before.tobytes(), f"A later step has changed the {what} that an earlier one gave.")
    again = _step(model, states, inputs)
    for one, other, what in zip(again, (new, features, logits), ("states", "features", "logits"), strict=True):
        hold.same(one, other, f"Two calls of advance() and head() with the same arguments gave different {what}")
    with one_thread():
        of_state = model.features(new)
        if of_state is not None:
            hold.same(of_state, features, "features() of the new states, and the features that advance() gave with them")
    a = model.initial_state()
    model.step(a, tokens[0])
    model.forward(tokens[:3], a)
    unchanged = a.tobytes() == model.initial_state().tobytes()
    _hold(unchanged, "step() or forward() has changed the state that it was given.")


def _batches(model: StepModel, tokens: list[Any], hold: _Bits) -> None:
    """A row of a batch is that row alone, whatever its place, its memory and its neighbours."""
    states, inputs = _begun(model, tokens)
    together = _step(model, states, inputs)
    for row in np.random.default_rng(0).permutation(ROWS):
        mine = slice(row, row + 1)
        for one, other in zip(_step(model, states[mine], inputs[mine]), together, strict=True):
            hold.same(one[0], other[row], f"Row {row} of a batch of {ROWS}, and the same row alone")
    twin = model.for_one()
    if twin is not None:
        for row in range(ROWS):
            with one_thread():
                new, features = twin.advance(states[row], inputs[row] if inputs.ndim == 2 else inputs.item(row))
                found = new, features, twin.head(features)
            for one, other in zip(found, together, strict=True):
                hold.same(one, other[row], f"Row {row} of a batch of {ROWS}, and the same row of for_one()")
    order = np.random.default_rng(1).permutation(ROWS)
    for one, other in zip(_step(model, states[order], inputs[order]), together, strict=True):
        hold.same(one, other[order], "A batch with its rows in another order, and its rows in the first one")
    wide = np.zeros((ROWS, 2 * model.state_size + 1), model.dtype)
    wide[:, 1::2] = states
    for what, other_memory in {
        "in column-major order": np.asfortranarray(states),
        "with gaps between the numbers": wide[:, 1::2],
        "from the last row to the first": states[::-1].copy()[::-1],
    }.items():
        for one, other in zip(_step(model, other_memory, inputs), together, strict=True):
            hold.same(one, other, f"The states in an array {what}, and the same states row by row")
    none = _step(model, states[:0], inputs[:0])
    _hold(not any(len(part) for part in none), "A batch of no rows gave some.")
    if model.exact and model.state_size:
        wild = states.copy()
        wild[1::2] = np.array([np.nan, np.inf, np.finfo(model.dtype).max], model.dtype)[np.arange(ROWS // 2) % 3, np.newaxis]
        for one, other in zip(_step(model, wild, inputs), together, strict=True):
            hold.same(
                one[::2], other[::2], "Rows beside others that are NaN or infinite, and the same rows beside ordinary ones"
            )


def _sequences(model: StepModel, xs: Sequence[Any], hold: _Bits) -> None:
    """Whole, in parts, one at a time and once more are the same; there is something that remembers."""
    a, ys, moved = model.initial_state(), [], False
    for x in xs:
        before = a
        a, y = model.step(before, x)
        moved = moved or a.tobytes() != before.tobytes()
        ys.append(y)
    whole = model.forward(xs)
    _array(whole, (len(xs), model.output.size), model.dtype, f"forward() of {len(xs)} tokens")
    hold.same(whole, np.array(ys), "forward() of a whole sequence, and step() token by token")
    parts = np.concatenate([model.forward(xs[:5]), model.forward(xs[5:], model.run(xs[:5]))])
    hold.same(parts, whole, "forward() in two parts, and in one")
    hold.same(model.run(xs), a, "The state of run(), and that of step() token by token")
    hold.same(model.forward(xs), whole, "forward() of the same tokens a second time, and the first time")
    _array(model.forward([]), (0, model.output.size), model.dtype, "forward() of no tokens")
    _hold(model.run([], a).tobytes() == a.tobytes(), "run() of no tokens has changed the state.")
    _hold(moved or not model.state_size, f"The state is the same after each of {len(xs)} tokens: advance() does not move it.")


def _outputs(model: StepModel, xs: Sequence[Any]) -> None:
    """They are what their kind says, and depend on something."""
    y = model.forward(xs)
    if model.output.kind == "categorical":
        sums = y.sum(axis=1)
        apart = float(np.abs(sums - 1).max())
        _hold(
            bool(apart <= 1e-4),
            f"The probabilities of a categorical output add up to 1; here they are {apart:.3g} away from it.",
        )
    if model.output.kind != "linear":
        _hold(bool(((y >= 0) & (y <= 1)).all()), "There are probabilities that are not between 0 and 1.")
    alone_one = model.output.kind == "categorical" and model.output.size == 1  # which is certain
    _hold(alone_one or len(np.unique(y, axis=0)) > 1, f"All {len(xs)} tokens gave the same outputs: head() does not see them.")


def _refusals(model: StepModel) -> None:
    """Tokens that it cannot take are refused with the errors of `Input.token`."""
    a, size = model.initial_state(), model.input.size
    values: list[Any] = [-1, size] if model.input.kind == "token" else [[0.0] * (size + 1), b"", [float("nan")] * size]
    cases: list[tuple[Any, type[Exception]]] = [(x, BadRequest) for x in (None, True, object())]
    for x, error in cases + [(x, BadToken) for x in values]:
        try:
            model.step(a, x)
        except error:
            continue
        except Exception as problem:
            raised = f"raised {type(problem).__name__}"
        else:
            raised = "went through"
        raise AssertionError(f"step() with the token {x!r:.60} {raised}; it raises rnnstream.{error.__name__}.")


def _made_again(model: StepModel, second: StepModel, xs: Sequence[Any], hold: _Bits) -> None:
    """A second instance is the same model."""
    same = second.digest == model.digest
    _hold(
        same,
        f"`digest` is {model.digest!r:.80}, and of a second instance {second.digest!r:.80}; it is the same in every process.",
    )
    _hold(second.exact == model.exact, "`exact` of a second instance is another.")
    hold.same(second.forward(xs), model.forward(xs), "The outputs of a second instance, and those of the first")
