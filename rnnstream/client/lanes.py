"""The lanes of a client, one for each session that it knows, and the producer ids that they number under."""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice

from rnnstream.client.lane import Lane
from rnnstream.names import Name

LANES = 1 << 16  # sessions that are remembered: 32 MB. Forgotten earlier, one in steady use would wear out producer ids
LOOKED_AT = 16  # of those, for some to forget, when another one comes


class Lanes(OrderedDict[Name | None, Lane]):
    """The lanes by the names of their sessions, in the order in which they were made, or last found to be in use.

    Args:
        producer: the producer id of all that are made before a further one is needed; the others begin with it.
    """

    def __init__(self, producer: str) -> None:
        super().__init__()
        self._producer = producer
        self._further = 0  # ids that were made from it

    def lane(self, session: Name | None) -> Lane:
        """The lane of this session; where it is made, idle ones are forgotten to make room, if they are soon found."""
        lane = self.get(session)
        if lane is None:
            producer = self.fresh_producer() if self._further else self._producer
            for name in list(islice(self, LOOKED_AT if len(self) >= LANES else 0)):
                if not self[name].idle:
                    self.move_to_end(name)
                elif len(self) >= LANES:
                    del self[name]
                    producer = self.fresh_producer()  # it may be that one that comes back
            lane = self[session] = Lane(session, producer)
        return lane

    def fresh_producer(self) -> str:
        """A producer id that was never used."""
        self._further += 1
        return f"{self._producer}.{self._further}"
