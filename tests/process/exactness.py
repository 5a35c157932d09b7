"""Streams many sessions in random interleavings through a real worker process and compares every prediction's bits.

A program of its own, so that it can be run with other kernels: worker and comparison take them from the environment.

    python -m tests.process.exactness DIRECTORY
"""

import sys
from collections import deque
from pathlib import Path

import msgpack
import numpy as np
import zmq

from rnnstream import load
from tests.worker_process import random_model, serving

COUNTS = (1, 2, 7, 8, 9, 64, 300)
VOCABULARY = 50


def token_model(directory: Path) -> Path:
    return random_model(
        directory / "tokens.safetensors",
        [{"kind": "onehot"}, {"kind": "rnn", "size": 100}, {"kind": "dense", "size": VOCABULARY}],
        size=VOCABULARY,
    )


def dense_model(directory: Path) -> Path:
    """A relu recurrence, which one session will be driven to infinity."""
    return random_model(
        directory / "dense.safetensors",
        [{"kind": "rnn", "size": 33, "activation": "relu"}, {"kind": "dense", "size": 5}],
        size=3,
        kind="dense",
        head="linear",
    )


def interleave(address: str, streams: dict[str, list], want: str, rng: np.random.Generator) -> dict[str, list[dict]]:
    """Send each stream in order, all of them mixed at random, in bodies of random length over three connections."""
    replies: dict[str, list[dict]] = {name: [] for name in streams}
    context = zmq.Context()
    sockets = [context.socket(zmq.DEALER) for _ in range(3)]
    try:
        for socket in sockets:
            socket.linger = 0
            socket.connect(address)
        left = {name: deque(tokens) for name, tokens in streams.items()}
        owner = {name: sockets[i % 3] for i, name in enumerate(streams)}  # a session's order is that of its connection
        flying = dict.fromkeys(sockets, 0)
        while left or any(flying.values()):
            for socket in sockets:
                names = [name for name in left if owner[name] is socket]
                if names and flying[socket] < 4:
                    body = b""
                    for name in rng.choice(names, min(len(names), int(rng.integers(1, 40))), replace=False).tolist():
                        for _ in range(min(len(left[name]), int(rng.integers(1, 4)))):
                            body += msgpack.packb({"session": name, "x": left[name].popleft(), "want": want})
                        if not left[name]:
                            del left[name]
                    socket.send(body)
                    flying[socket] += 1
            ready = zmq.select([socket for socket in sockets if flying[socket]], [], [], 20)[0]
            assert ready, "no reply within 20 s"
            for socket in ready:
                unpacker = msgpack.Unpacker()
                unpacker.feed(socket.recv())
                flying[socket] -= 1
                for reply in unpacker:
                    replies[reply["session"]].append(reply)
    finally:
        for socket in sockets:
            socket.close()
        context.term()
    return replies


def check_tokens(directory: Path) -> int:
    path = token_model(directory)
    model, rng, mixing, compared = load(path), np.random.default_rng(3), np.random.default_rng(5), 0
    with serving(path) as (address, _):
        for count in COUNTS:
            streams = {f"{count}-{i}": rng.integers(0, VOCABULARY, int(rng.integers(5, 25))).tolist() for i in range(count)}
            for name, replies in interleave(address, streams, "probs", mixing).items():
                expected = model.forward(streams[name])
                assert [reply["t"] for reply in replies] == list(range(1, len(expected) + 1)), name
                assert [reply.get("opened", False) for reply in replies] == [True] + [False] * (len(expected) - 1)
                for reply, y in zip(replies, expected, strict=True):
                    assert reply["probs"] == y.astype("<f4").tobytes(), (name, reply["t"])
                    assert reply["y"] == int(y.argmax())
                    assert reply["p"] == float(y.max())
                    compared += 1
    return compared


def check_dense(directory: Path) -> int:
    path = dense_model(directory)
    model, rng, compared = load(path), np.random.default_rng(4), 0
    with serving(path) as (address, _):
        streams = {str(i): rng.standard_normal((20, 3)).astype("<f4") for i in range(9)}
        bodies = {name: [x.tobytes() for x in xs] for name, xs in streams.items()}
        bodies["wild"] = [np.full(3, 3e38, "<f4").tobytes()] * 20
        answers = interleave(address, bodies, "argmax", rng)
        assert sum(reply.get("error") == "not_finite" for reply in answers.pop("wild")) >= 10
        for name, replies in answers.items():
            for reply, y in zip(replies, model.forward(list(streams[name])), strict=True):
                assert reply["y"] == y.astype("<f4").tobytes(), (name, reply["t"])
                compared += 1
    return compared


def main() -> None:
    directory = Path(sys.argv[1])
    tokens, dense = check_tokens(directory), check_dense(directory)
    print(f"{tokens} + {dense} predictions equal on {load(directory / 'tokens.safetensors').numerics}")


if __name__ == "__main__":
    main()
