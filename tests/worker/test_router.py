"""How much the loop takes in a turn: real sockets, whose messages have all arrived before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from rnnstream.engine.engine import Engine
from rnnstream.wire.limits import Limits
from rnnstream.wire.replies import decode
from rnnstream.worker.core import Core
from rnnstream.worker.reader import CHUNK_BYTES
from rnnstream.worker.router import CHUNK_BODIES, FIRST_BODIES, FOR_EACH, TURN_S, Router, socket_for
from tests.engine.models import network

from .driving import pack, step

PEERS = 20  # so many that none of them passes for a flood
ADDRESS = "inproc://router"


class Ends:
    """A router and some peers, whose messages it has as soon as they are sent.

    Attributes:
        router: with a core behind it.
        peers: connected to it.
    """

    def __init__(self) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        socket = socket_for(self.context, frame_bytes=1 << 20)
        socket.bind(ADDRESS)
        core = Core(Engine(network()), worker="w", version="v", limits=Limits())
        self.router = Router(socket, core, wake=b"wake", clock=lambda: 0.0)  # where time stands still, a turn is never too long
        self.router._alone = False  # the first read takes up the connections, which is not to pass for having waited
        self.peers = [self.context.socket(zmq.DEALER) for _ in range(PEERS)]
        for peer in self.peers:
            peer.linger = 0
            peer.connect(ADDRESS)

    def send(self, each: int) -> None:
        """So many tokens from each peer, all of sessions of their own."""
        for number, peer in enumerate(self.peers):
            for i in range(each):
                peer.send(pack([step(f"{number} {i}", 1)]))

    def turn(self) -> int:
        """One turn: how many requests it has taken in."""
        now = self.router._take_in()
        taken = self.router.core.waiting
        self.router._turn(now)
        return taken

    def close(self) -> None:
        self.router.socket.linger = 0
        self.context.destroy()


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.close()


def test_turns_take_more_while_something_is_left_and_less_once_nothing_is(ends: Ends) -> None:
    ends.send(30)
    taken, left = [], 30 * PEERS
    while left:
        taken.append(ends.turn())
        left -= taken[-1]
    assert taken[:-1] == [16, 128, 160, 180]  # eight for each of the 16 that were in the first, and of all 20 then
    enough = ends.router._enough
    assert enough == 202 - 202 // 8  # the last turn might have taken 202, and found fewer
    for peer in ends.peers:
        for _ in range(30):
            assert decode(peer.recv())[0]["t"] == 1
    sizes, ends.router._enough = [], 300
    for _ in range(30):
        ends.send(1)
        ends.turn()
        sizes.append(ends.router._enough)
        while ends.router.socket.poll(0):
            ends.turn()
    assert sizes[:6] == [263, 231, 203, 178, 160, 160]
    assert sizes[-10:] == [FOR_EACH * PEERS] * 10


def test_requests_are_counted_and_not_bodies(ends: Ends) -> None:
    for number, peer in enumerate(ends.peers):
        peer.send(pack([step(f"{number} {i}", 1) for i in range(100)]))
    first = CHUNK_BYTES // len(pack([step("0 10", 1) for i in range(100)])) + 1
    assert ends.turn() == first * 100  # the first chunk, with which there were enough
    assert ends.router._enough == FOR_EACH * first


def test_what_waits_already_takes_no_room_of_a_turn(ends: Ends) -> None:
    ends.peers[0].send(pack([step("deep", 1) for _ in range(512)]))
    assert ends.turn() == 512
    ends.send(30)
    for expected in (16, 128, 160, 180):
        waiting = ends.router.core.waiting
        assert ends.turn() - waiting == expected


def test_a_turn_ends_when_a_session_comes_again(ends: Ends) -> None:
    ends.router._enough = 1000
    for number, peer in enumerate(ends.peers):
        for _ in range(10):
            peer.send(pack([step(f"{number}", 1)]))
    assert ends.turn() == FIRST_BODIES + CHUNK_BODIES  # the second chunk has second tokens
    assert ends.router._enough == 1000
    waiting = ends.router.core.waiting
    assert waiting > 0
    assert ends.turn() == waiting, "nothing is read before the next wave has run"
    assert ends.turn() > waiting - PEERS, "and then it goes on"
    while ends.router.socket.poll(0) or ends.router.core.waiting:
        ends.turn()
    for peer in ends.peers:
        assert [decode(peer.recv())[0]["t"] for _ in range(10)] == list(range(1, 11))


def test_a_turn_ends_when_it_has_lasted(ends: Ends) -> None:
    times = iter(i * TURN_S for i in range(100))
    ends.router._clock = lambda: next(times)
    ends.router._enough = 1000
    ends.send(30)
    assert ends.turn() == FIRST_BODIES + 64  # the second look at the clock is the last


def test_where_there_was_company_nobody_is_taken_to_be_alone(ends: Ends) -> None:
    ends.send(1)
    assert ends.turn() == FIRST_BODIES
    assert not ends.router._alone
    assert ends.turn() == PEERS - FIRST_BODIES
    ends.peers[0].send(pack([step("0 0", 1)]))
    assert ends.turn() == 1
    assert ends.router._alone
