"""Everything that changes a session, one after the other, while the worker is killed at operations on its store's files.

What was not answered is sent again to the next worker, under the same number. In the end every session is what the answers say.
"""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zmq

from rnnstream import StepModel, load
from rnnstream.engine import snapshot
from rnnstream.wire.replies import decode
from tests.process import disk
from tests.process.crashes import Crashes, Variant
from tests.process.faults import model_file
from tests.process.place import placed
from tests.process.producer import VOCABULARY
from tests.worker_process import DEADLINE_S

NAMES = [f"session-{i}" for i in range(6)]
COPIES = [f"copy-{i}" for i in range(3)]
FEW = Variant(("--max-resident", "2"))
VARIANTS = {
    "as it is": Variant(),
    "2 sessions in memory": FEW,
    "every write saves rows": replace(FEW, program=("tests.process.small_journal", "0")),
    "loss of power": Variant(("--max-resident", "2", "--durability", "power"), power=True),
}
OPS_OF_ONE = ["step"] * 15 + ["reset", "close", "open", "open", "restore"]
OPS = [*OPS_OF_ONE, "fork", "fork", "fork"]
OPERATIONS = 400  # on the files, before the worker is killed, at most
BODIES = 200  # at least, some of them behind the last kill
DIES_MS = 20  # between two looks at whether it has

pack = msgpack.Packer(autoreset=True).pack


@dataclass
class Changes:
    """What was answered.

    Attributes:
        open: by name, the tokens that lead to the session's state.
        ended: names that were closed.
        counted: by name, how many numbers have counted.
        told: answers by op, and by "op: error"; "again" counts those to what had counted before a kill.
    """

    open: dict[str, list[int]] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    counted: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)

    def error(self, request: dict[str, Any]) -> str:
        """The error that this request has to get; "": it counts."""
        name, op = request["session"], request["op"]
        if op == "step":
            return "unknown_session" if name in self.ended else ""
        if op == "open":
            return "exists" if name in self.open else ""
        if op == "fork" and name in self.open:
            return "exists" if request["to"] in self.open else ""
        return "" if op == "reset" or name in self.open else "unknown_session"

    def answered(self, request: dict[str, Any], reply: dict[str, Any], state: list[int]) -> None:
        """Take in the reply to a request; `state` has the tokens behind the snapshot in it."""
        name, op, error = request["session"], request["op"], self.error(request)
        assert reply.get("error", "") == error, f"{request} has to get {error or 'no error'}: {reply}"
        self.told[f"{op}: {error}" if error else op] += 1
        if error:
            return
        self.told["again"] += "again" in reply
        self.counted[name] += 1
        if op == "close":
            del self.open[name]
            self.ended.add(name)
            return
        after = {"step": [*self.open.get(name, []), request.get("x", 0)], "reset": [], "fork": self.open.get(name, [])}
        self.open[request.get("to", name)] = list(after.get(op, state))
        self.ended.discard(request.get("to", name))
        assert reply["t"] == len(self.open[request.get("to", name)]), (request, reply)


