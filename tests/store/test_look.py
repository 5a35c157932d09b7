from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rnnstream.errors import BadStore
from rnnstream.store.interface import Identity, Saved, Write
from rnnstream.store.look import Look, Problem, Session, looking
from rnnstream.store.records import Batch, KeptProducer, pack_entry, pack_producers
from rnnstream.store.sqlite import SQLiteStore

IDENTITY = Identity("d" * 64, "letters", "<f4", 3, "kernels")
STATE = np.array([1, 2, 3], "<f4").tobytes()
NOBODY = 65534


def entry(now: float, *steps: tuple[str, int]) -> bytes:
    return pack_entry(now, [Batch([name for name, _ in steps], [x for _, x in steps])])


def opened(name: str, upto: int = 1, state: bytes = STATE, producers: bytes = b"") -> Saved:
    return Saved(name, "open", upto, 7, 1.0, 2.0, producers, state)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[SQLiteStore]:
    store = SQLiteStore(path)
    store.open(IDENTITY)
    yield store
    store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with three names and two journal entries, of whose tokens `a` includes the first."""
    path = tmp_path / "sessions.db"
    with writing(path) as store:
        saved = [opened("a"), opened("é\n\0"), Saved("c", "closed", 1, producers=pack_producers([_producer("p", 4)]))]
        store.write(Write(1, entry(5.0, ("a", 0), ("b", 1)), saved))
        store.write(Write(2, entry(6.5, ("b", 2), ("a", 3), ("b", 4))))
    return path


def _producer(name: str, last: int) -> KeptProducer:
    return KeptProducer(name, last, 1.0, None, None, [])


@pytest.fixture
def killed(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store like that whose worker was killed, with one more entry, which is in the log alone.

    SQLite's index of the log is gone; a copy called `indexed` has it, as a kill leaves it.
    """
    alive, left = tmp_path_factory.mktemp("alive") / "store", tmp_path_factory.mktemp("killed") / "sessions.db"
    shutil.copyfile(path, alive)
    with writing(alive) as store:
        store.write(Write(3, entry(8.0, ("b", 5))))
        for ending in ("", "-wal"):
            shutil.copyfile(f"{alive}{ending}", f"{left}{ending}")
        for ending in ("", "-wal", "-shm"):
            shutil.copyfile(f"{alive}{ending}", left.with_name(f"indexed{ending}"))
    return left


def quiet(done: int, total: int | None) -> None:
    """Of a check that tells nobody how far it is."""


def sentences(path: Path) -> list[str]:
    with looking(path) as look:
        return [problem.sentence for problem in look.problems(quiet)]


def behind(look: Look) -> dict[str, list[int | bytes]]:
    return {name: behind.xs for name, behind in look.journal().behind.items()}


def change(path: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(path)
    with connection:
        assert connection.execute(statement, values).rowcount > 0
    connection.close()


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.iterdir()}


def test_what_is_in_it(path: Path) -> None:
    with looking(path) as look:
        assert (look.rows, look.entries, look.newest, look.ended()) == (3, 2, 2, {"closed": 1, "expired": 0})
        assert (look.meta["digest"], look.dtype.str, look.state_size, look.in_use) == ("d" * 64, "<f4", 3, False)
        assert (look.bytes, look.log_bytes) == (path.stat().st_size, 0)
        found = {session.saved.name: session for session in look.sessions() if isinstance(session, Session)}
        assert list(found) == ["a", "é\n\0", "c"]
        assert (found["a"].state.tolist(), found["a"].saved) == ([1, 2, 3], opened("a"))
        assert (found["c"].producers, len(found["c"].state)) == ({"p": 4}, 0)
        assert [session.saved.name for session in look.sessions(["c", "nobody", "a"]) if isinstance(session, Session)] == [
            "c",
            "a",
        ]


def test_what_rows_do_not_include(path: Path) -> None:
    with looking(path) as look:
        journal = look.journal()
        assert (journal.clock, journal.problems, behind(look)) == (6.5, [], {"a": [3], "b": [1, 2, 4]})
        b = journal.behind["b"]
        assert (b.stored, b.first, b.last, journal.behind["a"].stored) == (False, 5.0, 6.5, True)
        assert look.journal(["a"]).behind.keys() == {"a"}


def test_numbers_of_producers_behind_a_row(path: Path) -> None:
    batch = Batch(["a", "b", "a"], [1, 2, 3])
    batch.number(0, "p", 7, 6)
    batch.number(2, "p", 8, 7)
    with writing(path) as store:
        store.write(Write(3, pack_entry(7.0, [batch])))
    with looking(path) as look:
        found = look.journal().behind
        assert (found["a"].producers, found["b"].producers) == ({"p": 8}, {})


