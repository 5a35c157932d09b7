"""Keys of a worker and its users in files, and raw peers that have them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import zmq

from rnnstream.keys import read_pair, write_pair
from rnnstream.wire.replies import decode

from .driving import Reply, pack

DEADLINE_S = 20
Pair = tuple[str, str]  # public, secret

CONNECTED = zmq.EVENT_HANDSHAKE_SUCCEEDED
REFUSED = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
ENDED = zmq.EVENT_DISCONNECTED


class Keys:
    """A worker's key and the folders of those that it admits, in a directory.

    Attributes:
        server: the worker's pair.
        options: for `Worker`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("allow", "admin", "away"):
            (directory / name).mkdir()
        _, secret = write_pair(directory / "worker")
        self.server = read_pair(secret)
        self.options = {"server_key": secret, "allow": directory / "allow", "admin": directory / "admin"}
        self.pairs: dict[str, Pair] = {}

    def make(self, name: str) -> Pair:
        """A pair of keys that is admitted nowhere."""
        _, secret = write_pair(self.directory / "away" / name)
        self.pairs[name] = read_pair(secret)
        return self.pairs[name]

    def add(self, name: str, folder: str = "allow") -> Pair:
        """A pair of keys whose public one is in a folder."""
        pair = self.make(name)
        self.move(name, "away", folder)
        return pair

    def move(self, name: str, origin: str, folder: str) -> None:
        os.rename(self.directory / origin / f"{name}.key", self.directory / folder / f"{name}.key")

    def remove(self, name: str) -> None:
        self.move(name, "allow", "away")


class Keyed:
    """A raw client socket with a key.

    Args:
        address: of the worker.
        server: its public key.
        pair: of the client.
        id: the routing id that it chooses, if it does.
        options: socket options by name.
    """

    def __init__(self, address: str, server: str, pair: Pair, id: bytes | None = None, **options: int) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.rcvtimeo = self.socket.sndtimeo = DEADLINE_S * 1000
        for name, value in options.items():
            self.socket.setsockopt(getattr(zmq, name), value)
        self.socket.curve_serverkey = server.encode()
        self.socket.curve_publickey, self.socket.curve_secretkey = (key.encode() for key in pair)
        if id is not None:
            self.socket.setsockopt(zmq.ROUTING_ID, id)
        self._events = self.socket.get_monitor_socket(CONNECTED | REFUSED | ENDED)
        self._events.rcvtimeo = DEADLINE_S * 1000
        self.socket.connect(address)

    def event(self) -> int:
        """The next thing that happens to its connection."""
        message, _ = self._events.recv_multipart()
        return int.from_bytes(message[:2], "little")

    def send(self, *maps: Any) -> None:
        self.socket.send(pack(maps))

    def recv(self) -> list[Reply]:
        return decode(self.socket.recv())

    def ask(self, *maps: Any) -> list[Reply]:
        self.send(*maps)
        return self.recv()

    def close(self) -> None:
        if not self.socket.closed:
            self.socket.disable_monitor()
            self._events.close()
            self.context.destroy()

    def __enter__(self) -> Keyed:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
