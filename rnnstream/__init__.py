"""rnnstream serves trained recurrent networks one token at a time: the hidden state stays, the bits are exact.

The public names: `load`, `Network`, `StepModel` (models), `Engine` (sessions in process), `Worker`, `Quotas` (sessions behind
ZeroMQ addresses, and what each key may have there), `Client`, `AsyncClient`, `Prediction` (their other end), and every
exception of `rnnstream.errors`.
"""

from typing import TYPE_CHECKING, Any

from rnnstream.client import Client, Session
from rnnstream.engine.engine import Engine
from rnnstream.errors import (
    BadKey,
    BadMessage,
    BadRequest,
    BadState,
    BadStore,
    BadToken,
    Busy,
    Conflict,
    ConnectionFailed,
    Denied,
    Exists,
    Full,
    Gap,
    Internal,
    ModelError,
    NoReply,
    NotFinite,
    ProtocolError,
    RequestError,
    RnnstreamError,
    SessionLost,
    Stale,
    StoreError,
    TooLarge,
    UnknownSession,
)
from rnnstream.loading import load
from rnnstream.model.file import save
from rnnstream.model.network import Network
from rnnstream.model.step import Input, Output, StepModel
from rnnstream.prediction import Prediction

if TYPE_CHECKING:
    from rnnstream.client import AsyncClient, AsyncSession
    from rnnstream.worker.quotas import Quotas
    from rnnstream.worker.worker import Worker

__all__ = [
    "AsyncClient",
    "AsyncSession",
    "BadKey",
    "BadMessage",
    "BadRequest",
    "BadState",
    "BadStore",
    "BadToken",
    "Busy",
    "Client",
    "Conflict",
    "ConnectionFailed",
    "Denied",
    "Engine",
    "Exists",
    "Full",
    "Gap",
    "Input",
    "Internal",
    "ModelError",
    "Network",
    "NoReply",
    "NotFinite",
    "Output",
    "Prediction",
    "ProtocolError",
    "Quotas",
    "RequestError",
    "RnnstreamError",
    "Session",
    "SessionLost",
    "Stale",
    "StepModel",
    "StoreError",
    "TooLarge",
    "UnknownSession",
    "Worker",
    "load",
    "save",
]


def __getattr__(name: str) -> Any:
    """These are imported when they are asked for: asyncio and the worker take as long as all the rest."""
    if name in ("AsyncClient", "AsyncSession"):
        from rnnstream.client import aio

        return getattr(aio, name)
    if name == "Quotas":
        from rnnstream.worker.quotas import Quotas

        return Quotas
    if name == "Worker":
        from rnnstream.worker.worker import Worker

        return Worker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
