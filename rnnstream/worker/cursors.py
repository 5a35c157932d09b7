"""Cursors of listings, sealed where users are to learn nothing of each other: a plain one counts everybody's sessions."""

from __future__ import annotations

import hashlib

_ROUNDS = 4  # of a Feistel network: a permutation of 64 bits that nobody without the secret can tell from chance
_HALF = 32
_MASK = (1 << _HALF) - 1


class Cursors:
    """Seals cursors below 2^64 as others below 2^64.

    Args:
        secret: at least 16 bytes that nobody else has, for as long as cursors are to be good.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def sealed(self, cursor: int, owner: str) -> int:
        """What this owner gets instead of a cursor."""
        left, right = cursor >> _HALF, cursor & _MASK
        for number in range(_ROUNDS):
            left, right = right, left ^ self._mixed(right, number, owner)
        return left << _HALF | right

    def unsealed(self, sealed: int, owner: str) -> int:
        """The cursor behind it; of what this owner was never given, any number."""
        left, right = sealed >> _HALF & _MASK, sealed & _MASK
        for number in reversed(range(_ROUNDS)):
            left, right = right ^ self._mixed(left, number, owner), left
        return left << _HALF | right

    def _mixed(self, half: int, number: int, owner: str) -> int:
        data = half.to_bytes(4) + bytes((number,)) + owner.encode()
        return int.from_bytes(hashlib.blake2b(data, digest_size=4, key=self._secret).digest())
