"""Random walks over two engines: one whose sessions come and go, as those of a store do, and one whose sessions stay."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from rnnstream.engine import tombstones as module
from rnnstream.engine.engine import Engine
from rnnstream.engine.numbering import Numbering
from rnnstream.engine.producers import Producer
from rnnstream.errors import RequestError

from .counting import numbered, step_row
from .models import V, network
from .sequences import everything
from .test_elsewhere import Gone, Make, evicted, placed

IDLE_S = 60.0


class Pair:
    """The same happens in both."""

    def __init__(self, make: Make, seed: int) -> None:
        self.random, self.now = random.Random(seed), 0.0
        self.moving, self.staying = (
            make(
                network(seed=seed),
                max_sessions=12,
                idle_timeout_s=IDLE_S,
                max_rows=max_rows,
                numbering=Numbering(producers=3, producer_s=20.0, replies=4),
            )
            for max_rows in (5, 99)
        )
        self.away: dict[str, Gone] = {}
        self.outcomes: set[str] = set()
        self.names = [f"s{i}" for i in range(18)]

    def both(self, do: Callable[[Engine], object]) -> None:
        found: list[object] = []
        for engine in (self.moving, self.staying):
            try:
                found.append(do(engine))
            except RequestError as error:
                found.append((error.code, error.extra, str(error)))
                self.outcomes.add(error.code)
        assert found[0] == found[1]

    def turn(self) -> None:
        rng, moving, now = self.random, self.moving, self.now
        while len(moving.table.rows) > 2 or (rng.random() < 0.3 and moving.sessions()):
            gone = rng.choice(moving.sessions())
            self.away[gone] = evicted(moving, gone)
        name, to = rng.sample(self.names, 2)
        due = [name for name, gone in self.away.items() if gone[3] < now - IDLE_S]
        for needed in {name: None, to: None} | dict.fromkeys(due):
            if needed in self.away:
                row = placed(moving, needed, self.away.pop(needed))
                assert moving.expire_row(row, now) is (needed in due)
                moving.table.free(row)
        assert sorted(due + moving.expire(now)) == sorted(self.staying.expire(now))
        self.request(name, to)
        self.both(lambda engine: engine.info(name, now=now))
        assert moving.table.open_count + moving.table.absent == self.staying.table.open_count

    def request(self, name: str, to: str) -> None:
        rng, now = self.random, self.now
        kind, who, x = rng.random(), rng.choice("pqrst"), rng.randrange(V)
        if kind < 0.6:
            last = (self.staying.producers(name).get(who) or Producer()).last
            n, ack = max(1, last + rng.choice([1, 1, 1, 1, 0, -1, -2, 2])), rng.choice([0, last])
            same = {"request": rng.choice(["r", "r", "r", "other"]), "reply": b"%d" % now, "ack": ack, "now": now}
            self.both(lambda engine: numbered(engine, name, who, n, lambda row: step_row(engine, row, x, now), **same))
        elif kind < 0.7:
            self.both(lambda engine: engine.open(name, now=now))
        elif kind < 0.75:
            self.both(lambda engine: engine.reset(name, now=now))
        elif kind < 0.85:
            self.both(lambda engine: engine.close(name))
        elif kind < 0.9:
            self.both(lambda engine: engine.fork(name, to, now=now))


@pytest.mark.parametrize("seed", range(4))
def test_an_engine_whose_sessions_come_and_go_says_what_one_says_whose_stay(
    make: Make, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(module, "TOMBSTONES", 6)
    pair = Pair(make, seed)
    for now in range(1500):
        pair.now = float(now)
        pair.turn()
        pair.moving.check()
        pair.staying.check()
    assert pair.outcomes >= {"full", "gap", "stale", "conflict", "exists", "unknown_session"}
    found = everything(pair.moving) | {name: (gone[1], gone[0].tobytes()) for name, gone in pair.away.items()}
    assert found == everything(pair.staying)
    assert pair.moving.expired_count == pair.staying.expired_count > 10
