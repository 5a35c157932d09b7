"""What each user may have, where a worker knows its users by their keys."""

from __future__ import annotations

from dataclasses import dataclass

WAITING = 16_384  # requests: a quarter of what a worker lets wait, so that one user alone does not stop the reading for all


@dataclass(frozen=True)
class Quotas:
    """Bounds for each key; beyond them a request is refused with the bound named, and changes nothing.

    Attributes:
        sessions: most sessions that are open, in memory and in the store; None: as many as the worker has room for.
        waiting: most requests that wait their turn.
        rate: most requests a second, with as many at once after a second of silence; None: no bound.
    """

    sessions: int | None = None
    waiting: int = WAITING
    rate: float | None = None
