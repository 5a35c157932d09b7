"""Room for all rows that there may ever be: it takes memory only where it is used, and is not needed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rnnstream.engine import table as module
from rnnstream.engine.numbering import Numbering
from rnnstream.engine.room import reserve
from rnnstream.engine.table import Table


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_an_array_is_zeros_and_takes_memory_where_it_is_written_to() -> None:
    before = resident()
    array = reserve((1 << 22, 256), np.float32)  # 4 GiB
    assert (array.shape, array.dtype) == ((1 << 22, 256), np.float32)
    array[::65536] = 1
    assert array[::65536].sum() == 64 * 256
    assert not array[1::65536].any()
    assert resident() - before < 16 << 20
    array[: 1 << 16] = 1  # 64 MiB
    assert 60 << 20 < resident() - before < 80 << 20
    del array
    assert resident() - before < 16 << 20


def flags_of(address: int) -> list[str]:
    """Those of the mapping around it, as Linux lists them: nh is for no huge pages, nr for nothing reserved."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, *words = line.split()
        if not key.endswith(":"):
            first, last = (int(end, 16) for end in key.split("-"))
            inside = first <= address < last
        elif inside and key == "VmFlags:":
            return words
    raise AssertionError(f"{address:x} is not mapped")


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this system has no huge pages")
def test_a_number_takes_no_huge_page() -> None:
    assert "nh" in flags_of(reserve((1 << 22,), np.float64).ctypes.data)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_nothing_needs_no_room(shape: tuple[int, int]) -> None:
    assert reserve(shape, np.float32).shape == shape


def test_more_than_there_are_addresses_is_a_memory_error() -> None:
    for rows in (1 << 56, 1 << 60, 1 << 80):
        with pytest.raises(MemoryError, match=f"no room for {8 * rows} bytes"):
            reserve((rows,), np.float64)


def table_of(rows: int) -> Table:
    table = Table(np.array([0.5, -1], np.float32), max_sessions=rows, numbering=Numbering())
    for i in range(300):
        row = table.take(f"s{i}")
        table.open(row, i)
        table.states[row, 0], table.t[row] = i, 2 * i
        table.check()
    for i in range(300):
        row = table.rows[f"s{i}"]
        assert table.states[row].tolist() == [i, -1]
        assert (table.t[row], table.opened_at[row], table.moved_at[row]) == (2 * i, i, i)
    return table


def test_rows_are_never_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def counted(shape: tuple[int, ...], dtype: Any) -> Any:
        made.append(shape[0])
        return reserve(shape, dtype)

    monkeypatch.setattr(module, "reserve", counted)
    assert len(table_of(1000).t) == 1000
    assert made == 3 * [0] + 3 * [1000]


@pytest.mark.parametrize("rows", [1 << 56, 1 << 80])
def test_where_there_is_no_room_for_all_rows_they_grow(rows: int) -> None:
    assert len(table_of(rows).t) == 512


@pytest.mark.skipif(
    Path("/proc/sys/vm/overcommit_memory").read_text() == "2\n", reason="this system promises all that it gives"
)
def test_room_is_asked_for_without_a_promise_of_memory() -> None:
    """Else a worker for a million large states would not start where there is less memory, though few sessions come."""
    assert reserve((1 << 37,), np.float64).nbytes == 1 << 40
