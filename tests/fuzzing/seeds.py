"""Bytes to begin with: good ones of every kind, and hostile ones, each with the beginning of the sentence that it must give."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

import msgpack
import numpy as np

from rnnstream.engine import snapshot
from rnnstream.model.file import FREE_NUMBERS, KEY
from rnnstream.store.records import Batch, KeptProducer, pack_entry, pack_producers
from tests.fuzzing.mutations import fitting, together
from tests.fuzzing.targets import networks
from tests.model.nets import VARIANTS, dense, dense_spec, onehot, pool, rnn, token_spec
from tests.process.mutator import Mutator

pack = msgpack.Packer(autoreset=True).pack

# Requests and replies -----------------------------------------------------------------------------------------------------


def nested(depth: int, claimed: int, size: int) -> bytes:
    """Arrays, each within the one before, that claim so many elements each; filled up to a size with what is none."""
    return (b"\x81\xa1x" + (b"\xdd" + struct.pack(">I", claimed)) * depth).ljust(size, b"\xc1")


HOSTILE_BODIES: dict[str, tuple[bytes, str]] = {
    "an array of 2**32": (b"\x81\xa1x\xdd\xff\xff\xff\xff", "Object 1 of the body is cut short;"),
    "arrays in arrays, each of 10,000": (nested(1000, 10_000, 10_020), "Object 1 of the body is not MessagePack: FormatError;"),
    "the same, cut short": (nested(1000, 10_000, 0), "Object 1 of the body is cut short;"),
    "an array in an array, 5,000 deep": (b"\x81\xa1x" + b"\x91" * 5000, "Object 1 of the body is not MessagePack: StackError;"),
    "1,000 deep, and whole": (b"\x81\xa1x" + b"\x91" * 1000 + b"\7", "step needs the key 'session'."),
    "deep in the op": (b"\x81\xa2op" + b"\x91" * 1000 + b"\7", "op is [[[...]]]; it is one of step, open,"),
    "an int of all bits": (pack({"session": "s", "x": 2**64 - 1, "t": 2**64 - 1}), ""),
    "an extension without data as x": (b"\x82\xa7session\xa1s\xa1x\xc7\x00\x05", ""),
    "a control character in a key": (pack({"session": "s", "\x1b[2J": 1}), "step has no key '\\x1b[2J'; it takes session, x,"),
    "text that is no UTF-8": (b"\x81\xa1x\xa2\xc3\x28", "Object 1 of the body is not MessagePack: 'utf-8' codec can't decode"),
    "a timestamp as a key": (b"\x81\xd6\xff\0\0\0\5\1", "Object 1 of the body is not MessagePack: 5 exceeds max_ext_len(0);"),
    "17 keys": (pack(dict.fromkeys(range(17))), "Object 1 of the body is not MessagePack: 17 exceeds max_map_len(16);"),
    "a long array, and half a map": (pack({"session": "s", "x": [1] * 20}) + b"\x81", "Object 2 of the body is cut short;"),
    "a list of maps as x": (pack({"session": "s", "x": [{}] * 40}), ""),
}
HOSTILE_ANSWERS: dict[str, tuple[bytes, str]] = {
    "arrays in arrays, each of 10,000": (nested(1000, 10_000, 10_020), "The reply is not MessagePack (FormatError());"),
    "the same, cut short": (nested(1000, 10_000, 0), "The reply is not MessagePack (OutOfData('No more data to unpack.'));"),
    "1,025 keys": (
        pack(dict.fromkeys(range(1025))),
        "The reply is not MessagePack (ValueError('1025 exceeds max_map_len(1024)'",
    ),
    "an error that is a deep array": (
        b"\x81\xa5error" + b"\x91" * 1015 + b"\7",
        "The reply is not a row of whole MessagePack maps;",
    ),
    "a message that is one": (
        b"\x82\xa5error\xa4busy\xa7message" + b"\x91" * 1015 + b"\7",
        "The reply is not a row of whole MessagePack maps;",
    ),
    "probs that are a number": (pack({"t": 1, "probs": 5}), ""),
}


def bodies() -> list[bytes]:
    """Requests of every kind."""
    mutator = Mutator(1, b"rnnstate")
    single = [pack(mutator.valid()) for _ in range(60)]
    return [*single, b"".join(single[:5]), b"".join(single[:20]), pack({"session": "s", "x": [0.5] * 3}) * 3]


def answers() -> list[bytes]:
    """Replies of every kind."""
    y = np.arange(3, dtype="<f4").tobytes()
    maps: list[dict[str, Any]] = [
        {"session": "s", "t": 1, "y": 2, "p": 0.5, "label": "b", "id": 7, "again": True},
        {"session": "s", "t": 2, "y": y, "probs": y, "logits": y, "top": [[1, 0.5], [0, 0.25]], "surprisal": 1.5},
        {"error": "gap", "message": "a sentence", "expected": 5, "session": "s", "id": b"\xff"},
        {"session": "s", "t": 1, "ys": [{"y": 1, "p": 0.5}, {"y": 2}]},
        {"sessions": ["a", "b"], "next": 5},
        {"protocol": 1, "limits": {"frame_bytes": 1 << 20}, "model": {"input": {"size": 3}}},
    ]
    return [*map(pack, maps), b"".join(map(pack, maps))]


# Model files --------------------------------------------------------------------------------------------------------------

SPEC = token_spec(onehot(), rnn(2), dense(3), size=3)
TEXT = json.dumps(SPEC)


def file(spec: Any, numbers: bytes = b"", **tensors: Any) -> bytes:
    """A model file with this specification, or text, and these entries in its header."""
    return together({"__metadata__": {KEY: spec if isinstance(spec, str) else json.dumps(spec)}, **tensors}, numbers)


def tensor(shape: list[int], start: int = 0, end: int = 0, dtype: str = "F32") -> dict[str, Any]:
    """A tensor's entry in a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def fitted(spec: Any) -> bytes:
    """A model file with zeros as its tensors."""
    parts = fitting(spec, random.Random(0))
    assert parts is not None
    return file(spec, bytes(len(parts[1])), **parts[0])


