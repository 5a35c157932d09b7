"""The way in: bodies are read, their requests checked, and put into waves.

The ordinary token, {"session": ..., "x": id} with or without an int as `id`, not numbered or numbered by a producer that is
known, of an open session takes the short way: mostly it is told by its bytes (`wire/ordinary.py`), and no request is made for
it, only entries in lists. Everything else is looked at again by `_request`, which explains what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from operator import itemgetter
from typing import Any

from rnnstream.engine.engine import Engine
from rnnstream.errors import RequestError, TooLarge
from rnnstream.names import Name
from rnnstream.wire.limits import Limits
from rnnstream.wire.ordinary import FEW_SESSIONS, ID, IDENTIFIED, NUMBERED, PLAIN, PRODUCER, UINT, UINT_FIRST, N, Parts, X, uint
from rnnstream.wire.requests import OPS, Request, decode, parse, readable
from rnnstream.worker.answers import SPARE_BYTES, Answers, echo, reply_bytes
from rnnstream.worker.keeper import Keeper
from rnnstream.worker.order import Address, Body, Order, routing_id
from rnnstream.worker.quotas import Quotas
from rnnstream.worker.refusals import Refusals
from rnnstream.worker.standing import CONNECTION_BYTES, Standing
from rnnstream.worker.waves import Wave, Waves

MOST_WAITING = 65_536  # requests: beyond them nothing is read, and ZeroMQ and TCP hold the producers back
MOST_HELD_BYTES = 128 << 20  # of replies that wait behind others of their connection: likewise; four times what is next
CROWDED_BYTES = 32 << 20  # of these for one connection or one key, whose `busy` beyond 16 MiB are replies too: it is cut off


class Intake:
    """Puts requests into waves, or answers them at once.

    Args:
        engine: the sessions.
        answers: what is said to requests that need not wait.
        limits: what is accepted.
        keeper: told of names that the store may know; None if there is no store.
        quotas: of each key.
        is_admin: whether a key is an administrator's.

    Attributes:
        waves: the requests that wait.
        order: the bodies that are not answered.
        crowded: connections to be cut off.
        reply_bytes: upper bound of the bytes of an ordinary reply.
        told: replies that name sessions, of which the store may not keep the last changes yet.
        parts: of ordinary tokens that were met.
        again: the last `take` had a token that came alone, of a session that waits already.
    """

    def __init__(
        self,
        engine: Engine,
        answers: Answers,
        limits: Limits,
        keeper: Keeper | None = None,
        *,
        quotas: Quotas,
        is_admin: Callable[[str], bool],
    ) -> None:
        assert limits.waiting >= limits.frame_requests, "an empty queue takes any body"
        self._engine, self._answers, self._limits, self._keeper = engine, answers, limits, keeper
        self.waves = Waves(len(engine.table.names))
        output, source = engine.model.output, engine.model.input
        self.reply_bytes = reply_bytes(engine.model)
        # Ids below this take the short way; with dense input or another head, none does.
        self._plain_size = source.size if source.kind == "token" and output.kind == "categorical" else 0
        self.parts = Parts(self._plain_size, engine.table.rows)
        self._refusals = Refusals(answers, limits)
        self.order = Order()
        self._standing = Standing(quotas, is_admin, self.order)
        self.crowded: set[bytes] = set()
        self.told: list[tuple[Body, int, Request]] = []
        self.again = False
        self._now = 0.0

    @property
    def full(self) -> bool:
        """Whether so much waits, requests or answers behind them, that nothing more should be read."""
        return self.waves.count >= MOST_WAITING or self.order.bytes >= MOST_HELD_BYTES

    def waited_for(self, row: int) -> bool:
        """Whether a request waits for this row."""
        return self.waves.waiting[row] > 0

    def done(self, wave: Wave) -> None:
        """A wave has been run."""
        table = self._engine.table
        for row in self.waves.done(wave):
            if not table.live[row]:
                table.free(row)

    def take(
        self, addresses: Sequence[Address], bodies: Sequence[bytes], now: float, users: Sequence[str | None] | None = None
    ) -> None:
        """Put what has arrived into waves, or answer it; see `Core.take`."""
        table, waiting, held = self._engine.table, self.waves.waiting, self.order.held
        rows, producers = table.rows, table.producers
        parts = self.parts
        sessions, numbered, ids, known_producers = parts.sessions, parts.numbered, parts.ids, parts.producers
        decode_one, few = parts.decode, len(rows) <= FEW_SESSIONS
        wave, self._now, most = self.waves.first(), now, self._limits.waiting
        self._refusals.begin()
        self.again = False
        wave_row, wave_x = wave.rows.append, wave.xs.append
        wave_name, wave_address = wave.names.append, wave.addresses.append
        before = len(wave.rows)
        arrivals: Iterable[tuple[Address, bytes, Any]] = zip(addresses, bodies, users or repeat(""), strict=False)
        if users is not None and (self._standing.rates is not None or None in users):
            arrivals = self._admitted(arrivals)
        for address, body, owner in arrivals:
            try:
                shape = body[0] if few else None  # cut as `wire/ordinary.py` says; here, for a call would cost as much again
                producer, new = None, False
                id = None
                if shape == PLAIN:
                    head, _, tail = body.rpartition(X)
                    session, x = sessions.get(head), ids.get(tail)
                elif shape in NUMBERED:
                    head, _, tail = body.rpartition(X)
                    tail, _, rest = tail.partition(PRODUCER)
                    if shape == IDENTIFIED:
                        rest, _, part = rest.rpartition(ID)
                        id = uint(part)
                    part, _, rest = rest.rpartition(N)
                    first, n = UINT[len(rest)](rest)
                    session, x, producer = numbered.get(head), ids.get(tail), known_producers.get(part)
                    if producer is None or first != UINT_FIRST[len(rest)] or (id is not None and id < 0):
                        session = None
                else:
                    session = x = None
                if session is None or x is None:
                    session, x, producer, n, id = decode_one(body)
                    new = few
                # A plain tuple, for it is the same key as an `Owned`, and made in a quarter of the time.
                row = rows[(owner, session) if owner else session]  # type: ignore[index]
                turn = waiting[row]
                if turn:
                    self.again = True
                    if turn >= most and id is None:
                        self._take_flood(address, row, session, owner)
                        continue
                elif x is not None and (not held or routing_id(address) not in held):
                    if producer is not None:
                        # Nothing of its session waits, so its turn is this wave's, and its number is judged right here.
                        known = producers[row]
                        mine: Any = known.lone if known.id == producer else known[producer]  # type: ignore[union-attr, index]
                        if n != mine.last + 1:
                            raise KeyError
                        mine.heard_at = now  # which keeps it from being forgotten before the wave has run
                        wave.marks.append((len(wave.rows), mine, n, producer))
                    if id is not None:
                        wave.ids[len(wave.rows)] = id
                    waiting[row] = 1
                    wave_row(row)
                    wave_x(x)
                    wave_name(session)
                    wave_address(address)
                    if new:
                        parts.remember(body, session, x, producer)
                    continue
            except Exception:  # not the ordinary token of an open session: `_take_body` finds out what it is and says so
                pass
            self._take_body(address, body, owner)
        self.waves.count += len(wave.rows) - before

    def _admitted(self, arrivals: Iterable[tuple[Address, bytes, str | None]]) -> Iterator[tuple[Address, bytes, str]]:
        """Answer the bodies of connections that have no standing here, and of keys that send too much; those that are left.

        One by one, so that those of a connection are answered in their order.
        """
        for address, body, user in arrivals:
            refusal = self._standing.refusal(user, self._now)
            if refusal is not None:
                self._refuse(address, body, refusal, user or "")
            else:
                yield address, body, user or ""

    def _refuse(self, address: Address, data: bytes, error: RequestError, owner: str = "") -> None:
        """Answer all requests of a body with this."""
        if self.order.bytes_of(address, owner) > CROWDED_BYTES:
            self.crowded.add(routing_id(address))
            return
        items, problem = decode(data, self._limits.frame_requests)
        body = Body(address, len(items) + (problem is not None), self._now, owner)
        for place, item in enumerate(items):
            self._refusals.refuse(body, place, item, error)
        if problem is not None:
            body.answer(len(items), self._answers.refused(problem, {}))
        body.bytes = sum(len(reply or b"") for reply in body.replies)
        self.order.add(body)

    def _take_flood(self, address: Address, row: int, session: str, owner: str) -> None:
        """A token that came alone, of a session that is busy."""
        body = Body(address, 1, self._now, owner)
        self._refusals.session(body, 0, {"session": session}, row)
        body.bytes = len(body.replies[0] or b"")
        if self.order.bytes_of(address, owner) <= CROWDED_BYTES:
            self.order.add(body)
        else:
            self.crowded.add(routing_id(address))

    def _take_body(self, address: Address, data: bytes, owner: str) -> None:
        """Take in a body of any kind."""
        held_bytes = self.order.bytes_of(address, owner)
        if held_bytes > CROWDED_BYTES:
            self.crowded.add(routing_id(address))
            return
        met = True
        if not owner and held_bytes <= CONNECTION_BYTES:  # there is nothing to count, and no reason to refuse it
            told = self.parts.tell(data, self._limits.frame_requests)
            if told is not None and self._take_told(address, *told):
                return
            met = told is not None
        items, problem = decode(data, self._limits.frame_requests)
        body = Body(address, len(items) + (problem is not None), self._now, owner)
        body.bytes = len(body.replies) * self.reply_bytes
        table, waves, size = self._engine.table, self.waves, self._plain_size
        rows, live, producers = table.rows, table.live, table.producers
        waiting, closing = waves.waiting, waves.closing
        room = self._limits.waiting - len(items)  # a session whose queue is shorter than this has room for the whole body
        judged: dict[int, bool] = {}
        run_turn, run_place, short, plain = -1, 0, 0, 0
        crowded = self._standing.count(owner, len(body.replies), held_bytes)
        for place, item in enumerate(items):
            if crowded is not None:
                self._refusals.refuse(body, place, item, crowded)
                continue
            try:
                keys = len(item)
                session, x = item["session"], item["x"]
                row = rows[(owner, session) if owner else session]  # type: ignore[index]
                turn = waiting[row]
                if turn and len(items) == 1:
                    self.again = True
                if turn and turn >= room and not self._has_room(row, len(items) - place, judged):
                    self._refusals.session(body, place, item, row)
                    continue
                if type(x) is int and 0 <= x < size and live[row] and row not in closing and (not turn or turn < room):
                    if keys == 2 or (keys == 3 and type(item["id"]) is int):  # the ordinary token again, for each of many
                        if turn != run_turn or place != run_place:  # not the neighbour of the one before
                            wave = waves.at(turn)
                            wave.runs.append((len(wave.body_rows), body, place))
                            wave_row, wave_x, wave_name = wave.body_rows.append, wave.body_xs.append, wave.body_names.append
                            run_turn = turn
                        run_place = place + 1
                        wave_row(row)
                        wave_x(x)
                        wave_name(session)
                        if keys == 3:
                            body.ids[place] = item["id"]
                        else:
                            plain += 1
                        waiting[row] = turn + 1
                        short += 1
                        continue
                    n, producer, known = item["n"], item["producer"], producers[row]
                    mine: Any = known.lone if known.id == producer else known[producer]  # type: ignore[union-attr, index]
                    ack = item.get("ack", n - 1 if len(body.replies) == 1 else 0)
                    if (
                        type(n) is type(ack) is int
                        and n > 0
                        and ack >= 0
                        and keys == 4 + ("ack" in item) + (type(item.get("id")) is int)
                    ):  # numbered: judged when the wave runs
                        mine.heard_at = self._now  # as above
                        waves.at(turn).numbered.append((row, x, producer, n, ack, body, place))
                        if "id" in item:
                            body.ids[place] = item["id"]
                        waiting[row] = turn + 1
                        short += 1
                        continue
            except (AttributeError, KeyError, TypeError):
                pass
            self._request(body, place, items, judged)
        waves.count += short
        if plain == len(body.replies) and not met:
            self.parts.remember_all(data, items)
        if problem is not None:
            body.answer(len(items), self._answers.refused(problem, {}))
        if not body.missing:
            body.bytes = sum(map(len, body.replies))  # type: ignore[arg-type]
        self.order.add(body)

    def _take_told(self, address: Address, names: Sequence[str], xs: Sequence[int]) -> bool:
        """Take in a body of plain tokens of different sessions, if all of these wait for the same wave. Whether it was done."""
        table, waves, waiting = self._engine.table, self.waves, self.waves.waiting
        try:
            rows = itemgetter(*names)(table.rows)
        except KeyError:
            return False
        of_rows = itemgetter(*rows)
        turn, *others = set(of_rows(waiting))
        if others or len(set(rows)) < len(rows) or waves.closing or not all(of_rows(table.live)):
            return False
        if turn >= self._limits.waiting - len(rows):
            return False
        body, wave = Body(address, len(rows), self._now), waves.at(turn)
        body.bytes = len(rows) * self.reply_bytes
        wave.runs.append((len(wave.body_rows), body, 0))
        wave.body_rows += rows
        wave.body_xs += xs
        wave.body_names += names
        turn += 1
        for row in rows:
            waiting[row] = turn
        waves.count += len(rows)
        self.order.add(body)
        return True

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
            if request.op in ("step", "peek"):
                self._engine.check_want(request.want, request.surprisal)
            self._standing.claim(request, body.owner)
            row = self._engine.table.rows.get(request.session)
            ahead = 0 if row is None else self.waves.waiting[row]
            self.charge(body, self._answers.size(request, ahead) - SPARE_BYTES)
            if "session" not in OPS[request.op]:
                user = self._standing.confined(body.owner)
                waiting = self.order.requests_of(user) if user else self.waves.count
                body.answer(place, self._answers.about(request, waiting, self._now, user))
                if self._keeper is not None and request.op == "sessions":
                    self.told.append((body, place, request))
                return
            if request.op == "step":
                request.x = self._engine.model.input.token(request.x)
            elif request.op == "peek":
                request.xs = [self._token(request.xs, i) for i in range(len(request.xs))]
            if request.ack is None:
                request.ack = request.n - 1 if len(body.replies) == 1 else 0
            if row is None and self._keeper is not None:
                row = self.row_of(request.session)
                self._keeper.residence.absent.add(row)
            elif row is None:
                kept = self._without_row(request, body)
                if kept is not None:
                    body.answer(place, kept)
                    return
                row = self.row_of(request.session)
            elif not self._has_room(row, len(items) - place, judged):
                self._refusals.refuse(body, place, item, self._refusals.session_busy)
                return
            elif request.producer is not None:
                self._engine.heard(row, request.producer, self._now)
            self.waves.add(row, request, body, place)
        except RequestError as error:
            self._refusals.refuse(body, place, item, error)
        except Exception:
            body.answer(place, self._answers.internal(readable(item)))

    def refuse_told(self, error: RequestError) -> None:
        """The names told since the last write may not be so: it could not be kept."""
        for body, place, request in self.told:
            body.replies[place] = self._answers.refused(error, echo(request))

    def _token(self, xs: list[Any], place: int) -> Any:
        try:
            return self._engine.model.input.token(xs[place])
        except RequestError as error:
            raise type(error)(f"xs[{place}]: {error}", field="xs") from None

    def _without_row(self, request: Request, body: Body) -> bytes | None:
        """A request for a name that has no row: nothing of it is open or waits, so its turn is now.

        Returns:
            The kept reply to a repeat, or None: it opens the name.
        """
        engine, session = self._engine, request.session
        if request.producer is not None:
            kept = engine.judge(session, request.producer, request.n, request.identity(), self._now, request.ack or 0)
            if kept is not None:
                self.charge(body, len(kept) - self.reply_bytes)
                return self._answers.again(kept, request)
        if request.op == "step":
            engine.known(session)
        elif request.op not in ("open", "reset"):
            raise engine.unknown(session)
        return None

    def row_of(self, session: Name) -> int:
        """The row of a session, with its place in the lists of this class; a new one for a new name."""
        row = self._engine.table.take(session)
        self.waves.reach(row)
        return row

    def charge(self, body: Body, more: int) -> None:
        """Count what a reply takes beyond the place that every one has; refuse it where the body could grow too large."""
        size = body.bytes + max(0, more)
        if size > self._limits.reply_bytes:
            raise TooLarge(
                f"With this request the reply could take {size} bytes, {self._limits.reply_bytes} is the limit; send fewer "
                "requests in a body or tokens in a peek, or want less.",
                limit=self._limits.reply_bytes,
            )
        self.order.grow(body, size - body.bytes)

    def _has_room(self, row: int, left: int, judged: dict[int, bool]) -> bool:
        """Whether a session's requests of a body are taken, or its queue could grow too long; an empty queue takes any body.

        As if all the requests that are `left` of the body were the session's: so those that took the short way before, for
        which the whole body had to fit, are never followed by a refusal.
        """
        if row not in judged:
            turn = self.waves.waiting[row]
            judged[row] = not turn or turn + left <= self._limits.waiting
        return judged[row]

    def check(self) -> None:
        """Assert what always holds between a wave that is done and the next."""
        self.order.check()
        self.waves.check()
        table = self._engine.table
        for row, name in enumerate(table.names):
            if name is not None:
                assert table.live[row] or self.waited_for(row)
