from __future__ import annotations

import pytest

from rnnstream.client import Client
from rnnstream.errors import NoReply

from .toy import ToyWorker


def test_a_toy_that_has_died_says_of_what_when_it_is_stopped(toy: ToyWorker) -> None:
    def dying(maps: object, reply: bytes) -> bytes:
        raise ZeroDivisionError("as a test does by mistake")

    toy.reply = dying
    with Client(toy.address, timeout_s=0.1) as client, pytest.raises(NoReply):
        client.ping()
    with pytest.raises(ZeroDivisionError, match="by mistake"):
        toy.stop()
    toy.reply = lambda maps, reply: reply
    toy.start()
    with Client(toy.address) as client:
        assert client.ping()["ok"]
