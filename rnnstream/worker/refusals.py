"""Requests that are refused at the way in, quickly where it is done often."""

from __future__ import annotations

from typing import Any

from rnnstream.errors import Busy, RequestError
from rnnstream.wire.limits import Limits
from rnnstream.wire.requests import readable
from rnnstream.worker.answers import Answers
from rnnstream.worker.order import Body

RETRY_MS = 50  # what `busy` asks for: longer than a full queue takes


def busy(why: str, retry_ms: int = RETRY_MS) -> Busy:
    """The error for something that there is too much of at present."""
    return Busy(f"{why}; ask again in {retry_ms} ms.", retry_after_ms=retry_ms)


class Refusals:
    """Answers requests with errors.

    Args:
        answers: what is said.
        limits: what is accepted.
    """

    def __init__(self, answers: Answers, limits: Limits) -> None:
        self._answers = answers
        self.session_busy = busy(f"{limits.waiting} requests of a session may wait, and with this body's there could be more")
        self._said: dict[int, bytes] = {}  # by row: that its session is busy

    def begin(self) -> None:
        """New bodies are taken in: rows may be those of other sessions."""
        self._said.clear()

    def refuse(self, body: Body, place: int, item: Any, error: RequestError) -> None:
        """Answer a request of a body with an error."""
        body.answer(place, self._answers.refused(error, readable(item)))

    def session(self, body: Body, place: int, item: dict[Any, Any], row: int) -> None:
        """Refuse a step of a session that is busy, without a closer look: it is done often to whoever floods."""
        if "id" in item:
            self.refuse(body, place, item, self.session_busy)
        elif row in self._said:
            self._answers.stats.errors["busy"] += 1
            body.answer(place, self._said[row])
        else:
            self._said[row] = self._answers.refused(self.session_busy, readable(item))
            body.answer(place, self._said[row])
