"""The BLAS library behind NumPy's products: held to one thread, and named.

Two BLAS threads cut a product differently from one and so change last bits. Setting the number is cheap once the libraries
are known (about 3 us), finding them is not (about 1 ms), so they are looked up once a process.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

_lock = threading.Lock()
_holders = 0  # in all threads
_before: list[tuple[Any, int]] = []  # each library and the number that it had before the first holder
_mine = threading.local()  # .depth: holders in this thread


@functools.cache
def _libraries() -> list[Any]:
    return list(ThreadpoolController().select(user_api="blas").lib_controllers)


def _set_threads(library: Any, number: int) -> None:
    # threadpoolctl 3.8 lets only the first thread that ever sets OpenBLAS's number do so again, and passes over all others in
    # silence. Here `_lock` and the count of holders keep threads from fighting over it.
    clear = getattr(type(library), "clear_controlling_thread", lambda force: None)
    clear(force=True)
    library.set_num_threads(number)
    clear(force=True)


class _OneThread(contextlib.AbstractContextManager[None]):
    """See `one_thread`. A class, for a generator costs 1 us more each time."""

    __slots__ = ("_quiet",)

    def __enter__(self) -> None:
        global _holders
        depth = getattr(_mine, "depth", 0)
        if not depth:
            with _lock:
                now = [(library, library.get_num_threads()) for library in _libraries()]
                if not _holders:
                    _before[:] = now
                for library, threads in now:  # also if held by another thread: some libraries keep a number for each
                    if threads != 1:
                        _hold(library)
                _holders += 1
        _mine.depth = depth + 1
        self._quiet = np.errstate(all="ignore")  # the state is checked for NaN and infinity by whoever asked for the step
        self._quiet.__enter__()

    def __exit__(self, *error: Any) -> None:
        global _holders
        self._quiet.__exit__(*error)
        depth = _mine.depth = _mine.depth - 1
        if not depth:
            with _lock:
                _holders -= 1
                if not _holders:
                    for library, threads in _before:
                        if threads != 1:
                            _set_threads(library, threads)


def _hold(library: Any) -> None:
    _set_threads(library, 1)
    if library.get_num_threads() != 1:
        raise RuntimeError(f"{library.filepath} uses {library.get_num_threads()} threads and cannot be held to 1.")


def one_thread() -> contextlib.AbstractContextManager[None]:
    """Hold BLAS to one thread and keep NumPy quiet about overflow; both are put back when the last holder leaves.

    May be nested and entered by several threads. Entering and leaving cost about 9 us, 4 us where BLAS has one thread anyway,
    and 2 us where this thread holds it already.

    Raises:
        RuntimeError: a BLAS library does not let itself be held to one thread.
    """
    return _OneThread()


@functools.cache
def kernels() -> str:
    """The kernels that NumPy's BLAS uses on this machine, such as "openblas 0.3.31 Haswell"."""
    found = [  # others, such as SciPy's or PyTorch's, may or may not be loaded already, and compute nothing here
        " ".join(str(info[key]) for key in ("internal_api", "version", "architecture") if info.get(key))
        for info in _own() or [library.info() for library in _libraries()]
    ]
    return ", ".join(found) or "unknown"


@functools.cache
def path() -> str:
    """The file of the library that NumPy brings with it; "" where it has none, or several."""
    own = _own()
    return str(own[0]["filepath"]) if len(own) == 1 else ""


def _own() -> list[dict[str, Any]]:
    infos = [library.info() for library in _libraries()]
    return [info for info in infos if "numpy" in Path(info["filepath"]).parent.as_posix().rpartition("site-packages")[2]]


@functools.cache
def fingerprint() -> str:
    """What stands behind the bits: the kernels' name, and a hash over a product and elementwise functions on fixed input.

    Machines with different fingerprints may differ in the last bits of a state; with equal ones they are taken to agree.
    """
    rng = np.random.default_rng(0)
    digest = hashlib.sha256()
    with one_thread():
        for dtype in (np.float32, np.float64):
            x, w = rng.uniform(-1, 1, (8, 100)).astype(dtype), rng.uniform(-1, 1, (100, 100)).astype(dtype)
            for rows in (1, 2, 4, 8):
                z = np.matmul(x.reshape(-1, rows, 100), w)
                for bits in (z, np.tanh(z), np.exp(z)):
                    digest.update(bits.tobytes())
    return f"{kernels()} {digest.hexdigest()[:16]}"
