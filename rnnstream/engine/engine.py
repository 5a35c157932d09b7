"""The engine: a model and its sessions by name, in process. A worker is this and a socket."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy.typing as npt

from rnnstream.engine.rows import Rows
from rnnstream.model.blas import one_thread
from rnnstream.model.step import StepModel
from rnnstream.prediction import Prediction

Array = npt.NDArray[Any]

MAX_SESSIONS = 1_000_000  # 4 GB at 1,000 numbers a state; a worker for larger ones gets a smaller --max-sessions


class Engine(Rows):
    """A model and its sessions.

    Args:
        model: anything with the step-model interface.
        max_sessions: most sessions at a time.
    """

    def __init__(self, model: StepModel, *, max_sessions: int = MAX_SESSIONS) -> None:
        super().__init__(model, max_sessions=max_sessions)

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
        self.check_want(want, surprisal)
        pairs = [(name, self.model.input.token(x)) for name, x in tokens]
        rows: list[int] = []
        predictions: list[Prediction | None] = [None] * len(pairs)
        stopped: set[int] = set()
        try:
            for name, _ in pairs:
                rows.append(self.table.take(name))
                self.known(rows[-1])
            with one_thread():
                for wave in _waves(rows):
                    places = [place for place in wave if rows[place] not in stopped]
                    if not places:
                        break
                    found = self._move([rows[p] for p in places], [pairs[p][1] for p in places], want, surprisal, now)
                    for place, prediction in zip(places, found, strict=True):
                        predictions[place] = prediction
                        if prediction is None:
                            stopped.add(rows[place])
            if stopped:
                raise self.not_finite(min(stopped))
        finally:
            for row in rows:
                self.table.free(row)
        return [prediction for prediction in predictions if prediction is not None]

    def _move(
        self, rows: list[int], tokens: list[Any], want: str | int, surprisal: bool, now: float
    ) -> list[Prediction | None]:
        """One wave; None where the state would not be finite."""
        opened = [self.admit(row, None, now) for row in rows]
        found: list[Prediction | None] = [None] * len(rows)
        try:
            moves = self.compute(rows, tokens)
            predictions = self.predictions(moves, [want] * len(rows))
            scores = self.scores(rows, tokens) if surprisal else [None] * len(rows)
            for i, prediction in enumerate(predictions):
                prediction.opened, prediction.surprisal = opened[i], scores[i]
                if moves.good is None or moves.good[i]:
                    found[i] = prediction
            self.commit(moves, now)
        finally:
            for row, was_opened, moved in zip(rows, opened, found, strict=True):
                if was_opened and moved is None:
                    self.table.withdraw(row)
        return found

    def reset(self, session: str, *, now: float = 0.0) -> None:
        """Put a session to a<0>, t = 0; it is opened if it is not open.

        Raises:
            Full: there is no room to open it.
        """
        self.table.open(self.table.take(session), now)

    def close(self, session: str) -> None:
        """Forget a session's state.

        Raises:
            UnknownSession: it is not open.
        """
        row = self._row(session)
        self.table.close(row)
        self.table.free(row)

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
        return [name for name, row in self.table.rows.items() if self.table.live[row]]

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
