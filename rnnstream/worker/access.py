"""Which key a worker has and whom it admits, as that stands in files: CURVE, ZeroMQ's encryption and authentication."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from pathlib import Path

import zmq

from rnnstream.errors import BadKey, RnnstreamError
from rnnstream.keys import read_directory, read_pair

log = logging.getLogger("rnnstream.worker")

DOMAIN = "rnnstream"  # of ZAP: which socket it is that asks; there is only one
SETTLED_NS = 2_000_000_000  # files that were changed less than so long ago may change once more without looking any different


# Of a file: its name, when it was changed in any way, then modified, its size, its inode.
Status = tuple[str, int, int, int, int]


class Access:
    """The keys of a worker.

    Args:
        server_key: path of its secret key file.
        allow: directory of the public keys of its users.
        admin: directory of the public keys of its administrators, who are admitted too.

    Attributes:
        keys: all that are admitted.
        admins: the administrators' among them.
        public: the worker's own.
        secret: known to this worker's key alone, and the same each time it is started with it.
    """

    def __init__(self, server_key: str | Path, allow: str | Path, admin: str | Path | None = None) -> None:
        self._server_key = Path(server_key)
        self._allow = Folder(allow)
        self._admin = None if admin is None else Folder(admin)
        self.keys: frozenset[str] = frozenset()
        self.admins: frozenset[str] = frozenset()
        self.public, self.secret = "", b""

    def secure(self, socket: zmq.Socket[bytes]) -> None:
        """Read all files, and have a socket that is not bound yet speak CURVE and nothing else.

        Raises:
            BadKey: a file or a directory cannot be used.
            RnnstreamError: this libzmq was built without CURVE.
        """
        if not zmq.has("curve"):
            raise RnnstreamError(
                f"libzmq {zmq.zmq_version()} was built here without CURVE, which keys need; the wheels of pyzmq bring one."
            )
        public, secret = read_pair(self._server_key)
        self.public = public
        self.secret = hashlib.blake2b(secret.encode(), digest_size=16, person=b"cursors").digest()
        for folder in self._folders:
            folder.read()
        self._gather()
        socket.curve_server = True
        socket.curve_publickey = public.encode()
        socket.curve_secretkey = secret.encode()
        socket.zap_domain = DOMAIN.encode()
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without it, everybody is admitted while nobody answers ZAP

    def read_again(self) -> bool:
        """Read what has changed since; whether other keys are admitted now, or others are administrators.

        A directory that cannot be used any more, for it is gone or others can write to it, lets nobody new in, and that is
        logged as an error. Whose file is no longer in it is out. Those of one that is gone stay: a worker does not turn
        everybody away because somebody moves a directory.
        """
        before = self.keys, self.admins
        for folder in self._folders:
            folder.read_again()
        self._gather()
        return before != (self.keys, self.admins)

    @property
    def _folders(self) -> list[Folder]:
        return [self._allow] if self._admin is None else [self._allow, self._admin]

    def _gather(self) -> None:
        self.admins = self._admin.keys if self._admin is not None else frozenset()
        self.keys = self._allow.keys | self.admins

    def __str__(self) -> str:
        told = f"{_count(self._allow.keys, 'key')} admitted from {self._allow.path}"
        return told if self._admin is None else f"{told}, {_count(self._admin.keys, 'administrator')} from {self._admin.path}"


class Folder:
    """A directory of public keys.

    Attributes:
        path: of the directory.
        keys: that were in it when it was read last.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.keys: frozenset[str] = frozenset()
        self._files: dict[str, Path] = {}
        self._read = False
        self._seen: list[Status] | None = None  # as it looked before it was read; None: look again
        self._problems: set[str] = set()

    def read(self) -> None:
        """Read it, and log what is wrong in it and was not told of before.

        Raises:
            BadKey: it cannot be read; `keys` are as they were.
        """
        seen = self._look()
        keys, problems = read_directory(self.path)
        before, files = self.keys, self._files | keys
        self.keys, self._files, self._seen = frozenset(keys), keys, seen
        if self._read:
            for key in sorted(before ^ self.keys):
                log.info("%s: %s (%s)", "admitted" if key in self.keys else "no longer admitted", key, files[key].name)
        if not self.keys:
            log.warning("there is no public key in %s: nobody is admitted from it", self.path)
        self._read = True
        self._tell(problems)

    def read_again(self) -> None:
        """Read it, if it looks as if something in it had changed; log what is wrong."""
        try:
            if self._seen is None or self._look() != self._seen:
                self.read()
        except BadKey as problem:
            self._seen = None
            if self.path.is_dir():  # nobody new is let in, but whose file is gone is out
                self.keys = frozenset(key for key in self.keys if os.path.lexists(self._files[key]))
            told = f"{str(problem).rstrip('.')}. Nobody new is admitted; {_count(self.keys, 'key')} left of those before."
            self._tell([told], logging.ERROR)

    def _look(self) -> list[Status] | None:
        """What changes when a file does; None where that cannot be told."""
        try:
            with os.scandir(self.path) as entries:
                found = [_status("", self.path), *(_status(entry.name, entry) for entry in entries)]
        except OSError:
            return None
        newest = max(changed_ns for _, changed_ns, *_ in found)
        return sorted(found) if newest < time.time_ns() - SETTLED_NS else None

    def _tell(self, problems: list[str], level: int = logging.WARNING) -> None:
        for problem in problems:
            if problem not in self._problems:
                log.log(level, "%s", problem)
        self._problems = set(problems)


def _status(name: str, file: Path | os.DirEntry[str]) -> Status:
    try:
        status = file.stat()
    except FileNotFoundError:  # a link that leads nowhere, or it is gone already
        return name, 0, 0, 0, 0
    return name, status.st_ctime_ns, status.st_mtime_ns, status.st_size, status.st_ino


def _count(things: frozenset[str], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"
