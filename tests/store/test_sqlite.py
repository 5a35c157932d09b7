"""What is special to the SQLite store: its file, and who has it."""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import subprocess
import sys
import zlib
from dataclasses import asdict, astuple
from pathlib import Path

import pytest

from rnnstream.errors import BadStore
from rnnstream.names import Owned, owner_of
from rnnstream.store.interface import Write
from rnnstream.store.sqlite import CHECKPOINT_PAGES, CUT, SQLiteStore

from .places import IDENTITY, another, copy, everything, loaded, opened, row

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


def elsewhere(path: Path, statement: str) -> str:
    """What this statement gives in another process, which opens the file as any program would and closes it again."""
    script = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); print(c.execute(sys.argv[2]).fetchone()[0]); c.close()"
    command = [sys.executable, "-I", "-c", script, path, statement]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


# -- the file


def test_its_files_are_for_their_owner_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        with opened(path) as store:
            store.write(Write(1, b"one"))
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("sessions.db", "sessions.db-wal", "sessions.db-shm"), 0o600)
    assert [file.name for file in path.parent.iterdir()] == ["sessions.db"]


def test_everybody_can_read_what_stands_in_it(path: Path) -> None:
    rows = [row("a", 1), row("🎻\0", 1), row(Owned("A" * 40, "a"), 1), row("c", 2, "closed"), row("d", 2, "expired")]
    with opened(path) as store, another(path, "ro") as reader:
        store.write(Write(1, b"", rows[:3]))
        store.write(Write(2, b"two", rows[3:]))
        meta = {key: str(value) for key, value in asdict(IDENTITY).items()}
        assert dict(reader.execute("SELECT key, value FROM meta")) == meta
        columns = "owner, name, status, upto, t, opened_at, moved_at, producers, state, crc"
        found = reader.execute(f"SELECT {columns} FROM sessions ORDER BY id").fetchall()
        for saved, (*columns, crc) in zip(rows, found, strict=True):
            assert tuple(columns) == (owner_of(saved.name), str(saved.name), *astuple(saved)[1:])
            numbers = struct.pack("<qqdd", saved.upto, saved.t, saved.opened_at, saved.moved_at)
            names = "\0".join(filter(None, (owner_of(saved.name), str(saved.name), saved.status)))
            assert crc == zlib.crc32(numbers + names.encode() + saved.producers + saved.state)
        assert reader.execute("SELECT id, entry FROM journal").fetchall() == [(1, b""), (2, b"two")]
        pragmas = ("journal_mode", "user_version", "application_id")
        assert [reader.execute(f"PRAGMA {pragma}").fetchone()[0] for pragma in pragmas] == ["wal", 2, 0x726E6E73]


def test_who_reads_it_does_not_hold_the_store_up(path: Path) -> None:
    with opened(path) as store, another(path, "ro") as reader:
        store.write(Write(1, b"one"))
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM journal").fetchone() == (1,)
        store.write(Write(2, b"two", [row("a", 2)], needed=2, last=True))
        assert list(store.journal()) == [(2, b"two")]
        assert reader.execute("SELECT id, entry FROM journal").fetchall() == [(1, b"one")]


@pytest.mark.parametrize(("durability", "synchronous"), [("process", 1), ("power", 2)])
def test_durability_says_when_the_disk_is_waited_for(path: Path, durability: str, synchronous: int) -> None:
    for _ in range(2):
        with opened(path, durability=durability) as store:
            assert store.durability == durability
            assert store._open.execute("PRAGMA synchronous").fetchone() == (synchronous,)


def test_a_write_drops_a_bounded_number_of_entries(path: Path) -> None:
    with opened(path) as store:
        for id in range(1, 2 * CUT + 100):
            store.write(Write(id, b""))
        oldest = [store.write(Write(2 * CUT + i, b"", needed=2 * CUT + 50)) for i in range(100, 104)]
        assert oldest == [CUT + 1, 2 * CUT + 1, 2 * CUT + 1, 2 * CUT + 1]
        assert store.write(Write(3 * CUT, b"", needed=3 * CUT, last=True)) == 3 * CUT


