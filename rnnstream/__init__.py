"""rnnstream serves trained recurrent networks one token at a time: the hidden state stays, the bits are exact.

The public names: `load`, `Network`, `StepModel` (models), `Engine` (sessions in process), `Worker`, `Quotas` (sessions behind
ZeroMQ addresses, and what each key may have there), `Client`, `AsyncClient`, `Prediction` (their other end), and every
exception of `rnnstream.errors`.
"""

from rnnstream.client import AsyncClient, AsyncSession, Client, Session
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
