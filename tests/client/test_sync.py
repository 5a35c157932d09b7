from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from rnnstream.client import Client

from .toy import DEADLINE_S, ToyWorker


def test_arguments_after_the_second_are_named() -> None:
    with pytest.raises(TypeError):
        Client("tcp://127.0.0.1:1", 1.0, 2)  # type: ignore[call-arg]


def test_a_second_thread_is_refused(toy: ToyWorker) -> None:
    came, go = threading.Event(), threading.Event()

    def later(maps: object, reply: bytes) -> bytes:
        came.set()
        assert go.wait(DEADLINE_S)
        return reply

    toy.reply = later
    with Client(toy.address) as client:
        answers: list[object] = []
        thread = threading.Thread(target=lambda: answers.append(client.ping()["ok"]))
        thread.start()
        assert came.wait(DEADLINE_S)
        with pytest.raises(RuntimeError, match="one thread"):
            client.ping()
        go.set()
        thread.join(DEADLINE_S)
        assert answers == [True]
        assert client.ping()["ok"]


@pytest.mark.parametrize(
    "use", [lambda client: client.session("s").step(1), lambda client: client.session("s").feed([2, 3]), Client.close]
)
def test_what_a_second_thread_is_refused_does_not_count(toy: ToyWorker, use: Callable[[Client], object]) -> None:
    with Client(toy.address) as client:
        client.hello()
        made = client._core._made
        with client._alone, pytest.raises(RuntimeError, match="one thread"):  # as if another one were at it
            use(client)
        assert client._core._made == made, "the thread that is at it must not come upon it, and send it"
        assert client.session("s").step(4).t == 1
    assert [item["x"] for item in toy.model.steps()] == [4]


def test_a_stream_may_be_left_in_the_midst_of_another_call(toy: ToyWorker) -> None:
    """A generator ends where the collector finds it: while the client is at work, or in another thread."""
    with Client(toy.address) as client:
        stream = client.session("s").stream(range(100, 1000))
        assert next(stream).t == 1
        with client._alone:
            stream.close()
        assert client.session("t").step(1).t == 1
        assert not client._core._pending


def test_tokens_may_come_from_the_same_client(toy: ToyWorker) -> None:
    with Client(toy.address) as client:
        one, other = client.session("one"), client.session("other")
        one.step(1)
        assert [ahead.y for ahead in one.peek(other.step(x).t for x in (20, 21))] == [1, 2]
        assert one.feed(other.step(x).t for x in range(22, 25)).y == 5


def test_an_interrupted_call_is_given_up(toy: ToyWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    with Client(toy.address) as client:
        session = client.session("s")
        session.step(1)
        receive = client._link.receive

        def interrupted(timeout_s: float) -> bytes | None:
            raise KeyboardInterrupt

        monkeypatch.setattr(client._link, "receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.step(2)
        monkeypatch.setattr(client._link, "receive", receive)
        after = session.step(3)
        assert (after.t, after.y) == (3, 3)
