"""Replies on their way out of a ROUTER whose pipes hold four of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from rnnstream.worker import outbox as module
from rnnstream.worker.outbox import RETRY_S, Outbox
from rnnstream.worker.router import socket_for

ROOM = 4


class Ends:
    """An outbox, and peers at the other end of its pipes."""

    def __init__(self) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.router = socket_for(self.context, frame_bytes=1 << 20)
        self.router.setsockopt(zmq.SNDHWM, ROOM - 1)
        self.router.bind("inproc://outbox")
        self.outbox = Outbox(self.router)
        self.peers: list[Any] = []
        self.now = 0.0

    def peer(self) -> tuple[Any, bytes]:
        """A peer that reads nothing until it is asked to, and its routing id."""
        socket = self.context.socket(zmq.DEALER)
        self.peers.append(socket)
        socket.setsockopt(zmq.RCVHWM, 1)
        socket.connect("inproc://outbox")
        socket.send(b"here")
        return socket, self.router.recv_multipart()[0]

    def send(self, *replies: tuple[Any, bytes], later: bool = False) -> None:
        """Hand these over; `later`: when it is time to try again."""
        self.now += 2 * RETRY_S if later else 0
        self.router.getsockopt(zmq.EVENTS)  # hear of what was read at the other ends; a loop does so when it polls
        self.outbox.send(replies, self.now)


def read(socket: Any) -> list[list[bytes]]:
    """What has arrived."""
    found = []
    while socket.poll(0):
        found.append(socket.recv_multipart())
    return found


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.context.destroy(linger=0)


@pytest.mark.parametrize("envelope", [(), (b"",), (b"a", b"bb", b"")])
def test_what_a_pipe_does_not_take_waits_and_comes_later_in_order(ends: Ends, envelope: tuple[bytes, ...]) -> None:
    slow, id = ends.peer()
    quick, other = ends.peer()
    address: Any = (id, *envelope) if envelope else id
    seen: list[list[bytes]] = []
    for i in range(40):
        ends.send((address, b"%d" % (2 * i)), (other, b"%d" % i), (address, b"%d" % (2 * i + 1)))
        assert read(quick) == [[b"%d" % i]]
        assert bool(ends.outbox) == (2 * i + 2 > ROOM)
    for i in range(80, 120):
        seen += read(slow)  # now there is room in its pipe, but not for a reply that would overtake those that wait
        ends.send((address, b"%d" % i), later=i % 3 == 0)
    while ends.outbox:
        seen += read(slow)
        ends.send(later=True)
    seen += read(slow)
    assert seen == [[*envelope, b"%d" % i] for i in range(120)]
    assert (ends.outbox.dropped, ends.outbox.waiting, len(ends.outbox.cut)) == (0, {}, 0)


def test_a_peer_is_cut_off_at_a_bound_for_what_waits_and_not_for_what_has_waited(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 100_000)
    slow, id = ends.peer()
    ends.send(*[(id, b"x" * 10_000)] * 9)
    seen = 0
    for _ in range(200):  # 8 MB in all, never more than 50 kB at once, and never nothing
        seen += len(read(slow))
        ends.send(later=True)
        assert ends.outbox
        ends.send(*[(id, b"x" * 10_000)] * 4)
    assert seen == 4 * 200
    assert id not in ends.outbox.cut


def test_a_slow_peer_is_cut_off_when_it_takes_nothing_any_more(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_BYTES", 10_000)
    slow, id = ends.peer()
    for _ in range(100):  # always too much for one that takes nothing
        ends.send(*[(id, b"x" * 1000)] * 20)
        ends.now += module.STALLED_S / 2
        assert read(slow)
        ends.send(later=True)
        assert id not in ends.outbox.cut
    ends.now += module.STALLED_S
    ends.send(later=True)  # it has taken none, but nothing more has come for it
    assert id not in ends.outbox.cut
    ends.send((id, b"x"))
    assert id in ends.outbox.cut


def test_a_peer_that_was_cut_off_gets_nothing_ever_again(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 100_000)
    slow, id = ends.peer()
    quick, other = ends.peer()
    ends.send(*[(id, b"%d" % i + b"x" * 10_000) for i in range(30)])
    assert list(ends.outbox.cut) == [id]
    assert not ends.outbox
    assert ends.outbox.dropped == 30 - ROOM
    got = read(slow)
    assert [body[:1] for (body,) in got] == [b"0", b"1", b"2", b"3"]
    for address in (id, (id, b"")):
        ends.send((address, b"late"), (other, b"still"), later=True)
        assert read(slow) == []
        assert read(quick) == [[b"still"]]
    assert ends.outbox.dropped == 32 - ROOM


def test_replies_to_a_peer_that_is_gone_are_dropped_and_counted(ends: Ends) -> None:
    slow, id = ends.peer()
    quick, other = ends.peer()
    ends.send(*[(id, b"x")] * 10, ((id, b""), b"x"))
    assert ends.outbox
    slow.close(linger=0)
    for _ in range(10_000):  # until the news has come
        ends.send((other, b"y"), later=True)
        assert read(quick) == [[b"y"]]
        if not ends.outbox:
            break
    assert ends.outbox.dropped == 11 - ROOM
    ends.send((id, b"x"), ((id, b""), b"x"))
    assert ends.outbox.dropped == 13 - ROOM
    ends.send((b"nobody", b"x"))
    assert ends.outbox.dropped == 14 - ROOM
    assert ends.outbox.waiting == {}


def test_of_a_peer_that_was_let_go_nothing_waits_for_whoever_has_its_routing_id_next(ends: Ends) -> None:
    slow, id = ends.peer()
    ends.send(*[(id, b"old")] * 10)
    assert ends.outbox
    ends.outbox.let_go(id)
    assert not ends.outbox
    assert ends.outbox.dropped == 10 - ROOM
    assert (ends.outbox.cut_count, len(ends.outbox.cut)) == (0, 0)
    assert read(slow) == [[b"old"]] * ROOM  # these were in its pipe
    ends.send((id, b"new"), later=True)  # as to a new one
    assert read(slow) == [[b"new"]]
    ends.outbox.let_go(id)
    ends.outbox.let_go(b"nobody")
    assert ends.outbox.dropped == 10 - ROOM


def test_only_so_many_cut_peers_are_remembered(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 100)
    monkeypatch.setattr(module, "CUT_PEERS", 3)
    peers = [ends.peer() for _ in range(6)]
    for _, id in peers:
        ends.send(*[(id, b"x" * 200)] * (ROOM + 1))
    assert list(ends.outbox.cut) == [id for _, id in peers[3:]]
