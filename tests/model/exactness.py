"""The first promise, measured: alone, as a sequence and in every company a row has the same bits.

Run as a script it checks all variants with the kernels that OPENBLAS_CORETYPE chose, and prints their name.
"""

from operator import attrgetter

import numpy as np

from rnnstream.model.blas import kernels, one_thread
from rnnstream.model.network import Network

SIZES = (2, 3, 7, 8, 9, 64, 300)
SESSIONS = 300


def _steps(model: Network, states, inputs):
    """Everything that comes out of one step of a batch."""
    new, features = model.advance(states, inputs)
    logits = model.head(features)
    return new, logits, model.output.g2(logits)


def check_company(model: Network, tokens: list) -> None:
    """300 sessions through batches of every size, in random order and company, against each row alone, bit for bit.

    And through its twins for one row, if the network has them: by calls, and played from a tape where there is what plays it.

    Their states are random with full mantissa: from zeros, the products of the recurrence would be zeros too.

    Args:
        model: the network.
        tokens: checked ones to draw from.
    """
    rng = np.random.default_rng(0)
    states = rng.uniform(-1, 1, (SESSIONS, model.state_size)).astype(model.dtype)
    inputs = model.input.batch([tokens[pick] for pick in rng.integers(0, len(tokens), SESSIONS)])
    with one_thread():
        alone = [_steps(model, states[i : i + 1], inputs[i : i + 1]) for i in range(SESSIONS)]
        expected = [np.concatenate(bits) for bits in zip(*alone, strict=True)]
        for one in [] if model.for_one() is None else [model.for_one(), model.twin(attrgetter("one"))]:
            for i in range(SESSIONS):
                got = _steps(one, states[i], inputs[i] if inputs.ndim == 2 else inputs.item(i))
                assert [some.tobytes() for some in got] == [bits[i].tobytes() for bits in expected], f"row {i} without the axis"
        for size in SIZES:
            order = rng.permutation(SESSIONS)
            for start in range(0, SESSIONS, size):
                rows = order[start : start + size]
                for got, bits in zip(_steps(model, states[rows], inputs[rows]), expected, strict=True):
                    assert got.dtype == bits.dtype
                    assert got.tobytes() == bits[rows].tobytes(), f"batch of {len(rows)}"


def check_sequence(model: Network, tokens: list) -> None:
    """The whole sequence, from the start and from its middle, against one step at a time, bit for bit."""
    a, ys, middle = model.initial_state(), [], len(tokens) // 2
    for t, x in enumerate(tokens):
        if t == middle:
            half = a
        a, y = model.step(a, x)
        ys.append(y)
    assert model.forward(tokens).tobytes() == np.array(ys).tobytes()
    assert model.forward(tokens[middle:], half).tobytes() == np.array(ys[middle:]).tobytes()
    assert model.run(tokens).tobytes() == a.tobytes()
    assert np.isfinite(ys).all()


def check_neighbours(model: Network, tokens: list) -> None:
    """Rows of NaN, infinity, huge and tiny numbers beside a row change nothing of it."""
    wild = np.array([np.nan, np.inf, -np.inf, np.finfo(model.dtype).max, np.finfo(model.dtype).tiny / 2], model.dtype)
    states = np.tile(model.run(tokens[:5]), (23, 1))
    inputs = model.input.batch(tokens[:23])
    with one_thread():
        expected = _steps(model, states, inputs)
        states[::2] = wild[np.arange(12) % 5, np.newaxis]
        if model.input.kind == "dense":
            inputs[::2] = wild[np.arange(12) % 5, np.newaxis].astype(np.float32)
        for got, bits in zip(_steps(model, states, inputs), expected, strict=True):
            assert got[1::2].tobytes() == bits[1::2].tobytes()


def main() -> None:
    """All variants, and larger ones: where small-matrix kernels, panels and multi-row tiles come in."""
    from .nets import VARIANTS, dense, dense_spec, embedding, gru, lstm, network, onehot, rnn, token_spec, tokens

    large = {
        "large gru": token_spec(embedding(64), gru(160), dense(300), size=300),
        "large rnn": token_spec(onehot(), rnn(300), dense(50), size=50),
        "large lstm": dense_spec(lstm(150), dense(1), size=30),
    }
    for name, spec in (VARIANTS | large).items():
        for dtype in ("float32", "float64"):
            model = network(spec | {"dtype": dtype}, seed=3, scale=0.3)
            given = tokens(model, 30)
            assert model.exact, (name, dtype)
            check_company(model, given)
            check_sequence(model, given)
            check_neighbours(model, given)
    print(kernels())


if __name__ == "__main__":
    main()
