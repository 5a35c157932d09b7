"""What the worker has done so far: counters, rates and histograms, for `stats`. No clock: it is told the time."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

import numpy as np

from rnnstream.worker.outbox import Outbox

RATES_S = (1, 10, 60)  # over which tokens a second are told
SAMPLE_S = 0.5  # between the samples for them


class Stats:
    """Counters of one worker.

    Attributes:
        tokens: that counted.
        bodies: that were taken in.
        repeats: numbered requests that got their kept reply.
        errors: replies by error code.
        outbox: counts replies to peers that were gone or cut off, and those that were; None where nothing is sent.
        connections: that there are.
        refused: handshakes that failed, and connections beyond the most that there may be.
    """

    def __init__(self) -> None:
        self.tokens = self.bodies = self.repeats = self.connections = self.refused = 0
        self.errors: Counter[str] = Counter()
        self.outbox: Outbox | None = None
        # Histograms by powers of two: place k counts what is below 2 ** k and not below 2 ** (k - 1).
        self._batches = [0] * 32
        self._latencies = [0] * 48
        self._started: float | None = None
        self._samples: deque[tuple[float, int]] = deque(maxlen=2 * int(RATES_S[-1] / SAMPLE_S) + 4)  # (seconds, tokens)
        self._sample_at = 0.0
        self._last = 0.0, 0  # when the last turn ended, and tokens then

    def batch(self, rows: int, counted: int) -> None:
        """So many rows were stepped together; so many of their tokens have counted."""
        self._batches[rows.bit_length()] += 1
        self.tokens += counted

    def alone(self, arrived: float, now: float) -> None:
        """A turn with a single token, which came alone: all that is counted of it."""
        self.bodies += 1
        self.batch(1, 1)
        self.end(now, ((1, arrived),))

    def end(self, now: float, answered: Iterable[tuple[int, float]] = ()) -> None:
        """A turn of the loop has ended, and answered so many bodies that had been taken in at such a time."""
        for bodies, arrived in answered:
            self._latencies[min(int((now - arrived) * 1e6).bit_length(), 47)] += bodies
        if self._started is None:
            self._started, self._last = now, (now, 0)
        if now >= self._sample_at:  # there may have been silence until this turn
            self._samples += (self._last, (now, self._last[1]))
            self._sample_at = now + SAMPLE_S
        self._last = now, self.tokens

    def rates(self, now: float) -> list[list[float]]:
        """[seconds, tokens a second] over the last so many seconds, or since the start where that is less."""
        if self._started is None or now <= self._started:
            return [[float(seconds), 0.0] for seconds in RATES_S]
        times, totals = zip(*self._samples, self._last, (now, self.tokens), strict=True)
        found = []
        for seconds in RATES_S:
            since = max(now - seconds, self._started)
            before = float(np.interp(since, times, totals)) if since > self._started else 0.0
            found.append([float(seconds), (self.tokens - before) / (now - since)])
        return found

    def told(self, now: float) -> dict[str, Any]:
        """Everything counted here, as `stats` tells it."""
        return {
            "uptime_s": now - (self._started if self._started is not None else now),
            "tokens": self.tokens,
            "tokens_per_s": self.rates(now),
            "bodies": self.bodies,
            "repeats": self.repeats,
            "errors": dict(self.errors),
            "dropped": self.outbox.dropped if self.outbox is not None else 0,
            "cut_off": self.outbox.cut_count if self.outbox is not None else 0,
            "connections": self.connections,
            "refused": self.refused,
            "batches": _histogram(self._batches),
            "latencies_us": _histogram(self._latencies),
        }


def _histogram(counts: list[int]) -> list[list[int]]:
    """[upper bound, count] pairs of a histogram by powers of two, without the empty ones: values are below the bound."""
    return [[1 << place, count] for place, count in enumerate(counts) if count]
