"""The engine by name: what moves, what comes back, and what an error leaves as it was."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rnnstream.engine.engine import Engine
from rnnstream.errors import BadRequest, BadToken, Full, NotFinite, RequestError, UnknownSession
from rnnstream.model.network import Network
from rnnstream.model.step import StepModel

from .models import DTYPES, HUGE, SPOILED, V, dense, network, relu, weights
from .sequences import everything, moved

Make = Callable[..., Engine]


# Steps ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
def test_sessions_in_company_have_the_bits_of_their_whole_sequences(make: Make, kind: str, dtype: str) -> None:
    model = network(kind, dtype=dtype)
    engine = make(model)
    rng = np.random.default_rng(1)
    tokens: dict[str, list[int]] = {f"s{i}": [] for i in range(40)}
    probs: dict[str, list[bytes]] = {name: [] for name in tokens}
    for _ in range(12):
        some = rng.permutation(list(tokens))[: rng.integers(1, 41)].tolist()
        pairs = [(name, int(rng.integers(V))) for name in some]
        for (name, x), found in zip(pairs, engine.step(pairs, want="probs"), strict=True):
            tokens[name].append(x)
            assert found.t == len(tokens[name])
            assert found.opened == (found.t == 1)
            assert found.probs is not None
            assert found.probs.dtype == np.float32
            probs[name].append(found.probs.tobytes())
        engine.check()
    tokens = {name: xs for name, xs in tokens.items() if xs}
    assert everything(engine) == moved(model, tokens)
    for name, xs in tokens.items():
        assert b"".join(probs[name]) == model.forward(xs).astype("<f4").tobytes()


@pytest.mark.parametrize("vocabulary", [False, True])
@pytest.mark.parametrize(
    "layer", [{"kind": "rnn"}, {"kind": "rnn", "activation": "identity"}, {"kind": "gru"}, {"kind": "lstm"}]
)
def test_a_token_alone_moves_as_in_company(make: Make, layer: dict[str, Any], vocabulary: bool) -> None:
    layers = [{"kind": "onehot"}, layer | {"size": 7}, {"kind": "dense", "size": V}]
    together, alone = make(network(layers=layers, vocabulary=vocabulary)), make(network(layers=layers, vocabulary=vocabulary))
    rng = np.random.default_rng(1)
    for now in range(20):
        pairs = [(f"s{i}", int(rng.integers(V))) for i in range(5)]
        expected = together.step(pairs, now=now)
        assert [alone.step([pair], now=now)[0] for pair in pairs] == expected
        assert everything(alone) == everything(together)
    assert alone.info("s3", now=30) == together.info("s3", now=30)


def test_a_token_alone_that_would_overflow_moves_nothing(make: Make) -> None:
    engine = make(relu())
    engine.step([("s", 1)])
    before = everything(engine)
    with pytest.raises(NotFinite):
        engine.step([("s", SPOILED)])
    assert everything(engine) == before
    assert engine.step([("s", 1)])[0].t == 2


def test_a_token_alone_is_scored_where_that_is_asked_for(make: Make) -> None:
    engine = make(network())
    [before] = engine.step([("s", 1)], want="probs")
    [scored] = engine.step([("s", 2)], surprisal=True)
    assert before.probs is not None
    assert scored.surprisal == pytest.approx(-np.log(before.probs[2]), rel=1e-5)


def test_a_token_alone_opens_a_name_that_is_only_waited_for(make: Make) -> None:
    engine = make(network())
    engine.table.take("s")
    assert engine.step([("s", 1)])[0].opened
    assert engine.sessions() == ["s"]


def test_an_engine_can_be_copied_and_pickled(make: Make) -> None:
    engine = make(network())
    engine.step([("s", 1)])
    for other in (copy.deepcopy(engine), pickle.loads(pickle.dumps(engine))):
        assert other.step([("s", 2)]) == make(engine.model).step([("s", 1), ("s", 2)])[1:]
    assert engine.info("s")["t"] == 1


def test_a_network_that_goes_its_own_way_has_no_twin(make: Make) -> None:
    class Own(Network):
        def head(self, features: Any) -> Any:
            return np.flip(super().head(features), axis=1)

    plain = network()
    model = Own(plain.spec, weights(plain.spec.shapes, plain.spec.dtype, 0), measure=False)
    assert plain.for_one() is not None
    assert model.for_one() is None
    engine = make(model)
    engine.step([("s", 1)])
    plain_engine = make(plain)
    plain_engine.step([("s", 1)])
    assert engine.step([("s", 1)])[0].y == V - 1 - plain_engine.step([("s", 1)])[0].y


def test_tokens_of_one_session_in_one_call_are_applied_in_their_order(make: Make) -> None:
    model = network()
    engine = make(model)
    pairs = [("a", 1), ("b", 2), ("a", 3), ("a", 4), ("b", 5), ("c", 6), ("a", 1)]
    found = engine.step(pairs)
    assert [p.t for p in found] == [1, 1, 2, 3, 2, 1, 4]
    assert [p.opened for p in found] == [True, True, False, False, False, True, False]
    for name in "abc":
        ys = model.forward([x for other, x in pairs if other == name])
        mine = [p for p, (other, _) in zip(found, pairs, strict=True) if other == name]
        assert [p.y for p in mine] == ys.argmax(axis=1).tolist()
        assert [p.p for p in mine] == ys.max(axis=1).tolist()
    assert everything(engine) == moved(model, {"a": [1, 3, 4, 1], "b": [2, 5], "c": [6]})


def test_no_tokens_at_all(make: Make) -> None:
    assert make(network()).step([]) == []
    assert make(dense("linear")).step(iter([])) == []


@pytest.mark.parametrize("vocabulary", [False, True])
def test_what_is_wanted_comes_and_nothing_else(make: Make, vocabulary: bool) -> None:
    model = network(vocabulary=vocabulary)
    engine = make(model)
    a, y = model.step(model.initial_state(), 3)
    order = sorted(range(V), key=lambda i: (-y[i], i))
    best = {"y": order[0], "p": float(y[order[0]]), "label": f"w{order[0]}" if vocabulary else None}
    extra: dict[str | int, dict[str, Any]] = {
        "none": {"y": None, "p": None, "label": None},
        "argmax": {},
        "probs": {"probs": y.tobytes()},
        "logits": {},
        1: {"top": [(order[0], float(y[order[0]]))]},
        4: {"top": [(i, float(y[i])) for i in order[:4]]},
        100: {"top": [(i, float(y[i])) for i in order]},
    }
    for want, more in extra.items():
        (found,) = engine.step([(f"s{want}", "w3" if vocabulary else 3)], want=want)
        given = {key: getattr(found, key) for key in ("y", "p", "label", "top", "surprisal", "probs", "logits")}
        logits, probs = given["logits"], given["probs"]
        if want == "logits":
            assert np.array_equal(model.output.g2(logits[np.newaxis])[0], y)
            del given["logits"]
            more = {"logits": None, **more}
        if probs is not None:
            given["probs"] = probs.tobytes()
        none = dict.fromkeys(("top", "surprisal", "probs", "logits"))
        assert given | {"logits": None} == none | best | more
        assert engine.state(f"s{want}").tobytes() == a.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head", ["linear", "bernoulli"])
def test_other_heads_give_y_as_float32(make: Make, head: str, dtype: str) -> None:
    model = dense(head, dtype)
    engine = make(model)
    xs = [[0.5, -1, 3], [1e30, 2, 0], [0, 0, 0]]
    ys = model.forward(xs)
    assert ys.dtype == dtype
    for t, x in enumerate(xs):
        given: Any = np.array(x, "<f4").tobytes() if t else x
        wants = ["argmax", "logits", "none"] + ["probs"] * (head == "bernoulli")
        for want in wants:
            (found,) = engine.step([(want, given)], want=want)
            arrays = {key: getattr(found, key) for key in ("y", "probs", "logits")}
            expected = {"y": want != "none", "probs": want == "probs", "logits": want == "logits"}
            assert {key: array is not None for key, array in arrays.items()} == expected
            for key in ("y", "probs"):
                assert arrays[key] is None or arrays[key].tobytes() == ys[t].astype("<f4").tobytes()
            if want == "logits" and head == "linear":
                assert arrays["logits"].tobytes() == ys[t].astype("<f4").tobytes()
            assert (found.p, found.label, found.top) == (None, None, None)


@pytest.mark.parametrize("dtype", DTYPES)
def test_surprisal_is_minus_ln_of_the_probability_that_the_outputs_before_gave(make: Make, dtype: str) -> None:
    model = network("rnn", dtype=dtype)
    engine = make(model)
    xs = [4, 4, 0, 8, 1, 2]
    _, y0 = model.step(model.initial_state(), 0)
    features = model.features(model.initial_state()[np.newaxis])
    assert features is not None
    before = np.concatenate([model.output.g2(model.head(features)), model.forward(xs)[:-1]])
    expected = -np.log(before[np.arange(len(xs)), xs].astype(float))
    for want in ("argmax", "none"):
        found = [engine.step([(f"{want}", x), (f"other{i}", 1)], want=want, surprisal=True)[0] for i, x in enumerate(xs)]
        np.testing.assert_allclose([p.surprisal for p in found], expected, rtol=1e-5 if dtype == "float32" else 1e-12)
        assert [p.y is None for p in found] == [want == "none"] * len(xs)
    assert not np.allclose(y0, before[0])


# What is refused ------------------------------------------------------------------------------------------------------

A_B = [("a", 1), ("b", 2), ("a", 3)]


@pytest.mark.parametrize(
    ("pairs", "options", "error", "field"),
    [
        ([("a", 1), ("new", 2), ("b", V)], {}, BadToken, "x"),
        ([("a", 1), ("new", 2), ("b", -1)], {}, BadToken, "x"),
        ([("a", 1), ("new", 2), ("b", True)], {}, BadRequest, "x"),
        ([("a", 1), ("new", 2), ("b", "w1")], {}, BadToken, "x"),
        ([("a", 1), ("new", 2), ("b", 1.0)], {}, BadRequest, "x"),
        ([("a", 1), ("new", 2), ("closed", 1)], {}, UnknownSession, None),
        ([("a", 1), *((f"new{i}", 2) for i in range(6))], {}, Full, None),
        ([("a", 1), ("new", 2)], {"want": "argmin"}, BadRequest, "want"),
        ([("a", 1), ("new", 2)], {"want": 0}, BadRequest, "want"),
        ([("a", 1), ("new", 2)], {"want": 101}, BadRequest, "want"),
        ([("a", 1), ("new", 2)], {"want": -3}, BadRequest, "want"),
        ([("a", 1), ("new", 2)], {"want": True}, BadRequest, "want"),
        ([("a", 1), ("new", 2)], {"want": None}, BadRequest, "want"),
    ],
)
def test_a_call_with_something_wrong_in_it_changes_nothing(
    make: Make, pairs: list[tuple[str, Any]], options: dict[str, Any], error: type[RequestError], field: str | None
) -> None:
    engine = make(network(), max_sessions=6)
    engine.step([*A_B, ("closed", 1)])
    engine.close("closed")
    before = everything(engine)
    with pytest.raises(error) as raised:
        engine.step(pairs, **options)
    assert raised.value.extra.get("field") == field
    assert everything(engine) == before == moved(engine.model, {"a": [1, 3], "b": [2]})
    engine.check()
    assert set(engine.table.rows) == {"a", "b"}


@pytest.mark.parametrize(
    ("model", "options", "field"),
    [
        (dense("linear"), {"want": 3}, "want"),
        (dense("linear"), {"want": "probs"}, "want"),
        (dense("bernoulli"), {"want": 1}, "want"),
        (dense("linear"), {"surprisal": True}, "surprisal"),
        (dense("categorical"), {"surprisal": True}, "surprisal"),
    ],
)
def test_a_model_is_not_asked_for_what_it_has_not(make: Make, model: StepModel, options: dict[str, Any], field: str) -> None:
    engine = make(model)
    with pytest.raises(BadRequest) as error:
        engine.step([("s", [1, 2, 3])], **options)
    assert error.value.field == field
    assert engine.sessions() == []


class Failing(StepModel):
    """A counter that raises at token 3, in the part that is asked for."""

    name, digest, exact, numerics, layers = "failing", "", True, "", []
    dtype, state_size = np.dtype(np.float32), 1

    def __init__(self, part: str) -> None:
        twin = network()
        self.part, self.input, self.output = part, twin.input, twin.output

    def initial_state(self) -> Any:
        return np.zeros(1, np.float32)

    def advance(self, states: Any, inputs: Any) -> Any:
        if self.part == "advance" and (inputs == 3).any():
            raise OSError("no such luck")
        return states + 1, inputs[:, np.newaxis]

    def head(self, features: Any) -> Any:
        if self.part == "head" and (features == 3).any():
            raise OSError("no such luck")
        return np.zeros((len(features), V), np.float32)


@pytest.mark.parametrize("part", ["advance", "head"])
def test_a_model_that_raises_moves_nothing(make: Make, part: str) -> None:
    engine = make(Failing(part))
    engine.step([("a", 1)])
    with pytest.raises(OSError, match="no such luck"):
        engine.step([("a", 1), ("new", 2), ("b", 3)])
    assert {name: t for name, (t, _) in everything(engine).items()} == {"a": 1}
    engine.check()
    assert engine.step([("a", 1), ("new", 2)])[1].opened


# Not finite -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_state_that_would_overflow_keeps_its_last_finite_value_and_the_others_move(make: Make, dtype: str) -> None:
    model = relu(dtype)
    engine = make(model)
    rng = np.random.default_rng(3)
    tokens: dict[str, list[int]] = {"wild": [], "calm": [], "third": []}
    refused = []  # for each: the name, its t as the sentence says it, and as it is
    for step in range(60):
        x = [HUGE, 0, 1, SPOILED, 2, 3][step % 6]
        others = [("calm", int(rng.integers(SPOILED))), ("third", int(rng.integers(SPOILED)))]
        try:
            engine.step([others[0], ("wild", x), others[1]])
            tokens["wild"].append(x)
        except NotFinite as error:
            refused.append((str(error).split(":")[0], str(error).split("t=")[1], f"{len(tokens['wild'])}."))
        for name, other in others:
            tokens[name].append(other)
        assert everything(engine) == moved(model, {name: xs for name, xs in tokens.items() if xs})
        engine.check()
    assert len(refused) > 20
    assert all(name == "wild" and told == at for name, told, at in refused)
    assert tokens["wild"]


def test_the_later_tokens_of_a_session_that_would_overflow_are_left_out(make: Make) -> None:
    model = relu()
    engine = make(model)
    engine.step([("a", 1), ("b", 1)])
    with pytest.raises(NotFinite):
        engine.step([("a", 2), ("b", 2), ("a", SPOILED), ("b", 3), ("a", 3), ("a", 4)])
    assert everything(engine) == moved(model, {"a": [1, 2], "b": [1, 2, 3]})


@pytest.mark.parametrize("behind", [[], [("new", 1)], [("new", 1), ("a", 1), ("a", 1), ("new", 2)]])
def test_a_first_token_that_is_not_finite_does_not_open_the_session(make: Make, behind: list[tuple[str, int]]) -> None:
    model = relu()
    engine = make(model)
    engine.step([("a", 1)])
    with pytest.raises(NotFinite, match="t=0"):
        engine.step([("new", SPOILED), *behind])
    assert everything(engine) == moved(model, {"a": [1] + [x for name, x in behind if name == "a"]})
    engine.check()
    with pytest.raises(UnknownSession) as error:
        engine.state("new")
    assert error.value.why == "never"
    assert engine.step([("new", 1)])[0].opened


def test_vectors_behind_one_that_is_not_finite(make: Make) -> None:
    layers = [{"kind": "rnn", "size": 4, "activation": "relu"}, {"kind": "dense", "size": 2}]
    model = network(head="linear", input={"kind": "dense", "size": 3}, layers=layers)
    engine = make(model)
    for x in ([3e38] * 3, [-3e38, 3e38, -3e38], [3e38, -3e38, 3e38], [3e38, 3e38, -3e38], [-3e38] * 3):
        if not np.isfinite(model.run([x])).all():
            break
    with pytest.raises(NotFinite):
        engine.step([("s", x), ("s", [0, 0, 0]), ("s", [0, 0, 0])])
    assert engine.sessions() == []


# Reset, close, info ---------------------------------------------------------------------------------------------------


def test_reset_starts_over_and_opens_what_is_not_open(make: Make) -> None:
    model = network()
    engine = make(model)
    engine.step([("a", 1), ("b", 2), ("a", 2)])
    engine.reset("a")
    engine.reset("new")
    zero = (0, model.initial_state().tobytes())
    assert everything(engine) == {**moved(model, {"b": [2]}), "a": zero, "new": zero}
    assert [p.opened for p in engine.step([("a", 5), ("new", 5)])] == [False, False]
    assert everything(engine) == moved(model, {"a": [5], "b": [2], "new": [5]})


def test_reset_goes_to_the_learned_initial_state(make: Make) -> None:
    model = network("rnn", initial_state=True)
    assert model.initial_state().any()
    engine = make(model)
    engine.reset("s")
    assert engine.state("s").tobytes() == model.initial_state().tobytes()
    engine.step([("s", 1)])
    assert everything(engine) == moved(model, {"s": [1]})


def test_a_closed_session_stays_closed_until_it_is_reset(make: Make) -> None:
    model = network()
    engine = make(model)
    engine.step([("a", 1), ("b", 1)])
    engine.close("a")
    for use in (engine.state, engine.info, engine.close, lambda name: engine.step([(name, 1)])):
        with pytest.raises(UnknownSession) as error:
            use("a")
        assert error.value.why == "closed"
        engine.check()
    assert everything(engine) == moved(model, {"b": [1]})
    engine.reset("a")
    assert engine.step([("a", 4)])[0].t == 1
    assert everything(engine) == moved(model, {"a": [4], "b": [1]})


def test_a_session_never_opened_is_told_apart(make: Make) -> None:
    engine = make(network())
    for use in (engine.state, engine.info, engine.close):
        with pytest.raises(UnknownSession) as error:
            use("a")
        assert error.value.why == "never"
    engine.check()
    assert engine.sessions() == []


def test_rows_are_handed_out_again_and_nothing_of_the_one_before_is_seen(make: Make) -> None:
    model = network()
    engine = make(model, max_sessions=5)
    for i in range(50):
        assert engine.step([(f"s{i}", x) for x in (1, 2, i % V)])[0].opened
        if i >= 4:
            engine.close(f"s{i - 4}")
        engine.check()
    assert len(engine.table.names) <= 5
    assert everything(engine) == moved(model, {f"s{i}": [1, 2, i % V] for i in range(46, 50)})


def test_a_full_engine_opens_no_more_and_serves_those_that_are_open(make: Make) -> None:
    engine = make(network(), max_sessions=2)
    engine.step([("a", 1), ("b", 1)])
    for open_one in (lambda: engine.step([("c", 1)]), lambda: engine.reset("c")):
        with pytest.raises(Full, match="2 sessions"):
            open_one()
    assert [p.t for p in engine.step([("a", 1), ("b", 1)])] == [2, 2]
    engine.close("a")
    assert engine.step([("c", 1)])[0].opened
    assert sorted(engine.sessions()) == ["b", "c"]


def test_what_a_refused_call_has_opened_is_not_open(make: Make) -> None:
    """More names may be waited for than open: then it shows only when they are opened, one after the other."""
    engine = make(network(), max_sessions=2, max_rows=9)
    engine.step([("a", 1)])
    with pytest.raises(Full, match="2 sessions"):
        engine.step([("a", 1), ("b", 1), ("c", 1)])
    assert everything(engine) == moved(engine.model, {"a": [1]})
    assert set(engine.table.rows) == {"a"}
    assert engine.step([("b", 1)])[0].opened


def test_info(make: Make) -> None:
    model = network()
    engine = make(model)
    engine.step([("a", 1)], now=100.0)
    engine.step([("a", 2)], now=107.0)
    info = engine.info("a", now=110.0)
    assert info == {
        "t": 2,
        "age_s": 10.0,
        "idle_s": 3.0,
        "producers": {},
        "norm": pytest.approx(np.linalg.norm(model.run([1, 2]))),
    }
    engine.reset("a", now=120.0)
    assert engine.info("a", now=121.0) == {"t": 0, "age_s": 1.0, "idle_s": 1.0, "producers": {}, "norm": 0.0}


def test_info_of_a_state_near_the_largest_number_does_not_warn(make: Make) -> None:
    engine = make(relu("float64"))
    engine.step([("a", HUGE)])
    assert np.abs(engine.state("a")).max() > 1e300
    assert engine.info("a")["norm"] > 1e300


def test_the_state_that_is_handed_out_is_a_copy(make: Make) -> None:
    engine = make(network())
    engine.step([("a", 1)])
    before = everything(engine)
    engine.state("a")[:] = np.nan
    assert everything(engine) == before


# Pages ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 3, 100])
@pytest.mark.parametrize("scan", [1, 4, 1000])
def test_pages_give_every_open_name_once(make: Make, limit: int, scan: int) -> None:
    engine = make(network())
    engine.step([(f"{'ab'[i % 2]}{i}", 1) for i in range(30)])
    for i in (0, 3, 17, 28, 29):
        engine.close(f"{'ab'[i % 2]}{i}")
    for prefix in ("", "a", "b2", "no"):
        found: list[str] = []
        after: int | None = 0
        while after is not None:
            names, after, looked_at = engine.page(prefix, after, limit, scan)
            assert len(names) <= min(limit, looked_at)
            assert looked_at <= scan
            found += names
        assert sorted(found) == sorted(name for name in engine.sessions() if name.startswith(prefix))
    assert engine.page("", 2**64 - 1, 5, 5) == ([], None, 0)


def test_outputs_that_are_computed_in_parts_are_the_same(make, monkeypatch) -> None:
    """A wave with a large vocabulary has more outputs than there should be room for at a time."""
    pairs = [(f"s{i}", i % V) for i in range(10)]
    asked = {"want": "probs", "surprisal": True}
    whole = make(network()).step(pairs, **asked)
    monkeypatch.setattr("rnnstream.engine.rows.OUTPUT_BYTES", 3 * 4 * V)
    parts = make(network())
    assert [part.stop - part.start for part in parts.parts(10)] == [3, 3, 3, 1]
    for one, other in zip(whole, parts.step(pairs, **asked), strict=True):
        assert one.probs is not None
        assert other.probs is not None
        assert one.probs.tobytes() == other.probs.tobytes()
        assert (one.t, one.y, one.p, one.surprisal) == (other.t, other.y, other.p, other.surprisal)