def test_a_whole_one_has_no_problems(path: Path, killed: Path) -> None:
    told: list[tuple[int, int | None]] = []
    with looking(path) as look:
        assert list(look.problems(lambda done, total: told.append((done, total)))) == []
    assert told == [(5, 5)]
    assert sentences(killed) == []


def test_nothing_is_changed_or_created(path: Path, killed: Path) -> None:
    log = path.with_name(f"{path.name}-wal")
    for file in (path, killed, killed.with_name("indexed")):
        before = contents(file.parent)
        with looking(file) as look:
            assert list(look.sessions())
            assert list(look.problems(quiet)) == []
            assert contents(file.parent) == before
        assert contents(file.parent) == before
    assert not log.exists()


@pytest.mark.parametrize("name", ["sessions.db", "indexed"])
def test_a_log_that_was_left_is_read(killed: Path, name: str) -> None:
    file = killed.with_name(name)
    with looking(file) as look:
        assert (look.in_use, look.entries, behind(look)) == (False, 3, {"a": [3], "b": [1, 2, 4, 5]})
        assert look.log_bytes == file.with_name(f"{name}-wal").stat().st_size > 0


def test_a_link_leads_to_the_log(killed: Path, tmp_path: Path) -> None:
    link = tmp_path / "a link?#%41"
    link.symlink_to(killed)
    with looking(link) as look:
        assert look.entries == 3


@pytest.fixture
def read_only(path: Path, killed: Path) -> Iterator[Path]:
    """A folder with all of them that this process cannot write to, even if it is root's."""
    folder = Path(tempfile.mkdtemp())
    for file in (path, *killed.parent.iterdir()):
        shutil.copyfile(file, folder / (file.name if file.parent == killed.parent else "stopped"))
    for file in folder.iterdir():
        file.chmod(0o444)
    folder.chmod(0o555)
    me = os.geteuid()
    try:
        if me == 0:
            os.seteuid(NOBODY)
        yield folder
    finally:
        os.seteuid(me)
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_a_folder_that_cannot_be_written_to(read_only: Path) -> None:
    with pytest.raises(PermissionError):
        (read_only / "new").touch()
    for name, entries in (("stopped", 2), ("sessions.db", 3), ("indexed", 3)):
        with looking(read_only / name) as look:
            assert (look.entries, list(look.problems(quiet))) == (entries, [])


WRITE = """
import sys
from rnnstream.store.interface import Identity, Write
from rnnstream.store.sqlite import SQLiteStore
store = SQLiteStore(sys.argv[1])
store.open(Identity("d" * 64, "letters", "<f4", 3, "kernels"))
store.write(Write(4, b""))
store.close()
"""


@pytest.mark.parametrize("name", ["stopped", "sessions.db", "indexed"])
def test_a_worker_that_begins_meanwhile_is_not_kept_from_it(path: Path, killed: Path, name: str) -> None:
    """What was seen may be wrong then, which is told."""
    file = path if name == "stopped" else killed.with_name(name)
    with contextlib.ExitStack() as stack:
        list(stack.enter_context(looking(file)).sessions())
        subprocess.run([sys.executable, "-c", WRITE, file], check=True, timeout=60)
        with pytest.raises(BadStore) as told:
            stack.close()
    assert str(told.value) == f"The store {file} was changed while it was read, as by a worker that has begun; look again."


def test_it_shows_one_moment_of_a_store_that_is_written(path: Path) -> None:
    """Its writer is in this process, and loses SQLite's locks to the look: as the only one that writes, it can do without."""
    with writing(path) as store, looking(path) as look:
        assert look.in_use
        before = look.journal()
        store.write(Write(3, entry(7.0, ("a", 5)), [opened("new", 3)]))
        assert (look.journal(), [*look.sessions(["new"])]) == (before, [])
    with looking(path) as look:
        assert (look.newest, len([*look.sessions(["new"])])) == (3, 1)


# -- what is refused


