"""What one would write by hand instead: an asyncio protocol on uvloop, over plain TCP, for a vanilla network on one-hot tokens.

    python -m scripts.bench.uvloop_server model.safetensors

Each body has its length in front (4 bytes, big-endian); bodies and replies are the same MessagePack maps. All tokens that have
arrived since the last wave are one batch through plain NumPy products, and each connection gets one write a wave.

It is made fast, and does nothing else: no errors, no checks, no numbering, no bounds, nothing kept; and its bits depend on
who else is in the batch.
"""

import argparse
import asyncio
import gc
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import uvloop
from safetensors.numpy import load_file
from threadpoolctl import threadpool_limits

LENGTH = struct.Struct(">I")
# The end of a reply: the value of t, "y" and its value, "p" and its value
TAIL = np.dtype([("t0", "u1"), ("t", ">u4"), ("y0", "S3"), ("y", ">u2"), ("p0", "S3"), ("p", ">f8")])


class Network:
    """The states of all sessions, and the step: a<t> = tanh(waa a<t-1> + wax x<t> + ba), y<t> = softmax(wya a<t> + by)."""

    def __init__(self, path: Path) -> None:
        tensors = load_file(path)
        self.waa, self.wya = (np.ascontiguousarray(tensors[name].T) for name in ("waa", "wya"))
        self.wax = tensors["wax"].T + tensors["ba"]  # [V, H]
        self.by = tensors["by"]
        self.states = np.zeros((1024, len(self.waa)), np.float32)
        self.t = np.zeros(1024, np.int64)
        self.rows: dict[str, int] = {}
        self.heads: list[bytes] = []  # of each session's replies, up to the value of t
        self._buffers(1024)

    def open(self, name: str) -> int:
        """A row for a new session."""
        row = self.rows[name] = len(self.heads)
        self.heads.append(b"\x84\xa7session" + msgpack.packb(name) + b"\xa1t")
        if row == len(self.states):
            self.states = np.concatenate((self.states, np.zeros_like(self.states)))
            self.t = np.concatenate((self.t, np.zeros_like(self.t)))
        return row

    def _buffers(self, rows: int) -> None:
        """Memory for a batch of so many rows, made once: what malloc gives back and takes again costs page faults."""
        self.a, self.z = (np.empty((rows, len(self.waa)), np.float32) for _ in range(2))
        self.logits = np.empty((rows, len(self.by)), np.float32)

    def step(self, rows: np.ndarray, xs: np.ndarray, tails: np.ndarray, to: Any) -> None:
        """Advance sessions by a token each; their replies' ends come to `tails[to]`."""
        if len(rows) > len(self.a):
            self._buffers(2 * len(rows))
        a, z, logits = (buffer[: len(rows)] for buffer in (self.a, self.z, self.logits))
        np.matmul(self.states.take(rows, 0, a, "clip"), self.waa, out=z)
        z += self.wax.take(xs, 0, a, "clip")
        self.states[rows] = np.tanh(z, out=z)
        self.t[rows] += 1
        np.matmul(z, self.wya, out=logits)
        logits += self.by
        ys = logits.argmax(1)
        logits -= logits.max(1, keepdims=True)
        tails["y"][to], tails["p"][to], tails["t"][to] = ys, 1 / np.exp(logits, out=logits).sum(1), self.t[rows]


class Server:
    """Gathers requests until the loop has read from all connections, and runs them as a wave."""

    def __init__(self, network: Network, loop: asyncio.AbstractEventLoop) -> None:
        self.network, self.loop = network, loop
        self.bodies: list[tuple[Connection, int]] = []  # whose, and how many requests
        self.rows: list[int] = []
        self.xs: list[int] = []

    def take(self, connection: "Connection", requests: Sequence[dict[str, Any]]) -> None:
        """Put a body's requests into the next wave."""
        if not self.bodies:
            self.loop.call_soon(self.wave)
        known = self.network.rows
        for request in requests:
            name = request["session"]
            row = known.get(name)
            self.rows.append(self.network.open(name) if row is None else row)
            self.xs.append(request["x"])
        self.bodies.append((connection, len(requests)))

    def wave(self) -> None:
        """Run all that waits, and answer it."""
        bodies, flat, network = self.bodies, self.rows, self.network
        rows, xs = np.array(flat), np.array(self.xs)
        self.bodies, self.rows, self.xs = [], [], []
        tails = np.empty(len(flat), TAIL)
        tails["t0"], tails["y0"], tails["p0"] = 0xCE, b"\xa1y\xcd", b"\xa1p\xcb"
        if len(set(flat)) == len(flat):
            network.step(rows, xs, tails, slice(None))
        else:  # several tokens of a session follow each other
            turns: list[list[int]] = []
            seen: dict[int, int] = {}
            for i, row in enumerate(flat):
                seen[row] = turn = seen.get(row, -1) + 1
                if turn == len(turns):
                    turns.append([])
                turns[turn].append(i)
            for turn_of in turns:
                network.step(rows[turn_of], xs[turn_of], tails, turn_of)
        ends, size, heads = tails.tobytes(), TAIL.itemsize, network.heads
        replies = [heads[row] + ends[at : at + size] for row, at in zip(flat, range(0, len(ends), size), strict=True)]
        outgoing: dict[Connection, list[bytes]] = {}
        at = 0
        for connection, count in bodies:
            body = replies[at] if count == 1 else b"".join(replies[at : at + count])
            outgoing.setdefault(connection, []).append(LENGTH.pack(len(body)) + body)
            at += count
        for connection, parts in outgoing.items():
            connection.transport.write(b"".join(parts))


class Connection(asyncio.Protocol):
    """Cuts what comes into bodies."""

    transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self.server, self.rest, self.unpacker = server, b"", msgpack.Unpacker()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Keep the transport."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Hand on all whole bodies."""
        if self.rest:
            data = self.rest + data
        at, end, unpack = 0, len(data), msgpack.unpackb
        while end - at >= 4 and (to := at + 4 + LENGTH.unpack_from(data, at)[0]) <= end:
            body = data[at + 4 : to]
            try:
                self.server.take(self, (unpack(body),))
            except msgpack.ExtraData:
                self.unpacker.feed(body)
                self.server.take(self, list(self.unpacker))
            at = to
        self.rest = data[at:]


async def serve(model: Path) -> None:
    loop = asyncio.get_running_loop()
    network = Network(model)
    server = Server(network, loop)
    listening = await loop.create_server(lambda: Connection(server), "127.0.0.1", 0)
    gc.freeze()
    gc.set_threshold(100_000, 0, 1000)  # as `rnnstream serve`, so that neither looks for garbage more often than the other
    print(f"ready tcp://127.0.0.1:{listening.sockets[0].getsockname()[1]}", flush=True)
    await listening.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    args = parser.parse_args()
    with threadpool_limits(1):  # more threads do not help matrices of this size, and take processors from the clients
        uvloop.run(serve(args.model))


if __name__ == "__main__":
    main()
