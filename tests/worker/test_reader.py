"""What is one message and what is the next: real sockets, and peers that send envelopes when nobody expects them."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from rnnstream.wire.limits import ENVELOPE_FRAME_BYTES, ENVELOPE_FRAMES
from rnnstream.worker import reader
from rnnstream.worker.order import routing_id
from rnnstream.worker.reader import CHUNK_BYTES, DOUBTS, NEAR, Reader
from rnnstream.worker.router import socket_for

WAIT_MS = 10_000


class Ends:
    """A reader and its peers.

    Attributes:
        reader: of a ROUTER that is bound.
        cut: what it passes over.
    """

    def __init__(self, address: str) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.socket = socket_for(self.context, frame_bytes=1 << 20)
        self.socket.rcvhwm = 0
        self.socket.bind(address)
        self.cut: set[bytes] = set()
        self.peers: list[zmq.Socket[bytes]] = []
        self.peer().send(b"")
        self.first, _ = self.socket.recv_multipart()
        self.renew()

    def peer(self, kind: int = zmq.DEALER, id: bytes = b"") -> zmq.Socket[bytes]:
        """One more connection."""
        peer = self.context.socket(kind)
        self.peers.append(peer)
        peer.linger, peer.sndhwm = 0, 0
        if id:
            peer.routing_id = id
        peer.connect(self.socket.last_endpoint)
        return peer

    def close(self) -> None:
        self.context.destroy(linger=0)

    def renew(self) -> None:
        """Another reader, which knows nobody."""
        self.reader = Reader(self.socket, self.cut, first=self.first)

    def made(self, number: int) -> bytes:
        """The routing id that ZeroMQ makes so many after its first one."""
        return b"\0" + ((int.from_bytes(self.first) + number) % (1 << 32)).to_bytes(4)

    def meet(self, *peers: zmq.Socket[bytes]) -> list[bytes]:
        """Have each of these send a body; their routing ids."""
        ids = []
        for peer in peers:
            peer.send(b"first")
            [(address, _)] = self.read(1)
            ids.append(routing_id(address))
        return ids

    def read(self, count: int, most: int = 64) -> list[tuple[Any, bytes]]:
        """So many messages, as (address, body) pairs."""
        found: list[tuple[Any, bytes]] = []
        while len(found) < count:
            assert self.socket.poll(WAIT_MS), found
            addresses, bodies, _ = self.reader.read(most)
            found += zip(addresses, map(bytes, bodies), strict=True)
        assert len(found) == count
        return found

    @property
    def trusts(self) -> bool:
        return bool(self.reader._bare)


@pytest.fixture(params=["inproc://reader", "tcp://127.0.0.1:*"])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    ends = Ends(request.param)
    yield ends
    ends.close()


def test_whatever_is_sent_is_read_as_it_was_sent(ends: Ends) -> None:
    for seed in range(20):
        rng = random.Random(seed)
        ends.renew()
        peers = [ends.peer() for _ in range(5)]
        sent: dict[bytes, list[list[bytes]]] = {}
        odd = rng.choice([0.0, 0.02, 0.3])
        total = 0
        for turn in range(40):
            peer = rng.randrange(len(peers))
            for _ in range(rng.randrange(6)):
                envelope = []
                if rng.random() < odd:
                    envelope = [rng.choice([b"", b"e", b"12345", b"\0abcd", b"{}"]) for _ in range(rng.randrange(1, 4))]
                message = [*envelope, f"{seed} {peer} {turn} {total}".encode()]
                peers[peer].send_multipart(message)
                sent.setdefault(str(peer).encode(), []).append(message)
                total += 1
        read: dict[bytes, list[list[bytes]]] = {}
        for address, body in ends.read(total, most=rng.choice([1, 2, 7, 64])):
            frames = list(address[1:]) if isinstance(address, tuple) else []
            read.setdefault(body.split()[1], []).append([*frames, body])
        assert read == sent
        for one in peers:
            one.close()


@pytest.mark.parametrize("guess", [NEAR + 100, -1, 1 << 31, b"no id", b"\0", b""])
def test_a_forged_routing_id_is_more_of_its_message_and_the_last(guess: int | bytes, caplog: pytest.LogCaptureFixture) -> None:
    ends = Ends("inproc://forged")
    guess = ends.made(guess) if isinstance(guess, int) else guess
    bad, good = ends.peer(), ends.peer()
    ids = ends.meet(bad, good)
    bad.send(b"second")
    bad.send_multipart([b"third", guess, b"forged"])
    bad.send(b"fourth")
    good.send(b"fifth")
    with caplog.at_level(logging.INFO, "rnnstream.worker"):
        found = ends.read(4)
    assert sorted(found, key=str) == sorted(
        [(ids[0], b"second"), ((ids[0], b"third", guess), b"forged"), (ids[0], b"fourth"), (ids[1], b"fifth")], key=str
    )
    assert not ends.trusts
    assert "every message is looked at from now on" in caplog.text
    for _ in range(3):  # from now on the routing id of another connection is nothing but a frame
        bad.send_multipart([b"again", ids[1], b"forged"])
    assert ends.read(3) == [((ids[0], b"again", ids[1]), b"forged")] * 3
    ends.close()


def test_a_guess_that_may_be_somebody_new_is_not_trusted() -> None:
    ends = Ends("inproc://near")
    bad = ends.peer()
    bad.send(b"first")
    [(id, _)] = ends.read(1)
    for _ in range(DOUBTS):
        bad.send(b"second")
        bad.send_multipart([b"third", ends.made(1000), b"forged"])
        assert ends.read(3) == [(id, b"second"), (id, b"third"), (ends.made(1000), b"forged")]
        assert ends.reader._bare.keys() == {id}
    bad.send(b"second")
    bad.send_multipart([b"third", ends.made(1000), b"forged"])
    ends.read(3)
    assert not ends.trusts, "there are no more tries"
    ends.close()


@pytest.mark.parametrize("chosen", [b"myself", b"\0\1\2\3\4", b"\0"])
@pytest.mark.parametrize("envelope", [[], [b""]])
def test_a_routing_id_of_a_peers_own_choice_is_no_way_to_others(chosen: bytes, envelope: list[bytes]) -> None:
    ends = Ends("inproc://chosen")
    bad, good, named = ends.peer(), ends.peer(), ends.peer(id=chosen)
    ids = ends.meet(bad, good)
    assert ends.trusts
    named.send_multipart([*envelope, b"hello"])
    ends.read(1)
    assert not ends.trusts
    bad.send(b"second")
    bad.send_multipart([b"third", chosen])
    good.send(b"mine")
    assert sorted(ends.read(3), key=str) == sorted(
        [(ids[0], b"second"), ((ids[0], b"third"), chosen), (ids[1], b"mine")], key=str
    )
    ends.close()


def test_whoever_has_envelopes_counts_among_those_that_came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "NEAR", 2)
    ends = Ends("inproc://count")
    for _ in range(20):
        ends.peer().send_multipart([b"", b"asked"])
        ends.read(1)
    ends.peer().send(b"bare")
    ends.read(1)
    assert ends.trusts
    ends.close()


def test_so_many_peers_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "PEERS", 3)
    ends = Ends("inproc://many")
    peers = [ends.peer() for _ in range(5)]
    for _ in range(4):
        for peer in peers:
            for _ in range(3):
                peer.send(b"more")
        assert [body for _, body in ends.read(15)] == [b"more"] * 15
        assert 0 < len(ends.reader._bare) <= 3
    ends.close()


def test_where_bodies_are_asked_whose_they_are_all_of_them_are_frames() -> None:
    ends = Ends("inproc://frames")
    ends.reader = Reader(ends.socket, ends.cut, frames=True)
    peer = ends.peer()
    for _ in range(10):
        peer.send(b"more")
    bodies: list[Any] = []
    while len(bodies) < 10:
        bodies += ends.reader.read(64)[1]
    assert {type(body) for body in bodies} == {zmq.Frame}
    ends.close()


def test_a_single_frame_too_many(caplog: pytest.LogCaptureFixture) -> None:
    ends = Ends("inproc://single")
    peer = ends.peer()
    peer.send(b"first")
    [(id, _)] = ends.read(1)
    for message in ([b"second"], [b"third", b"too many"], [b"fourth"]):
        peer.send_multipart(message)
    assert ends.read(3) == [(id, b"second"), ((id, b"third"), b"too many"), (id, b"fourth")]
    ends.close()


def test_newcomers_behind_trusted_ones_are_newcomers(ends: Ends) -> None:
    first = ends.peer()
    first.send(b"hello")
    [(id, _)] = ends.read(1)
    found = []
    for number in range(30):
        first.send(b"more")
        newcomer = ends.peer()
        newcomer.send(b"%d" % number)
        found += ends.read(2)
        newcomer.close()
    assert [body for _, body in found if body != b"more"] == [b"%d" % number for number in range(30)]
    assert len({address for address, body in found if body != b"more"} - {id}) == 30
    assert {address for address, body in found if body == b"more"} == {id}
    if b"tcp" in ends.socket.last_endpoint:  # else they have no descriptors, and are hard to tell
        assert ends.trusts


def test_a_routing_id_of_a_peers_own_ends_the_trust(ends: Ends) -> None:
    peer = ends.peer()
    peer.send(b"first")
    ends.read(1)
    assert ends.trusts
    named = ends.peer(id=b"myself")
    named.send(b"hello")
    assert ends.read(1) == [(b"myself", b"hello")]
    assert not ends.trusts


def test_a_newcomer_with_a_routing_id_of_its_own_is_one_too() -> None:
    ends = Ends("tcp://127.0.0.1:*")
    peer = ends.peer()
    for number in range(20):
        peer.send(b"more")
        ends.peer(id=b"number %d" % number).send(b"hello")
        assert sorted(body for _, body in ends.read(2)) == [b"hello", b"more"]
    ends.close()


def test_a_requester_never_counts_as_bare(ends: Ends) -> None:
    requester, peer = ends.peer(zmq.REQ), ends.peer()
    for _ in range(3):
        peer.send(b"bare")
        requester.send(b"asked")
        found = ends.read(2)
        [(id, empty)] = [address for address, body in found if body == b"asked"]
        assert empty == b""
        assert all(isinstance(address, bytes) for address, body in found if body == b"bare")
        ends.socket.send_multipart([id, b"", b"answer"])
        assert requester.recv() == b"answer"
    assert ends.trusts


def test_an_envelope_that_is_too_large_has_an_empty_body(ends: Ends) -> None:
    peer = ends.peer()
    peer.send(b"first")
    [(id, _)] = ends.read(1)
    peer.send(b"second")
    peer.send_multipart([b"e"] * (ENVELOPE_FRAMES + 1) + [b"body"])
    peer.send_multipart([b"e" * (ENVELOPE_FRAME_BYTES + 1), b"body"])
    peer.send_multipart([b"e"] * ENVELOPE_FRAMES + [b"body"])
    assert ends.read(4) == [(id, b"second"), (id, b""), (id, b""), ((id, *[b"e"] * ENVELOPE_FRAMES), b"body")]


def test_a_chunk_has_so_many_bytes_and_ends_with_a_message_that_was_looked_at() -> None:
    ends = Ends("inproc://bytes")
    peer = ends.peer()
    peer.send(b"first")
    ends.read(1)
    half = b"x" * (CHUNK_BYTES // 2)
    for message in ([half], [half], [b"envelope", b"body"], [half], [half], [half], [half]):
        peer.send_multipart(message)
    addresses, bodies, more = ends.reader.read(64)
    assert [bytes(body) for body in bodies] == [half, half, b"body"]
    assert addresses[2] == (addresses[0], b"envelope")
    assert more
    other = ends.peer()
    other.send(b"first")
    assert len(ends.read(5)) == 5
    for _ in range(9):
        other.send(half)
    assert [len(ends.reader.read(64)[1]) for _ in range(3)] == [3, 3, 3]
    ends.close()


def test_whoever_is_cut_off_is_passed_over_and_makes_no_turn_longer() -> None:
    ends = Ends("inproc://cut")
    bad, good = ends.peer(), ends.peer()
    ids = ends.meet(bad, good)
    ends.cut.add(ids[0])
    for peer in (bad, good):
        for _ in range(5):
            peer.send(b"more")
    addresses, bodies, more = ends.reader.read(8)
    assert addresses == [ids[1]] * len(bodies)
    assert not more
    ends.close()
