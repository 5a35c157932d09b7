"""What is counted: the histogram of latencies."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from rnnstream.cli.outcome import OCTAVE, Latencies


@pytest.mark.parametrize("percent", [1, 50, 90, 99, 99.9, 99.99, 100])
def test_a_percentile_is_never_too_low_and_hardly_too_high(percent: float) -> None:
    seconds = np.random.default_rng(3).lognormal(-7, 2, 20_000)
    latencies = Latencies()
    latencies.add(seconds[:5000], 1)
    latencies.add(seconds[5000:], 1)
    exact = np.sort(seconds)[math.ceil(Fraction(str(percent)) / 100 * len(seconds)) - 1]
    assert exact <= latencies.percentile(percent) <= exact * (1 + 1 / OCTAVE)
    assert latencies.most_s == latencies.percentile(100) == seconds.max()


def test_a_latency_counts_for_each_token() -> None:
    latencies = Latencies()
    latencies.add([0.001, 0.5, 2.0], [98, 2, 0])
    assert latencies.counts.sum() == 100
    assert 0.001 <= latencies.percentile(98) <= 0.001 * (1 + 1 / OCTAVE)
    assert latencies.percentile(98.5) == latencies.percentile(100) == 0.5  # that of no token does not count


def test_histograms_are_merged() -> None:
    seconds = np.random.default_rng(4).lognormal(-7, 1, 1000)
    whole, one, other = Latencies(), Latencies(), Latencies()
    whole.add(seconds, 2)
    one.add(seconds[:300], 2)
    other.add(seconds[300:], 2)
    one.merge(other)
    assert one.counts.tolist() == whole.counts.tolist()
    assert one.most_s == whole.most_s


def test_what_is_beyond_the_ends_counts_at_the_ends() -> None:
    latencies = Latencies()
    assert math.isnan(latencies.percentile(50))
    latencies.add([0.0, 1e-9, 1e6], 1)
    assert latencies.counts[[0, -1]].tolist() == [2, 1]
    assert latencies.most_s == 1e6
    assert latencies.percentile(67) == 1e6, "beyond the last octave it is the longest, never what is too low"


def test_the_rank_of_a_percentile_is_exact() -> None:
    latencies = Latencies()
    latencies.add([1.0, 9.0], [40_959, 41])
    assert latencies.percentile(99.9) <= 1 + 1 / OCTAVE, "40,959 of 41,000, where floats make it one more"
    latencies.add([9.0], [1])
    assert latencies.percentile(99.9) == 9.0


@pytest.mark.parametrize(
    ("longest_s", "interval_s"),
    [
        (1.0, 1.0),
        (1.0, 0.25),
        (0.75, 0.5),
        (0.3, 5.0),
        (2.0**-21, 2.0**-24),
        (2.0**-18, 2.0**-30),
        (100_000.0, 64.0),
        *np.random.default_rng(8).lognormal([0, -7], 2, (20, 2)).tolist(),
    ],
)
def test_latencies_at_even_intervals_count_as_in_a_loop_over_them(longest_s: float, interval_s: float) -> None:
    one, other = Latencies(), Latencies()
    for each in (one, other):
        each.add([0.5], 7)
    waits = longest_s - interval_s * np.arange(math.ceil(longest_s / interval_s) + 1)
    waits = waits[waits > 0]
    other.add(waits, 3)
    assert one.add_evenly(longest_s, interval_s, 3) == 3 * len(waits)
    assert one.counts.tolist() == other.counts.tolist()
    assert one.most_s == other.most_s


def test_more_than_anybody_could_go_through_are_counted() -> None:
    latencies = Latencies()
    assert latencies.add_evenly(1e6, 1e-9, 1) == latencies.counts.sum() == 10**15
    assert 1000 <= latencies.percentile(0.1) <= 1000 * (1 + 1 / OCTAVE)
