"""What peers cannot do to a log."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from rnnstream.worker.access import Folder
from rnnstream.worker.connections import Connections
from rnnstream.worker.logs import CHARACTERS, LINES, TRACEBACK_CHARACTERS, PeerLog, visible
from rnnstream.worker.worker import Worker
from tests.engine.models import network

from .serving import ANYWHERE

log = logging.getLogger("tests.peers")


class Reader(logging.Handler):
    """What a log file would have got."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        self.lines: list[str] = []
        self.now = 100.0

    def emit(self, record: logging.LogRecord) -> None:
        self.lines += self.format(record).split("\n")


@pytest.fixture
def reader() -> Iterator[Reader]:
    reader = Reader()
    peer_log = PeerLog(lambda: reader.now)
    log.addFilter(peer_log)
    log.addHandler(reader)
    yield reader
    log.removeFilter(peer_log)
    log.removeHandler(reader)


def test_lines_beyond_a_bound_are_held_back_and_counted(reader: Reader) -> None:
    for second in range(3):
        reader.now = 100 + second + 0.5
        for i in range(1000):
            log.warning("line %d of %s", i, second)
    told = f"WARNING more than {LINES} lines in a second: the rest of them is held back"
    assert reader.lines == [
        *[f"WARNING line {i} of 0" for i in range(LINES)],
        told,
        *[f"WARNING {'(990 lines were held back) ' * (i == 0)}line {i} of 1" for i in range(LINES)],
        told,
        *[f"WARNING {'(990 lines were held back) ' * (i == 0)}line {i} of 2" for i in range(LINES)],
        told,
    ]


def test_no_error_is_hidden_behind_warnings(reader: Reader) -> None:
    for _ in range(100):
        log.warning("noise")
    log.error("the disk is full")
    assert reader.lines[-1] == f"ERROR ({100 - LINES} lines were held back) the disk is full"


def test_fewer_lines_pass_as_they_are(reader: Reader) -> None:
    for _ in range(3):
        for i in range(LINES):
            log.warning("héllo %s, %d%%", "wörld", i)
        reader.now += 1
    assert reader.lines == [f"WARNING héllo wörld, {i}%" for i in range(LINES)] * 3


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("turbine-7", "turbine-7"),
        ("größer 東京", "größer 東京"),
        ("a\n2026-01-01 ERROR b", r"a\n2026-01-01 ERROR b"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("\r\x08\x7f\x9b31m\x00", r"\r\x08\x7f\x9b31m\x00"),
        ("a\u202eb\u2028c\u200b", r"a\u202eb\u2028c\u200b"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_cannot_be_seen_is_escaped(reader: Reader, text: str, shown: str) -> None:
    assert visible(text) == shown
    log.warning("session %s is damaged", text)
    log.warning(text)
    assert reader.lines == [f"WARNING session {shown} is damaged", f"WARNING {shown}"]


def test_a_traceback_is_shifted_and_no_line_of_it_passes_for_one_of_the_log(reader: Reader) -> None:
    try:
        raise ValueError("x\nERROR forged \x1b[1m")
    except ValueError:
        log.exception("a request failed: %s", "a\nb")
    first, *rest = reader.lines
    assert first == r"ERROR a request failed: a\nb"
    assert rest[0] == "    Traceback (most recent call last):"
    assert rest[-2:] == ["    ValueError: x", r"    ERROR forged \x1b[1m"]
    assert all(line.startswith("    ") for line in rest)


def test_a_long_line_is_cut(reader: Reader) -> None:
    log.warning("x" * CHARACTERS)
    log.warning("x" * (CHARACTERS + 1))
    assert reader.lines == [f"WARNING {'x' * CHARACTERS}", f"WARNING {'x' * CHARACTERS} [and 1 more characters]"]
    reader.lines.clear()
    try:
        raise ValueError("y" * 10 * TRACEBACK_CHARACTERS)
    except ValueError:
        log.exception("failed")
    assert sum(map(len, reader.lines)) < TRACEBACK_CHARACTERS + 100


def test_lines_held_back_with_a_traceback_leave_none(reader: Reader) -> None:
    for _ in range(LINES + 2):
        try:
            raise ValueError("deep")
        except ValueError:
            log.exception("failed")
    assert reader.lines.count("    ValueError: deep") == LINES
    assert reader.lines[-1] == f"ERROR more than {LINES} lines in a second: the rest of them is held back"


def test_a_worker_filters_its_log_while_it_runs(caplog: pytest.LogCaptureFixture) -> None:
    worker_log = logging.getLogger("rnnstream.worker")
    worker = Worker(network(), ANYWHERE)
    for _ in range(3):
        worker.start()
        caplog.clear()
        for i in range(100):
            worker_log.error("line %d\n", i)
        assert caplog.records[0].getMessage() == r"line 0\n"
        assert len(caplog.records) in range(LINES + 1, 2 * LINES + 3)  # a second may have ended
        worker.stop()
        assert worker_log.filters == []


def test_strangers_do_not_hide_what_is_wrong_with_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    worker_log, peer_log = logging.getLogger("rnnstream.worker"), PeerLog(clock=lambda: 0.5)
    worker_log.addFilter(peer_log)
    try:
        connections = Connections(most=4)
        for number in range(2 * LINES):
            assert connections.admit(f"{number:040d}") is None
        (tmp_path / "alice.key_secret").touch()
        Folder(tmp_path).read()
    finally:
        worker_log.removeFilter(peer_log)
    assert any("A secret key lies in" in record.getMessage() for record in caplog.records)
