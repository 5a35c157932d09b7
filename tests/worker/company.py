"""Users who share a worker, or have it to themselves: whatever each does follows from what it has heard alone."""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from typing import Any

from rnnstream.names import named, owner_of
from rnnstream.wire.replies import decode
from rnnstream.worker.order import Address, routing_id
from tests.engine.models import HUGE, SPOILED

from .driving import Driver, Reply, pack
from .keeping import Kept

ALICE, BOB, CAROL = "A" * 40, "B" * 40, "C" * 40  # Carol is an administrator, where there is one
NAMES = [*"abcdef", "é" * 100]
PRODUCERS = ["p", "q" * 64]
NUMBERED = ("step", "open", "reset", "close", "fork", "restore")
GARBAGE = [b"\xc1", b"\x05", b"\x82\xa1x", b"\x81\xa7session"]
CURSORS = [0, 1, 2, 3, 1 << 40, (1 << 40) + 1, (1 << 62) + 7, 2**63 - 1, 2**63, 2**64 - 1]
WRONG: list[dict[Any, Any]] = [
    {"x": "nope"},
    {"x": 99},
    {"want": "nonsense"},
    {"wnat": 1},
    {"t": -1},
    {"op": "forks"},
    {"n": 3},
    {"session": ""},
    {"session": 5},
    {"id": "i" * 65},
    {"owner": ALICE},
    {"all": True},
    {5: 5},
]
REACHING: list[dict[str, Any]] = [  # for what is another's
    *({"op": op, "owner": owner} for op in ("info", "close") for owner in (ALICE, BOB, "Z" * 40, "", "short", 7)),
    {"op": "close", "owner": ALICE, "producer": "p", "n": 1},
    *({"op": "sessions", "all": value} for value in (True, 1, "yes")),
    {"op": "sessions", "all": True, "prefix": "a"},
]
Item = dict[Any, Any]


