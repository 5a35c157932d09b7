"""Tapes: rows without NumPy's calls, with its bits. That networks have these bits in every company is in test_exactness."""

import gc
import pickle
import subprocess
import sys
import textwrap
import weakref

import numpy as np
import pytest

from rnnstream.engine.engine import Engine
from rnnstream.model import tape
from rnnstream.model.blas import fingerprint, one_thread
from rnnstream.model.network import Network, Played, random_network
from rnnstream.model.outcomes import most_likely, most_likely_of_one
from rnnstream.model.spec import parse

from .nets import VARIANTS, dense, gru, layernorm, network, onehot, rnn, token_spec

pytestmark = pytest.mark.skipif(not tape.player(), reason="rnnstream-kernel is not installed, or NumPy's BLAS not known to it")

# What has no twin for one row, and what a tape cannot hold: sums over a row, and dense tokens that are widened.
OTHERS = {"windows", "residuals", "no memory, tokens", "no memory, dense"}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", VARIANTS)
def test_which_networks_are_played(name, dtype):
    model = network(VARIANTS[name] | {"dtype": dtype})
    widened = model.input.kind == "dense" and dtype == "float64"
    assert isinstance(model.for_one(), Played) is (name not in OTHERS and not widened)
    assert isinstance(model.for_many(), Played) is isinstance(model.for_one(), Played)
    assert isinstance(model.for_many(), Played) or model.for_many() is model


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for name in sorted(set(VARIANTS) - OTHERS)
        for dtype in ("float32", "float64")
        if dtype == "float32" or VARIANTS[name]["input"]["kind"] == "token"
    ],
)
def test_batches_of_every_size_have_the_bits_of_numpy(name, dtype):
    model = network(VARIANTS[name] | {"dtype": dtype})
    many, rng = model.for_many(), np.random.default_rng(3)
    token = model.input.kind == "token"
    with one_thread():
        for rows in (*range(1, 35), 300):
            wide = rng.uniform(-1, 1, (rows, model.state_size + 3)).astype(dtype)
            states = wide[:, :-3] if rows % 2 else wide[:, :-3].copy()  # also of an array that is wider
            xs = rng.integers(0, model.input.size, rows) if token else rng.random((rows, model.input.size), np.float32)
            if rows % 5 == 0:
                states[rng.integers(rows)] = (np.nan, np.inf, np.finfo(dtype).max)[rows // 5 % 3]
            before = states.copy()
            expected = *model.advance(states, xs), model.head(model.advance(states, xs)[1])
            new, features = many.advance(states, xs)
            kept = new.copy()
            for some, others in zip(expected, (new, features, many.head(features)), strict=True):
                np.testing.assert_array_equal(some, others)
            if many.likely and model.output.kind == "categorical":
                for some, others in zip(most_likely(expected[2]), many.likely(features), strict=True):
                    assert some.dtype == others.dtype
                    np.testing.assert_array_equal(some, others)
            assert states.tobytes() == before.tobytes()
            assert new.tobytes() == kept.tobytes()


def test_what_does_not_stay_in_the_cache_is_played_in_rows_alone():
    small, large = (network(token_spec(onehot(), rnn(size), dense(5), size=5)) for size in (1010, 1030))
    assert isinstance(small.for_many(), Played)
    assert large.for_many() is large
    assert isinstance(large.for_one(), Played)


@pytest.mark.parametrize("version", ["0.1.0", "0.3.0", "10.2.0"])
def test_a_player_of_another_version_is_not_used(version, monkeypatch):
    monkeypatch.setattr(tape.kernel, "__version__", version)
    assert not tape.player.__wrapped__()


def test_who_plays_is_in_the_fingerprint_of_what_is_played():
    played, by_calls = (
        network(VARIANTS["vanilla"]),
        network(token_spec(onehot(), rnn(9), layernorm(), rnn(9), dense(5), size=5)),
    )
    assert played.numerics == f"{fingerprint()}, {tape.player()}"
    assert not isinstance(by_calls.for_one(), Played)
    assert by_calls.numerics == fingerprint()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [2, 100, 1024, 1025])
def test_predict_is_advance_head_and_the_most_likely(size, dtype):
    model = network(token_spec(onehot(), gru(40), dense(size), size=size) | {"dtype": dtype})
    one, rng = model.for_one(), np.random.default_rng(0)
    assert (one.predict is not None) is (size <= 1024)  # of more logits, NumPy's search is as fast
    with one_thread():
        for state in rng.uniform(-1, 1, (50 if size <= 1024 else 0, 40)).astype(dtype):
            x = int(rng.integers(size))
            new, y, p = one.predict(state, x)
            expected, features = one.advance(state, x)
            assert new.tobytes() == expected.tobytes()
            assert (y, p) == most_likely_of_one(one.head(features))
            assert type(y) is int
            assert type(p) is float


