"""The client's side of a CURVE handshake (https://rfc.zeromq.org/spec/26/), over bare bytes: whole, or wrong at any place.

The cryptography is that of the libsodium that libzmq itself is linked with.
"""

from __future__ import annotations

import ctypes
import os

from zmq.backend.cython import _zmq
from zmq.utils import z85

from tests.process.zmtp import COMMAND, frame

GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)  # version 3.1, a client
HELLO_BYTES, WELCOME_BYTES = 2 + 200, 2 + 168  # with the head of the frame
TAG = 16  # bytes that a box is longer than what is in it

_sodium = ctypes.CDLL(_zmq.__file__)  # finds what libzmq's own libraries have
_size = ctypes.c_ulonglong


def keypair() -> tuple[bytes, bytes]:
    """A public key and its secret one, 32 bytes each."""
    public, secret = ctypes.create_string_buffer(32), ctypes.create_string_buffer(32)
    _sodium.crypto_box_keypair(public, secret)
    return public.raw, secret.raw


def box(data: bytes, nonce: bytes, public: bytes, secret: bytes) -> bytes:
    """What only the owner of `public` can read, and only that of `secret` can have written."""
    assert len(nonce) == 24
    out = ctypes.create_string_buffer(len(data) + TAG)
    assert _sodium.crypto_box_easy(out, data, _size(len(data)), nonce, public, secret) == 0
    return out.raw


def unbox(data: bytes, nonce: bytes, public: bytes, secret: bytes) -> bytes:
    """What is in a box."""
    out = ctypes.create_string_buffer(len(data) - TAG)
    assert _sodium.crypto_box_open_easy(out, data, _size(len(data)), nonce, public, secret) == 0
    return out.raw


def entry(name: bytes, value: bytes) -> bytes:
    """An entry of the metadata."""
    return bytes((len(name),)) + name + len(value).to_bytes(4, "big") + value


METADATA = entry(b"Socket-Type", b"DEALER") + entry(b"Identity", b"")


class Handshake:
    """A client's, with one server.

    Args:
        server: its public key, in Z85.
        pair: the client's own keys; new ones if absent.
    """

    def __init__(self, server: str, pair: tuple[bytes, bytes] | None = None) -> None:
        self._server = z85.decode(server)
        self._public, self._secret = pair or keypair()
        self._short, self._short_secret = keypair()

    def hello(self) -> bytes:
        nonce = os.urandom(8)
        sealed = box(bytes(64), b"CurveZMQHELLO---" + nonce, self._server, self._short_secret)
        return frame(b"\x05HELLO\x01\x00" + bytes(72) + self._short + nonce + sealed, COMMAND)

    def initiate(self, welcome: bytes, metadata: bytes = METADATA, *, opened: bytes | None = None) -> bytes:
        """The answer to a WELCOME frame; with `opened`, that in place of what the box should hold."""
        body = welcome[2:]
        assert body.startswith(b"\x07WELCOME")
        nonce, sealed = body[8:24], body[24:]
        told = unbox(sealed, b"WELCOME-" + nonce, self._server, self._short_secret)
        theirs, cookie = told[:32], told[32:]
        nonce = os.urandom(16)
        vouch = nonce + box(self._short + self._server, b"VOUCH---" + nonce, theirs, self._secret)
        nonce = os.urandom(8)
        inside = self._public + vouch + metadata if opened is None else opened
        sealed = box(inside, b"CurveZMQINITIATE" + nonce, theirs, self._short_secret)
        return frame(b"\x08INITIATE" + cookie + nonce + sealed, COMMAND)
