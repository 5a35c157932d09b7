"""What a worker says: the reply maps of every operation and error."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

import numpy as np

from rnnstream.engine.engine import Engine
from rnnstream.errors import Internal, RequestError
from rnnstream.model.step import StepModel
from rnnstream.prediction import Prediction
from rnnstream.wire import replies as wire
from rnnstream.wire.limits import PROTOCOL, SESSION_BYTES, Limits
from rnnstream.wire.requests import Request

log = logging.getLogger("rnnstream.worker")

SCAN = 10_000  # rows that `sessions` requests look through in one turn, so that they hold nobody up: about 1 ms
ERROR_BYTES = 1000  # of an error, or an ordinary reply without its label: names, values and ids in them are bounded
SPARE_BYTES = ERROR_BYTES - 350  # of that, what an ordinary reply leaves for more numbers


def reply_bytes(model: StepModel) -> int:
    """Upper bound of the bytes of any reply that holds no more numbers than an ordinary one."""
    return ERROR_BYTES + max((4 * len(label) for label in model.output.vocabulary or ()), default=0)


def echo(request: Request) -> dict[str, Any]:
    """The request's id, if it had one, as it comes back in its reply."""
    return {} if request.id is None else {"id": request.id}


class Answers:
    """Carries out the operations beside `step`, and writes the replies to all of them.

    Args:
        engine: the sessions.
        worker: id of the worker.
        version: of the package.
        limits: what `hello` tells of.
    """

    def __init__(self, engine: Engine, *, worker: str, version: str, limits: Limits) -> None:
        self.engine, self._worker = engine, worker
        model = engine.model
        self._hello = {
            "protocol": PROTOCOL,
            "version": version,
            "worker": worker,
            "limits": asdict(limits),
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
        self._hello_bytes = len(wire.encode(self._hello))
        self.rested()

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

    def size(self, request: Request) -> int:
        """Upper bound of the bytes of what this reply holds beyond an ordinary one."""
        output = self.engine.model.output
        match request.op:
            case "hello":
                return self._hello_bytes
            case "sessions":
                return (SESSION_BYTES + 3) * request.limit
            case "step":
                numbers = (request.want in ("probs", "logits")) + (output.kind != "categorical" and request.want != "none")
                return 4 * output.size * numbers + (20 * request.want if isinstance(request.want, int) else 0)
        return 0

    def rested(self) -> None:
        """A new turn of the loop: work that is done at most once a turn may be done again."""
        self._scan = SCAN
        self._rehearsed = False

    def about(self, request: Request) -> dict[str, Any]:
        """hello, ping and sessions, which wait for nothing."""
        if request.op == "ping":
            if not self._rehearsed:
                self.engine.rehearse()
                self._rehearsed = True
            return {"ok": True, "worker": self._worker}
        if request.op == "sessions":
            names, following, looked_at = self.engine.page(request.prefix, request.after, request.limit, max(1, self._scan))
            self._scan -= looked_at
            return {"sessions": names} | ({} if following is None else {"next": following})
        return self._hello

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

    def internal(self, echo: dict[str, Any], *, logged: bool = False) -> bytes:
        """The reply to a request that met a bug: the exception being handled, which is logged unless it was already."""
        if not logged:
            log.exception("a request failed inside the worker: %s", echo)
        return wire.encode(
            wire.error_map(Internal("A bug in the worker; its log has the traceback. Nothing was changed."), **echo)
        )
