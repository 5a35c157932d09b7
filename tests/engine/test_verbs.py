"""Open, fork, peek: new sessions out of snapshots and of other sessions, and looks ahead that move nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rnnstream.engine.engine import Engine
from rnnstream.errors import BadRequest, BadState, BadToken, Conflict, Exists, Full, NotFinite, RequestError, UnknownSession
from rnnstream.model.blas import one_thread
from rnnstream.prediction import Prediction

from .models import DTYPES, HUGE, SPOILED, V, dense, network, relu
from .sequences import everything, moved

Make = Callable[..., Engine]

CELLS = ["rnn", "gru", "lstm"]


def plain(prediction: Prediction) -> dict[str, Any]:
    """All that is in a prediction, arrays as bytes."""
    values = {key: getattr(prediction, key) for key in Prediction.__slots__}
    return {key: value.tobytes() if isinstance(value, np.ndarray) else value for key, value in values.items()}


# Open, restore --------------------------------------------------------------------------------------------------------


def test_open_starts_at_the_initial_state_and_is_no_second_start(make: Make) -> None:
    model = network("rnn", initial_state=True)
    engine = make(model)
    assert engine.open("a", now=5) == 0
    assert everything(engine) == moved(model, {"a": []})
    assert engine.state("a").any()
    assert engine.info("a", now=7) == {**engine.info("a"), "age_s": 2.0, "idle_s": 2.0}
    assert not engine.step([("a", 3)], now=8)[0].opened
    before = everything(engine)
    for state in (None, engine.snapshot("a"), b"no snapshot"):
        with pytest.raises(Exists) as error:
            engine.open("a", state)
        assert str(error.value) == "The session a is open already, at t=1."
        assert everything(engine) == before == moved(model, {"a": [3]})


def test_a_closed_name_is_opened_anew_at_the_start_or_from_a_snapshot(make: Make) -> None:
    model = network()
    engine = make(model)
    engine.step([("a", 1), ("b", 1), ("a", 2), ("b", 5)])
    state = engine.snapshot("a")
    for name in "ab":
        engine.close(name)
    with pytest.raises(BadState):
        engine.open("b", state[:-1])
    with pytest.raises(UnknownSession) as error:
        engine.step([("b", 1)])
    assert error.value.why == "closed"
    assert engine.open("a") == 0
    assert engine.open("b", state) == 2
    engine.step([("a", 4), ("b", 4)])
    assert everything(engine) == moved(model, {"a": [4], "b": [1, 2, 4]})


def test_restore_needs_an_open_session(make: Make) -> None:
    engine = make(network())
    engine.step([("a", 1), ("closed", 1)])
    state = engine.snapshot("a")
    engine.close("closed")
    for name, why in (("new", "never"), ("closed", "closed")):
        for use in (engine.snapshot, lambda name: engine.restore(name, state)):
            with pytest.raises(UnknownSession) as error:
                use(name)
            assert error.value.why == why
    engine.step([("a", 2), ("a", 3)])
    assert engine.restore("a", state) == 1
    assert everything(engine) == moved(engine.model, {"a": [1]})


def test_a_full_engine_opens_and_forks_nothing_but_restores(make: Make) -> None:
    engine = make(network(), max_sessions=2)
    engine.step([("a", 1), ("b", 2)])
    state = engine.snapshot("a")
    for use in (engine.open, lambda name: engine.open(name, state), lambda name: engine.fork("a", name)):
        with pytest.raises(Full):
            use("c")
        engine.check()
    engine.restore("b", state)
    assert everything(engine) == moved(engine.model, {"a": [1], "b": [1]})


# Fork -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", CELLS)
def test_a_fork_and_its_origin_are_two_whole_sequences(make: Make, kind: str, dtype: str) -> None:
    model = network(kind, dtype=dtype)
    engine = make(model)
    rng = np.random.default_rng(2)
    tokens: dict[str, list[int]] = {"a": []}
    for i in range(70):  # past the first growth of the arrays
        for _ in range(2):
            pairs = [(name, int(rng.integers(V))) for name in tokens]
            engine.step(pairs)
            for name, x in pairs:
                tokens[name].append(x)
        origin, to = f"{rng.choice(list(tokens))}", f"fork{i}"
        assert engine.fork(origin, to) == len(tokens[origin])
        tokens[to] = list(tokens[origin])
        if i % 10 == 0:
            assert everything(engine) == moved(model, tokens)
    engine.step([(name, i % V) for i, name in enumerate(tokens)])
    for i, name in enumerate(tokens):
        tokens[name].append(i % V)
    engine.close("a")
    del tokens["a"]
    assert everything(engine) == moved(model, tokens)


def test_a_fork_has_its_own_age(make: Make) -> None:
    engine = make(network())
    engine.step([("a", 1)], now=3)
    engine.fork("a", "b", now=10)
    assert [engine.info(name, now=12)["age_s"] for name in "ab"] == [9, 2]
    assert [engine.info(name, now=12)["idle_s"] for name in "ab"] == [9, 2]


def test_a_fork_goes_from_an_open_name_to_one_that_is_not_open(make: Make) -> None:
    model = network()
    engine = make(model)
    engine.step([("a", 1), ("b", 2), ("closed", 3)])
    engine.close("closed")
    before = everything(engine)
    refusals: list[tuple[str, str, type[RequestError], str]] = [
        ("a", "b", Exists, "a cannot be copied to b: a session of that name is open already."),
        ("a", "a", Exists, "a cannot be copied to a: a session of that name is open already."),
        ("closed", "new", UnknownSession, "The session closed was closed; open or reset starts it anew."),
        ("closed", "closed", UnknownSession, "The session closed was closed; open or reset starts it anew."),
        ("never", "a", UnknownSession, "The session never is not open, and not among the names closed of late; "),
    ]
    for origin, to, error, told in refusals:
        with pytest.raises(error) as raised:
            engine.fork(origin, to)
        assert str(raised.value).startswith(told)
        assert everything(engine) == before
        assert engine.table.rows.keys() == {"a", "b"}
    assert engine.fork("a", "closed") == 1
    assert not engine.step([("closed", 4)])[0].opened
    assert everything(engine) == moved(model, {"a": [1], "b": [2], "closed": [1, 4]})


# Preconditions --------------------------------------------------------------------------------------------------------


def test_t_is_the_number_of_the_next_step_for_every_operation(make: Make) -> None:
    engine = make(network())
    engine.step([("a", 1), ("a", 2), ("closed", 1)])
    engine.close("closed")
    state, take = engine.snapshot("a"), engine.table.take
    uses: list[Callable[[int, int], object]] = [
        lambda row, t: engine.admit(row, t, 0.0),
        lambda row, t: engine.reset_row(row, 0.0, t),
        lambda row, t: engine.close_row(row, t),
        lambda row, t: engine.fork_row(row, take, "b", 0.0, t),
        lambda row, t: engine.restore_row(row, state, 0.0, t),
    ]
    before = everything(engine)
    for use in uses:
        for t in (0, 1, 2, 4, 2**64):
            with pytest.raises(Conflict) as error:
                use(engine.table.rows["a"], t)
            assert error.value.extra == {"field": "t", "t": 2}
            assert str(error.value) == f"a: t is {t}, but its next step is 3."
            assert everything(engine) == before
    for name in ("closed", "new"):
        row = take(name)
        for use in (lambda row, t: engine.open_row(row, state, 0.0, t), uses[1]):
            with pytest.raises(Conflict) as error:
                use(row, 2)
            assert error.value.extra == {"field": "t", "t": 0}
        engine.open_row(row, state, 0.0, 1)
    for use in (uses[4], uses[3], uses[1]):
        use(engine.table.rows["a"], 3)
    assert everything(engine) == moved(engine.model, {"a": [], "b": [1, 2], "closed": [1, 2], "new": [1, 2]})
    assert uses[0](engine.table.rows["a"], 1) is False
    uses[2](engine.table.rows["b"], 3)
    engine.table.free(engine.table.rows["b"])


# Peek -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("want", ["argmax", "none", "probs", "logits", 1, 4])
def test_a_peek_gives_what_the_steps_then_give_and_moves_nothing(make: Make, kind: str, dtype: str, want: str | int) -> None:
    engine = make(network(kind, dtype=dtype, vocabulary=True))
    engine.step([("a", 1), ("b", 3), ("a", 2)], now=4)
    info, xs = engine.info("a", now=9), ["w4", 4, 0, 8, 8]
    for surprisal in (False, True):
        before = everything(engine)
        seen = engine.peek("a", xs, want=want, surprisal=surprisal)
        assert everything(engine) == before
        assert engine.info("a", now=9) == info
        assert [p.t for p in seen] == [3, 4, 5, 6, 7]
        name = f"fork{surprisal}"
        engine.fork("a", name)
        assert [plain(p) for p in seen] == [
            plain(p) for p in engine.step([(name, x) for x in xs], want=want, surprisal=surprisal)
        ]
        assert all((p.surprisal is not None) == surprisal for p in seen)


@pytest.mark.parametrize("head", ["linear", "bernoulli", "categorical"])
def test_a_peek_into_vectors(make: Make, head: str) -> None:
    engine = make(dense(head))
    xs: list[Any] = [[0.5, -1, 3], np.array([1, 2, 3], "<f4").tobytes()]
    engine.step([("a", [1, 1, 1])])
    seen = engine.peek("a", xs)
    assert engine.info("a")["t"] == 1
    assert [plain(p) for p in seen] == [plain(p) for p in engine.step([("a", x) for x in xs])]


def test_several_peeks_at_once_do_not_touch_each_other(make: Make) -> None:
    engine = make(network())
    engine.step([("a", 1), ("b", 2), ("b", 5)])
    asked: list[tuple[str, list[int], str | int, bool]] = [
        ("a", [1, 2, 3], "probs", False),
        ("b", [4], "none", True),
        ("a", [8, 0], 3, True),
    ]
    rows = engine.table.rows
    peeks = [engine.peek_row(rows[name], xs, want, surprisal) for name, xs, want, surprisal in asked]
    engine.step([("a", 7), ("b", 7)])  # they have their states already
    with one_thread():
        while waiting := [peek for peek in peeks if not peek.done]:
            engine.foresee(waiting)
    for peek, (name, xs, want, surprisal) in zip(peeks, asked, strict=True):
        other = make(network())
        other.step([(name, x) for x in ([1] if name == "a" else [2, 5])])
        assert [plain(p) for p in peek.found] == [plain(p) for p in other.peek(name, xs, want=want, surprisal=surprisal)]


def test_a_peek_that_would_leave_the_finite_numbers(make: Make) -> None:
    engine = make(relu())
    engine.step([("a", 1), ("b", 1)])
    before = everything(engine)
    for xs, place in (([SPOILED], 0), ([2, 3, SPOILED, 4], 2)):
        with pytest.raises(NotFinite) as error:
            engine.peek("a", xs)
        assert str(error.value) == f"a: xs[{place}] would make the state NaN or infinite."
        assert everything(engine) == before
    good = engine.peek_row(engine.table.rows["a"], [2, 3], "argmax", False)
    bad = engine.peek_row(engine.table.rows["b"], [SPOILED, 3], "argmax", False)
    with one_thread():
        engine.foresee([bad, good])
        engine.foresee([good])
    assert (good.done, good.spoiled, len(good.found)) == (True, False, 2)
    assert (bad.done, bad.spoiled, bad.found) == (True, True, [])
    assert [plain(p) for p in good.found] == [plain(p) for p in engine.step([("a", 2), ("a", 3)])]
    assert np.isfinite(engine.model.run([1, HUGE])).all()


def test_what_is_no_peek(make: Make) -> None:
    engine = make(network())
    engine.step([("a", 1), ("closed", 1)])
    engine.close("closed")
    before = everything(engine)
    refusals: list[tuple[str, list[Any], dict[str, Any], type[RequestError]]] = [
        ("a", [1, V], {}, BadToken),
        ("a", [1, True], {}, BadRequest),
        ("a", [1], {"want": 0}, BadRequest),
        ("closed", [1], {}, UnknownSession),
        ("never", [1], {}, UnknownSession),
    ]
    for name, xs, options, error in refusals:
        with pytest.raises(error):
            engine.peek(name, xs, **options)
        assert everything(engine) == before
        assert engine.table.rows.keys() == {"a"}
    assert engine.peek("a", []) == []
