"""Reads messages off the ROUTER socket: where each came from, and its body. Decides nothing but where a message ends.

A message has a routing id, perhaps the frames of an envelope, and a body. To ask of a frame whether another one of its message
follows takes as long as to read it: half a microsecond of the five that a token costs. So the next message of a peer whose
messages have been bodies alone is taken to be one too. Only the last message of a chunk is always looked at: a chunk ends
where a message ends.

Where a message has more frames after all, the next of them is read in the place of a routing id. It is told from the routing
id of a new connection: those are numbered in their order, from where nobody can guess, and what follows one was sent by another
connection. The message is put together then as it was sent, and from there on each is looked at.

What a forged frame could do is to pass for the routing id of another connection, which would get a reply too many and take
each for the next one's. For that it has to be the number of one, out of 4,294,967,296, and no peer knows even its own. The
first guess that is wrong is noticed, and there is no second one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Container
from functools import partial
from typing import Any

import zmq

from rnnstream.wire.limits import ENVELOPE_FRAME_BYTES, ENVELOPE_FRAMES
from rnnstream.worker.connections import OWN_ID_BYTES, descriptor
from rnnstream.worker.order import Address, routing_id

log = logging.getLogger("rnnstream.worker")

CHUNK_BYTES = 16 << 10
WAITED_S = 10e-6  # a blocking read that took longer has waited: nothing else was there, as a rule
READ, READ_NOW = 0, int(zmq.NOBLOCK)  # flags of a read: plain numbers, for an enumeration's cost as much as the call
NEAR = 1 << 13  # what is so near to the routing id met last can be one: seldom do more connections come between two that speak
PEERS = 10_000  # that are remembered; beyond, all are met anew

Body = Any  # bytes, or a zmq.Frame


class Reader:
    """Reads messages.

    Args:
        socket: a ROUTER.
        cut: routing ids of those whose messages are passed over.
        frames: give every body as a frame, for whoever asks it for its properties.
    """

    def __init__(self, socket: zmq.Socket[bytes], cut: Container[bytes], *, frames: bool) -> None:
        self._socket, self._cut = socket, cut
        # The sugar around recv() costs as much again as the call.
        self._recv: Callable[..., bytes] = partial(zmq.backend.Socket.recv, socket)
        self._recv_frame: Callable[..., zmq.Frame] = partial(zmq.backend.Socket.recv, socket)  # type: ignore[assignment]
        self._trusting = not frames
        self._bare: dict[bytes, int] = {}  # peers whose messages have been bodies alone, and their descriptors
        self._enveloped: set[bytes] = set()  # the other ones
        self._newest = 0  # number in the routing id that was met last

    def read(self, most: int, *, wait: bool = False, alone: bool = False) -> tuple[list[Address], list[Body], bool]:
        """Some of what has arrived: where from, and bodies; and whether there may be more.

        Args:
            most: messages.
            wait: for the first one.
            alone: if that was really waited for, take it for the only one. To ask for more than there is costs 2.7 us.
        """
        addresses: list[Address] = []
        bodies: list[Body] = []
        recv, recv_frame, bare, last = self._recv, self._recv_frame, self._bare, most - 1
        size, trusted, more = 0, False, True
        started = time.perf_counter() if wait and alone else 0.0
        flags = READ if wait else READ_NOW
        try:
            for place in range(most):
                address = recv(flags)
                flags = READ_NOW
                if address in bare and place < last and size < CHUNK_BYTES and not started:
                    body: Body = recv(READ_NOW)
                    addresses.append(address)
                    bodies.append(body)
                    size += len(body)
                    trusted = True
                    continue
                if trusted and address not in bare and address not in self._enveloped:
                    found = self._look(address, addresses.pop(), bodies.pop())
                    addresses += [whence for whence, _ in found]
                    bodies += [body for _, body in found]
                    body = bodies[-1]
                else:
                    whence: Address = address
                    body = recv_frame(READ_NOW, False)
                    if body.more or address not in bare:
                        whence, body = self._whole([address], body)
                    addresses.append(whence)
                    bodies.append(body)
                size += len(body)
                trusted = False
                if size >= CHUNK_BYTES:
                    break
                if started:
                    if time.perf_counter() - started > WAITED_S:
                        more = False
                        break
                    started = 0.0
        except zmq.Again:
            more = False
        if self._cut and any(routing_id(address) in self._cut for address in addresses):
            more = False  # whoever is cut off and goes on does not make turns longer
            kept = [(a, b) for a, b in zip(addresses, bodies, strict=True) if routing_id(a) not in self._cut]
            addresses, bodies = [a for a, _ in kept], [b for _, b in kept]
        return addresses, bodies, more

    def _look(self, frame: bytes, address: Address, body: Body) -> list[tuple[Address, Body]]:
        """A frame behind a message that was not looked at, which is no routing id that is known: more of it, or a new one.

        Args:
            frame: which was read.
            address: of the message before.
            body: of it.

        Returns:
            That message as it was sent; or that message, and the one that the frame begins.
        """
        assert isinstance(address, bytes)
        if self._socket.getsockopt(zmq.RCVMORE):
            following = self._recv_frame(READ_NOW, False)
            if descriptor(following) != self._bare[address]:
                return [(address, body), self._whole([frame], following)]
            if self._near(frame):  # somebody new, with the descriptor of a connection that has ended; or else a lucky guess
                return [(address, body), self._whole([frame], following, met=False)]
            frames = [address, bytes(body), frame]
        else:
            frames, following = [address, bytes(body)], zmq.Frame(frame)
        log.warning("a peer has sent an envelope after bodies without: every message is looked at from now on, 0.5 us each")
        self._trust_nobody()
        return [self._whole(frames, following)]

    def _whole(self, frames: list[bytes], frame: zmq.Frame, *, met: bool = True) -> tuple[Address, Body]:
        """The rest of a message, of which these frames were read: where it came from, and its body.

        The frames before its body come back in front of the reply. A message with too many of them, or too long ones, is
        answered without any, and as an empty body: with an error.

        Args:
            frames: the routing id, and some more.
            frame: the next one.
            met: the routing id is sure to be one.
        """
        peer = frames[0]
        if len(frames) == 1 and not frame.more:
            if met and self._trusting and peer not in self._enveloped:
                self._meet(peer, frame)
            return peer, frame
        self._bare.pop(peer, None)
        if len(self._enveloped) >= PEERS:
            self._enveloped.clear()
        self._enveloped.add(peer)
        good = len(frames) <= ENVELOPE_FRAMES + 1 and all(len(one) <= ENVELOPE_FRAME_BYTES for one in frames[1:])
        while frame.more:
            good = good and len(frames) <= ENVELOPE_FRAMES and len(frame) <= ENVELOPE_FRAME_BYTES
            if good:
                frames.append(frame.bytes)
            frame = self._recv_frame(READ_NOW, False)
        return (tuple(frames), frame) if good else (peer, Emptied.of(frame))

    def _meet(self, peer: bytes, frame: zmq.Frame) -> None:
        """A peer whose message was a body alone, as its next ones will be."""
        if peer in self._bare:
            return
        if not _own(peer):  # which says nothing of what other routing ids there may be
            self._trust_nobody()
            return
        if len(self._bare) >= PEERS:
            self._bare.clear()
        self._bare[peer] = descriptor(frame)
        self._newest = _number(peer)

    def _near(self, frame: bytes) -> bool:
        """Whether this may be the routing id of somebody new."""
        return _own(frame) and (_number(frame) - self._newest + NEAR) % (1 << 32) < 2 * NEAR

    def _trust_nobody(self) -> None:
        self._trusting = False
        self._bare.clear()


def _own(address: bytes) -> bool:
    """Whether this can be a routing id of ZeroMQ's own making: zero, and a number."""
    return len(address) == OWN_ID_BYTES and not address[0]


def _number(address: bytes) -> int:
    return int.from_bytes(address[1:])


class Emptied(zmq.Frame):
    """An empty body in the place of a frame, with its properties."""

    _frame: zmq.Frame

    @staticmethod
    def of(frame: zmq.Frame) -> Emptied:
        """One for this frame."""
        emptied = Emptied(b"")
        emptied._frame = frame
        return emptied

    def get(self, option: Any) -> Any:
        """A property of the frame."""
        return self._frame.get(option)
