"""The session table: rows taken and given back, names remembered that are not open any more."""

from __future__ import annotations

import numpy as np
import pytest

from rnnstream.engine import tombstones as module
from rnnstream.engine.numbering import Numbering
from rnnstream.engine.producers import Producer, Producers
from rnnstream.engine.table import Table
from rnnstream.engine.tombstones import Tombstone
from rnnstream.errors import Full


def new(width: int = 1, *, max_sessions: int = 9) -> Table:
    return Table(np.zeros(width), max_sessions=max_sessions, numbering=Numbering())


def opened(table: Table, name: str, now: float = 0.0) -> int:
    row = table.take(name)
    table.open(row, now)
    return row


def test_growth_keeps_what_is_in_the_rows() -> None:
    table = Table(np.array([0.5, -1], np.float32), max_sessions=1000, numbering=Numbering())
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
    table = new(max_sessions=3)
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
    table = new(max_sessions=2)
    opened(table, "a")
    row = table.take("b")
    with pytest.raises(Full, match="2 sessions are open"):
        table.take("c")
    table.free(row)
    assert table.take("c") == row
    table.free(row)
    table.check()


def test_an_opening_that_is_withdrawn_leaves_no_trace() -> None:
    table = new(max_sessions=2)
    row = opened(table, "a")
    table.withdraw(row)
    table.free(row)
    table.check()
    assert (table.open_count, table.rows, len(table.tombstones)) == (0, {}, 0)


def test_the_oldest_tombstones_go_at_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOMBSTONES", 3)
    table = new()
    for i, name in enumerate("abcde"):
        row = opened(table, name)
        table.close(row, "expired" if i % 2 else "closed")
        table.free(row)
        table.check()
    assert [(name, tombstone.why) for name, tombstone in table.tombstones.items()] == [
        ("c", "closed"),
        ("d", "expired"),
        ("e", "closed"),
    ]
    opened(table, "d")
    assert list(table.tombstones) == ["c", "e"]
    table.close(opened(table, "c"))
    assert list(table.tombstones) == ["e", "c"]
    table.check()


def test_a_row_shows_nothing_of_the_session_that_had_it() -> None:
    """Neither one that is handed out again, nor one in arrays that have grown."""
    a0 = np.array([0.5, -1], np.float32)
    table = Table(a0, max_sessions=1000, numbering=Numbering())
    rows = []
    for i in range(200):
        row = opened(table, f"s{i}", now=i)
        table.states[row], table.t[row] = [7, i], i
        rows.append(row)
    for i in range(0, 200, 3):
        if i % 2:
            table.close(rows[i])
        else:
            table.withdraw(rows[i])
        table.free(rows[i])
    for i in range(200):
        row = table.take(f"new{i}")
        assert table.states[row].tobytes() == a0.tobytes()
        assert (table.t[row], table.live[row], table.producers[row]) == (0, 0, None)
    table.check()
    assert len(table.t) > 200


@pytest.mark.parametrize(
    "damage",
    [
        lambda table: table.names.__setitem__(0, "z"),
        lambda table: table.live.__setitem__(1, 1),
        lambda table: table._free.append(0),
        lambda table: table.states.__setitem__(0, np.nan),
        lambda table: table.t.__setitem__(0, -1),
        lambda table: table.tombstones.put("a", Tombstone("closed", None)),
        lambda table: table.producers.__setitem__(0, Producers([("p", Producer())])),
        lambda table: table.opened_at.__setitem__(0, 99),
        lambda table: setattr(table, "open_count", 2),
        lambda table: setattr(table, "max_rows", 0),
        lambda table: setattr(table, "absent", -1),
    ],
)
def test_check_finds_damage(damage: object) -> None:
    table = new(2)
    opened(table, "a")
    table.free(table.take("b"))
    table.check()
    damage(table)  # type: ignore[operator]
    with pytest.raises(AssertionError):
        table.check()
