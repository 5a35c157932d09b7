"""The input of `rnnstream feed`: a file, a file that grows, or a pipe, in chunks."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from typing import IO

from rnnstream.errors import RnnstreamError

CHUNK_BYTES = 64 << 10  # each chunk is a pipelined stream of its own: long ones keep the worker busy
POLL_S = 0.1  # how often a file that is followed is looked at: as soon as a person notices


class Source:
    """Bytes from a file or pipe.

    Args:
        file: opened for reading bytes.
        name: for messages; "-" is standard input.
        follow: at the end of a regular file, wait for it to grow.

    Attributes:
        name: for messages.
        size: of a regular file that is not followed, in bytes; else None.
    """

    def __init__(self, file: IO[bytes], name: str, *, follow: bool) -> None:
        self._file = file
        self.name = "standard input" if name == "-" else name
        status = _status(file)
        regular = status is not None and stat.S_ISREG(status.st_mode)
        self._follow = follow and regular
        self.size = status.st_size if status is not None and regular and not follow else None

    def chunks(self) -> Iterator[bytes]:
        """What is there, as it comes; at the end of a pipe or of a file that is not followed, one empty chunk.

        Raises:
            RnnstreamError: a file that is followed has become shorter, or reading fails.
        """
        read = getattr(self._file, "read1", self._file.read)  # read1 takes what a pipe holds, and does not wait for more
        while True:
            try:
                data = read(CHUNK_BYTES)
            except OSError as problem:
                raise RnnstreamError(f"{self.name} cannot be read: {problem.strerror}.") from None
            if data or not self._follow:
                yield data
                if not data:
                    return
            else:
                self._hold_to_growing()
                time.sleep(POLL_S)

    def _hold_to_growing(self) -> None:
        status = _status(self._file)
        if status is not None and status.st_size < self._file.tell():
            raise RnnstreamError(f"{self.name} has become shorter while it was followed; what is new in it is not known.")


def _status(file: IO[bytes]) -> os.stat_result | None:
    try:
        return os.fstat(file.fileno())
    except OSError:  # not a file of the system's
        return None
