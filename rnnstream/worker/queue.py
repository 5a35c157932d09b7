"""The order of things: which request is in which wave, and which reply body leaves when.

A wave holds at most one request of each session, so that it can be stepped as one batch. A request takes the wave behind
the last one that its session already waits in; so the requests of one session run in the order in which they came, and a
session with much to say delays nobody else by more than the wave that runs.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from rnnstream.wire.requests import Request

# Where a reply goes: the routing id, or, if the message had an envelope, the routing id and its frames.
Address = bytes | tuple[bytes, ...]


class Body:
    """A request body on its way: the replies so far, in the order of the requests.

    Attributes:
        address: where the reply goes.
        replies: one for each request, None until it is there.
        missing: how many are None.
        bytes: upper bound of the size of the reply body.
    """

    __slots__ = ("address", "bytes", "missing", "replies")

    def __init__(self, address: Address) -> None:
        self.address = address
        self.replies: list[bytes | None] = []
        self.missing = 0
        self.bytes = 0

    def expect(self) -> int:
        """A place for the reply of one more request."""
        self.replies.append(None)
        self.missing += 1
        return len(self.replies) - 1

    def answer(self, place: int, reply: bytes) -> None:
        """Fill a place."""
        self.replies[place] = reply
        self.missing -= 1


# Where the reply to a token goes: straight to an address (alone in its body, nothing before it held back), or into a body.
Goal = Address | tuple[Body, int]


class Wave:
    """Requests of different sessions that are run together.

    Attributes:
        rows, xs, goals: tokens that want no more than the ordinary reply, as parallel lists.
        ids: the ids of those tokens that have one, an int, by their place in these lists.
        direct: every goal is an address.
        others: every other request that names a session: (row, request, body, place in the body).
    """

    __slots__ = ("direct", "goals", "ids", "others", "rows", "xs")

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.xs: list[Any] = []
        self.ids: dict[int, int] = {}
        self.direct = True
        self.goals: list[Any] = []  # list[Goal]; Any, so that the hot path may tell them apart by type()
        self.others: list[tuple[int, Request, Body, int]] = []


class Order:
    """Bodies of each connection that are not answered yet, for replies leave in the order of their requests.

    Attributes:
        held: the unanswered bodies of each routing id, oldest first; connections without any are absent.
        bytes: upper bound of the size of all held replies.
    """

    def __init__(self) -> None:
        self.held: dict[bytes, deque[Body]] = {}
        self.bytes = 0

    def add(self, body: Body) -> None:
        """A body that has arrived, its requests counted."""
        self.held.setdefault(routing_id(body.address), deque()).append(body)
        self.bytes += body.bytes

    def finished(self) -> list[Body]:
        """The bodies that can leave now, in their order; they are no longer held."""
        done = []
        for peer in list(self.held):
            bodies = self.held[peer]
            while bodies and not bodies[0].missing:
                self.bytes -= bodies[0].bytes
                done.append(bodies.popleft())
            if not bodies:
                del self.held[peer]
        return done

    def check(self) -> None:
        """Assert what always holds once the finished ones have left."""
        assert all(bodies and bodies[0].missing for bodies in self.held.values())
        assert self.bytes == sum(body.bytes for bodies in self.held.values() for body in bodies)


def routing_id(address: Address) -> bytes:
    """The connection behind an address."""
    return address[0] if isinstance(address, tuple) else address
