"""The producers of one session: what is remembered of each, and a mapping of them by their ids."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, MutableMapping
from typing import Any


class Producer:
    """What is remembered of a producer in a session.

    Attributes:
        last: the last number that counted.
        heard_at: seconds, when a request of it last came.
        request: the request with that number, to be compared.
        reply: its reply; None where it is among `more`, or no longer kept.
        more: further kept replies, (n, request, reply), oldest first.
        held_bytes: of `more`.
    """

    __slots__ = ("heard_at", "held_bytes", "last", "more", "reply", "request")

    def __init__(self) -> None:
        self.last = 0
        self.heard_at = 0.0
        self.request: Any = None
        self.reply: bytes | None = None
        self.more: deque[tuple[int, Any, bytes]] | None = None
        self.held_bytes = 0

    def find(self, n: int) -> tuple[Any, bytes] | None:
        """The request with this number and its reply, if that is kept."""
        if n == self.last and self.reply is not None:
            return self.request, self.reply
        place = n - self.more[0][0] if self.more else -1  # `more` has no holes
        return self.more[place][1:] if self.more and 0 <= place < len(self.more) else None


class Producers(MutableMapping[str, Producer]):
    """The producers of one session, by their ids.

    Nearly every session has one, and keeps it here: a dict would take 140 bytes more of each, of some 530 with the session.

    Attributes:
        id, lone: the only producer; None where there is none, or more.
    """

    __slots__ = ("_many", "id", "lone")

    def __init__(self, known: Iterable[tuple[str, Producer]] = ()) -> None:
        self.id: str | None = None
        self.lone: Producer | None = None
        self._many: dict[str, Producer] | None = None  # two or more
        for producer, mine in known:
            self[producer] = mine

    def __getitem__(self, producer: str) -> Producer:
        if self._many is not None:
            return self._many[producer]
        if self.lone is None or self.id != producer:
            raise KeyError(producer)
        return self.lone

    def __setitem__(self, producer: str, mine: Producer) -> None:
        if self._many is not None:
            self._many[producer] = mine
        elif self.id is None or self.lone is None or self.id == producer:
            self.id, self.lone = producer, mine
        else:
            self._many = {self.id: self.lone, producer: mine}
            self.id = self.lone = None

    def __delitem__(self, producer: str) -> None:
        if self._many is not None:
            del self._many[producer]
            if len(self._many) == 1:
                [(self.id, self.lone)] = self._many.items()
                self._many = None
        elif self.id == producer:
            self.id = self.lone = None
        else:
            raise KeyError(producer)

    def __iter__(self) -> Iterator[str]:
        if self._many is not None:
            return iter(self._many)
        return iter(() if self.id is None else (self.id,))

    def __len__(self) -> int:
        return len(self._many) if self._many is not None else self.id is not None

    def quietest(self) -> tuple[str, Producer]:
        """Who has been silent for longest, of one at least. O(producers)."""
        return min(self.items(), key=lambda item: item[1].heard_at)