def predict(logits):
    """`predict` for these logits, on a tape that has them as its state."""
    recorder = tape.Recorder(logits.dtype)
    state, out = recorder.buffer(len(logits)), recorder.buffer(1)
    recorder.ends(state, None, out, state)
    return recorder.tape.predict(logits, 0)[1:]


def likely(logits):
    """`likely` for rows of logits, on a tape that has them as its states."""
    recorder = tape.Recorder(logits.dtype, 3)
    state = recorder.buffer(logits.shape[1])
    recorder.ends(state, None, state)
    return recorder.tape.likely(logits)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_most_likely_of_odd_logits(dtype):
    rng = np.random.default_rng(1)
    nan, inf, large = np.nan, np.inf, np.finfo(dtype).max
    odd = [[0], [nan], [inf], [-inf], [1, nan, 2], [inf, 1, inf], [-inf, -inf], [3, 3, 1], [large, -large], [large, inf, nan]]
    odd += [[1, 1 + 1e-7, 0], [1 - 1e-7, 1], [0, -0.0], [-0.0, 0]]  # of which the largest is not the first whose exp() is 1
    rows = [np.array(row, dtype) for row in odd] + [rng.normal(0, 5, n).astype(dtype) for n in range(1, 200)]
    with one_thread():
        for logits in rows:
            np.testing.assert_equal(predict(logits), most_likely_of_one(logits))
            batch = np.stack([logits, logits[::-1], np.roll(logits, 1), logits])
            np.testing.assert_equal(likely(batch), most_likely(batch))


def test_a_state_that_would_not_be_finite():
    model = network(token_spec(onehot(), rnn(8, "relu"), dense(5), size=5))
    one = model.for_one()
    with one_thread():
        for place, bad in ((0, np.nan), (7, np.inf), (3, np.finfo("float32").max)):
            state = np.full(8, 0.5, np.float32)
            state[place] = bad
            assert (one.predict(state, 1) is None) is not np.isfinite(one.advance(state, 1)[0]).all()
        assert one.predict(np.full(8, np.nan, np.float32), 1) is None


def test_a_tape_that_gives_other_bits_is_not_played(monkeypatch):
    spec = parse(VARIANTS["vanilla"])
    assert tape.is_exact(random_network(spec))
    elementwise = tape.Recorder.elementwise

    def other(self, ufunc, inputs, out):
        return elementwise(self, np.subtract if ufunc is np.add else ufunc, inputs, out)

    monkeypatch.setattr(tape.Recorder, "elementwise", other)
    assert not tape.is_exact(random_network(spec))


def test_tapes_that_give_other_bits_in_batches_alone_are_not_played(monkeypatch):
    spec, record = parse(VARIANTS["vanilla"]), tape.record

    def other(network, rows=None):
        found = record(network, rows)
        if rows is not None:
            found["likely"] = lambda features: most_likely(network.head(features[::-1]))
        return found

    monkeypatch.setattr(tape, "record", other)
    assert not tape.is_exact(random_network(spec))


@pytest.mark.parametrize(
    "step",
    [
        lambda a, x: (a.sum() + a, a),
        lambda a, x: (np.sort(a), a),
        lambda a, x: (np.cumsum(a), a),
        lambda a, x: (np.asarray(a) + 1, a),  # which nothing notes
        lambda a, x: (np.add(a[1:], a[:-1], out=a[1:]), a),
        lambda a, x: (a > 0, a),
        lambda a, x: (np.frexp(a)[0], a),
        lambda a, x: (a + np.arange(9.0), a),  # float64 to float32
    ],
    ids=["a sum", "sorted", "a running sum", "a plain array", "an overlap", "another dtype", "two results", "mixed"],
)
def test_what_a_tape_cannot_hold_is_not_played(step, monkeypatch):
    model = network(VARIANTS["vanilla"])
    odd = model.twin(lambda part: part.one)
    odd.advance = step
    monkeypatch.setattr(Network, "twin", lambda self, one: odd)
    with pytest.raises((tape.Unplayable, TypeError, ValueError)):
        tape.record(model)


def vector(n=4, dtype=np.float32):
    return np.zeros(n, dtype)


