"""Clients, a worker and a network that loses, delays and repeats, without sockets and under a clock of its own."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

from rnnstream.client.call import Call
from rnnstream.client.core import Core
from rnnstream.client.plans import Stream
from rnnstream.errors import BadToken, Busy, NoReply, NotFinite, RequestError
from rnnstream.wire import replies, requests

from .toy import BAD, Counting

Task = Generator[Call[Any], None, None]


class Moody(Counting):
    """A worker that is busy now and then, and now and then cannot keep what it has done.

    Attributes:
        moods: the chance of each, from 0.
        fickle: it also refuses a token now and then that it takes the next time.
    """

    def __init__(self, chance: random.Random, fickle: bool) -> None:
        super().__init__()
        self.chance = chance
        self.fickle = fickle
        self.moods = 0.1

    def answer(self, body: bytes) -> bytes:
        if self.chance.random() < self.moods:
            maps, _ = requests.decode(body, 1000)
            if "session" in maps[0]:
                no = {"error": "busy", "message": "later", "retry_after_ms": self.chance.choice([1, 20, 300])}
                return b"".join(replies.encode(no | {key: item[key] for key in ("id",) if key in item}) for item in maps)
        return super().answer(body)

    def _step(self, request: requests.Request) -> dict[str, Any]:
        mood = self.chance.random()
        if mood < self.moods / 4:
            error = RequestError("disk full", retry_after_ms=10)
            error.code = "store_error"
            raise error
        if mood < self.moods and self.fickle:
            raise NotFinite("as it happens")
        return super()._step(request)


class Pipe:
    """One connection of the transport: what is under way to the worker, and back."""

    def __init__(self) -> None:
        self.out: deque[bytes] = deque()
        self.back: deque[bytes] = deque()
        self.live = True


class Client:
    """A core, and the tasks that use it.

    Attributes:
        asked: the tokens of each session, in the order in which they were asked for.
        pipes: all that were ever made; the last is the present one.
    """

    def __init__(self, number: int, timeout_s: float) -> None:
        self.core = Core("tcp://toy:1", timeout_s, f"producer{number}")
        self.tasks: dict[Task, Call[Any]] = {}
        self.asked: dict[str, list[int]] = {}
        self.pipes = [Pipe()]


class Simulation:
    """All of it.

    Attributes:
        told: what became of each token, as its caller was told: "ok", "unknown" or "void" (it must never count).
        ts: what t the prediction of each "ok" had.
        resent: sendings beyond the first.
    """

    def __init__(self, seed: int, clients: int, sessions: int, timeout_s: float = 20.0, trouble: bool = True) -> None:
        self.chance = random.Random(seed)
        self.worker = Moody(self.chance, fickle=trouble)
        self.clients = [Client(number, timeout_s) for number in range(clients)]
        self.sessions = [f"s{number}" for number in range(sessions)]
        self.trouble = trouble
        self.now = 0.0
        self.token = 1000  # the last one used; each is used once
        self.told: dict[int, str] = {}
        self.ts: dict[int, int] = {}
        self.resent = 0

    # -- what callers do --

    def _tokens(self, many: int) -> list[int]:
        tokens = list(range(self.token + 1, self.token + 1 + many))
        self.token += many
        if self.chance.random() < 0.3:
            tokens[self.chance.randrange(many)] = BAD
        return tokens

    def _step(self, client: Client, session: str) -> Task:
        [x] = self._tokens(1)
        call = client.core.step(session, x)
        client.asked.setdefault(session, []).append(x)
        self.told[x] = "unknown"
        try:
            yield call
            self.ts[x] = call.result().t
            self.told[x] = "ok"
            assert (call.result().y, x == BAD) == (x, False)
        except NoReply:
            assert x != BAD or self.trouble
        except RequestError as error:
            expected = x == BAD or type(error) in (Busy, NotFinite) or error.code == "store_error"
            if not expected:
                raise
            if not isinstance(error, NotFinite):  # else a copy that was lost and found may count when the mood has changed
                self.told[x] = "void"
        finally:
            client.core.give_up(call)

    def _stream(self, client: Client, session: str) -> Task:
        """As the loops of the clients do it."""
        chance = self.chance
        tokens = self._tokens(chance.randint(1, 120))
        core = client.core
        plan = Stream(
            core, session, want="argmax", surprisal=False, live=chance.random() < 0.3, window=chance.choice([None, 1, 7])
        )
        for x in tokens:
            self.told[x] = "unknown"
        source, place = iter(tokens), 0
        try:
            while True:
                while room := plan.room():
                    some = list(islice(source, room))
                    client.asked.setdefault(session, []).extend(some)
                    plan.put(some)
                    self._flush(client)
                call = plan.waiting()
                if call is None:
                    break
                yield call
                for prediction in plan.results():
                    x = tokens[place]
                    assert prediction.y == x
                    self.told[x], self.ts[x] = "ok", prediction.t
                    place += 1
            assert place == len(tokens)
        except NoReply:
            pass
        except RequestError as error:
            if isinstance(error, BadToken):
                assert tokens[place] == BAD
                self._void(tokens[place:])
            elif error.code != "store_error" and type(error) not in (Busy, NotFinite):
                raise
        finally:
            plan.abandon()

    def _void(self, tokens: Sequence[int]) -> None:
        for x in tokens:
            self.told[x] = "void"

    def _read(self, client: Client, session: str) -> Task:
        core = client.core
        call: Call[Any] = self.chance.choice([core.info, lambda name: core.peek(name, [1, 2], "argmax", False)])(session)
        try:
            yield call
            call.result()
        except (RequestError, NoReply):
            pass
        finally:
            core.give_up(call)

    def begin(self) -> None:
        """One more task."""
        client = self.chance.choice(self.clients)
        kind = self.chance.choice([self._step, self._step, self._step, self._stream, self._read])
        task = kind(client, self.chance.choice(self.sessions))
        self._go(client, task)

    def go(self) -> bool:
        """Let a task go on whose call is done."""
        able = [(client, task) for client in self.clients for task, call in client.tasks.items() if call.done]
        if able:
            self._go(*self.chance.choice(able))
        return bool(able)

    def _go(self, client: Client, task: Task) -> None:
        client.tasks.pop(task, None)
        with suppress(StopIteration):
            client.tasks[task] = next(task)
        self._flush(client)

    def cancel(self) -> None:
        """Somebody does not want to wait any more."""
        able = [(client, task) for client in self.clients for task in client.tasks]
        if able:
            client, task = self.chance.choice(able)
            del client.tasks[task]
            task.close()
            self._flush(client)

    # -- what the network does --

    def _flush(self, client: Client) -> None:
        if client.core.take_renewal():
            self._cut(client)
        bodies = client.core.outgoing(self.now)
        self.resent += sum(call.sends > 1 for call in list(client.core._flight)[len(client.core._flight) - len(bodies) :])
        client.pipes[-1].out.extend(bodies)
        client.core.check()

    def work(self) -> bool:
        """Let the worker read one body: of any connection, also of one that is gone."""
        able = [pipe for client in self.clients for pipe in client.pipes if pipe.out]
        if able:
            late = self.chance.random() < 0.1  # what lies in a connection that is gone may be read long after
            pipe = self.chance.choice([pipe for pipe in able if pipe.live != late] or able)
            reply = self.worker.answer(pipe.out.popleft())
            if pipe.live:
                pipe.back.append(reply)
        return bool(able)

    def hear(self) -> bool:
        """Let a client read one body."""
        able = [client for client in self.clients if client.pipes[-1].back]
        if able:
            client = self.chance.choice(able)
            client.core.received(client.pipes[-1].back.popleft(), self.now)
            self._flush(client)
        return bool(able)

    def cut(self) -> None:
        """A connection is lost; libzmq makes a new one by itself."""
        self._cut(self.chance.choice(self.clients))

    def _cut(self, client: Client) -> None:
        pipe = client.pipes[-1]
        pipe.live = False
        pipe.back.clear()
        for _ in range(self.chance.choice([0, 0, self.chance.randint(0, len(pipe.out)), len(pipe.out)])):
            pipe.out.pop()  # what had not gone out; the rest the worker reads some day
        client.pipes = [pipe for pipe in client.pipes if pipe.out] + [Pipe()]

    def pass_time(self, seconds: float) -> None:
        """It is later; who has something to do does it."""
        self.now += seconds
        for client in self.clients:
            while client.core.overdue(self.now):
                back = client.pipes[-1].back
                if back:
                    client.core.received(back.popleft(), self.now)
                else:
                    client.core.expire(self.now)
                self._flush(client)

    # -- all of it --

    def run(self, events: int) -> None:
        """So many events, then peace until nobody waits."""
        deeds = {
            self.begin: 6,
            self.go: 30,
            self.work: 30,
            self.hear: 30,
            self.cancel: 1 if self.trouble else 0,
            self.cut: 2,
            lambda: self.pass_time(self.chance.choice([0.001, 0.03, 0.2])): 6,
        }
        for deed in self.chance.choices(list(deeds), list(deeds.values()), k=events):
            deed()
        self.worker.moods = 0.0
        for _ in range(events * 20):
            if not (self.go() or self.hear() or self.work()):
                due = [client.core.deadline() for client in self.clients]
                if not any(client.tasks for client in self.clients):
                    break
                self.pass_time(min(at for at in due if at is not None) - self.now)
        assert not any(client.tasks for client in self.clients), "somebody waits for ever"
        while self.work():
            pass
        self.verify()

    def verify(self) -> None:
        """What callers were told is what happened."""
        for session in self.sessions:
            applied = self.worker.applied.get(session, [])
            assert len(applied) == len(set(applied)), "each counts once"
            assert not [x for x in applied if self.told[x] == "void"], "none counts that was refused, or stood behind one"
            assert self.worker.ts.get(session, 0) == len(applied)
            for client in self.clients:
                mine = [x for x in client.asked.get(session, []) if self.told.get(x) == "ok"]
                assert [applied[self.ts[x] - 1] for x in mine] == mine, "each has the t that it was told"
                assert [self.ts[x] for x in mine] == sorted(self.ts[x] for x in mine), (
                    "in the order in which they were asked for"
                )
        if not self.trouble:
            assert set(self.told.values()) <= {"ok", "void"}