def test_what_is_no_store(path: Path, tmp_path: Path) -> None:
    def told(refused: Path) -> str:
        before = contents(tmp_path)
        with pytest.raises(BadStore) as problem, looking(refused):
            pass
        assert contents(tmp_path) == before
        return str(problem.value)

    there = tmp_path / "there"
    assert told(there) == f"The store {there} cannot be read: No such file or directory."
    assert told(path / "x") == f"The store {path / 'x'} cannot be read: Not a directory."
    there.touch()
    assert told(there) == f"{there} is no store of rnnstream: it is empty."
    there.write_text("no store\n" * 1000)
    assert told(there) == f"{there} is no store of rnnstream, or damaged: file is not a database."
    shutil.copyfile(path, there)
    change(there, "UPDATE meta SET value = 'many' WHERE key = 'state_size'")
    assert told(there) == f"The store {there} is damaged: its table meta speaks of states of 'many' numbers of type '<f4'."
    change(there, "UPDATE meta SET value = iif(key = 'dtype', '<U4', 3) WHERE key IN ('dtype', 'state_size')")
    assert told(there) == f"The store {there} is damaged: its table meta speaks of states of '3' numbers of type '<U4'."
    change(there, "DELETE FROM meta WHERE key = 'numerics'")
    assert told(there) == f"The store {there} is damaged: meta lacks numerics."
    pragma(there, "user_version = 9")
    assert told(there) == f"The store {there} has the format version 9; this version of rnnstream reads 2."
    pragma(there, "application_id = 9")
    assert told(there) == f"{there} is an SQLite file, but no store of rnnstream."
    there.write_bytes(path.read_bytes()[:5000])
    assert told(there).startswith(f"{there} is no store of rnnstream, or damaged: ")


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    for path, what in ((tmp_path, "a directory"), (pipe, "not a regular file")):
        with pytest.raises(BadStore) as told, looking(path):
            pass
        assert str(told.value) == f"{path} is no store of rnnstream: it is {what}."


# -- damage


def pragma(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA {statement}")
    connection.close()


def test_rows_that_do_not_match_their_checksums(path: Path) -> None:
    change(path, "UPDATE sessions SET t = t + 1 WHERE name = 'a'")
    change(path, "UPDATE sessions SET producers = 'text', upto = 'text' WHERE name = 'c'")
    with writing(path) as store:
        store.write(Write(3, entry(7.0, ("c", 5))))
    change(path, "UPDATE sessions SET name = CAST(x'c328' AS TEXT) WHERE name GLOB 'é*'")
    assert sentences(path) == [
        "The row of session 'a' does not match its checksum.",
        "The row of session '\ufffd(' does not match its checksum.",
        "The row of session 'c' does not match its checksum.",
    ]
    with looking(path) as look:
        assert [found.session for found in look.sessions() if isinstance(found, Problem)] == ["a", "\ufffd(", "c"]
        assert behind(look) == {"a": [3], "b": [1, 2, 4]}


@pytest.mark.parametrize(
    ("saved", "told"),
    [
        (opened("x", state=STATE[:8]), "has a state of 8 bytes where 12 belong"),
        (opened("x", state=b""), "has a state of 0 bytes where 12 belong"),
        (Saved("x", "closed", 1, state=STATE), "has a state of 12 bytes where 0 belong"),
        (opened("x", state=np.array([0, np.nan, 0], "<f4").tobytes()), "has a state with NaN or infinity in it"),
        (opened("x", state=np.array([0, 0, -np.inf], "<f4").tobytes()), "has a state with NaN or infinity in it"),
        (opened("x", producers=b"\x93"), "has producers that cannot be decoded"),
        (opened("x", producers=pack_entry(1.0, [])), "has producers that cannot be decoded"),
        (opened("x", upto=4), "includes journal entry 4; the last is 3"),
        (Saved("x", "gone", 1), "has the status 'gone'"),  # type: ignore[arg-type]
    ],
)
def test_rows_that_were_kept_wrong(path: Path, saved: Saved, told: str) -> None:
    with writing(path) as store:
        store.write(Write(3, entry(7.0), [saved]))
    assert sentences(path) == [f"The row of session 'x' {told}."]


def test_sessions_without_a_journal(path: Path) -> None:
    change(path, "DELETE FROM journal")
    assert sentences(path)[0] == "The row of session 'a' includes journal entry 1; the last is 0."


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        entry(7.0, ("a", 1))[:-1],
        entry(7.0) + b"\0",
        pack_entry("then", []),  # type: ignore[arg-type]
        pack_entry(7.0, [Batch(["a", "b"], [1])]),
        pack_entry(7.0, [Batch(["a"], [1], [0], ["p"], [1], [])]),
        pack_entry(7.0, [Batch(["a"], [1], [1], ["p"], [1], [0])]),
        pack_entry(7.0, [Batch(["a"], ["x"])]),
        pack_entry(7.0, [Batch(["a"], [b"12345"])]),
        pack_entry(7.0, [Batch([["a"]], [1])]),  # type: ignore[list-item]
        pack_entry(7.0, [Batch(["a"], [1], [0], [["p"]], [1], [0])]),  # type: ignore[list-item]
    ],
)
def test_entries_that_cannot_be_decoded(path: Path, packed: bytes) -> None:
    with writing(path) as store:
        store.write(Write(3, packed))
        store.write(Write(4, entry(9.0, ("a", 6))))
    assert sentences(path) == ["Journal entry 3 cannot be decoded."]
    with looking(path) as look:
        journal = look.journal()
        assert [problem.entry for problem in journal.problems] == [3]
        assert behind(look) == {"a": [3], "b": [1, 2, 4]}  # and not the 6, before which a token may be missing
        assert np.isnan(journal.clock)