def table(k=3, n=4, dtype=np.float32):
    return np.zeros((k, n), dtype)


@pytest.mark.parametrize(
    "put",
    [
        lambda t: t.copy(vector(3), vector(4)),
        lambda t: t.copy(vector(4), vector(4, np.float64)),
        lambda t: t.copy(vector(4), table(8, 8)[::2, 0]),
        lambda t: t.copy(vector(4), [1, 2, 3, 4]),
        lambda t: t.copy(vector(4)),
        lambda t: t.row(vector(3), table()),
        lambda t: t.row(vector(12), table().ravel()),
        lambda t: t.product(table(2, 4), table(2, 5), table(4, 4), 0),
        lambda t: t.product(table(2, 4), table(3, 4), table(4, 4), 0),
        lambda t: t.product(table(2, 5), table(2, 4), table(4, 4), 0),
        lambda t: t.product(table(4, 2).T, table(2, 4), table(4, 4), 0),
        lambda t: t.product(table(2, 1), table(2, 4), table(4, 1), 0),
        lambda t: t.product(vector(4), table(1, 4), table(4, 4), 0),
        lambda t: t.product(table(2, 4), table(2, 4), table(4, 4).T[::2].T, 0),
        lambda t: t.loop(np.tanh, vector(3), vector(4)),
        lambda t: t.loop(np.tanh, vector(4), vector(1)),
        lambda t: t.loop(np.tanh, vector(4)),
        lambda t: t.loop(np.add, vector(4), vector(4)),
        lambda t: t.loop(np.add, vector(4), vector(2), vector(4)),
        lambda t: t.loop(np.divmod, vector(4), vector(4), vector(4)),
        lambda t: t.loop(np.isnan, vector(4), vector(4)),
        lambda t: t.loop(np.matmul, vector(4), vector(4), vector(4)),
        lambda t: t.loop(np.bitwise_and, vector(4), vector(4), vector(4)),
        lambda t: t.loop(sum, vector(4), vector(4)),
        lambda t: t.loop(np.tanh, table(), table()),
        lambda t: t.loop(),
        lambda t: t.ends(vector(), None),
        lambda t: t.ends(vector(), None, vector(), vector(), vector()),
        lambda t: t.ends(vector(), None, table()),
        lambda t: t.ends(None, None, vector()),
        lambda t: t.play(vector()),
        lambda t: t.predict(vector(), 0),
        lambda t: t.play_many(table(), np.arange(3)),
        lambda t: t.likely(table()),
        lambda t: t.copy(table(2, 4), table(2, 4)),
        lambda t: t.row(table(2, 4), table()),
        lambda t: t.loop(np.add, table(2, 4), vector(4), table(2, 4)),
    ],
)
def test_what_does_not_go_together_is_refused(put):
    made = tape.kernel.Tape(np.float32)
    with pytest.raises((TypeError, ValueError)):
        put(made)
    assert len(made) == 0


def test_what_a_tape_is_given_is_looked_at():
    model = network(token_spec(onehot(), rnn(4), dense(5), size=5))
    one = model.for_one()
    with one_thread():
        for state, x in [(vector(3), 0), (vector(4, np.float64), 0), ([0.0] * 4, 0), (vector(4), 1.0), (vector(4), None)]:
            for play in (one.advance, one.predict):
                with pytest.raises((TypeError, ValueError)):
                    play(state, x)
        for x in (5, -1, 1 << 70):
            with pytest.raises(IndexError):
                one.advance(vector(4), x)
        assert one.advance(vector(4), np.int64(4))[0].tobytes() == one.advance(vector(4), 4)[0].tobytes()
    with pytest.raises(TypeError):
        tape.kernel.Tape(np.int32)


