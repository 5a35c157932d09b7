"""Which sessions have moved since their rows in the store were saved, and since when."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

BLOCK = 1024  # rows that are looked at at a time


class Part(NamedTuple):
    """Rows that are behind since the same journal entry.

    Attributes:
        id: of the entry.
        work: how much the journal had held in all when they fell behind.
        rows: those rows; some may have been settled since.
    """

    id: int
    work: int
    rows: Array


class Arrears:
    """Rows whose sessions are ahead of what is saved of them.

    Attributes:
        work: how much the journal has held in all.
    """

    def __init__(self) -> None:
        self.work = 0
        self._since = np.zeros(0, np.int64)  # by row: id of the first journal entry that is not saved; 0: all is
        self._parts: deque[Part] = deque()
        self._settled = 0  # rows at the beginning of the first part that need nothing any more

    def reach(self, rows: int) -> None:
        """Have places for so many rows."""
        if rows > len(self._since):
            more = max(rows, 2 * len(self._since)) - len(self._since)
            self._since = np.concatenate((self._since, np.zeros(more, np.int64)))

    def mark(self, rows: Array, id: int) -> None:
        """The sessions of these rows, for which there are places, move in the journal entry `id`: none before was newer."""
        since = self._since
        new = rows[since[rows] == 0]
        if len(new):
            since[new] = id
            self._parts.append(Part(id, self.work, new))

    def settle(self, row: int) -> None:
        """This row's session was saved, or the row is another's."""
        if row < len(self._since):
            self._since[row] = 0

    def behind(self, row: int) -> bool:
        """Whether this row's session is ahead of what is saved of it."""
        return row < len(self._since) and bool(self._since[row])

    def overdue(self, most_work: int, most: int) -> list[int]:
        """Rows behind which the journal has held more than `most_work`, the oldest first."""
        found: list[int] = []
        start = self._settled
        for part in self._parts:
            if self.work - part.work <= most_work:
                break
            for at in range(start, len(part.rows), BLOCK):
                if len(found) >= most:
                    return found
                rows = part.rows[at : at + BLOCK]
                found += rows[self._since[rows] == part.id][: most - len(found)].tolist()
            start = 0
        return found

    def oldest(self) -> int | None:
        """Id of the oldest journal entry that a row still needs; None if none does."""
        while self._parts:
            part = self._parts[0]
            while self._settled < len(part.rows):
                if self._since[part.rows[self._settled]] == part.id:
                    return part.id
                self._settled += 1
            self._parts.popleft()
            self._settled = 0
        return None
