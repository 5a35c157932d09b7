"""An SQLite store that cannot be written to: nothing has changed, whatever it was that failed, and it goes on afterwards."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from rnnstream.errors import StoreError
from rnnstream.store.interface import Saved, Write
from rnnstream.store.sqlite import SQLiteStore

from .places import IDENTITY, another, copy, everything, file_size_limit, opened, row

NAMES = ["a", "b", "c", "d", "new"]
LEAST = 1 << 15  # size of the index of the log, without which nothing can be read


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteStore]:
    """Of three sessions, a tombstone and five entries, some of them in the file and some in its log."""
    with opened(path) as store:
        for id in range(1, 4):
            store.write(Write(id, b"%d" % id, [row(name, id) for name in "abc"]))
    with opened(path) as store:
        store.write(Write(4, b"4", [row("c", 4), row("d", 4, "closed")]))
        store.write(Write(5, b"5"))
        yield store


def big(id: int) -> Write:
    """It changes everything that a write can: some 100 pages."""
    saved = [row("a", id, state=bytes(100_000)), row("b", id, "expired"), row("new", id), row("d", id)]
    return Write(id, bytes(200_000), saved, ["c", "never"], needed=4, last=True)


def refused(store: SQLiteStore, write: Write) -> str:
    """What is said of a write that cannot be kept."""
    before = everything(store, *NAMES)
    with pytest.raises(StoreError) as error:
        store.write(write)
    assert error.value.extra == {"retry_after_ms": 200}
    assert str(error.value).startswith("It could not be kept: ")
    assert everything(store, *NAMES) == before
    return str(error.value)


def check_kept(path: Path, store: SQLiteStore, write: Write) -> None:
    """This write is kept; what is there then is there for the next worker too."""
    oldest = store.write(write)
    found = everything(store, *NAMES)
    assert (found[1][0][0], found[1][-1]) == (oldest, (write.id, write.entry))
    assert {saved.name: saved for saved in write.saved}.items() <= found[0].items()
    copy(path, path.with_name("copy"))
    with opened(path.with_name("copy")) as next_one:
        assert everything(next_one, *NAMES) == found


@contextlib.contextmanager
def locked(path: Path, store: SQLiteStore) -> Iterator[None]:
    with another(path) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@contextlib.contextmanager
def full(path: Path, store: SQLiteStore) -> Iterator[None]:
    """The file cannot grow by more than ten pages."""
    (pages,) = store._open.execute("PRAGMA page_count").fetchone()
    store._open.execute(f"PRAGMA max_page_count = {pages + 10}")
    yield
    store._open.execute("PRAGMA max_page_count = 1000000")


@contextlib.contextmanager
def failing(path: Path, store: SQLiteStore) -> Iterator[None]:
    """The system lets no file become as large as the log would."""
    with file_size_limit(max(LEAST, path.with_name(path.name + "-wal").stat().st_size) + 10_000):
        yield


Failure = Callable[[Path, SQLiteStore], AbstractContextManager[None]]


@pytest.mark.parametrize(
    ("failure", "sentence"), [(locked, "database is locked"), (full, "database or disk is full"), (failing, "disk I/O error")]
)
def test_a_write_that_fails_changes_nothing_and_can_be_tried_again(
    path: Path, store: SQLiteStore, failure: Failure, sentence: str
) -> None:
    for id in (6, 7):
        with failure(path, store):
            for _ in range(3):
                assert sentence in refused(store, big(id))
        check_kept(path, store, big(id))


@pytest.mark.parametrize("failure", [full, failing])
def test_a_write_that_failed_leaves_nothing_locked(path: Path, store: SQLiteStore, failure: Failure) -> None:
    with failure(path, store):
        refused(store, big(6))
        with another(path) as other:
            other.execute("BEGIN IMMEDIATE")
            other.execute("UPDATE meta SET value = 'renamed' WHERE key = 'name'")
            other.execute("COMMIT")
        assert store.write(Write(6, b"small")) == 1
    check_kept(path, store, big(7))


def test_a_write_that_fails_half_way_is_taken_back(path: Path, store: SQLiteStore) -> None:
    """SQLite takes NaN for NULL, which a row cannot have."""
    good = big(6)
    rows = [*good.saved, row("bad", 6, moved_at=math.nan)]
    refused(store, Write(6, b"6", rows, ["c"], needed=5))
    check_kept(path, store, good)
    refused(store, Write(6, b"6 again", [row("a", 7)], ["b"], needed=7, last=True))
    check_kept(path, store, Write(7, b"7", [row("a", 7)]))


class Interrupted(list[Saved]):
    """Rows behind which the user presses Ctrl-C."""

    def __iter__(self) -> Iterator[Saved]:
        yield from super().__iter__()
        raise KeyboardInterrupt


def test_a_write_that_is_interrupted_is_taken_back(path: Path, store: SQLiteStore) -> None:
    before = everything(store, *NAMES)
    with pytest.raises(KeyboardInterrupt):
        store.write(Write(6, b"6", Interrupted([row("a", 6), row("new", 6)])))
    assert everything(store, *NAMES) == before
    check_kept(path, store, Write(6, b"alone"))
    check_kept(path, store, big(7))


def is_kept(store: SQLiteStore, write: Write) -> bool:
    before = everything(store, *NAMES)
    try:
        store.write(write)
    except StoreError:
        assert everything(store, *NAMES) == before
        return False
    assert (write.id, write.entry) in everything(store, *NAMES)[1]
    return True


def test_the_disk_may_be_full_at_any_byte(path: Path, store: SQLiteStore) -> None:
    log = path.with_name(path.name + "-wal")
    kept = []
    page = 4096 + 24  # in the log
    for extra in (0, 1, 23, 24, 25, page - 1, page, page + 1, 2 * page, 9 * page, 50 * page, 90 * page, 200 * page, 300 * page):
        write = big(6 + len(kept))
        with file_size_limit(max(LEAST, log.stat().st_size) + extra):
            kept.append(is_kept(store, write))
        before = everything(store, *NAMES)
        copy(path, path.with_name("copy"))
        with opened(path.with_name("copy")) as next_one:
            assert everything(next_one, *NAMES) == before
        check_kept(path, store, Write(write.id + 100, b"small", [row("b", write.id)]))
    assert set(kept) == {False, True}


def test_all_that_was_kept_before_the_disk_was_full_is_there(path: Path) -> None:
    written = []
    with opened(path) as store:
        with file_size_limit(3_000_000), contextlib.suppress(StoreError):
            for id in range(1, 1000):
                store.write(Write(id, bytes(20_000 + id), [row("a", id, state=bytes(20_000))]))
                written.append((id, bytes(20_000 + id)))
        assert 70 < len(written) < 300
        id = len(written) + 1
        assert everything(store, "a")[:2] == ({"a": row("a", id - 1, state=bytes(20_000))}, written)
        check_kept(path, store, Write(id, b"", [row("b", id)]))
        assert list(store.journal()) == [*written, (id, b"")]


def test_a_file_that_is_moved_under_the_store_keeps_nothing_until_it_is_back(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "a.store", tmp_path / "b.store"
    store = SQLiteStore(path)
    store.open(IDENTITY)
    store.write(Write(1, b"one"))
    for leave in (lambda: path.rename(elsewhere), lambda: (path.rename(elsewhere), path.touch())):
        leave()
        with pytest.raises(StoreError, match="was moved, removed or replaced") as told:
            store.write(Write(2, b"two"))
        assert told.value.retry_after_ms > 0
        elsewhere.rename(path)
    store.write(Write(3, b"three"))
    assert [id for id, _ in store.journal()] == [1, 3]
    store.close()


def test_a_durability_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="durability is 'full'; it is one of process, power"):
        SQLiteStore(tmp_path / "a.store", "full")  # type: ignore[arg-type]