def test_what_a_tape_of_many_rows_is_given_is_looked_at():
    many = network(token_spec(onehot(), rnn(4), dense(5), size=5)).for_many()
    ids = np.arange(3)
    with one_thread():
        assert many.advance(table(), ids)[0].shape == (3, 4)
        for states, xs in [
            (table(3, 5), ids),
            (table(3, 4, np.float64), ids),
            (table(4, 4), ids),
            (vector(), ids),
            (table(4, 6).T[::2].T, ids),
            ([[0.0] * 4] * 3, ids),
            (table(), ids.astype(np.int32)),
            (table(), ids.astype(np.float32)),
            (table(), ids.tolist()),
            (table(), np.arange(6)[::2]),
            (table(), table(3, 1)),
            (table(), None),
        ]:
            with pytest.raises((TypeError, ValueError)):
                many.advance(states, xs)
        for bad in (-1, 5):
            with pytest.raises(IndexError):
                many.advance(table(), np.array([0, 0, bad]))
        for features in (table(3, 5), vector(), table(3, 4, np.float64), None):
            with pytest.raises((TypeError, ValueError)):
                many.likely(features)
        assert many.advance(table(0, 4), ids[:0])[0].shape == (0, 4)
        assert [array.shape for array in many.likely(table(0, 4))] == [(0,), (0,)]
    dense_one = tape.kernel.Tape(np.float32, 2)
    dense_one.ends(table(2, 4), table(2, 3), table(2, 4))
    for xs in (table(3, 2), table(2, 3), ids, vector(3)):
        with pytest.raises((TypeError, ValueError)):
            dense_one.play_many(table(), xs)
    for end in (vector(), table(3, 4), table(1, 4)):
        with pytest.raises(ValueError, match="row"):
            dense_one.ends(end, None, table(2, 4))
    for rows in (0, -1, 1 << 40):
        with pytest.raises(ValueError, match="rows"):
            tape.kernel.Tape(np.float32, rows)


def test_ends_that_change_under_way_and_odd_arrays():
    made = tape.kernel.Tape(np.float32)
    made.ends(vector(), None, vector(), vector())

    class Sly:
        def __index__(self):
            made.ends(vector(1), None, vector(1), vector(1))
            return 0

    with pytest.raises((TypeError, ValueError)):
        made.predict(vector(), Sly())
    fixed = np.frombuffer(bytes(16), np.float32)
    swapped = vector().astype(">f4")
    crooked = np.frombuffer(bytearray(17), np.float32, 4, 1)
    for array in (fixed, swapped, crooked):
        with pytest.raises(TypeError):
            made.copy(array, vector())
    for array in (swapped, crooked):
        with pytest.raises(TypeError):
            made.copy(vector(), array)
    made.copy(vector(), fixed)
    with pytest.raises(TypeError):
        tape.kernel.Tape(">f4")
    with pytest.raises(ValueError, match="overlap"):
        made.product(np.lib.stride_tricks.as_strided(vector(8), (2, 4), (4, 4)), table(2, 4), table(4, 4), 0)
    given = tape.kernel.Tape(np.float32)
    given.ends(vector(), vector(2), vector())
    with pytest.raises(TypeError):
        given.play(vector())  # which has an x


def test_a_network_is_let_go_of_with_its_tapes():
    def one():
        return weakref.ref(network(VARIANTS["gru after"]).for_one()._network)

    gc.collect()
    before = sum(type(item) is tape.Recorder for item in gc.get_objects())
    found = [one() for _ in range(3)]
    gc.collect()
    assert not any(reference() for reference in found)
    assert sum(type(item) is tape.Recorder for item in gc.get_objects()) == before


@pytest.mark.parametrize("without", [False, True])
def test_what_was_pickled_plays_where_there_is_a_player(tmp_path, without):
    engine = Engine(network(VARIANTS["vanilla"]))
    engine.step([("s", 1), ("t", 2)])
    file = tmp_path / "engine"
    file.write_bytes(pickle.dumps(engine))
    (expected,) = engine.step([("s", 3)])
    code = f"""
        import pickle, sys
        from pathlib import Path
        if {without}:
            sys.modules["rnnstream_kernel"] = None
        from rnnstream.model.network import Played
        engine = pickle.loads(Path({str(file)!r}).read_bytes())
        assert isinstance(engine.model.for_one(), Played) is not {without}
        assert isinstance(engine._many, Played) is not {without}
        assert ("kernel" in engine.model.numerics) is not {without}
        assert engine.step([("s", 3)])[0].p == {expected.p!r}
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)


def test_a_twin_that_is_played_is_its_own_twin():
    one = network(VARIANTS["vanilla"]).for_one()
    assert one.for_one() is one
    assert not isinstance(one.twin(lambda part: part.one), Played)
    many = one.for_many()
    assert many.likely is not None
    assert many.for_many() is many
    assert many.for_one().predict is not None


def test_what_comes_out_is_nobody_elses():
    model = network(VARIANTS["lstm"])
    one, state = model.for_one(), model.initial_state()
    with one_thread():
        first = one.advance(state, 1)
        kept = [array.copy() for array in first]
        one.advance(first[0], 2)
        one.predict(first[0], 3)
    assert all(np.array_equal(array, before) for array, before in zip(first, kept, strict=True))
    assert state.tobytes() == model.initial_state().tobytes()
