"""Why no connection comes about: libzmq only tries again in silence, and says to a monitor what became of each handshake."""

from __future__ import annotations

import struct

import zmq

EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
REFUSED = "the worker refused this key (is its public half in the worker's --allow folder?)"
OPEN = "what listens there does not use CURVE (was the worker started with --server-key?)"
NO_KEYS = "this worker may ask for keys (server_key and client_key; --server-key and --key of a command)"

_EVENT = struct.Struct("=HI")  # number and value, as libzmq's monitor writes them


class Handshakes:
    """Those of one client that has keys, since one has succeeded.

    libzmq 4.3.5 tells of a key that is not admitted, and of a worker without CURVE, only if it has read the peer's last
    words before the end of the connection; else, and of a wrong server key, it tells only that the handshake failed.
    """

    def __init__(self) -> None:
        self._failed = 0
        self._why = ""

    def take(self, event: bytes) -> None:
        """Take in what the monitor says of one of them: the first frame of its message."""
        number, value = _EVENT.unpack(event)
        if number == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._failed, self._why = 0, ""
            return
        self._failed += 1
        if number == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self._why = REFUSED
        elif number == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            self._why = OPEN

    def trouble(self) -> str:
        """Why there is no connection, as the end of a sentence; "" where nothing is known."""
        if self._why or not self._failed:
            return self._why
        times = "once" if self._failed == 1 else f"{self._failed:,} times"
        return f"the handshake failed {times} (is server_key the worker's, and does it use CURVE?)"
