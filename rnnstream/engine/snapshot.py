"""Snapshots: a session's state as bytes that can be kept, moved and put back.

::

    offset  size  what, little-endian
         0     8  "rnnstate"
         8     2  format version, 1
        10    16  dtype of the state, as NumPy writes it: "<f4", padded with zero bytes
        26     8  S: how many numbers the state has
        34     8  t: the session's step count
        42    32  SHA-256 of the model's digest, as UTF-8 text
        74     .  a<t>: S numbers
       end    16  checksum: BLAKE2b of all before it

The checksum finds damage; it is no signature: whoever can write a snapshot can write any state.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnstream.errors import BadState

Array = npt.NDArray[Any]

VERSION = 1
_MAGIC = b"rnnstate"
_HEAD = struct.Struct("<8sH16sQQ32s")
_CHECKSUM = 16
MOST_T = 1 << 62  # nobody lives to see the steps from there to the end of the table's int64


def snapshot_bytes(state_size: int, itemsize: int) -> int:
    """How many bytes a snapshot has."""
    return _HEAD.size + state_size * itemsize + _CHECKSUM


def encode(state: Array, t: int, digest: str) -> bytes:  # [S] -> bytes
    """The snapshot of a state.

    Args:
        state: a<t>.
        t: the step count, from 0.
        digest: of the model.
    """
    little = np.ascontiguousarray(state, state.dtype.newbyteorder("<"))
    head = _HEAD.pack(_MAGIC, VERSION, little.dtype.str.encode(), len(little), t, hashlib.sha256(digest.encode()).digest())
    body = head + little.tobytes()
    return body + _checksum(body)


def decode(data: bytes, *, dtype: np.dtype[Any], state_size: int, digest: str) -> tuple[Array, int]:  # bytes -> [S], t
    """The state and the step count in a snapshot, which is held against the model in full.

    Raises:
        BadState: it is damaged, cut, of another format version or of another model, or its numbers are not finite.
    """
    if data[: len(_MAGIC)] != _MAGIC or len(data) < _HEAD.size + _CHECKSUM:
        raise BadState(f"The state has {len(data)} bytes that are no snapshot of rnnstream, or only the beginning of one.")
    _, version, kind, size, t, model = _HEAD.unpack_from(data)
    if version != VERSION:
        raise BadState(f"The snapshot has the format version {version}; this worker reads {VERSION}.")
    expected = snapshot_bytes(state_size, dtype.itemsize)
    if len(data) != expected:  # before the checksum, which takes as long as the bytes are many
        raise BadState(f"The snapshot has {len(data)} bytes; one of this model has {expected}. It is cut, or of another model.")
    if data[-_CHECKSUM:] != _checksum(data[:-_CHECKSUM]):
        raise BadState("The snapshot is damaged: its checksum does not hold.")
    if model != hashlib.sha256(digest.encode()).digest():
        raise BadState("The snapshot is of another model: its digest is not this model's.")
    little = dtype.newbyteorder("<")
    if kind.rstrip(b"\0") != little.str.encode() or size != state_size:
        raise BadState(
            f"The snapshot holds {size} numbers of type {kind.rstrip(bytes(1))!r:.20}; this model's state has {state_size} of "
            f"type {little.str}."
        )
    if t > MOST_T:
        raise BadState(f"The snapshot's t is {t}; it is at most {MOST_T}.")
    state = np.frombuffer(data, little, state_size, _HEAD.size).astype(dtype)
    if not np.isfinite(state).all():
        raise BadState("The snapshot's state holds NaN or infinity.")
    return state, t


def _checksum(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_CHECKSUM).digest()
