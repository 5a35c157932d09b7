"""The guard: a thread beside the loop for all that is no message. No decisions; `Connections` and `Door` make them.

It hears from ZeroMQ who has connected and who has gone (the monitor of the ROUTER), answers it whether a key is admitted (ZAP),
reads the folders of keys again when something in them has changed, cuts the connections that have to go, and has the system
shut out addresses that only ever knock.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import resource
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable

import zmq
from zmq.auth import Authenticator

from rnnstream.errors import RnnstreamError
from rnnstream.worker.access import DOMAIN, Access
from rnnstream.worker.connections import Connection, Connections
from rnnstream.worker.door import Door, network, peer_of, shut_out
from rnnstream.worker.stats import Stats

log = logging.getLogger("rnnstream.worker")

LOOK_S = 1.0  # between looks at the folders: how long a key that was taken away is still good. A look costs 5 us a file
FAILED = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
NO_SOCKET = 0  # no inode has this number
EVENTS = zmq.EVENT_LISTENING | zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_MONITOR_STOPPED | FAILED

MOST_CONNECTIONS = 10_000  # 28 kB each in ZeroMQ when nothing is under way, 39 with CURVE: 400 MB
SPARE_FILES = 64  # for everything else: the store, a program's own files


def most_connections() -> int:
    """How many connections this process has room for.

    ZeroMQ goes round in circles while it cannot accept for want of descriptors; so some stay free, an eighth of them for
    connections that come faster than they are cut.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return min(MOST_CONNECTIONS, max(1, files - files // 8 - SPARE_FILES))


class Guard:
    """Watches over the connections of a ROUTER socket.

    Args:
        router: the socket, not bound yet, so that nobody comes in unseen.
        connections: where what is heard goes.
        stats: are told how many connections there are, and how many handshakes have failed.
        access: which keys there are; None on an open worker.
        stop: ends the loop, if the guard fails: without it no key could be taken away any more.
    """

    def __init__(
        self,
        router: zmq.Socket[bytes],
        connections: Connections,
        *,
        stats: Stats,
        access: Access | None = None,
        stop: Callable[[], None],
    ) -> None:
        self._router, self._connections, self._stats, self._access, self._stop = router, connections, stats, access, stop
        self._thread = threading.Thread(target=self._run, name="rnnstream-guard", daemon=True)
        self._zap: Zap | None = None
        self._door = Door() if access is not None else None
        self._listeners: list[int] = []
        self._problem: Exception | None = None

    def __enter__(self) -> Guard:
        """Begin to watch."""
        with contextlib.ExitStack() as stack:
            # Cutting takes a descriptor of our own, and when there are too many connections there may be none left.
            self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, self._null)
            self._spare = os.dup(self._null)
            stack.callback(os.close, self._spare)
            self._monitor = stack.enter_context(self._router.get_monitor_socket(EVENTS))
            stack.callback(self._router.disable_monitor)
            if self._access is not None:
                self._zap = Zap(self._router.context, self._connections, self._door)
                stack.callback(self._zap.stop)
                self._zap.start()
            self._thread.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        """End it; raises `RnnstreamError` if it had failed. The socket may not be closed yet."""
        self._router.disable_monitor()  # which the thread hears
        self._thread.join()
        self._stack.close()
        if self._problem is not None:
            raise RnnstreamError(
                f"The worker has stopped, for the thread that admits and cuts connections failed: {self._problem!r}."
            ) from self._problem

    def _run(self) -> None:
        try:
            self._watch()
        except Exception as problem:
            log.exception("the guard of the connections failed: the worker stops")
            self._problem = problem
            with self._connections.lock:
                self._connections.set_keys(())  # nobody is admitted from here on, and nobody gets any more
            if self._zap is not None:
                self._zap.stop()
            self._stop()
            while _event(self._monitor.recv_multipart())[0] != zmq.EVENT_MONITOR_STOPPED:
                pass  # somebody has to read them: ZeroMQ waits when there are too many

    def _watch(self) -> None:
        connections, access, zap = self._connections, self._access, self._zap
        poller = zmq.Poller()
        poller.register(self._monitor, zmq.POLLIN)
        if zap is not None:
            poller.register(zap.zap_socket, zmq.POLLIN)
        look_at = wake_at = time.monotonic() + LOOK_S
        while True:
            timeout = None if access is None else math.ceil(max(wake_at - time.monotonic(), 0.0) * 1000)
            ready = dict(poller.poll(timeout))
            changed = False
            if access is not None and time.monotonic() >= look_at:
                changed = access.read_again()
                look_at = time.monotonic() + LOOK_S
            with connections.lock:
                going = self._take_events()
                if access is not None and changed:
                    connections.set_keys(access.keys)
                if zap is not None and zap.zap_socket in ready:
                    zap.answer()
                    going = self._take_events() and going  # before anybody can get a reply: see connections.py
                doomed = connections.take_doomed()
                self._stats.connections, self._stats.refused = len(connections), connections.refused
            for connection in doomed:
                self._cut(connection)
            if not going:
                return
            wake_at = min(look_at, self._mind_the_door())

    def _take_events(self) -> bool:
        """Tell of all that has happened to connections; False if nothing will any more."""
        connections, recv = self._connections, self._monitor.recv_multipart
        fresh: set[int] = set()  # descriptors of connections of which nothing more has been heard
        try:
            while True:
                event, value = _event(recv(zmq.NOBLOCK))
                if event == zmq.EVENT_ACCEPTED:
                    connections.accepted(value, _inode(value))
                    fresh.add(value)
                elif event == zmq.EVENT_DISCONNECTED:
                    connections.ended(value)
                    fresh.discard(value)  # it may be another connection's by now, which has not knocked as often
                elif event & FAILED:
                    connections.failed()
                elif event == zmq.EVENT_LISTENING:
                    self._listeners.append(value)  # which stays open for as long as there is a guard
                else:
                    return False
        except zmq.Again:
            if self._door is not None:
                now = time.monotonic()
                for descriptor in fresh:
                    if (address := peer_of(descriptor)) is not None:
                        self._door.knocked(address, now)
            return True

    def _mind_the_door(self) -> float:
        """Shut out whoever has knocked too often, and let in whose time is over; when to look again."""
        door = self._door
        if door is None:
            return math.inf
        before, again = door.shut, door.look(time.monotonic())
        if door.shut != before:
            for address in door.shut - before:
                log.warning("%s has too many connections that have shown no key: new ones are held up", address)
            for listener in self._listeners:
                try:
                    shut_out(listener, door.shut)
                except OSError as problem:
                    log.error("the system holds nobody up, for it refuses a filter of connections: %s", problem)
        return math.inf if again is None else again

    def _cut(self, connection: Connection) -> None:
        """End a connection. ZeroMQ notices, and a peer of ZeroMQ connects anew.

        Its inode is that of its own socket: had that been closed before it was looked up, its end would have been among the
        events of the same round. The descriptor may be another file's by now; that of its copy will not be.
        """
        with contextlib.suppress(OSError):  # it has ended by itself
            os.dup2(connection.descriptor, self._spare, inheritable=False)
            if _inode(self._spare) == connection.inode != NO_SOCKET:
                copy = socket.socket(fileno=self._spare)
                try:
                    copy.shutdown(socket.SHUT_RDWR)
                finally:
                    copy.detach()
        os.dup2(self._null, self._spare, inheritable=False)  # as long as there is a copy, it is not closed


class Zap(Authenticator):
    """Answers ZeroMQ whether a key is admitted; whatever is not CURVE is refused."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], connections: Connections, door: Door | None) -> None:
        super().__init__(context, log=log)
        self.configure_curve_callback(DOMAIN, self)
        self._connections, self._door = connections, door
        self._user: str | None = None  # of whom is asked just now

    def answer(self) -> None:
        """Answer one question that has come."""
        with contextlib.suppress(zmq.Again):
            answering = self.handle_zap_message(self.zap_socket.recv_multipart(zmq.NOBLOCK))
            with contextlib.suppress(StopIteration):
                answering.send(None)
                raise AssertionError("an answer waits for nothing")

    async def handle_zap_message(self, msg: list[bytes]) -> None:
        """As the base does; but that admits whoever has no key, where it is asked about him."""
        if len(msg) > 5 and msg[5] != b"CURVE":
            self._send_zap_reply(msg[1], b"400", b"CURVE only")
        else:
            self._user = None
            await super().handle_zap_message(msg)
            if self._user is not None and self._door is not None:
                with contextlib.suppress(ValueError):  # it came by another way than TCP
                    self._door.admitted(network(msg[3].decode()))

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether this key, in Z85, is admitted."""
        self._user = self._connections.admit(key.decode())
        return self._user is not None

    def curve_user_id(self, client_public_key: bytes) -> str:
        """What the messages of the connection shall carry, for which `callback` has just said yes."""
        assert self._user is not None
        return self._user


def _event(message: list[bytes]) -> tuple[int, int]:
    """An event of the monitor, and its value: the descriptor of a connection that was accepted or has ended."""
    event, value = struct.unpack("=Hi", message[0])
    return event, value


def _inode(descriptor: int) -> int:
    """What tells a socket from all that have had its descriptor."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return NO_SOCKET
    return status.st_ino if stat.S_ISSOCK(status.st_mode) else NO_SOCKET
