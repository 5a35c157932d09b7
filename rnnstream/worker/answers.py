"""What a worker says: the reply maps of every operation and error."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from rnnstream.engine.engine import Engine
from rnnstream.engine.moves import Peek
from rnnstream.engine.numbering import SHARE
from rnnstream.engine.snapshot import snapshot_bytes
from rnnstream.errors import BadRequest, Internal, RequestError
from rnnstream.model.step import StepModel
from rnnstream.names import Name, owner_of
from rnnstream.prediction import Prediction
from rnnstream.wire import replies as wire
from rnnstream.wire.limits import PRODUCER_BYTES, PROTOCOL, SESSION_BYTES, Limits
from rnnstream.wire.requests import OWNER_CHARACTERS, Request
from rnnstream.worker.cursors import Cursors
from rnnstream.worker.keeper import Keeper
from rnnstream.worker.residence import STORED
from rnnstream.worker.stats import Stats

log = logging.getLogger("rnnstream.worker")

SCAN = 10_000  # rows that `sessions` requests look through in one turn, so that they hold nobody up: about 1 ms
MOST_CURSOR = 2 * STORED  # no cursor is beyond: of all numbers, one in eight millions is below
OWNED_SCAN = SCAN // SHARE  # likewise for each key, so that nobody's pages are cut short by what others list
ERROR_BYTES = 1000  # of an error, or an ordinary reply without its label: names, values and ids in them are bounded
Y_BYTES = 150  # of a prediction in a peek without its label and further numbers: keys, p, surprisal
STATS_BYTES = 4000  # of counters and histograms
HELLO_STORE_BYTES = 500  # of what `hello` says of the store
SPARE_BYTES = ERROR_BYTES - 350  # of that, what an ordinary reply leaves for more numbers


def reply_bytes(model: StepModel) -> int:
    """Upper bound of the bytes of any reply that holds no more numbers than an ordinary one."""
    return ERROR_BYTES + max((4 * len(label) for label in model.output.vocabulary or ()), default=0)


def echo(request: Request) -> dict[str, Any]:
    """The request's id, if it had one, as it comes back in its reply."""
    return {} if request.id is None else {"id": request.id}


def whose(request: Request) -> dict[str, Any]:
    """The request's session, and its id if it had one, as they come back in an error."""
    return {"session": str(request.session)} | echo(request)


