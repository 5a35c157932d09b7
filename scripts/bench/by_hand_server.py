"""What one writes by hand instead: an asyncio protocol on uvloop over plain TCP, for a vanilla network on one-hot tokens.

    python -m scripts.bench.by_hand_server model.safetensors

Each body has its length in front (4 bytes, big-endian); bodies and replies are the same MessagePack maps, by `Unpacker` and
`packb`. All tokens that have arrived since the last wave are one batch through plain NumPy products, and each connection gets
one write a wave. `uvloop_server.py` is the same with all that makes it fast.
"""

import argparse
import asyncio
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import uvloop
from safetensors.numpy import load_file
from threadpoolctl import threadpool_limits


class Network:
    """The states of all sessions, and the step: a<t> = tanh(waa a<t-1> + wax x<t> + ba), y<t> = softmax(wya a<t> + by)."""

    def __init__(self, path: Path) -> None:
        tensors = load_file(path)
        self.waa, self.wax, self.wya = (np.ascontiguousarray(tensors[name].T) for name in ("waa", "wax", "wya"))
        self.ba, self.by = tensors["ba"], tensors["by"]
        self.states = np.zeros((4096, len(self.waa)), np.float32)
        self.t = np.zeros(4096, np.int64)
        self.rows: dict[str, int] = {}

    def step(self, requests: list[dict[str, Any]]) -> list[bytes]:
        """Replies to requests of different sessions."""
        rows = np.array([self.rows.setdefault(request["session"], len(self.rows)) for request in requests])
        a = np.tanh(self.states[rows] @ self.waa + self.wax[[request["x"] for request in requests]] + self.ba)
        self.states[rows] = a
        self.t[rows] += 1
        e = a @ self.wya + self.by
        e = np.exp(e - e.max(axis=1, keepdims=True))
        ys, ps = e.argmax(axis=1), e.max(axis=1) / e.sum(axis=1)
        return [
            msgpack.packb({"session": request["session"], "t": t, "y": y, "p": p})
            for request, t, y, p in zip(requests, self.t[rows].tolist(), ys.tolist(), ps.tolist(), strict=True)
        ]


class Server:
    """Gathers bodies until the loop has read from all connections, and runs them as a wave."""

    def __init__(self, network: Network, loop: asyncio.AbstractEventLoop) -> None:
        self.network, self.loop = network, loop
        self.bodies: list[tuple[Connection, list[dict[str, Any]]]] = []

    def take(self, connection: "Connection", requests: list[dict[str, Any]]) -> None:
        """Put a body's requests into the next wave."""
        if not self.bodies:
            self.loop.call_soon(self.wave)
        self.bodies.append((connection, requests))

    def wave(self) -> None:
        """Run all that waits, the tokens of one session one after the other, and answer it."""
        bodies, self.bodies = self.bodies, []
        requests = [request for _, body in bodies for request in body]
        turns: list[list[int]] = []
        seen: dict[str, int] = defaultdict(int)
        for place, request in enumerate(requests):
            turn = seen[request["session"]]
            seen[request["session"]] += 1
            if turn == len(turns):
                turns.append([])
            turns[turn].append(place)
        replies = [b""] * len(requests)
        for places in turns:
            for place, reply in zip(places, self.network.step([requests[place] for place in places]), strict=True):
                replies[place] = reply
        outgoing: dict[Connection, bytes] = defaultdict(bytes)
        at = 0
        for connection, body in bodies:
            answer = b"".join(replies[at : at + len(body)])
            outgoing[connection] += len(answer).to_bytes(4) + answer
            at += len(body)
        for connection, data in outgoing.items():
            connection.transport.write(data)


class Connection(asyncio.Protocol):
    """Cuts what comes into bodies."""

    transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self.server, self.data = server, b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Keep the transport."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Hand on all whole bodies."""
        self.data += data
        while len(self.data) >= 4 and len(self.data) >= (end := 4 + int.from_bytes(self.data[:4])):
            unpacker = msgpack.Unpacker()
            unpacker.feed(self.data[4:end])
            self.data = self.data[end:]
            self.server.take(self, list(unpacker))


async def serve(model: Path) -> None:
    loop = asyncio.get_running_loop()
    server = Server(Network(model), loop)
    listening = await loop.create_server(lambda: Connection(server), "127.0.0.1", 0)
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
