"""A store through the death of its worker, at any moment and at any operation, and through a loss of power.

scripts/crashes.py does more of it.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.process import changes, disk, power
from tests.process.crashes import run
from tests.process.faults import PRIVATE, PRODUCERS, ROOT, SHARED

KILLS = {
    "as it is": 6,
    "killed at an operation": 2,
    "every write saves rows": 2,
    "10 in memory, journal of 500": 2,
    "model not exact": 2,
    "loss of power": 3,
}
CHANGED = {"2 sessions in memory": 4, "loss of power": 3}
FEW = 3  # producers of all variants but the first
WITHIN_S = 100
OPERATIONS = 200  # on the store's files, at least, in what tests.process.operations does


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The failing disk."""
    built = disk.build(tmp_path_factory.mktemp("disk"))
    if built is None:
        pytest.skip("there is no C compiler")
    return built


def test_all_that_was_acknowledged_is_kept_and_counts_once(tmp_path):
    report = run(tmp_path, "as it is", KILLS["as it is"], 1, library=None, within_s=WITHIN_S)
    assert report.kills == KILLS["as it is"]
    assert report.acknowledged == report.compared > 0
    assert PRODUCERS <= report.sessions <= SHARED + PRODUCERS * PRIVATE
    assert report.replayed


@pytest.mark.parametrize("name", [name for name in KILLS if name != "as it is"])
def test_it_is_so_wherever_a_worker_dies_and_however_it_keeps_its_sessions(tmp_path, library, name):
    report = run(tmp_path, name, KILLS[name], 1, library=library, producers=FEW, within_s=WITHIN_S)
    assert report.kills == KILLS[name]
    assert report.acknowledged == report.compared > 0
    assert report.sessions >= FEW


@pytest.mark.parametrize("name", CHANGED)
def test_whatever_changes_a_session_happens_once(tmp_path, library, name):
    done = changes.walk(tmp_path, changes.VARIANTS[name], CHANGED[name], 1, library=library)
    assert done.told.keys() >= {"step", "open", "reset", "close", "fork", "restore"}


@pytest.mark.parametrize(
    ("durability", "with_power", "stride"),
    [("process", False, 17), ("power", True, 17), ("process", True, 29)],
    ids=["killed", "loss of power", "not kept"],
)
def test_a_store_that_dies_at_an_operation_has_all_its_writes_and_goes_on(tmp_path, library, durability, with_power, stride):
    store, shadow = tmp_path / "store" / "a.db", tmp_path / "shadow"
    for made in (store.parent, shadow):
        made.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.process.operations", durability, str(stride), "1"],
        env=os.environ | disk.environment(library, store, shadow=shadow if with_power else None),
        cwd=ROOT,
        timeout=WITHIN_S,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert sum(told["deaths"].values()) > 3 * OPERATIONS // stride
    assert len(told["deaths"]) > told["writes"] // 2  # they are spread over all that happens
    assert (told["lost"] > 0) is (with_power and durability == "process")


def test_without_durability_power_a_loss_of_power_costs_tokens_and_nothing_else(tmp_path, library):
    seen = power.lose(tmp_path, 2, 1, library=library, durability="process")
    assert all(0 < one.lost <= one.acknowledged for one in seen)
