"""What a worker says: the reply maps of every operation and error."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

import numpy as np

from rnnstream.engine.engine import Engine
from rnnstream.errors import Internal, RequestError
from rnnstream.prediction import Prediction
from rnnstream.wire import replies as wire
from rnnstream.wire.limits import PROTOCOL, Limits
from rnnstream.wire.requests import Request

log = logging.getLogger("rnnstream.worker")

SCAN = 10_000  # rows that one `sessions` request looks through, so that it holds nobody up


def echo(request: Request) -> dict[str, Any]:
    """The request's id, if it had one, as it comes back in its reply."""
    return {} if request.id is None else {"id": request.id}


class Answers:
    """Carries out the operations beside `step`, and writes the replies to all of them.

    Args:
        engine: the sessions.
        worker: id of this run.
        version: of the package.
        limits: what `hello` tells of.
    """

    def __init__(self, engine: Engine, *, worker: str, version: str, limits: Limits) -> None:
        self.engine, self.limits = engine, limits
        self._worker, self._version = worker, version

    def change(self, row: int, request: Request, now: float) -> dict[str, Any]:
        """reset, close and info, when their turn has come."""
        engine, session = self.engine, request.session
        if request.op != "reset" and not engine.table.live[row]:
            raise engine.unknown(session)
        engine.expect(row, request.t)
        if request.op == "info":
            return {"session": session, **engine.row_info(row, now)}
        if request.op == "close":
            engine.table.close(row)
            return {"session": session, "closed": True}
        engine.table.open(row, now)
        return {"session": session, "t": 0}

    def about(self, request: Request, now: float) -> dict[str, Any]:
        """hello, ping and sessions, which wait for nothing."""
        if request.op == "ping":
            self.engine.rehearse()
            return {"ok": True, "worker": self._worker}
        if request.op == "sessions":
            names, following = self.engine.page(request.prefix, request.after, request.limit, SCAN)
            return {"sessions": names} | ({} if following is None else {"next": following})
        model = self.engine.model
        return {
            "protocol": PROTOCOL,
            "version": self._version,
            "worker": self._worker,
            "limits": asdict(self.limits),
            "model": {
                "name": model.name,
                "digest": model.digest,
                "exact": model.exact,
                "numerics": model.numerics,
                "layers": model.layers,
                "state_size": model.state_size,
                "surprisal": model.surprisal,
                "vocabulary": model.input.vocabulary is not None,
                "input": {"kind": model.input.kind, "size": model.input.size},
                "output": {"kind": model.output.kind, "size": model.output.size},
            },
        }

    def step(self, request: Request, prediction: Prediction) -> bytes:
        """A step's reply with everything that was wanted."""
        reply: dict[str, Any] = {"session": request.session, "t": prediction.t}
        if prediction.opened:
            reply["opened"] = True
        for key in ("y", "p", "label", "top", "probs", "logits", "surprisal"):
            value = getattr(prediction, key)
            if value is not None:
                reply[key] = value.tobytes() if isinstance(value, np.ndarray) else value
        return self.encode(reply, request)

    def encode(self, reply: dict[str, Any], request: Request) -> bytes:
        """A reply map, with the request's id."""
        return wire.encode(reply | echo(request))

    def error(self, error: RequestError, request: Request) -> bytes:
        """The reply to a request that got an error."""
        return wire.encode(wire.error_map(error, session=request.session, **echo(request)))

    def internal(self, echo: dict[str, Any]) -> bytes:
        """Log the exception being handled, and the reply that says so."""
        log.exception("a request failed inside the worker: %s", echo)
        return wire.encode(
            wire.error_map(Internal("A bug in the worker; its log has the traceback. Nothing was changed."), **echo)
        )
