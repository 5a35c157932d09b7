"""The way in: bodies are decoded, their requests checked, and put into waves.

The ordinary token, {"session": ..., "x": id} with or without an int as `id`, of an open session takes the short way: no object
is made for it, only entries in parallel lists. Everything else is looked at again by `_request`, which explains what is wrong.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import msgpack

from rnnstream.engine.engine import Engine
from rnnstream.errors import Busy, RequestError, TooLarge
from rnnstream.wire import replies as wire
from rnnstream.wire.limits import Limits
from rnnstream.wire.requests import OPS, Request, decode, parse, readable
from rnnstream.worker.answers import SPARE_BYTES, Answers, reply_bytes
from rnnstream.worker.queue import Address, Body, Order, Wave, routing_id

MOST_WAITING = 65_536  # requests: beyond them nothing is read, and ZeroMQ and TCP hold the producers back
MOST_HELD_BYTES = 64 << 20  # of replies that wait behind others of their connection: likewise
RETRY_MS = 50  # what `busy` asks for: longer than a full queue takes


class Intake:
    """The requests that wait, in waves.

    Args:
        engine: the sessions.
        answers: what is said to requests that need not wait.
        limits: what is accepted.

    Attributes:
        count: requests that wait.
        order: the bodies that are not answered.
        heads: by row: the first bytes of its ordinary replies.
    """

    def __init__(self, engine: Engine, answers: Answers, limits: Limits) -> None:
        assert limits.waiting >= limits.frame_requests, "an empty queue takes any body"
        self._engine, self._answers, self._limits = engine, answers, limits
        self._waves: deque[Wave] = deque([Wave()])
        # By row: requests that wait, which is also the wave that the next one goes into.
        self._waiting: list[int] = [0] * len(engine.table.names)
        self._closing: set[int] = set()  # rows with a `close` waiting: tokens behind it are judged, not just stepped
        output, source = engine.model.output, engine.model.input
        self._vocabulary = output.vocabulary is not None
        self.heads = [wire.step_head(name, self._vocabulary) if name else b"" for name in engine.table.names]
        self._reply_bytes = reply_bytes(engine.model)
        # Ids below this take the short way; with dense input or another head, none does.
        self._plain_size = source.size if source.kind == "token" and output.kind == "categorical" else 0
        self.order = Order()
        self.count = 0

    @property
    def full(self) -> bool:
        """Whether so much waits, requests or answers behind them, that nothing more should be read."""
        return self.count >= MOST_WAITING or self.order.bytes >= MOST_HELD_BYTES

    def next_wave(self) -> Wave:
        """The wave whose turn it is; `done` when it has been run."""
        wave = self._waves.popleft()
        if not self._waves:
            self._waves.append(Wave())
        return wave

    def done(self, wave: Wave) -> None:
        """Its requests wait no more."""
        waiting, live = self._waiting, self._engine.table.live
        for row in wave.rows:
            waiting[row] -= 1
        for row in wave.body_rows:
            waiting[row] -= 1
        for row, *_ in wave.others:
            waiting[row] -= 1
            if not waiting[row]:
                self._closing.discard(row)
                if not live[row]:
                    self._engine.table.free(row)
        self.count -= len(wave)

    def take(self, addresses: Sequence[Address], bodies: Sequence[Any]) -> None:
        """Put what has arrived into waves, or answer it."""
        unpackb, rows, waiting, held = msgpack.unpackb, self._engine.table.rows, self._waiting, self.order.held
        wave, size = self._waves[0], self._plain_size
        wave_row, wave_x, wave_address = wave.rows.append, wave.xs.append, wave.addresses.append
        before = len(wave.rows)
        for address, body in zip(addresses, bodies, strict=True):
            try:
                item = unpackb(body)
                keys = len(item)
                if keys == 2 or (keys == 3 and type(item["id"]) is int):
                    row, x = rows[item["session"]], item["x"]
                    if type(x) is int and 0 <= x < size and not waiting[row] and (not held or routing_id(address) not in held):
                        waiting[row] = 1
                        wave_row(row)
                        wave_x(x)
                        wave_address(address)
                        if keys == 3:
                            wave.ids[len(wave.rows) - 1] = item["id"]
                        continue
            except Exception:  # not the ordinary token of an open session: `_take_body` finds out what it is and says so
                pass
            self._take_body(address, bytes(body))
        self.count += len(wave.rows) - before

    def _take_body(self, address: Address, data: bytes) -> None:
        """Take in a body of any kind."""
        items, problem = decode(data, self._limits.frame_requests)
        body = Body(address, len(items) + (problem is not None))
        body.bytes = len(body.replies) * self._reply_bytes
        rows, waiting, waves, size = self._engine.table.rows, self._waiting, self._waves, self._plain_size
        live, closing = self._engine.table.live, self._closing
        room = self._limits.waiting - len(items)  # a session whose queue is shorter than this has room for the whole body
        judged: dict[int, bool] = {}
        run_turn, run_place, plain = -1, 0, 0
        for place, item in enumerate(items):
            try:
                keys = len(item)
                if keys == 2 or (keys == 3 and type(item["id"]) is int):  # the ordinary token again, for each of many
                    row, x = rows[item["session"]], item["x"]
                    turn = waiting[row]
                    if type(x) is int and 0 <= x < size and (not turn or turn < room) and live[row] and row not in closing:
                        if turn != run_turn or place != run_place:  # not the neighbour of the one before
                            if turn == len(waves):
                                waves.append(Wave())
                            wave = waves[turn]
                            wave_row, wave_x = wave.body_rows.append, wave.body_xs.append
                            wave.runs.append((len(wave.body_rows), body, place))
                            run_turn = turn
                        run_place = place + 1
                        waiting[row] = turn + 1
                        wave_row(row)
                        wave_x(x)
                        plain += 1
                        if keys == 3:
                            body.ids[place] = item["id"]
                        continue
            except (KeyError, TypeError):
                pass
            self._request(body, place, items, judged)
        self.count += plain
        if problem is not None:
            body.answer(len(items), wire.encode(wire.error_map(problem)))
        self.order.add(body)

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
                self._engine.check_want(request.want, request.surprisal)
            self._hold_to_size(request, body)
            if "session" not in OPS[request.op]:
                body.answer(place, self._answers.encode(self._answers.about(request), request))
                return
            if request.op == "step":
                request.x = self._engine.model.input.token(request.x)
            row = self._row(request)
            self._hold_to_room(row, request.session, len(items) - place, judged)
            turn = self._waiting[row]
            if turn == len(self._waves):
                self._waves.append(Wave())
            self._waves[turn].others.append((row, request, body, place))
            self._waiting[row] = turn + 1
            self.count += 1
            if request.op == "close":
                self._closing.add(row)
        except RequestError as error:
            body.answer(place, wire.encode(wire.error_map(error, **readable(item))))
        except Exception:
            body.answer(place, self._answers.internal(readable(item)))

    def _row(self, request: Request) -> int:
        """The row of the request's session, with its place in the lists of this class."""
        table, session = self._engine.table, request.session
        row = table.rows.get(session)
        if row is None:  # not open, and nothing of it waits: its turn is now
            if request.op in ("info", "close") or (request.op == "step" and table.was_closed(session)):
                raise self._engine.unknown(session)
            row = table.take(session)
            if row == len(self._waiting):
                self._waiting.append(0)
                self.heads.append(b"")
            self.heads[row] = wire.step_head(session, self._vocabulary)
        return row

    def _hold_to_size(self, request: Request, body: Body) -> None:
        """Count what this reply takes beyond the place that every one has; refuse it where the body could grow too large."""
        size = body.bytes + max(0, self._answers.size(request) - SPARE_BYTES)
        if size > self._limits.reply_bytes:
            raise TooLarge(
                f"With this {request.op} the reply could take {size} bytes, {self._limits.reply_bytes} is the limit; send "
                "fewer requests in a body, or want less.",
                limit=self._limits.reply_bytes,
            )
        body.bytes = size

    def _hold_to_room(self, row: int, session: str, left: int, judged: dict[int, bool]) -> None:
        """Refuse a session's requests of a body where its queue could grow too long; an empty queue takes any body.

        As if all the requests that are `left` of the body were the session's: so those that took the short way before, for
        which the whole body had to fit, are never followed by a refusal.
        """
        turn, limit = self._waiting[row], self._limits.waiting
        if row not in judged:
            judged[row] = not turn or turn + left <= limit
        if not judged[row]:
            raise Busy(
                f"{session}: {turn} requests wait, and with this body's there could be more than {limit}, the limit of a "
                f"session; ask again in {RETRY_MS} ms.",
                retry_after_ms=RETRY_MS,
            )

    def check(self) -> None:
        """Assert what always holds between a wave that is done and the next."""
        self.order.check()
        table = self._engine.table
        depth = Counter(row for wave in self._waves for row in wave.all_rows())
        assert self._waiting == [depth[row] for row in range(len(self._waiting))]
        assert self.count == depth.total()
        for turn, wave in enumerate(self._waves):
            rows = wave.all_rows()
            assert len(set(rows)) == len(rows) == len(wave)
            assert len(wave.rows) == len(wave.xs) == len(wave.addresses)
            assert len(wave.body_rows) == len(wave.body_xs)
            assert turn < len(self._waves) - 1 or not turn or rows
        for row, name in enumerate(table.names):
            if name is not None:
                assert table.live[row] or self._waiting[row]
                assert self.heads[row] == wire.step_head(name, self._vocabulary)
        assert all(self._waiting[row] for row in self._closing)
