"""States copied, looked ahead from, and moved between workers in processes of their own: the same bits."""

import numpy as np
import pytest

from rnnstream import BadState, Client, load
from tests.process.exactness import VOCABULARY, token_model
from tests.worker_process import random_model, serving

LSTM = [{"kind": "embedding", "size": 5}, {"kind": "lstm", "size": 12}, {"kind": "dense", "size": VOCABULARY}]


@pytest.fixture(scope="module", params=["tokens", "lstm"])
def path(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    if request.param == "tokens":
        return token_model(directory)
    return random_model(directory / "lstm.safetensors", LSTM, size=VOCABULARY)


def bits(predictions):
    return [prediction.probs.tobytes() for prediction in predictions]


def whole(model, tokens, last):
    """What the last so many tokens of a whole sequence give."""
    return [y.astype("<f4").tobytes() for y in model.forward(tokens)[-last:]]


def test_a_fork_and_its_origin_are_two_whole_sequences_and_a_peek_moves_neither(path):
    model, rng = load(path), np.random.default_rng(0)
    begun, one, other = (rng.integers(0, VOCABULARY, 100).tolist() for _ in range(3))
    with serving(path) as (address, _), Client(address) as client:
        origin = client.session("origin")
        origin.feed(begun)
        before = origin.snapshot()
        copy = origin.fork("copy")
        assert bits(origin.peek(one, want="probs")) == whole(model, begun + one, 100)
        assert origin.snapshot() == copy.snapshot() == before
        streams = zip(origin.stream(one, want="probs"), copy.stream(other, want="probs"), strict=True)
        mine, theirs = zip(*streams, strict=True)
        assert bits(mine) == whole(model, begun + one, 100)
        assert bits(theirs) == whole(model, begun + other, 100)
        assert origin.info()["t"] == copy.info()["t"] == 200


def test_a_snapshot_goes_on_in_another_worker(path):
    model, rng = load(path), np.random.default_rng(1)
    begun, behind = (rng.integers(0, VOCABULARY, 100).tolist() for _ in range(2))
    with serving(path) as (first, _), serving(path) as (second, _), Client(first) as here, Client(second) as there:
        here.session("s").feed(begun)
        state = here.session("s").snapshot()
        moved, used = there.session("moved"), there.session("used")
        moved.open(state)
        used.step(1)
        used.restore(state)
        expected = whole(model, begun + behind, 100)
        for session in (moved, used, here.session("s")):
            assert bits(session.stream(behind, want="probs")) == expected


def test_a_snapshot_with_any_byte_changed_or_of_another_model_changes_nothing(path, tmp_path):
    other = random_model(tmp_path / "other.safetensors", LSTM, size=VOCABULARY, dtype="float64")
    with serving(path) as (address, _), serving(other) as (elsewhere, _), Client(address) as client:
        session = client.session("s")
        session.feed([1, 2, 3])
        state = session.snapshot()
        session.step(4)
        now = session.snapshot()
        with Client(elsewhere) as stranger:
            stranger.session("s").step(1)
            foreign = stranger.session("s").snapshot()
        for bad in [foreign, *(state[:i] + bytes((state[i] ^ 0x10,)) + state[i + 1 :] for i in range(len(state)))]:
            with pytest.raises(BadState):
                session.restore(bad)
        assert session.snapshot() == now
        session.restore(state)
        assert session.snapshot() == state
