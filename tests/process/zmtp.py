"""Just enough of ZMTP 3 (https://rfc.zeromq.org/spec/23/) to see where a message ends, and to speak it over bare TCP."""

from __future__ import annotations

MORE, LONG, COMMAND = 1, 2, 4  # flags of a frame
GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)  # version 3.0, no security


def frame(data: bytes, flags: int = 0) -> bytes:
    """A frame; `LONG` is added where the length asks for it."""
    if len(data) < 256:
        return bytes((flags, len(data))) + data
    return bytes((flags | LONG,)) + len(data).to_bytes(8, "big") + data


def ready(kind: bytes) -> bytes:
    """The handshake command of a socket of this kind: b"DEALER"."""
    entry = b"\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind
    return frame(b"\x05READY" + entry, COMMAND)


class Splitter:
    """Cuts what comes over one direction of a connection into units: a command, a message of all its frames.

    The greeting comes in parts, for each side waits for some of the other's before it says the rest.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._greeting = len(GREETING)  # bytes of it to come

    def feed(self, data: bytes) -> list[tuple[bytes, bool]]:
        """The units that are whole now, in order, and whether each is a message."""
        data = self._rest + data if self._rest else data
        units: list[tuple[bytes, bool]] = []
        start = at = 0  # of the unit, of the frame
        if self._greeting:
            start = at = min(self._greeting, len(data))
            self._greeting -= at
            units.append((data[:at], False))
        while len(data) >= at + 2:
            flags = data[at]
            head, size = (9, int.from_bytes(data[at + 1 : at + 9], "big")) if flags & LONG else (2, data[at + 1])
            if len(data) < at + head + size:
                break
            at += head + size
            if not flags & MORE:
                units.append((data[start:at], not flags & COMMAND))
                start = at
        self._rest = data[start:]
        return units
