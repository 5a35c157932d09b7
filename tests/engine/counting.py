"""Numbered requests as a worker has them: judged, welcomed, carried out, kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rnnstream.engine.engine import Engine
from rnnstream.engine.numbering import Numbering
from rnnstream.engine.producers import Producers
from rnnstream.model.blas import one_thread


class Counting:
    """A `Numbering` and its sessions; each turn is judged and, if it counts, kept at once."""

    def __init__(self, **bounds: Any) -> None:
        self.numbering = Numbering(**bounds)
        self.sessions: dict[str, Producers] = {}

    def turn(
        self,
        session: str,
        producer: str,
        n: int,
        *,
        request: Any = "step",
        reply: bytes = b"",
        ack: int = 0,
        now: float = 0.0,
        counts: bool = True,
    ) -> bytes | None:
        """One request's turn; the kept reply, or None where it is applied. `counts` false: it is refused for another reason."""
        known = self.sessions.setdefault(session, Producers())
        found = self.numbering.judge(session, known, producer, n, request, 7)
        if found is None:
            self.numbering.welcome(session, known, producer, now)
            if counts:
                self.numbering.keep(known, producer, n, request, reply, ack, now)
        else:
            known[producer].heard_at = now
        self.check()
        return found

    def forget(self, session: str) -> None:
        self.numbering.forget(self.sessions.pop(session, Producers()))
        self.check()

    def kept(self, session: str, producer: str) -> dict[int, bytes]:
        """The replies that a repeat would get, by number."""
        mine = self.sessions[session][producer]
        found = {n: mine.find(n) for n in range(1, mine.last + 1)}
        return {n: entry[1] for n, entry in found.items() if entry is not None}

    def check(self) -> None:
        self.numbering.check(list(self.sessions.values()))


def numbered(
    engine: Engine,
    session: str,
    producer: str,
    n: int,
    do: Callable[[int], object],
    *,
    request: Any = "step",
    reply: bytes = b"",
    ack: int = 0,
    now: float = 0.0,
    waits: bool = True,
) -> bytes | None:
    """One numbered request's turn in an engine; the kept reply, or None if it was carried out: `do` is given the row.

    `waits`: the name has its row already when the number is judged.
    """
    row = engine.table.take(session) if waits else -1
    try:
        found = engine.judge(session, producer, n, request, now)
        if found is None:
            row = engine.table.take(session)
            do(row)
            engine.keep(row, producer, n, request, reply, ack, now)
    finally:
        if row >= 0:
            engine.table.free(row)
    return found


def step_row(engine: Engine, row: int, x: int, now: float, t: int | None = None) -> None:
    """One token of one row, as a worker does it."""
    opened = engine.admit(row, t, now)
    with one_thread():
        moves = engine.compute([row], [x])
    if moves.good is not None:
        if opened:
            engine.table.withdraw(row)
        raise engine.not_finite(row)
    engine.commit(moves, now)
