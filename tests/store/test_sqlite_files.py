"""Which files an SQLite store takes, and which it refuses and leaves as they are."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from rnnstream.errors import BadStore
from rnnstream.store.interface import Opened, Write
from rnnstream.store.sqlite import SQLiteStore

from .places import IDENTITY, another, everything, file_size_limit, opened, row


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


def made(path: Path) -> None:
    """A store with an open session, a closed one, and two journal entries; nobody has it open."""
    with opened(path) as store:
        store.write(Write(1, b"one", [row("a", 1), row("b", 1, "closed")]))
        store.write(Write(2, b"two"))


def another_programs(path: Path) -> None:
    with another(path) as program:
        program.execute("CREATE TABLE sessions (a)")
        program.execute("PRAGMA user_version = 1")


def cut(path: Path) -> None:
    made(path)
    os.truncate(path, path.stat().st_size // 2)


def spoilt(statement: str) -> Callable[[Path], None]:
    """Makes a store, on which this was done."""

    def make(path: Path) -> None:
        made(path)
        with another(path) as program:
            program.execute(statement)

    return make


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda path: path.write_text("no store\n" * 999), "not a database"),
    "garbage": (lambda path: path.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 100), ""),
    "cut": (cut, ""),
    "another program's": (another_programs, "is an SQLite file, but no store of rnnstream"),
    "another format": (spoilt("PRAGMA user_version = 3"), "has the format version 3; this version of rnnstream reads 2"),
    "no table": (spoilt("DROP TABLE meta"), "no such table: meta"),
    **{
        f"no {key}": (spoilt(f"DELETE FROM meta WHERE key = '{key}'"), f"is damaged: meta lacks {key}")
        for key in asdict(IDENTITY)
    },
    **{
        f"bytes as {key}": (spoilt(f"UPDATE meta SET value = x'FF00' WHERE key = '{key}'"), "")
        for key in ("digest", "dtype", "state_size")
    },
    "no entries": (spoilt("DELETE FROM journal"), "is damaged: it has sessions, and no journal"),
    "a folder": (Path.mkdir, "cannot be opened: Is a directory"),
    "no folder": (lambda path: path.parent.rmdir(), "cannot be opened: No such file or directory"),
    "a file as folder": (lambda path: (path.parent.rmdir(), path.parent.touch()), "cannot be opened: Not a directory"),
}


@pytest.mark.parametrize(("make", "sentence"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_that_is_no_store_is_refused_and_stays_as_it_is(
    tmp_path: Path, make: Callable[[Path], object], sentence: str
) -> None:
    path = tmp_path / "folder" / "sessions.db"
    path.parent.mkdir()
    make(path)
    before = path.read_bytes() if path.is_file() else None
    store = SQLiteStore(path)
    for _ in range(2):
        with pytest.raises(BadStore) as error:
            store.open(IDENTITY)
        assert str(path) in str(error.value)
        assert sentence in str(error.value)
        assert str(error.value).endswith(".")
    assert (path.read_bytes() if path.is_file() else None) == before
    assert not [file for file in path.parent.glob("*") if file != path]


@pytest.fixture
def nobodys() -> Iterator[Path]:
    """A folder of a user who is not root; the test runs as this user."""
    root = os.geteuid() == 0
    folder = Path(tempfile.mkdtemp())
    if root:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o700)
        shutil.rmtree(folder)


def test_where_nothing_may_be_written_there_is_no_store(nobodys: Path) -> None:
    new, old = nobodys / "new.db", nobodys / "old.db"
    made(old)
    nobodys.chmod(0o500)
    with pytest.raises(BadStore, match=f"{new} cannot be opened: Permission denied"):
        SQLiteStore(new).open(IDENTITY)
    with pytest.raises(BadStore, match=f"{old} cannot be used: "):  # the write-ahead log has no room in the folder
        SQLiteStore(old).open(IDENTITY)
    nobodys.chmod(0o700)
    old.chmod(0o400)
    with pytest.raises(BadStore, match=f"{old} cannot be opened: Permission denied"):
        SQLiteStore(old).open(IDENTITY)
    old.chmod(0o600)
    with opened(old) as store:
        assert list(store.journal()) == [(1, b"one"), (2, b"two")]


def test_an_empty_file_is_a_new_store(path: Path) -> None:
    path.touch()
    with contextlib.closing(SQLiteStore(path)) as store:
        assert store.open(IDENTITY) == Opened(IDENTITY.numerics, 0, 0)


@pytest.mark.parametrize("size", [0, 100, 4095, 4096, 8192, 32767])
def test_a_store_that_could_not_be_made_is_made_when_there_is_room(path: Path, size: int) -> None:
    with file_size_limit(size), pytest.raises(BadStore, match=f"{path} cannot be used"):
        SQLiteStore(path).open(IDENTITY)
    with opened(path) as store:
        store.write(Write(1, b"one", [row("a", 1)]))
        assert everything(store, "a")[:2] == ({"a": row("a", 1)}, [(1, b"one")])
