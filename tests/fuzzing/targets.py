"""What fuzzing runs: each target takes any bytes for what a parser reads, and holds what comes of it against what is promised.

scripts/fuzz_parsers.py finds bytes for them; the tests run those that were worth keeping, and some mutations of them.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable

import numpy as np

from rnnstream.client.token import read_prediction
from rnnstream.engine import snapshot
from rnnstream.engine.engine import Engine
from rnnstream.errors import BadState, ModelError, NotFinite, ProtocolError, RequestError
from rnnstream.model.file import is_model_file, load_file
from rnnstream.model.network import Network, random_network
from rnnstream.model.spec import parse
from rnnstream.model.step import Input
from rnnstream.store.records import pack_entry, pack_producers, unpack_entry, unpack_producers
from rnnstream.wire import replies, requests

MOST_MAPS = 16  # of a body: few, so that bodies with more are common
LONGEST = 1000  # characters of a sentence
INPUTS = (Input("token", 50), Input("token", 3, ("a", "b", "\x1b")), Input("dense", 1), Input("dense", 3))
CHECKSUM = 16  # bytes at the end of a snapshot


def told(problem: Exception) -> str:
    """The sentence of an error: of bounded length, and with nothing in it that a terminal would obey."""
    sentence = str(problem)
    assert sentence, "an error without a sentence"
    assert sentence.isprintable(), f"control characters in {sentence!r}"
    assert len(sentence) <= LONGEST, f"{len(sentence)} characters: {sentence}"
    assert "MemoryError" not in sentence
    return sentence


def decode(data: bytes) -> str:
    """A request body: its maps are checked, and their tokens held against some models."""
    items, problem = requests.decode(data, MOST_MAPS)
    assert len(items) <= MOST_MAPS
    assert all(type(item) is dict for item in items)
    assert items or problem
    packed = requests.encode(items)
    assert requests.encode(requests.decode(packed, MOST_MAPS)[0]) == packed
    sentences = [] if problem is None else [told(problem)]
    for item in items:
        assert set(requests.readable(item)) <= {"session", "id"}
        try:
            request = requests.parse(item)
        except RequestError as error:
            sentences.append(told(error))
            replies.encode(replies.error_map(error, **requests.readable(item)))
            continue
        for source in INPUTS:
            for x in [request.x, *(request.xs or ())]:
                try:
                    token = source.token(x)
                except RequestError as error:
                    told(error)
                else:
                    assert type(token) is int or np.isfinite(token).all()
    return "\n".join(sentences)


def answer(data: bytes) -> str:
    """A reply body: its maps become errors and predictions."""
    try:
        maps = replies.decode(data)
    except ProtocolError as problem:
        return told(problem)
    assert all(type(item) is dict for item in maps)
    for item in maps:
        if "error" in item:
            assert RequestError.from_reply(item).code == item["error"]
        try:
            read_prediction(item)
        except ProtocolError as problem:
            told(problem)
    return ""


def model(data: bytes) -> str:
    """A model file: it is refused, or makes two steps."""
    file = os.memfd_create("model")
    path = f"/proc/self/fd/{file}"
    try:
        with open(file, "wb", closefd=False) as opened:
            opened.write(data)
        assert is_model_file(path) in (True, False)
        network = load_file(path)
    except ModelError as problem:
        return told(problem).replace(path, "FILE")
    finally:
        os.close(file)
    a, x = network.initial_state(), 0 if network.input.kind == "token" else bytes(4 * network.input.size)
    for _ in range(2):
        a, y = network.step(a, x)
        assert (a.shape, y.shape, a.dtype, y.dtype) == (
            (network.state_size,),
            (network.output.size,),
            network.dtype,
            network.dtype,
        )
    return ""


@functools.cache
def networks() -> list[Network]:
    """Those that snapshots are for: of both dtypes, and one without a state."""

    def network(layers: list[dict[str, object]], dtype: str) -> Network:
        source = {"kind": "token", "size": 5}
        return random_network(
            parse(
                {"format": 1, "dtype": dtype, "input": source, "layers": [{"kind": "onehot"}, *layers], "head": "categorical"}
            )
        )

    dense = {"kind": "dense", "size": 5}
    return [
        network([{"kind": "rnn", "size": 3, "activation": "relu"}, dense], "float32"),
        network([{"kind": "lstm", "size": 4}, dense], "float64"),
        network([dense], "float32"),
    ]


@functools.cache
def engines() -> list[Engine]:
    """One of each network, with a session in it."""
    found = [Engine(network) for network in networks()]
    for engine in found:
        engine.step([("a", 1), ("a", 2)])
    return found


def restore(data: bytes) -> str:
    """A snapshot: it is refused by `restore` and `open`, and nothing has changed, or the session goes on from it."""
    body = data[:-CHECKSUM]
    mended = body + hashlib.blake2b(body, digest_size=CHECKSUM).digest()  # else nothing behind the checksum would be tried
    return "\n".join(_restored(some, engine) for some in (data, mended) for engine in engines())


def _restored(data: bytes, engine: Engine) -> str:
    before = engine.snapshot("a")
    sentence = _refusal(engine.restore, "a", data)
    if sentence:
        assert _refusal(engine.open, "new", data) == sentence
        assert engine.snapshot("a") == before
        assert engine.sessions() == ["a"]
        return sentence
    t = engine.open("new", data)
    assert 0 <= t == engine.info("a")["t"] <= snapshot.MOST_T
    assert engine.snapshot("a") == engine.snapshot("new") == data
    try:
        (prediction,) = engine.step([("a", 3)])
        assert prediction.t == t + 1
    except NotFinite as problem:
        told(problem)
    engine.close("new")
    engine.restore("a", before)
    engine.check()
    return ""


def _refusal(take: Callable[[str, bytes], int], session: str, data: bytes) -> str:
    """The sentence with which a snapshot is refused; "" where it is taken."""
    try:
        take(session, data)
    except BadState as problem:
        return told(problem)
    return ""


def records(data: bytes) -> str:
    """A journal entry, and the producers of a row: what is taken is put back as it was read."""
    try:
        now, batches = unpack_entry(data)
    except ValueError:
        pass
    else:
        assert unpack_entry(pack_entry(now, batches)) == (now, batches)
        for batch in batches:
            assert len(batch.xs) == len(batch.names)
            assert all(0 <= place < len(batch.names) for place in batch.places)
    try:
        producers = unpack_producers(data)
    except (ValueError, TypeError):
        return ""
    assert pack_producers(unpack_producers(pack_producers(producers))) == pack_producers(producers)
    return ""


TARGETS: dict[str, Callable[[bytes], str]] = {
    "decode": decode,
    "answer": answer,
    "model": model,
    "restore": restore,
    "records": records,
}  # each gives the sentences that it was told, one a line
