"""The asyncio client: the same core and plans as the blocking one, and the same names, awaitable."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from itertools import islice
from typing import Any, TypeVar

from rnnstream.client.call import Call
from rnnstream.client.core import Core
from rnnstream.client.link import Link
from rnnstream.client.plans import Pages, Plan, Stream, is_sequence
from rnnstream.client.token import Token
from rnnstream.prediction import Prediction

T = TypeVar("T")
Take = Callable[[int], Awaitable[list[Any]]]


class AsyncClient:
    """A connection to a worker, shared by any number of tasks of one event loop; for the rest see `Client`.

    The first operation connects, and ties the client to the running loop. A task that is cancelled while it waits
    leaves the others alone; whether its request was applied is not known. When one message gets no reply in time, the
    connection is made anew, and all that are in flight over it get `NoReply`.

    Args:
        address: a ZeroMQ endpoint, such as "tcp://127.0.0.1:5555".
        timeout_s: how long each message is waited for before `NoReply`, in seconds above 0.

    Raises:
        ValueError: the timeout is not above 0.
    """

    def __init__(self, address: str, timeout_s: float = 10.0) -> None:
        self._core = Core(address, timeout_s)
        self._link = Link(address)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiters: dict[int, asyncio.Future[None]] = {}  # by id of the call
        self._timer: asyncio.TimerHandle | None = None
        self._watched = -1  # the descriptor that the loop watches

    def session(self, name: str) -> AsyncSession:
        """The session of this name; asks nobody, so that it may or may not exist."""
        return AsyncSession(self, name)

    async def hello(self) -> dict[str, Any]:
        """Who is there: protocol, version, limits and model, as docs/protocol.md lists them."""
        return await self._ask(self._core.ask_hello())

    async def ping(self) -> dict[str, Any]:
        """Have the worker make a step on a scratch row, and answer."""
        return await self._ask(self._core.ping())

    def sessions(self, prefix: str = "") -> AsyncIterator[str]:
        """The names of the sessions that begin with `prefix`, in no given order; asked for a page at a time."""
        return self._follow(Pages(self._core, prefix), _taker(()))

    async def close(self) -> None:
        """Close the connection; tasks that still wait get `ConnectionFailed`. Can be called again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake(self._core.close())
        self._drop()
        self._link.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def _ask(self, call: Call[T]) -> T:
        await self._settle(call)
        return call.result()

    async def _follow(self, plan: Plan[T], take: Take) -> AsyncGenerator[T, None]:
        try:
            while True:
                while room := plan.room():
                    plan.put(await take(room))
                    self._send()
                call = plan.waiting()
                if call is None:
                    return
                await self._settle(call)
                for result in plan.results():
                    yield result
        finally:
            plan.abandon()

    async def _settle(self, call: Call[Any]) -> None:
        """Return when the call is done."""
        try:
            loop = self._send()
            if not call.done:
                self._waiters[call.id] = loop.create_future()
                await self._waiters[call.id]
        finally:
            self._waiters.pop(call.id, None)
            self._core.give_up(call)

    def _send(self) -> asyncio.AbstractEventLoop:
        core, link, loop = self._core, self._link, asyncio.get_running_loop()
        if self._loop is not None and loop is not self._loop:
            raise RuntimeError("This client belongs to another event loop; make one in each.")
        self._loop = loop
        self._open()
        if core.overdue(loop.time()):  # replies that nobody came for, or a loop that was held up
            self._expire()
            self._open()
        for body in core.outgoing(loop.time()):
            link.send(body)
        if link.readable():
            loop.call_soon(self._receive)
        deadline = core.deadline()
        if self._timer is None and deadline is not None:
            self._timer = loop.call_at(deadline, self._on_timer)
        return loop

    def _open(self) -> None:
        assert self._loop is not None
        if self._link.open():
            self._watched = self._link.fileno()
            self._loop.add_reader(self._watched, self._receive)

    def _drop(self) -> None:
        if self._watched >= 0 and self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._watched)
        self._watched = -1
        self._link.drop()

    def _receive(self) -> None:
        """Take in all that has come; the descriptor signals only once for it."""
        while self._watched >= 0 and (body := self._link.receive(0.0)) is not None:
            self._wake(self._core.received(body))
            self._renew()

    def _expire(self) -> None:
        assert self._loop is not None
        self._receive()  # what has come in time counts, even if the loop was held up
        self._wake(self._core.expire(self._loop.time()))
        self._renew()

    def _on_timer(self) -> None:
        assert self._loop is not None
        self._timer = None
        self._expire()
        deadline = self._core.deadline()
        if deadline is not None:
            self._timer = self._loop.call_at(deadline, self._on_timer)

    def _renew(self) -> None:
        if self._core.take_renewal():
            self._drop()

    def _wake(self, calls: list[Call[Any]]) -> None:
        for call in calls:
            waiter = self._waiters.get(call.id)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)


class AsyncSession:
    """One session of a client's worker, by name: light, and good for as long as the client.

    Made by `AsyncClient.session`. Its methods are those of `rnnstream.Session`, and raise the same.

    Attributes:
        name: of the session.
    """

    def __init__(self, client: AsyncClient, name: str) -> None:
        self._client = client
        self._core = client._core
        self.name = name

    async def step(self, x: Token, *, want: str | int = "argmax", surprisal: bool = False, t: int | None = None) -> Prediction:
        """Send one token and wait for what the network says after it; see `Session.step`."""
        return await self._client._ask(self._core.step(self.name, x, want, surprisal, t))

    def stream(
        self,
        tokens: Iterable[Token] | AsyncIterable[Token],
        *,
        want: str | int = "argmax",
        surprisal: bool = False,
        window: int | None = None,
    ) -> AsyncGenerator[Prediction, None]:
        """The prediction after each of the tokens, in order, by `async for`; see `Session.stream`.

        Asynchronous iterators are live, as plain ones are; the next of a plain one is taken in the event loop, so it
            must not block.
        """
        live = not is_sequence(tokens)
        plan = Stream(self._core, self.name, want=want, surprisal=surprisal, live=live, window=window)
        return self._client._follow(plan, _taker(tokens))

    async def feed(
        self, tokens: Iterable[Token] | AsyncIterable[Token], *, want: str | int = "argmax", surprisal: bool = False
    ) -> Prediction:
        """Send many tokens, return the prediction after the last, the only one computed; see `Session.feed`."""
        plan = Stream(self._core, self.name, want=want, surprisal=surprisal, live=False, only_last=True)
        [last] = [prediction async for prediction in self._client._follow(plan, _taker(tokens))]
        return last

    async def info(self) -> dict[str, Any]:
        """Its t, age, idle time and more; see `Session.info`."""
        return await self._client._ask(self._core.info(self.name))

    async def reset(self, *, t: int | None = None) -> None:
        """Put it at its initial state, step 0; creates it where there is none; see `Session.reset`."""
        await self._client._ask(self._core.change("reset", self.name, t))

    async def close(self, *, t: int | None = None) -> None:
        """Forget its state; see `Session.close`."""
        await self._client._ask(self._core.change("close", self.name, t))


def _taker(source: Iterable[Any] | AsyncIterable[Any]) -> Take:
    """A function that takes the next so many tokens, fewer where the source ends."""
    if isinstance(source, AsyncIterable):
        live = aiter(source)

        async def take(room: int) -> list[Any]:
            taken: list[Any] = []
            async for token in live:
                taken.append(token)
                if len(taken) == room:
                    break
            return taken

    else:
        ready = iter(source)

        async def take(room: int) -> list[Any]:
            return list(islice(ready, room))

    return take
