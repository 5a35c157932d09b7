"""What happens to a session when a request's turn has come: judged in order, then done, or refused with nothing changed.

The order: the number (`judge`), existence, the precondition `t`. Everything is asked by row; a name that has none is judged by
what is remembered of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy.typing as npt

from rnnstream.engine import snapshot
from rnnstream.engine.moves import Peek
from rnnstream.engine.producers import Producers
from rnnstream.engine.rows import Rows
from rnnstream.engine.table import Table
from rnnstream.errors import Conflict, Exists, NotFinite, RequestError, UnknownSession
from rnnstream.model.step import StepModel
from rnnstream.names import Name

Array = npt.NDArray[Any]


class Turns(Rows):
    """The operations on sessions, by row.

    Args:
        model: anything with the step-model interface.
        table: of sessions with states of this model.
        explicit_open: a step does not open a name that was never open.
        idle_timeout_s: a session that has not moved for longer expires; None: none does.
    """

    def __init__(self, model: StepModel, table: Table, *, explicit_open: bool, idle_timeout_s: float | None) -> None:
        super().__init__(model, table)
        self.explicit_open = explicit_open
        self.idle_timeout_s = idle_timeout_s
        self.expired_count = 0

    # -- numbering

    def judge(self, session: Name, producer: str, n: int, request: Any, now: float, ack: int = 0) -> bytes | None:
        """Judge a request's number. Comes before everything else.

        Args:
            session: its name, with or without a row.
            producer: id of the producer.
            n: the number.
            request: what makes it the same request.
            now: seconds.
            ack: kept replies below `n` and up to this number are dropped, if this is a repeat.

        Returns:
            The reply that it got the first time, or None: it is to be carried out, and kept with `keep` if it is not refused.

        Raises:
            Gap, Stale, Conflict: by the number.
            Full: there is no room for another producer.
        """
        table = self.table
        row = table.rows.get(session)
        if row is not None:
            known, t = table.producers[row], int(table.t[row])
        else:
            tombstone = table.tombstones.get(session)
            known, t = tombstone.producers if tombstone else None, 0
        numbering = table.numbering_of(session)
        reply = numbering.judge(session, known, producer, n, request, t)
        if reply is None:
            numbering.welcome(session, known, producer, now)
        if known is not None and producer in known:
            known[producer].heard_at = now  # already now: a newcomer judged after it does not displace it before it is kept
            if reply is not None:
                numbering.acknowledge(known[producer], min(ack, n - 1))
        return reply

    def heard(self, row: int, producer: str, now: float) -> None:
        """A request of this producer has come; it is not to be forgotten before its turn."""
        known = self.table.producers[row]
        if known is not None and producer in known:
            known[producer].heard_at = now

    def keep(self, row: int, producer: str, n: int, request: Any, reply: bytes, ack: int, now: float) -> None:
        """A numbered request was carried out: its number has counted; see `Numbering.keep`."""
        numbering = self.table.numbering_of(self.name(row))
        numbering.keep(self.table.producers_of(row), producer, n, request, reply, ack, now)

    def producers(self, session: Name) -> Producers:
        """What is remembered of the session's producers."""
        row = self.table.rows.get(session)
        tombstone = self.table.tombstones.get(session)
        found = self.table.producers[row] if row is not None else tombstone.producers if tombstone else None
        return found if found is not None else Producers()

    # -- existence, and t

    def known(self, session: Name) -> None:
        """Judge existence for a step: it opens a name that was never open, but not one that was closed or has expired.

        Raises:
            UnknownSession: it opens none.
        """
        row = self.table.rows.get(session)
        if (row is None or not self.table.live[row]) and (self.explicit_open or session in self.table.tombstones):
            raise self.unknown(session)

    def admit(self, row: int, t: int | None, now: float) -> bool:
        """Judge a token's turn: existence, then `t`. Opens a new session.

        Returns:
            Whether the session was opened by this.

        Raises:
            UnknownSession: it was closed, has expired, or is not to be opened by a token.
            Conflict: `t` is not its next step; a session never seen would have had step 1.
        """
        live = self.table.live[row]
        if not live:
            self.known(self.name(row))
        self.expect(row, t)
        if not live:
            self.table.open(row, now)
        return not live

    def expect(self, row: int, t: int | None) -> None:
        """Hold a request's precondition: it is to be the session's step t. A session that is not open has had none.

        Raises:
            Conflict: the session's next step has another number.
        """
        if t is None:
            return
        at = int(self.table.t[row]) if self.table.live[row] else 0
        if t != at + 1:
            raise Conflict(f"{self.name(row)}: t is {t}, but its next step is {at + 1}.", field="t", t=at)

    def hold_live(self, row: int) -> None:
        """Judge existence for whatever needs an open session.

        Raises:
            UnknownSession: it is not open.
        """
        if not self.table.live[row]:
            raise self.unknown(self.name(row))

    def name(self, row: int) -> Name:
        """The session's name."""
        name = self.table.names[row]
        assert name is not None
        return name

    def unknown(self, session: Name) -> UnknownSession:
        """The error for a session that is not open: never, closed or expired."""
        tombstone = self.table.tombstones.get(session)
        if tombstone is None:
            told = "is not open, and not among the names closed of late"
            return UnknownSession(f"The session {session} {told}; open or reset opens it.", why="never")
        told = "was closed" if tombstone.why == "closed" else "expired: it had been idle for too long"
        return UnknownSession(f"The session {session} {told}; open or reset starts it anew.", why=tombstone.why)

    def spoiled(self, session: Name, peek: Peek) -> RequestError:
        """The error for a peek that came to a token which would have spoiled the state."""
        return NotFinite(f"{session}: xs[{len(peek.found)}] would make the state NaN or infinite.")

    def not_finite(self, row: int) -> RequestError:
        """The error for a token that would have spoiled the state of its row."""
        return NotFinite(
            f"{self.name(row)}: this token would make the state NaN or infinite; "
            f"the session stays at t={int(self.table.t[row])}."
        )

    # -- the operations beside step

    def open_row(self, row: int, state: bytes | None, now: float, t: int | None = None) -> int:
        """Open a session at a<0>, or from a snapshot.

        Returns:
            Its step count.

        Raises:
            Exists: it is open.
            Conflict: `t` is not 1.
            BadState: not a snapshot of this model.
        """
        if self.table.live[row]:
            raise Exists(f"The session {self.name(row)} is open already, at t={int(self.table.t[row])}.")
        self.expect(row, t)
        self._place(row, state, now)
        return int(self.table.t[row])

    def reset_row(self, row: int, now: float, t: int | None = None) -> None:
        """Put a session to a<0>, t = 0; opens it if it is not open."""
        self.expect(row, t)
        self.table.open(row, now)

    def close_row(self, row: int, t: int | None = None) -> None:
        """Forget a session's state; its name gets a tombstone."""
        self.hold_live(row)
        self.expect(row, t)
        self.table.close(row)

    def fork_row(self, row: int, take: Callable[[Name], int], to: Name, now: float, t: int | None = None) -> int:
        """Copy a session to another name.

        Args:
            row: of the session.
            take: gives the row of the new name.
            to: the new name.
            now: seconds.
            t: precondition of the session.

        Returns:
            The step count of both.

        Raises:
            UnknownSession: it is not open.
            Exists: the new name is.
            Full: there is no room.
        """
        self.hold_live(row)
        self.expect(row, t)
        target = self.table.rows.get(to)
        if target is not None and self.table.live[target]:
            raise Exists(f"{self.name(row)} cannot be copied to {to}: a session of that name is open already.")
        self.table.hold_room(to)
        target = take(to)
        at = int(self.table.t[row])
        self.table.open(target, now, self.table.states[row], at)
        return at

    def snapshot_row(self, row: int) -> bytes:
        """A session's state as bytes; UnknownSession if it is not open."""
        self.hold_live(row)
        return snapshot.encode(self.table.states[row], int(self.table.t[row]), self.model.digest)

    def restore_row(self, row: int, state: bytes, now: float, t: int | None = None) -> int:
        """Put a snapshot into an open session.

        Returns:
            Its step count.

        Raises:
            UnknownSession: it is not open.
            BadState: not a snapshot of this model.
        """
        self.hold_live(row)
        self.expect(row, t)
        self._place(row, state, now)
        return int(self.table.t[row])

    def peek_row(self, row: int, tokens: list[Any], want: str | int, surprisal: bool) -> Peek:
        """A peek from the session's present state, which is copied; `foresee` moves it."""
        self.hold_live(row)
        return Peek(self.table.states[row].copy(), int(self.table.t[row]), tokens, want, surprisal)

    def _place(self, row: int, state: bytes | None, now: float) -> None:
        if state is None:
            self.table.open(row, now)
            return
        model = self.model
        decoded = snapshot.decode(state, dtype=self.table.states.dtype, state_size=model.state_size, digest=model.digest)
        self.table.open(row, now, *decoded)

    def expire_row(self, row: int, now: float) -> bool:
        """Let an open session expire if it has been idle for longer than the timeout; whether it has."""
        if self.idle_timeout_s is None or self.table.moved_at[row] >= now - self.idle_timeout_s:
            return False
        self.table.close(row, "expired")
        self.expired_count += 1
        return True

    def expire(self, now: float, waited_for: Callable[[int], bool] = lambda row: False, most: int | None = None) -> list[Name]:
        """Let the sessions expire that have been idle for longer than the timeout, if there is one; see `Table.expire`."""
        if self.idle_timeout_s is None:
            return []
        expired = self.table.expire(now, self.idle_timeout_s, waited_for, most)
        self.expired_count += len(expired)
        return expired
