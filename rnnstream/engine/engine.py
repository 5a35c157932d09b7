"""The engine: a model and its sessions by name, in process. A worker is this and a socket."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy.typing as npt

from rnnstream.engine.numbering import Numbering
from rnnstream.engine.table import Table
from rnnstream.engine.turns import Turns
from rnnstream.model.blas import one_thread
from rnnstream.model.step import StepModel
from rnnstream.prediction import Prediction

Array = npt.NDArray[Any]
T = TypeVar("T")

MAX_SESSIONS = 1_000_000  # 4 GB at 1,000 numbers a state; a worker for larger ones gets a smaller --max-sessions


class Engine(Turns):
    """A model and its sessions.

    Args:
        model: anything with the step-model interface.
        max_sessions: most sessions at a time.
        explicit_open: a step to a name that was never open is refused; `open` and `reset` open it.
        idle_timeout_s: seconds after which `expire` closes a session that has not moved; None: never.
        numbering: bounds of what is remembered of numbered producers.
        max_rows: most sessions that are open here or waited for, where others are kept elsewhere; None: `max_sessions`.
    """

    def __init__(
        self,
        model: StepModel,
        *,
        max_sessions: int = MAX_SESSIONS,
        explicit_open: bool = False,
        idle_timeout_s: float | None = None,
        numbering: Numbering | None = None,
        max_rows: int | None = None,
    ) -> None:
        numbering = numbering or Numbering()
        table = Table(model.initial_state(), max_sessions=max_sessions, numbering=numbering, max_rows=max_rows)
        super().__init__(model, table, explicit_open=explicit_open, idle_timeout_s=idle_timeout_s)

    def step(
        self,
        tokens: Iterable[tuple[str, Any]],
        *,
        want: str | int = "argmax",
        surprisal: bool = False,
        now: float = 0.0,
    ) -> list[Prediction]:
        """Move sessions by one token for each pair; tokens of the same session are applied in their order.

        Args:
            tokens: (session, x) pairs; a session that is not open is opened.
            want: what the predictions hold, as in the wire protocol.
            surprisal: also score each token.
            now: seconds, for `info`.

        Returns:
            One prediction for each pair, in the same order.

        Raises:
            BadToken, BadRequest, UnknownSession, Full: one of the pairs is wrong; no session has moved.
            NotFinite: a token would have made its session's state NaN or infinite. That session, and its later tokens of
                this call, were left out; the others have moved.
        """
        table, pairs = self.table, list(tokens)
        if len(pairs) == 1 and self.moves_one and (want == "argmax" or want == "none") and not surprisal:
            found_one = self._move_one(*pairs[0], want, now)
            if found_one is not None:
                return [found_one]
        self.check_want(want, surprisal)
        names, values = zip(*pairs, strict=True) if pairs else ((), ())
        xs = self.model.input.tokens(values)
        rows: list[Any] = list(map(table.rows.get, names))
        # The usual case: all are open, for which nothing need be looked at where every name that has a row is.
        if None not in rows and (table.open_count == len(table.rows) or all(map(table.live.__getitem__, rows))):
            return self._predicted(rows, xs, want, surprisal, now, opens=False)
        rows = []
        try:
            for name in names:
                self.known(name)
                rows.append(table.take(name))
            return self._predicted(rows, xs, want, surprisal, now, opens=True)
        finally:
            for row in rows:
                table.free(row)

    def _predicted(
        self, rows: list[int], xs: list[Any], want: str | int, surprisal: bool, now: float, *, opens: bool
    ) -> list[Prediction]:
        """A token for each of these rows, of which some are to be opened if `opens` is true.

        Raises:
            NotFinite: see `step`.
        """
        with one_thread():
            if 0 < len(rows) == len(set(rows)):  # one wave, the usual case
                found = self._move(rows, xs, want, surprisal, now, opens=opens)
            else:
                found = self._move_often(rows, xs, want, surprisal, now, opens=opens)
        predictions = [prediction for prediction in found if prediction is not None]
        if len(predictions) < len(rows):
            raise self.not_finite(next(row for row, prediction in zip(rows, found, strict=True) if prediction is None))
        return predictions

    def _move_one(self, name: str, x: Any, want: str | int, now: float) -> Prediction | None:
        """A token alone; None where there is more to it: its session is not open, or its state would not be finite."""
        table = self.table
        row = table.rows.get(name)
        if row is None or not table.live[row]:
            return None
        [token] = self.model.input.tokens((x,))
        with one_thread():
            t = table.t.item(row) + 1
            if want == "none":
                state = self.compute_one(row, token)
                if state is None:
                    return None
                prediction = Prediction(t)
            else:
                found = self.predict_one(row, token)
                if found is None:
                    return None
                state, y, p = found
                vocabulary = self.model.output.vocabulary
                prediction = Prediction(t, y, p, vocabulary[y] if vocabulary else None)
        self.commit_one(row, state, t, now)
        return prediction

    def _move_often(
        self, rows: list[int], tokens: list[Any], want: str | int, surprisal: bool, now: float, *, opens: bool
    ) -> list[Prediction | None]:
        """Rows that come several times: in waves. None where the state would not be finite, and for that row from there on."""
        found: list[Prediction | None] = [None] * len(rows)
        stopped: set[int] = set()
        for wave in _waves(rows):
            places = [place for place in wave if rows[place] not in stopped]
            if not places:
                break
            moved = self._move([rows[p] for p in places], [tokens[p] for p in places], want, surprisal, now, opens=opens)
            for place, prediction in zip(places, moved, strict=True):
                found[place] = prediction
                if prediction is None:
                    stopped.add(rows[place])
        return found

    def _move(
        self, rows: list[int], tokens: list[Any], want: str | int, surprisal: bool, now: float, *, opens: bool
    ) -> Sequence[Prediction | None]:
        """One wave; None where the state would not be finite."""
        opened: list[int] = []  # places
        found: Sequence[Prediction | None] = [None] * len(rows)
        try:
            if opens:
                for place, row in enumerate(rows):
                    if self.admit(row, None, now):
                        opened.append(place)
            moves = self.compute(rows, tokens)
            predictions = self.predictions(moves, [want] * len(rows))
            if surprisal:
                for prediction, score in zip(predictions, self.scores(rows, tokens), strict=True):
                    prediction.surprisal = score
            for place in opened:
                predictions[place].opened = True
            self.commit(moves, now)
            good = moves.good
            found = predictions if good is None else [p if ok else None for p, ok in zip(predictions, good, strict=True)]
        finally:
            for place in opened:
                if found[place] is None:
                    self.table.withdraw(rows[place])
        return found

    def open(self, session: str, state: bytes | None = None, *, now: float = 0.0) -> int:
        """Open a session at a<0>, or from a snapshot; its step count.

        Raises:
            Exists: it is open.
            BadState: not a snapshot of this model.
            Full: there is no room.
        """
        return self._with_row(session, lambda row: self.open_row(row, state, now))

    def reset(self, session: str, *, now: float = 0.0) -> None:
        """Put a session to a<0>, t = 0; it is opened if it is not open.

        Raises:
            Full: there is no room to open it.
        """
        self._with_row(session, lambda row: self.reset_row(row, now))

    def close(self, session: str) -> None:
        """Forget a session's state.

        Raises:
            UnknownSession: it is not open.
        """
        row = self._row(session)
        self.close_row(row)
        self.table.free(row)

    def fork(self, session: str, to: str, *, now: float = 0.0) -> int:
        """Copy a session to a name that is not open; the step count of both.

        Raises:
            UnknownSession: the session is not open.
            Exists: a session of the new name is.
            Full: there is no room.
        """
        return self.fork_row(self._row(session), self.table.take, to, now)

    def peek(self, session: str, xs: Iterable[Any], *, want: str | int = "argmax", surprisal: bool = False) -> list[Prediction]:
        """Predictions as if these tokens came next; the session does not move.

        Raises:
            BadToken, BadRequest: one of them is no token of this model, or the model cannot give what is wanted.
            UnknownSession: the session is not open.
            NotFinite: one of them would make the state NaN or infinite.
        """
        self.check_want(want, surprisal)
        tokens = [self.model.input.token(x) for x in xs]
        peek = self.peek_row(self._row(session), tokens, want, surprisal)
        with one_thread():
            while not peek.done:
                self.foresee([peek])
        if peek.spoiled:
            raise self.spoiled(session, peek)
        return peek.found

    def snapshot(self, session: str) -> bytes:
        """The session's state and step count as bytes, for `open` or `restore`, here or in another engine of the same model.

        Raises:
            UnknownSession: it is not open.
        """
        return self.snapshot_row(self._row(session))

    def restore(self, session: str, state: bytes, *, now: float = 0.0) -> int:
        """Put a snapshot into an open session; its step count.

        Raises:
            UnknownSession: it is not open.
            BadState: the bytes are damaged, or of another model; nothing was changed.
        """
        return self.restore_row(self._row(session), state, now)

    def info(self, session: str, *, now: float = 0.0) -> dict[str, Any]:
        """t, age_s and idle_s (seconds), producers, and norm: the Euclidean norm of the state.

        Raises:
            UnknownSession: it is not open.
        """
        return self.row_info(self._row(session), now)

    def state(self, session: str) -> Array:  # -> [S]
        """A copy of the session's a<t>.

        Raises:
            UnknownSession: it is not open.
        """
        return self.table.states[self._row(session)].copy()

    def sessions(self) -> list[str]:
        """The names of all open sessions, in no given order."""
        return [str(name) for name, row in self.table.rows.items() if self.table.live[row]]

    def _with_row(self, session: str, do: Callable[[int], T]) -> T:
        """Do something with a row of this name, which is given back where the name is not open afterwards."""
        row = self.table.take(session)
        try:
            return do(row)
        finally:
            self.table.free(row)

    def _row(self, session: str) -> int:
        row = self.table.rows.get(session)
        if row is None or not self.table.live[row]:
            raise self.unknown(session)
        return row


def _waves(rows: list[int]) -> list[list[int]]:
    """Places of `rows` in waves: in each, a row at most once, and every row's places in their order."""
    waves: list[list[int]] = []
    seen: dict[int, int] = {}
    for place, row in enumerate(rows):
        wave = seen.get(row, 0)
        seen[row] = wave + 1
        if wave == len(waves):
            waves.append([])
        waves[wave].append(place)
    return waves
