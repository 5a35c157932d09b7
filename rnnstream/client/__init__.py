"""Clients of a worker: a core without I/O, and a blocking and an asyncio loop around it."""

from rnnstream.client.aio import AsyncClient, AsyncSession
from rnnstream.client.sync import Client, Session
from rnnstream.client.token import Token

__all__ = ["AsyncClient", "AsyncSession", "Client", "Session", "Token"]
