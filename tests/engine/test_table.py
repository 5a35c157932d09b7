"""The session table: rows taken and given back, names remembered as closed."""

from __future__ import annotations

import numpy as np
import pytest

from rnnstream.engine import table as module
from rnnstream.engine.table import Table
from rnnstream.errors import Full


def opened(table: Table, name: str, now: float = 0.0) -> int:
    row = table.take(name)
    table.open(row, now)
    return row


def test_growth_keeps_what_is_in_the_rows() -> None:
    table = Table(np.array([0.5, -1], np.float32), max_sessions=1000)
    for i in range(300):
        row = opened(table, f"s{i}", i)
        table.states[row, 0] = i
        table.t[row] = 2 * i
        table.check()
    for i in range(300):
        row = table.rows[f"s{i}"]
        assert table.states[row].tolist() == [i, -1]
        assert (table.t[row], table.opened_at[row], table.moved_at[row]) == (2 * i, i, i)


def test_a_name_keeps_its_row_until_it_is_neither_open_nor_waited_for() -> None:
    table = Table(np.zeros(1), max_sessions=3)
    row = table.take("a")
    assert table.take("a") == row
    assert table.open_count == 0
    table.open(row, 0.0)
    table.free(row)
    assert table.rows == {"a": row}
    table.close(row)
    assert table.rows == {"a": row}
    table.free(row)
    assert table.rows == {}
    table.free(row)  # twice does no harm
    assert table.take("b") == row
    table.free(row)
    table.check()


def test_rows_that_are_only_waited_for_count_towards_the_limit() -> None:
    table = Table(np.zeros(1), max_sessions=2)
    opened(table, "a")
    row = table.take("b")
    with pytest.raises(Full, match="2 sessions are open"):
        table.take("c")
    table.free(row)
    assert table.take("c") == row
    table.free(row)
    table.check()


def test_an_opening_that_is_withdrawn_leaves_no_trace() -> None:
    table = Table(np.zeros(1), max_sessions=2)
    row = opened(table, "a")
    table.withdraw(row)
    table.free(row)
    table.check()
    assert (table.open_count, table.rows, table.was_closed("a")) == (0, {}, False)


def test_the_oldest_closed_names_are_forgotten_at_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSED_NAMES", 3)
    table = Table(np.zeros(1), max_sessions=9)
    for name in "abcde":
        row = opened(table, name)
        table.close(row)
        table.free(row)
    assert [table.was_closed(name) for name in "abcde"] == [False, False, True, True, True]
    opened(table, "d")
    assert [table.was_closed(name) for name in "cde"] == [True, False, True]
    table.check()


@pytest.mark.parametrize(
    "damage",
    [
        lambda table: table.names.__setitem__(0, "z"),
        lambda table: table.live.__setitem__(1, 1),
        lambda table: table._free.append(0),
        lambda table: table.states.__setitem__(0, np.nan),
        lambda table: table.t.__setitem__(0, -1),
        lambda table: table._closed.__setitem__("a", None),
        lambda table: setattr(table, "open_count", 2),
        lambda table: setattr(table, "max_sessions", 0),
    ],
)
def test_check_finds_damage(damage: object) -> None:
    table = Table(np.zeros(2), max_sessions=9)
    opened(table, "a")
    table.free(table.take("b"))
    table.check()
    damage(table)  # type: ignore[operator]
    with pytest.raises(AssertionError):
        table.check()
