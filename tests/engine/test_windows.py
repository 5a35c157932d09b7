"""Sessions of networks that look at the last few tokens: their windows are state like any other, in snapshots too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rnnstream.engine.engine import Engine
from rnnstream.errors import BadRequest

from .models import DTYPES, V, network
from .sequences import everything, moved

Make = Callable[..., Engine]

EMBEDDING = {"kind": "embedding", "size": 5}
WINDOWS = [
    {"kind": "conv", "size": 6, "kernel": 3, "dilation": 2},
    {"kind": "activation", "function": "relu"},
    {"kind": "pool", "function": "max", "window": 3},
]
LAYERS = {
    "conv, pool, gru": [EMBEDDING, *WINDOWS, {"kind": "gru", "size": 7}, {"kind": "dense", "size": V}],
    "gru, conv, pool": [EMBEDDING, {"kind": "gru", "size": 7}, *WINDOWS, {"kind": "dense", "size": V}],
    "gru, residual": [EMBEDDING, {"kind": "gru", "size": 5}, {"kind": "residual", "of": 1}, {"kind": "dense", "size": V}],
}
STATE = {"conv, pool, gru": 4 * 5 + 2 * 6 + 7, "gru, conv, pool": 7 + 4 * 7 + 2 * 6, "gru, residual": 5}
NAMES = [f"s{i}" for i in range(6)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", LAYERS)
def test_in_random_company_a_session_is_its_whole_sequence(make: Make, kind: str, dtype: str) -> None:
    """Batches of random sessions, which now and then go on in another engine from a snapshot."""
    model = network(layers=LAYERS[kind], dtype=dtype)
    assert model.state_size == STATE[kind]
    here, there = make(model), make(network(layers=LAYERS[kind], dtype=dtype))
    rng = np.random.default_rng(2)
    tokens: dict[str, list[int]] = {name: [] for name in NAMES}
    ys: dict[str, list[Any]] = {name: [] for name in NAMES}
    engines, moves = dict.fromkeys(NAMES, here), 0
    for _ in range(60):
        picks = rng.choice(NAMES, rng.integers(1, 9)).tolist()
        for engine in (here, there):
            pairs = [(name, int(rng.integers(V))) for name in picks if engines[name] is engine]
            for (name, x), prediction in zip(pairs, engine.step(pairs, want="probs"), strict=True):
                tokens[name].append(x)
                ys[name].append(prediction.probs)
                assert prediction.t == len(tokens[name])
        name = str(rng.choice(NAMES))
        if rng.random() < 0.3 and tokens[name]:  # the snapshot takes the window with it
            other = there if engines[name] is here else here
            assert other.open(name, engines[name].snapshot(name)) == len(tokens[name])
            engines[name].close(name)
            engines[name] = other
            moves += 1
    assert min(map(len, tokens.values())) > 20
    assert moves > 5
    for name in NAMES:
        assert np.array(ys[name]).tobytes() == model.forward(tokens[name]).astype("<f4").tobytes()
    assert everything(here) | everything(there) == moved(model, tokens)


def test_a_restored_window_is_the_one_of_then(make: Make) -> None:
    """The tokens after a snapshot are forgotten by it, and those before it are not."""
    model = network(layers=LAYERS["conv, pool, gru"])
    engine = make(model)
    before, after, more = [1, 2, 3, 4, 5, 6, 7], [8, 8, 8], [0, 1, 2, 3]
    engine.step([("a", x) for x in before])
    state = engine.snapshot("a")
    engine.step([("a", x) for x in after])
    assert engine.restore("a", state) == len(before)
    found = engine.step([("a", x) for x in more], want="probs")
    whole = model.forward([*before, *more])[len(before) :]
    assert np.array([prediction.probs for prediction in found]).tobytes() == whole.tobytes()


@pytest.mark.parametrize("kind", ["gru, conv, pool", "gru, residual"])
def test_where_outputs_need_the_token_nothing_is_scored_before_it(make: Make, kind: str) -> None:
    engine = make(network(layers=LAYERS[kind]))
    with pytest.raises(BadRequest, match="surprisal"):
        engine.step([("a", 1)], surprisal=True)
    assert engine.sessions() == []
    (found,) = make(network(layers=LAYERS["conv, pool, gru"])).step([("a", 1)], surprisal=True)
    assert found.surprisal is not None