class User:
    """Somebody with a key, who does this and that over some connections.

    Attributes:
        owner: the key; None for connections that have no standing.
        peers: routing ids of the connections.
        heard: (number of the call, address, body) of all that came back.
        kinds: how many replies there were of each kind.
    """

    def __init__(self, seed: int, owner: str | None, *, listing: bool = True, names: Sequence[str] = NAMES) -> None:
        self.random, self.owner, self.names = random.Random(seed), owner, names
        self.peers = [f"{owner or 'nobody'}{i}".encode() for i in range(3)]
        self.heard: list[tuple[int, Address, bytes]] = []
        self.kinds: Counter[str] = Counter()
        self._listing = listing
        self._sent: dict[bytes, deque[list[Item]]] = defaultdict(deque)
        self._last: Counter[tuple[str, str]] = Counter()
        self._recent: dict[tuple[str, str], deque[Item]] = defaultdict(lambda: deque(maxlen=6))
        self._snapshots: deque[bytes] = deque([b""], maxlen=6)
        self._cursors: deque[int] = deque(CURSORS, maxlen=len(CURSORS) + 2)

    def bodies(self) -> list[tuple[Address, bytes]]:
        """What it sends now."""
        return [self._body() for _ in range(self.random.choice([0, 0, 1, 1, 2, 3]))]

    def _body(self) -> tuple[Address, bytes]:
        rng, peer = self.random, self.random.choice(self.peers)
        items = [self.request() for _ in range(rng.choice([0, 1, 1, 1, 1, 2, 3, rng.randint(4, 20)]))]
        garbage = rng.choice(GARBAGE) if not items or rng.random() < 0.04 else b""
        self._sent[peer].append(items)
        address: Address = (peer, b"") if rng.random() < 0.2 else peer
        return address, pack(items) + garbage

    def request(self) -> Item:
        """One request."""
        rng, name, kind = self.random, self.random.choice(self.names), self.random.random()
        item: Item = {"session": name}
        if rng.random() < 0.3:
            item["id"] = rng.choice([0, 7, 2**64 - 1, "i" * 64, b"\xff"])
        if kind < 0.5:
            item["x"] = rng.choice([SPOILED, HUGE]) if rng.random() < 0.03 else rng.randrange(SPOILED)
            if kind > 0.4:
                item |= {"want": rng.choice(["argmax", "none", "probs", "logits", 1, 3]), "surprisal": rng.random() < 0.3}
            if kind > 0.47:
                item["t"] = rng.randint(1, 6)
        elif kind < 0.78:
            item["op"] = op = rng.choice(["reset", "open", "open", "close", "info", "snapshot", "peek", "restore", "fork"])
            if op == "peek":
                item["xs"] = [rng.randrange(SPOILED) for _ in range(rng.randint(1, 5))]
            elif op == "fork":
                item["to"] = rng.choice(self.names)
            elif op == "restore" or (op == "open" and rng.random() < 0.4):
                item["state"] = rng.choice(self._snapshots)[rng.random() < 0.1 :]
            if op != "peek" and rng.random() < 0.1:
                item |= {"t": rng.randint(1, 4)} if op in NUMBERED else {}
        elif kind < 0.88:
            return self._about(item)
        elif kind < 0.94:
            return item | {"x": 1} | rng.choice(WRONG)
        else:
            reaching = rng.choice(REACHING)
            return reaching if reaching["op"] == "sessions" else item | reaching
        return self._numbered(item)

    def _about(self, item: Item) -> Item:
        del item["session"]
        item["op"] = self.random.choice(["hello", "ping", "stats"] + 3 * self._listing * ["sessions"])
        if item["op"] == "sessions":
            item |= {"after": self.random.choice(self._cursors), "limit": self.random.choice([1, 2, 3, 100])}
            if self.random.random() < 0.2:
                item["prefix"] = self.random.choice(["", "a", "é", "z"])
        return item

    def _numbered(self, item: Item) -> Item:
        rng = self.random
        if item.get("op", "step") not in NUMBERED or rng.random() < 0.4:
            return item
        who = item["session"], rng.choice(PRODUCERS)
        if self._recent[who] and rng.random() < 0.2:
            return dict(rng.choice(self._recent[who])) | {"ack": 0}  # what a repeat acknowledges is kept nowhere
        self._last[who] += 1
        item |= {"producer": who[1], "n": self._last[who] + (rng.random() < 0.03)}
        if rng.random() < 0.3:
            item["ack"] = max(0, item["n"] - rng.randint(1, 4))
        self._recent[who].append(item)
        return item

    def hear(self, call: int, address: Address, body: bytes) -> None:
        """What came back for the oldest body of a connection."""
        self.heard.append((call, address, body))
        items, replies = self._sent[routing_id(address)].popleft(), decode(body)
        for item, reply in zip(items, replies, strict=False):
            self._learn(item, reply)
        self.kinds["garbage"] += replies[-1].get("error") == "bad_message"

    def _learn(self, item: Item, reply: Reply) -> None:
        kind = "again" if "again" in reply else reply.get("error", item.get("op", "step"))
        self.kinds[f"{kind} {reply['why']}" if "why" in reply else kind] += 1
        who = item.get("session"), item.get("producer")
        if "expected" in reply or ("last" in reply and "error" in reply):
            self._last[who] = reply["expected"] - 1 if "expected" in reply else reply["last"]  # type: ignore[index]
        elif "producer" in item and "error" in reply:
            self._last[who] = max(0, item["n"] - 1)  # type: ignore[index]
        if "state" in reply:
            self._snapshots.append(reply["state"])
        if "next" in reply:
            self._cursors.append(reply["next"])

    def interrupted(self) -> None:
        """The worker has crashed: what was under way comes no more."""
        self._sent.clear()

    @property
    def told(self) -> dict[bytes, list[list[Reply]]]:
        """What came back over each connection, without what tells whether a session was in memory or in the store alone.

        That is how many requests wait, for those that came alone count only where it was not; and what a cursor is, which is
        sealed.
        """
        found: dict[bytes, list[list[Reply]]] = {peer: [] for peer in self.peers}
        for _, address, body in self.heard:
            replies = [reply | {key: True for key in ("next", "waiting") if key in reply} for reply in decode(body)]
            found[routing_id(address)].append(replies)
        return found


