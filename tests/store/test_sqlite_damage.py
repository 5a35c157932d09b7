"""Damage to an SQLite store: it is noticed, and nothing wrong is ever read."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import struct
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rnnstream.errors import BadStore, StoreError
from rnnstream.store.interface import Saved, Write

from .places import another, by_name, loaded, opened, row

PAGE = 4096
TRIALS = 150


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


def flipped(data: bytes, at: int, bit: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def changed(value: Any) -> list[Any]:
    """Values with one bit changed; text comes as bytes, for not all of it is text any longer."""
    if isinstance(value, int):
        return [value ^ 1 << bit for bit in (0, 5, 31, 62)]
    if isinstance(value, float):
        (bits,) = struct.unpack("<q", struct.pack("<d", value))
        return [struct.unpack("<d", struct.pack("<q", bits ^ 1 << bit))[0] for bit in (0, 31, 52, 61)]
    data = value if isinstance(value, bytes) else value.encode()
    return [flipped(data, at, bit) for at in (0, len(data) - 1) for bit in range(8)]


def parameter(value: Any) -> str:
    """What stands in a statement for what is to become of this value."""
    return "CAST(? AS TEXT)" if isinstance(value, str) else "?"


def until_damage(given: Iterator[Any]) -> tuple[list[Any], str]:
    """What is given, and what is said then to be wrong."""
    taken = []
    try:
        for each in given:
            taken.append(each)
    except (BadStore, StoreError) as problem:
        return taken, str(problem)
    return taken, ""


# -- values


@pytest.mark.parametrize("status", ["open", "expired"])
@pytest.mark.parametrize("column", ["status", "upto", "t", "opened_at", "moved_at", "producers", "state", "crc"])
def test_a_row_with_a_changed_bit_is_damaged(path: Path, column: str, status: str) -> None:
    victim = row("victim", 5, status, state=b"state", t=7, opened_at=1.5, moved_at=2.25)
    others = {"before": row("before", 4, "closed"), "behind": row("behind", 6)}
    with opened(path) as store, another(path) as other:
        store.write(Write(6, b"", [others["before"], victim, others["behind"]]))
        (right,) = other.execute(f"SELECT {column} FROM sessions WHERE name = 'victim'").fetchone()
        update = f"UPDATE sessions SET {column} = {parameter(right)} WHERE name = 'victim'"
        for wrong in changed(right):
            other.execute(update, (wrong,))
            found, damaged = store.load(["never", "before", "victim", "behind"])
            assert (by_name(found), damaged) == (others, ["victim"])
            if status != "open" or column == "status":
                tombstones = store.tombstones()
                assert next(tombstones) == others["before"] or column == "upto"
                with pytest.raises(BadStore, match=f"{path} is damaged"):
                    list(tombstones)
        other.execute(update, (right,))
        assert loaded(store, "victim") == {"victim": victim}


def test_a_row_under_a_changed_name_is_nobodys(path: Path) -> None:
    with opened(path) as store, another(path) as other:
        store.write(Write(1, b"", [row("victim", 1), row("other", 1)]))
        for wrong in changed("victim"):
            other.execute("UPDATE sessions SET name = CAST(? AS TEXT) WHERE name <> 'other'", (wrong,))
            if wrong.isascii():
                assert store.load([wrong.decode(), "other"]) == ([row("other", 1)], [wrong.decode()])
            assert store.load(["victim", "other"]) == ([row("other", 1)], [])


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("upto", (1.5, "five", b"\5")),
        ("t", (0.1, "", b"\7")),
        ("opened_at", ("soon", b"")),
        ("moved_at", ("soon", b"")),
        ("producers", (0, 1.5, "text", "")),
        ("state", (0, 1.5, "text", "")),
        ("crc", (1.5, "text", b"")),
        ("status", ("", b"open")),
    ],
)
def test_a_value_of_another_type_is_damage(path: Path, column: str, values: tuple[Any, ...]) -> None:
    with opened(path) as store, another(path) as other:
        store.write(Write(6, b"", [row("victim", 5), row("other", 6)]))
        for value in values:
            other.execute(f"UPDATE sessions SET {column} = ? WHERE name = 'victim'", (value,))
            assert store.load(["other", "victim"]) == ([row("other", 6)], ["victim"])


@pytest.mark.parametrize("column", ["id", "crc", "entry"])
def test_a_changed_journal_entry_is_noticed(path: Path, column: str) -> None:
    with opened(path) as store, another(path) as other:
        entries = [(id, b"entry %d" % id) for id in range(10, 100, 10)]
        for id, entry in entries:
            store.write(Write(id, entry))
        row = other.execute("SELECT id, crc, entry FROM journal WHERE id = 50").fetchone()
        right = dict(zip(("id", "crc", "entry"), row, strict=True))[column]
        wrongs = [("?", wrong) for wrong in changed(right)]
        if column == "entry":
            wrongs += [("?", b""), ("?", 1), ("CAST(? AS TEXT)", right), ("CAST(? AS TEXT)", b"\xff")]
        for expression, wrong in wrongs:
            other.execute(f"UPDATE journal SET {column} = {expression} WHERE id = 50", (wrong,))
            given, problem = until_damage(store.journal())
            assert f"{path} is damaged" in problem, wrong
            whole = entries[:4] + entries[5:]
            assert given == whole[: len(given) if column == "id" else 4]
            other.execute("DELETE FROM journal WHERE id NOT IN (10, 20, 30, 40, 60, 70, 80, 90)")
            other.execute("INSERT INTO journal VALUES (?, ?, ?)", row)
        assert list(store.journal()) == entries


# -- bytes of the file


def is_whole(path: Path) -> bool:
    """What SQLite itself says, which looks at everything."""
    with contextlib.suppress(sqlite3.Error), another(path) as other:
        return other.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    return False


def test_a_name_that_is_damaged_where_it_stands_is_noticed(path: Path) -> None:
    """It stands in the table and in the index; where the index has another one, only looking at everything finds it."""
    name = "victim" * 8
    with opened(path) as store:
        store.write(Write(1, b"", [row(name, 1), row("other", 1)]))
    with another(path) as other:
        (table,) = other.execute("SELECT rootpage FROM sqlite_master WHERE name = 'sessions'").fetchone()
    data = path.read_bytes()
    places = [at for at in range(len(data)) if data.startswith(name.encode(), at)]
    assert len(places) == 2
    for place in places:
        for bit in range(7):
            path.write_bytes(flipped(data, place + bit, bit))
            wrong = flipped(name.encode(), bit, bit).decode()
            with opened(path) as store:
                if place // PAGE + 1 == table:
                    assert store.load([name]) in (([row(name, 1)], []), ([], [name]))
                    assert store.load([wrong]) == ([], [])
                else:
                    assert store.load([name]) == ([], [])
                    assert store.load([wrong]) == ([], [wrong])
                assert store.load(["other"]) == ([row("other", 1)], [])
            assert not is_whole(path)


@pytest.mark.parametrize("which", [1, 2, 10, 20])
def test_an_entry_whose_id_is_damaged_where_it_stands_hides_no_other(path: Path, which: int) -> None:
    entries = [(id, b"entry %02d" % id) for id in range(1, 21)]
    with opened(path) as store:
        for id, entry in entries:
            store.write(Write(id, entry))
    data = path.read_bytes()
    header = bytes([4, 0])  # of the record: its length, and that the id is none of its values
    at = data.rindex(header, 0, data.index(b"entry %02d" % which)) - 1
    assert data[at] == which
    for bit in range(7):
        path.write_bytes(flipped(data, at, bit))
        with opened(path) as store:
            given, problem = until_damage(store.journal())
        assert f"{path} is damaged" in problem
        assert given == [pair for pair in entries if pair in given and pair[0] != which]


def judged(path: Path, rows: dict[str, Saved], entries: dict[int, bytes]) -> Iterator[str]:
    """Read everything. What comes is right; a word for each read says how it went, "hidden" that something is not there."""
    try:
        with opened(path) as store:
            for name, right in rows.items():
                try:
                    found, damaged = store.load([name])
                except StoreError:
                    yield "StoreError"
                else:
                    assert (found, damaged) in (([right], []), ([], [name]), ([], []))
                    yield "right" if found else "damaged" if damaged else "hidden"
            given, problem = until_damage(store.journal())
            assert given == [(id, entries[id]) for id, _ in given]
            assert all(one < other for (one, _), (other, _) in pairwise(given))
            yield "BadStore" if problem else "journal" if len(given) == len(entries) else "hidden"
            ended, problem = until_damage(store.tombstones())
            assert ended == [rows[saved.name] for saved in ended if saved.status != "open"]
            kept = {name for name, saved in rows.items() if saved.status != "open"}
            yield "BadStore" if problem else "tombstones" if {saved.name for saved in ended} == kept else "hidden"
    except BadStore:
        yield "refused"


def test_whatever_bytes_are_damaged_nothing_wrong_is_read(path: Path) -> None:
    rng = random.Random(1)
    rows: dict[str, Saved] = {}
    entries: dict[int, bytes] = {}
    with opened(path) as store:
        for id in range(1, 41):
            saved = []
            for i in rng.sample(range(60), 3):
                state = rng.randbytes(rng.choice([0, 12, 400, 3000, 9000]))
                saved.append(row(f"s{i}", id, rng.choice(["open", "open", "closed"]), state=state))
            entries[id] = rng.randbytes(rng.choice([0, 20, 700, 6000]))
            store.write(Write(id, entries[id], saved))
            rows |= by_name(saved)
    data = path.read_bytes()
    seen = Counter[str]()
    for trial in range(TRIALS):
        size = rng.choice([1, 1, 4, 64])
        at = rng.randrange(100, len(data) - size)
        if trial % 2:  # where a page says what is where in it
            at = at // PAGE * PAGE + rng.randrange(100)
        wrong = bytes(byte ^ rng.randrange(1, 256) for byte in data[at : at + size])
        path.write_bytes(data[:at] + wrong + data[at + size :])
        words = list(judged(path, rows, entries))
        assert "hidden" not in words or not is_whole(path)
        seen.update(words)
    assert all(seen[word] for word in ("right", "damaged", "BadStore", "journal", "tombstones")), seen
