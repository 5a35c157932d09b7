"""The socket of a client: one DEALER, made at its first use. It decides nothing."""

from __future__ import annotations

import contextlib
import math
import os
import threading

import zmq

from rnnstream import keys
from rnnstream.client import handshakes
from rnnstream.errors import ConnectionFailed

_OPTIONS = {
    zmq.LINGER: 0,  # what was not sent when a call is given up must not count later, behind its caller's back
    zmq.SNDHWM: 0,  # a send never blocks and never fails: timeouts and windows bound what is in flight
    zmq.RCVHWM: 0,  # likewise; a worker sends only what was asked for
    zmq.HEARTBEAT_IVL: 5_000,  # ms: a peer that went without a word (power, cable, NAT) is noticed, and reconnected to
    zmq.HEARTBEAT_TIMEOUT: 15_000,  # ms: three heartbeats, for a machine that is only slow
    zmq.HEARTBEAT_TTL: 30_000,  # ms: when the worker's side forgets this connection
    zmq.CONNECT_TIMEOUT: 5_000,  # ms: the system's own is minutes
    zmq.RECONNECT_IVL: 50,  # ms: a worker that restarts is back soon
    zmq.RECONNECT_IVL_MAX: 2_000,  # ms: and one that is away for long is not hammered by all its clients
}


class Link:
    """A context and a socket of its own; of one process, and at one time in one thread.

    The context is not shared, so that nobody who terminates or destroys the process-wide one hangs on, or breaks, a
        client.

    Args:
        address: a ZeroMQ endpoint such as "tcp://127.0.0.1:5555".
        server_key: path of the worker's key file; None: no encryption.
        client_key: path of the client's secret key file; both or none.

    Raises:
        ValueError: one key is given without the other.
    """

    def __init__(self, address: str, *, server_key: keys.KeyPath | None = None, client_key: keys.KeyPath | None = None) -> None:
        if (server_key is None) != (client_key is None):
            given, other = ("server_key", "client_key") if client_key is None else ("client_key", "server_key")
            raise ValueError(f"{given} is given without {other}; a connection with keys needs both.")
        self._address = address
        self._files = None if server_key is None or client_key is None else (server_key, client_key)
        self._curve: dict[int, bytes] = {}  # socket options: read once, at the first connection
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._handshakes = handshakes.Handshakes()
        self._pid = os.getpid()

    def open(self) -> bool:
        """Connect if there is no socket; returns at once, whether anybody is there or not.

        Returns:
            Whether the socket is new.

        Raises:
            BadKey: a key file cannot be used.
            ConnectionFailed: the address is no endpoint that can be connected to.
            RuntimeError: it was made in another process, from which this one was forked; both would number as one producer.
        """
        if os.getpid() != self._pid:
            raise RuntimeError(f"This client belongs to process {self._pid}; after a fork, make a new one in the child.")
        if self._socket is not None:
            return False
        if self._files is not None and not self._curve:
            self._curve = curve_options(*self._files)
        if self._context is None:
            self._context = zmq.Context()
        socket = self._context.socket(zmq.DEALER)
        try:
            for option, value in (_OPTIONS | self._curve).items():
                socket.setsockopt(option, value)
            if "[" in self._address:
                socket.setsockopt(zmq.IPV6, 1)  # off by default; a name may then resolve to an address that nobody serves
            if self._curve:
                self._monitor = socket.get_monitor_socket(handshakes.EVENTS)
            socket.connect(self._address)
        except (zmq.ZMQError, TypeError) as problem:
            self._socket = socket
            self.drop()
            raise ConnectionFailed(f"Cannot connect to {self._address!r:.200}: {problem}.") from None
        self._socket = socket
        return True

    def send(self, body: bytes) -> None:
        """Hand a body to libzmq; never blocks. It may go nowhere, as over a connection that is lost."""
        with contextlib.suppress(zmq.Again):  # libzmq has given the connection up, for the peer refused the handshake
            self._live().send(body, zmq.DONTWAIT)

    def receive(self, timeout_s: float) -> bytes | None:
        """The next body, or None if none comes within this time; 0 or less: none that is there already."""
        socket = self._live()
        wait_ms = min(math.ceil(timeout_s * 1000), 1 << 30) if 0 < timeout_s < math.inf else 0 if timeout_s <= 0 else -1
        socket.setsockopt(zmq.RCVTIMEO, wait_ms)
        try:
            return socket.recv_multipart()[-1]
        except zmq.Again:
            return None

    def fileno(self) -> int:
        """A descriptor that becomes readable, once, when something may have come; see `readable`."""
        return int(self._live().getsockopt(zmq.FD))

    def readable(self) -> bool:
        """Whether a body is there. To be asked after each send, which may swallow the descriptor's signal."""
        return bool(int(self._live().getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def trouble(self) -> str:
        """Why no connection comes about, as far as that can be told, as the end of a sentence; else "".

        To be asked when nothing has come for a while.
        """
        self._look()
        # A socket takes nothing when libzmq has given up: what listens there uses another security mechanism.
        if self._socket is not None and not self._curve and not int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLOUT:
            return handshakes.NO_KEYS
        return self._handshakes.trouble()

    def _look(self) -> None:
        """Read what the monitor has seen since the last time.

        Where nobody looks, the monitor holds 2,000 events, and then stops libzmq's thread: no harm, for it serves this socket
            alone, and only handshakes that fail make so many.
        """
        if self._monitor is not None:
            with contextlib.suppress(zmq.Again):
                while True:
                    self._handshakes.take(self._monitor.recv_multipart(zmq.DONTWAIT)[0])

    def drop(self) -> None:
        """Close the socket, if there is one, with all that it holds unsent or unread."""
        if self._socket is None:
            return
        if self._monitor is not None:
            if os.getpid() == self._pid:  # in a forked child, it is the parent's
                self._look()  # or disable_monitor would wait for ever for a thread that has been stopped by unread events
                self._socket.disable_monitor()
            self._monitor.close()
            self._monitor = None
        self._socket.close()
        self._socket = None

    def close(self) -> None:
        """Close socket and context. Can be called again, and in a forked child, where it leaves the parent's alone."""
        self.drop()
        if self._context is not None:
            self._context.term()
            self._context = None

    def _live(self) -> zmq.Socket[bytes]:
        assert self._socket is not None, "open() comes first"
        return self._socket


def curve_options(server_key: keys.KeyPath, client_key: keys.KeyPath) -> dict[int, bytes]:
    """The keys in these files, a public and a secret one, as options of a client's socket.

    Raises:
        BadKey: a key file cannot be used.
    """
    public, secret = keys.read_pair(client_key)
    texts = {zmq.CURVE_SERVERKEY: keys.read_public(server_key), zmq.CURVE_PUBLICKEY: public, zmq.CURVE_SECRETKEY: secret}
    return {option: text.encode() for option, text in texts.items()}


class Alone:
    """Enter it in one thread at a time; a second one gets an error rather than a socket in a broken state."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("This client is in use by another thread; a client is for one thread at a time.")

    def __exit__(self, *exc: object) -> None:
        self._lock.release()