def live(driver: Driver, users: Iterable[User], rounds: int, *, seed: int = 0, crashes: Sequence[int] = ()) -> None:
    """Have these users do what they do, all at once, and wait for the last replies.

    Args:
        driver: of the worker.
        users: of it.
        rounds: calls in which they send something.
        seed: of the order in which bodies of different users arrive; those of one are in its own.
        crashes: rounds in front of which the worker is killed, if it has a store.
    """
    users, order = list(users), random.Random(seed)
    by_peer = {peer: user for user in users for peer in user.peers}
    assert driver.users is not None
    driver.users |= {peer: user.owner for peer, user in by_peer.items()}

    def call(*arrivals: tuple[Address, bytes]) -> None:
        # There is no order between connections, and nobody is to learn from one.
        for address, body in sorted(driver.handle(*arrivals), key=lambda reply: routing_id(reply[0])):
            by_peer[routing_id(address)].hear(driver.calls, address, body)

    for number in range(rounds):
        if number in crashes:
            assert isinstance(driver, Kept)
            now = driver.now
            driver.crash()
            driver.now = now  # it goes on from the last write of anybody, as if there always was one
            for user in users:
                user.interrupted()
        sent = [user.bodies() for user in users]
        arrivals: list[tuple[Address, bytes]] = []
        while any(sent):
            arrivals.append(order.choice([bodies for bodies in sent if bodies]).pop(0))
        call(*arrivals)
    for _ in range(60):  # not until nothing waits: time goes on for everybody alike
        call()
    assert not driver.core.waiting


def kept_of(driver: Driver, owner: str) -> dict[str, Any]:
    """What a worker without a store has of a key: its sessions, what is remembered of its names, and how much of each."""
    table = driver.engine.table
    found: dict[str, Any] = {
        "quota": table.owned[owner],
        "tombstones": {str(name): mark.why for name, mark in table.tombstones.items() if owner_of(name) == owner},
    }
    for name in [name for name in (*table.rows, *table.tombstones) if owner_of(name) == owner]:
        row, known = table.rows.get(name), driver.engine.producers(name)
        state = (int(table.t[row]), table.states[row].tobytes()) if row is not None and table.live[row] else None
        found[f"session {name}"] = state, {producer: mine.last for producer, mine in known.items()}
    return found


def page(driver: Driver, peer: bytes, **more: Any) -> Reply:
    """One page of a listing."""
    (reply,) = driver.ask({"op": "sessions", **more}, address=peer)
    return reply


def pages(driver: Driver, peer: bytes, limit: int = 3, **more: Any) -> list[list[str]]:
    """All pages of a user's listing."""
    found, after = [], 0
    for _ in range(10_000):
        reply = page(driver, peer, limit=limit, after=after, **more)
        assert len(reply["sessions"]) <= limit
        found.append(reply["sessions"])
        if "next" not in reply:
            return found
        after = reply["next"]
    raise AssertionError("The pages do not end.")


def listed(driver: Driver, peer: bytes, limit: int = 3, **more: Any) -> list[str]:
    """What is on these pages."""
    return sorted(itertools.chain.from_iterable(pages(driver, peer, limit, **more)))


def open_all(driver: Driver, owner: str, names: Iterable[str]) -> None:
    """Open sessions of a key by another way than by asking for it."""
    for name in names:
        driver.engine.table.open(driver.core._intake.row_of(named(owner, name)), 0.0)
