"""Several producers, real processes, on one worker: order kept, counts exact."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import msgpack
import numpy as np
import pytest
import zmq

from rnnstream import Client, load
from tests.process.exactness import VOCABULARY, token_model
from tests.worker_process import DEADLINE_S, serving

ROOT = Path(__file__).parents[2]
PRODUCER = """
import json, sys
import rnnstream
address, session, tokens = json.loads(sys.stdin.read())
with rnnstream.Client(address) as client:
    replies = [[p.t, p.probs.tobytes().hex()] for p in client.session(session).stream(tokens, want="probs")]
print(json.dumps(replies))
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return token_model(tmp_path_factory.mktemp("models"))


def test_two_producers_feed_one_session(path):
    rng = np.random.default_rng(0)
    tokens = [rng.integers(0, VOCABULARY, 400).tolist() for _ in range(2)]
    with serving(path) as (address, _):
        producers = [
            subprocess.Popen([sys.executable, "-c", PRODUCER], stdin=-1, stdout=-1, text=True, cwd=ROOT) for _ in tokens
        ]
        for producer, mine in zip(producers, tokens, strict=True):
            assert producer.stdin is not None
            producer.stdin.write(json.dumps([address, "shared", mine]))
            producer.stdin.close()
        replies = []
        for producer in producers:
            assert producer.stdout is not None
            replies.append(json.loads(producer.stdout.read()))
            assert producer.wait(DEADLINE_S) == 0
            producer.stdout.close()
        with Client(address) as client:
            assert client.session("shared").info()["t"] == 800
    applied: dict[int, int] = {}
    bits: dict[int, str] = {}
    for mine, answers in zip(tokens, replies, strict=True):
        ts = [t for t, _ in answers]
        assert ts == sorted(ts), "a producer's tokens are applied in its order"
        for x, (t, probs) in zip(mine, answers, strict=True):
            assert t not in applied, "a step count is given once"
            applied[t], bits[t] = x, probs
    assert sorted(applied) == list(range(1, 801))
    expected = load(path).forward([applied[t] for t in range(1, 801)])
    assert [bits[t] for t in range(1, 801)] == [y.astype("<f4").tobytes().hex() for y in expected]


def test_one_producer_feeds_a_hundred_sessions(path):
    rng = np.random.default_rng(1)
    streams = {f"s{i}": rng.integers(0, VOCABULARY, 30).tolist() for i in range(100)}
    model = load(path)
    with serving(path) as (address, _), Client(address) as client:
        open_streams = {name: client.session(name).stream(iter(xs)) for name, xs in streams.items()}
        got: dict[str, list] = {name: [] for name in streams}
        while open_streams:
            name = str(rng.choice(list(open_streams)))
            prediction = next(open_streams[name], None)
            if prediction is None:
                del open_streams[name]
            else:
                got[name].append(prediction)
        assert sorted(client.sessions()) == sorted(streams)
        assert {client.session(name).info()["t"] for name in streams} == {30}
    for name, predictions in got.items():
        assert [p.t for p in predictions] == list(range(1, 31))
        expected = model.forward(streams[name])
        assert [p.y for p in predictions] == expected.argmax(axis=1).tolist()
        assert [p.p for p in predictions] == expected.max(axis=1).tolist()


def test_sigterm_answers_what_was_read_and_leaves_with_0(path):
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    try:
        with serving(path) as (address, process):
            socket.connect(address)
            body = b"".join(msgpack.packb({"session": "long", "x": i % VOCABULARY}) for i in range(512))
            socket.send(msgpack.packb({"op": "ping"}) + body[: len(msgpack.packb({"session": "long", "x": 1})) * 500])
            socket.send(msgpack.packb({"op": "ping"}))
            socket.send(body)
            assert socket.poll(DEADLINE_S * 1000)
            first = socket.recv()
            process.send_signal(signal.SIGTERM)
            process.wait(DEADLINE_S)
            assert process.returncode == 0
            unpacker = msgpack.Unpacker()
            unpacker.feed(first)
            replies = list(unpacker)
            while socket.poll(1000):
                unpacker.feed(socket.recv())
                replies += list(unpacker)
        steps = [reply["t"] for reply in replies if "t" in reply]
        assert steps == list(range(1, len(steps) + 1))
        assert len(steps) in (500, 1012), "a body is answered whole or was not read"
    finally:
        socket.close()
        context.term()
