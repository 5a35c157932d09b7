"""The loop around the ROUTER socket: read what has arrived, hand it to the core, send what the core answers. No decisions."""

from __future__ import annotations

import ctypes
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence

import zmq

from rnnstream.worker.connections import Connections
from rnnstream.worker.core import Core
from rnnstream.worker.intake import MOST_WAITING
from rnnstream.worker.order import Address
from rnnstream.worker.outbox import RETRY_S, Outbox
from rnnstream.worker.reader import Raw, Reader

log = logging.getLogger("rnnstream.worker")

# A turn takes in what has arrived, a chunk at a time, until nothing is left, it has enough, or a session comes again: its next
# token has to wait for the first, whoever is behind it on its connection for it, and to take it in costs four times as much. A
# turn ends with the first, small chunk where most of that comes from one connection that is not alone: whoever floods makes
# the turns short, and everybody else's token, which is in the next one, comes soon.
FIRST_BODIES = 16
CHUNK_BODIES = 64
TURN_S = 2e-3
# Were all that is in flight taken at once, the worker would wait for its peers while they wait for it. So a turn that left
# something is followed by one that takes an eighth more, and one that left nothing by one that takes an eighth less: they come
# to take a part of what is in flight, and the rest is on its way meanwhile. 16 connections with 16 tokens each get 1.2 to 1.4
# times as many through. But replies to one connection that are there at once leave in one packet, and a packet costs more than
# a token. So a turn never has enough before eight for each connection of the turn before: by that, 16 connections with 16
# tokens each get 1.05 times as many through as with four, and 64 with all of their 4 each 1.1 times as many as without.
EIGHTH = 3  # a shift
FOR_EACH = 8
COMPANY_S = 0.1  # how long ago another connection was heard, for one not to be alone
FLUSH_S = 2.0  # for slow readers to take their last replies when the worker stops
# ms in which a connection has to be made: at 333 handshakes with keys a second, measured on two cores with the clients' own
# work, 5,000 clients that come back at once need so long. Whoever connects and says nothing holds a place for no longer.
HANDSHAKE_MS = 15_000


def socket_for(context: zmq.Context[zmq.Socket[bytes]], *, frame_bytes: int) -> zmq.Socket[bytes]:
    """A ROUTER socket with its options, not yet bound."""
    _stir()
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # a reply that cannot be sent is an error, not silence
    socket.setsockopt(zmq.MAXMSGSIZE, frame_bytes)  # a larger frame ends its connection before it is read
    # Messages of one peer that are read ahead, and replies in its pipe: more than it has in flight as a rule; yet each may be
    # as large as the limits allow, 64 MB either way. What the pipe does not take waits in the outbox; TCP holds back the rest.
    socket.setsockopt(zmq.RCVHWM, 64)
    socket.setsockopt(zmq.SNDHWM, 128)
    socket.setsockopt(zmq.LINGER, int(FLUSH_S * 1000))  # last replies are still delivered, but no dead peer holds the exit up
    socket.setsockopt(zmq.HEARTBEAT_IVL, 10_000)  # ms: peers that vanished without a word are found
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 30_000)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.BACKLOG, 1024)  # many producers may connect at once
    return socket


def _stir() -> None:
    """Have ZeroMQ number its connections from where nobody can guess.

    It takes the first routing id from the C library's rand(), which it does not seed: each process would begin at the same. A
    peer that could tell the next one, and claim it for itself, would end the whole process by an assertion of libzmq 4.3.5.
    """
    try:
        ctypes.CDLL(None).srand(int.from_bytes(os.urandom(4)))
    except (OSError, AttributeError):
        log.warning("the C library has no srand: peers can guess the routing ids of others, and end this process by that")


