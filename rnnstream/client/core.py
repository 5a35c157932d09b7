"""What a client knows, without sockets and without a clock: calls out, bodies out; bodies in, answers in.

A *call* is one body on its way: some requests, later their replies or an error. Bodies of one connection are answered
in the order in which they were sent, but libzmq reconnects silently, and replies are lost with a connection. The
first request of each body therefore carries a running number as its `id`: when the reply to a later body comes, those
before it were lost.

The loops around a core do this, and decide nothing::

    call = core.step("turbine-7", 17)              # or another operation
    send each of core.outgoing(now)
    until call.done:
        wait for a body, at most until core.deadline()
        core.received(body), or core.expire(now) where none has come
        if core.take_renewal(): drop the socket and connect a new one
    call.result()
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from rnnstream.client.call import Call
from rnnstream.client.token import read_prediction, wire_token
from rnnstream.errors import ConnectionFailed, NoReply, ProtocolError, RnnstreamError
from rnnstream.prediction import Prediction
from rnnstream.wire import replies
from rnnstream.wire.limits import PROTOCOL, Limits

T = TypeVar("T")

_UNKNOWN = "Whether the requests in flight were applied is not known; for a session, info() tells its t."


class Core:
    """The calls of one client over one connection at a time.

    Args:
        address: for the sentences of errors.
        timeout_s: how long a body that was sent is waited for.

    Attributes:
        hello: the worker's last answer to `ask_hello` over this connection, or None.
    """

    def __init__(self, address: str, timeout_s: float) -> None:
        if not timeout_s > 0:
            raise ValueError(f"timeout_s is {timeout_s!r}; it is a number of seconds above 0.")
        self.address = address
        self.timeout_s = timeout_s
        self.hello: dict[str, Any] | None = None
        self._outbox: deque[Call[Any]] = deque()  # made, not sent
        self._flight: deque[Call[Any]] = deque()  # sent, not done; ids and deadlines ascend
        self._made = 0  # id of the last call
        self._sent = 0  # id of the last call that was sent
        self._renew = False
        self._heard = False  # anything, ever
        self._closed = False

    # -- operations: each makes a call --

    def ask(self, maps: list[dict[str, Any]], read: Callable[[dict[str, Any]], T]) -> Call[T]:
        """A call of these requests, to be sent next.

        Every request passes here, in the order in which it will be sent.

        Args:
            maps: at least one request, all for one body; the first gets an `id`.
            read: what `Call.result` makes of the first reply.

        Raises:
            RuntimeError: the client is closed.
            Exception: whatever msgpack raises for a value that it cannot write; nothing is kept of the call then.
        """
        if self._closed:
            raise RuntimeError("This client is closed; make a new one.")
        maps[0]["id"] = self._made + 1
        call = Call(self._made + 1, maps, read)
        self._made += 1
        self._outbox.append(call)
        return call

    def step(
        self, session: str, x: object, want: str | int = "argmax", surprisal: bool = False, t: int | None = None
    ) -> Call[Prediction]:
        """One token; raises `BadToken` where it cannot be written."""
        request = step_keys(session, want, surprisal)
        request["x"] = wire_token(x)
        if t is not None:
            request["t"] = t
        return self.ask([request], read_prediction)

    def change(self, op: str, session: str, t: int | None = None) -> Call[None]:
        """`reset` or `close`: an operation that changes a session and has nothing to tell."""
        request = {"op": op, "session": session}
        return self.ask([request if t is None else {**request, "t": t}], lambda reply: None)

    def info(self, session: str) -> Call[dict[str, Any]]:
        """What the worker knows of a session."""
        return self.ask([{"op": "info", "session": session}], _without_id)

    def ping(self) -> Call[dict[str, Any]]:
        """Whether the worker still steps."""
        return self.ask([{"op": "ping"}], _without_id)

    def ask_hello(self) -> Call[dict[str, Any]]:
        """Who is there; its result is kept as `hello`.

        `Call.result` raises `ProtocolError` where the worker speaks another version.
        """
        return self.ask([{"op": "hello"}], self._read_hello)

    def _read_hello(self, reply: dict[str, Any]) -> dict[str, Any]:
        if reply.get("protocol") != PROTOCOL:
            raise ProtocolError(f"{self.address} speaks protocol {reply.get('protocol')!r:.60}, this client {PROTOCOL}.")
        self.hello = _without_id(reply)
        return dict(self.hello)

    # -- the way out and the way in

    def outgoing(self, now: float) -> list[bytes]:
        """The bodies to send, in order; from `now` on, their replies are waited for."""
        bodies = []
        while self._outbox:
            call = self._outbox.popleft()
            call.deadline = now + self.timeout_s
            self._sent = call.id
            self._flight.append(call)
            bodies.append(call.body)
        return bodies

    def received(self, body: bytes) -> list[Call[Any]]:
        """Take in one body from the worker.

        Returns:
            The calls that are done by it, oldest first: the one that it answers, and those before it whose replies
            were lost. None for a reply that nobody waits for. All in flight where the body is not this protocol; see
            `take_renewal`.
        """
        self._heard = True
        try:
            maps = replies.decode(body)
            id = self._answered(maps)
        except ProtocolError as problem:
            return self._break(problem)
        done = []
        while self._flight and self._flight[0].id < id:
            text = f"The reply from {self.address} was lost with its connection; that to a later request has come."
            done.append(self._flight.popleft().fail(NoReply(f"{text} {_UNKNOWN}")))
            self.hello = None  # another worker may have answered
        if self._flight and self._flight[0].id == id:
            call = self._flight[0]
            missing = len(call.requests) - len(maps)
            if missing > 0 and maps[-1].get("error") == "bad_message":
                maps += [maps[-1]] * missing  # the worker did not read on behind it
            elif missing:
                text = f"{self.address} answered {len(call.requests)} requests with {len(maps)} replies."
                return done + self._break(ProtocolError(text))
            done.append(self._flight.popleft().answer(maps))
        return done

    def _answered(self, maps: list[dict[str, Any]]) -> int:
        """The id of the call that a body answers."""
        if not maps:
            raise ProtocolError(f"{self.address} sent an empty body; is this an rnnstream worker?")
        id = maps[0].get("id")
        if id is None and maps[0].get("error") == "bad_message" and self._flight:
            return self._flight[0].id  # an id that could not be read
        if type(id) is not int or not 0 < id <= self._sent:
            raise ProtocolError(
                f"{self.address} sent a reply with the id {id!r:.60}, to no request; is this an rnnstream worker?"
            )
        return id

    def deadline(self) -> float | None:
        """When `expire` must be called, or None while nothing is in flight."""
        return self._flight[0].deadline if self._flight else None

    def overdue(self, now: float) -> bool:
        """Whether `expire` would give up calls; what lies in the socket unread should be handed to `received` first."""
        return bool(self._flight) and self._flight[0].deadline <= now

    def expire(self, now: float) -> list[Call[Any]]:
        """Give up what has waited too long, and with it all else in flight: the connection is to be renewed.

        Returns:
            The calls that are done by it; none where nothing is overdue.
        """
        if not self.overdue(now):
            return []
        largest = max(len(call.body) for call in self._flight)
        hint = ""
        if largest > Limits.frame_bytes:
            hint = f" A request had {largest} bytes; a worker cuts the connection at more than its limits.frame_bytes."
        late = f"No reply from {self.address} within {self.timeout_s:g} s."
        if not self._heard:
            late = f"Nobody has answered at {self.address} within {self.timeout_s:g} s; is a worker running there?"
        beside = f"No reply from {self.address} to an earlier request within {self.timeout_s:g} s; reconnecting."
        return self._drop_flight(lambda call: NoReply(f"{late if call.deadline <= now else beside} {_UNKNOWN}{hint}"))

    def give_up(self, call: Call[Any]) -> None:
        """Nobody waits for this call any more: it is not sent, or its reply is dropped. No-op on a done call."""
        if call.id > self._sent and not call.done:
            self._outbox.remove(call)
            call.done = True

    def take_renewal(self) -> bool:
        """Whether to drop the socket, with all that it holds unsent or unread, and connect anew. Says so once."""
        renew, self._renew = self._renew, False
        return renew

    def close(self) -> list[Call[Any]]:
        """Take no more calls; those under way are done, with an error, and returned. Can be called again."""
        self._closed = True
        self._flight.extend(self._outbox)
        self._outbox.clear()
        return self._drop_flight(lambda call: ConnectionFailed(f"The client of {self.address} was closed. {_UNKNOWN}"))

    def _break(self, problem: ProtocolError) -> list[Call[Any]]:
        """What comes cannot be read: no reply can be matched any more."""
        return self._drop_flight(lambda call: ProtocolError(str(problem)))

    def _drop_flight(self, why: Callable[[Call[Any]], RnnstreamError]) -> list[Call[Any]]:
        done = [call.fail(why(call)) for call in self._flight]  # an exception each: they are raised in different places
        self._flight.clear()
        self._renew = True
        self.hello = None  # another worker may answer next
        return done

    def check(self) -> None:
        """Assert what always holds; for tests."""
        calls = [*self._flight, *self._outbox]
        assert [call.id for call in calls] == sorted({call.id for call in calls}), "ids ascend"
        assert not any(call.done for call in calls), "what is done is out"
        assert all(call.id <= self._sent for call in self._flight)
        assert all(self._sent < call.id <= self._made for call in self._outbox)
        assert all(call.requests[0]["id"] == call.id for call in calls)
        deadlines = [call.deadline for call in self._flight]
        assert deadlines == sorted(deadlines), "the first in flight is the first to expire"


def step_keys(session: str, want: str | int, surprisal: bool) -> dict[str, Any]:
    """The keys of a step but its token; those that have their default are left out."""
    keys: dict[str, Any] = {"session": session}
    if want != "argmax":
        keys["want"] = want
    if surprisal:
        keys["surprisal"] = surprisal
    return keys


def _without_id(reply: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in reply.items() if key != "id"}
