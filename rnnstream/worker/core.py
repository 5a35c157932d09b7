"""The worker's core: request bodies in, reply bodies out. No socket, no clock.

The way of a token: `handle` -> `Intake.take` (decoded, checked, put into a wave) -> `_run` (one batch through the engine) ->
replies.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Sequence
from typing import Any

from rnnstream.engine.engine import Engine
from rnnstream.engine.rows import Moves
from rnnstream.errors import RequestError
from rnnstream.model.outcomes import most_likely
from rnnstream.prediction import Prediction
from rnnstream.wire import replies as wire
from rnnstream.wire.limits import Limits
from rnnstream.wire.requests import Request
from rnnstream.worker.answers import Answers, echo
from rnnstream.worker.intake import Intake
from rnnstream.worker.queue import Address, Body, Wave

log = logging.getLogger("rnnstream.worker")

Step = tuple[int, Request, bool, Body, int]  # row, request, whether it opened the session, body, place in the body


class Core:
    """Turns request bodies into reply bodies.

    Args:
        engine: the sessions.
        worker: id of the worker, for `hello` and `ping`.
        version: of the package, for `hello`.
        limits: what is accepted.
    """

    def __init__(self, engine: Engine, *, worker: str, version: str, limits: Limits) -> None:
        self.engine = engine
        self._answers = Answers(engine, worker=worker, version=version, limits=limits)
        self._intake = Intake(engine, self._answers, limits)
        vocabulary = engine.model.output.vocabulary
        self._labels = [wire.step_label(label) for label in vocabulary] if vocabulary else None

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return self._intake.count

    @property
    def full(self) -> bool:
        """Whether so much waits that nothing more should be read."""
        return self._intake.full

    def handle(self, addresses: Sequence[Address], bodies: Sequence[Any], now: float) -> list[tuple[Address, bytes]]:
        """Take in request bodies, run one wave, and hand out what is answered.

        Args:
            addresses: where each body came from.
            bodies: bytes, or anything with the buffer interface.
            now: seconds, monotonic.

        Returns:
            (address, body) pairs, to be sent in this order. While `waiting` is not 0 call again, with whatever came meanwhile.
        """
        self._answers.rested()
        self._intake.take(addresses, bodies)
        wave = self._intake.next_wave()
        out = self._run(wave, now) if wave else []
        if self._intake.order.held:
            out += [(body.address, body.joined()) for body in self._intake.order.finished()]
        return out

    def _run(self, wave: Wave, now: float) -> list[tuple[Address, bytes]]:
        """Run the requests of a wave, the tokens as one batch, the others one by one; the replies to tokens that came alone."""
        steps: list[Step] = []
        for row, request, body, place in wave.others:
            try:
                if request.op == "step":
                    steps.append((row, request, self.engine.admit(row, request.t, now), body, place))
                else:
                    body.answer(place, self._answers.encode(self._answers.change(row, request, now), request))
            except RequestError as error:
                body.answer(place, self._answers.error(error, request))
            except Exception:
                body.answer(place, self._answers.internal({"session": request.session} | echo(request)))
        rows = [*wave.rows, *wave.body_rows]
        try:
            replies, answers = self._step(rows, [*wave.xs, *wave.body_xs], steps, now) if rows or steps else ([], [])
        except Exception:
            replies, answers = self._failed(rows, steps)
        for (_, _, _, body, place), answer in zip(steps, answers, strict=True):
            body.answer(place, answer)
        self._intake.done(wave)
        return self._deliver(wave, replies)

    def _step(self, plain: list[int], xs: list[Any], steps: list[Step], now: float) -> tuple[list[bytes], list[bytes]]:
        """One token for every row: replies to the ordinary ones, and to `steps`. Nothing has changed until all are made."""
        engine = self.engine
        rows = [*plain, *(row for row, *_ in steps)]
        moves = engine.compute(rows, [*xs, *(request.x for _, request, *_ in steps)])
        replies = self._plain_replies(moves, plain) if plain else []
        answers = [self._answers.step(*pair) for pair in self._predicted(moves, len(plain), steps)] if steps else []
        if moves.good is not None:
            for place in (~moves.good).nonzero()[0].tolist():
                error = engine.not_finite(rows[place])
                if place < len(plain):
                    replies[place] = wire.encode(wire.error_map(error, session=engine.table.names[rows[place]]))
                else:
                    row, request, opened, *_ = steps[place - len(plain)]
                    answers[place - len(plain)] = self._answers.error(error, request)
                    if opened:
                        engine.table.withdraw(row)
        engine.commit(moves, now)
        return replies, answers

    def _plain_replies(self, moves: Moves, rows: list[int]) -> list[bytes]:
        """The ordinary replies to the first tokens of a batch."""
        model = self.engine.model
        ids: list[int] = []
        ps: list[float] = []
        for part in self.engine.parts(len(rows)):
            some_ids, some_ps = most_likely(model.head(moves.features[part]))
            ids += some_ids.tolist()
            ps += some_ps.tolist()
        ts, heads = moves.ts[: len(rows)].tolist(), self._intake.heads
        try:
            return wire.step_replies([heads[row] for row in rows], ts, ids, ps, self._labels)
        except struct.error:  # a t beyond 32 bits
            names, vocabulary = self.engine.table.names, model.output.vocabulary
            return [
                wire.encode({"session": names[row], "t": t, "y": y, "p": p} | ({"label": vocabulary[y]} if vocabulary else {}))
                for row, t, y, p in zip(rows, ts, ids, ps, strict=True)
            ]

    def _predicted(self, moves: Moves, plain: int, steps: list[Step]) -> list[tuple[Request, Prediction]]:
        """The predictions for the steps behind the plain ones, with their requests."""
        engine, requests = self.engine, [request for _, request, *_ in steps]
        predictions = engine.predictions(moves.behind(plain), [request.want for request in requests])
        scored = [place for place, request in enumerate(requests) if request.surprisal]
        if scored:
            scores = engine.scores([steps[place][0] for place in scored], [requests[place].x for place in scored])
            for place, score in zip(scored, scores, strict=True):
                predictions[place].surprisal = score
        for prediction, (_, _, opened, *_) in zip(predictions, steps, strict=True):
            prediction.opened = opened
        return list(zip(requests, predictions, strict=True))

    def _failed(self, rows: list[int], steps: list[Step]) -> tuple[list[bytes], list[bytes]]:
        """A bug in a step, the exception being handled: none of the wave's tokens has counted, and each is told so."""
        log.exception("a wave of %d tokens failed", len(rows) + len(steps))
        table, internal = self.engine.table, self._answers.internal
        for row, _, opened, *_ in steps:
            if opened and table.live[row]:
                table.withdraw(row)
        return (
            [internal({"session": table.names[row]}, logged=True) for row in rows],
            [internal({"session": request.session} | echo(request), logged=True) for _, request, *_ in steps],
        )

    def _deliver(self, wave: Wave, replies: list[bytes]) -> list[tuple[Address, bytes]]:
        """Put the replies of bodies in their places, and hand out those to tokens that came alone."""
        alone = len(wave.rows)
        for place, number in wave.ids.items():
            replies[place] = wire.with_id(replies[place], number)
        for start, stop, body, place in wave.bodies():
            body.replies[place : place + stop - start] = replies[alone + start : alone + stop]
            body.missing -= stop - start
        return list(zip(wave.addresses, replies, strict=False))

    def check(self) -> None:
        """Assert what always holds between calls of `handle`."""
        self.engine.check()
        self._intake.check()
