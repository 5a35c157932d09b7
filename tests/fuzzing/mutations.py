"""Changes bytes for the parsers: any bytes one by one, and those of a model file by their structure."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from rnnstream.errors import ModelError
from rnnstream.model.activations import ACTIVATIONS
from rnnstream.model.file import KEY
from rnnstream.model.kinds import LARGEST, LAYERS
from rnnstream.model.spec import HEADS, parse

# Bytes that mean something to a parser: heads of MessagePack, lengths, numbers at the edges.
WORDS: dict[str, list[bytes]] = {
    "decode": [
        *(bytes([first]) for first in (0x80, 0x8F, 0x90, 0x91, 0x9F, 0xA0, 0xC0, 0xC1, 0xC2, 0xC3, 0xCC, 0xE0, 0xFF)),
        *(
            first + size
            for first in (b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9")
            for size in (b"\0\0\0\4", b"\0\0\x10\0", b"\xff" * 4)
        ),
        *(b"\xdc\0\x10", b"\xde\0\x11", b"\xc7\x0c\xff", b"\xd6\xff\0\0\0\0", b"\xd4\5\0", b"\xc7\0\5", b"\xca\x7f\xc0\0\0"),
        *(
            b"\xcf" + b"\xff" * 8,
            b"\xd3\x80" + bytes(7),
            b"\xcb\x7f\xf0" + bytes(6),
            b"\xa3\xed\xa0\x80",
            b"\xa4\xf0\x9d\x84\x9e",
        ),
        *(
            b"\xa7session\xa1s",
            b"\xa1x\7",
            b"\xa2op\xa4step",
            b"\xa2op\xa4peek\xa2xs\x91\7",
            b"\xa1n\1",
            b"\xa3ack\0",
            b"\xa2id\5",
        ),
        *(
            b"\xa8producer\xa1p",
            b"\xa5state\xc4\0",
            b"\xa4want\xa5probs",
            b"\xa5error\xa4busy",
            b"\xa7message\xa1m",
            b"\xa1t\1",
        ),
    ],
    "model": [
        b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}',
        b'"__metadata__"',
        b"[0,4611686018427387904]",
        b"\\u001b",
        b"\\ud800",
    ],
    "restore": [
        b"rnnstate",
        b"\1\0<f4",
        b"<f8",
        b"\0\0\xc0\x7f",
        b"\0\0\x80\xff",
        b"\xff" * 8,
        bytes(8),
        (1 << 62).to_bytes(8, "little"),
    ],
}
WORDS["answer"] = WORDS["records"] = WORDS["decode"]

VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        2,
        3,
        7,
        1 << 18,
        LARGEST,
        LARGEST + 1,
        1 << 40,
        1 << 62,
        1 << 63,
        1 << 64,
        10**30,
    ),
    *(0.5, 1e-5, 1e-31, 1e999, float("nan"), -0.0, "", "x", "x" * 300, "\ud800", "\x1b[31m", "\u202e", "é" * 70, [], {}, [[]]),
    *(
        [0, 1 << 62],
        [1 << 63, 0],
        [1] * 70,
        {"kind": "rnn", "size": 2},
        {"kind": "residual", "of": 0},
        "F32",
        "F64",
        "BF16",
        "F4",
    ),
    *(*ACTIVATIONS, *LAYERS, *HEADS, "max", "mean", "before", "after", "float64", "dense", "token"),
]
KEYS = ["kind", "size", "of", "kernel", "dilation", "window", "function", "gate", "reset", "epsilon", "vocabulary", "x\r\n", ""]
SMALL = 5000  # numbers of a model whose tensors are made to fit


class Mutations:
    """Makes bytes out of others, by the dice of a seed.

    Args:
        target: whose bytes they are.
        chance: the dice.
        others: bytes of which parts may be put in.
    """

    def __init__(self, target: str, chance: random.Random, others: Sequence[bytes]) -> None:
        self.target, self.chance, self._others = target, chance, others
        self._changes: list[Callable[[bytearray], None]] = [
            *(self._flip, self._flip, self._put, self._insert, self._word, self._word, self._remove, self._repeat, self._cut),
            *(self._splice, self._many),
        ]

    def changed(self, data: bytes) -> bytes:
        """Some other bytes."""
        if self.target == "model" and self.chance.random() < 0.8:
            with contextlib.suppress(RecursionError):  # of one that is nested as deeply as JSON is read, but not written
                parts = apart(data)
                if parts is not None:
                    return self._model(*parts)
        return self._bytes(data)

    def _bytes(self, data: bytes) -> bytes:
        body = bytearray(data)
        for _ in range(self.chance.choice((1, 1, 1, 2, 3, 8))):
            self.chance.choice(self._changes)(body)
        return bytes(body)

    def _place(self, body: bytearray) -> int:
        return self.chance.randrange(len(body) + 1)

    def _flip(self, body: bytearray) -> None:
        if body:
            body[self.chance.randrange(len(body))] ^= 1 << self.chance.randrange(8)

    def _put(self, body: bytearray) -> None:
        if body:
            body[self.chance.randrange(len(body))] = self.chance.randrange(256)

    def _insert(self, body: bytearray) -> None:
        at = self._place(body)
        body[at:at] = self.chance.randbytes(self.chance.randint(1, 9))

    def _word(self, body: bytearray) -> None:
        word, at = self.chance.choice(WORDS[self.target]), self._place(body)
        body[at : at + self.chance.choice((0, len(word)))] = word

    def _remove(self, body: bytearray) -> None:
        at = self._place(body)
        del body[at : at + self.chance.randint(1, 9)]

    def _repeat(self, body: bytearray) -> None:
        at, size = self._place(body), self.chance.randint(1, 30)
        body[at:at] = body[at : at + size] * self.chance.choice((1, 1, 2, 20))

    def _cut(self, body: bytearray) -> None:
        del body[self._place(body) :]

    def _splice(self, body: bytearray) -> None:
        other = self.chance.choice(self._others)
        start = self.chance.randrange(len(other) + 1)
        at = self._place(body)
        body[at:at] = other[start : start + self.chance.randint(1, 60)]

    def _many(self, body: bytearray) -> None:
        at = self._place(body)
        body[at:at] = self.chance.choice(WORDS[self.target]) * self.chance.choice((2, 40, 1100))

    # -- model files

    def _model(self, header: dict[str, Any], numbers: bytes) -> bytes:
        chance = self.chance
        metadata = header.get("__metadata__")
        text = metadata.get(KEY) if isinstance(metadata, dict) else None
        if isinstance(text, str) and chance.random() < 0.7:
            text, spec = self._text(text)
            if chance.random() < 0.8:
                header, numbers = fitting(spec, chance) or (header, numbers)
            header = {**header, "__metadata__": {KEY: text}}
        if chance.random() < 0.15:
            self._edit(header)
        if chance.random() < 0.1:
            numbers = self._bytes(numbers)
        return together(header, numbers)

    def _text(self, text: str) -> tuple[str, Any]:
        """A specification, changed: its text, and its value if it has one."""
        try:
            spec = json.loads(text)
        except (ValueError, RecursionError):
            spec = None
        if not isinstance(spec, dict | list):
            return self._bytes(text.encode(errors="replace")).decode(errors="replace"), None
        for _ in range(self.chance.choice((1, 1, 2, 4))):
            self._edit(spec)
        text = json.dumps(spec)
        if self.chance.random() < 0.1:
            text = self._bytes(text.encode()).decode(errors="replace")
        return text, spec

    def _edit(self, tree: Any) -> None:
        """Change some node of what JSON has given."""
        nodes = [tree]
        for node in nodes:
            nodes += [part for part in (node.values() if isinstance(node, dict) else node) if isinstance(part, dict | list)]
        node = self.chance.choice(nodes)
        places = list(node) if isinstance(node, dict) else list(range(len(node)))
        new = self.chance.choice([*VALUES, *nodes]) if self.chance.random() < 0.9 else self._deep()
        if isinstance(new, dict | list):
            new = json.loads(json.dumps(new))  # a copy
        match self.chance.randrange(6 if places else 1):
            case 0 if isinstance(node, dict):
                node[self.chance.choice(KEYS)] = new
            case 0 | 1 if isinstance(node, list):
                node.insert(self.chance.randint(0, len(node)), new)
            case 2:
                del node[self.chance.choice(places)]
            case 3 if isinstance(node, list) and len(nodes) < 100:  # else many times many
                node *= self.chance.choice((2, 3, 100))
                del node[1100:]  # more than a model has layers
            case _:
                node[self.chance.choice(places)] = new

    def _deep(self) -> Any:
        value: Any = []
        for _ in range(self.chance.choice((3, 100, 400))):
            value = [value] if self.chance.random() < 0.9 else {"kind": value}
        return value


def apart(data: bytes) -> tuple[dict[str, Any], bytes] | None:
    """The header and the numbers of a safetensors file; None if it is none."""
    size = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + size])
    except (ValueError, RecursionError):
        return None
    return (header, data[8 + size :]) if isinstance(header, dict) else None


def together(header: dict[str, Any], numbers: bytes) -> bytes:
    """A safetensors file."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + numbers


def fitting(spec: Any, chance: random.Random) -> tuple[dict[str, Any], bytes] | None:
    """The header and the numbers that a specification asks for; None where there is none, or a large one."""
    try:
        parsed = parse(spec)
    except (ModelError, RecursionError):
        return None
    header: dict[str, Any] = {}
    at, kind = 0, {"float32": ("F32", 4), "float64": ("F64", 8)}[parsed.dtype]
    for name, shape in parsed.shapes.items():
        size = kind[1]
        for side in shape:
            size *= side
        header[name] = {"dtype": kind[0], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
        if at > SMALL * kind[1]:
            return None
    return header, chance.choice((bytes(at), chance.randbytes(at), b"\0\0\x80\x3f" * (at // 4)))
