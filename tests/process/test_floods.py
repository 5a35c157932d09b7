"""Promise 5 against floods: a polite producer beside each is served, and keeps its bits. scripts/flood.py says how fast."""

import multiprocessing
import time

import numpy as np
import pytest

from rnnstream import Client, load
from tests.process.exactness import VOCABULARY, token_model
from tests.process.flooding import KINDS, UNREAD, flood
from tests.worker_process import DEADLINE_S, serving

TOKENS = 200


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return token_model(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_polite_producer_is_served_beside_a_flood(path, kind):
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, TOKENS).tolist()
    processes = multiprocessing.get_context("spawn")
    begun = processes.Event()
    with serving(path) as (address, _), Client(address, timeout_s=DEADLINE_S) as client:
        flooder = processes.Process(target=flood, args=(kind, address, begun), daemon=True)
        flooder.start()
        try:
            assert begun.wait(DEADLINE_S)
            heard = [prediction.probs.tobytes() for prediction in client.session("polite").stream(iter(tokens), want="probs")]
            deadline = time.monotonic() + DEADLINE_S
            while kind == UNREAD and not client.stats()["cut_off"]:
                assert time.monotonic() < deadline, "a client that never reads was not cut off"
            rest = [client.session("polite").step(x, want="probs").probs.tobytes() for x in tokens]
        finally:
            flooder.kill()
            flooder.join()
        assert client.session("polite").info()["t"] == 2 * len(tokens)
    expected = load(path).forward(tokens + tokens)
    assert heard + rest == [y.astype("<f4").tobytes() for y in expected]
