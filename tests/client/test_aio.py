from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from rnnstream.client import AsyncClient
from rnnstream.errors import ConnectionFailed, NoReply
from rnnstream.prediction import Prediction

from .toy import DEADLINE_S, ToyWorker


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await main()

    asyncio.run(bounded())


async def one_turn() -> None:
    """Let every task run up to where it waits."""
    turn = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(turn.set_result, None)
    await turn


def test_many_tasks_share_a_client(toy: ToyWorker) -> None:
    async def main() -> None:
        async with AsyncClient(toy.address) as client:

            async def one(name: str, start: int) -> None:
                session = client.session(name)
                for x in range(start, start + 20):
                    prediction = await session.step(x)
                    assert (prediction.t, prediction.y) == (x - start + 1, x)
                found = [prediction.y async for prediction in session.stream(range(start, start + 300))]
                assert found == list(range(start, start + 300))

            await asyncio.gather(*[one(f"s{number}", 1000 * (number + 1)) for number in range(50)])

    run(main)


def test_asynchronous_tokens_are_live(toy: ToyWorker) -> None:
    async def main() -> None:
        async with AsyncClient(toy.address) as client:
            last = [100]

            async def tokens() -> AsyncIterator[int]:
                while last[-1] < 120:
                    yield last[-1] + 1

            async for prediction in client.session("s").stream(tokens()):
                last.append(int(prediction.y))  # type: ignore[arg-type]
            assert last == list(range(100, 121))
            last[:] = [100]

            async def more() -> AsyncIterator[int]:
                for x in range(100, 250):
                    yield x

            assert (await client.session("s").feed(more())).y == 249
            found = [prediction.y async for prediction in client.session("s").stream(more(), window=5)]
            assert found == list(range(100, 250))

    run(main)
    assert [len(body) for body in toy.model.bodies][-150:] == [1] * 150


@pytest.mark.parametrize("in_flight", [False, True])
def test_a_cancelled_task_does_not_mix_up_the_others(toy: ToyWorker, in_flight: bool) -> None:
    go = threading.Event()
    toy.reply = lambda maps, reply: reply if go.wait(DEADLINE_S) else None

    async def main() -> None:
        async with AsyncClient(toy.address) as client:
            sessions = [client.session(f"s{number}") for number in range(30)]
            tasks = [asyncio.create_task(session.step(100 + number)) for number, session in enumerate(sessions)]
            if in_flight:
                await one_turn()
            calls = list(client._core._flight)
            for task in tasks[::2]:
                task.cancel()
            client._wake(calls[::2])  # a reply may come before a cancelled task has run
            go.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])
            found = [result.y for result in results[1::2] if isinstance(result, Prediction)]
            assert found == list(range(101, 130, 2))
            assert (await sessions[0].step(1)).t == (2 if in_flight else 1), "what was sent counts, whoever waits"
            client._core.check()
            assert not client._waiters

    run(main)


def test_one_timeout_renews_the_connection_for_all(toy: ToyWorker) -> None:
    async def main() -> None:
        async with AsyncClient(toy.address, timeout_s=0.1) as client:
            toy.reply = lambda maps, reply: None
            results = await asyncio.gather(*[client.ping() for _ in range(5)], return_exceptions=True)
            assert [type(result) for result in results] == [NoReply] * 5
            toy.reply = lambda maps, reply: reply
            client._core.timeout_s = DEADLINE_S
            assert (await client.ping())["ok"]

    run(main)


def test_a_call_that_was_given_up_still_renews_a_dead_connection(toy: ToyWorker) -> None:
    """Else requests of impatient tasks would pile up unsent, and all count when the worker is back."""
    toy.stop()

    async def main() -> None:
        async with AsyncClient(toy.address, timeout_s=0.2) as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.session("s").step(1), 0.05)
            with pytest.raises(NoReply):
                await client.session("s").step(1)
            toy.start()
            client._core.timeout_s = DEADLINE_S
            assert (await client.ping())["ok"]

    run(main)
    assert toy.model.steps() == []


def test_close_wakes_those_who_wait(toy: ToyWorker) -> None:
    toy.reply = lambda maps, reply: None

    async def main() -> None:
        client = AsyncClient(toy.address)
        task = asyncio.create_task(client.ping())
        await one_turn()
        await client.close()
        with pytest.raises(ConnectionFailed, match="closed"):
            await task

    run(main)


def test_a_loop_that_is_held_up_misses_no_reply(toy: ToyWorker) -> None:
    async def main() -> None:
        async with AsyncClient(toy.address, timeout_s=DEADLINE_S) as client:
            go = threading.Event()
            toy.reply = lambda maps, reply: reply if go.wait(DEADLINE_S) else None
            task = asyncio.create_task(client.ping())
            await one_turn()
            go.set()
            assert client._link._socket is not None
            assert client._link._socket.poll(DEADLINE_S * 1000), "the reply is there, unseen by the loop"
            [call] = client._core._flight
            call.deadline -= 1000.0
            client._on_timer()
            assert (await task)["ok"]

    run(main)


def test_the_timer_goes_on_for_calls_made_since(toy: ToyWorker) -> None:
    async def main() -> None:
        async with AsyncClient(toy.address, timeout_s=0.1) as client:
            toy.reply = lambda maps, reply: None
            task = asyncio.create_task(client.ping())
            await one_turn()
            assert client._timer is not None
            client._timer.cancel()
            client._on_timer()  # as if it had been set for an earlier call
            with pytest.raises(NoReply):
                await task

    run(main)


def test_a_call_is_not_sent_over_a_connection_that_is_overdue(toy: ToyWorker) -> None:
    toy.reply = lambda maps, reply: None

    async def main() -> None:
        async with AsyncClient(toy.address) as client:
            given_up = asyncio.create_task(client.ping())
            await one_turn()
            given_up.cancel()
            toy.reply = lambda maps, reply: reply
            [call] = client._core._flight
            call.deadline -= 1000.0
            task = asyncio.create_task(client.ping())
            await one_turn()
            client._on_timer()
            assert (await task)["ok"]

    run(main)


def test_another_loop_is_refused(toy: ToyWorker) -> None:
    client = AsyncClient(toy.address)
    asyncio.run(client.ping())

    async def main() -> None:
        made = client._core._made
        with pytest.raises(RuntimeError, match="another event loop"):
            await client.ping()
        with pytest.raises(RuntimeError, match="another event loop"):
            await anext(client.session("s").stream([1]))
        assert client._core._made == made
        await client.close()

    run(main)
