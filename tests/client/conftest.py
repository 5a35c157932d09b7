from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rnnstream.client import AsyncClient, AsyncSession, Client

from .curve import CurveToy
from .toy import ToyWorker


@pytest.fixture
def curve(tmp_path: Path) -> Iterator[CurveToy]:
    toy = CurveToy(tmp_path)
    toy.start()
    yield toy
    toy.stop()


@pytest.fixture
def toy() -> Iterator[ToyWorker]:
    toy = ToyWorker()
    toy.start()
    yield toy
    toy.stop()


class Awaited:
    """An asyncio client or session that is used like the blocking one: each operation runs a loop until it is done."""

    def __init__(self, target: Any, runner: asyncio.Runner) -> None:
        self._target = target
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._target, name)
        if not callable(attribute):
            return attribute

        def operation(*args: Any, **keys: Any) -> Any:
            result = attribute(*args, **keys)
            if inspect.iscoroutine(result):
                done = self._runner.run(result)
                return Awaited(done, self._runner) if isinstance(done, AsyncSession) else done
            return self._each(result) if hasattr(result, "__anext__") else Awaited(result, self._runner)

        return operation

    def _each(self, results: Any) -> Iterator[Any]:
        end = object()

        async def following() -> Any:
            return await anext(results, end)

        try:
            while (result := self._runner.run(following())) is not end:
                yield result
        finally:
            self._runner.run(results.aclose())


@pytest.fixture(params=["blocking", "asyncio"])
def connect(request: pytest.FixtureRequest, toy: ToyWorker) -> Iterator[Callable[..., Any]]:
    """Makes clients of the toy worker, of both kinds; they are closed at the end."""
    clients: list[Any] = []
    with asyncio.Runner() as runner:

        def connect(address: str = "", timeout_s: float = 20.0, **keys: Any) -> Any:
            kind = Client if request.param == "blocking" else AsyncClient
            client: Any = kind(address or toy.address, timeout_s=timeout_s, **keys)
            clients.append(client if request.param == "blocking" else Awaited(client, runner))
            return clients[-1]

        yield connect
        for client in clients:
            client._core.check()
            client.close()


@pytest.fixture
def client(connect: Callable[..., Any]) -> Any:
    return connect()
