"""The straight way of an ordinary token that is alone: from its body to its reply, without a wave."""

from __future__ import annotations

from typing import Any

from rnnstream.engine.engine import Engine
from rnnstream.wire import replies as wire
from rnnstream.wire.ordinary import PLAIN, Parts, X


class Alone:
    """Answers tokens that are alone.

    It does what `Intake`, `Runner` and the core do with a wave of one, with a quarter of their steps: in a processor that has
    just done something else, each of them takes three times as long as among its like.

    Args:
        engine: the sessions, which are nobody's; it moves one row at a time.
        parts: of bodies that were met.
        labels: the last bytes of ordinary replies, by id; None without a vocabulary.
    """

    def __init__(self, engine: Engine, parts: Parts, labels: list[bytes] | None) -> None:
        self._engine, self._table, self._parts, self._labels = engine, engine.table, parts, labels

    def answer(self, body: bytes, now: float) -> bytes | None:
        """The reply to a token of an open session; nothing waits. Counted by `Stats.alone` once it is sent.

        None, with nothing done, where there is more to it.
        """
        parts, table, engine, producer, id = self._parts, self._table, self._engine, None, None
        head, _, tail = body.rpartition(X)
        session: Any = parts.sessions.get(head)
        x: Any = parts.ids.get(tail)
        met = session is not None and x is not None
        try:
            if not met:
                session, x, producer, n, id = parts.decode(body)
                if x is None:
                    return None
            row = table.rows[session]
            if producer is not None:
                known = table.producers[row]
                mine: Any = known.lone if known.id == producer else known[producer]  # type: ignore[union-attr, index]
                if n != mine.last + 1:
                    return None
            t = table.t.item(row) + 1
            found = engine.predict_one(row, x)
        except Exception:  # on the way of all others it is found again, and told
            return None
        if found is None or t > wire.STEP_T:
            return None
        state, y, p = found
        reply = wire.step_reply(session.encode(), t, y, p, self._labels)
        table.states[row], table.t[row], table.moved_at[row] = state, t, now
        if producer is not None:
            mine.heard_at = now
            table.numbering.keep_all(((0, mine, n, producer),), (x,), (reply,), ())
        if not met and body[0] == PLAIN:
            parts.remember(body, session, x, producer)
        return reply if id is None else wire.with_id(reply, id)
