"""What each user may have, where a worker knows its users by their keys."""

from __future__ import annotations

import math
from dataclasses import dataclass

LEAST_RATE = 1e-3  # requests a second: one in a quarter of an hour
WAITING = 16_384  # requests: a quarter of what a worker lets wait, so that one user alone does not stop the reading for all


@dataclass(frozen=True)
class Quotas:
    """Bounds for each key; beyond them a request is refused with the bound named, and changes nothing.

    Attributes:
        sessions: most sessions that are open, in memory and in the store; None: a quarter of what the worker has room for.
        waiting: most requests that wait their turn.
        rate: most requests a second, with as many at once after a second of silence; None: no bound.

    Raises:
        ValueError: one of them is below 1, or `rate` below `LEAST_RATE`.
    """

    sessions: int | None = None
    waiting: int = WAITING
    rate: float | None = None

    def __post_init__(self) -> None:
        for key, least in (("sessions", 1), ("waiting", 1), ("rate", LEAST_RATE)):
            value = getattr(self, key)
            if value is not None and not (value >= least and math.isfinite(value)):
                raise ValueError(f"{key} is {value}; it is a number from {least}.")


class Rates:
    """What each key may still send: `rate` requests a second, and what it has not used in the last one.

    Args:
        rate: requests a second.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._left: dict[str, tuple[float, float]] = {}  # by key: how many requests, when. As many keys as were ever admitted

    def spend(self, key: str, now: float) -> float:
        """A body has come: seconds until it may come again, 0 where it may now."""
        left, before = self._left.get(key, (max(1.0, self._rate), now))
        left = min(max(1.0, self._rate), left + (now - before) * self._rate)
        if left < 1:
            self._left[key] = left, now
            return (1 - left) / self._rate
        self._left[key] = left - 1, now
        return 0.0

    def owe(self, key: str, requests: int) -> None:
        """So many further requests were in a body that was let in: all of them count, and what is too much is owed."""
        left, before = self._left[key]
        self._left[key] = left - requests, before