class Answers:
    """Carries out the operations beside `step`, and writes the replies to all of them.

    Args:
        engine: the sessions.
        stats: what is counted.
        worker: id of the worker.
        version: of the package.
        limits: what `hello` tells of.
        keeper: of the store; None if there is none.
        secret: seals the cursors of listings for those who learn nothing of others.
    """

    def __init__(
        self,
        engine: Engine,
        stats: Stats,
        *,
        worker: str,
        version: str,
        limits: Limits,
        keeper: Keeper | None = None,
        secret: bytes = b"",
    ) -> None:
        self.engine, self.stats, self._worker, self._keeper = engine, stats, worker, keeper
        self._cursors = Cursors(secret)
        self._scans: dict[str | None, int] = {}  # by owner: rows that may be looked through in this turn
        model, numbering = engine.model, engine.table.numbering
        self._hello = {
            "protocol": PROTOCOL,
            "version": version,
            "worker": worker,
            "limits": asdict(limits)
            | {"replies": numbering.replies, "producers": numbering.producers, "producer_s": numbering.producer_s},
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
        self._y_bytes = reply_bytes(model) - ERROR_BYTES + Y_BYTES
        self._hello_bytes = len(wire.encode(self._hello)) + HELLO_STORE_BYTES
        self._snapshot_bytes = snapshot_bytes(model.state_size, model.dtype.itemsize)
        self.rested()

    def change(self, row: int, request: Request, take: Callable[[Name], int], now: float) -> bytes:
        """The operations on a session beside step and peek, when their turn has come.

        Args:
            row: of the session.
            request: the request.
            take: gives a row to a name.
            now: seconds.
        """
        engine, state = self.engine, request.state
        reply: dict[str, Any] = {"session": str(request.session)}
        match request.op:
            case "open":
                reply |= {"t": engine.open_row(row, state, now, request.t), "opened": True}
            case "reset":
                engine.reset_row(row, now, request.t)
                reply["t"] = 0
            case "close":
                engine.close_row(row, request.t)
                reply["closed"] = True
            case "fork":
                reply |= {"to": str(request.to), "t": engine.fork_row(row, take, request.to, now, request.t)}
            case "restore":
                assert state is not None
                reply["t"] = engine.restore_row(row, state, now, request.t)
            case "snapshot":
                reply |= {"state": engine.snapshot_row(row), "t": int(engine.table.t[row])}
            case _:
                assert request.op == "info"
                engine.hold_live(row)
                reply |= engine.row_info(row, now)
        return wire.encode(reply)

    def size(self, request: Request, ahead: int) -> int:
        """Upper bound of the bytes of what this reply holds beyond an ordinary one; `ahead` requests of its session wait."""
        output = self.engine.model.output
        match request.op:
            case "hello":
                return self._hello_bytes
            case "stats":
                return STATS_BYTES
            case "sessions":
                return (SESSION_BYTES + 3 + (OWNER_CHARACTERS + 2) * request.all) * request.limit
            case "snapshot":
                return self._snapshot_bytes
            case "info":
                table = self.engine.table
                row, most = table.rows.get(request.session), table.numbering.producers
                if self._keeper is None or (row is not None and table.live[row]) or request.session in table.tombstones:
                    most = min(len(self.engine.producers(request.session)) + ahead, most)
                return (PRODUCER_BYTES + 11) * most
            case "step" | "peek":
                numbers = (request.want in ("probs", "logits")) + (output.kind != "categorical" and request.want != "none")
                more = 4 * output.size * numbers + (20 * request.want if isinstance(request.want, int) else 0)
                return more if request.op == "step" else len(request.xs) * (more + self._y_bytes)
        return 0

    def rested(self) -> None:
        """A new turn of the loop: work that is done at most once a turn may be done again."""
        self._scans.clear()
        self._rehearsed = False

    def about(self, request: Request, waiting: int, now: float, user: str = "") -> bytes:
        """hello, ping, sessions and stats, which wait for nothing.

        Args:
            request: the request.
            waiting: how many requests wait; those of the key alone, if it learns nothing of others.
            now: seconds.
            user: a key that learns nothing of others; "" if everything may be told.
        """
        return wire.encode(self._about(request, waiting, now, user) | echo(request))

    def _about(self, request: Request, waiting: int, now: float, user: str) -> dict[str, Any]:
        engine = self.engine
        if request.op == "ping":
            if not self._rehearsed:
                engine.rehearse()
                self._rehearsed = True
            return {"ok": True, "worker": self._worker}
        if request.op == "sessions":
            return self._page(request)
        if request.op == "stats" and user:
            table = engine.table
            return {
                "worker": self._worker,
                "open": table.owned[user],
                "tombstones": table.tombstones.count(user),
                "waiting": waiting,
            }
        if request.op == "stats":
            numberings = engine.table.numberings.values()
            return {
                "worker": self._worker,
                "open": engine.table.open_count + engine.table.absent,
                "tombstones": len(engine.table.tombstones),
                "expired": engine.expired_count,
                "numbered": sum(numbering.count for numbering in numberings),
                "kept_bytes": sum(numbering.held_bytes for numbering in numberings),
                "waiting": waiting,
                **self.stats.told(now),
            } | ({} if self._keeper is None else {"store": self._keeper.stats()})
        if self._keeper is None:
            return self._hello
        store = self._keeper.hello()
        if user:
            del store["replayed"]  # tokens of everybody
        return self._hello | {"store": store}

    def _page(self, request: Request) -> dict[str, Any]:
        """A page of the names of open sessions: all, or those of the request's owner."""
        page = self.engine.page if self._keeper is None else self._keeper.page
        owner = None if request.all else request.owner or ""
        after = request.after
        if owner and after:
            after = self._cursors.unsealed(after, owner)
            if after > MOST_CURSOR:  # else a listing would end before its end, and nobody would know
                raise BadRequest(
                    f"after is {request.after}; this worker gave this key no such cursor. Begin anew.", field="after"
                )
        scan = self._scans.get(owner, OWNED_SCAN if owner else SCAN)
        names, following, looked_at = page(request.prefix, after, request.limit, max(1, scan), owner)
        self._scans[owner] = scan - looked_at
        reply: dict[str, Any] = {"sessions": list(map(str, names))}
        if request.all:
            reply["owners"] = list(map(owner_of, names))
        if following is not None:
            reply["next"] = self._cursors.sealed(following, owner) if owner else following
        return reply

    def step(self, session: Name, prediction: Prediction) -> bytes:
        """A step's reply with everything that was wanted."""
        return wire.encode({"session": str(session)} | prediction_map(prediction))

    def peek(self, session: Name, peek: Peek) -> bytes:
        """The reply to a peek that is done.

        Raises:
            NotFinite: a token would have spoiled the state.
        """
        if peek.spoiled:
            raise self.engine.spoiled(session, peek)
        ys = [prediction_map(prediction) for prediction in peek.found]
        for y in ys:
            del y["t"]
        return wire.encode({"session": str(session), "t": peek.t - len(peek.found), "ys": ys})

    def again(self, kept: bytes, request: Request) -> bytes:
        """The reply to a repeat."""
        self.stats.repeats += 1
        return with_echo(wire.with_again(kept), request)

    def refused(self, error: RequestError, echo: dict[str, Any]) -> bytes:
        """The reply to a request that got an error; `echo` is its session and id, where they could be read."""
        self.stats.errors[error.code] += 1
        return wire.encode(wire.error_map(error, **echo))

    def internal(self, echo: dict[str, Any], *, logged: bool = False) -> bytes:
        """The reply to a request that met a bug: the exception being handled, which is logged unless it was already."""
        if not logged:
            log.exception("a request failed inside the worker: %s", echo)
        return self.refused(Internal("A bug in the worker; its log has the traceback. Nothing was changed."), echo)


def prediction_map(prediction: Prediction) -> dict[str, Any]:
    """A prediction as it goes into a reply: without what it does not have."""
    found: dict[str, Any] = {"t": prediction.t}
    if prediction.opened:
        found["opened"] = True
    for key in ("y", "p", "label", "top", "probs", "logits", "surprisal"):
        value = getattr(prediction, key)
        if value is not None:
            found[key] = value.tobytes() if isinstance(value, np.ndarray) else value
    return found


def with_echo(reply: bytes, request: Request) -> bytes:
    """A reply with the request's id, if it had one."""
    return reply if request.id is None else wire.with_id(reply, request.id)
