"""A worker whose network is trivial, for tests of clients: y is x, t counts. Without a socket, and on a ROUTER in a thread.

Its snapshots are the session's t in decimal digits.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import zmq

from rnnstream.errors import BadState, BadToken, Conflict, Denied, Exists, Gap, RequestError, Stale, UnknownSession
from rnnstream.wire import replies, requests
from rnnstream.wire.limits import PROTOCOL, Limits

BAD = 13  # the token that is refused
PAGE = 3  # names on a page of a listing
DEADLINE_S = 20  # for whatever must happen


@dataclass
class Numbers:
    """What a session remembers of one producer: its last number, and what it was told for those not acknowledged."""

    last: int = 0
    kept: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)


class Counting:
    """Bodies in, bodies out.

    Attributes:
        ts: step counts of the sessions that live.
        closed: names with a tombstone.
        others: step counts of the sessions of others, by (owner, name); None: whoever asks is no admin.
        numbers: by session and producer.
        applied: the tokens of each session, in order, whatever was reset or closed in between.
        bodies: the requests of every body that came, in order.
        replies, reply_bytes: most replies kept for a producer in a session, and most bytes of these.
    """

    def __init__(self, limits: Limits | None = None, outputs: int = 5, replies: int = 512) -> None:
        self.limits = limits or Limits()
        self.outputs = outputs
        self.replies = replies
        self.reply_bytes = 2 * self.limits.reply_bytes
        self.numbers: dict[tuple[str, str], Numbers] = {}
        self.applied: dict[str, list[Any]] = {}
        self.ts: dict[str, int] = {}
        self.closed: set[str] = set()
        self.others: dict[tuple[str, str], int] | None = None
        self.bodies: list[list[dict[str, Any]]] = []

    def answer(self, body: bytes) -> bytes:
        maps, problem = requests.decode(body, self.limits.frame_requests)
        assert problem is None, problem
        self.bodies.append(maps)
        return b"".join([self._one(item, len(maps) == 1) for item in maps])

    def steps(self) -> list[dict[str, Any]]:
        """Every step that came, in order."""
        return [item for body in self.bodies for item in body if "x" in item]

    def _one(self, item: dict[str, Any], alone: bool) -> bytes:
        try:
            request = requests.parse(item)
            do = getattr(self, f"_{request.op}{'_others' if request.all or request.owner is not None else ''}")
            reply = do(request) if request.producer is None else self._numbered(request, do, alone)
        except RequestError as error:
            reply = replies.error_map(error, **({"session": item["session"]} if "session" in item else {}))
        return bytes(replies.encode(reply if "id" not in item else {**reply, "id": item["id"]}))

    def _numbered(
        self, request: requests.Request, do: Callable[[requests.Request], dict[str, Any]], alone: bool
    ) -> dict[str, Any]:
        numbers = self.numbers.setdefault((request.session, request.producer or ""), Numbers())
        said = f"{request.session}: producer {request.producer} sent n={request.n}"
        ack = request.n - 1 if alone and request.ack is None else request.ack or 0
        for n in [n for n in numbers.kept if n <= ack]:
            del numbers.kept[n]
        what = (request.op, request.x, request.state, request.to)
        if request.n > numbers.last + 1:
            raise Gap(f"{said}, expected {numbers.last + 1}.", expected=numbers.last + 1)
        if request.n <= numbers.last:
            if request.n not in numbers.kept:
                raise Stale(f"{said}; its reply is not kept.", last=numbers.last)
            before, reply = numbers.kept[request.n]
            if before != what:
                raise Conflict(f"{said}, which was another request.", field="n")
            return {**reply, "again": True}
        reply = do(request)
        numbers.last = request.n
        numbers.kept[request.n] = what, reply
        while len(numbers.kept) > self.replies or self._bytes(numbers) > self.reply_bytes:
            del numbers.kept[min(numbers.kept)]
        return reply

    def _bytes(self, numbers: Numbers) -> int:
        """Of the replies kept beside the last one."""
        rows = [reply.get("probs", b"") for n, (_, reply) in numbers.kept.items() if n < numbers.last]
        return sum(map(len, rows)) + 500 * len(rows)

    def _live(self, request: requests.Request) -> int:
        why = "closed" if request.session in self.closed else "never"
        if request.session not in self.ts:
            raise UnknownSession(f"{request.session}: no such session.", why=why)
        return self.ts[request.session]

    def _step(self, request: requests.Request) -> dict[str, Any]:
        if request.session in self.closed:
            self._live(request)
        opened = request.session not in self.ts
        t = self.ts.get(request.session, 0) + 1
        if request.t not in (None, t):
            raise Conflict(f"{request.session}: t is {request.t}, the next step is {t}.", field="t", t=t - 1)
        if request.x == BAD:
            raise BadToken(f"x is {BAD}; not with us.", field="x")
        self.ts[request.session] = t
        self.applied.setdefault(request.session, []).append(request.x)
        reply: dict[str, Any] = {"session": request.session, "t": t}
        if opened:
            reply["opened"] = True
        return {**reply, **self._predict(request.x, request)}

    def _predict(self, x: Any, request: requests.Request) -> dict[str, Any]:
        reply: dict[str, Any] = {}
        if request.surprisal:
            reply["surprisal"] = 0.5
        if request.want == "none":
            return reply
        reply["y"] = ord(x) if isinstance(x, str) else x
        if request.want in ("probs", "logits"):
            reply[request.want] = struct.pack(f"<{self.outputs}f", *range(self.outputs))
        if isinstance(request.want, int):
            reply["top"] = [[id, 1 / (id + 2)] for id in range(request.want)]
        return {**reply, "p": 0.25, "label": "la"}

    def _open(self, request: requests.Request) -> dict[str, Any]:
        if request.session in self.ts:
            raise Exists(f"{request.session} is open.")
        self.ts[request.session] = 0 if request.state is None else self._t(request.state)
        self.closed.discard(request.session)
        return {"session": request.session, "t": self.ts[request.session], "opened": True}

    def _fork(self, request: requests.Request) -> dict[str, Any]:
        t = self._live(request)
        if request.to in self.ts:
            raise Exists(f"{request.to} is open.")
        self.ts[request.to] = t
        return {"session": request.session, "to": request.to, "t": t}

    def _peek(self, request: requests.Request) -> dict[str, Any]:
        t = self._live(request)
        return {"session": request.session, "t": t, "ys": [self._predict(x, request) for x in request.xs]}

    def _snapshot(self, request: requests.Request) -> dict[str, Any]:
        t = self._live(request)
        return {"session": request.session, "t": t, "state": str(t).encode()}

    def _restore(self, request: requests.Request) -> dict[str, Any]:
        self._live(request)
        self.ts[request.session] = self._t(request.state)
        return {"session": request.session, "t": self.ts[request.session]}

    def _t(self, state: bytes | None) -> int:
        if state is None or not state.isdigit():
            raise BadState("The state is no number.")
        return int(state)

    def _reset(self, request: requests.Request) -> dict[str, Any]:
        self.ts[request.session] = 0
        self.closed.discard(request.session)
        return {"session": request.session, "t": 0}

    def _close(self, request: requests.Request) -> dict[str, Any]:
        self._live(request)
        del self.ts[request.session]
        self.closed.add(request.session)
        return {"session": request.session, "closed": True}

    def _info(self, request: requests.Request) -> dict[str, Any]:
        return {"session": request.session, "t": self._live(request), "idle_s": 0.5}

    def _theirs(self) -> dict[tuple[str, str], int]:
        if self.others is None:
            raise Denied("This key is no admin's.")
        return self.others

    def _t_of_others(self, request: requests.Request) -> int:
        key = request.owner or "", str(request.session)
        if key not in self._theirs():
            raise UnknownSession(f"{request.session}: no such session.", why="closed")
        return self._theirs()[key]

    def _info_others(self, request: requests.Request) -> dict[str, Any]:
        return {"session": request.session, "t": self._t_of_others(request)}

    def _close_others(self, request: requests.Request) -> dict[str, Any]:
        self._t_of_others(request)
        del self._theirs()[request.owner or "", str(request.session)]
        return {"session": request.session, "closed": True}

    def _sessions_others(self, request: requests.Request) -> dict[str, Any]:
        found = [key for key in sorted(self._theirs()) if key[1].startswith(request.prefix)]
        page = found[request.after : request.after + PAGE]
        reply: dict[str, Any] = {"sessions": [name for _, name in page], "owners": [owner for owner, _ in page]}
        if request.after + PAGE < len(found):
            reply["next"] = request.after + PAGE
        return reply

    def _hello(self, request: requests.Request) -> dict[str, Any]:
        model = {
            "name": "counting",
            "input": {"kind": "token", "size": 100},
            "output": {"kind": "categorical", "size": self.outputs},
            "surprisal": True,
            "vocabulary": False,
        }
        limits = asdict(self.limits) | {"replies": self.replies, "producers": 256, "producer_s": 300}
        return {"protocol": PROTOCOL, "version": "0", "worker": "toy", "limits": limits, "model": model}

    def _stats(self, request: requests.Request) -> dict[str, Any]:
        return {"bodies": len(self.bodies)}

    def _ping(self, request: requests.Request) -> dict[str, Any]:
        return {"ok": True, "worker": "toy"}

    def _sessions(self, request: requests.Request) -> dict[str, Any]:
        names = sorted(self.ts)
        page = names[request.after : request.after + PAGE]
        reply: dict[str, Any] = {"sessions": [name for name in page if name.startswith(request.prefix)]}
        if request.after + PAGE < len(names):
            reply["next"] = request.after + PAGE
        return reply


class ToyWorker:
    """A `Counting` on a ROUTER, in a thread of its own, from `start` to `stop`.

    Attributes:
        model: the `Counting`; a new one at each `start`.
        reply: what becomes of the reply to a body, given the body's requests and the reply: bytes to send, or None: it is lost.
    """

    def __init__(self) -> None:
        self.model = Counting()
        self.reply: Callable[[list[dict[str, Any]], bytes], bytes | None] = lambda maps, reply: reply
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._endpoint = "tcp://127.0.0.1:*"
        self._thread: threading.Thread | None = None
        self._control: zmq.Socket[bytes] | None = None
        self._problem: Exception | None = None  # what the thread died of

    @property
    def address(self) -> str:
        return self._endpoint

    def start(self) -> None:
        """Listen, at the same port as before if there was one."""
        self.model = Counting(self.model.limits, self.model.outputs)
        self._context = zmq.Context()  # one a run: when it is terminated, the port is free again
        router = self._context.socket(zmq.ROUTER)
        router.linger = 0
        self.secure(self._context, router)
        router.bind(self._endpoint)
        self._endpoint = router.getsockopt_string(zmq.LAST_ENDPOINT)
        self._control = self._context.socket(zmq.PAIR)
        self._control.bind("inproc://control")
        end = self._context.socket(zmq.PAIR)
        end.connect("inproc://control")
        self._thread = threading.Thread(target=self._run, args=(router, end))
        self._thread.start()

    def stop(self) -> None:
        """Listen no more; raises what the thread has died of, if it has."""
        if self._context is not None and self._thread is not None and self._control is not None:
            with suppress(zmq.Again):  # there is no other end: the thread has died
                self._control.send(b"", zmq.DONTWAIT)
            self._thread.join(DEADLINE_S)
            assert not self._thread.is_alive()
            self._control.close()
            self.insecure()
            self._context.term()
            self._context = None
            problem, self._problem = self._problem, None
            if problem is not None:
                raise problem

    def secure(self, context: zmq.Context[zmq.Socket[bytes]], router: zmq.Socket[bytes]) -> None:
        """What is done to the socket before it listens; see `curve.CurveToy`."""

    def insecure(self) -> None:
        """What is done after it has listened."""

    def _run(self, router: zmq.Socket[bytes], control: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(control, zmq.POLLIN)
        try:
            while control not in (ready := dict(poller.poll())):
                assert router in ready
                *envelope, body = router.recv_multipart()
                reply = self.reply_to(body)
                if reply is not None:
                    router.send_multipart([*envelope, reply])
        except Exception as problem:
            self._problem = problem
        finally:
            router.close()
            control.close()

    def reply_to(self, body: bytes) -> bytes | None:
        answer = self.model.answer(body)
        return self.reply(self.model.bodies[-1], answer)
