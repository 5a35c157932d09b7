"""The BLAS library behind NumPy's products: held to one thread, and named.

Two BLAS threads cut a product differently from one and so change last bits. Setting the number is cheap once the libraries
are known (about 2 us), finding them is not (about 350 us), so they are looked up once a process.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import threading
from collections.abc import Iterator

import numpy as np
from threadpoolctl import ThreadpoolController

_lock = threading.Lock()
_holders = 0
_before: list[tuple[object, int]] = []


@functools.cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Hold BLAS to one thread and keep NumPy quiet about overflow; both are put back when the last holder leaves.

    May be nested and entered by several threads. Where it is already held, entering costs about 1 us.
    """
    global _holders
    with _lock:
        if not _holders:
            for library in _controller().lib_controllers:
                _before.append((library, library.get_num_threads()))
                library.set_num_threads(1)
        _holders += 1
    try:
        with np.errstate(all="ignore"):  # the state is checked for NaN and infinity by whoever asked for the step
            yield
    finally:
        with _lock:
            _holders -= 1
            if not _holders:
                for library, threads in _before:
                    library.set_num_threads(threads)  # type: ignore[attr-defined]
                _before.clear()


@functools.cache
def kernels() -> str:
    """The kernels that BLAS uses on this machine, such as "openblas 0.3.31 Haswell"."""
    found = [
        " ".join(str(info[key]) for key in ("internal_api", "version", "architecture") if info.get(key))
        for info in _controller().info()
    ]
    return ", ".join(found) or "unknown"


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
