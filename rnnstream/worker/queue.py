"""The order of things: which request is in which wave, and which reply body leaves when.

A wave holds at most one request of each session, so that it can be stepped as one batch. A request takes the wave behind
the last one that its session already waits in; so the requests of one session run in the order in which they came, and a
session with much to say delays nobody else by more than the wave that runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from rnnstream.wire.replies import with_id
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
        ids: ids that ordinary replies still have to get, by their place.
    """

    __slots__ = ("address", "bytes", "ids", "missing", "replies")

    def __init__(self, address: Address, requests: int) -> None:
        self.address = address
        self.replies: list[bytes | None] = [None] * requests
        self.missing = requests
        self.bytes = 0
        self.ids: dict[int, int] = {}

    def answer(self, place: int, reply: bytes) -> None:
        """Fill a place."""
        self.replies[place] = reply
        self.missing -= 1

    def joined(self) -> bytes:
        """The reply body, once nothing is missing."""
        for place, number in self.ids.items():
            self.replies[place] = with_id(self.replies[place] or b"", number)
        return b"".join(self.replies)  # type: ignore[arg-type]


class Wave:
    """Requests of different sessions that are run together.

    Tokens that want no more than the ordinary reply stand in parallel lists: those that came alone and can be answered at once,
    and those whose replies go into a body.

    Attributes:
        rows, xs, addresses: of the tokens that came alone.
        ids: the ids of those that have one, by their place in these lists.
        body_rows, body_xs: of the tokens of bodies.
        runs: where their replies go: (start, body, place) says that those from `start` to the next run's start are the
            replies from `place` on in that body.
        others: every other request that names a session: (row, request, body, place in the body).
    """

    __slots__ = ("addresses", "body_rows", "body_xs", "ids", "others", "rows", "runs", "xs")

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.xs: list[int] = []
        self.addresses: list[Address] = []
        self.ids: dict[int, int] = {}
        self.body_rows: list[int] = []
        self.body_xs: list[int] = []
        self.runs: list[tuple[int, Body, int]] = []
        self.others: list[tuple[int, Request, Body, int]] = []

    def bodies(self) -> Iterator[tuple[int, int, Body, int]]:
        """The runs with their ends: (start, stop, body, place)."""
        stops = [start for start, _, _ in self.runs[1:]] + [len(self.body_rows)]
        for (start, body, place), stop in zip(self.runs, stops, strict=False):  # no runs, no stops
            yield start, stop, body, place

    def all_rows(self) -> list[int]:
        """The row of every request, the ordinary tokens first."""
        return [*self.rows, *self.body_rows, *(row for row, *_ in self.others)]

    def __len__(self) -> int:
        return len(self.rows) + len(self.body_rows) + len(self.others)


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
