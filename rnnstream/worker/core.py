"""The worker's core: request bodies in, reply bodies out. No socket, no clock.

The way of a token: `take` (decoded, checked, put into a wave by `Intake`) -> `turn` (one wave, one batch through the engine) ->
replies.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Container, Sequence
from typing import Any

from rnnstream.engine.engine import Engine
from rnnstream.engine.rows import Moves
from rnnstream.errors import RequestError
from rnnstream.model.outcomes import most_likely
from rnnstream.prediction import Prediction
from rnnstream.wire import replies as wire
from rnnstream.wire.limits import Limits
from rnnstream.wire.requests import Request
from rnnstream.worker.answers import Answers, whose, with_echo
from rnnstream.worker.intake import Intake
from rnnstream.worker.peeks import Peeks
from rnnstream.worker.queue import Address, Body, Numbered, Wave
from rnnstream.worker.stats import Stats

log = logging.getLogger("rnnstream.worker")

EXPIRED_AT_ONCE = 100  # sessions before a turn, when many are due at once: 0.4 ms

Step = tuple[int, Request, bool, Body, int]  # row, request, whether it opened the session, body, place in the body


class Core:
    """Turns request bodies into reply bodies.

    Args:
        engine: the sessions.
        worker: id of the worker, for `hello` and `ping`.
        version: of the package, for `hello`.
        limits: what is accepted.

    Attributes:
        stats: what has been done so far.
    """

    def __init__(self, engine: Engine, *, worker: str, version: str, limits: Limits) -> None:
        self.engine = engine
        self.stats = Stats()
        self._answers = Answers(engine, self.stats, worker=worker, version=version, limits=limits)
        self._intake = Intake(engine, self._answers, limits)
        self._peeks = Peeks(engine, self._answers)
        self._began: float | None = None  # when this turn took in its first bodies
        self._answered: list[tuple[int, float]] = []  # bodies that this turn answers, and when they came
        vocabulary = engine.model.output.vocabulary
        self._labels = [wire.step_label(label) for label in vocabulary] if vocabulary else None

    @property
    def waiting(self) -> int:
        """How many requests wait; above 0 also while replies do that could leave."""
        return self._intake.waves.count + len(self._peeks) + self._intake.order.late

    @property
    def full(self) -> bool:
        """Whether so much waits that nothing more should be read."""
        return self._intake.full

    def take(self, addresses: Sequence[Address], bodies: Sequence[Any], now: float) -> None:
        """Take in request bodies, to be carried out by `turn`; may be called several times before it.

        Args:
            addresses: where each body came from.
            bodies: bytes, or anything with the buffer interface.
            now: seconds, monotonic.
        """
        if self.engine.idle_timeout_s is not None:
            self.engine.expire(now, self._intake.waited_for, EXPIRED_AT_ONCE)
        if self._began is None:
            self._began = now
        self.stats.bodies += len(bodies)
        self._intake.take(addresses, bodies, now)

    def turn(self, now: float) -> list[tuple[Address, bytes]]:
        """Run one wave, and hand out what is answered.

        Returns:
            (address, body) pairs, to be sent in this order; then `sent` is to be called. While `waiting` is not 0 call again,
            with whatever came meanwhile taken in before.
        """
        wave = self._intake.waves.take()
        out = self._run(wave, now) if wave else []
        if self._peeks:
            self._peeks.run()
        self._answered = [(len(out), now if self._began is None else self._began)] if out else []
        self._began = None
        if self._intake.order.held:
            finished = self._intake.order.finished()
            self._answered += [(1, body.arrived) for body in finished]
            out += [(body.address, body.joined()) for body in finished]
        self._answers.rested()
        return out

    def take_crowded(self) -> set[bytes]:
        """Connections that have far too much unanswered, to be cut off; says so once."""
        crowded, self._intake.crowded = self._intake.crowded, set()
        return crowded

    def sent(self, now: float) -> None:
        """The replies of the last turn were sent."""
        for bodies, arrived in self._answered:
            self.stats.answered(bodies, now - arrived)
        self.stats.end(now)

    def handle(self, addresses: Sequence[Address], bodies: Sequence[Any], now: float) -> list[tuple[Address, bytes]]:
        """`take` and `turn` in one, where time stands still."""
        self.take(addresses, bodies, now)
        out = self.turn(now)
        self.sent(now)
        return out

    def _run(self, wave: Wave, now: float) -> list[tuple[Address, bytes]]:
        """Run the requests of a wave, the tokens as one batch, the others one by one; the replies to tokens that came alone."""
        steps: list[Step] = []
        rows = wave.rows + wave.body_rows
        if wave.numbered:
            self._judge_numbered(wave)
            rows += [row for row, *_ in wave.numbered]
        if wave.others:
            self._carry_out_all(wave, steps, now)
        try:
            replies = self._step(wave, rows, steps, now) if rows or steps else []
        except Exception:
            replies = self._failed(rows, steps)
        self._intake.done(wave)
        return self._deliver(wave, replies)

    def _judge_numbered(self, wave: Wave) -> None:
        """Leave in a wave's numbered tokens those that are their producer's next; the rest is looked at one by one."""
        table, names = self.engine.table, self.engine.table.names
        kept: list[Numbered] = []
        for token in wave.numbered:
            row, x, producer, n, ack, body, place = token
            mine = (table.producers[row] or {}).get(producer)
            if mine is not None and n == mine.last + 1:
                kept.append(token)
            else:
                request = Request(session=names[row] or "", x=x, producer=producer, n=n, ack=ack)
                wave.others.append((row, request, body, place))
        wave.numbered = kept

    def _carry_out_all(self, wave: Wave, steps: list[Step], now: float) -> None:
        """The requests of a wave that are not ordinary tokens; the steps among them are admitted and put into `steps`.

        What opens, copies or ends sessions comes before the tokens, of which nobody knows yet whether they count.
        """
        for is_step in (False, True):
            for row, request, body, place in wave.others:
                if (request.op == "step") is is_step:
                    try:
                        self._carry_out(row, request, body, place, steps, now)
                    except RequestError as error:
                        body.answer(place, self._answers.refused(error, whose(request)))
                    except Exception:
                        body.answer(place, self._answers.internal(whose(request)))

    def _carry_out(self, row: int, request: Request, body: Body, place: int, steps: list[Step], now: float) -> None:
        """A request whose turn has come: a step is admitted, all else is done and answered."""
        engine = self.engine
        if request.producer is not None:
            kept = engine.judge(request.session, request.producer, request.n, request.identity(), now, request.ack or 0)
            if kept is not None:
                self._intake.charge(body, len(kept) - self._intake.reply_bytes)
                body.answer(place, self._answers.again(kept, request))
                return
        if request.op == "step":
            steps.append((row, request, engine.admit(row, request.t, now), body, place))
        elif request.op == "peek":
            self._peeks.add(row, request, body, place)
        else:
            reply = self._answers.change(row, request, self._intake.row_of, now)
            self._counted(row, request, reply, now)
            body.answer(place, with_echo(reply, request))

    def _counted(self, row: int, request: Request, reply: bytes, now: float) -> None:
        """A request was carried out: if it has a number, that has counted."""
        if request.producer is not None:
            assert request.ack is not None
            self.engine.keep(row, request.producer, request.n, request.identity(), reply, request.ack, now)

    def _step(self, wave: Wave, plain: list[int], steps: list[Step], now: float) -> list[bytes]:
        """One token for every row: replies to the ordinary ones, `plain`. Nothing has changed until all replies are made."""
        engine = self.engine
        rows, xs = plain, wave.xs + wave.body_xs
        if wave.numbered:
            xs += [x for _, x, *_ in wave.numbered]
        if steps:
            rows = rows + [row for row, *_ in steps]
            xs += [request.x for _, request, *_ in steps]
        moves = engine.compute(rows, xs)
        replies = self._plain_replies(moves, plain) if plain else []
        answers = self._predicted(moves, len(plain), steps) if steps else []
        engine.commit(moves, now)
        bad = () if moves.good is None else (~moves.good).nonzero()[0].tolist()
        self.stats.batch(len(rows), len(rows) - len(bad))
        for place in bad:
            row, error = rows[place], engine.not_finite(rows[place])
            if place < len(plain):
                replies[place] = self._answers.refused(error, {"session": engine.table.names[row]})
            else:
                _, request, opened, body, at = steps[place - len(plain)]
                if opened:
                    engine.table.withdraw(row)
                body.answer(at, self._answers.refused(error, whose(request)))
        for place, (answer, (row, request, _, body, at)) in enumerate(zip(answers, steps, strict=True), len(plain)):
            if place not in bad:
                self._counted(row, request, answer, now)
                body.answer(at, with_echo(answer, request))
        if wave.marks or wave.numbered:
            self._number(wave, replies, bad, now)
        return replies

    def _number(self, wave: Wave, replies: list[bytes], bad: Container[int], now: float) -> None:
        """The ordinary tokens have counted, but for the bad ones: keep their replies for a repeat."""
        self.engine.table.numbering.keep_all(wave.marks, wave.xs, replies, bad)
        first = len(wave.rows) + len(wave.body_rows)
        for place, (row, x, producer, n, ack, _, _) in enumerate(wave.numbered, first):
            if place not in bad:
                self.engine.keep(row, producer, n, x, replies[place], ack, now)

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
            fitting = [min(t, wire.STEP_T) for t in ts]
            replies = wire.step_replies([heads[row] for row in rows], fitting, ids, ps, self._labels)
            for place, (row, t, y, p) in enumerate(zip(rows, ts, ids, ps, strict=True)):
                if t > wire.STEP_T:
                    label = {"label": vocabulary[y]} if vocabulary else {}
                    replies[place] = wire.encode({"session": names[row], "t": t, "y": y, "p": p} | label)
            return replies

    def _predicted(self, moves: Moves, plain: int, steps: list[Step]) -> list[bytes]:
        """The replies to the steps behind the plain ones, without their ids."""
        engine, requests = self.engine, [request for _, request, *_ in steps]
        predictions: list[Prediction] = engine.predictions(moves.behind(plain), [request.want for request in requests])
        scored = [place for place, request in enumerate(requests) if request.surprisal]
        if scored:
            scores = engine.scores([steps[place][0] for place in scored], [requests[place].x for place in scored])
            for place, score in zip(scored, scores, strict=True):
                predictions[place].surprisal = score
        for prediction, (_, _, opened, *_) in zip(predictions, steps, strict=True):
            prediction.opened = opened
        return [self._answers.step(request.session, found) for request, found in zip(requests, predictions, strict=True)]

    def _failed(self, rows: list[int], steps: list[Step]) -> list[bytes]:
        """A bug in a step, the exception being handled: none of the wave's tokens has counted, and each is told so."""
        log.exception("a wave of %d tokens failed", len(rows) + len(steps))
        table, internal = self.engine.table, self._answers.internal
        for row, request, opened, body, place in steps:
            if opened and table.live[row]:
                table.withdraw(row)
            body.answer(place, internal(whose(request), logged=True))
        return [internal({"session": table.names[row]}, logged=True) for row in rows]

    def _deliver(self, wave: Wave, replies: list[bytes]) -> list[tuple[Address, bytes]]:
        """Put the replies of bodies in their places, and hand out those to tokens that came alone."""
        alone = len(wave.rows)
        for place, number in wave.ids.items():
            replies[place] = wire.with_id(replies[place], number)
        for start, stop, body, place in wave.bodies():
            body.replies[place : place + stop - start] = replies[alone + start : alone + stop]
            body.missing -= stop - start
        if wave.numbered:
            for reply, (*_, body, place) in zip(replies[alone + len(wave.body_rows) :], wave.numbered, strict=True):
                body.answer(place, reply)
        return list(zip(wave.addresses, replies, strict=False))

    def check(self) -> None:
        """Assert what always holds between calls of `handle`."""
        self.engine.check()
        self._intake.check()
        self._peeks.check()
