"""Snapshots: what goes in comes back to the bit, and whatever is damaged or of another model is refused."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from rnnstream.engine import snapshot
from rnnstream.engine.engine import Engine
from rnnstream.errors import BadState

from .models import DTYPES, V, dense, network
from .sequences import everything, moved

Make = Callable[..., Engine]
Refused = Callable[[bytes, str | None], None]

CELLS = ["rnn", "gru", "lstm"]
TOKENS = [3, 1, 4, 1, 5]


def rebuilt(data: bytes, **changes: Any) -> bytes:
    """A snapshot with some of its parts replaced, and a checksum that holds."""
    parts = dict(
        zip(("magic", "version", "dtype", "size", "t", "model"), struct.unpack_from("<8sH16sQQ32s", data), strict=True)
    )
    parts = {**parts, "numbers": data[74:-16], **changes}
    head = struct.pack("<8sH16sQQ32s", *(parts[key] for key in ("magic", "version", "dtype", "size", "t", "model")))
    body = head + parts["numbers"]
    return body + hashlib.blake2b(body, digest_size=16).digest()


# Round trips ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", CELLS)
def test_a_session_goes_on_from_a_snapshot_as_if_nothing_had_been(make: Make, kind: str, dtype: str) -> None:
    """Opened from it or restored, in another engine, in company: the next hundred predictions have the same bits."""
    model = network(kind, dtype=dtype)
    first, second = make(model), make(network(kind, dtype=dtype))
    first.step([(name, x) for x in TOKENS for name in ("a", "other")])
    second.step([("busy", 7), ("b", 8), ("b", 8)])
    state = first.snapshot("a")
    assert len(state) == snapshot.snapshot_bytes(model.state_size, model.dtype.itemsize)
    assert second.open("a", state) == second.restore("b", state) == len(TOKENS)
    assert everything(second)["a"] == everything(second)["b"] == everything(first)["a"]
    assert first.snapshot("a") == second.snapshot("a") == second.snapshot("b") == state
    rng = np.random.default_rng(5)
    more = rng.integers(V, size=100).tolist()
    for t, x in enumerate(more, len(TOKENS) + 1):
        (one,) = first.step([("a", x)], want="probs", surprisal=True)
        two, three, _ = second.step([(name, x) for name in ("b", "a", "busy")], want="probs", surprisal=True)
        for found in (two, three):
            assert one.probs is not None
            assert found.probs is not None
            assert found.probs.tobytes() == one.probs.tobytes()
            assert (found.t, found.y, found.p, found.surprisal) == (t, one.y, one.p, one.surprisal)
            assert not found.opened
    assert everything(second)["a"] == moved(model, {"a": [*TOKENS, *more]})["a"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_comes_back_to_the_bit(dtype: str) -> None:
    info = np.finfo(dtype)
    numbers = [0.0, -0.0, 1 / 3, info.max, info.min, info.tiny, info.smallest_subnormal, -info.smallest_subnormal, 1 + info.eps]
    state = np.array(numbers, dtype)
    for t in (0, 1, 2**32, snapshot.MOST_T):
        data = snapshot.encode(state, t, "digest")
        found, found_t = snapshot.decode(data, dtype=state.dtype, state_size=len(numbers), digest="digest")
        assert (found.tobytes(), found_t, found.dtype) == (state.tobytes(), t, state.dtype)
        assert found.flags.writeable
    swapped = state.astype(state.dtype.newbyteorder(">"))  # the layout does not depend on the machine
    assert snapshot.encode(swapped[::-1][::-1], 7, "digest") == snapshot.encode(state, 7, "digest")


def test_the_layout_is_the_documented_one() -> None:
    numbers = [0.5, -2.0, 0.1]
    body = b"rnnstate"
    body += struct.pack("<H", 1)
    body += b"<f4" + bytes(13)
    body += struct.pack("<QQ", 3, 258)
    body += hashlib.sha256(b"the digest").digest()
    assert len(body) == 74
    body += struct.pack("<3f", *numbers)
    golden = body + hashlib.blake2b(body, digest_size=16).digest()
    assert golden.hex() == (
        "726e6e737461746501003c6634000000000000000000000000000300000000000000020100000000000026dc56f278e23534"
        "0727566069712315fe67e004628da1c7efedded269aeafc90000003f000000c0cdcccc3d28583732b77265e71b0681825cab75d8"
    )
    assert snapshot.encode(np.array(numbers, np.float32), 258, "the digest") == golden
    state, t = snapshot.decode(golden, dtype=np.dtype("f4"), state_size=3, digest="the digest")
    assert (state.tolist(), t) == (np.array(numbers, np.float32).tolist(), 258)


def test_a_snapshot_of_the_first_state(make: Make) -> None:
    model = network("rnn", initial_state=True)
    engine = make(model)
    assert engine.open("a") == 0
    assert engine.open("b", engine.snapshot("a")) == 0
    assert everything(engine) == moved(model, {"a": [], "b": []})
    assert engine.state("b").any()


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.fixture
def refused(make: Make) -> Iterator[Refused]:
    """Hands a snapshot to `restore` and `open`, which are to refuse it and to change nothing."""
    engine = make(network())
    engine.step([("a", x) for x in TOKENS])
    before = everything(engine)
    free = list(engine.table._free)

    def refused(data: bytes, told: str | None) -> None:
        with pytest.raises(BadState, match=told):
            engine.restore("a", data)
        with pytest.raises(BadState, match=told):
            engine.open("new", data)
        assert everything(engine) == before
        assert engine.table.rows.keys() == {"a"}

    yield refused
    engine.check()
    assert everything(engine) == before == moved(engine.model, {"a": TOKENS})
    assert free == []
    assert engine.table._free == [1]


@pytest.fixture
def data() -> bytes:
    """A snapshot that the engine of `refused` would take."""
    model = network()
    return snapshot.encode(model.run([8, 8]), 2, model.digest)


def test_a_good_snapshot_is_taken(make: Make, data: bytes) -> None:
    engine = make(network())
    assert engine.open("a", data) == 2
    assert engine.open("b", rebuilt(data)) == 2
    assert everything(engine) == moved(engine.model, {"a": [8, 8], "b": [8, 8]})


def test_any_changed_byte_is_refused(data: bytes, refused: Refused) -> None:
    for position, byte in enumerate(data):
        for change in (1, 0x80, 0xFF, byte or 1):
            refused(data[:position] + bytes([byte ^ change]) + data[position + 1 :], None)


def test_any_other_length_is_refused(data: bytes, refused: Refused) -> None:
    for length in range(len(data)):
        refused(data[:length], None)
        refused(data[length + 1 :], None)
    for more in (b"\0", b"\0" * 4, data):
        refused(data + more, f"has {len(data + more)} bytes; one of this model has {len(data)}")
    refused(b"", "0 bytes")
    refused(bytes(len(data)), "no snapshot")


NAN, INFINITY = struct.pack("<f", float("nan")), struct.pack("<f", float("-inf"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"magic": b"rnnstale"}, "no snapshot of rnnstream"),
        ({"version": 0}, "format version 0; this worker reads 1"),
        ({"version": 2}, "format version 2; this worker reads 1"),
        ({"model": hashlib.sha256(b"another").digest()}, "of another model"),
        ({"dtype": b"<f8"}, "7 numbers of type b'<f8'"),
        ({"dtype": b"<f8", "numbers": bytes(56)}, "146 bytes; one of this model has 118"),
        ({"dtype": b"<i4"}, "type b'<i4'"),
        ({"dtype": b">f4"}, "type b'>f4'"),
        ({"dtype": b""}, "type b''"),
        ({"dtype": b"\xff" * 16}, "type b'"),
        ({"size": 6}, "6 numbers"),
        ({"size": 6, "numbers": bytes(24)}, "114 bytes; one of this model has 118"),
        ({"size": 2**64 - 1}, "18446744073709551615 numbers"),
        ({"numbers": bytes(24)}, "114 bytes; one of this model has 118"),
        ({"numbers": bytes(32)}, "122 bytes; one"),
        ({"numbers": b""}, "90 bytes; one"),
        ({"t": snapshot.MOST_T + 1}, "t is "),
        ({"t": 2**63}, "t is 9223372036854775808"),
        ({"t": 2**64 - 1}, "t is 18446744073709551615"),
        ({"numbers": NAN + bytes(24)}, "NaN or infinity"),
        ({"numbers": bytes(24) + INFINITY}, "NaN or infinity"),
    ],
)
def test_what_is_wrong_is_refused_though_the_checksum_holds(
    data: bytes, refused: Refused, changes: dict[str, Any], told: str
) -> None:
    refused(rebuilt(data, **changes), told)


def test_snapshots_of_other_models_are_refused(make: Make, refused: Refused) -> None:
    others = [network(seed=1), network(name="other"), network("lstm"), network(dtype="float64"), network("rnn")]
    for model in others:
        engine = make(model)
        engine.step([("a", 1)])
        refused(engine.snapshot("a"), "of another model")
    engine = make(dense("linear"))
    engine.open("a")
    refused(engine.snapshot("a"), "of another model")


def test_a_session_at_the_largest_t_of_a_snapshot_can_go_on(make: Make) -> None:
    engine = make(network())
    engine.open("a", snapshot.encode(engine.model.initial_state(), snapshot.MOST_T, engine.model.digest))
    for i in range(1, 4):
        (found,) = engine.step([("a", 1)])
        assert found.t == engine.info("a")["t"] == snapshot.MOST_T + i
