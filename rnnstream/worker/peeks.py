"""Peeks under way: each takes a token a wave, all of them in one batch, so that a long one holds nobody up."""

from __future__ import annotations

from rnnstream.engine.engine import Engine
from rnnstream.engine.moves import Peek
from rnnstream.errors import RequestError
from rnnstream.wire.requests import Request
from rnnstream.worker.answers import Answers, whose, with_echo
from rnnstream.worker.order import Body
from rnnstream.worker.refusals import busy

MOST_PEEKS = 64  # at a time, each with a state of its own; a wave takes so many rows more
OWNED_PEEKS = 16  # of a key, so that one alone does not take all the places


class Peeks:
    """What is being foreseen, and where the answers go.

    Args:
        engine: the sessions.
        answers: what is said.
    """

    def __init__(self, engine: Engine, answers: Answers) -> None:
        self._engine, self._answers = engine, answers
        self.under_way: list[tuple[Peek, Request, Body, int]] = []

    def __len__(self) -> int:
        return len(self.under_way)

    def add(self, row: int, request: Request, body: Body, place: int) -> None:
        """Begin a peek whose turn has come.

        Raises:
            Busy: too many are under way.
            UnknownSession: there is nothing to peek at.
        """
        if len(self) >= MOST_PEEKS:
            raise busy("Too many peeks are under way" if body.owner else f"{MOST_PEEKS} peeks are under way")
        if body.owner and sum(other.owner == body.owner for *_, other, _ in self.under_way) >= OWNED_PEEKS:
            raise busy(f"{OWNED_PEEKS} peeks of this key are under way")
        peek = self._engine.peek_row(row, request.xs, request.want, request.surprisal)
        self.under_way.append((peek, request, body, place))

    def run(self) -> None:
        """The next token of each; those that are done are answered."""
        under_way, self.under_way = self.under_way, []
        try:
            self._engine.foresee([peek for peek, *_ in under_way])
        except Exception:
            for _, request, body, place in under_way:
                body.answer(place, self._answers.internal(whose(request)))
            return
        for peek, request, body, place in under_way:
            if not peek.done:
                self.under_way.append((peek, request, body, place))
                continue
            try:
                body.answer(place, with_echo(self._answers.peek(request.session, peek), request))
            except RequestError as error:
                body.answer(place, self._answers.refused(error, whose(request)))

    def refuse(self, error: RequestError) -> None:
        """Nothing of what is under way may be told."""
        for _, request, body, place in self.under_way:
            body.answer(place, self._answers.refused(error, whose(request)))
        self.under_way = []

    def check(self) -> None:
        """Assert what always holds between turns."""
        assert len(self) <= MOST_PEEKS
        assert not any(peek.done for peek, *_ in self.under_way)
