"""The worker's core: request bodies in, reply bodies out. No socket, no clock.

The way of a token: `take` (decoded, checked, put into a wave by `Intake`) -> `turn` (one wave, one batch through the engine, by
`Runner`; then written to the store by `Keeper`, if there is one) -> replies.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

from rnnstream.engine.engine import Engine
from rnnstream.engine.numbering import SHARE
from rnnstream.errors import Internal, RequestError, StoreError
from rnnstream.store.interface import Store
from rnnstream.wire import replies as wire
from rnnstream.wire.limits import Limits
from rnnstream.worker.alone import Alone
from rnnstream.worker.answers import Answers
from rnnstream.worker.intake import Intake
from rnnstream.worker.keeper import Keeper
from rnnstream.worker.order import Address
from rnnstream.worker.peeks import Peeks
from rnnstream.worker.quotas import Quotas
from rnnstream.worker.replay import Replay
from rnnstream.worker.runner import Runner
from rnnstream.worker.stats import Stats
from rnnstream.worker.waves import Wave

log = logging.getLogger("rnnstream.worker")

EXPIRED_AT_ONCE = 100  # sessions before a turn, when many are due at once: 0.4 ms


class Core:
    """Turns request bodies into reply bodies.

    Args:
        engine: the sessions.
        worker: id of the worker, for `hello` and `ping`.
        version: of the package, for `hello`.
        limits: what is accepted.
        keeper: keeps the sessions in a store; None where they live in memory alone.
        hold_s: how long the replies to a wave may wait for those that follow it, so that one write keeps them all.
        quotas: of each key, where the worker knows its users by their keys.
        is_admin: whether a key may list, inspect and close the sessions of others.
        secret: random bytes, for the cursors of listings: they are to tell users nothing of each other.

    Attributes:
        stats: what has been done so far.
        alone: may answer a body that comes alone while nothing is `waiting`, instead of `take` and `turn`; None: nothing may.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        worker: str,
        version: str,
        limits: Limits,
        keeper: Keeper | None = None,
        hold_s: float = 0.0,
        quotas: Quotas | None = None,
        is_admin: Callable[[str], bool] = lambda key: False,
        secret: bytes = b"",
    ) -> None:
        self.engine = engine
        self.stats = Stats()
        self._answers = Answers(engine, self.stats, worker=worker, version=version, limits=limits, keeper=keeper, secret=secret)
        quotas = quotas or Quotas()
        engine.table.most_owned = quotas.sessions if quotas.sessions is not None else max(1, engine.table.max_sessions // SHARE)
        self._intake = Intake(engine, self._answers, limits, keeper, quotas=quotas, is_admin=is_admin)
        self._peeks = Peeks(engine, self._answers)
        self._runner = Runner(engine, self._answers, self._intake, self._peeks, self.stats, keeper)
        straight = self._runner.moves_one and engine.idle_timeout_s is None
        self.alone = Alone(engine, self._intake.parts, self._runner.replies.labels) if straight else None
        self._keeper, self._hold_s = keeper, hold_s
        self._group: list[tuple[Wave, list[bytes]]] = []  # waves that have run, and their replies, which are still held
        self._group_began = 0.0
        self._began: float | None = None  # when this turn took in its first bodies
        self._answered: list[tuple[int, float]] = []  # bodies that this turn answers, and when they came

    def begin(self, store: Store) -> tuple[int, float]:
        """Have everything in memory that the keeper's store says; comes before everything else.

        Returns:
            How many steps were replayed, and when the store was written last, in seconds on its clock.

        Raises:
            BadStore, StoreError: the store is damaged, or fails.
        """
        assert self._keeper is not None
        replay = Replay(self.engine, store, self._keeper, self._intake, self._runner)
        self._keeper.attach(self._intake.row_of, self._intake.waited_for, replay.rebuild)
        return replay.start()

    @property
    def waiting(self) -> int:
        """How many requests wait; above 0 also while replies do that could leave."""
        return self._intake.waves.count + len(self._peeks.under_way) + self._intake.order.late

    @property
    def full(self) -> bool:
        """Whether so much waits that nothing more should be read."""
        return self._intake.full

    def take(
        self, addresses: Sequence[Address], bodies: Sequence[bytes], now: float, users: Sequence[str | None] | None = None
    ) -> None:
        """Take in request bodies, to be carried out by `turn`; may be called several times before it.

        Args:
            addresses: where each body came from.
            bodies: as they were received.
            now: seconds, monotonic.
            users: the key that each body came from; None for one whose connection is to be served nothing. None for all: the
                worker knows no keys, and the sessions are nobody's.
        """
        if self.engine.idle_timeout_s is not None:
            self._expire(now, self.engine.idle_timeout_s)
        if self._began is None:
            self._began = now
        self.stats.bodies += len(bodies)
        self._intake.take(addresses, bodies, now, users)

    def turn(self, now: float) -> list[tuple[Address, bytes]]:
        """Run one wave, or several of one session, and hand out what is answered: with a store, once that keeps it.

        Returns:
            (address, body) pairs, to be sent in this order; then `sent` is to be called. While `waiting` is not 0 call again,
            with whatever came meanwhile taken in before. With a store, nothing leaves that it does not keep.
        """
        wave = self._intake.waves.take()
        if wave.rows and wave.plain and self._keeper is None and not self._intake.order.held:  # the usual case
            out = list(self._deliver(wave, self._run(wave, now)))
            self._answered = [(len(out), now if self._began is None else self._began)]
            self._began = None
            return out
        self._answered = []
        if wave:
            if not self._group:
                self._group_began = now
            run = [wave] if self._keeper is not None else self._intake.waves.take_run(wave)
            self._group += zip(run, self._run_all(run, now), strict=True)
        if self._keeper is not None:
            if self._intake.waves.count and now - self._group_began < self._hold_s:
                return []
            self._write(now)
        self._intake.told.clear()
        out = []
        for ran, replies in self._group:
            out += self._deliver(ran, replies)
        self._group.clear()
        if self._peeks.under_way:
            self._peeks.run()
        if out:
            self._answered.append((len(out), now if self._began is None else self._began))
        self._began = None
        if self._intake.order.held:
            finished = self._intake.order.finished()
            self._answered += [(1, body.arrived) for body in finished]
            out += [(body.address, body.joined()) for body in finished]
        self._answers.rested()
        return out

    def _expire(self, now: float, idle_s: float) -> None:
        keeper = self._keeper
        if keeper is None:
            self.engine.expire(now, self._intake.waited_for, EXPIRED_AT_ONCE)
        elif not keeper.failing:  # else nobody could be told of it
            keeper.changed(*self.engine.expire(now, self._intake.waited_for, EXPIRED_AT_ONCE))
            keeper.sweep(now, idle_s)

    @property
    def again(self) -> bool:
        """Whether what was taken in last had a token that came alone, of a session that waits already: more would not help."""
        return self._intake.again

    @property
    def crowded(self) -> bool:
        """Whether a connection has far too much unanswered."""
        return bool(self._intake.crowded)

    def take_crowded(self) -> set[bytes]:
        """These connections, to be cut off; says so once."""
        crowded, self._intake.crowded = self._intake.crowded, set()
        return crowded

    def sent(self, now: float) -> None:
        """The replies of the last turn were sent."""
        self.stats.end(now, self._answered)

    def handle(
        self, addresses: Sequence[Address], bodies: Sequence[bytes], now: float, users: Sequence[str | None] | None = None
    ) -> list[tuple[Address, bytes]]:
        """`take` and `turn` in one, where time stands still."""
        self.take(addresses, bodies, now, users)
        out = self.turn(now)
        self.sent(now)
        return out

    def _run_all(self, waves: list[Wave], now: float) -> list[list[bytes]]:
        """Run a wave, or several of one session: the replies to the ordinary tokens of each."""
        replies = self._runner.run_on(waves, now) if len(waves) > 1 else None
        if replies is None:
            return [self._run(wave, now) for wave in waves]
        for wave in waves:
            self._intake.done(wave)
        return replies

    def _run(self, wave: Wave, now: float) -> list[bytes]:
        """Run a wave, or refuse it: the replies to its ordinary tokens."""
        try:
            if self._keeper is not None:
                self._keeper.prepare(wave, now)
            replies = self._runner.run(wave, now)
        except RequestError as error:
            replies = self._runner.refused(wave, error)
        except Exception:
            log.exception("what a wave needs could not be had")
            replies = self._runner.refused(wave, Internal("A bug in the worker; its log has the traceback."))
        self._intake.done(wave)
        return replies

    def _write(self, now: float) -> None:
        """Have the store keep what the waves of this group have changed; without that, all that waits is refused."""
        assert self._keeper is not None
        try:
            self._keeper.write(now)
        except Exception as problem:
            error = problem if isinstance(problem, StoreError) else StoreError("A bug in the worker.", retry_after_ms=1000)
            if error is not problem:
                log.exception("a group could not be written")
            self._intake.refuse_told(error)
            self._group = [(wave, self._runner.refused(wave, error, replies)) for wave, replies in self._group]
            for wave in self._intake.waves.take_all():
                self._group.append((wave, self._runner.refused(wave, error)))
                self._intake.done(wave)
            self._peeks.refuse(error)
            self._keeper.drop()

    def _deliver(self, wave: Wave, replies: list[bytes]) -> Iterable[tuple[Address, bytes]]:
        """Put the replies of bodies in their places, and hand out those to tokens that came alone."""
        for body, place, reply in wave.answers:
            body.answer(place, reply)
        for place, number in wave.ids.items():
            replies[place] = wire.with_id(replies[place], number)
        if wave.runs or wave.numbered:
            alone = len(wave.rows)
            for start, stop, body, place in wave.bodies():
                body.replies[place : place + stop - start] = replies[alone + start : alone + stop]
                body.missing -= stop - start
            for reply, (*_, body, place) in zip(replies[alone + len(wave.body_rows) :], wave.numbered, strict=True):
                body.answer(place, reply)
        return zip(wave.addresses, replies, strict=False)

    def check(self) -> None:
        """Assert what always holds between calls of `handle`."""
        self.engine.check()
        self._peeks.check()
        if self._group:  # whose replies are still held
            return
        self._intake.check()
        if self._keeper is not None:
            self._keeper.check()
