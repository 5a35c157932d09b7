"""A worker's core without a socket: bodies in, reply maps out, and what always holds in between."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from typing import Any

import msgpack

from rnnstream.engine.engine import Engine
from rnnstream.model.step import StepModel
from rnnstream.wire.limits import Limits
from rnnstream.wire.replies import decode
from rnnstream.worker.core import Core
from rnnstream.worker.order import Address, routing_id

Reply = dict[str, Any]


class Driver:
    """Hands bodies to a core and sorts its replies by address; after each call the core is checked.

    Attributes:
        core: the core.
        users: the key of each connection, by its routing id; None: the worker knows no keys.
        unanswered: of each connection, the addresses of its bodies that are not answered yet, oldest first.
        replies: of each address, the reply maps of each body, in the order in which they left.
        calls: of `handle`, so far.
    """

    def __init__(
        self, model: StepModel, *, limits: Limits | None = None, keys: dict[str, Any] | None = None, **options: Any
    ) -> None:
        self.engine = Engine(model, **options)
        self.limits = limits or Limits()
        self.core = Core(self.engine, worker="w", version="v", limits=self.limits, **keys or {})
        self.users: dict[bytes, str | None] | None = None if keys is None else {}
        self.unanswered: dict[bytes, deque[Address]] = defaultdict(deque)
        self.replies: dict[Address, list[list[Reply]]] = defaultdict(list)
        self.calls = 0

    def handle(self, *arrivals: tuple[Address, Any]) -> list[tuple[Address, bytes]]:
        """One call, with these (address, body) pairs. A body is bytes, or maps."""
        bodies = [body if isinstance(body, bytes) else pack(body) for _, body in arrivals]
        for address, _ in arrivals:
            self.unanswered[routing_id(address)].append(address)
        addresses = [address for address, _ in arrivals]
        users = None if self.users is None else [self.users[routing_id(address)] for address in addresses]
        out = self._straight(addresses, bodies) or self.core.handle(addresses, bodies, self.clock(), users)
        self.calls += 1
        for address, body in out:
            assert self.unanswered[routing_id(address)].popleft() == address  # bodies of a connection leave in their order
            self.replies[address].append(decode(body))
        self.check()
        return out

    def _straight(self, addresses: list[Address], bodies: list[bytes]) -> list[tuple[Address, bytes]]:
        """Every second time, the straight way for a body that is alone, as the loop around the socket has it."""
        alone = self.core.alone
        if alone is None or self.users is not None or self.core.waiting or len(bodies) != 1 or not self.calls % 2:
            return []
        reply = alone.answer(bodies[0], self.clock())
        if reply is None:
            return []
        self.core.stats.alone(self.clock(), self.clock())
        return [(addresses[0], reply)]

    def clock(self) -> float:
        """When the next call happens."""
        return float(self.calls)

    def check(self) -> None:
        """What always holds after a call."""
        self.core.check()

    def finish(self, most: int = 100_000) -> None:
        """Call until nothing waits."""
        for _ in range(most):
            if not self.core.waiting:
                break
            self.handle()
        assert not self.core.waiting
        assert not any(self.unanswered.values())
        for row, name in enumerate(self.engine.table.names):
            assert name is None or self.engine.table.live[row]  # no row is kept for a name that nobody waits for

    def ask(self, *maps: Any, address: Address = b"asker") -> list[Reply]:
        """The replies to one body."""
        self.handle((address, maps))
        self.finish()
        return self.replies[address].pop()

    def depth(self, session: str) -> int:
        """How many requests of this session wait."""
        return self.core._intake.waves.waiting[self.engine.table.rows[session]]

    def states(self) -> dict[str, tuple[int, bytes]]:
        """Every open session with its step count and the bytes of its state."""
        return {name: (self.engine.info(name)["t"], self.engine.state(name).tobytes()) for name in self.engine.sessions()}


def pack(maps: Iterable[Any]) -> bytes:
    """A body of these, back to back."""
    return b"".join(msgpack.packb(item) for item in maps)


def step(session: str, x: Any, **more: Any) -> dict[str, Any]:
    return {"session": session, "x": x, **more}


def codes(replies: Iterable[Reply]) -> list[str | int]:
    """The error code of each reply, or its t."""
    return [reply.get("error", reply.get("t", "?")) for reply in replies]
