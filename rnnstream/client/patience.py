"""How long to bear the silence of a worker before the connection to it is made anew. Without a clock."""

from __future__ import annotations

import math

PATIENCE_S = 0.25  # least silence before a connection is made anew: many round trips, and soon for a person
_ROUND_TRIPS = 3  # of silence, where those take longer


class Patience:
    """What is known of the silence on the connections to one worker; times are in the seconds of `now`.

    Attributes:
        heard_at: when something came last.
    """

    def __init__(self) -> None:
        self.heard_at = -math.inf
        self._quiet_since = -math.inf  # when something came, or was sent into silence, or the connection was made anew
        self._round_trip_s = 0.0  # smoothed
        self._renewals = 0  # since something came

    def sent(self, now: float) -> None:
        """Something was sent while nothing was under way."""
        self._quiet_since = now

    def heard(self, now: float) -> None:
        """Something came."""
        self.heard_at = self._quiet_since = now
        self._renewals = 0

    def measured(self, round_trip_s: float) -> None:
        """The reply to one sending came so long after it."""
        self._round_trip_s += (round_trip_s - self._round_trip_s) / 8

    def renewed(self, now: float) -> None:
        """The connection is made anew."""
        self._renewals += 1
        self._quiet_since = now

    def ends_at(self, timeout_s: float) -> float:
        """When it ends: later each time, for it may be that the worker, or the way to it, is only slow.

        Args:
            timeout_s: how long a call is waited for; it leaves time for a second try.
        """
        first_s = min(max(PATIENCE_S, _ROUND_TRIPS * self._round_trip_s), timeout_s / 2)
        return self._quiet_since + float(min(first_s * 2.0 ** min(self._renewals, 60), timeout_s))
