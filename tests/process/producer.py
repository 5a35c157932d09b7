"""A producer with much to say to many sessions, in a process of its own: the ordinary client, in every way that it has.

It reads its orders as JSON from stdin, and writes what it was told as JSON to stdout::

    python -m tests.process.producer
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from rnnstream import Client, Prediction, SessionLost

VOCABULARY = 50
TIMEOUT_S = 60  # no network of the tests is away for as long
STREAMED, STEPPED = 0.5, 0.75  # of the tokens: pipelined up to here, by `step` up to here, the others live
LIVE = 3  # live streams at a time
CHUNK = 200  # tokens, of the longest


@dataclass
class Orders:
    """What a producer is to do.

    Attributes:
        address: of the worker, or what stands before it.
        seed: of its tokens and of how they are sent.
        tokens: how many it sends, over all sessions.
        sessions: their names.
    """

    address: str
    seed: int
    tokens: int
    sessions: list[str]


@dataclass
class Told:
    """What a producer was told.

    Attributes:
        acknowledged: [session, number of the token, x, t, label, p] of each reply, in the order in which they came.
        lost: how often it was told that a session was lost.
    """

    acknowledged: list[list] = field(default_factory=list)
    lost: int = 0

    def hear(self, session: str, number: int, x: int, prediction: Prediction) -> None:
        self.acknowledged.append([session, number, x, prediction.t, prediction.label, prediction.p])


def pipelined(client: Client, session: str, tokens: list[tuple[int, int]], told: Told) -> int:
    """Stream (number, x) pairs; how many were acknowledged."""
    done = 0
    try:
        for prediction in client.session(session).stream([x for _, x in tokens]):
            told.hear(session, *tokens[done], prediction)
            done += 1
    except SessionLost:
        told.lost += 1
    return done


def stepped(client: Client, session: str, tokens: list[tuple[int, int]], told: Told) -> int:
    """One call each; how many were acknowledged."""
    done = 0
    try:
        for token in tokens:
            told.hear(session, *token, client.session(session).step(token[1]))
            done += 1
    except SessionLost:
        told.lost += 1
    return done


def live(client: Client, tokens: dict[str, list[tuple[int, int]]], told: Told, chance: random.Random) -> dict[str, int]:
    """Live streams to several sessions, each as the dice want it; how many of each session's were acknowledged."""
    done = dict.fromkeys(tokens, 0)
    streams = {session: client.session(session).stream(x for _, x in mine) for session, mine in tokens.items()}
    while streams:
        session = chance.choice(list(streams))
        try:
            prediction = next(streams[session], None)
        except SessionLost:
            told.lost += 1
            prediction = None
        if prediction is None:
            del streams[session]
        else:
            told.hear(session, *tokens[session][done[session]], prediction)
            done[session] += 1
    return done


def produce(orders: Orders) -> Told:
    """Send all tokens; those that were lost with a session are sent again to its successor."""
    chance, told = random.Random(orders.seed), Told()
    left = [(number, chance.randrange(VOCABULARY)) for number in range(orders.tokens)]

    def take(most: int) -> list[tuple[int, int]]:
        taken = left[-chance.randint(1, most) :]
        del left[-len(taken) :]
        return taken[::-1]

    with Client(orders.address, timeout_s=TIMEOUT_S) as client:
        while left:
            way = chance.random()
            if way < STEPPED:
                session, tokens = chance.choice(orders.sessions), take(CHUNK if way < STREAMED else CHUNK // 2)
                send = pipelined if way < STREAMED else stepped
                while tokens:
                    del tokens[: send(client, session, tokens, told)]
            else:
                mine = {session: take(CHUNK // 4) for session in chance.sample(orders.sessions, LIVE) if left}
                while any(mine.values()):
                    for session, done in live(client, mine, told, chance).items():
                        del mine[session][:done]
                    mine = {session: tokens for session, tokens in mine.items() if tokens}
    return told


def names(number: int, producers: int, shared: int, private: int) -> Iterator[str]:
    """The sessions of one of several producers: its part of the shared ones, and those of its own."""
    yield from (f"shared-{i}" for i in range(shared) if (i - number) % producers < 4)
    yield from (f"private-{number}-{i}" for i in range(private))


def main() -> None:
    told = produce(Orders(**json.loads(sys.stdin.read())))
    json.dump(asdict(told), sys.stdout)


if __name__ == "__main__":
    main()
