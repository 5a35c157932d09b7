"""Who is connected, who may be, and whose each message is. No I/O, no clock: events in, things to do out.

A connection has three names here, and it takes all of them to be sure of it:

* its **descriptor**. ZeroMQ's monitor tells by it that a connection was accepted, and that it has ended; it can be cut by it.
  The next connection may get the same one;
* its **user**: the key that it has proved to have, and a number that no other connection gets. The guard gives it out when it
  admits the key, and ZeroMQ attaches it to each message, where no peer can change it;
* its **routing id**, where its replies go. A peer can choose it, and so take that of a connection that has ended.

The first message ties the three together. A user has a higher number than his own connection, and a lower one than those that
were accepted later; so a message that is read late is not taken for one of the connection that has its descriptor by now.

**Why nobody gets another one's replies.** ZeroMQ passes over a newcomer for good whose routing id is in use. So for a newcomer
to get the id of another connection, that must have ended before the guard admitted him. The guard holds `lock` while it admits,
and takes the news of all ends *after* it has answered, before it lets go of the lock; replies are sent under the same lock, and
not to connections that have ended. That needs one thread of ZeroMQ that does things in their order: a context has no more here.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Protocol

import zmq

from rnnstream.engine.numbering import SHARE
from rnnstream.worker.order import Address, routing_id

log = logging.getLogger("rnnstream.worker")

OWN_ID_BYTES = 5  # of a routing id of ZeroMQ's own making, whose first one is zero
ENDED_IDS = 10_000  # routing ids of ended connections that are remembered, as nobody else's: 2 MB
TOLD_KEYS = 1000  # keys that are not told of again; those of strangers may be any number


class Message(Protocol):
    """A frame of ZeroMQ, with the properties of its connection."""

    def get(self, option: int | str | bytes, /) -> int | str | bytes:
        """A property; raises `zmq.ZMQError` if it has none."""


class Caller:
    """A connection that has said something.

    Attributes:
        id: its routing id.
        user: what its messages carry.
        key: whose its messages are; None where it has no right to its routing id.
        silent: its replies go nowhere: it has ended, or its key was removed.
        refused: its messages go nowhere: its key was removed.
        flying: messages whose replies are still to come.
    """

    __slots__ = ("flying", "id", "key", "refused", "silent", "user")

    def __init__(self, id: bytes, user: str, key: str | None) -> None:
        self.id, self.user, self.key = id, user, key
        self.silent = self.refused = False
        self.flying = 0


class Connection:
    """An open connection.

    Attributes:
        descriptor, inode: of its socket.
        number: when it was accepted, in events.
        caller: once it has said something.
        doomed: it is to be cut.
    """

    __slots__ = ("caller", "descriptor", "doomed", "inode", "number")

    def __init__(self, descriptor: int, inode: int, number: int) -> None:
        self.descriptor, self.inode, self.number = descriptor, inode, number
        self.caller: Caller | None = None
        self.doomed = False


class Connections:
    """The connections of a ROUTER socket.

    All but `claim` is called with `lock` held, which `claim` takes where it must.

    Args:
        most: connections at a time; one is cut for each beyond.

    Attributes:
        of_key: most of these for a key, so that one alone does not take all the places.
        lock: see above.
        keys: those that are admitted; none on an open worker, which asks nobody for one.
        refused: handshakes that failed, and connections beyond the most, in all or of a key.
    """

    def __init__(self, most: int) -> None:
        self.most, self.of_key = most, max(1, most // SHARE)
        self.lock = threading.Lock()
        self.keys: frozenset[str] = frozenset()
        self.refused = 0
        self._failed_last = False
        self._events = 0
        self._open: dict[int, Connection] = {}  # by descriptor
        self._callers: dict[bytes, Caller] = {}  # by routing id; removed by the thread of `claim` alone
        self._silenced: list[bytes] = []  # since `take_silenced`
        self._ended: deque[Caller] = deque()  # oldest first
        self._doomed: list[Connection] = []  # since `take_doomed`
        self._told: set[tuple[str, tuple[object, ...]]] = set()
        self._crowded = False
        self._quiet: dict[int, Connection] = {}  # by descriptor: those that have said nothing, the oldest first
        self._of_key: Counter[str] = Counter()  # connections that have said something

    def __len__(self) -> int:
        return len(self._open)

    # What the guard has heard ---------------------------------------------------------------------------------------------

    def accepted(self, descriptor: int, inode: int) -> None:
        """A connection was accepted."""
        self.ended(descriptor)  # ZeroMQ has told so, or will not tell any more
        connection = self._open[descriptor] = Connection(descriptor, inode, self._next())
        self._quiet[descriptor] = connection
        if len(self._open) > self.most:
            # With keys, whoever has said nothing for longest: else those who hold places and say nothing kept everybody out.
            self._doom(next(iter(self._quiet.values())) if self.keys else connection)
            self.refused += 1
            if not self._crowded:
                who = "for each that comes, the one that has been silent for longest" if self.keys else "whoever comes now"
                log.warning("there are %d connections, as many as may be: %s is cut", self.most, who)
            self._crowded = True

    def ended(self, descriptor: int) -> None:
        """A connection has ended; harmless if there is none."""
        connection = self._open.pop(descriptor, None)
        self._quiet.pop(descriptor, None)
        if connection is not None and connection.caller is not None:
            self._of_key[_key(connection.caller.user)] -= 1
            self._silence(connection.caller)
            self._ended.append(connection.caller)
        if connection is not None and connection.doomed and self._failed_last:
            self.refused -= 1  # its handshake has not failed, it was cut
        self._failed_last = False
        if len(self._open) <= self.most // 2:
            self._crowded = False

    def failed(self) -> None:
        """A handshake has failed; the end that is told of next may be that of its connection."""
        self.refused += 1
        self._failed_last = True

    def admit(self, key: str) -> str | None:
        """What the messages of a connection with this key shall carry; None if the key is not admitted."""
        if key in self.keys:
            return f"{key} {self._next()}"
        self._tell_once("a key that is not admitted was refused: %s", key)
        return None

    def _tell_once(self, text: str, *values: object) -> None:
        """Warn, unless it was done; lines are counted by their text without the values, and must not hide others."""
        if (text, values) not in self._told:
            if len(self._told) == TOLD_KEYS:
                self._told.clear()
            self._told.add((text, values))
            log.warning(text, *values)

    def set_keys(self, keys: Iterable[str]) -> None:
        """From now on these keys are admitted. Connections of others, and those whose key is not known yet, are to be cut."""
        self.keys, before = frozenset(keys), self.keys
        self._told.clear()
        if before <= self.keys:
            return
        for caller in self._callers.values():  # of ended ones too: they may have messages that are not read yet
            if _key(caller.user) not in self.keys:
                caller.refused = True
                self._silence(caller)
        for connection in self._open.values():
            if connection.caller is None or connection.caller.refused:
                self._doom(connection)

    # What the guard has to do ---------------------------------------------------------------------------------------------

    def take_doomed(self) -> list[Connection]:
        """Connections to be cut, each of them once; not those that have ended by themselves."""
        doomed, self._doomed = self._doomed, []
        return [connection for connection in doomed if self._open.get(connection.descriptor) is connection]

    def cut(self, id: bytes) -> None:
        """The connection with this routing id does not read: without it, nothing of it is left in memory."""
        caller = self._callers.get(id)
        if caller is not None:
            for connection in self._open.values():
                if connection.caller is caller:
                    self._doom(connection)

    # What the loop asks ---------------------------------------------------------------------------------------------------

    def claim(
        self, addresses: Sequence[Address], bodies: Sequence[zmq.Frame]
    ) -> tuple[list[Address], list[zmq.Frame], list[str | None]]:
        """Whose these messages are: those that count, and for each its key, or None: it is denied.

        What has no user is nobody's, and is left out; so is what carries a key that is no longer admitted.
        """
        callers = self._callers
        taken: list[Address] = []
        counted: list[zmq.Frame] = []
        keys: list[str | None] = []
        for address, body in zip(addresses, bodies, strict=True):
            try:
                user = body.get(b"User-Id")  # 0.9 us; from the message, never from what is known of its routing id
            except zmq.ZMQError:
                continue
            caller = callers.get(address if isinstance(address, bytes) else address[0])
            if caller is None or caller.user != user:
                with self.lock:
                    caller = self._heard(routing_id(address), user, body)
            if caller is None or caller.refused:
                continue
            caller.flying += 1
            taken.append(address)
            counted.append(body)
            keys.append(caller.key)
        return taken, counted, keys

    def living(self, replies: Sequence[tuple[Address, bytes]]) -> list[tuple[Address, bytes]]:
        """Those of these replies whose connections are still there."""
        callers = self._callers
        kept = []
        for reply in replies:
            address = reply[0]
            caller = callers.get(address if isinstance(address, bytes) else address[0])
            if caller is not None:
                caller.flying -= 1
                if not caller.silent:
                    kept.append(reply)
        return kept

    def take_silenced(self, idle: bool) -> list[bytes]:
        """Routing ids that nothing more may be sent to, each of them once.

        Args:
            idle: every message that was claimed has been answered, or never will be.
        """
        silenced, self._silenced = self._silenced, []
        for _ in range(max(len(self._ended) - ENDED_IDS, 0)):
            caller = self._ended.popleft()
            if caller.flying and not idle:  # whoever had its routing id by then would get that reply
                self._ended.append(caller)
            elif self._callers.get(caller.id) is caller:
                del self._callers[caller.id]
        return silenced

    def _heard(self, id: bytes, user: str, body: Message) -> Caller | None:
        """The first message of a connection. None: it does not count."""
        number = int(user.partition(" ")[2])
        connection = self._open.get(descriptor(body))
        if connection is not None and (connection.number > number or connection.caller is not None):
            connection = None  # another one; that of this message has ended
        before, key = self._callers.get(id), _key(user)
        crowded = connection is not None and self._of_key[key] >= self.of_key
        if crowded:
            self.refused += 1
            self._tell_once("a key has %d connections, as many as a key may have; further ones are cut: %s", self.of_key, key)
        if crowded or key not in self.keys or (before is not None and (before.flying or not before.silent)):
            # Somebody else's replies go to this routing id, or still might. A new connection gets an id of its own.
            if connection is not None:
                self._doom(connection)
            return None
        own = len(id) == OWN_ID_BYTES and id[0] == 0 and before is None
        caller = self._callers[id] = Caller(id, user, key if own else None)
        if connection is not None:
            connection.caller = caller
            self._of_key[key] += 1
            self._quiet.pop(connection.descriptor, None)
        else:
            caller.silent = True
            self._ended.append(caller)
        return caller

    def _next(self) -> int:
        self._events += 1
        return self._events

    def _silence(self, caller: Caller) -> None:
        if not caller.silent:
            caller.silent = True
            self._silenced.append(caller.id)

    def _doom(self, connection: Connection) -> None:
        if not connection.doomed:
            connection.doomed = True
            self._doomed.append(connection)
            self._quiet.pop(connection.descriptor, None)

    def check(self) -> None:
        """Assert what always holds."""
        heard = [connection.caller for connection in self._open.values() if connection.caller is not None]
        for descriptor, connection in self._open.items():
            assert connection.descriptor == descriptor
            assert connection.number <= self._events
        for caller in heard:
            assert self._callers[caller.id] is caller
            assert caller.silent == caller.refused
            assert caller.refused or _key(caller.user) in self.keys
        assert len(set(heard)) == len(heard)
        ended = set(self._ended)
        for id, caller in self._callers.items():
            assert caller.id == id
            assert (caller in ended) != (caller in heard)
            assert caller.flying >= 0
        assert all(caller.silent for caller in ended)
        assert +self._of_key == Counter(_key(caller.user) for caller in heard)
        quiet = {at: one for at, one in self._open.items() if one.caller is None and not one.doomed}
        assert self._quiet == quiet
        numbers = [connection.number for connection in self._open.values()]
        assert len(set(numbers)) == len(numbers)


def _key(user: str) -> str:
    return user.partition(" ")[0]


def descriptor(body: Message) -> int:
    """The connection that a frame came over; -1 if that cannot be said."""
    try:
        return int(body.get(zmq.SRCFD))
    except zmq.ZMQError:  # the connection was gone before ZeroMQ could look who it was
        return -1
