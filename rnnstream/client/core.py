"""What a client knows, without sockets and without a clock: calls out, bodies out; bodies in, answers in.

The loops around a core do this, and decide nothing::

    call = core.step("turbine-7", 17)              # or another operation
    until call.done:
        send each of core.outgoing(now)
        wait for a body, at most until core.deadline()
        core.received(body, now), or core.expire(now) where none has come
        if core.take_renewal(): drop the socket and connect a new one
    call.result()
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rnnstream.client.call import Call
from rnnstream.client.delivery import Delivery
from rnnstream.client.token import read_prediction, wire_token
from rnnstream.errors import ProtocolError
from rnnstream.names import Name, Owned
from rnnstream.prediction import Prediction
from rnnstream.wire import requests
from rnnstream.wire.limits import PROTOCOL

_LIMITS = ("frame_bytes", "frame_requests", "waiting", "reply_bytes", "replies")  # those that this client keeps to


class Core(Delivery):
    """The operations of a client; each makes a call. For the arguments see `Delivery`."""

    def step(
        self, session: Name, x: object, want: str | int = "argmax", surprisal: bool = False, t: int | None = None
    ) -> Call[Prediction]:
        """One token; raises `BadToken` where it cannot be written."""
        request = step_keys(session, want, surprisal)
        request["x"] = wire_token(x)
        if t is not None:
            request["t"] = t
        return self.ask([request], read_prediction)

    def change(self, op: str, session: Name, t: int | None = None, **keys: Any) -> Call[None]:
        """`open`, `reset`, `restore` or `close`: an operation that changes a session and has nothing to tell.

        Args:
            op: its name.
            session: to change.
            t: the precondition, if there is one.
            keys: further keys; those that are None are left out.
        """
        keys["t"] = t
        request = {"op": op, **session_keys(op, session), **{key: value for key, value in keys.items() if value is not None}}
        return self.ask([request], lambda reply: None)

    def fork(self, session: Name, to: str, t: int | None = None) -> Call[None]:
        """Copy a session to a new name."""
        request: dict[str, Any] = {"op": "fork", **session_keys("fork", session), "to": to}
        return self.ask([request if t is None else {**request, "t": t}], lambda reply: self._lanes.lane(to).expect())

    def peek(self, session: Name, xs: Iterable[object], want: str | int, surprisal: bool) -> Call[list[Prediction]]:
        """What would come back for these tokens; raises `BadToken` where one cannot be written."""
        keys = step_keys(session, want, surprisal)
        return self.ask([{"op": "peek", **keys, "xs": [wire_token(x) for x in xs]}], _read_peek)

    def snapshot(self, session: Name) -> Call[bytes]:
        """The state of a session as bytes."""
        return self.ask([{"op": "snapshot", **session_keys("snapshot", session)}], _read_state)

    def info(self, session: Name) -> Call[dict[str, Any]]:
        """What the worker knows of a session."""
        return self.ask([{"op": "info", **session_keys("info", session)}], _without_id)

    def ping(self) -> Call[dict[str, Any]]:
        """Whether the worker still steps."""
        return self.ask([{"op": "ping"}], _without_id)

    def stats(self) -> Call[dict[str, Any]]:
        """The worker's counters."""
        return self.ask([{"op": "stats"}], _without_id)

    def ask_hello(self) -> Call[dict[str, Any]]:
        """Who is there; its result is kept as `hello`.

        `Call.result` raises `ProtocolError` where the worker speaks another version, or its limits are none.
        """
        return self.ask([{"op": "hello"}], self._read_hello)

    def _read_hello(self, reply: dict[str, Any]) -> dict[str, Any]:
        if reply.get("protocol") != PROTOCOL:
            raise ProtocolError(f"{self.address} speaks protocol {reply.get('protocol')!r:.60}, this client {PROTOCOL}.")
        try:
            sizes = {f"limits.{key}": reply["limits"][key] for key in _LIMITS}
            sizes |= {f"model.{side}.size": reply["model"][side]["size"] for side in ("input", "output")}
        except (KeyError, TypeError) as problem:
            text = f"{self.address} says hello without its limits or its model ({problem!r:.120})."
            raise ProtocolError(text) from None
        for key, value in sizes.items():
            if type(value) is not int or value < 1:
                raise ProtocolError(f"{self.address} says hello with {key} {value!r:.60}; it is an int from 1.")
        self.hello = _without_id(reply)
        return dict(self.hello)


def session_keys(op: str, session: Name) -> dict[str, Any]:
    """The keys that name a session: with its owner where one is given, and be it "", nobody.

    Raises:
        ValueError: this operation is for one's own sessions only.
    """
    if not isinstance(session, Owned):
        return {"session": session}
    if "owner" not in requests.OPS[op]:
        raise ValueError(f"{session.name!r:.60} is somebody else's session: an admin has its info and close, and nothing else.")
    return {"session": session.name, "owner": session.owner}


def step_keys(session: Name, want: str | int, surprisal: bool) -> dict[str, Any]:
    """The keys of a step but its token; those that have their default are left out."""
    keys = session_keys("step", session)
    if want != "argmax":
        keys["want"] = want
    if surprisal:
        keys["surprisal"] = surprisal
    return keys


def _read_peek(reply: dict[str, Any]) -> list[Prediction]:
    t, ys = reply.get("t"), reply.get("ys")
    if type(t) is not int or type(ys) is not list or not all(type(y) is dict for y in ys):
        raise ProtocolError("The reply to a peek has no t or no predictions; is this an rnnstream worker?")
    return [read_prediction({**y, "t": t + ahead}) for ahead, y in enumerate(ys, 1)]


def _read_state(reply: dict[str, Any]) -> bytes:
    state = reply.get("state")
    if type(state) is not bytes:
        raise ProtocolError("The reply to a snapshot has no state; is this an rnnstream worker?")
    return state


def _without_id(reply: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in reply.items() if key != "id"}
