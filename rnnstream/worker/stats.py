"""What the worker has done so far: counters, rates and histograms, for `stats`. No clock: it is told the time."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

RATES_S = (1, 10, 60)  # over which tokens a second are told
SAMPLE_S = 0.5  # between the samples for them


class Stats:
    """Counters of one worker.

    Attributes:
        tokens: that counted.
        bodies: that were taken in.
        repeats: numbered requests that got their kept reply.
        errors: replies by error code.
        dropped: replies to peers that were gone or cut off.
        cut_off: peers that did not read their replies.
    """

    def __init__(self) -> None:
        self.tokens = self.bodies = self.repeats = self.dropped = self.cut_off = 0
        self.errors: Counter[str] = Counter()
        # Histograms by powers of two: place k counts what is below 2 ** k and not below 2 ** (k - 1).
        self._batches = [0] * 32
        self._latencies = [0] * 48
        self._started: float | None = None
        self._samples: deque[tuple[float, int]] = deque(maxlen=int(RATES_S[-1] / SAMPLE_S) + 2)  # (seconds, tokens)
        self._sample_at = 0.0

    def batch(self, rows: int, counted: int) -> None:
        """So many rows were stepped together; so many of their tokens have counted."""
        self._batches[rows.bit_length()] += 1
        self.tokens += counted

    def answered(self, bodies: int, seconds: float) -> None:
        """So many bodies were answered this long after they had been taken in."""
        self._latencies[min(int(seconds * 1e6).bit_length(), 47)] += bodies

    def end(self, now: float) -> None:
        """A turn of the loop has ended."""
        if now >= self._sample_at:
            self._samples.append((now, 0 if self._started is None else self.tokens))
            self._sample_at = now + SAMPLE_S
            self._started = self._samples[0][0] if self._started is None else self._started

    def rates(self, now: float) -> list[list[float]]:
        """[seconds, tokens a second] over the last so many seconds, or since the start where that is less."""
        found = []
        for seconds in RATES_S:
            before = [sample for sample in self._samples if sample[0] <= now - seconds]
            at, tokens = before[-1] if before else self._samples[0] if self._samples else (now, 0)
            found.append([float(seconds), (self.tokens - tokens) / (now - at) if now > at else 0.0])
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
            "dropped": self.dropped,
            "cut_off": self.cut_off,
            "batches": _histogram(self._batches),
            "latencies_us": _histogram(self._latencies),
        }


def _histogram(counts: list[int]) -> list[list[int]]:
    """[upper bound, count] pairs of a histogram by powers of two, without the empty ones: values are below the bound."""
    return [[1 << place, count] for place, count in enumerate(counts) if count]
