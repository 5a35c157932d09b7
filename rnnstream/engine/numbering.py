"""Numbering: how a request counts once, however often it is sent.

A producer numbers what it does to a session: 1, 2, 3, ... The engine remembers the last number that counted and the replies
that the producer may not have yet; `JUDGEMENTS` is the whole table of what becomes of a number. Replies are bytes to it, and
requests are whatever can be compared.

All of it is bounded: producers by session and in all; replies by producer, and in all. A producer's last reply, if it is an
ordinary one, is part of the producer; all others share a budget, out of which the producers that have kept the least lately
go first.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rnnstream.engine.producers import Producer, Producers
from rnnstream.errors import Conflict, Full, Gap, Stale
from rnnstream.names import Name

# n against the last number that counted; the reply to n, if n counted; what happens.
JUDGEMENTS = {
    ("last + 1", ""): "applied",
    ("at most last", "kept, same request"): "again",
    ("at most last", "kept, another request"): "conflict",
    ("at most last", "no longer kept"): "stale",
    ("beyond last + 1", ""): "gap",
}

ORDINARY_BYTES = 2048  # of a reply that is part of its producer: a prediction without probabilities
ENTRY_BYTES = 200  # of the objects around a kept reply
SHARE = 4  # of the room for producers, replies, sessions and connections, a key gets this part: no key fills it alone
IDS = 1000  # of the producers that came last: one that feeds many sessions has one string in all of them, not 96 bytes in each
LOOKED_AT = 1000  # producers that are looked through for some to forget, when there are too many in all: 0.1 ms


@dataclass
class Numbering:
    """The producers of all sessions, within bounds.

    Attributes:
        replies: most replies kept for a producer in a session: a body of the most requests can be repeated as a whole.
        reply_bytes: most bytes of these; so much may be in flight by the bounds of a client's window.
        producers: most producers of a session. Each run of a program is one.
        producer_s: seconds of silence before a producer is forgotten to make room: longer than anybody waits for a reply.
        most_producers: in all: 0.7 GB with an ordinary reply each. Newcomers of one wave that find the last place share it.
        most_bytes: of replies beside those ordinary ones, in all.
        count: producers in all.
        held_bytes: of replies in all producers' `more`.
    """

    replies: int = 512
    reply_bytes: int = 1 << 20
    producers: int = 256
    producer_s: float = 300
    most_producers: int = 2_000_000
    most_bytes: int = 256 << 20
    count: int = field(default=0, init=False)
    held_bytes: int = field(default=0, init=False)
    _holders: OrderedDict[Producer, None] = field(default_factory=OrderedDict, init=False)  # with `more`, by when they kept
    _ids: dict[str, str] = field(default_factory=dict, init=False)
    _tidied_at: float = field(default=-math.inf, init=False)
    _round: deque[Producers] = field(default_factory=deque, init=False)  # every session's that has any, and some without

    def share(self) -> Numbering:
        """Another one for the sessions of one key, with a part of the room: what a key fills is its own alone."""
        return replace(self, most_producers=max(1, self.most_producers // SHARE), most_bytes=self.most_bytes // SHARE)

    def judge(self, session: Name, known: Producers | None, producer: str, n: int, request: Any, t: int) -> bytes | None:
        """Judge a number whose turn has come.

        Args:
            session: its name, for the sentences of errors.
            known: the producers of the session.
            producer: id of this one.
            n: its number.
            request: what makes it the same request.
            t: the session's step count, for `conflict`.

        Returns:
            The kept reply, or None: the request is to be applied, and then kept with `keep`.

        Raises:
            Gap, Stale, Conflict: by the table.
        """
        mine = None if known is None else known.get(producer)
        last = mine.last if mine is not None else 0
        found = mine.find(n) if mine is not None and n <= last else None
        if n > last:
            place = ("last + 1", "") if n == last + 1 else ("beyond last + 1", "")
        elif found is None:
            place = ("at most last", "no longer kept")
        else:
            place = ("at most last", "kept, same request" if found[0] == request else "kept, another request")
        told = f"{session}: producer {producer} sent n={n}"
        match JUDGEMENTS[place]:
            case "again":
                assert found is not None
                return found[1]
            case "conflict":
                raise Conflict(f"{told}, which counted for another request; a repeat is the same request.", field="n", t=t)
            case "stale":
                raise Stale(f"{told} again: it has counted, but its reply is no longer kept; the last is {last}.", last=last)
            case "gap":
                raise Gap(f"{told}, expected {last + 1}.", expected=last + 1)
        return None

    def welcome(self, session: Name, known: Producers | None, producer: str, now: float) -> None:
        """See whether there is room for this producer, if it is a newcomer; changes nothing of the session.

        Raises:
            Full: there is none, and no other producer has been silent for long enough to be forgotten.
        """
        known = known if known is not None else Producers()
        if producer in known:
            return
        if self.count >= self.most_producers and now > self._tidied_at:  # once for all newcomers of a moment
            self._tidied_at = now
            self._tidy(LOOKED_AT, now)
        if len(known) < self.producers and self.count < self.most_producers:
            return
        if known and now - known.quietest()[1].heard_at >= self.producer_s:
            return
        raise Full(
            f"{session}: producer {producer} is new, and there is room for {self.producers} in a session and "
            f"{self.most_producers} in all; one is forgotten after {self.producer_s:g} s of silence."
        )

    def keep(self, known: Producers, producer: str, n: int, request: Any, reply: bytes, ack: int, now: float) -> None:
        """A number that `judge` let pass has counted: a repeat gets this reply; those up to `ack` are dropped."""
        mine = (known.lone if known.id == producer else known.get(producer)) or self._enrol(known, producer, now)
        ack = min(ack, n - 1)
        assert n == mine.last + 1
        if mine.more is not None:
            self.acknowledge(mine, ack)
        if mine.reply is not None and ack < mine.last:
            self._hold(mine, mine.last, mine.request, mine.reply)
        mine.last, mine.request, mine.reply, mine.heard_at = n, request, reply, now
        if len(reply) > ORDINARY_BYTES:
            self._share_last(mine, reply)
        elif mine.more is not None:
            self._hold_to_bounds(mine)

    def keep_all(
        self,
        marks: Sequence[tuple[int, Producer, int, str]],
        requests: Sequence[Any],
        replies: Sequence[bytes],
        bad: Container[int],
    ) -> None:
        """`keep` for many requests of known producers that came alone, which acknowledges all before them.

        Args:
            marks: (place, producer, n, the producer's id) of each.
            requests: by place.
            replies: by place.
            bad: places of those that have not counted.
        """
        for place, mine, n, _ in marks:
            if bad and place in bad:
                continue
            if mine.more is not None:
                self.acknowledge(mine, n - 1)
            reply = replies[place]
            mine.last, mine.request, mine.reply = n, requests[place], reply
            if len(reply) > ORDINARY_BYTES:
                self._share_last(mine, reply)

    def acknowledge(self, mine: Producer, ack: int) -> None:
        """Drop the replies among `more` up to this number."""
        while mine.more is not None and mine.more[0][0] <= ack:
            self._drop(mine)

    def _share_last(self, mine: Producer, reply: bytes) -> None:
        """The last reply is a large one: it comes out of the budget too."""
        mine.reply = None
        self._hold(mine, mine.last, mine.request, reply)
        self._hold_to_bounds(mine)

    def adopt(self, known: Producers) -> None:
        """The producers of a session come back from where they were kept."""
        if not known:
            return
        self._tidy(2)
        self._round.append(known)
        self.count += len(known)
        for mine in known.values():
            if mine.more:
                mine.held_bytes = sum(len(reply) + ENTRY_BYTES for _, _, reply in mine.more)
                self.held_bytes += mine.held_bytes
                self._holders[mine] = None
                self._hold_to_bounds(mine)

    def follow(self, known: Producers, producer: str, n: int, now: float) -> None:
        """A number that has counted is about to count again, in a session that is put together from what was kept.

        It is this producer's next one, whatever is remembered: it may have been forgotten in the meantime, and begun anew.
        """
        mine = known.get(producer)
        if mine is not None and mine.last != n - 1:
            self._release(mine)
            del known[producer]
            mine = None
        if mine is None and len(known) >= self.producers:  # somebody had been silent for long enough
            quietest, silent = known.quietest()
            self._release(silent)
            del known[quietest]
        mine = mine or self._enrol(known, producer, now)
        mine.last, mine.heard_at = n - 1, now

    def forget(self, known: Producers) -> None:
        """A session's name is no longer remembered, and its producers with it."""
        for mine in known.values():
            self._release(mine)
        known.clear()

    def _enrol(self, known: Producers, producer: str, now: float) -> Producer:
        """A newcomer for whom there is room, or room can be made."""
        if not known:
            self._tidy(2)  # so that what is empty goes as fast as it comes
            self._round.append(known)
        elif len(known) >= self.producers or self.count >= self.most_producers:
            quietest, silent = known.quietest()
            if now - silent.heard_at >= self.producer_s:  # else it is the last of some newcomers that found one place
                self._release(silent)
                del known[quietest]
        if len(self._ids) >= IDS:
            self._ids.clear()
        known[self._ids.setdefault(producer, producer)] = mine = Producer()
        self.count += 1
        return mine

    def _tidy(self, most: int, now: float | None = None) -> None:
        """Look at so many producers, session by session in turn, and forget those long silent, given the time.

        A session without producers is dropped, and counts as one.
        """
        for _ in range(min(most, len(self._round))):
            known = self._round.popleft()
            most -= max(1, len(known))
            if now is not None:
                for producer, mine in list(known.items()):
                    if now - mine.heard_at >= self.producer_s:
                        self._release(mine)
                        del known[producer]
            if known:
                self._round.append(known)
            if most <= 0:
                break

    def _release(self, mine: Producer) -> None:
        while mine.more is not None:
            self._drop(mine)
        self.count -= 1

    def _hold(self, mine: Producer, n: int, request: Any, reply: bytes) -> None:
        """Keep a reply out of the budget."""
        if mine.more is None:
            mine.more = deque()
        mine.more.append((n, request, reply))
        size = len(reply) + ENTRY_BYTES
        mine.held_bytes += size
        self.held_bytes += size
        self._holders[mine] = None
        self._holders.move_to_end(mine)

    def _hold_to_bounds(self, mine: Producer) -> None:
        """Drop what is kept beyond the bounds: the producer's own, then those in all."""
        most = self.replies - (mine.reply is not None)
        while mine.more is not None and (len(mine.more) > most or mine.held_bytes > self.reply_bytes):
            self._drop(mine)
        while self.held_bytes > self.most_bytes:
            self._drop(next(iter(self._holders)))

    def _drop(self, mine: Producer) -> None:
        """Drop the oldest of `more`."""
        assert mine.more is not None
        _, _, reply = mine.more.popleft()
        size = len(reply) + ENTRY_BYTES
        mine.held_bytes -= size
        self.held_bytes -= size
        if not mine.more:
            mine.more = None
            del self._holders[mine]

    def check(self, sessions: list[Producers]) -> None:
        """Assert what always holds between calls, of these, the producers of all sessions."""
        producers = [mine for known in sessions for mine in known.values()]
        assert self.count == len(producers)
        assert self.held_bytes == sum(mine.held_bytes for mine in producers) <= self.most_bytes
        assert {id(mine) for mine in self._holders} == {id(mine) for mine in producers if mine.more is not None}
        rounds = [id(known) for known in self._round if known]
        assert sorted(rounds) == sorted(id(known) for known in sessions if known)
        for known in sessions:
            assert len(known) <= self.producers
        for mine in producers:
            numbers = [n for n, _, _ in mine.more or ()] + ([mine.last] if mine.reply is not None else [])
            assert numbers == list(range(numbers[0], mine.last + 1)) if numbers else True
            assert len(numbers) <= self.replies
            assert mine.last > 0
            assert all(0 < n <= mine.last for n in numbers)
            assert mine.held_bytes == sum(len(reply) + ENTRY_BYTES for _, _, reply in mine.more or ()) <= self.reply_bytes
            assert mine.more is None or mine.more
