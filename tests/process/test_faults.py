"""Promises 1, 2 and 4 through a bad network: several producers, a worker, all faults. scripts/faults.py runs more of it."""

import signal

import pytest

from tests.process.faults import PRIVATE, PRODUCERS, SHARED, run

TOKENS = 1000  # of each producer
WITHIN_S = 100
FAULTS = {"delayed", "repeated", "requests lost", "replies lost", "silenced", "closed", "reset", "late"}


def test_each_token_counts_once_whatever_the_network_does(tmp_path):
    report = run(tmp_path, TOKENS, 1, within_s=WITHIN_S)
    assert report.acknowledged == {0: PRODUCERS * TOKENS}
    assert report.compared == {0: PRODUCERS * TOKENS}
    assert report.lost == 0
    assert PRODUCERS <= report.sessions <= SHARED + PRODUCERS * PRIVATE
    assert report.repeats > 0
    assert {kind for kind, count in report.done.items() if count} >= FAULTS


@pytest.mark.parametrize("seed", [1, 2])
def test_a_restart_is_told_and_nothing_counts_twice(tmp_path, seed):
    report = run(tmp_path, TOKENS, seed, restarts=(signal.SIGKILL, signal.SIGTERM), within_s=WITHIN_S)
    assert report.acknowledged.total() == PRODUCERS * TOKENS
    assert sorted(report.acknowledged) == [0, 1, 2]
    assert report.compared[2] == report.acknowledged[2] > 0
    assert min(report.compared.values()) > 0
    assert report.lost > 0
