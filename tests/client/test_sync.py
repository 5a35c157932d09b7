from __future__ import annotations

import threading

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
