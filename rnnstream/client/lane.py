"""The calls of one session, in order, and the numbers that make each request count once.

A session's requests that change it are numbered 1, 2, 3, ... under a *producer id*. A request is sent again as long as
nobody knows what became of it, always with the same number; the worker applies it once. Two rules make that safe,
whatever connections lose, delay or deliver twice:

* A number is given to another request only when each sending of the one that had it was answered, and not with success.
  Where that is not known, the lane goes on under a fresh producer id, once everything with the old one is settled.
* When a call comes back without success, nothing more is sent until all calls of the lane that are under way have come back or
  are lost (the lane is *held*). Then what is left is sent again, in the old order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import msgpack

from rnnstream.client.call import Call
from rnnstream.errors import NoReply, SessionLost
from rnnstream.names import Name

LATER = ("busy", "store_error")  # not now; the same again after `retry_after_ms`
RETRY_MS = 50  # where a worker does not say when
_FOR_GOOD = ("bad_message", "bad_request", "bad_token", "bad_state", "too_large")  # refused once, refused always
_ON_STATE = ("step", "fork")  # operations that go on from the state that the session was left in

_pack = msgpack.Packer(autoreset=True).pack


class Lane:
    """The calls of one session, or those that name none.

    A call is in `waiting` until it is sent, then in `sent` until it is settled: its reply came, and says what became of it.

    Args:
        name: of the session; None for calls without one.
        producer: the producer id to begin with.

    Attributes:
        waiting: calls to send, in order; those in front that have numbers are sent again.
        sent: calls that were sent and are not settled, in order; those that are not flying have come back.
        flying: how many are under way.
        held: nothing is sent until nothing is under way and `retry_at` has passed; then `release` is to be called.
        retry_at: in the seconds of `now`.
        refusal: the last `busy` or `store_error`, until something succeeds.
    """

    __slots__ = (
        "_anew",
        "_fresh",
        "_gone",
        "_had",
        "_key",
        "_known",
        "_n",
        "_producer",
        "_rewind",
        "_shaky",
        "flying",
        "held",
        "name",
        "refusal",
        "retry_at",
        "sent",
        "waiting",
    )

    def __init__(self, name: Name | None, producer: str) -> None:
        self.name = name
        self.waiting: list[Call[Any]] = []  # lists: an empty deque has 600 bytes, and a client may know many sessions
        self.sent: list[Call[Any]] = []
        self.flying = 0
        self.held = False
        self.retry_at = -math.inf
        self.refusal: dict[str, Any] | None = None
        self._rewind: float = math.inf  # the number that was refused: those from here on are void
        self._shaky = False  # a sending of what was refused may yet count, and with it what is numbered behind
        self._gone = False  # the worker has forgotten numbers that we hold the replies of
        self._known = False  # the session was there, as far as we know
        self._had = False  # and was so under another producer id; that a step opens it would be news
        self._anew = False  # a step that nobody waited for has opened it; that is news yet to be told
        self._begin(producer)

    def _begin(self, producer: str) -> None:
        self._producer = producer
        self._key = b"\xa8producer" + _pack(producer) + b"\xa1n"
        self._n = 1  # the next number
        self._fresh = False  # a fresh producer id is due before it
        self._had = self._had or self._known

    @property
    def idle(self) -> bool:
        """Whether nothing is going on."""
        return not (self.waiting or self.sent or self.held)

    # -- the way out --

    def next(self, most: int, fresh: Callable[[], str]) -> Call[Any] | None:
        """The call to send next, with its number; it counts as sent.

        Args:
            most: numbers that may be unsettled at a time.
            fresh: gives a producer id that was never used.
        """
        while self.waiting and not self.held:
            call = self.waiting[0]
            if not call.n and not call.wanted:
                del self.waiting[0]
                continue
            if call.numbered and not call.n:
                behind = any(other.n for other in self.sent)
                if behind and (self._fresh or self._n - 1 - self._settled() + len(call.packed) > most):
                    return None
                if self._fresh:
                    self._begin(fresh())
                call.n = self._n
                self._n += len(call.packed)
            del self.waiting[0]
            self.sent.append(call)
            self.flying += 1
            call.flying = True
            return call
        return None

    def forget(self, call: Call[Any]) -> None:
        """Nobody waits for it any more; nothing of it is left if it has not been sent."""
        if not (call.n or call.flying) and call in self.waiting:
            self.waiting.remove(call)

    def _settled(self) -> int:
        """The number up to which everything is settled."""
        for call in self.sent:
            if call.n:
                return int(min(call.n, self._rewind)) - 1
        return int(min(self._n, self._rewind)) - 1

    def body(self, call: Call[Any]) -> bytes:
        """The bytes of a call that `next` gave: its maps, with the keys that number them behind.

        `ack` is sent where it says more than its absence, which means n-1 for a request alone in its body.
        """
        first = call.packed[0]
        id = b"\xa2id" + _pack(call.wire)
        if not call.n:
            return bytes((first[0] + 1,)) + first[1:] + id  # the first byte of a small map counts its keys
        n, settled = call.n, self._settled()
        if len(call.packed) == 1 and settled == n - 1:
            return bytes((first[0] + 3,)) + first[1:] + self._key + _pack(n) + id
        ack = b"\xa3ack" + _pack(settled)
        parts = [bytes((first[0] + 4,)), first[1:], self._key, _pack(n), ack, id]
        for packed in call.packed[1:]:
            n += 1
            parts += (bytes((packed[0] + 2,)), packed[1:], self._key, _pack(n))
        return b"".join(parts)

    # -- the way in --

    def lost(self, call: Call[Any]) -> None:
        """No reply to this sending will come: it may have counted, or may yet."""
        self._landed(call)
        call.loose = call.n > 0
        self.held = True

    def answered(self, call: Call[Any], maps: list[dict[str, Any]], now: float) -> None:
        """These replies came, one for each request: the call is done and settled, or it has come back."""
        self._landed(call)
        used, problem = _used(maps)
        code = None if problem is None else problem["error"]
        if problem is not None and code in LATER:
            wait_ms = problem.get("retry_after_ms")
            self.retry_at = now + (max(1, wait_ms) if type(wait_ms) is int else RETRY_MS) / 1000
            self.refusal = problem
        if not call.n:
            # Whoever asks behind a change sees it: where that has to be sent again, so has the question.
            if (code in LATER or self.sent[0] is not call) and call.wanted:
                self.held = True
                return
        elif problem is not None and (code in LATER or code == "gap"):
            self.held = True
            call.loose = call.loose or used > 0  # a part of it counted
            if code == "gap":
                expected = problem.get("expected")
                self._gone = self._gone or not (type(expected) is int and expected > self._settled())
            return
        self.sent.remove(call)
        if call.n and problem is not None:
            self.held = True
            self._rewind = min(self._rewind, call.n + used)
            self._shaky = self._shaky or (call.loose and code not in _FOR_GOOD)
            self._fresh = self._fresh or call.loose or (code == "conflict" and problem.get("field") == "n")
            call.cut()
            if code == "unknown_session":
                self._known = self._had = False  # whoever asked is told
        elif problem is None:
            self.refusal = None
            self._fresh = self._fresh or call.n >= self._rewind
        if call.n and used:
            self._learn(call, maps)
        if not call.done:
            call.answer(maps)

    def _landed(self, call: Call[Any]) -> None:
        call.flying = False
        self.flying -= 1

    def _learn(self, call: Call[Any], maps: list[dict[str, Any]]) -> None:
        """Note what success says of the session; a call that found it lost fails, or the next that anybody waits for."""
        opened = self._had and call.op == "step" and [place for place, reply in enumerate(maps) if reply.get("opened") is True]
        if opened:
            self._anew, self._had = True, False
        if self._anew and call.op in _ON_STATE and call.wanted:
            which = "this token" if opened else "an earlier token; this request counts behind it"
            text = f"The worker no longer had {self.name}, and opened it anew with {which}."
            call.fail(SessionLost(text, counted=True), maps[: opened[0]] if opened else None)
            self._anew = False
        if call.op not in _ON_STATE:
            self._had = self._anew = False
        self._known = call.op != "close"

    def expect(self) -> None:
        """The session is there, whoever made it: that a step opens it would be news."""
        self._had = True

    def release(self) -> list[Call[Any]]:
        """Send again what has come back, now that nothing is under way.

        Returns:
            The calls that are done by it: those that cannot be sent again.
        """
        assert self.held
        assert not self.flying
        done: list[Call[Any]] = []
        sent, self.sent, self.held = self.sent, [], False
        rewind, self._rewind = self._rewind, math.inf
        if self._gone:
            return self._start_over(sent)
        if rewind < math.inf:  # what was numbered behind it is void
            split = next((place for place, call in enumerate(sent) if call.n >= rewind), len(sent))
            loose = [call for call in sent[split:] if call.loose]
            self._fresh = self._fresh or bool(loose)
            self._n = int(rewind)
            if self._shaky:
                text = f"The connection was lost while a request to {self.name} before this one was refused."
                done = [call for call in loose if call.wanted]
                for call in done:
                    call.fail(NoReply(f"{text} Whether this one counted is not known; info() tells the session's t."))
        else:  # the numbers of those that did not count, for sure, are free
            split = max((place + 1 for place, call in enumerate(sent) if call.loose), default=0)
            self._n = next((call.n for call in sent[split:] if call.n), self._n)
        kept, anew = sent[:split], sent[split:]
        self._shaky = False
        for call in anew:
            call.n, call.loose = 0, False
        while kept and not kept[-1].wanted:  # what was let go is sent again only where something behind needs it
            call = kept.pop()
            if call.n:
                self._n, self._fresh = call.n, True
        self.waiting[:0] = kept + anew
        return done

    def _start_over(self, sent: list[Call[Any]]) -> list[Call[Any]]:
        """The worker has forgotten the session, or this producer in it; what does not need its state goes on."""
        done = []
        calls, self.waiting = [call for call in sent + self.waiting if call.wanted], []
        for call in calls:
            call.n, call.loose = 0, False
            if call.op in _ON_STATE:
                text = f"The worker no longer knows what this client sent to {self.name}"
                call.fail(SessionLost(f"{text}: it was restarted, or has forgotten it."))
                done.append(call)
            else:
                self.waiting.append(call)
        self._gone, self._fresh = False, True
        self._had, self._known = not done and (self._had or self._known), False  # told once
        self._anew = self._anew and not done
        return done

    def check(self) -> None:
        """Assert what always holds; for tests."""
        assert self.flying == sum(call.flying for call in self.sent)
        assert not any(call.flying for call in self.waiting)
        numbers = [(call.n, len(call.packed)) for call in [*self.sent, *self.waiting] if call.n]
        assert all(n + many <= after for (n, many), (after, _) in pairwise(numbers)), "numbers ascend"
        assert not numbers or numbers[-1][0] + numbers[-1][1] <= self._n or self._rewind < math.inf
        assert all(call.flying for call in self.sent) or self.held, "what has come back is waited with"
        assert self._rewind == math.inf or self.held
        assert not self._gone or self.held
        resent = [call.n > 0 for call in self.waiting if call.numbered]
        assert resent == sorted(resent, reverse=True), "new calls are behind those that are sent again"


def _used(maps: list[dict[str, Any]]) -> tuple[int, dict[str, Any] | None]:
    """How many requests, from the first, have counted (one whose reply is no longer kept has), and what the next one got."""
    for place, reply in enumerate(maps):
        if reply.get("error", "stale") != "stale":
            return place, reply
    return len(maps), None
