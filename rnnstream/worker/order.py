"""Bodies on their way, and the order in which their replies leave."""

from __future__ import annotations

from collections import Counter, deque

from rnnstream.wire.replies import with_id

LEAVING = 256  # bodies of a connection that leave in one turn: what a flood has waiting behind one could take many milliseconds

# Where a reply goes: the routing id, or, if the message had an envelope, the routing id and its frames.
Address = bytes | tuple[bytes, ...]


class Body:
    """A request body on its way: the replies so far, in the order of the requests.

    Attributes:
        address: where the reply goes.
        owner: the key that it came from; "" where the worker knows no keys.
        replies: one for each request, None until it is there.
        missing: how many are None.
        bytes: upper bound of the size of the reply body.
        ids: ids that ordinary replies still have to get, by their place.
        arrived: seconds, when it was taken in.
        held: whether it counts in its `Order`.
    """

    __slots__ = ("address", "arrived", "bytes", "held", "ids", "missing", "owner", "replies")

    def __init__(self, address: Address, requests: int, arrived: float, owner: str = "") -> None:
        self.address = address
        self.owner = owner
        self.arrived = arrived
        self.held = False
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


class Order:
    """Bodies of each connection that are not answered yet, for replies leave in the order of their requests.

    Attributes:
        held: the unanswered bodies of each routing id, oldest first; connections without any are absent.
        bytes: upper bound of the size of all held replies.
        late: some could leave, but have to wait for the next turn.
    """

    def __init__(self) -> None:
        self.held: dict[bytes, deque[Body]] = {}
        self.bytes = 0
        self.late = False
        self._bytes_of: dict[bytes | str, int] = {}  # the same, of each connection, or of each key where there are keys
        self._requests_of: Counter[str] = Counter()  # of each key, in held bodies

    def bytes_of(self, address: Address, owner: str = "") -> int:
        """Upper bound of the size of all held replies of this connection, or of its key, if it has one."""
        return self._bytes_of.get(owner or routing_id(address), 0)

    def requests_of(self, owner: str) -> int:
        """How many requests of this key are in held bodies."""
        return self._requests_of[owner]

    def add(self, body: Body) -> None:
        """A body that has arrived, its requests counted."""
        peer = routing_id(body.address)
        body.held = True
        self.held.setdefault(peer, deque()).append(body)
        self.bytes += body.bytes
        payer = body.owner or peer
        self._bytes_of[payer] = self._bytes_of.get(payer, 0) + body.bytes
        if body.owner:
            self._requests_of[body.owner] += len(body.replies)

    def grow(self, body: Body, size: int) -> None:
        """The reply to a body, held or still to come, is larger than was thought."""
        body.bytes += size
        if body.held:
            self.bytes += size
            self._bytes_of[body.owner or routing_id(body.address)] += size

    def finished(self) -> list[Body]:
        """The bodies that can leave now, in their order; they are no longer held. At most `LEAVING` of a connection."""
        done: list[Body] = []
        self.late = False
        for peer in list(self.held):
            bodies, most = self.held[peer], len(done) + LEAVING
            while bodies and not bodies[0].missing:
                if len(done) == most:
                    self.late = True
                    break
                body = bodies.popleft()
                payer = body.owner or peer
                self.bytes -= body.bytes
                self._bytes_of[payer] -= body.bytes
                if body.owner:
                    self._requests_of[body.owner] -= len(body.replies)
                if not self._bytes_of[payer]:
                    del self._bytes_of[payer]
                done.append(body)
            if not bodies:
                del self.held[peer]
        return done

    def check(self) -> None:
        """Assert what always holds once the finished ones have left."""
        assert all(bodies and (bodies[0].missing or self.late) for bodies in self.held.values())
        bodies = [(body.owner or peer, body) for peer, bodies in self.held.items() for body in bodies]
        counted = Counter[bytes | str]()
        for payer, body in bodies:
            counted[payer] += body.bytes
        assert +counted == self._bytes_of
        assert +self._requests_of == Counter(body.owner for _, body in bodies if body.owner for _ in body.replies)
        assert self.bytes == sum(self._bytes_of.values())


def routing_id(address: Address) -> bytes:
    """The connection behind an address."""
    return address[0] if isinstance(address, tuple) else address
