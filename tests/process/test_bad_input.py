"""Bad input, one by one, against a real worker: each gets its error, the state has not moved, others are served."""

import struct

import msgpack
import numpy as np
import pytest
import zmq

from rnnstream import Client, load
from tests.process.exactness import VOCABULARY, dense_model, token_model
from tests.worker_process import DEADLINE_S, serving

pack = msgpack.packb
GOOD = pack({"session": "other", "x": 1})
NESTED = b"\x81\xa1x" * 3000 + b"\xc0"


class Peer:
    """A raw DEALER."""

    def __init__(self, address: str) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(address)

    def ask(self, body: bytes) -> list[dict]:
        self.socket.send(body)
        assert self.socket.poll(DEADLINE_S * 1000), "no reply"
        unpacker = msgpack.Unpacker()
        unpacker.feed(self.socket.recv())
        return list(unpacker)

    def close(self) -> None:
        self.context.destroy(linger=0)  # with the monitor's socket, where there is one


@pytest.fixture(scope="module", params=["token", "dense"])
def served(request, tmp_path_factory):
    """(address, model, a good token, another one) of a worker with each kind of input."""
    directory = tmp_path_factory.mktemp("models")
    path = token_model(directory) if request.param == "token" else dense_model(directory)
    xs = [3, 17] if request.param == "token" else [[0.5, -1.0, 2.0], struct.pack("<3f", 1, 2, 3)]
    with serving(path) as (address, _):
        yield address, load(path), xs


COMMON = {
    "random bytes": (np.random.default_rng(0).bytes(300), "bad_message", None),
    "empty message": (b"", "bad_message", None),
    "a list": (pack([1, 2]), "bad_message", None),
    "a number": (b"\x05", "bad_message", None),
    "nested maps": (NESTED, "bad_message", None),
    "unknown op": (pack({"op": "stpe", "session": "s", "x": 1}), "bad_request", "op"),
    "op is a list": (pack({"op": ["step"], "session": "s", "x": 1}), "bad_request", "op"),
    "unknown key": (pack({"session": "s", "x": 1, "wnat": "none"}), "bad_request", "wnat"),
    "a number as a key": (pack({"session": "s", "x": 1, 7: 1}), "bad_request", "7"),
    "producer without n": (pack({"session": "s", "x": 1, "producer": "p"}), "bad_request", "producer"),
    "n without producer": (pack({"session": "s", "x": 1, "n": 1}), "bad_request", "n"),
    "n is 0": (pack({"session": "s", "x": 1, "producer": "p", "n": 0}), "bad_request", "n"),
    "producer of 65 bytes": (pack({"session": "s", "x": 1, "producer": "p" * 65, "n": 1}), "bad_request", "producer"),
    "ack is -1": (pack({"session": "s", "x": 1, "producer": "p", "n": 1, "ack": -1}), "bad_request", "ack"),
    "n too high": (pack({"op": "reset", "session": "s", "producer": "p", "n": 2}), "gap", None),
    "open of an open session": (pack({"op": "open", "session": "s"}), "exists", None),
    "a snapshot that is none": (pack({"op": "restore", "session": "s", "state": b"rnnstate"}), "bad_state", None),
    "a snapshot that is text": (pack({"op": "restore", "session": "s", "state": "rnnstate"}), "bad_request", "state"),
    "peek of nothing": (pack({"op": "peek", "session": "s", "xs": []}), "bad_request", "xs"),
    "fork onto itself": (pack({"op": "fork", "session": "s", "to": "s"}), "exists", None),
    "missing session": (pack({"x": 1}), "bad_request", "session"),
    "missing x": (pack({"session": "s"}), "bad_request", "x"),
    "session of 10,000 bytes": (pack({"session": "s" * 10_000, "x": 1}), "bad_request", "session"),
    "empty session": (pack({"session": "", "x": 1}), "bad_request", "session"),
    "session is a number": (pack({"session": 5, "x": 1}), "bad_request", "session"),
    "session is not UTF-8": (b"\x82\xa7session\xa2\xff\xfe\xa1x\x01", "bad_message", None),
    "x is nil": (pack({"session": "s", "x": None}), "bad_request", "x"),
    "x is a map": (pack({"session": "s", "x": {}}), "bad_request", "x"),
    "x is true": (pack({"session": "s", "x": True}), "bad_request", "x"),
    "want is a float": (pack({"session": "s", "x": 1, "want": 1.5}), "bad_request", "want"),
    "want is 0": (pack({"session": "s", "x": 1, "want": 0}), "bad_request", "want"),
    "want is a list": (pack({"session": "s", "x": 1, "want": []}), "bad_request", "want"),
    "t is -1": (pack({"session": "s", "x": 1, "t": -1}), "bad_request", "t"),
    "id is too long": (pack({"session": "s", "x": 1, "id": "i" * 65}), "bad_request", "id"),
}
TOKEN = {
    "id out of range": (VOCABULARY, "bad_token"),
    "-1": (-1, "bad_token"),
    "2^64 - 1": (2**64 - 1, "bad_token"),
    "2^70": (2.0**70, "bad_request"),
    "no such letter": ("é", "bad_token"),
    "NaN": (float("nan"), "bad_request"),
    "bytes": (b"\0\0\0\0", "bad_request"),
    "a list": ([1], "bad_request"),
}
DENSE = {
    "an id": (1, "bad_request"),
    "a letter": ("a", "bad_request"),
    "too short": ([1.0, 2.0], "bad_token"),
    "too long": ([1.0] * 4, "bad_token"),
    "NaN": ([1.0, float("nan"), 2.0], "bad_token"),
    "infinity": ([1.0, float("-inf"), 2.0], "bad_token"),
    "beyond float32": ([1.0, 1e39, 2.0], "bad_token"),
    "2^64 - 1, thrice": ([2**64 - 1] * 3, None),  # a number like any other
    "a bool": ([1.0, True, 2.0], "bad_request"),
    "a str inside": ([1.0, "2", 2.0], "bad_request"),
    "a list inside": ([1.0, [2.0], 2.0], "bad_request"),
    "too few bytes": (b"\0" * 11, "bad_token"),
    "bytes of NaN": (struct.pack("<3f", 1, float("nan"), 2), "bad_token"),
}


