"""Whose a message is and where its reply may go: rule by rule, and against a model of ZeroMQ that does things in any order."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from rnnstream.worker import connections as module
from rnnstream.worker.connections import Connection, Connections

ALICE, BOB, EVE = "a" * 40, "b" * 40, "e" * 40
FIRST, SECOND = b"\0\0\0\0\1", b"\0\0\0\0\2"


class Frame:
    """A body with the properties that ZeroMQ gives it."""

    def __init__(self, user: str | None, descriptor: int | None, body: bytes = b"") -> None:
        self.properties = {b"User-Id": user, zmq.SRCFD: descriptor}
        self.body = body

    def get(self, option: Any) -> Any:
        if self.properties[option] is None:
            raise zmq.ZMQError(zmq.EINVAL)
        return self.properties[option]


@pytest.fixture
def connections() -> Iterator[Connections]:
    connections = Connections(most=4)
    connections.set_keys({ALICE, BOB})
    yield connections
    connections.check()


def admitted(connections: Connections, descriptor: int, key: str) -> str:
    """A new connection on this descriptor: what its messages carry."""
    connections.accepted(descriptor, 1000 + descriptor)
    user = connections.admit(key)
    assert user is not None
    return user


def claimed(connections: Connections, id: Any, user: str | None, descriptor: int | None) -> Any:
    """The key of a message, None if it has none, or "dropped"."""
    addresses, _, keys = connections.claim([id], [Frame(user, descriptor)])  # type: ignore[list-item]
    assert addresses == ([id] if keys else [])
    return keys[0] if keys else "dropped"


def reply(connections: Connections, id: Any) -> bool:
    """Whether a reply to this address may go out."""
    with connections.lock:
        return bool(connections.living([(id, b"")]))


def doomed(connections: Connections) -> list[int]:
    return [connection.descriptor for connection in connections.take_doomed()]


# Keys -----------------------------------------------------------------------------------------------------------------


def test_each_message_has_the_key_that_it_carries(connections: Connections) -> None:
    alice, bob = admitted(connections, 7, ALICE), admitted(connections, 8, BOB)
    bodies: Any = [Frame(alice, 7), Frame(bob, 8), Frame(alice, 7), Frame(bob, 8)]
    addresses = [FIRST, SECOND, (FIRST, b""), (SECOND, b"x", b"")]
    assert connections.claim(addresses, bodies) == (addresses, bodies, [ALICE, BOB, ALICE, BOB])
    assert connections.living([(address, b"") for address in addresses]) == [(address, b"") for address in addresses]


def test_a_message_that_carries_no_user_is_nobodys(connections: Connections) -> None:
    alice = admitted(connections, 7, ALICE)
    assert claimed(connections, FIRST, alice, 7) == ALICE
    assert reply(connections, FIRST)
    assert claimed(connections, FIRST, None, 7) == "dropped"  # though its routing id is Alice's
    assert claimed(connections, SECOND, None, None) == "dropped"


def test_a_key_that_is_not_admitted_gets_no_user_and_is_told_of_once(
    connections: Connections, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        assert connections.admit(EVE) is None
    assert [record.getMessage() for record in caplog.records] == [f"a key that is not admitted was refused: {EVE}"]
    connections.set_keys({ALICE, BOB})  # somebody has changed something: perhaps that was to be Eve's
    assert connections.admit(EVE) is None
    assert len(caplog.records) == 2


def test_only_so_many_refused_keys_are_remembered(
    connections: Connections, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOLD_KEYS", 3)
    for i in range(100):
        assert connections.admit(f"{i:040}") is None
    assert len(connections._told) <= 3


def test_a_key_that_is_added_is_admitted_and_nobody_is_cut(connections: Connections) -> None:
    alice = admitted(connections, 7, ALICE)
    assert claimed(connections, FIRST, alice, 7) == ALICE
    connections.accepted(8, 1008)
    connections.set_keys({ALICE, BOB, EVE})
    assert connections.admit(EVE) is not None
    assert doomed(connections) == []
    assert reply(connections, FIRST)


def test_a_removed_key_is_cut_its_messages_are_dropped_and_its_replies_go_nowhere(connections: Connections) -> None:
    alice, bob = admitted(connections, 7, ALICE), admitted(connections, 8, BOB)
    again = admitted(connections, 9, ALICE)
    for id, user, descriptor in ((FIRST, alice, 7), (SECOND, bob, 8)):
        assert claimed(connections, id, user, descriptor) == user[:40]
    connections.set_keys({BOB})
    assert doomed(connections) == [7, 9]  # the second has said nothing: whose it is, is not known
    assert doomed(connections) == []
    assert connections.take_silenced(False) == [FIRST]
    assert (reply(connections, FIRST), reply(connections, SECOND)) == (False, True)
    assert claimed(connections, FIRST, alice, 7) == "dropped"
    assert claimed(connections, SECOND, bob, 8) == BOB
    assert claimed(connections, b"\0\0\0\0\3", again, 9) == "dropped"
    assert reply(connections, SECOND)
    connections.ended(7)
    connections.ended(9)
    assert len(connections) == 1


def test_a_message_that_comes_after_its_key_was_removed_cuts_its_connection(connections: Connections) -> None:
    alice, ended = admitted(connections, 7, ALICE), admitted(connections, 8, ALICE)
    assert claimed(connections, SECOND, ended, 8) == ALICE
    assert reply(connections, SECOND)
    connections.ended(8)
    connections.set_keys({BOB})
    assert claimed(connections, SECOND, ended, 8) == "dropped"  # it had sent that before it ended
    assert claimed(connections, FIRST, alice, 7) == "dropped"
    assert doomed(connections) == [7]


# Routing ids ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", [b"x", b"\0\0\0\1", b"\1\0\0\0\1", b"\0\0\0\0\0\1", b"\0" * 255])
def test_a_routing_id_that_zeromq_would_not_make_is_denied(connections: Connections, id: bytes) -> None:
    alice = admitted(connections, 7, ALICE)
    for _ in range(2):
        assert claimed(connections, id, alice, 7) is None
        assert reply(connections, id)  # and is told so


def test_the_routing_id_of_an_ended_connection_is_denied_to_others(connections: Connections) -> None:
    alice = admitted(connections, 7, ALICE)
    assert claimed(connections, FIRST, alice, 7) == ALICE
    assert reply(connections, FIRST)
    connections.ended(7)
    assert connections.take_silenced(True) == [FIRST]
    for key in (BOB, ALICE):  # even to the same key: it is another connection
        user = admitted(connections, 7, key)
        assert claimed(connections, FIRST, user, 7) is None
        assert reply(connections, FIRST)
        connections.ended(7)


def test_whoever_takes_a_routing_id_to_which_a_reply_is_to_come_is_cut(connections: Connections) -> None:
    alice = admitted(connections, 7, ALICE)
    assert claimed(connections, FIRST, alice, 7) == claimed(connections, (FIRST, b""), alice, 7) == ALICE
    connections.ended(7)
    bob = admitted(connections, 7, BOB)
    for _ in range(2):
        assert claimed(connections, FIRST, bob, 7) == "dropped"
        assert doomed(connections) in ([7], [])
        assert not reply(connections, FIRST)  # one of the two to Alice
    connections.ended(7)
    bob = admitted(connections, 7, BOB)
    assert claimed(connections, FIRST, bob, 7) is None  # nothing is to come any more


def test_a_message_that_is_read_late_is_its_senders_and_not_of_whoever_has_the_descriptor_now(connections: Connections) -> None:
    alice = admitted(connections, 7, ALICE)
    connections.ended(7)
    bob = admitted(connections, 7, BOB)
    assert claimed(connections, FIRST, alice, 7) == ALICE  # it counts; its reply goes nowhere
    assert not reply(connections, FIRST)
    assert claimed(connections, SECOND, bob, 7) == BOB
    assert reply(connections, SECOND)
    connections.ended(7)
    assert connections.take_silenced(True) == [SECOND]


def test_a_message_without_a_descriptor_is_of_a_connection_that_has_ended(connections: Connections) -> None:
    alice = admitted(connections, 7, ALICE)
    assert claimed(connections, FIRST, alice, None) == ALICE
    assert not reply(connections, FIRST)


def test_ended_connections_are_forgotten_beyond_a_bound_but_not_while_a_reply_is_to_come(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ENDED_IDS", 3)
    waits = admitted(connections, 7, ALICE)
    assert claimed(connections, FIRST, waits, 7) == ALICE
    connections.ended(7)
    for i in range(100):
        user = admitted(connections, 7, BOB)
        id = b"\0\0\1\0" + bytes([i])
        assert claimed(connections, id, user, 7) == BOB
        assert reply(connections, id)
        connections.ended(7)
        connections.take_silenced(False)
        assert len(connections._callers) <= 4
    assert FIRST in connections._callers
    assert not reply(connections, FIRST)
    monkeypatch.setattr(module, "ENDED_IDS", 0)
    connections.take_silenced(False)
    assert connections._callers == {}


def test_what_is_never_answered_is_forgotten_when_nothing_waits(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ENDED_IDS", 0)
    assert claimed(connections, FIRST, admitted(connections, 7, ALICE), 7) == ALICE
    connections.ended(7)
    connections.take_silenced(False)
    assert FIRST in connections._callers
    connections.take_silenced(True)
    assert connections._callers == {}


# How many -------------------------------------------------------------------------------------------------------------


def test_with_keys_whoever_is_silent_for_longest_makes_room(connections: Connections) -> None:
    alice = admitted(connections, 1, ALICE)
    assert claimed(connections, FIRST, alice, 1) == ALICE
    for descriptor in range(2, 7):
        connections.accepted(descriptor, 1000)
    assert doomed(connections) == [2, 3]  # not the one that has spoken, nor the newest
    connections.accepted(8, 1000)
    assert doomed(connections) == [4]
    connections.check()


def test_a_key_has_a_quarter_of_the_connections(caplog: pytest.LogCaptureFixture) -> None:
    connections = Connections(most=8)
    connections.set_keys({ALICE, BOB})
    users = [admitted(connections, descriptor, ALICE) for descriptor in range(4)]
    ids = [b"\0\0\0\0%d" % descriptor for descriptor in range(5)]
    claims = [claimed(connections, ids[descriptor], users[descriptor], descriptor) for descriptor in range(4)]
    assert claims == [ALICE, ALICE, "dropped", "dropped"]
    assert doomed(connections) == [2, 3]
    told = f"a key has 2 connections, as many as a key may have; further ones are cut: {ALICE}"
    assert [record.getMessage() for record in caplog.records] == [told]
    assert claimed(connections, ids[4], admitted(connections, 4, BOB), 4) == BOB
    for descriptor in range(4):
        connections.ended(descriptor)
    assert claimed(connections, b"\0\0\0\0x", admitted(connections, 5, ALICE), 5) == ALICE
    connections.check()


def test_whoever_is_cut_off_loses_the_connection(connections: Connections) -> None:
    alice = admitted(connections, 7, ALICE)
    assert claimed(connections, FIRST, alice, 7) == ALICE
    connections.cut(SECOND)
    assert doomed(connections) == []
    connections.cut(FIRST)
    assert doomed(connections) == [7]


def test_connections_beyond_the_limit_are_cut_the_newest_ones(caplog: pytest.LogCaptureFixture) -> None:
    connections = Connections(most=4)  # of a worker without keys
    for descriptor in range(6):
        connections.accepted(descriptor, 1000)
    assert doomed(connections) == [4, 5]
    connections.ended(4)
    connections.ended(5)
    connections.ended(0)
    connections.accepted(9, 1000)
    assert doomed(connections) == []
    assert len(connections) == 4
    told = [record.getMessage() for record in caplog.records]
    assert told == ["there are 4 connections, as many as may be: whoever comes now is cut"]  # not for each
    for descriptor in (1, 2, 3):
        connections.ended(descriptor)
    for descriptor in range(1, 6):
        connections.accepted(descriptor, 1000)
    assert len(caplog.records) == 2


def test_an_end_that_was_not_told_of_is_that_of_the_descriptors_next_connection(connections: Connections) -> None:
    alice = admitted(connections, 7, ALICE)
    assert claimed(connections, FIRST, alice, 7) == ALICE
    connections.accepted(7, 2000)
    assert len(connections) == 1
    assert not reply(connections, FIRST)
    connections.ended(8)


# A walk ---------------------------------------------------------------------------------------------------------------


class Link:
    """A connection in the model of ZeroMQ."""

    def __init__(self, number: int, descriptor: int, key: str, id: bytes) -> None:
        self.number, self.descriptor, self.key, self.id = number, descriptor, key, id
        self.user: str | None = None
        self.open, self.asks, self.heard, self.passed_over = True, False, False, False
        self.got: list[int] = []


class Ether:
    """ZeroMQ, as far as it matters: descriptors that are used again, news and messages that are read late, routing ids that are
    freed late and chosen by peers, and a guard that can be overtaken between any two of its steps.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.connections = Connections(most=8)
        self.links: list[Link] = []
        self.news: list[tuple[str, Link]] = []
        self.pipes: dict[bytes, Link] = {}  # who has a routing id now
        self.unread: list[tuple[Link, int]] = []
        self.flying: list[tuple[bytes, Link, int]] = []
        self.sent = 0
        self.removed: set[str] = set()
        self.link_of: dict[Connection, Link] = {}
        self.counts = {"delivered": 0, "withheld": 0, "denied": 0, "dropped": 0, "taken over": 0}
        self.admit_all()

    def admit_all(self) -> None:
        with self.connections.lock:
            self.connections.set_keys({ALICE, BOB, EVE} - self.removed)

    def connect(self) -> None:
        open = {link.descriptor for link in self.links if link.open}
        descriptor = min(set(range(20)) - open)
        id = b"\0" + len(self.links).to_bytes(4)
        if self.rng.random() < 0.5 and self.links:
            id = self.rng.choice([*(link.id for link in self.links[-6:] if link.heard), b"chosen"])
        link = Link(len(self.links), descriptor, self.rng.choice([ALICE, BOB, EVE]), id)
        self.links.append(link)
        self.news.append(("accepted", link))
        link.asks = True

    def end(self) -> None:
        if links := [link for link in self.links if link.open]:
            self.close(self.rng.choice(links))

    def close(self, link: Link) -> None:
        self.news.append(("ended", link))
        link.open = link.asks = False

    def free(self) -> None:
        """A routing id becomes free some time after its connection has ended."""
        if ended := [id for id, link in self.pipes.items() if not link.open]:
            del self.pipes[self.rng.choice(ended)]

    def overtake(self) -> None:
        """What may happen while the guard is between two steps."""
        while self.rng.random() < 0.4:
            self.rng.choice([self.end, self.free, self.speak, self.connect])()

    def guard(self) -> None:
        """A round of the guard."""
        asking = [link for link in self.links if link.asks]
        link = self.rng.choice(asking) if asking else None
        with self.connections.lock:
            self.take_news()
            self.overtake()
            if link is not None and link.asks:
                link.asks = False
                link.user = self.connections.admit(link.key)
                if link.user is not None:
                    # Whose routing id is in use when it is admitted is passed over for good.
                    before = self.pipes.get(link.id)
                    link.passed_over = before is not None and before.open
            self.overtake()
            self.take_news()
            doomed = self.connections.take_doomed()
        self.overtake()
        for connection in doomed:
            self.cut(connection)

    def take_news(self) -> None:
        while self.news:
            kind, link = self.news.pop(0)
            if kind == "accepted":
                now = [other.number for other in self.links if other.open and other.descriptor == link.descriptor]
                self.connections.accepted(link.descriptor, now[0] if now else -1)
                self.link_of[self.connections._open[link.descriptor]] = link
            else:
                self.connections.ended(link.descriptor)

    def cut(self, connection: Connection) -> None:
        for link in self.links:
            if link.open and link.descriptor == connection.descriptor and link.number == connection.inode:
                assert link is self.link_of[connection], "another connection was cut"
                self.close(link)

    def attach(self) -> None:
        """A connection that was admitted gets its routing id, if that is free."""
        for link in self.links:
            if link.user is not None and link.open and not link.heard and not link.passed_over and link.id not in self.pipes:
                self.counts["taken over"] += any(other.id == link.id for other in self.links[: link.number])
                self.pipes[link.id] = link
                link.heard = True

    def speak(self) -> None:
        if links := [link for link in self.links if link.heard and link.open]:
            self.unread.append((self.rng.choice(links), self.sent))
            self.sent += 1

    def read(self) -> None:
        """The loop reads some of what has come, each connection's in order."""
        batch, self.unread = self.unread[: (count := self.rng.randrange(4))], self.unread[count:]
        bodies: Any = [Frame(link.user, link.descriptor, b"%d" % number) for link, number in batch]
        _, taken, keys = self.connections.claim([link.id for link, _ in batch], bodies)
        who = {b"%d" % number: (link, number) for link, number in batch}
        self.counts["dropped"] += len(bodies) - len(taken)
        for body, key in zip(taken, keys, strict=True):
            link, number = who[body.body]  # type: ignore[attr-defined]
            assert key in (link.key, None)
            assert key is None or link.key not in self.removed
            first = not any(other.id == link.id for other in self.links[: link.number])
            assert key is None if link.id == b"chosen" else key is not None or not first
            self.counts["denied"] += key is None
            self.flying.append((link.id, link, number))

    def answer(self) -> None:
        """The loop sends replies."""
        self.rng.shuffle(self.flying)
        batch, self.flying = self.flying[: (count := self.rng.randrange(4))], self.flying[count:]
        with self.connections.lock:
            self.connections.take_silenced(not self.flying)
            out = [(id, b"%d" % number) for id, _, number in batch]
            living = dict((body, id) for id, body in self.connections.living(out))
            for id, link, number in batch:
                if self.rng.random() < 0.3:
                    self.rng.choice([self.end, self.free, self.attach])()
                if b"%d" % number not in living:
                    self.counts["withheld"] += 1
                elif id in self.pipes:
                    assert self.pipes[id] is link, "a reply went to another connection"
                    self.counts["delivered"] += 1

    def change_keys(self) -> None:
        self.removed ^= {self.rng.choice([ALICE, BOB, EVE])} if self.rng.random() < 0.2 else set()
        self.admit_all()

    def check(self) -> None:
        if not self.flying:
            self.connections.check()


@pytest.mark.parametrize("seed", range(8))
def test_no_reply_goes_to_another_connection_whatever_peers_do(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENDED_IDS", 4)
    logging.getLogger("rnnstream.worker").setLevel(logging.CRITICAL)
    try:
        ether = Ether(random.Random(seed))
        steps = [ether.connect, ether.end, ether.free, ether.guard, ether.guard, ether.attach, ether.speak, ether.speak]
        steps += [ether.read, ether.read, ether.answer, ether.answer, ether.change_keys]
        for _ in range(10_000):
            ether.rng.choice(steps)()
            ether.check()
            if len(ether.links) > 60 and not ether.flying and not ether.unread:
                ether = Ether(ether.rng)  # begun anew, as the model keeps everything
                steps = [getattr(ether, step.__name__) for step in steps]
    finally:
        logging.getLogger("rnnstream.worker").setLevel(logging.NOTSET)
