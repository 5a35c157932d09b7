"""A call: one body on its way to a worker and what comes back for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from rnnstream.errors import RequestError, RnnstreamError
from rnnstream.wire import requests

T = TypeVar("T")


class Call(Generic[T]):
    """One body on its way.

    Attributes:
        id: the number that its first request carries; later calls have larger ones.
        requests: its maps, in order.
        body: the same as bytes.
        deadline: when it is given up, in the seconds of `now`; set when it is sent.
        done: whether `replies` or `error` is there.
        replies: one map for each request; each may be an error map.
        error: why there are no replies.
    """

    __slots__ = ("_read", "body", "deadline", "done", "error", "id", "replies", "requests")

    def __init__(self, id: int, maps: list[dict[str, Any]], read: Callable[[dict[str, Any]], T]) -> None:
        self.id = id
        self.requests = maps
        self.body = requests.encode(maps)
        self.deadline = float("inf")
        self.done = False
        self.replies: list[dict[str, Any]] = []
        self.error: RnnstreamError | None = None
        self._read = read

    def result(self) -> T:
        """What the first reply says.

        Raises:
            RequestError: the worker refused the request.
            ConnectionFailed: there is no reply, or it is not this protocol.
        """
        assert self.done, f"call {self.id} is not done"
        if self.error is not None:
            raise self.error
        reply = self.replies[0]
        if "error" in reply:
            raise RequestError.from_reply(reply)
        return self._read(reply)

    def answer(self, replies: list[dict[str, Any]]) -> Call[T]:
        """Done, with one reply for each request."""
        self.replies = replies
        self.done = True
        return self

    def fail(self, error: RnnstreamError) -> Call[T]:
        """Done, without replies."""
        self.error = error
        self.done = True
        return self
