"""Feeds pieces of input to a session, fast where that is safe, and stops exactly at a token that the model does not have.

In a pipelined stream the tokens behind a refused one may have counted before the refusal is known. So only tokens that the
worker is certain to take are pipelined: ids and rows, which are checked here, and entries of the vocabulary that the
worker has taken before. A `str` that is new goes alone, and is remembered. A text of a million characters thus costs some
hundred round trips more than a pipelined one, and no vocabulary has to be known beforehand.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from rnnstream.cli.tokens import Piece, UnknownToken, read
from rnnstream.client import Session, Token
from rnnstream.errors import BadToken, RequestError, RnnstreamError
from rnnstream.prediction import Prediction


class Feeder:
    """One input on its way into one session.

    Args:
        session: where to.
        model: as `hello` describes it.
        form: one of `tokens.FORMS`.
        source: the input's name, for the sentences of errors.
        want: as in `Session.step`.
        skip_unknown: pass over tokens that the model does not have.

    Attributes:
        fed: how many tokens counted.
        last: the prediction after the last of them.
        skipped: those that were passed over, and how often.
    """

    def __init__(
        self, session: Session, model: dict[str, Any], *, form: str, source: str, want: str | int, skip_unknown: bool
    ) -> None:
        self._session, self._model, self._form, self._source = session, model, form, source
        self._want, self._skip_unknown = want, skip_unknown
        self._surprisal = bool(model["surprisal"])
        self._nats = 0.0
        self._taken: set[str] = set()  # entries of the vocabulary that have been seen to be taken
        self.fed = 0
        self.last: Prediction | None = None
        self.skipped: Counter[str] = Counter()

    def feed(self, pieces: Sequence[Piece]) -> Iterator[tuple[Token, Prediction]]:
        """Each token that counted, and the prediction after it.

        Raises:
            RnnstreamError: at a piece that cannot be fed, with its place. All pieces before it have counted; none behind
                it has, unless the sentence says so.
        """
        run: list[Token] = []  # certain to be taken
        places: list[Piece] = []
        for piece in pieces:
            if piece.text in self.skipped:
                self.skipped[piece.text] += 1
                continue
            try:
                token = read(piece.text, self._form, self._model)
            except ValueError as problem:
                yield from self._pipeline(run, places)
                run, places = [], []
                if not (self._skip_unknown and isinstance(problem, UnknownToken)):
                    raise self._stop(piece, problem) from None
                self.skipped[piece.text] += 1
                continue
            if not isinstance(token, str) or token in self._taken:
                run.append(token)
                places.append(piece)
                continue
            yield from self._pipeline(run, places)
            run, places = [], []
            yield from self._alone(token, piece)
        yield from self._pipeline(run, places)

    def bits(self) -> float | None:
        """Mean surprisal of the tokens so far, in bits a token; None where the model cannot tell."""
        return self._nats / math.log(2) / self.fed if self._surprisal and self.fed else None

    def _alone(self, token: str, piece: Piece) -> Iterator[tuple[Token, Prediction]]:
        try:
            prediction = self._count(self._session.step(token, want=self._want, surprisal=self._surprisal))
        except BadToken as problem:
            if not self._skip_unknown:
                raise self._stop(piece, problem) from None
            self.skipped[piece.text] += 1
            return
        except RnnstreamError as problem:
            raise self._stop(piece, problem) from None
        self._taken.add(token)
        yield token, prediction

    def _pipeline(self, run: list[Token], places: list[Piece]) -> Iterator[tuple[Token, Prediction]]:
        place = 0
        try:
            for prediction in self._session.stream(run, want=self._want, surprisal=self._surprisal):
                yield run[place], self._count(prediction)
                place += 1
        except RnnstreamError as problem:
            raise self._stop(places[place], problem) from None

    def _count(self, prediction: Prediction) -> Prediction:
        self.fed += 1
        self.last = prediction
        if prediction.surprisal is not None:
            self._nats += prediction.surprisal
        if prediction.opened and self.fed > 1:
            raise RnnstreamError(
                f"The worker did not have the session {self._session.name} any more: it opened it anew, and counts from "
                "this token on."
            )
        return prediction

    def _stop(self, piece: Piece, problem: Exception) -> RnnstreamError:
        """The error that ends it, with the place of the piece, and where the session is now."""
        text = f"{self._source}, line {piece.line}, column {piece.column}: {problem}"
        if isinstance(problem, RequestError | ValueError) and self.last is not None:
            with contextlib.suppress(RnnstreamError):  # what `problem` says is enough then
                text += self._whereabouts(int(self._session.info()["t"]))
        return RnnstreamError(text)

    def _whereabouts(self, t: int) -> str:
        assert self.last is not None
        beyond = t - self.last.t
        return f" The session is at t={t}" + (f", {beyond} tokens beyond that place." if beyond > 0 else ".")
