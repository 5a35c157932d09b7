"""The toy worker behind CURVE: pyzmq's own authenticator admits the keys in a folder, as pyzmq reads them."""

from __future__ import annotations

from pathlib import Path

import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator

from rnnstream.keys import write_pair

from .toy import ToyWorker


class CurveToy(ToyWorker):
    """Admits whose public key files are in its folder when it starts, or at `admit`.

    Attributes:
        public: path of its public key file; for clients.
        curve: whether it uses CURVE at all, from the next `start` on.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.public, self._secret = write_pair(folder / "worker")
        self.curve = True
        self._folder = folder
        self._allow = folder / "allow"
        self._allow.mkdir()
        self._authenticator: ThreadAuthenticator | None = None

    def pair(self, name: str) -> tuple[Path, Path]:
        """A new pair of keys, which is not admitted."""
        return write_pair(self._folder / name)

    def admit(self, *files: Path) -> None:
        """Admit these public keys, and no others, from now on."""
        for file in self._allow.iterdir():
            file.unlink()
        for file in files:
            (self._allow / file.name).write_bytes(file.read_bytes())
        if self._authenticator is not None:
            self._authenticator.configure_curve(domain="*", location=str(self._allow))

    def secure(self, context: zmq.Context[zmq.Socket[bytes]], router: zmq.Socket[bytes]) -> None:
        if not self.curve:
            return
        self._authenticator = ThreadAuthenticator(context)
        self._authenticator.start()
        self._authenticator.configure_curve(domain="*", location=str(self._allow))
        router.curve_publickey, router.curve_secretkey = zmq.auth.load_certificate(self._secret)
        router.curve_server = True

    def insecure(self) -> None:
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None
