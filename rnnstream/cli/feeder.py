"""Feeds pieces of input to a session, pipelined, and stops exactly at a token that the model does not have."""

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
        self.fed = 0
        self.last: Prediction | None = None
        self.skipped: Counter[str] = Counter()

    def feed(self, pieces: Sequence[Piece]) -> Iterator[tuple[Token, Prediction]]:
        """Each token that counted, and the prediction after it.

        Raises:
            RnnstreamError: at a piece that cannot be fed, with its place. All pieces before it have counted; none behind
                it has, unless the sentence says so.
        """
        run: list[tuple[Token, Piece]] = []
        for piece in pieces:
            if piece.text in self.skipped:
                self.skipped[piece.text] += 1
                continue
            try:
                run.append((read(piece.text, self._form, self._model), piece))
            except ValueError as problem:
                yield from self._pipeline(run)
                run = []
                if not (self._skip_unknown and isinstance(problem, UnknownToken)):
                    raise self._stop(piece, problem) from None
                self.skipped[piece.text] += 1
        yield from self._pipeline(run)

    def bits(self) -> float | None:
        """Mean surprisal of the tokens so far, in bits a token; None where the model cannot tell."""
        return self._nats / math.log(2) / self.fed if self._surprisal and self.fed else None

    def _pipeline(self, run: list[tuple[Token, Piece]]) -> Iterator[tuple[Token, Prediction]]:
        """Feed tokens that look right; behind one that the worker refuses, none has counted."""
        while run:
            place, tokens = 0, [token for token, _ in run]
            try:
                for prediction in self._session.stream(tokens, want=self._want, surprisal=self._surprisal):
                    yield tokens[place], self._count(prediction)
                    place += 1
                return
            except RnnstreamError as problem:
                piece = run[place][1]
                if not (self._skip_unknown and isinstance(problem, BadToken)):
                    raise self._stop(piece, problem) from None
                rest = run[place + 1 :]
                run = [(token, other) for token, other in rest if other.text != piece.text]
                self.skipped[piece.text] += 1 + len(rest) - len(run)

    def _count(self, prediction: Prediction) -> Prediction:
        self.fed += 1
        self.last = prediction
        if prediction.surprisal is not None:
            self._nats += prediction.surprisal
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
