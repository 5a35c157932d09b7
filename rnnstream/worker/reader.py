"""Reads messages off the ROUTER socket: where each came from, and its body. Decides nothing but where a message ends.

A message has a routing id, perhaps the frames of an envelope, and a body. To ask of a frame whether another one of its message
follows takes as long as to read it: half a microsecond of the five that a token costs. So the next message of a peer whose
messages have been bodies alone is taken to be one too. Only the last message of a chunk is always looked at: a chunk ends
where a message ends.

Where a message has more frames after all, the next of them is read in the place of a routing id. It is told from that of a new
connection: what follows one was sent by another connection, and ZeroMQ numbers its routing ids in their order, from where
nobody can guess. The message is put together then as it was sent, and from there on each is looked at. So it is as soon as
anybody has a routing id of his own choice: others could know it.

What a forged frame could do is to pass for the routing id of another connection, which would get a reply too many, or lose
one to whoever forged it. For that it has to be one of the numbers that were given so far or the next 10,000, out of
4,294,967,296, and no peer knows even its own. Any other one is noticed and ends the trust, and so do some that only came near.
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
NEAR = 10_000  # beyond the newest routing id that was met: so many connections may come at once, and the last speak first
DOUBTS = (
    16  # newcomers with the descriptor of whoever spoke before them: there are some, and a peer that guesses has so many tries
)
PEERS = 10_000  # that are remembered; beyond, all are met anew

Raw = Any  # a body: bytes, or a zmq.Frame


class Reader:
    """Reads messages.

    Args:
        socket: a ROUTER.
        cut: routing ids of those whose messages are passed over.
        first: the first routing id that ZeroMQ has made for this socket. None: every message is looked at.
        frames: give out bodies as frames, for whoever asks them for their properties; without `first`.
    """

    def __init__(
        self, socket: zmq.Socket[bytes], cut: Container[bytes], *, first: bytes | None = None, frames: bool = False
    ) -> None:
        self._socket, self._cut = socket, cut
        # The sugar around recv() costs as much again as the call.
        self._recv: Callable[..., bytes] = partial(zmq.backend.Socket.recv, socket)
        self._recv_frame: Callable[..., zmq.Frame] = partial(zmq.backend.Socket.recv, socket)  # type: ignore[assignment]
        self._trusting, self._frames = first is not None, frames
        self._bare: dict[bytes, int] = {}  # peers whose last message was a body alone, and their descriptors
        self._first = _number(first) if first is not None else 0
        self._doubts = 0
        self._newest = 0  # the routing id that was made last, of those met: how many were made before

    def wait(self) -> tuple[list[Address], list[Raw], bool]:
        """The next message, as `read`. If it was really waited for, it is taken for the only one.

        For to ask for more than there is costs 2.7 us.
        """
        started = time.perf_counter()
        address: Address = self._recv(READ)
        body = self._recv_frame(READ_NOW, False)
        if body.more or address not in self._bare:
            address, body = self._whole([routing_id(address)], body)
        waited = time.perf_counter() - started > WAITED_S
        if self._cut and routing_id(address) in self._cut:
            return [], [], False
        return [address], [body if self._frames else body.bytes], not waited

    def read(self, most: int, *, wait: bool = False) -> tuple[list[Address], list[Raw], bool]:
        """Some of what has arrived: where from, and bodies; and whether there may be more.

        Args:
            most: messages.
            wait: for the first one.
        """
        addresses: list[Address] = []
        bodies: list[Raw] = []
        recv, recv_frame, bare, last = self._recv, self._recv_frame, self._bare, most - 1
        size, trusted, more = 0, False, True
        flags = READ if wait else READ_NOW
        try:
            for place in range(most):
                address = recv(flags)
                flags = READ_NOW
                if address in bare and place < last and size < CHUNK_BYTES:
                    body: Raw = recv(READ_NOW)
                    addresses.append(address)
                    bodies.append(body)
                    size += len(body)
                    trusted = True
                    continue
                if trusted and address not in bare:
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
                if not self._frames:
                    bodies[-1] = body.bytes
                trusted = False
                if size >= CHUNK_BYTES:
                    break
        except zmq.Again:
            more = False
        if self._cut and any(routing_id(address) in self._cut for address in addresses):
            more = False  # whoever is cut off and goes on does not make turns longer
            kept = [(a, b) for a, b in zip(addresses, bodies, strict=True) if routing_id(a) not in self._cut]
            addresses, bodies = [a for a, _ in kept], [b for _, b in kept]
        return addresses, bodies, more

    def _look(self, frame: bytes, address: Address, body: Raw) -> list[tuple[Address, Raw]]:
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
            if self._own(frame):  # somebody new, with the descriptor of a connection that has ended; or else a lucky guess
                self._doubts += 1
                if self._doubts > DOUBTS:
                    self._trust_nobody("it is hard to tell who is new here")
                return [(address, body), self._whole([frame], following, met=False)]
            frames = [address, bytes(body), frame]
        else:
            frames, following = [address, bytes(body)], zmq.Frame(frame)
        self._trust_nobody("a peer has sent frames behind a body, or an envelope after bodies without")
        return [self._whole(frames, following)]

    def _whole(self, frames: list[bytes], frame: zmq.Frame, *, met: bool = True) -> tuple[Address, Raw]:
        """The rest of a message, of which these frames were read: where it came from, and its body.

        The frames before its body come back in front of the reply. A message with too many of them, or too long ones, is
        answered without any, and as an empty body: with an error.

        Args:
            frames: the routing id, and some more.
            frame: the next one.
            met: the routing id is sure to be one.
        """
        peer, bare = frames[0], len(frames) == 1 and not frame.more
        if self._trusting and met:
            self._meet(peer, frame, bare)
        if bare:
            return peer, frame
        good = len(frames) <= ENVELOPE_FRAMES + 1 and all(len(one) <= ENVELOPE_FRAME_BYTES for one in frames[1:])
        while frame.more:
            good = good and len(frames) <= ENVELOPE_FRAMES and len(frame) <= ENVELOPE_FRAME_BYTES
            if good:
                frames.append(frame.bytes)
            frame = self._recv_frame(READ_NOW, False)
        return (tuple(frames), frame) if good else (peer, Emptied.of(frame))

    def _meet(self, peer: bytes, frame: zmq.Frame, bare: bool) -> None:
        """A message of this peer was looked at: it is a body alone, as its next ones will be, or is not."""
        if not self._own(peer):
            self._trust_nobody("a peer has a routing id of its own choice")
            return
        self._newest = max(self._newest, self._made_before(peer))
        if not bare:
            self._bare.pop(peer, None)
        elif peer not in self._bare:
            if len(self._bare) >= PEERS:
                self._bare.clear()
            self._bare[peer] = descriptor(frame)

    def _own(self, frame: bytes) -> bool:
        """Whether this can be a routing id of ZeroMQ's own making: zero, and a number that it has come to by now."""
        return len(frame) == OWN_ID_BYTES and not frame[0] and self._made_before(frame) <= self._newest + NEAR

    def _made_before(self, address: bytes) -> int:
        """How many routing ids ZeroMQ had made for this socket before this one, if it is its own."""
        return (_number(address) - self._first) % (1 << 32)

    def _trust_nobody(self, reason: str) -> None:
        log.info("%s: every message is looked at from now on, which takes 0.5 us each", reason)
        self._trusting = False
        self._bare.clear()


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
