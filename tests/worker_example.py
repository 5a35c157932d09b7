"""The worker core behind the examples of docs/protocol.md, and how bytes are shown there.

After a change of the protocol, `python -m tests.worker_example` writes the replies of the examples anew; read the diff.
"""

import io
import json
import re
import textwrap
from pathlib import Path

import msgpack
import numpy as np

from rnnstream import Engine, Network
from rnnstream.model.blas import one_thread
from rnnstream.model.spec import parse
from rnnstream.wire.limits import Limits
from rnnstream.worker.core import Core

PAGE = Path(__file__).parents[1] / "docs" / "protocol.md"
BLOCK = re.compile(r"\*\*(.+)\*\*\n\n```text\nrequest (.*)\n((?:    .*\n)+)reply (.*)\n((?:    .*\n)+)```")


def example_core() -> Core:
    """Four ids, "a" to "d", three hidden units, all weights zero: the bits are the same on every machine."""
    spec = parse(
        {
            "format": 1,
            "name": "four letters",
            "input": {"kind": "token", "size": 4, "vocabulary": ["a", "b", "c", "d"]},
            "layers": [{"kind": "onehot"}, {"kind": "rnn", "size": 3}, {"kind": "dense", "size": 4}],
            "head": "categorical",
        }
    )
    model = Network(spec, {name: np.zeros(shape, np.float32) for name, shape in spec.shapes.items()})
    model.numerics = "openblas 0.3.31 Haswell 120585e626a2ef6d"
    return Core(Engine(model), worker="6b1f0c2d9a3e4f58", version="0.1.0", limits=Limits())


def ask(core: Core, body: bytes) -> bytes:
    """The core's reply to a body, as if nobody else were there."""
    with one_thread():
        out = core.handle([b"peer"], [body], 2.5)
        while not out:
            out = core.handle([], [], 2.5)
    [(address, reply)] = out
    assert address == b"peer"
    return reply


def shown(body: bytes) -> str:
    """The whole maps of a body as JSON, bytes as "<bin hex>"."""
    maps = msgpack.Unpacker(io.BytesIO(body))
    return " ".join(json.dumps(item, default=lambda value: f"<bin {value.hex()}>") for item in maps)


def main() -> None:
    """Write the replies of the page anew."""
    core = example_core()

    def anew(block: re.Match[str]) -> str:
        title, _, request_hex, _, _ = block.groups()
        request = bytes.fromhex(request_hex)
        reply = ask(core, request)
        told, answered = (textwrap.indent(textwrap.fill(body.hex(" "), 95), "    ") for body in (request, reply))
        return f"**{title}**\n\n```text\nrequest {shown(request)}\n{told}\nreply {shown(reply)}\n{answered}\n```"

    PAGE.write_text(BLOCK.sub(anew, PAGE.read_text()))


if __name__ == "__main__":
    main()
