"""What a session is called: by its name alone, or where a worker knows its users by their keys, by (key, name).

So users cannot come upon each other's sessions: to the table, the numbering and the store, (A, "turbine-7") and
(B, "turbine-7") are as different as any two names. What is sent to users has the name alone.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias


class Owned(NamedTuple):
    """The name of a session that belongs to somebody.

    Attributes:
        owner: the public key, in Z85: 40 characters.
        name: as the user calls it.
    """

    owner: str
    name: str

    def __str__(self) -> str:
        """The name alone, as it goes into sentences for its owner."""
        return self.name

    def encode(self) -> bytes:
        """The name alone in UTF-8, as of a plain one."""
        return self.name.encode()


Name: TypeAlias = str | Owned  # `str(name)` is what the user calls it


def owner_of(name: Name) -> str:
    """Whose session it is; "" if it is nobody's."""
    return name.owner if isinstance(name, Owned) else ""


def named(owner: str | None, name: str) -> Name:
    """The name of a session of this owner; "" and None are nobody."""
    return Owned(owner, name) if owner else name
