"""Which sessions have not moved for too long: found by looking at all rows, but seldom."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

SWEEP_S = 1e-7  # between two looks, for each row: looking takes a hundredth of that


class Idle:
    """Finds the rows of idle sessions."""

    def __init__(self) -> None:
        self._due: list[int] = []  # rows that have been idle for too long, when they were looked at last
        self._look_at = 0.0  # no session can have been idle for too long before
        self._free_at = 0.0  # nor is anybody looked for before
        self._idle_s = math.inf

    def came(self, moved_at: float) -> None:
        """A session that moved last then is here now."""
        self._look_at = min(self._look_at, max(moved_at + self._idle_s, self._free_at))

    def again(self, now: float, rows: int) -> None:
        """One that is due has to stay: look at these many rows again soon."""
        self._look_at = now + SWEEP_S * rows

    def due(self, live: bytearray, moved_at: Array, now: float, idle_s: float) -> Iterator[int]:
        """Rows whose sessions are open and have not moved for longer than `idle_s`; those not asked for come the next time."""
        self._idle_s = idle_s
        if not self._due and now >= self._look_at:
            rows = np.frombuffer(live, np.uint8).nonzero()[0]
            moved = moved_at[rows]
            idle = moved < now - idle_s
            self._due = rows[idle][::-1].tolist()
            self._free_at = now + SWEEP_S * len(live)
            self._look_at = max(float(moved[~idle].min(initial=now)) + idle_s, self._free_at)
        while self._due:
            row = self._due.pop()
            if live[row] and moved_at[row] < now - idle_s:  # else it has moved since, or is another one
                yield row
