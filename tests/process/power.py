"""A worker whose store is not kept through a loss of power: what is lost then, and that the store is whole all the same.

This is what shows that the disk of disk.c loses anything at all: see `tests.process.crashes` for a store that is kept.
"""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rnnstream import Client, StepModel, UnknownSession, load
from rnnstream.engine import snapshot
from tests.process import disk
from tests.process.faults import model_file
from tests.process.place import placed
from tests.process.producer import VOCABULARY
from tests.worker_process import DEADLINE_S

SESSIONS = [f"session-{i}" for i in range(6)]
TOKENS = 1500  # between two losses of power, of all sessions: at most; some come to more than the log holds


@dataclass
class Lost:
    """What was seen at a loss of power.

    Attributes:
        acknowledged: tokens, since the loss before.
        lost: of them.
    """

    acknowledged: int
    lost: int


def lose(directory: Path, losses: int, seed: int, *, library: Path, durability: str) -> list[Lost]:
    """Stream tokens, and lose power, so many times. The sessions are to be where they were after some of their tokens.

    Raises:
        AssertionError: they are somewhere else.
    """
    chance, path, shadow = random.Random(seed), model_file(directory, 0), directory / "shadow"
    shadow.mkdir()
    model, seen = load(path), []
    sessions: dict[str, list[int]] = {name: [] for name in SESSIONS}
    with placed(path, directory / "store", ("--durability", durability)) as place:
        environment = disk.environment(library, place.store, shadow=shadow)
        for number in range(losses):
            place.start(environment)
            place.ready()
            told = Lost(chance.randint(1, TOKENS), 0)
            with Client(place.address, timeout_s=DEADLINE_S) as client:
                streams = [chance.choice(SESSIONS) for _ in range(told.acknowledged)]
                for name in dict.fromkeys(streams):
                    tokens = [chance.randrange(VOCABULARY) for _ in range(streams.count(name))]
                    sessions[name] += tokens
                    *_, last = client.session(name).stream(tokens)
                    assert last.t == len(sessions[name])
            place.end(signal.SIGKILL)
            disk.lose_power(place.store.parent, shadow, chance if number % 2 else None)
            place.start(environment)
            place.ready()
            with Client(place.address, timeout_s=DEADLINE_S) as client:
                for name, tokens in sessions.items():
                    t = _t(client, name, model, tokens)
                    told.lost += len(tokens) - t
                    del tokens[t:]
            place.end(signal.SIGTERM)
            place.look()
            seen.append(told)
    return seen


def _t(client: Client, name: str, model: StepModel, tokens: list[int]) -> int:
    """The step count of a session, whose state is that of its first so many tokens."""
    try:
        data = client.session(name).snapshot()
    except UnknownSession:
        return 0
    a, t = snapshot.decode(data, dtype=np.dtype(model.dtype), state_size=model.state_size, digest=model.digest)
    assert t <= len(tokens)
    assert a.tobytes() == model.run(tokens[:t]).tobytes(), name
    return t
