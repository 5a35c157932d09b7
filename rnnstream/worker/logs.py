"""A log that peers can have lines written to, and neither fill the disk by it nor reach the terminal of its reader."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable

LINES = 10  # a second, of each kind: of 150 bytes, 130 MB a day. More lines say nothing more than that there are many
CHARACTERS = 1000  # of a line; the names in it have 200 at most
TRACEBACK_CHARACTERS = 10_000  # some 100 lines

_formatter = logging.Formatter()


class PeerLog(logging.Filter):
    """For a logger whose lines peers can cause: so many lines a second, and nothing in them that cannot be seen.

    A filter of a logger is not asked about what the loggers below it log: it belongs on each of those that peers can have log.
    The first line that is held back in a second is replaced by one that says so, and the next that passes says how many were.
    Lines of a kind are counted apart, so that nobody can hide one behind others.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._second = 0
        self._lines: Counter[tuple[int, str]] = Counter()  # of this second, by level and text without its values
        self._held = 0  # lines that nobody was told of

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line passes; it is made safe to show."""
        with self._lock:
            second = int(self._clock())
            if second != self._second:
                self._second = second
                self._lines.clear()
            kind = record.levelno, str(record.msg)
            self._lines[kind] += 1
            beyond = self._lines[kind] - LINES
            if beyond > 0:
                self._held += 1
            elif self._held:
                record.msg, record.args = f"({self._held} lines were held back) {record.getMessage()}", None
                self._held = 0
        if beyond == 1:
            record.msg, record.args = f"more than {LINES} lines in a second: the rest of them is held back", None
            record.exc_info = record.exc_text = record.stack_info = None
        elif beyond <= 0:
            record.msg, record.args = _cut(visible(record.getMessage()), CHARACTERS), None
            if record.exc_info and record.exc_info[0] is not None:
                # Shifted, so that no line in an exception's text passes for one of the log.
                lines = _formatter.formatException(record.exc_info).split("\n")
                record.exc_text = _cut("\n".join(f"    {visible(line)}" for line in lines), TRACEBACK_CHARACTERS)
        return beyond <= 1


def visible(text: str) -> str:
    """A text with everything escaped that a terminal or a reader could take for something else.

    These are control characters, ends of lines, direction marks, and halves of surrogates.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} [and {len(text) - most} more characters]"
