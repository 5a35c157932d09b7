"""The way of calls over one connection at a time: what to send, what a reply answers, what to send again, and when.

Bodies of one connection are answered in the order in which they were sent, but libzmq reconnects silently, and what is on a
connection is lost with it. The first request of each body therefore carries a running number as its `id`, made anew
at each sending: when the reply to a later body comes, those before it were lost. When nothing comes at all, the
connection is made anew after a while. Either way what is unanswered is sent again; what that means for the numbers of a
session is the business of its `Lane`.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from rnnstream.client.call import Call, Chain
from rnnstream.client.lane import Lane
from rnnstream.client.lanes import Lanes
from rnnstream.client.patience import Patience
from rnnstream.errors import ConnectionFailed, NoReply, ProtocolError, RequestError, RnnstreamError
from rnnstream.wire import replies
from rnnstream.wire.limits import Limits

T = TypeVar("T")

# Numbers of a session that may be unsettled where the worker has not said how many replies it keeps. The bytes that it keeps
# are not looked at here, only by the streams of sequences: of many large replies to tasks of their own, or to live tokens with
# a window, those that are lost may be `stale`.
UNSETTLED = 256

_UNKNOWN = "The request is not sent any more; if it is on its way, it may still count: the session's info tells its t."


class Delivery:
    """Calls on their way, without sockets and without a clock.

    Args:
        address: for the sentences of errors.
        timeout_s: how long a call is waited for from when it is first to be sent.
        producer: at most 32 characters that no other client has: the producer id of its sessions, and the beginning of
            further ones.

    Attributes:
        hello: the worker's last answer to `hello` over this connection, or None.
        closed: it takes no more calls, and has nothing to send.
    """

    def __init__(self, address: str, timeout_s: float, producer: str) -> None:
        if not timeout_s > 0:
            raise ValueError(f"timeout_s is {timeout_s!r}; it is a number of seconds above 0.")
        self.address = address
        self.timeout_s = timeout_s
        self.hello: dict[str, Any] | None = None
        self._lanes = Lanes(producer)
        self._ready: dict[Lane, None] = {}  # those that may have something to send
        self._resting: dict[Lane, None] = {}  # those that wait for their `retry_at` only
        self._flight: deque[Call[Any]] = deque()  # sent over this connection, not answered; `wire` ascends
        self._new: dict[Call[Any], None] = {}  # without a deadline
        self._pending: OrderedDict[Call[Any], None] = OrderedDict()  # not done; deadlines ascend
        self._made = 0  # id of the last call
        self._sent = 0  # `wire` of the last sending
        self._patience = Patience()
        self._trouble, self._trouble_at = "", -math.inf  # what the transport knew last of why nothing comes
        self._renew = False
        self.closed = False

    def ask(self, maps: list[dict[str, Any]], read: Callable[[dict[str, Any]], T], chain: Chain | None = None) -> Call[T]:
        """A call of these requests. The calls of a session are sent, and count, in the order in which they are made.

        Args:
            maps: at least one request of one op and session, all for one body; without numbers and `id`.
            read: what `Call.result` makes of the first reply.
            chain: what the call is part of: it must not count when one before it in the chain has failed.

        Raises:
            RuntimeError: the client is closed.
            Exception: whatever msgpack raises for a value that it cannot write; nothing is kept of the call then.
        """
        if self.closed:
            raise RuntimeError("This client is closed; make a new one.")
        call = Call(self._made + 1, maps, read, chain)
        self._made += 1
        lane = self._lanes.lane(call.session)
        lane.waiting.append(call)
        self._ready[lane] = None
        self._new[call] = None
        self._pending[call] = None
        return call

    def outgoing(self, now: float) -> list[bytes]:
        """The bodies to send, in order; calls that were made since the last time are waited for from `now` on."""
        for call in self._new:
            call.deadline = now + self.timeout_s
        self._new.clear()
        if not self._ready:
            return []
        if not self._flight:
            self._patience.sent(now)
        bodies = []
        most = UNSETTLED if self.hello is None else self.hello["limits"]["replies"]
        for lane in self._ready:
            while (sending := lane.next(most, self._lanes.fresh_producer)) is not None:
                self._sent += 1
                sending.wire = self._sent
                sending.sends += 1
                sending.sent_at = now
                self._flight.append(sending)
                bodies.append(lane.body(sending))
        self._ready.clear()
        return bodies

    def received(self, body: bytes, now: float) -> list[Call[Any]]:
        """Take in one body from the worker.

        Returns:
            The calls that are done by it, oldest first. None for a reply that nobody waits for. All in flight where the
            body is not this protocol; see `take_renewal`.
        """
        self._patience.heard(now)
        flight = self._flight
        try:
            maps = replies.decode(body)
            wire = self._answered(maps)
        except ProtocolError as problem:
            return self._break(problem, now)
        lanes: dict[Lane, None] = {}
        while flight and flight[0].wire < wire:
            lanes[self._lose(flight.popleft())] = None
            self.hello = None  # another worker may have answered
        done = []
        if flight and flight[0].wire == wire:
            call = flight[0]
            missing = len(call.packed) - len(maps)
            if missing > 0 and maps[-1].get("error") == "bad_message":
                maps += [maps[-1]] * missing  # the worker did not read on behind it
            elif missing:
                text = f"{self.address} answered {len(call.packed)} requests with {len(maps)} replies."
                return self._break(ProtocolError(text), now, lanes)
            flight.popleft()
            self._patience.measured(min(now - call.sent_at, self.timeout_s))
            lane = self._lanes[call.session]
            lanes[lane] = None
            open = not call.done
            lane.answered(call, maps, now)
            if open and call.done:
                done.append(call)
        return self._settle(lanes, done, now)

    def _answered(self, maps: list[dict[str, Any]]) -> int:
        """The `wire` of the sending that a body answers."""
        if not maps:
            raise ProtocolError(f"{self.address} sent an empty body; is this an rnnstream worker?")
        id = maps[0].get("id")
        if id is None and maps[0].get("error") == "bad_message" and self._flight:
            return self._flight[0].wire  # an id that could not be read
        if type(id) is not int or not 0 < id <= self._sent:
            raise ProtocolError(
                f"{self.address} sent a reply with the id {id!r:.60}, to no request; is this an rnnstream worker?"
            )
        return id

    def deadline(self) -> float | None:
        """When `expire` must be called, or None while nothing is waited for."""
        first = next(iter(self._pending)).deadline if self._pending else math.inf
        if self._flight:
            first = min(first, self._patience.ends_at(self.timeout_s))
        for lane in self._resting:
            first = min(first, lane.retry_at)
        return first if first < math.inf else None

    def overdue(self, now: float) -> bool:
        """Whether `expire` would do something; what lies in the socket unread should be handed to `received` first."""
        due = self.deadline()
        return due is not None and due <= now

    def expire(self, now: float, trouble: str = "") -> list[Call[Any]]:
        """Do what is due: give up calls that have waited too long, make a silent connection anew, try again.

        Time in which nobody looked (between when this was due and `now`) does not count as waiting.

        Args:
            now: the time.
            trouble: why nothing comes, as the end of a sentence, where the transport can tell.

        Returns:
            The calls that are done by it; none where nothing is due.
        """
        if trouble:
            self._trouble, self._trouble_at = trouble, now
        due = self.deadline()
        if due is None or now < due:
            return []
        late = now - due
        done: list[Call[Any]] = []
        silent = bool(self._flight) and self._patience.ends_at(self.timeout_s) <= now
        for call in self._pending:
            call.deadline += late
        while self._pending and (call := next(iter(self._pending))).deadline <= now:
            # What still lies in a socket that nobody reads must not count later, when somebody does.
            silent = silent or (call.flying and self._patience.heard_at <= call.sent_at)
            call.fail(self._too_late(call))
            self._forget(call)
            done.append(call)
        lanes = {lane: None for lane in self._resting if lane.retry_at <= now}
        if silent:
            lanes |= self._drop_flight(now)
        return self._settle(lanes, done, now)

    def _too_late(self, call: Call[Any]) -> RnnstreamError:
        lane = self._lanes.get(call.session)
        if lane is not None and lane.refusal is not None and not call.flying and not call.loose:
            return RequestError.from_reply(lane.refusal)
        hint = ""
        if lane is not None and lane.refusal is not None:  # a part of it counted, or may have
            hint = f" The worker has said: {lane.refusal.get('message', '')!s:.300}"
        largest = sum(map(len, call.packed))
        if largest > Limits.frame_bytes:
            hint += f" It had {largest} bytes; a worker cuts the connection at more than its limits.frame_bytes."
        text = f"No reply from {self.address} within {self.timeout_s:g} s"
        if self._trouble_at > self._patience.heard_at:
            text += f": {self._trouble}."
        elif self._patience.heard_at == -math.inf:
            text = f"Nobody has answered at {self.address} within {self.timeout_s:g} s; is a worker running there?"
        else:
            text += "."
        return NoReply(f"{text}{' ' + _UNKNOWN if call.changes else ''}{hint}")

    def give_up(self, call: Call[Any]) -> None:
        """Nobody waits for this call any more: it is not sent, or its reply is dropped. No-op on a done call."""
        if not call.done:
            call.done = True
            self._forget(call)

    def _forget(self, call: Call[Any]) -> None:
        """Nobody waits for it; if it was not sent, it leaves nothing behind. O(calls that wait in its lane)."""
        del self._pending[call]
        self._new.pop(call, None)
        self._lanes[call.session].forget(call)

    def take_renewal(self) -> bool:
        """Whether to drop the socket, with all that it holds unsent or unread, and connect anew. Says so once."""
        renew, self._renew = self._renew, False
        return renew

    def close(self) -> list[Call[Any]]:
        """Take no more calls; those under way are done, with an error, and returned. Can be called again."""
        done = list(self._pending)
        for call in done:  # an exception each: they are raised in different places
            call.fail(ConnectionFailed(f"The client of {self.address} was closed.{' ' + _UNKNOWN if call.changes else ''}"))
        self._pending.clear()
        self._flight.clear()
        self._new.clear()
        self._ready.clear()
        self._resting.clear()
        self._lanes.clear()
        self.closed = self._renew = True
        return done

    def _break(self, problem: ProtocolError, now: float, lanes: Iterable[Lane] = ()) -> list[Call[Any]]:
        """What comes cannot be read: no reply can be matched any more."""
        done = [call for call in self._flight if not call.done]
        for call in done:
            call.fail(ProtocolError(str(problem)))
            del self._pending[call]
        return self._settle({**dict.fromkeys(lanes), **self._drop_flight(now)}, done, now)

    def _drop_flight(self, now: float) -> dict[Lane, None]:
        """Have the connection made anew; the lanes of what was under way."""
        lanes = {self._lose(call): None for call in self._flight}
        self._flight.clear()
        self._renew = True
        self._patience.renewed(now)
        self.hello = None  # another worker may answer next
        return lanes

    def _lose(self, call: Call[Any]) -> Lane:
        lane = self._lanes[call.session]
        lane.lost(call)
        return lane

    def _settle(self, lanes: Iterable[Lane], done: list[Call[Any]], now: float) -> list[Call[Any]]:
        """Let these lanes go on where they can; `done` with what is done by it, all of them taken from the books."""
        for lane in lanes:
            if lane.held and not lane.flying:
                if lane.retry_at > now:
                    self._resting[lane] = None
                else:
                    self._resting.pop(lane, None)
                    done += lane.release()
            if lane.waiting and not lane.held:
                self._ready[lane] = None
        for call in done:
            self._pending.pop(call, None)
        return done

    def check(self) -> None:
        """Assert what always holds; for tests."""
        wires = [call.wire for call in self._flight]
        assert wires == sorted(set(wires)), "the ids of what is under way ascend"
        assert wires[-1:] <= [self._sent]
        for call in self._flight:
            assert call.flying
            assert call in self._lanes[call.session].sent
        assert len(wires) == sum(lane.flying for lane in self._lanes.values())
        for lane in self._lanes.values():
            lane.check()
            assert lane.flying or not lane.held or lane in self._resting, "nothing waits for nothing"
            assert lane.flying or not lane.waiting or lane.held or lane in self._ready, "and nothing is forgotten"
        assert all(lane.held for lane in self._resting)
        assert not any(call.done for call in self._pending)
        deadlines = [call.deadline for call in self._pending]
        assert deadlines == sorted(deadlines), "the first is the first to expire"
