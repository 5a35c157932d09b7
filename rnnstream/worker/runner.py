"""Runs waves: each is one batch through the engine, and whatever else its sessions are asked for."""

from __future__ import annotations

import logging
from collections.abc import Container
from typing import Any

import numpy as np

from rnnstream.engine.engine import Engine
from rnnstream.engine.moves import Moves
from rnnstream.errors import RequestError
from rnnstream.names import owner_of
from rnnstream.prediction import Prediction
from rnnstream.store.records import Batch
from rnnstream.wire import replies as wire
from rnnstream.wire.requests import Request
from rnnstream.worker.answers import Answers, whose, with_echo
from rnnstream.worker.intake import Intake
from rnnstream.worker.keeper import Keeper
from rnnstream.worker.order import Body
from rnnstream.worker.peeks import Peeks
from rnnstream.worker.stats import Stats
from rnnstream.worker.waves import Mark, Numbered, Wave

log = logging.getLogger("rnnstream.worker")

Step = tuple[int, Request, bool, Body, int]  # row, request, whether it opened the session, body, place in the body


class Runner:
    """Carries out the requests of a wave.

    Args:
        engine: the sessions.
        answers: what is said.
        intake: where rows are from.
        peeks: where peeks go on.
        stats: what is counted.
        keeper: told of what has to be kept; None where nothing is.

    Attributes:
        moves_one: a token that is alone makes no batch.
        replies: makes the ordinary ones.
    """

    def __init__(
        self, engine: Engine, answers: Answers, intake: Intake, peeks: Peeks, stats: Stats, keeper: Keeper | None
    ) -> None:
        self.engine, self.stats = engine, stats
        self._answers, self._intake, self._peeks, self._keeper = answers, intake, peeks, keeper
        self.moves_one = keeper is None and engine.moves_one
        self.replies = wire.WaveReplies(engine.model.output.vocabulary, engine.table.rows)

    def run(self, wave: Wave, now: float) -> list[bytes]:
        """Run a wave: the replies to its ordinary tokens; those to its other requests are its `answers` then."""
        steps: list[Step] = []
        rows = wave.rows + wave.body_rows
        if wave.numbered:
            self._judge_numbered(wave)
            rows += [row for row, *_ in wave.numbered]
        if wave.others:
            self._carry_out_all(wave, steps, now)
        try:
            if self.moves_one and len(wave.rows) == 1 and wave.plain:
                reply = self._run_one(wave, now)
                if reply is not None:
                    return [reply]
            return self._step(wave, rows, steps, now) if rows or steps else []
        except Exception:
            return self._failed(wave, steps)

    def _run_one(self, wave: Wave, now: float) -> bytes | None:
        """`run` for an ordinary token that came alone, and is alone: the reply. None where it takes the way of batches."""
        engine, row = self.engine, wave.rows[0]
        t = engine.table.t.item(row) + 1
        found = engine.predict_one(row, wave.xs[0])
        if found is None or t > wire.STEP_T:
            return None
        state, y, p = found
        reply = wire.step_reply(wave.names[0].encode(), t, y, p, self.replies.labels)
        engine.commit_one(row, state, t, now)
        self.stats.batch(1, 1)
        if wave.marks:
            self._number(wave, [reply], (), now)
        return reply

    def run_on(self, waves: list[Wave], now: float) -> list[list[bytes]] | None:
        """Run waves in which one and the same session is alone with an ordinary token; as `run` for each of them.

        Its states follow each other, but what comes behind them is one batch: with the same bits, and three times as fast.

        Returns:
            None, with nothing done, where they have to run one by one.
        """
        engine, row, xs = self.engine, waves[0].alone, [(wave.body_xs or [wave.numbered[0][1]])[0] for wave in waves]
        known = engine.table.producers[row]
        lasts = {} if known is None else {producer: mine.last for producer, mine in known.items()}
        for wave in waves:
            for _, _, producer, n, *_ in wave.numbered:
                if n != lasts.get(producer, n) + 1:  # an unknown producer's too
                    return None
                lasts[producer] = n
        try:
            moves = engine.compute_on(row, xs)
            if moves is None:
                return None
            replies = self._plain_replies(moves, self._sessions(waves[0]) * len(waves))
        except Exception:
            return None
        engine.commit(moves.behind(len(waves) - 1), now)
        for wave, x, reply in zip(waves, xs, replies, strict=True):
            self.stats.batch(1, 1)
            for _, _, producer, n, ack, _, _ in wave.numbered:
                engine.keep(row, producer, n, x, reply, ack, now)
        return [[reply] for reply in replies]

    def refused(self, wave: Wave, error: RequestError, replies: list[bytes] | None = None) -> list[bytes]:
        """What `run` would have given, had the whole wave been refused.

        Args:
            wave: which has been run, or not.
            error: for each request.
            replies: of `run`, if it has; the rows may be those of other sessions by now.
        """
        sessions = self._sessions(wave) if replies is None else [wire.decode(reply)[0]["session"] for reply in replies]
        answered = None if replies is None else {(id(body), place) for body, place, _ in wave.answers}
        wave.answers = [
            (body, place, self._answers.refused(error, whose(request)))
            for _, request, body, place in wave.others
            if answered is None or (id(body), place) in answered  # else it is a peek that goes on
        ]
        return [self._answers.refused(error, {"session": session}) for session in sessions]

    def _sessions(self, wave: Wave) -> list[str]:
        """What the sessions of a wave's ordinary tokens are called."""
        names = self.engine.table.names
        return [*wave.names, *wave.body_names, *(str(names[row]) for row, *_ in wave.numbered)]

    def _judge_numbered(self, wave: Wave) -> None:
        """Leave in a wave's numbered tokens those that are their producer's next; the rest is looked at one by one."""
        table, names = self.engine.table, self.engine.table.names
        kept: list[Numbered] = []
        for token in wave.numbered:
            row, x, producer, n, ack, body, place = token
            known = table.producers[row]
            mine = None if known is None else known.lone if known.id == producer else known.get(producer)
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
                        self._carry_out(wave, row, request, body, place, steps, now)
                    except RequestError as error:
                        wave.answer(body, place, self._answers.refused(error, whose(request)))
                    except Exception:
                        wave.answer(body, place, self._answers.internal(whose(request)))

    def _carry_out(self, wave: Wave, row: int, request: Request, body: Body, place: int, steps: list[Step], now: float) -> None:
        """A request whose turn has come: a step is admitted, all else is done and answered."""
        engine, keeper = self.engine, self._keeper
        if keeper is not None and request.op != "reset":  # which needs nothing of what is damaged
            keeper.residence.hold_whole(request.session, request.to)
        if request.producer is not None:
            kept = engine.judge(request.session, request.producer, request.n, request.identity(), now, request.ack or 0)
            if kept is not None:
                self._intake.charge(body, len(kept) - self._intake.reply_bytes)
                wave.answer(body, place, self._answers.again(kept, request))
                return
        if request.op == "step":
            steps.append((row, request, engine.admit(row, request.t, now), body, place))
        elif request.op == "peek":
            self._peeks.add(row, request, body, place)
        else:
            reply = self._answers.change(row, request, self._intake.row_of, now)
            self._counted(row, request, reply, now)
            if keeper is not None and request.op not in ("snapshot", "info"):
                keeper.changed(request.session, request.to)
            wave.answer(body, place, with_echo(reply, request))

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
        sessions = self._sessions(wave)
        replies = self._plain_replies(moves, sessions) if plain else []
        answers = self._predicted(moves, len(plain), steps) if steps else []
        engine.commit(moves, now)
        bad = () if moves.good is None else (~moves.good).nonzero()[0].tolist()
        if self._keeper is None or not self._keeper.replaying:
            self.stats.batch(len(rows), len(rows) - len(bad))
        for place in bad:
            row, error = rows[place], engine.not_finite(rows[place])
            if place < len(plain):
                replies[place] = self._answers.refused(error, {"session": sessions[place]})
            else:
                _, request, opened, body, at = steps[place - len(plain)]
                if opened:
                    engine.table.withdraw(row)
                wave.answer(body, at, self._answers.refused(error, whose(request)))
        for place, (answer, (row, request, _, body, at)) in enumerate(zip(answers, steps, strict=True), len(plain)):
            if place not in bad:
                self._counted(row, request, answer, now)
                wave.answer(body, at, with_echo(answer, request))
        if wave.marks or wave.numbered:
            self._number(wave, replies, bad, now)
        if self._keeper is not None:
            self._keeper.stepped(moves, self._batch(wave, rows, xs, steps))
        return replies

    def _batch(self, wave: Wave, rows: list[int], xs: list[Any], steps: list[Step]) -> Batch:
        """The steps of a wave as they are kept, by their places; those that did not count among them."""
        names = self.engine.table.names
        if self.engine.model.input.kind == "dense":
            xs = [x.tobytes() for x in xs]
        batch = Batch([names[row] for row in rows], xs)  # type: ignore[misc]
        for place, _, n, producer in wave.marks:
            batch.number(place, producer, n, n - 1)
        for place, (_, _, producer, n, ack, _, _) in enumerate(wave.numbered, len(wave.rows) + len(wave.body_rows)):
            batch.number(place, producer, n, ack)
        for place, (_, request, *_) in enumerate(steps, len(rows) - len(steps)):
            if request.producer is not None:
                batch.number(place, request.producer, request.n, request.ack or 0)
                if request.want != "argmax" or request.surprisal:
                    batch.wants[place] = request.want, request.surprisal
        return batch

    def _number(self, wave: Wave, replies: list[bytes], bad: Container[int], now: float) -> None:
        """The ordinary tokens have counted, but for the bad ones: keep their replies for a repeat."""
        table = self.engine.table
        if len(table.numberings) == 1:  # all is nobody's
            table.numbering.keep_all(wave.marks, wave.xs, replies, bad)
        else:
            owned: dict[str, list[Mark]] = {}
            for mark in wave.marks:
                owned.setdefault(owner_of(table.names[wave.rows[mark[0]]] or ""), []).append(mark)
            for owner, marks in owned.items():
                table.numberings[owner].keep_all(marks, wave.xs, replies, bad)
        first = len(wave.rows) + len(wave.body_rows)
        for place, (row, x, producer, n, ack, _, _) in enumerate(wave.numbered, first):
            if place not in bad:
                self.engine.keep(row, producer, n, x, replies[place], ack, now)

    def _plain_replies(self, moves: Moves, names: list[str]) -> list[bytes]:
        """The ordinary replies to the first tokens of a batch, those of these sessions."""
        found = [self.engine.likely(moves.features[part]) for part in self.engine.parts(len(names))]
        ys, ps = found[0] if len(found) == 1 else map(np.concatenate, zip(*found, strict=True))
        return self.replies.make(names, moves.ts[: len(names)], ys, ps)

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

    def _failed(self, wave: Wave, steps: list[Step]) -> list[bytes]:
        """A bug in a step, the exception being handled: none of the wave's tokens has counted, and each is told so."""
        sessions = self._sessions(wave)
        log.exception("a wave of %d tokens failed", len(sessions) + len(steps))
        table, internal = self.engine.table, self._answers.internal
        for row, request, opened, body, place in steps:
            if opened and table.live[row]:
                table.withdraw(row)
            wave.answer(body, place, internal(whose(request), logged=True))
        return [internal({"session": session}, logged=True) for session in sessions]
