"""Arrays as long as they may ever have to be, which take memory only where they have been written to."""

from __future__ import annotations

import contextlib
import mmap
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

NORESERVE = 0x4000 if hasattr(mmap, "MAP_POPULATE") else 0  # MAP_NORESERVE of Linux, which `mmap` names from Python 3.13 on


def reserve(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """An array of zeros. It costs addresses, and memory by the page, mostly of 4 KiB, as it is filled.

    Growing an array instead would mean to copy it: a million states of 512 bytes take 0.3 s, and twice the memory meanwhile.

    Where Linux promises no memory that it may not have (vm.overcommit_memory is 2), an array that could be had counts in full
    against what it may promise, filled or not.

    Raises:
        MemoryError: there are not so many addresses, or the system promises no memory that it may not have.
    """
    size = prod(shape) * np.dtype(dtype).itemsize
    if not size:
        return np.zeros(shape, dtype)
    try:
        room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
    except (OSError, OverflowError):
        raise MemoryError(f"There is no room for {size} bytes.") from None
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages; with them, one number would take 2 MiB
            room.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(room, dtype).reshape(shape)