class Router:
    """Drives a core by a bound ROUTER socket.

    Args:
        socket: as `socket_for` makes it.
        core: what the messages are handed to.
        wake: a body that only says that `stopping` is set; it is not handed on.
        clock: seconds, monotonic.
        connections: say whose each message is; None on an open worker.
        first: the first routing id that ZeroMQ has made for the socket, if not every message has to be looked at.

    Attributes:
        stopping: set to True, and wake the loop, to end it.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        core: Core,
        *,
        wake: bytes,
        clock: Callable[[], float] = time.monotonic,
        connections: Connections | None = None,
        first: bytes | None = None,
    ) -> None:
        self.socket, self.core, self.outbox = socket, core, Outbox(socket)
        core.stats.outbox = self.outbox
        self._clock = clock
        self._wake = wake
        self._company_until = 0.0
        self._alone = True
        self._busy = False  # something may wait in the core
        self._enough = FIRST_BODIES  # new requests for a turn
        self._again = False
        self._reader = Reader(socket, self.outbox.cut, first=first, frames=connections is not None)
        self._connections = connections
        self._straight = core.alone if connections is None else None
        self._hand_on: Callable[..., None] = core.take if connections is None else self._hand_on_claimed
        self._send = self.outbox.send if connections is None else self._send_living
        self.stopping = False

    def run(self) -> None:
        """Serve until `stopping`; then answer what was read."""
        core, outbox, clock = self.core, self.outbox, self._clock
        while not self.stopping:
            taken_at = self._take_in()
            if taken_at is not None:
                self._turn(taken_at)
        while core.waiting:
            self._turn(clock())
        deadline = clock() + FLUSH_S
        while outbox and clock() < deadline:
            self.socket.poll(int(RETRY_S * 1000), zmq.POLLERR)
            self._send([], clock())

    def _take_in(self) -> float | None:
        """Take in what has arrived, for as long as a turn may; when that was done, in seconds. None: it is answered already."""
        core, outbox, clock = self.core, self.outbox, self._clock
        before = core.waiting if self._busy else 0
        # When a session has come again, the wave with that runs before anything else is read: as long as its reply is held
        # back, all else of its connection takes the long way in, and an overload would never end.
        again, self._again = self._again, False
        if before and (again or core.full):
            return clock()
        addresses, bodies, more = self._drain(FIRST_BODIES, wait=not before)
        self._alone = len(bodies) == 1
        now = clock()
        if self._alone and not before and not more and self._straight is not None and self._enough == FIRST_BODIES:
            reply = self._straight.answer(bodies[0], now)
            if reply is not None:
                outbox.send_one(addresses[0], reply, now)
                core.stats.alone(now, clock())
                if outbox.cut_now:
                    self._cut_off()
                self._busy = False
                return None
        self._busy = True
        self._hand_on(addresses, bodies, now)
        peers = set(addresses)
        if more:
            if self._flooded(addresses, len(peers), now):
                return now
            turn_ends = now + TURN_S
            while more and not core.again and now < turn_ends and not core.full:
                room = before + self._enough - core.waiting
                if room <= 0:
                    break
                addresses, bodies, more = self._drain(min(CHUNK_BODIES, room))
                self._hand_on(addresses, bodies, now)
                peers.update(addresses)
                now = clock()
            if core.again:
                self._again = True
                return now
        eighth = self._enough >> EIGHTH
        enough = self._enough + (eighth if more else -eighth)
        self._enough = min(max(enough, FIRST_BODIES, FOR_EACH * len(peers)), MOST_WAITING)
        return now

    def _flooded(self, addresses: list[Address], peers: int, now: float) -> bool:
        """Whether most of a chunk from so many peers comes from one connection that is not alone."""
        if peers > 1:
            self._company_until = now + COMPANY_S
        most = len(addresses) - peers + 1  # that one of them can have sent
        if now >= self._company_until or 2 * most <= len(addresses):
            return False
        return 2 * max(Counter(addresses).values()) > len(addresses)

    def _turn(self, now: float) -> None:
        """Have the core run a wave, and send what it answers."""
        core, outbox = self.core, self.outbox
        self._send(core.turn(now), now)
        if core.crowded or outbox.cut_now:
            self._cut_off()
        core.sent(self._clock())

    def _cut_off(self) -> None:
        """Cut off whoever has far too much unanswered, or does not read."""
        for peer in self.core.take_crowded():
            self.outbox.cut_off(peer)
        cut, connections = self.outbox.take_cut(), self._connections
        if connections is not None:  # what its pipe holds is not let go of before the connection ends
            with connections.lock:
                for peer in cut:
                    connections.cut(peer)

    def _hand_on_claimed(self, addresses: list[Address], bodies: list[Raw], now: float) -> None:
        """Have the core take in what somebody has sent, and whose it is."""
        assert self._connections is not None
        addresses, bodies, users = self._connections.claim(addresses, bodies)
        self.core.take(addresses, [body.bytes for body in bodies], now, users)

    def _send_living(self, replies: Sequence[tuple[Address, bytes]], now: float) -> None:
        """Send those of the replies whose connections are there."""
        connections, outbox = self._connections, self.outbox
        assert connections is not None
        with connections.lock:  # so that nobody gets a routing id meanwhile that somebody else had
            for peer in connections.take_silenced(not self.core.waiting):
                outbox.let_go(peer)
            living = connections.living(replies)
            outbox.dropped += len(replies) - len(living)
            outbox.send(living, now)

    def _drain(self, most: int, *, wait: bool = False) -> tuple[list[Address], list[Raw], bool]:
        """Some of what has arrived, and whether there may be more. May wait for something."""
        if wait and self.outbox.waiting:  # somebody may have begun to read again
            if not self.socket.poll(int(RETRY_S * 1000)):
                return [], [], False
            wait = False
        # Who came alone the last time, and was waited for, is taken to be alone now. Where there was company, the first to
        # come is not: a turn for it alone would hold up the others.
        if wait and self._alone:
            addresses, bodies, more = self._reader.wait()
            if more:
                others, their_bodies, more = self._reader.read(most - 1)
                addresses, bodies = addresses + others, bodies + their_bodies
        else:
            addresses, bodies, more = self._reader.read(most, wait=wait)
        if self.stopping:
            kept = [(a, b) for a, b in zip(addresses, bodies, strict=True) if bytes(b) != self._wake]
            return [a for a, _ in kept], [b for _, b in kept], False
        return addresses, bodies, more
