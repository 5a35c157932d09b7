"""The session table: which name has which row, and what is kept in the row.

A row is a place in arrays that grow together. A name holds one from the first request that names it until it is neither open
nor waited for. Rows are handed out again: nobody outside the engine may keep one past its last waiting request.

    S numbers of a state
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnstream.errors import Full

Array = npt.NDArray[Any]

CLOSED_NAMES = 100_000  # closed names that are remembered, so that their streams are not started over unnoticed: 15 to 35 MB


class Table:
    """Names, rows and states.

    Attributes:
        rows: the row of each name that is open or waited for.
        names: the name of each row, None for free ones.
        live: 1 for rows whose session is open.
        states: [rows, S]; a<t> of each open session.
        t: step count of each open session.
        opened_at, moved_at: seconds, on the clock that the caller keeps; of each open session.
    """

    def __init__(self, initial_state: Array, *, max_sessions: int) -> None:
        self.max_sessions = max_sessions
        self._a0 = initial_state
        self.rows: dict[str, int] = {}
        self.names: list[str | None] = []
        self.live = bytearray()
        self.open_count = 0
        self._free: list[int] = []
        self._closed: OrderedDict[str, None] = OrderedDict()
        self.states = np.empty((0, len(initial_state)), initial_state.dtype)
        self.t = np.empty(0, np.int64)
        self.opened_at = np.empty(0)
        self.moved_at = np.empty(0)

    def take(self, name: str) -> int:
        """The row of this name; a free one, not open, if it has none yet.

        Raises:
            Full: `max_sessions` names have rows.
        """
        row = self.rows.get(name)
        if row is not None:
            return row
        if len(self.rows) >= self.max_sessions:
            raise Full(f"{self.max_sessions} sessions are open or waited for, the limit; close one, or raise it.")
        row = self._free.pop() if self._free else len(self.names)
        if row == len(self.names):
            self.names.append(None)
            self.live.append(0)
            if row == len(self.t):
                self._grow(max(64, 2 * row))
        self.names[row] = name
        self.rows[name] = row
        return row

    def free(self, row: int) -> None:
        """Give back the row of a name that is not open; an open one stays as it is."""
        name = self.names[row]
        if name is not None and not self.live[row]:
            del self.rows[name]
            self.names[row] = None
            self._free.append(row)

    def open(self, row: int, now: float) -> None:
        """Start the session of this row at a<0>, t = 0; whatever was in the row is overwritten."""
        name = self.names[row]
        assert name is not None
        self._closed.pop(name, None)
        self.open_count += not self.live[row]
        self.live[row] = 1
        self.states[row] = self._a0
        self.t[row] = 0
        self.opened_at[row] = self.moved_at[row] = now

    def withdraw(self, row: int) -> None:
        """Undo an `open` that turned out to be for nothing: the name is as unknown as it was before."""
        assert self.live[row]
        self.live[row] = 0
        self.open_count -= 1

    def close(self, row: int) -> None:
        """Forget the state of an open session; its name is remembered as closed, and keeps its row until `free`."""
        name = self.names[row]
        assert name is not None
        assert self.live[row]
        self.live[row] = 0
        self.open_count -= 1
        self._closed[name] = None
        if len(self._closed) > CLOSED_NAMES:
            self._closed.popitem(last=False)

    def was_closed(self, name: str) -> bool:
        """Whether this name was closed and not opened since, as far back as `CLOSED_NAMES` go."""
        return name in self._closed

    def _grow(self, capacity: int) -> None:
        for attribute in ("states", "t", "opened_at", "moved_at"):
            old = getattr(self, attribute)
            new = np.zeros((capacity, *old.shape[1:]), old.dtype)
            new[: len(old)] = old
            setattr(self, attribute, new)

    def check(self) -> None:
        """Assert what always holds between calls."""
        assert all(self.names[row] == name for name, row in self.rows.items())
        used = {row for row, name in enumerate(self.names) if name is not None}
        assert used == set(self.rows.values())
        assert sorted(self._free) == [row for row in range(len(self.names)) if row not in used]
        live = {row for row in range(len(self.names)) if self.live[row]}
        assert live <= used
        assert len(live) == self.open_count
        assert len(self.rows) <= self.max_sessions
        assert len(self.names) == len(self.live) <= len(self.t) == len(self.states)
        assert not any(self.names[row] in self._closed for row in live)
        rows = sorted(live)
        assert np.isfinite(self.states[rows]).all()
        assert (self.t[rows] >= 0).all()
        assert (self.opened_at[rows] <= self.moved_at[rows]).all()