class Asking:
    """Asks worker after worker, until one answers.

    Args:
        crashes: where workers are killed.
        chance: when.
        kills: how many there are to be.
    """

    def __init__(self, crashes: Crashes, chance: random.Random, kills: int) -> None:
        self._crashes, self._chance, self._kills = crashes, chance, kills
        self._context = zmq.Context()
        self._dealer: zmq.Socket[bytes] | None = None

    def close(self) -> None:
        if self._dealer is not None:
            self._dealer.close(linger=0)
        self._context.term()

    def connect(self) -> None:
        """Start a worker that will be killed, or is the last, and connect to it, if it lives for so long."""
        if self._dealer is not None:
            self._dealer.close(linger=0)
        at = 0 if self._crashes.report.kills == self._kills else self._chance.randint(1, OPERATIONS)
        self._crashes.start(at, self._chance.choice(disk.HOW))
        self._dealer = self._context.socket(zmq.DEALER)
        self._dealer.connect(self._crashes.place.address)

    def ask(self, body: bytes) -> list[dict[str, Any]]:
        """The reply to a body, which is sent again after each kill."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            assert self._dealer is not None
            self._dealer.send(body)
            while not self._dealer.poll(DIES_MS):
                assert time.monotonic() < deadline, "the worker neither answers nor dies"
                if self._crashes.died():
                    self.connect()
                    break
            else:
                return decode(self._dealer.recv())


def body(changes: Changes, chance: random.Random, state: bytes) -> list[dict[str, Any]]:
    """Requests about different sessions, some of them with this snapshot; at most one copies to another name."""
    copy, *names = chance.sample(COPIES, 1) + chance.sample(NAMES, chance.randint(1, 4))
    if chance.random() < 0.5:
        names[0] = chance.choice([name for name in COPIES if name != copy])
    requests = []
    for place, name in enumerate(names):
        op = chance.choice(OPS if place == 0 else OPS_OF_ONE)
        request = {"op": op, "session": name, "producer": "changes", "n": changes.counted[name] + 1}
        if op == "step":
            request["x"] = chance.randrange(VOCABULARY)
        elif op == "fork":
            request["to"] = copy
        elif op == "restore" or (op == "open" and chance.random() < 0.5):
            request["state"] = state
        requests.append(request)
    return requests


def walk(directory: Path, variant: Variant, kills: int, seed: int, *, library: Path) -> Changes:
    """Change sessions while the worker is killed so many times.

    Args:
        directory: for everything.
        variant: of the worker; its model is exact.
        kills: how many.
        seed: of the changes and of the kills.
        library: the failing disk.

    Raises:
        AssertionError: an answer, or what there is in the end, is not what the answers before say.
    """
    chance, changes, shadow = random.Random(seed), Changes(), directory / "shadow"
    path = model_file(directory, 0)
    model, state, tokens = load(path), b"", []
    shadow.mkdir()
    with placed(path, directory / "store", variant.options, variant.program) as place:
        crashes = Crashes(place, variant, shadow, library, chance)
        with contextlib.closing(Asking(crashes, chance, kills)) as asking:
            asking.connect()
            bodies = 0
            while crashes.report.kills < kills or bodies < BODIES:
                bodies += 1
                requests = body(changes, chance, state or snapshot.encode(model.initial_state(), 0, model.digest))
                replies = asking.ask(b"".join(map(pack, requests)))
                for request, reply in zip(requests, replies, strict=True):
                    changes.answered(request, reply, tokens if "state" in request else [])
                if changes.open and chance.random() < 0.1:
                    tokens = list(changes.open[chosen := chance.choice(list(changes.open))])
                    [reply] = asking.ask(pack({"op": "snapshot", "session": chosen}))
                    state = reply["state"]
                    compare(state, tokens, model)
            for last in (signal.SIGKILL, signal.SIGTERM):
                for session, tokens in changes.open.items():
                    [reply] = asking.ask(pack({"op": "snapshot", "session": session}))
                    compare(reply["state"], tokens, model)
                for session in {*NAMES, *COPIES} - changes.open.keys():
                    [reply] = asking.ask(pack({"op": "info", "session": session}))
                    assert reply["why"] == ("closed" if session in changes.ended else "never")
                place.end(last)
                if last == signal.SIGKILL:
                    crashes.lose_power()
                    asking.connect()
                    for request, reply in zip(requests, replies, strict=True):
                        if "error" not in reply:
                            assert asking.ask(pack(request)) == [reply | {"again": True}]
            kept = crashes.look()
            assert {session: t for session, (t, _) in kept.items()} == {
                name: len(tokens) for name, tokens in changes.open.items()
            }
    return changes


def compare(state: bytes, tokens: list[int], model: StepModel) -> None:
    """Hold a snapshot against the model over these tokens."""
    a, t = snapshot.decode(state, dtype=np.dtype(model.dtype), state_size=model.state_size, digest=model.digest)
    assert t == len(tokens)
    assert a.tobytes() == model.run(tokens).tobytes()
