"""A call: one body on its way to a worker and what comes back for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from rnnstream.errors import RequestError, RnnstreamError
from rnnstream.names import Name, Owned
from rnnstream.wire import requests

T = TypeVar("T")


class Chain:
    """Calls of which none may count behind one that failed: the bodies of a stream.

    Attributes:
        end: id of the call that failed; infinite while none has.
    """

    __slots__ = ("end",)

    def __init__(self) -> None:
        self.end = math.inf


class Call(Generic[T]):
    """One body on its way.

    Attributes:
        id: a running number, in the order in which calls are made.
        requests: its maps, in order.
        packed: the same as bytes, one for each; what numbers them is added when they are sent.
        session: the name in its maps, or None; with the owner, where one is given: that is another session.
        op: of its maps.
        changes: whether its requests may change a session.
        numbered: whether they take numbers. Those to somebody else's session do not: they would enrol a producer there.
        chain: the chain that it is part of, or None.
        n: the number of its first request; 0 while it has none.
        wire: the `id` that its last sending carries; each sending has a larger one.
        flying: whether it was sent over the present connection, and no reply came.
        loose: whether a sending of it, with the number that it has, went without a full reply: it may have counted, or may yet.
        sends: how often it was sent.
        sent_at: when it was sent last, in the seconds of `now`.
        deadline: when it is given up; set when it is first to be sent.
        done: whether `replies` or `error` is there, or nobody waits for them.
        replies: one map for each request; each may be an error map. With an `error`, those before it.
        error: why there are no more replies.
    """

    __slots__ = (
        "_read",
        "chain",
        "changes",
        "deadline",
        "done",
        "error",
        "flying",
        "id",
        "loose",
        "n",
        "numbered",
        "op",
        "packed",
        "replies",
        "requests",
        "sends",
        "sent_at",
        "session",
        "wire",
    )

    def __init__(
        self, id: int, maps: list[dict[str, Any]], read: Callable[[dict[str, Any]], T], chain: Chain | None = None
    ) -> None:
        self.id = id
        self.requests = maps
        self.packed = [requests.encode([request]) for request in maps]
        self.session: Name | None = maps[0].get("session")
        self.op: str = maps[0].get("op", "step")
        self.changes = self.numbered = "n" in requests.OPS[self.op]
        if "owner" in maps[0]:
            self.session = Owned(maps[0]["owner"], maps[0]["session"])
            self.numbered = False
        self.chain = chain
        self.n = self.wire = self.sends = 0
        self.flying = self.loose = self.done = False
        self.sent_at = -math.inf
        self.deadline = math.inf
        self.replies: list[dict[str, Any]] = []
        self.error: RnnstreamError | None = None
        self._read = read

    @property
    def wanted(self) -> bool:
        """Whether its reply, and that it counts, still matter to somebody."""
        return not self.done and (self.chain is None or self.id <= self.chain.end)

    def result(self) -> T:
        """What the first reply says.

        Raises:
            RequestError: the worker refused the request.
            ConnectionFailed: there is no reply, or it is not this protocol.
            SessionLost: the worker no longer has the session.
        """
        assert self.done, f"call {self.id} is not done"
        if self.error is not None:
            raise self.error
        reply = self.replies[0]
        if "error" in reply:
            raise RequestError.from_reply(reply)
        return self._read(reply)

    def answer(self, replies: list[dict[str, Any]]) -> None:
        """Done, with one reply for each request."""
        self.replies = replies
        self.done = True

    def fail(self, error: RnnstreamError, replies: list[dict[str, Any]] | None = None) -> None:
        """Done, with an error behind these replies; what follows it in its chain is not wanted any more."""
        self.error = error
        self.replies = replies or []
        self.done = True
        self.cut()

    def cut(self) -> None:
        """It has failed: what follows it in its chain is not wanted any more."""
        if self.chain is not None:
            self.chain.end = min(self.chain.end, self.id)
