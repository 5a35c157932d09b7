"""The worker's core: request bodies in, reply bodies out. No socket, no clock.

The way of a token: `handle` -> `_receive` (decoded, checked, put into a wave) -> `_run` (one batch through the engine) ->
replies. The ordinary token, {"session": ..., "x": id}, of a session that is open and waits for nothing, takes the short
way: no object is made for it, only entries in parallel lists. Everything else goes through `_body`, which decodes again,
checks everything and explains what is wrong.
"""

from __future__ import annotations

import logging
import struct
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import msgpack

from rnnstream.engine.engine import Engine
from rnnstream.engine.rows import Moves
from rnnstream.errors import Busy, RequestError, TooLarge
from rnnstream.model.outcomes import most_likely
from rnnstream.prediction import Prediction
from rnnstream.wire import replies as wire
from rnnstream.wire.limits import Limits
from rnnstream.wire.requests import OPS, Request, decode, parse, readable
from rnnstream.worker.answers import SPARE_BYTES, Answers, echo, reply_bytes
from rnnstream.worker.queue import Address, Body, Order, Wave, routing_id

log = logging.getLogger("rnnstream.worker")

MOST_WAITING = 65_536  # requests: beyond them nothing is read, and ZeroMQ and TCP hold the producers back
MOST_HELD_BYTES = 64 << 20  # of replies that wait behind others of their connection: likewise
RETRY_MS = 50  # what `busy` asks for: longer than a full queue takes