def test_its_files_do_not_grow_for_ever(path: Path) -> None:
    with opened(path) as store:
        for id in range(1, CHECKPOINT_PAGES + 1):  # each of some five pages
            store.write(Write(id, bytes(8000), [row("a", id)], needed=id))
        log = path.with_name(path.name + "-wal").stat().st_size
        assert CHECKPOINT_PAGES // 2 < log / 4096 < CHECKPOINT_PAGES * 1.2
    assert path.stat().st_size / 4096 < CHECKPOINT_PAGES


@pytest.mark.parametrize("name", [":memory:", "file:sessions?mode=memory", "file:sessions.db", "a?b#c%20d", "'"])
def test_a_path_is_a_path_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with opened(Path(name)) as store:
        store.write(Write(1, b"one", [row("a", 1)]))
        copy(Path(name), Path("copy"))
    assert sorted(file.name for file in tmp_path.iterdir() if not file.name.startswith("copy")) == [name]
    for there in (name, "copy"):
        with opened(Path(there)) as store:
            assert everything(store, "a")[:2] == ({"a": row("a", 1)}, [(1, b"one")])


# -- who has it


WRITER = """
import sys
from itertools import count
from rnnstream.store.interface import Identity, Saved, Write
from rnnstream.store.sqlite import SQLiteStore
store = SQLiteStore(sys.argv[1])
last = store.open(Identity(*sys.argv[2:5], int(sys.argv[5]), sys.argv[6])).last
for id in count(last + 1):
    rows = [Saved(name, "open", id, id, state=bytes(3000)) for name in ("a", "b", f"s{id}")]
    store.write(Write(id, bytes(500), rows, [f"s{id - 10}"], needed=id - 20))
    print(id, flush=True)
"""


def test_what_a_killed_process_wrote_is_there_and_is_whole(path: Path) -> None:
    last = 0
    for writes in (1, 150):
        command = [sys.executable, "-c", WRITER, path, *map(str, astuple(IDENTITY))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            assert process.stdout is not None
            told = [int(process.stdout.readline()) for _ in range(writes)]
            with pytest.raises(BadStore, match=f"{path} is in use by another worker"):
                SQLiteStore(path).open(IDENTITY)
            process.kill()
            told += map(int, process.stdout.read().split())
        assert told == list(range(last + 1, last + 1 + len(told)))
        with contextlib.closing(SQLiteStore(path)) as store:
            found = store.open(IDENTITY)
            assert found.last in (told[-1], told[-1] + 1)  # the last may have been written, and not told
            last = found.last
            expected = {"a": last, "b": last} | {f"s{id}": id for id in range(max(1, last - 9), last + 1)}
            rows = loaded(store, "a", "b", *(f"s{id}" for id in range(1, last + 2)))
            assert {name: (saved.upto, saved.t) for name, saved in rows.items()} == {n: (id, id) for n, id in expected.items()}
            assert found.sessions == len(expected)
            ids = [id for id, _ in store.journal()]
            assert ids == list(range(ids[0], last + 1))
            assert ids[0] <= max(1, last - 20)


@pytest.mark.parametrize("same", ["sessions.db", "../folder/sessions.db", "link", "hard link"])
def test_who_tries_to_open_it_a_second_time_harms_nothing(tmp_path: Path, same: str) -> None:
    """Once a process closes any descriptor of a file, it has lost all POSIX locks on it."""
    path = tmp_path / "folder" / "sessions.db"
    path.parent.mkdir()
    path.with_name("link").symlink_to(path)
    with opened(path) as store:
        path.with_name("hard link").hardlink_to(path)
        store.write(Write(1, b"one"))
        with pytest.raises(BadStore, match=f"{path.parent / same} is in use by another worker"):
            SQLiteStore(path.parent / same).open(IDENTITY)
        assert elsewhere(path, "SELECT count(*) FROM journal") == "1\n"  # and was not the last to close it
        store.write(Write(2, b"two"))
        copy(path, tmp_path / "copy")
        with opened(tmp_path / "copy") as found:
            assert list(found.journal()) == [(1, b"one"), (2, b"two")]
