"""Clients of a worker: a core without I/O, and a blocking and an asyncio loop around it."""

from typing import TYPE_CHECKING, Any

from rnnstream.client.sync import Client, Session
from rnnstream.client.token import Token

if TYPE_CHECKING:
    from rnnstream.client.aio import AsyncClient, AsyncSession

__all__ = ["AsyncClient", "AsyncSession", "Client", "Session", "Token"]


def __getattr__(name: str) -> Any:
    """The asyncio client is imported when it is asked for: asyncio takes as long as all the rest."""
    if name in ("AsyncClient", "AsyncSession"):
        from rnnstream.client import aio

        return getattr(aio, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