class Core:
    """Turns request bodies into reply bodies.

    Args:
        engine: the sessions.
        worker: id of this run, for `hello` and `ping`.
        version: of the package, for `hello`.
        limits: what is accepted.
    """

    def __init__(self, engine: Engine, *, worker: str, version: str, limits: Limits) -> None:
        assert limits.waiting >= limits.frame_requests, "an empty queue takes any body"
        self.engine, self.limits = engine, limits
        self._model = engine.model
        self._answers = Answers(engine, worker=worker, version=version, limits=limits)
        self._order = Order()
        self._waves: deque[Wave] = deque([Wave()])
        # By row: requests that wait, which is also the wave that the next one goes into.
        self._waiting: list[int] = [0] * len(engine.table.names)
        self._closing: set[int] = set()  # rows with a `close` waiting: tokens behind it are judged, not just stepped
        output = self._model.output
        self._categorical = output.kind == "categorical"
        self._labels = [wire.step_label(label) for label in output.vocabulary] if output.vocabulary else None
        self._heads = [  # by row: the first bytes of its ordinary replies
            wire.step_head(name, self._labels is not None) if name else b"" for name in engine.table.names
        ]
        self._reply_bytes = reply_bytes(self._model)
        # Ids below this take the short way; with dense input or another head, none does.
        self._plain_size = self._model.input.size if self._model.input.kind == "token" and self._categorical else 0
        self.waiting = 0

    @property
    def full(self) -> bool:
        """Whether so much waits, requests or answers behind them, that nothing more should be read."""
        return self.waiting >= MOST_WAITING or self._order.bytes >= MOST_HELD_BYTES

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
        self._receive(addresses, bodies)
        wave = self._waves.popleft()
        if not self._waves:
            self._waves.append(Wave())
        out: list[tuple[Address, bytes]] = []
        if wave.rows or wave.others:
            self._run(wave, out, now)
        if self._order.held:
            out += [(body.address, b"".join(body.replies)) for body in self._order.finished()]  # type: ignore[arg-type]
        return out

    # In -------------------------------------------------------------------------------------------------------------

    def _receive(self, addresses: Sequence[Address], bodies: Sequence[Any]) -> None:
        """Put what has arrived into waves."""
        unpackb, rows, waiting, held = msgpack.unpackb, self.engine.table.rows, self._waiting, self._order.held
        wave, size, count = self._waves[0], self._plain_size, 0
        wave_rows, wave_xs, wave_goals = wave.rows.append, wave.xs.append, wave.goals.append
        for address, body in zip(addresses, bodies, strict=True):
            try:
                item = unpackb(body)
                keys = len(item)
                if keys == 2 or (keys == 3 and type(item["id"]) is int):
                    row, x = rows[item["session"]], item["x"]
                    if type(x) is int and 0 <= x < size and not waiting[row] and (not held or routing_id(address) not in held):
                        waiting[row] = 1
                        wave_rows(row)
                        wave_xs(x)
                        wave_goals(address)
                        if keys == 3:
                            wave.ids[len(wave.rows) - 1] = item["id"]
                        count += 1
                        continue
            except Exception:  # not the ordinary token of an open session: `_body` finds out what it is and says so
                pass
            self._body(address, bytes(body))
        self.waiting += count

    def _body(self, address: Address, data: bytes) -> None:
        """Take in a body of any kind."""
        body = Body(address)
        items, problem = decode(data, self.limits.frame_requests)
        body.bytes = (len(items) + (problem is not None)) * self._reply_bytes
        rows, waiting, waves, size = self.engine.table.rows, self._waiting, self._waves, self._plain_size
        live, closing = self.engine.table.live, self._closing
        room = self.limits.waiting - len(items)  # a session whose queue is shorter than this has room for the whole body
        judged: dict[int, bool] = {}
        count = 0
        for item in items:
            place = body.expect()
            try:
                keys = len(item)
                if keys == 2 or (keys == 3 and type(item["id"]) is int):  # the ordinary token again, for each of many
                    row, x = rows[item["session"]], item["x"]
                    turn = waiting[row]
                    if type(x) is int and 0 <= x < size and (not turn or turn < room) and live[row] and row not in closing:
                        if turn == len(waves):
                            waves.append(Wave())
                        wave = waves[turn]
                        waiting[row] = turn + 1
                        wave.rows.append(row)
                        wave.xs.append(x)
                        wave.goals.append((body, place))
                        wave.direct = False
                        if keys == 3:
                            wave.ids[len(wave.rows) - 1] = item["id"]
                        count += 1
                        continue
            except (KeyError, TypeError):
                pass
            self._request(body, place, items, judged)
        self.waiting += count
        if problem is not None:
            body.answer(body.expect(), wire.encode(wire.error_map(problem)))
        self._order.add(body)

    def _request(self, body: Body, place: int, items: list[dict[Any, Any]], judged: dict[int, bool]) -> None:
        """Check one request of a body; answer it, or put it into a wave.

        Args:
            body: the replies so far.
            place: of the request in the body.
            items: the body's requests.
            judged: by row, whether there is room for this body's requests for a session: all are taken or none.
        """
        item = items[place]
        try:
            request = parse(item)
            if request.op == "step":
                self.engine.check_want(request.want, request.surprisal)
            self._hold_to_size(request, body)
            if "session" not in OPS[request.op]:
                body.answer(place, self._answers.encode(self._answers.about(request), request))
                return
            if request.op == "step":
                request.x = self._model.input.token(request.x)
            row = self._row(request)
            self._hold_to_room(row, request.session, len(items) - place, judged)
            turn = self._waiting[row]
            if turn == len(self._waves):
                self._waves.append(Wave())
            self._waves[turn].others.append((row, request, body, place))
            self._waiting[row] = turn + 1
            self.waiting += 1
            if request.op == "close":
                self._closing.add(row)
        except RequestError as error:
            body.answer(place, wire.encode(wire.error_map(error, **readable(item))))
        except Exception:
            body.answer(place, self._answers.internal(readable(item)))

    def _row(self, request: Request) -> int:
        """The row of the request's session, with its place in the lists of this class."""
        table, session = self.engine.table, request.session
        row = table.rows.get(session)
        if row is None:  # not open, and nothing of it waits: its turn is now
            if request.op in ("info", "close") or (request.op == "step" and table.was_closed(session)):
                raise self.engine.unknown(session)
            row = table.take(session)
            if row == len(self._waiting):
                self._waiting.append(0)
                self._heads.append(b"")
            self._heads[row] = wire.step_head(session, self._labels is not None)
        return row

    def _hold_to_size(self, request: Request, body: Body) -> None:
        """Count what this reply takes beyond the place that every one has; refuse it where the body could grow too large."""
        size = body.bytes + max(0, self._answers.size(request) - SPARE_BYTES)
        if size > self.limits.reply_bytes:
            raise TooLarge(
                f"With this {request.op} the reply could take {size} bytes, {self.limits.reply_bytes} is the limit; send "
                "fewer requests in a body, or want less.",
                limit=self.limits.reply_bytes,
            )
        body.bytes = size

    def _hold_to_room(self, row: int, session: str, left: int, judged: dict[int, bool]) -> None:
        """Refuse a session's requests of a body where its queue could grow too long; an empty queue takes any body.

        As if all the requests that are `left` of the body were the session's: so those that took the short way before, for
        which the whole body had to fit, are never followed by a refusal.
        """
        turn, limit = self._waiting[row], self.limits.waiting
        if row not in judged:
            judged[row] = not turn or turn + left <= limit
        if not judged[row]:
            raise Busy(
                f"{session}: {turn} requests wait, and with this body's there could be more than {limit}, the limit of a "
                f"session; ask again in {RETRY_MS} ms.",
                retry_after_ms=RETRY_MS,
            )

    # One wave -------------------------------------------------------------------------------------------------------

    def _run(self, wave: Wave, out: list[tuple[Address, bytes]], now: float) -> None:
        """Run the requests of a wave: the tokens as one batch, the other operations one by one."""
        steps: list[tuple[int, Request, bool, Body, int]] = []  # (row, request, opened, body, place)
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
        try:
            if wave.rows or steps:
                self._step(wave, steps, out, now)
        except Exception:
            self._failed(wave, steps, out)
        waiting, free, live = self._waiting, self.engine.table.free, self.engine.table.live
        for row in wave.rows:
            waiting[row] -= 1
        for row, *_ in wave.others:
            waiting[row] -= 1
            if not waiting[row]:
                self._closing.discard(row)
                if not live[row]:
                    free(row)
        self.waiting -= len(wave.rows) + len(wave.others)

    def _step(
        self,
        wave: Wave,
        steps: list[tuple[int, Request, bool, Body, int]],
        out: list[tuple[Address, bytes]],
        now: float,
    ) -> None:
        """One token for every row of the wave. Nothing has changed until all replies are made."""
        engine, plain = self.engine, len(wave.rows)
        tokens = wave.xs + [request.x for _, request, *_ in steps] if steps else wave.xs
        rows = wave.rows + [row for row, *_ in steps] if steps else wave.rows
        moves = engine.compute(rows, tokens)
        replies = self._plain_replies(moves.features[:plain], moves.ts[:plain].tolist(), wave.rows) if plain else []
        answers = [self._answers.step(*pair) for pair in self._predicted(moves, plain, steps)] if steps else []
        if moves.good is not None:
            for place in (~moves.good).nonzero()[0].tolist():
                error = engine.not_finite(rows[place])
                if place < plain:
                    asked = Request(session=str(engine.table.names[rows[place]]), id=wave.ids.pop(place, None))
                    replies[place] = self._answers.error(error, asked)
                else:
                    row, request, opened, *_ = steps[place - plain]
                    answers[place - plain] = self._answers.error(error, request)
                    if opened:
                        engine.table.withdraw(row)
        engine.commit(moves, now)
        self._deliver(wave, replies, out)
        for (_, _, _, body, place), answer in zip(steps, answers, strict=True):
            body.answer(place, answer)

    def _plain_replies(self, features: Any, ts: list[int], rows: list[int]) -> list[bytes]:
        """The ordinary replies to the first tokens of a batch."""
        ids, ps = most_likely(self._model.head(features))
        heads = self._heads
        try:
            return wire.step_replies([heads[row] for row in rows], ts, ids.tolist(), ps.tolist(), self._labels)
        except struct.error:  # a t beyond 32 bits
            names, vocabulary = self.engine.table.names, self._model.output.vocabulary
            return [
                wire.encode({"session": names[row], "t": t, "y": y, "p": p} | ({"label": vocabulary[y]} if vocabulary else {}))
                for row, t, y, p in zip(rows, ts, ids.tolist(), ps.tolist(), strict=True)
            ]

    def _predicted(
        self, moves: Moves, plain: int, steps: list[tuple[int, Request, bool, Body, int]]
    ) -> list[tuple[Request, Prediction]]:
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

    def _deliver(self, wave: Wave, replies: list[bytes], out: list[tuple[Address, bytes]]) -> None:
        """Each ordinary reply to where it goes."""
        for place, number in wave.ids.items():
            replies[place] = wire.with_id(replies[place], number)
        if wave.direct:
            out += zip(wave.goals, replies, strict=True)
            return
        for goal, reply in zip(wave.goals, replies, strict=True):
            if type(goal) is tuple and type(goal[0]) is Body:
                body, place = goal
                body.replies[place] = reply
                body.missing -= 1
            else:
                out.append((goal, reply))

    def _failed(self, wave: Wave, steps: list[tuple[int, Request, bool, Body, int]], out: list[tuple[Address, bytes]]) -> None:
        """A bug in a step: none of the wave's tokens has counted, and each is told so."""
        names, internal = self.engine.table.names, self._answers.internal
        log.exception("a wave of %d tokens failed", len(wave.rows) + len(steps))
        self._deliver(wave, [internal({"session": names[row]}, logged=True) for row in wave.rows], out)
        for row, request, opened, body, place in steps:
            if opened:
                self.engine.table.withdraw(row)
            body.answer(place, internal({"session": request.session} | echo(request), logged=True))

    def check(self) -> None:
        """Assert what always holds between calls of `handle`."""
        self.engine.check()
        table = self.engine.table
        depth = Counter(row for wave in self._waves for row in [*wave.rows, *(row for row, *_ in wave.others)])
        assert self._waiting == [depth[row] for row in range(len(self._waiting))]
        assert self.waiting == depth.total()
        for turn, wave in enumerate(self._waves):
            rows = [*wave.rows, *(row for row, *_ in wave.others)]
            assert len(set(rows)) == len(rows) == len(wave.xs) + len(wave.others)
            assert turn < len(self._waves) - 1 or not turn or rows
        for row, name in enumerate(table.names):
            if name is not None:
                assert table.live[row] or self._waiting[row]
                assert self._heads[row] == wire.step_head(name, self._labels is not None)
        assert all(self._waiting[row] for row in self._closing)
        self._order.check()
