"""Replies on their way out, so that a slow reader neither loses one in silence nor holds anybody up.

Replies go out without blocking. What a peer's full pipe does not take waits here, in order and within bounds; a peer that goes
past them is cut off: its replies are dropped and counted, its messages are not looked at any more. Its sessions live on. A peer
that reads is not cut off for being slow: its pipe takes no more than 128 replies a turn, however fast it reads.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import zmq

from rnnstream.worker.order import Address, routing_id

log = logging.getLogger("rnnstream.worker")

WAITING_BYTES = 4 << 20  # for one peer, beside the 128 messages in its pipe: beyond, it is cut off if it has taken none lately
STALLED_S = 1.0  # that is, for so long
MOST_BYTES = 8 << 20  # for one peer, whatever it takes; more could not be let go of in a few milliseconds
OBJECTS_BYTES = 200  # around a reply that waits
ENVELOPE_BYTES = 3000  # of 8 frames, and the objects around them
RETRY_S = 0.001  # how often a full pipe is tried again
FIRST, LAST = int(zmq.SNDMORE | zmq.NOBLOCK), int(zmq.NOBLOCK)  # flags of the frames of a message, as in router.py
CUT_PEERS = 10_000  # routing ids that are remembered as cut off; a new connection has a new one


@dataclass(slots=True)
class Backlog:
    """The replies that wait for one peer.

    Attributes:
        replies: with their addresses, in order.
        size: bytes of them all.
        taken_at: seconds, when its pipe last took one.
    """

    replies: deque[tuple[Address, bytes]]
    size: int
    taken_at: float


class Outbox:
    """Sends replies over a ROUTER socket that has ROUTER_MANDATORY set.

    Attributes:
        cut: routing ids that were cut off.
        cut_count: how many were.
        cut_now: those since `take_cut`.
        dropped: replies to peers that were gone or cut off.
        waiting: by routing id: the replies that wait for their reader.
    """

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        # The sugar around send() costs as much again as the call.
        self._send: Callable[..., None] = partial(zmq.backend.Socket.send, socket)
        self.waiting: dict[bytes, Backlog] = {}
        self._now = self._tried_at = 0.0
        self.cut: OrderedDict[bytes, None] = OrderedDict()
        self.cut_count = 0
        self.cut_now: list[bytes] = []
        self.dropped = 0

    def __bool__(self) -> bool:
        """Whether a reply waits for its reader."""
        return bool(self.waiting)

    def send(self, replies: Sequence[tuple[Address, bytes]], now: float) -> None:
        """Send replies, in this order for each peer, without waiting for anyone.

        Args:
            replies: (address, body) pairs.
            now: seconds, monotonic.
        """
        self._now = now
        if self.waiting and now - self._tried_at >= RETRY_S:
            self._retry(now)
        send, waiting, cut = self._send, self.waiting, self.cut
        for address, body in replies:
            if type(address) is bytes and address not in waiting and address not in cut:
                try:
                    send(address, FIRST)
                    send(body, LAST)  # once the first frame is taken, the rest of the message is
                except zmq.ZMQError as problem:
                    self._refused(address, body, problem.errno)
            else:
                self._send_or_keep(address, body)

    def send_one(self, address: Address, body: bytes, now: float) -> None:
        """`send` for one reply, in fewer steps where nothing is in the way: a token alone has no others to share them with."""
        if self.waiting or self.cut or type(address) is not bytes:
            self.send([(address, body)], now)
            return
        self._now = now
        try:
            self._send(address, FIRST)
            self._send(body, LAST)
        except zmq.ZMQError as problem:
            self._refused(address, body, problem.errno)

    def _send_or_keep(self, address: Address, body: bytes) -> None:
        peer = routing_id(address)
        if peer in self.cut:  # for good: with a reply missing, the next one would pass for it
            self.dropped += 1
            return
        if peer in self.waiting:
            self._keep(address, body)
            return
        try:
            self._send_whole(address, body)
        except zmq.ZMQError as problem:
            self._refused(address, body, problem.errno)

    def _send_whole(self, address: Address, body: bytes) -> None:
        for frame in (address,) if type(address) is bytes else address:
            self._send(frame, FIRST)
        self._send(body, LAST)

    def _refused(self, address: Address, body: bytes, errno: int | None) -> None:
        if errno == zmq.EAGAIN:
            self._keep(address, body)
        elif errno == zmq.EHOSTUNREACH:
            self.dropped += 1
        else:
            raise zmq.ZMQError(errno)

    def cut_off(self, peer: bytes) -> None:
        """Let go of a peer for good: its replies are dropped, and whoever reads the socket passes over its messages."""
        backlog = self.waiting.pop(peer, None)
        self.dropped += len(backlog.replies) if backlog is not None else 0
        self.cut[peer] = None
        self.cut_count += 1
        self.cut_now.append(peer)
        if len(self.cut) > CUT_PEERS:
            self.cut.popitem(last=False)
        log.warning("peer %s does not read its replies: cut off, %d replies dropped so far", peer.hex(), self.dropped)

    def take_cut(self) -> list[bytes]:
        """Who was cut off; says so once."""
        cut, self.cut_now = self.cut_now, []
        return cut

    def let_go(self, peer: bytes) -> None:
        """Nothing that waits may reach this routing id any more: its connection has ended, and somebody else may take it."""
        backlog = self.waiting.pop(peer, None)
        self.dropped += len(backlog.replies) if backlog is not None else 0

    def _keep(self, address: Address, body: bytes) -> None:
        peer = routing_id(address)
        backlog = self.waiting.get(peer)
        if backlog is None:
            backlog = self.waiting[peer] = Backlog(deque(), 0, self._now)
        backlog.replies.append((address, body))
        backlog.size += _size(address, body)
        stalled = self._now - backlog.taken_at >= STALLED_S
        if backlog.size > (WAITING_BYTES if stalled else MOST_BYTES):
            self.cut_off(peer)

    def _retry(self, now: float) -> None:
        self._tried_at = now
        for peer, backlog in list(self.waiting.items()):
            replies = backlog.replies
            try:
                while replies:
                    self._send_whole(*replies[0])
                    backlog.size -= _size(*replies.popleft())
                    backlog.taken_at = now
            except zmq.ZMQError as problem:
                if problem.errno == zmq.EAGAIN:
                    continue
                if problem.errno != zmq.EHOSTUNREACH:
                    raise
                self.dropped += len(replies)
            del self.waiting[peer]


def _size(address: Address, body: bytes) -> int:
    return len(body) + OBJECTS_BYTES + (0 if type(address) is bytes else ENVELOPE_BYTES)