def test_an_entry_that_does_not_match_its_checksum(path: Path) -> None:
    change(path, "UPDATE journal SET entry = ? WHERE id = 2", entry(6.5, ("a", 0)))
    assert sentences(path) == ["Journal entry 2 does not match its checksum."]
    change(path, "UPDATE journal SET entry = 'text' WHERE id = 2")
    assert sentences(path) == ["Journal entry 2 does not match its checksum."]


@pytest.fixture
def longer(path: Path) -> Path:
    """With 200 more sessions and 100 more entries."""
    with writing(path) as store:
        store.write(Write(3, entry(7.0), [opened(f"session {n:03}") for n in range(200)]))
        for id in range(4, 104):
            store.write(Write(id, pack_entry(float(id), [Batch(["a", "b"] * 50, [id % 128] * 100)])))
    return path


def overwrite(path: Path, place: int) -> None:
    """Damage the page with this place in it."""
    data = bytearray(path.read_bytes())
    start = place // 4096 * 4096
    assert start > 0
    data[start : start + 4096] = b"\xff" * 4096
    path.write_bytes(data)


MALFORMED = "database disk image is malformed"


def test_a_page_of_sessions_that_cannot_be_read(longer: Path) -> None:
    """Those on it are told by name, and all others are had."""
    with writing(longer) as store:
        store.write(Write(104, entry(200.0, ("session 100", 1), ("b", 9))))
    overwrite(longer, longer.read_bytes().index(b"session 100open"))  # in the index, no status comes behind the name
    told = sentences(longer)
    assert told[0] == f"SQLite cannot read all of the file: {MALFORMED}."
    assert f"The row of session 'session 100' cannot be read: {MALFORMED}." in told
    with looking(longer) as look:
        found = list(look.sessions())
        whole = {session.saved.name for session in found if isinstance(session, Session)}
        lost = {problem.session for problem in found if isinstance(problem, Problem)}
        assert (len(found), len(whole), whole & lost, len(told) - 1) == (203, 203 - len(lost), set(), len(lost))
        assert 20 < len(lost) < 100
        journal = look.journal()
        assert [(problem.session, problem.entry) for problem in journal.problems] == [("session 100", None)]
        assert (list(journal.behind), journal.behind["b"].xs[-1], journal.clock) == (["b", "a"], 9, 200.0)


def test_a_page_of_the_journal_that_cannot_be_read(longer: Path) -> None:
    overwrite(longer, longer.read_bytes().index(b"\x32" * 100))  # entry 50
    told = sentences(longer)
    assert told == [
        f"SQLite cannot read all of the file: {MALFORMED}.",
        f"The journal cannot be read any further: {MALFORMED}.",
    ]
    with looking(longer) as look:
        journal = look.journal()
        assert journal.problems == [Problem(told[-1])]
        xs = journal.behind["a"].xs
        assert xs == [3, *(id for id in range(4, 50) for _ in range(50))][: len(xs)]
        assert len(xs) > 1000
        assert len(list(look.sessions())) == 203


def test_an_index_that_cannot_be_read(longer: Path) -> None:
    with writing(longer) as store:
        store.write(Write(104, entry(200.0, ("session 100", 1), ("b", 9))))
    [place] = re.finditer(rb"(?<!\xab)session 100(?!open)", longer.read_bytes())  # neither in the journal nor in a row
    overwrite(longer, place.start())
    assert sentences(longer) == [f"SQLite cannot read all of the file: {MALFORMED}."]
    with looking(longer) as look:
        assert len(list(look.sessions())) == 203
        journal = look.journal()
        assert ([problem.session for problem in journal.problems], journal.behind) == (["a", "b", "session 100"], {})
