"""Names that are remembered no longer, and have rows in the store all the same, until that can do no harm."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import islice

from rnnstream.names import Name

MOST = 200  # rows that a write deletes, beside twice as many as names were forgotten since the one before


class Forgetting:
    """Names whose tombstones were pushed out. Their rows stay while the journal has steps of theirs: they would be replayed."""

    def __init__(self) -> None:
        self._since: dict[Name, int] = {}  # the journal entry in which each was forgotten; ids ascend
        self._added = 0

    def __contains__(self, name: object) -> bool:
        return name in self._since

    def __bool__(self) -> bool:
        return bool(self._since)

    def add(self, names: Iterable[Name], id: int) -> None:
        """These are forgotten as of this journal entry."""
        for name in names:
            self._since.pop(name, None)
            self._since[name] = id
            self._added += 1

    def due(self, oldest: int, kept: Collection[Name]) -> list[Name]:
        """Names whose rows can be deleted, for the journal begins at `oldest`; not those that are kept by the same write."""
        most = MOST + 2 * self._added
        return [name for name, id in islice(self._since.items(), most) if id < oldest and name not in kept]

    def gone(self, names: Iterable[Name]) -> None:
        """A write has deleted the rows of these."""
        for name in names:
            self._since.pop(name, None)
        self._added = 0

    def recall(self, name: Name) -> None:
        """This one is remembered again."""
        self._since.pop(name, None)
