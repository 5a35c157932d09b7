"""A random walk over numbered requests, against the rules written plainly."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from rnnstream.engine.numbering import ENTRY_BYTES, ORDINARY_BYTES
from rnnstream.errors import RequestError

from .counting import Counting

BOUNDS: dict[str, Any] = {
    "replies": 4,
    "reply_bytes": 2 * ORDINARY_BYTES,
    "producers": 2,
    "producer_s": 20,
    "most_bytes": 4 * ORDINARY_BYTES,
}


@dataclass
class Sender:
    """A producer in a session. `kept`: number, request, reply; the oldest first."""

    last: int = 0
    heard_at: float = 0.0
    kept: list[tuple[int, str, bytes]] = field(default_factory=list)

    def shared(self) -> list[tuple[int, str, bytes]]:
        """The replies that are not part of the producer: all but an ordinary last one."""
        return [entry for entry in self.kept if entry[0] != self.last or len(entry[2]) > ORDINARY_BYTES]

    def size(self) -> int:
        return sum(len(reply) + ENTRY_BYTES for _, _, reply in self.shared())


class Plain:
    """Numbering, slowly: all lists, nothing counted along."""

    def __init__(self, most_producers: int) -> None:
        self.most_producers = most_producers
        self.sessions: dict[str, dict[str, Sender]] = {}
        self.lately: list[Sender] = []  # by when they last put a reply into the shared budget
        self.seen: Counter[str] = Counter()

    def senders(self) -> list[Sender]:
        return [sender for session in self.sessions.values() for sender in session.values()]

    def turn(self, session: str, producer: str, n: int, request: str, reply: bytes, ack: int, now: float, counts: bool) -> Any:
        """The kept reply, the code of an error, or None."""
        known = self.sessions.setdefault(session, {})
        mine = known.get(producer)
        last = mine.last if mine else 0
        if n > last + 1:
            return "gap"
        if n <= last:
            assert mine is not None
            for number, first, kept in mine.kept:
                if number == n:
                    if first != request:
                        return "conflict"
                    mine.heard_at = now
                    return kept
            return "stale"
        if mine is None and not self.room(known, now):
            return "full"
        if counts:
            self.keep(known, producer, n, request, reply, ack, now)
        return None

    def crowded(self, known: dict[str, Sender]) -> bool:
        return len(known) == BOUNDS["producers"] or len(self.senders()) == self.most_producers

    def room(self, known: dict[str, Sender], now: float) -> bool:
        if len(self.senders()) == self.most_producers:
            for session in self.sessions.values():
                for producer, sender in list(session.items()):
                    if now - sender.heard_at >= BOUNDS["producer_s"]:
                        del session[producer]
                        self.seen["tidied"] += 1
        return not self.crowded(known) or any(now - sender.heard_at >= BOUNDS["producer_s"] for sender in known.values())

    def keep(self, known: dict[str, Sender], producer: str, n: int, request: str, reply: bytes, ack: int, now: float) -> None:
        if producer not in known and self.crowded(known):
            del known[min(known, key=lambda producer: known[producer].heard_at)]
            self.seen["displaced"] += 1
        mine = known.setdefault(producer, Sender())
        before = mine.kept[-1:] if mine.kept and mine.kept[-1] not in mine.shared() else []
        mine.kept = [entry for entry in mine.kept if entry[0] > ack]
        mine.last, mine.heard_at = n, now  # so that the last reply but one is shared now
        if any(entry in mine.kept for entry in before):
            self.share(mine)
        mine.kept.append((n, request, reply))
        if len(reply) > ORDINARY_BYTES:
            self.share(mine)
        self.hold_to_bounds(mine)

    def share(self, mine: Sender) -> None:
        """This producer has put a reply into the shared budget."""
        self.lately = [sender for sender in self.lately if sender is not mine] + [mine]

    def hold_to_bounds(self, mine: Sender) -> None:
        while mine.shared() and (len(mine.kept) > BOUNDS["replies"] or mine.size() > BOUNDS["reply_bytes"]):
            mine.kept.remove(mine.shared()[0])
            self.seen["own bound"] += 1
        while sum(sender.size() for sender in self.senders()) > BOUNDS["most_bytes"]:
            there = self.senders()
            first = next(sender for sender in self.lately if sender.shared() and any(sender is one for one in there))
            first.kept.remove(first.shared()[0])
            self.seen["shared bound"] += 1

    def acknowledge(self, mine: Sender, ack: int) -> None:
        for entry in mine.shared():
            if entry[0] <= ack:
                mine.kept.remove(entry)


@pytest.mark.parametrize(("most_producers", "rare"), [(9, "displaced"), (99, "tidied")])
@pytest.mark.parametrize("seed", range(2))
def test_a_random_walk_follows_the_plain_rules(seed: int, most_producers: int, rare: str) -> None:
    rng = np.random.default_rng(seed)
    counting, plain = Counting(**BOUNDS, most_producers=most_producers), Plain(most_producers)
    now = 0.0
    for _ in range(3000):
        now += float(rng.choice([0, 0.5, 1, 3], p=[0.5, 0.3, 0.17, 0.03]))
        session, producer = f"s{rng.integers(6)}", f"p{rng.choice(4, p=[0.55, 0.35, 0.05, 0.05])}"
        mine = plain.sessions.get(session, {}).get(producer)
        last = mine.last if mine else 0
        kind = rng.random()
        if kind < 0.01:
            counting.forget(session)
            plain.sessions.pop(session, None)
        elif kind < 0.03 and mine:
            ack = int(rng.integers(last + 2))
            counting.numbering.acknowledge(counting.sessions[session][producer], ack)
            plain.acknowledge(mine, ack)
        else:
            n = last + 1 if kind < 0.7 else max(1, last + int(rng.integers(-5, 4)))
            request = f"{session} {producer} {n}" + "?" * int(rng.random() < 0.1)
            size = int(rng.choice([rng.integers(9), ORDINARY_BYTES - rng.integers(2), ORDINARY_BYTES + 1], p=[0.8, 0.1, 0.1]))
            reply = rng.bytes(size)
            ack = int(max(0, n - rng.choice([0, 1, 2, 9], p=[0.05, 0.15, 0.3, 0.5])))
            counts = rng.random() < 0.95
            expected = plain.turn(session, producer, n, request, reply, ack, now, counts)
            try:
                found: Any = counting.turn(session, producer, n, request=request, reply=reply, ack=ack, now=now, counts=counts)
            except RequestError as error:
                found = error.code
            assert found == expected
            plain.seen[expected if isinstance(expected, str) else "again" if expected is not None else "applied"] += 1
        counting.check()
        assert {(s, p) for s, known in counting.sessions.items() for p in known} == {
            (s, p) for s, known in plain.sessions.items() for p in known
        }
        for s, known in plain.sessions.items():
            for p, sender in known.items():
                assert counting.sessions[s][p].last == sender.last
                assert list(counting.kept(s, p).items()) == [(n, reply) for n, _, reply in sender.kept]
    everything = {"applied", "again", "conflict", "stale", "gap", "full", "tidied", "displaced", "own bound", "shared bound"}
    assert {word for word in plain.seen if plain.seen[word] >= 20} | {rare} == everything, plain.seen