NOT_SAFETENSORS = "FILE cannot be read as a safetensors file: Error while deserializing header: "
BY = "by the specification float32 [3]."
HOSTILE_FILES: dict[str, tuple[bytes, str]] = {
    "a header of 2**40 bytes": ((1 << 40).to_bytes(8, "little") + b"{}", NOT_SAFETENSORS + "header too large."),
    "a header of all bits": (b"\xff" * 8 + b"{}", NOT_SAFETENSORS + "header too large."),
    "no bytes, but NumPy cannot make it": (
        file(SPEC, by=tensor([0, 1 << 62])),
        f"FILE: The tensor by is float32 [0, 4611686018427387904]; {BY}",
    ),
    "nor this": (file(SPEC, by=tensor([1 << 63, 0])), f"FILE: The tensor by is float32 [9223372036854775808, 0]; {BY}"),
    "a hundred dimensions": (
        file(SPEC, bytes(4), by=tensor([1] * 100, 0, 4)),
        f"FILE: The tensor by is float32 [1, 1, 1, 1, 1, 1, ...]; {BY}",
    ),
    "a size beyond 64 bits": (file(SPEC, by=tensor([1 << 40, 1 << 40])), NOT_SAFETENSORS + "overflow computing buffer size"),
    "tensors that overlap": (
        file(SPEC, bytes(4), by=tensor([1], 0, 4), ba=tensor([1], 0, 4)),
        NOT_SAFETENSORS + "invalid offset for tensor `b",
    ),
    "a hole": (file(SPEC, bytes(8), by=tensor([1], 4, 8)), NOT_SAFETENSORS + "invalid offset for tensor `by`"),
    "a dtype that NumPy lacks": (file(SPEC, bytes(6), by=tensor([3], 0, 6, "BF16")), f"FILE: The tensor by is BF16 [3]; {BY}"),
    "half bytes": (file(SPEC, bytes(2), by=tensor([4], 0, 2, "F4")), f"FILE: The tensor by is F4 [4]; {BY}"),
    "a name that a terminal would obey": (
        file(SPEC, bytes(4), **{"\x1b[31mby\r\n": tensor([1], 0, 4)}),
        r"FILE: The tensor \x1b[31mby\r\n is not asked for; these are: ba, by, waa, wax, wya.",
    ),
    "a name of 50,000 characters": (
        file(SPEC, bytes(4), **{"n" * 50_000: tensor([1], 0, 4)}),
        f"FILE: The tensor {'n' * 60} is not asked for; these are: ba,",
    ),
    "a dtype that a terminal would obey": (
        file(SPEC, bytes(4), by=tensor([1], 0, 4, "\x1b[31m" + "x" * 500)),
        NOT_SAFETENSORS + r"invalid JSON in header: unknown variant `\x1b[31mxxxx",
    ),
    "a key twice": (
        file(TEXT[:-1] + ', "format": 1}'),
        f"FILE: The metadata key {KEY!r} has an object with the key 'format' in it twice.",
    ),
    "a key twice in a layer": (
        file(TEXT.replace('{"kind": "rnn"', '{"kind": "gru", "kind": "rnn"')),
        "FILE: The metadata key 'rnnstream' has an object with the key 'kind' in it twice.",
    ),
    "NaN": (file(TEXT[:-1] + ', "name": NaN}'), f"FILE: The metadata key {KEY!r} is not JSON: NaN is no number there."),
    "infinity": (
        file(dense_spec({"kind": "layernorm", "epsilon": float("-inf")}, size=2)),
        "FILE: The metadata key 'rnnstream' is not JSON: -Infinity is no number there.",
    ),
    "5,000 digits": (
        file(TEXT[:-1] + f', "name": {"9" * 5000}}}'),
        f"FILE: The metadata key {KEY!r} is not JSON: Exceeds the limit",
    ),
    "half a character": (file(SPEC | {"name": "\ud800"}), r"FILE: name is '\ud800'; half of a surrogate pair is no character."),
    "nested 900 deep": (file("[" * 900 + "]" * 900), "FILE: the specification is [[[[["),
    "nested 100,000 deep": (file("[" * 100_000), "FILE: The metadata key 'rnnstream' is nested too deeply."),
    "2**40 units": (
        file(token_spec(onehot(), rnn(1 << 40), size=3)),
        "FILE: layers[1].size is 1099511627776; it is an int from 1",
    ),
    "2**24 units that are not there": (
        file(token_spec(onehot(), rnn(1 << 24), size=3)),
        "FILE: The tensor ba [16777216] is missing.",
    ),
    "10,000 layers": (file(dense_spec(*[rnn(1)] * 10_000, size=1)), "FILE: layers is not a list of 1 to 1,000 layers."),
    "an entry of 2,000 characters": (
        file(SPEC | {"input": {"kind": "token", "size": 3, "vocabulary": ["a", "b", "c" * 2000]}}),
        "FILE: input.vocabulary[2] has 2,000 characters; 1,000 are the most.",
    ),
    "a vocabulary that is not there": (
        file(SPEC | {"input": {"kind": "token", "size": 1 << 24, "vocabulary": ["a"]}}),
        "FILE: input.vocabulary has 1 entries, 1 of them different; input.size is 16777216.",
    ),
    "a window of 2**24 tokens": (
        file(dense_spec(pool("max", 1 << 24), size=1)),
        "FILE: The inputs, states and outputs of all layers come to 16,777,217 numbers a token; with these",
    ),
    "1,000 windows": (
        file(dense_spec(*[pool("max", 2)] * 1000, size=1 << 24)),
        "FILE: The inputs, states and outputs of all layers come to 33,571,209,216 numbers a token;",
    ),
    "1,000 activations of 2**20": (
        file(dense_spec(*[{"kind": "activation", "function": "tanh"}] * 1000, size=1 << 20)),
        "FILE: The inputs, states and outputs of all layers come to 1,049,624,576 numbers a token;",
    ),
    "a dilation of 2**23": (
        fitted(dense_spec({"kind": "conv", "size": 1, "kernel": 2, "dilation": 1 << 23}, size=1)),
        "FILE: The inputs, states and outputs of all layers come to 8,388,610 numbers a token;",
    ),
    "as much as there may be": (file(dense_spec({"kind": "activation", "function": "tanh"}, size=FREE_NUMBERS // 2)), ""),
    "and one more": (
        file(dense_spec({"kind": "activation", "function": "tanh"}, size=FREE_NUMBERS // 2 + 1)),
        "FILE: The inputs, states and outputs of all layers come to 262,146 numbers a token; with these",
    ),
    "a matrix of one row": (
        file(dense_spec(dense(1), size=1 << 24)),
        "FILE: The inputs, states and outputs of all layers come to 16,777,217 numbers a token; with these",
    ),
}


def files() -> list[bytes]:
    """Model files of every kind of layer, with small sizes."""
    small = [spec for spec in VARIANTS.values() if fitting(spec, random.Random(0))]
    specs: list[Any] = [*small, SPEC, SPEC | {"dtype": "float64", "initial_state": True}]
    specs.append(SPEC | {"input": {"kind": "token", "size": 3, "vocabulary": ["a", "b", "c"]}})
    for layer in (
        *({"kind": kind, "size": 2} for kind in ("dense", "rnn", "gru", "lstm")),
        *(
            {"kind": "scale"},
            {"kind": "layernorm"},
            {"kind": "residual", "of": 0},
            {"kind": "activation", "function": "softmax"},
        ),
        *({"kind": "conv", "size": 2, "kernel": 2, "dilation": 2}, pool("max", 3), pool("mean", 2)),
    ):
        specs.append(dense_spec(layer, size=2))
    return [fitted(spec) for spec in specs]


# Snapshots ----------------------------------------------------------------------------------------------------------------


def snapshots() -> list[bytes]:
    """One of each model."""
    return [snapshot.encode(network.initial_state() + 0.5, 2, network.digest) for network in networks()]


# Stores -------------------------------------------------------------------------------------------------------------------


def entries() -> list[bytes]:
    """Journal entries and producers."""
    batch = Batch(["a", "b", "c"], [1, bytes(8), 300])
    batch.number(1, "p", 5, 4)
    batch.number(2, "q", 1, 0)
    batch.wants[1] = ("probs", True)
    kept = [KeptProducer("p", 3, 1.5, 7, b"reply", [(2, ("reset", "", None), b"r")]), KeptProducer("q", 1, 0.0, b"x", None, [])]
    return [pack_entry(1.5, []), pack_entry(2.5, [batch, Batch(["a"], [2])]), pack_producers(kept), pack_producers(kept[:1])]


HOSTILE_ENTRIES: dict[str, bytes] = {
    "arrays in arrays, each of 10,000": (b"\xdd" + struct.pack(">I", 10_000)) * 1000 + bytes(5020),
    "a time that is none": pack([float("nan"), b""]),
    "a place that is not there": pack([1.0, b"", [["a"], [1], [1], ["p"], [1], [0], {}]]),
    "a place from behind": pack([1.0, b"", [["a"], [1], [-1], ["p"], [1], [0], {}]]),
    "names that are numbers": pack([1.0, b"", [[5], [1], [], [], [], [], {}]]),
    "keys that were chosen": pack([1.0, b"", [["a"], [1], [], [], [], [], {1 << 40: ["probs", True]}]]),
    "an owner from behind": pack([1.0, b"", [["a"], [1], [], [], [], [], {}, [["k"], [-1]]]]),
    "a reply that is a number": pack([["p", 3, 1.5, 7, b"reply", [[2, 5, 5]]]]),
    "heard of at NaN": pack([["p", 3, float("nan"), 7, b"reply", []]]),
}


def good(target: str) -> list[bytes]:
    """Bytes that the target takes, and others to begin with."""
    match target:
        case "decode":
            return [*bodies(), *(data for data, _ in HOSTILE_BODIES.values())]
        case "answer":
            return [*answers(), *(data for data, _ in HOSTILE_ANSWERS.values())]
        case "model":
            return [*files(), *(data for data, _ in HOSTILE_FILES.values() if len(data) < 5000)]
        case "restore":
            return snapshots()
        case _:
            return [*entries(), *HOSTILE_ENTRIES.values()]