def check(served, body: bytes, code: str, field: str | None) -> None:
    """The body gets this error; session s has not moved a bit by it; the same connection and another one are served."""
    address, model, (first, second) = served
    peer, other = Peer(address), Peer(address)
    try:
        peer.ask(pack({"op": "reset", "session": "s"}))
        peer.ask(pack({"session": "s", "x": first}))
        (error,) = peer.ask(body)
        assert error["error"] == code, error
        assert error.get("field") == field
        assert error["message"].endswith(".")
        assert len(error["message"]) < 400
        assert other.ask(pack({"op": "info", "session": "s"}))[0]["t"] == 1
        (reply,) = other.ask(pack({"session": "s", "x": second, "want": "logits"}))
        fresh = model.run([first, second])
        assert reply["t"] == 2
        assert reply["logits"] == model.head(model.features(fresh[np.newaxis]))[0].astype("<f4").tobytes()
        assert peer.ask(pack({"op": "ping"}))[0]["ok"] is True
    finally:
        peer.close()
        other.close()


@pytest.mark.parametrize("what", COMMON)
def test_bad_requests(served, what):
    check(served, *COMMON[what])


@pytest.mark.parametrize("what", TOKEN)
def test_bad_tokens(served, what):
    if served[1].input.kind == "token":
        x, code = TOKEN[what]
        check(served, pack({"session": "s", "x": x}), code, "x")


@pytest.mark.parametrize("what", DENSE)
def test_bad_vectors(served, what):
    if served[1].input.kind == "dense":
        x, code = DENSE[what]
        if code:
            check(served, pack({"session": "s", "x": x}), code, "x")
        else:
            with Client(served[0]) as client:
                client.session("large").reset()
                assert client.session("large").step(x).t == 1


def test_half_a_map_after_a_good_one(served):
    address, _, (first, _) = served
    peer = Peer(address)
    try:
        good = pack({"session": "half", "x": first})
        for cut in range(1, len(good)):
            peer.ask(pack({"op": "reset", "session": "half"}))
            reply, error = peer.ask(good + good[:cut])
            assert reply["t"] == 1
            assert error["error"] == "bad_message"
            assert peer.ask(pack({"op": "info", "session": "half"}))[0]["t"] == 1
    finally:
        peer.close()


def test_five_thousand_maps_in_a_body(served):
    address, _, (first, _) = served
    peer = Peer(address)
    try:
        most = peer.ask(pack({"op": "hello"}))[0]["limits"]["frame_requests"]
        assert most < 5000
        replies = peer.ask(pack({"session": "many", "x": first, "want": "none"}) * 5000)
        assert len(replies) == most + 1
        assert [reply["t"] for reply in replies[:-1]] == list(range(1, most + 1))
        assert replies[-1]["error"] == "bad_message"
    finally:
        peer.close()


def test_a_hundred_megabytes_are_cut_off_and_others_are_served(served):
    address, _, (first, _) = served
    peer, other = Peer(address), Peer(address)
    try:
        monitor = peer.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        peer.ask(pack({"op": "ping"}))
        peer.socket.send(pack({"session": "s", "x": first, "id": b"\0" * 100_000_000}), copy=False)
        assert monitor.poll(DEADLINE_S * 1000), "the connection was not cut"
        peer.socket.disable_monitor()
        assert other.ask(pack({"op": "ping"}))[0]["ok"] is True
        assert not peer.socket.poll(100), "nothing may come back for it"
    finally:
        peer.close()
        other.close()
