"""The asyncio client: the same core and plans as the blocking one, and the same names, awaitable."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from itertools import islice
from typing import Any, TypeVar

from rnnstream.client.call import Call
from rnnstream.client.core import Core
from rnnstream.client.link import Link
from rnnstream.client.plans import AllPages, Pages, Plan, Stream, is_sequence
from rnnstream.client.token import Token
from rnnstream.keys import KeyPath
from rnnstream.names import Name, Owned
from rnnstream.prediction import Prediction

T = TypeVar("T")
Take = Callable[[int], Awaitable[list[Any]]]


class AsyncClient:
    """A connection to a worker, shared by any number of tasks of one event loop; for the rest see `Client`.

    The first operation connects, and ties the client to the running loop. The requests of one session count in the order in
    which its tasks make them. A task that is cancelled while it waits leaves the others alone; its request, where it was
    sent, may still count.

    Args:
        address: a ZeroMQ endpoint, such as "tcp://127.0.0.1:5555".
        timeout_s: how long each message is waited for, with all its repetitions, in seconds above 0.
        server_key: the path of the worker's public key file, as in `Client`.
        client_key: the path of this client's secret key file, as in `Client`.

    Raises:
        ValueError: the timeout is not above 0, or one key is given without the other.
    """

    def __init__(
        self, address: str, timeout_s: float = 10.0, *, server_key: KeyPath | None = None, client_key: KeyPath | None = None
    ) -> None:
        self._core = Core(address, timeout_s, secrets.token_urlsafe(16))
        self._link = Link(address, server_key=server_key, client_key=client_key)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiters: dict[int, asyncio.Future[None]] = {}  # by id of the call
        self._timer: asyncio.TimerHandle | None = None
        self._watched = -1  # the descriptor that the loop watches

    def session(self, name: str, *, owner: str | None = None) -> AsyncSession:
        """The session of this name; asks nobody, so that it may or may not exist. For `owner` see `Client.session`."""
        return AsyncSession(self, name, owner=owner)

    async def hello(self) -> dict[str, Any]:
        """Who is there: protocol, version, limits and model, as docs/protocol.md lists them."""
        return await self._ask(self._core.ask_hello)

    async def ping(self) -> dict[str, Any]:
        """Have the worker make a step on a scratch row, and answer."""
        return await self._ask(self._core.ping)

    async def stats(self) -> dict[str, Any]:
        """The worker's counters, as docs/protocol.md lists them."""
        return await self._ask(self._core.stats)

    def sessions(self, prefix: str = "") -> AsyncIterator[str]:
        """The names of the sessions that begin with `prefix`, in no given order; asked for a page at a time."""
        return self._follow(Pages(self._core, prefix), _taker(()))

    def all_sessions(self, prefix: str = "") -> AsyncIterator[tuple[str, str]]:
        """The owner and the name of everybody's sessions; see `Client.all_sessions`."""
        return self._follow(AllPages(self._core, prefix), _taker(()))

    async def close(self) -> None:
        """Close the connection; tasks that still wait get `ConnectionFailed`. Can be called again."""
        self._stop()
        self._wake(self._core.close())
        self._drop()
        self._link.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def _ask(self, make: Callable[[], Call[T]]) -> T:
        self._bind()
        call = make()
        await self._settle(call)
        return call.result()

    async def _follow(self, plan: Plan[T], take: Take) -> AsyncGenerator[T, None]:
        try:
            while True:
                self._bind()
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

    def _bind(self) -> None:
        """Take the running loop for this client's, at first; before anything is done that another one must not do."""
        loop = asyncio.get_running_loop()
        if self._loop is not None and loop is not self._loop:
            raise RuntimeError("This client belongs to another event loop; make one in each.")
        self._loop = loop

    async def _settle(self, call: Call[Any]) -> None:
        """Return when the call is done."""
        assert self._loop is not None
        try:
            self._send()
            if not call.done:
                self._waiters[call.id] = self._loop.create_future()
                await self._waiters[call.id]
        finally:
            self._waiters.pop(call.id, None)
            self._core.give_up(call)

    def _send(self) -> None:
        assert self._loop is not None
        if self._core.closed:
            return
        self._open()
        if self._core.overdue(self._loop.time()):  # replies that nobody came for, or a loop that was held up
            self._expire()
        self._flush()

    def _flush(self) -> None:
        """Send what there is to send, and see to it that whatever follows is noticed."""
        assert self._loop is not None
        core, link, loop = self._core, self._link, self._loop
        self._open()
        for body in core.outgoing(loop.time()):
            link.send(body)
        if link.readable():
            loop.call_soon(self._receive)
        deadline = core.deadline()
        if deadline is not None and (self._timer is None or deadline < self._timer.when()):
            self._stop()
            self._timer = loop.call_at(deadline, self._on_timer)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

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
        """Take in all that has come, for the descriptor signals only once for it, and send what that calls for."""
        if self._drain():
            self._flush()

    def _drain(self) -> bool:
        """Take in all that has come; whether anything has."""
        assert self._loop is not None
        some = False
        while self._watched >= 0 and (body := self._link.receive(0.0)) is not None:
            self._wake(self._core.received(body, self._loop.time()))
            self._renew()
            some = True
        return some

    def _expire(self) -> None:
        assert self._loop is not None
        self._drain()  # what has come in time counts, even if the loop was held up
        self._wake(self._core.expire(self._loop.time(), self._link.trouble()))
        self._renew()

    def _on_timer(self) -> None:
        self._timer = None
        self._expire()
        self._flush()

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
        owner: its owner's public key, where it is somebody else's; None for one's own.
    """

    def __init__(self, client: AsyncClient, name: str, *, owner: str | None = None) -> None:
        self._client = client
        self._core = client._core
        self._full: Name = name if owner is None else Owned(owner, name)
        self.name = name
        self.owner = owner

    async def step(self, x: Token, *, want: str | int = "argmax", surprisal: bool = False, t: int | None = None) -> Prediction:
        """Send one token and wait for what the network says after it; see `Session.step`."""
        return await self._client._ask(lambda: self._core.step(self._full, x, want, surprisal, t))

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
        plan = Stream(self._core, self._full, want=want, surprisal=surprisal, live=not is_sequence(tokens), window=window)
        return self._client._follow(plan, _taker(tokens))

    async def feed(
        self, tokens: Iterable[Token] | AsyncIterable[Token], *, want: str | int = "argmax", surprisal: bool = False
    ) -> Prediction:
        """Send many tokens, return the prediction after the last, the only one computed; see `Session.feed`."""
        plan = Stream(self._core, self._full, want=want, surprisal=surprisal, live=False, only_last=True)
        [last] = [prediction async for prediction in self._client._follow(plan, _taker(tokens))]
        return last

    async def info(self) -> dict[str, Any]:
        """Its t, age, idle time and more; see `Session.info`."""
        return await self._client._ask(lambda: self._core.info(self._full))

    async def peek(self, xs: Iterable[Token], *, want: str | int = "argmax", surprisal: bool = False) -> list[Prediction]:
        """The predictions as if these tokens came next; the session does not move; see `Session.peek`."""
        return await self._client._ask(lambda: self._core.peek(self._full, xs, want, surprisal))

    async def open(self, state: bytes | None = None, *, t: int | None = None) -> None:
        """Create it, at its initial state or from a snapshot; see `Session.open`."""
        await self._client._ask(lambda: self._core.change("open", self._full, t, state=state))

    async def reset(self, *, t: int | None = None) -> None:
        """Put it at its initial state, step 0; creates it where there is none; see `Session.reset`."""
        await self._client._ask(lambda: self._core.change("reset", self._full, t))

    async def fork(self, to: str, *, t: int | None = None) -> AsyncSession:
        """Copy it to a new name, and return the copy; see `Session.fork`."""
        await self._client._ask(lambda: self._core.fork(self._full, to, t))
        return self._client.session(to)

    async def snapshot(self) -> bytes:
        """Its state as bytes; see `Session.snapshot`."""
        return await self._client._ask(lambda: self._core.snapshot(self._full))

    async def restore(self, state: bytes, *, t: int | None = None) -> None:
        """Put it, which is open, into the state of a snapshot; see `Session.restore`."""
        await self._client._ask(lambda: self._core.change("restore", self._full, t, state=state))

    async def close(self, *, t: int | None = None) -> None:
        """Forget its state; see `Session.close`."""
        await self._client._ask(lambda: self._core.change("close", self._full, t))


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
