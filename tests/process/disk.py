"""A disk that fails: `disk.c` built, what a process needs to be run on it, and what it leaves after a loss of power."""

from __future__ import annotations

import mmap
import random
import shutil
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("disk.c")
HOW = ("before", "half", "after")  # where an operation ends the process
BLOCKS = 512, 4096  # bytes that a disk writes as one, or a cache


def build(directory: Path) -> Path | None:
    """The library, built in this directory; None where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    library = directory / "disk.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    return library


def environment(
    library: Path, store: Path, *, shadow: Path | None = None, at: int = 0, how: str = "before", errors: Path | None = None
) -> dict[str, str]:
    """What to add to the environment of a process whose store is on such a disk.

    Args:
        library: that was built.
        store: file of the store.
        shadow: directory that is to be what a loss of power would leave of the store's own one.
        at: the operation that ends the process; 0: none.
        how: one of `HOW`.
        errors: the file of an `Errors`.
    """
    more = {} if shadow is None else {"DISK_SHADOW": str(shadow)}
    more |= {} if errors is None else {"DISK_ERRORS": str(errors)}
    return {"LD_PRELOAD": str(library), "DISK_STORE": str(store), "DISK_AT": str(at), "DISK_HOW": how, **more}


class Errors:
    """What the operations of a running process get.

    Args:
        path: of a file that is made.
    """

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(12))
        with path.open("r+b") as held:
            self._page = mmap.mmap(held.fileno(), 12)

    def set(self, *, writes: int = 0, syncs: int = 0, reads: int = 0) -> None:
        """From now on, each kind gets this errno; 0: it succeeds."""
        self._page[:] = struct.pack("iii", writes, syncs, reads)

    def close(self) -> None:
        self._page.close()


def lose_power(store: Path, shadow: Path, chance: random.Random | None = None) -> None:
    """Leave in a store's directory what is on the disk when power is lost; nobody has it open.

    Args:
        store: the directory; it has nothing but the store.
        shadow: what was synced of it. The two are equal afterwards.
        chance: which of the blocks that were not synced are on the disk all the same; None: none of them.
    """
    names = {path.name for place in (store, shadow) for path in place.iterdir()}
    for name in sorted(names):
        live, synced = (_content(place / name) for place in (store, shadow))
        left = synced if chance is None else _some(live, synced, chance)
        if name.endswith("-shm"):
            left = None
        for place in (store, shadow):
            if left is None:
                (place / name).unlink(missing_ok=True)
            else:
                (place / name).write_bytes(left)


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _some(live: bytes | None, synced: bytes | None, chance: random.Random) -> bytes | None:
    """What is left of a file, of what was synced and what would have been."""
    if live is None or synced is None:  # that it was made, or removed, may have reached the disk
        if chance.random() < 0.5:
            return synced
        if live is None:
            return None
    left, share, block = bytearray(synced or b""), chance.random(), chance.choice(BLOCKS)
    if len(live) < len(left) and chance.random() < 0.5:
        del left[len(live) :]
    for start in range(0, len(live), block):
        part = live[start : start + block]
        if part != left[start : start + block] and chance.random() < share:
            left.extend(bytes(max(0, start - len(left))))
            left[start : start + block] = part
    return bytes(left)
