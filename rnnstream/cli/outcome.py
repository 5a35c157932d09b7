"""What `rnnstream bench` finds: how it counts latencies, tokens and errors. No I/O and no clock."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

OCTAVE = 128  # buckets from a latency to its double: each is at most 1/128 wide
LEAST_S, OCTAVES = 2.0**-20, 32  # from 1 us, less than a message takes, to 68 minutes, longer than anybody waits: 32 KiB
_SHIFT = 52 - 7  # of a float64's bits: what is left are its exponent and 7 bits behind it, which is log-linear
_FIRST = int(np.float64(LEAST_S).view(np.int64)) >> _SHIFT
# Where each bucket begins, in seconds.
_EDGES = np.concatenate([[0.0], ((np.arange(1, OCTAVES * OCTAVE) + _FIRST) << _SHIFT).view(np.float64)])


class Latencies:
    """A histogram with log-linear buckets, of bounded size whatever it counts.

    Attributes:
        counts: tokens in each bucket.
        most_s: the longest latency, exactly.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(OCTAVES * OCTAVE, np.int64)
        self.most_s = 0.0

    def add(self, seconds: Sequence[float] | npt.NDArray[np.float64], tokens: Sequence[int] | int) -> None:
        """Count latencies.

        Args:
            seconds: one for each body.
            tokens: that had it, for each body or for all alike; those of 0 tokens count nothing.
        """
        times, weights = np.broadcast_arrays(np.asarray(seconds, np.float64), np.asarray(tokens, np.int64))
        if not (weights > 0).any():
            return
        places = (np.maximum(times, LEAST_S).view(np.int64) >> _SHIFT) - _FIRST
        np.add.at(self.counts, np.minimum(places, len(self.counts) - 1), weights)
        self.most_s = max(self.most_s, float(times[weights > 0].max()))

    def add_evenly(self, longest_s: float, interval_s: float, tokens: int) -> int:
        """Count bodies of the latencies longest_s, longest_s - interval_s, and so on, above 0, without going through them.

        Args:
            longest_s: above 0.
            interval_s: above 0.
            tokens: of each body.

        Returns:
            How many tokens these are.
        """
        bodies = math.ceil(longest_s / interval_s)
        reach = np.clip(np.floor((longest_s - _EDGES) / interval_s) + 1, 0, bodies).astype(np.int64)  # how many have each edge
        self.counts -= tokens * np.diff(reach, append=0)
        self.most_s = max(self.most_s, longest_s)
        return tokens * bodies

    def merge(self, other: Latencies) -> None:
        """Count what another one has counted."""
        self.counts += other.counts
        self.most_s = max(self.most_s, other.most_s)

    def percentile(self, percent: float) -> float:
        """The latency in seconds that this part of the tokens had at most: never too low, and too high by less than 0.8 %.

        Above 68 minutes it is the longest. NaN where nothing was counted.

        Args:
            percent: to the thousandth.
        """
        total = int(self.counts.sum())
        if not total:
            return float("nan")
        rank = max(1, -(-total * round(1000 * percent) // 100_000))
        place = int(np.searchsorted(np.cumsum(self.counts), rank))
        return min(float(_EDGES[place + 1]), self.most_s) if place + 1 < len(_EDGES) else self.most_s


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        seconds: that were measured.
        tokens: answered without an error in these seconds.
        latencies: of tokens, those included that were answered a little later.
        late: tokens that were due, and not sent for want of replies; `latencies` has how long they had waited at the end.
        errors: replies by their codes.
        said: by code, the first message.
        busy: how much of a processor the thread took that sends and checks, from 0 to 1; the most of all processes.
    """

    seconds: float = 0.0
    tokens: int = 0
    latencies: Latencies = field(default_factory=Latencies)
    late: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    said: dict[str, str] = field(default_factory=dict)
    busy: float = 0.0

    def merge(self, other: Outcome) -> None:
        """Add that of another process, which ran at the same time."""
        self.seconds, self.busy = max(self.seconds, other.seconds), max(self.busy, other.busy)
        self.tokens += other.tokens
        self.late += other.late
        self.latencies.merge(other.latencies)
        self.errors += other.errors
        self.said = other.said | self.said
