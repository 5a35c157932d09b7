"""Which request is in which wave.

A wave holds at most one request of each session, so that it can be stepped as one batch. A request takes the wave behind
the last one that its session already waits in; so the requests of one session run in the order in which they came, and a
session with much to say delays nobody else by more than the wave that runs.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator

from rnnstream.engine.producers import Producer
from rnnstream.wire.requests import Request
from rnnstream.worker.order import Address, Body

RUN = 16  # waves of one session that run in one turn: with 7 us each for the state, no longer than a wave of many

# A numbered token of a body: row, x, producer, n, ack, body, place in the body.
Numbered = tuple[int, int, str, int, int, Body, int]

# The number of a token that came alone: place in the wave, producer, n, the producer's id.
Mark = tuple[int, Producer, int, str]


class Wave:
    """Requests of different sessions that are run together.

    Tokens that want no more than the ordinary reply stand in parallel lists: those that came alone and can be answered at once,
    and those whose replies go into a body.

    Attributes:
        rows, xs, addresses: of the tokens that came alone.
        names: what their sessions are called, as the requests had it: to look it up by row costs a cache miss, where there are
            many sessions.
        ids: the ids of those that have one, by their place in these lists.
        marks: the numbers of those that have one: (place in these lists, producer, n, the producer's id), judged when they
            came.
        body_rows, body_xs, body_names: of the tokens of bodies.
        runs: where their replies go: (start, body, place) says that those from `start` to the next run's start are the
            replies from `place` on in that body.
        numbered: the numbered tokens of bodies, to be judged when the wave runs.
        others: every other request that names a session: (row, request, body, place in the body).
        answers: the replies to those, once they have been carried out: (body, place, reply).
    """

    __slots__ = (
        "addresses",
        "answers",
        "body_names",
        "body_rows",
        "body_xs",
        "ids",
        "marks",
        "names",
        "numbered",
        "others",
        "rows",
        "runs",
        "xs",
    )

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.xs: list[int] = []
        self.names: list[str] = []
        self.addresses: list[Address] = []
        self.ids: dict[int, int] = {}
        self.marks: list[Mark] = []
        self.body_rows: list[int] = []
        self.body_xs: list[int] = []
        self.body_names: list[str] = []
        self.runs: list[tuple[int, Body, int]] = []
        self.numbered: list[Numbered] = []
        self.others: list[tuple[int, Request, Body, int]] = []
        self.answers: list[tuple[Body, int, bytes]] = []

    def answer(self, body: Body, place: int, reply: bytes) -> None:
        """The reply to one of the others; it goes into its body when the wave's replies are delivered."""
        self.answers.append((body, place, reply))

    def bodies(self) -> Iterator[tuple[int, int, Body, int]]:
        """The runs with their ends: (start, stop, body, place)."""
        stops = [start for start, _, _ in self.runs[1:]] + [len(self.body_rows)]
        for (start, body, place), stop in zip(self.runs, stops, strict=False):  # no runs, no stops
            yield start, stop, body, place

    @property
    def plain(self) -> bool:
        """Whether it has nothing but tokens that came alone."""
        return not (self.body_rows or self.numbered or self.others)

    @property
    def alone(self) -> int:
        """The row of its only request, if that is an ordinary token of a body of several; else -1.

        A flood of bodies of one would get four times as much done by running together, and hold everybody else up for it.
        """
        if self.rows or self.others or len(self.body_rows) + len(self.numbered) != 1:
            return -1
        row, body = (self.body_rows[0], self.runs[0][1]) if self.body_rows else (self.numbered[0][0], self.numbered[0][5])
        return row if len(body.replies) > 1 else -1

    def all_rows(self) -> list[int]:
        """The row of every request, the ordinary tokens first."""
        return [*self.rows, *self.body_rows, *(row for row, *_ in self.numbered), *(row for row, *_ in self.others)]

    def __len__(self) -> int:
        return len(self.rows) + len(self.body_rows) + len(self.numbered) + len(self.others)


class Waves:
    """The waves that wait, and how many requests of each row are in them.

    Attributes:
        waiting: by row: requests that wait, which is also the wave that the next one goes into.
        closing: rows with a `close` waiting: tokens behind it are judged, not just stepped.
        count: requests that wait, in all.
    """

    def __init__(self, rows: int) -> None:
        self._waves: deque[Wave] = deque([Wave()])
        self.waiting: list[int] = [0] * rows
        self.closing: set[int] = set()
        self.count = 0

    def reach(self, row: int) -> None:
        """Have places for rows up to this one."""
        if row >= len(self.waiting):
            self.waiting.extend([0] * (row + 1 - len(self.waiting)))

    def first(self) -> Wave:
        """The wave that runs next."""
        return self._waves[0]

    def at(self, turn: int) -> Wave:
        """The wave of this turn, which may be the first one behind those that there are."""
        if turn == len(self._waves):
            self._waves.append(Wave())
        return self._waves[turn]

    def add(self, row: int, request: Request, body: Body, place: int) -> None:
        """Put a request that is not an ordinary token into its session's next wave."""
        turn = self.waiting[row]
        self.at(turn).others.append((row, request, body, place))
        self.waiting[row] = turn + 1
        self.count += 1
        if request.op == "close":
            self.closing.add(row)

    def take(self) -> Wave:
        """The wave whose turn it is; `done` when it has been run."""
        wave = self._waves.popleft()
        if not self._waves:
            self._waves.append(Wave())
        return wave

    def take_run(self, wave: Wave) -> list[Wave]:
        """This wave, which was taken, and those behind it that have nothing but its session's tokens either; at most `RUN`."""
        run, row = [wave], wave.alone
        while row >= 0 and len(run) < RUN and self._waves[0].alone == row:
            run.append(self.take())
        return run

    def take_all(self) -> list[Wave]:
        """All waves that have something in them, the first one first."""
        waves = [wave for wave in self._waves if wave]
        self._waves = deque([Wave()])
        return waves

    def done(self, wave: Wave) -> list[int]:
        """Its requests wait no more; the rows that may have nothing left to wait for."""
        waiting = self.waiting
        for row in wave.rows:
            waiting[row] -= 1
        if wave.plain:
            self.count -= len(wave.rows)
            return []
        idle = []
        for row in wave.body_rows:
            waiting[row] -= 1
        for row, *_ in wave.numbered:
            waiting[row] -= 1
        for row, *_ in wave.others:
            waiting[row] -= 1
            if not waiting[row]:
                self.closing.discard(row)
                idle.append(row)
        self.count -= len(wave)
        return idle

    def check(self) -> None:
        """Assert what always holds between a wave that is done and the next."""
        depth = Counter(row for wave in self._waves for row in wave.all_rows())
        assert self.waiting == [depth[row] for row in range(len(self.waiting))]
        assert self.count == depth.total()
        for turn, wave in enumerate(self._waves):
            rows = wave.all_rows()
            assert len(set(rows)) == len(rows) == len(wave)
            assert len(wave.rows) == len(wave.xs) == len(wave.names) == len(wave.addresses)
            assert len(wave.body_rows) == len(wave.body_xs) == len(wave.body_names)
            assert turn < len(self._waves) - 1 or not turn or rows
        assert all(self.waiting[row] for row in self.closing)
