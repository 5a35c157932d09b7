"""The blocking client: the core and the plans decide what is sent and what comes of a reply; here is the waiting."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from rnnstream.client.call import Call
from rnnstream.client.core import Core
from rnnstream.client.link import Alone, Link
from rnnstream.client.plans import AllPages, Pages, Plan, Stream, is_sequence
from rnnstream.client.token import Token
from rnnstream.keys import KeyPath
from rnnstream.names import Name, Owned
from rnnstream.prediction import Prediction

T = TypeVar("T")


class Client:
    """A connection to a worker, for one thread of one process at a time.

    The first operation connects; nobody has to be there before. Close it at the end, or use it in a `with` statement.

    Whatever changes a session is numbered, so that it counts once, however often it is sent. What is lost with a
    connection, or comes when a session has too much to do, is sent again, and takes time only. When a client knows more
    than 65,536 sessions, it forgets those at rest: that the worker lost one, only `Prediction.opened` tells then.

    Every operation raises one of these, and the client can be used after each of them:

    * `RequestError` (by its code one of its subclasses): the worker refuses, and the session is as it was. The exception
      is `Stale`: the request counted, but the worker no longer keeps its reply. `Busy` comes only when the worker was
      busy for the whole timeout.
    * `NoReply`: no answer came in time. The client has stopped sending the request; what is on its way may still count.
      `Session.info` tells the session's t. Where the keys do not fit, it is all that comes; the sentence says so.
    * `SessionLost`: the worker has no session any more that this client has fed, or none that it knows to be the same; it
      was restarted without a store, for instance. The request has not counted, unless the message says that the session
      was opened anew. The client can go on: with `Session.reset`, `open`, or simply a token.
    * `ProtocolError`: what answers is no rnnstream worker.
    * `BadKey`: a key file cannot be used; only before the first connection, when both are read, once.

    Args:
        address: a ZeroMQ endpoint, such as "tcp://127.0.0.1:5555".
        timeout_s: how long each message is waited for, with all its repetitions, in seconds above 0; else `ValueError`.
        server_key: for a worker with keys, the path of its public key file. All is encrypted then, and nothing is said to a
            worker that does not have the secret half.
        client_key: the path of this client's secret key file, by whose key the worker knows it. A path, and not the key
            itself, as for `server_key`; one without the other is a `ValueError`.
    """

    def __init__(
        self, address: str, timeout_s: float = 10.0, *, server_key: KeyPath | None = None, client_key: KeyPath | None = None
    ) -> None:
        self._core = Core(address, timeout_s, secrets.token_urlsafe(16))
        self._link = Link(address, server_key=server_key, client_key=client_key)
        self._alone = Alone()
        self._left: deque[Plan[Any]] = deque()  # to be abandoned: a generator may end anywhere, at the collector's whim

    def session(self, name: str, *, owner: str | None = None) -> Session:
        """The session of this name; asks nobody, so that it may or may not exist.

        Args:
            name: of the session.
            owner: for an admin of a worker with keys: whose session it is, by the public key (40 characters), or "" if it is
                nobody's, as `all_sessions` tells. Such a session has `info` and `close`; all else is a `ValueError`. None: it
                is one's own.
        """
        return Session(self, name, owner=owner)

    def hello(self) -> dict[str, Any]:
        """Who is there: protocol, version, limits and model, as docs/protocol.md lists them."""
        return self._ask(self._core.ask_hello)

    def ping(self) -> dict[str, Any]:
        """Have the worker make a step on a scratch row, and answer."""
        return self._ask(self._core.ping)

    def stats(self) -> dict[str, Any]:
        """The worker's counters, as docs/protocol.md lists them."""
        return self._ask(self._core.stats)

    def sessions(self, prefix: str = "") -> Iterator[str]:
        """The names of the sessions that begin with `prefix`, in no given order; asked for a page at a time."""
        return self._follow(Pages(self._core, prefix), ())

    def all_sessions(self, prefix: str = "") -> Iterator[tuple[str, str]]:
        """The owner and the name of everybody's sessions, as `sessions` lists one's own; `Denied` to whoever is no admin.

        An owner is a public key, or "" where a session is nobody's.
        """
        return self._follow(AllPages(self._core, prefix), ())

    def close(self) -> None:
        """Close the connection; what is under way is not waited for. Can be called again."""
        with self._alone:
            self._core.close()
            self._link.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _ask(self, make: Callable[[], Call[T]]) -> T:
        with self._alone:
            return self._settle(make()).result()

    def _follow(self, plan: Plan[T], source: Iterable[Any]) -> Generator[T, None, None]:
        tokens = iter(source)
        try:
            while True:
                while room := plan.room():
                    some = list(islice(tokens, room))
                    with self._alone:
                        plan.put(some)
                        self._send()
                with self._alone:
                    call = plan.waiting()
                    if call is None:
                        return
                    self._settle(call)
                yield from plan.results()
        finally:
            self._left.append(plan)

    def _settle(self, call: Call[T]) -> Call[T]:
        """Return the call when it is done."""
        try:
            self._send()
            while not call.done:
                self._take(self._link.receive((self._core.deadline() or 0.0) - time.monotonic()))
                self._send()
        finally:
            self._core.give_up(call)
        return call

    def _send(self) -> None:
        core, link = self._core, self._link
        while self._left:
            self._left.popleft().abandon()
        if core.closed:
            return
        link.open()
        while core.overdue(time.monotonic()):  # replies that nobody came for; they may lie there
            self._take(link.receive(0.0))
            link.open()
        for body in core.outgoing(time.monotonic()):
            link.send(body)

    def _take(self, body: bytes | None) -> None:
        core, now = self._core, time.monotonic()
        core.expire(now, self._link.trouble()) if body is None else core.received(body, now)
        if core.take_renewal():
            self._link.drop()


class Session:
    """One session of a client's worker, by name: light, and good for as long as the client.

    Made by `Client.session`.

    Attributes:
        name: of the session.
        owner: its owner's public key, where it is somebody else's; None for one's own.
    """

    def __init__(self, client: Client, name: str, *, owner: str | None = None) -> None:
        self._client = client
        self._core = client._core
        self._full: Name = name if owner is None else Owned(owner, name)
        self.name = name
        self.owner = owner

    def step(self, x: Token, *, want: str | int = "argmax", surprisal: bool = False, t: int | None = None) -> Prediction:
        """Send one token and wait for what the network says after it.

        Args:
            x: an id or a str of the vocabulary; for dense models a row of numbers (list, tuple, array) or its bytes as
                little-endian float32.
            want: "argmax", "none", "probs", "logits", or an int k from 1 to 100 for the k most likely.
            surprisal: also score this token against the prediction before it.
            t: apply it only as the session's step t, else `Conflict`.

        Raises:
            BadToken: this cannot be a token; nothing was sent, or the worker refused it.
            RequestError: the worker refused; the session is as it was. `Stale`: the token counted, its reply is gone.
            NoReply: the token is not sent any more, and may still count; `info` tells the session's t.
            SessionLost: the worker no longer has the session that this client was feeding; see `Client`.
        """
        return self._client._ask(lambda: self._core.step(self._full, x, want, surprisal, t))

    def stream(
        self, tokens: Iterable[Token], *, want: str | int = "argmax", surprisal: bool = False, window: int | None = None
    ) -> Generator[Prediction, None, None]:
        """The prediction after each of the tokens, in order.

        A sequence (what has a length and an index: list, str, range, array; a str goes character by character) is
        pipelined: up to `window` tokens are in flight, several to a message. Anything else is live and goes token by
        token: the next one is taken when the prediction of the one before has been handed on, unless `window` allows
        more.

        On an error, the predictions before it come first; then it is raised, and the stream is over. None of the tokens
        behind one that the worker refused counts, sent or not. Behind any other error, and behind the place where a
        generator is left in the middle, up to `window` tokens may be on their way and count: `info` tells the session's
        t. The client can be used at once. With window 1 nothing is ever behind.

        Args:
            tokens: each as in `step`.
            want: as in `step`.
            surprisal: as in `step`.
            window: most tokens in flight, from 1; None: 256, or fewer if the worker's limits say so; 1 for live ones.

        Raises:
            ValueError: at once, for a window below 1.
            RequestError: as in `step`, at the place of its token.
            NoReply: the tokens in flight are not sent any more, and may still count.
            SessionLost: as in `step`, at the place of its token.
        """
        plan = Stream(self._core, self._full, want=want, surprisal=surprisal, live=not is_sequence(tokens), window=window)
        return self._client._follow(plan, tokens)

    def feed(self, tokens: Iterable[Token], *, want: str | int = "argmax", surprisal: bool = False) -> Prediction:
        """Send many tokens and return the prediction after the last, the only one that is computed.

        All tokens are pipelined, those of an iterator too: it is read ahead, up to 64 tokens to a message. Where
        tokens are slow to come, and should count as they do, use `stream` with want "none".

        Args:
            tokens: at least one, each as in `step`.
            want: what to say after the last token, as in `step`.
            surprisal: score the last token, as in `step`.

        Raises:
            ValueError: there is no token.
            RequestError: the first that came; no token behind it counts. `Stale` only where the last token's reply is gone.
            NoReply, SessionLost: as in `stream`; how many of the tokens counted is not known.
        """
        plan = Stream(self._core, self._full, want=want, surprisal=surprisal, live=False, only_last=True)
        [last] = self._client._follow(plan, tokens)
        return last

    def info(self) -> dict[str, Any]:
        """Its t, age, idle time and more, as docs/protocol.md lists them; `UnknownSession` where there is none."""
        return self._client._ask(lambda: self._core.info(self._full))

    def peek(self, xs: Iterable[Token], *, want: str | int = "argmax", surprisal: bool = False) -> list[Prediction]:
        """What the network would say after each of these tokens if they came next; the session does not move.

        Args:
            xs: 1 to 512 tokens, each as in `step`.
            want: as in `step`.
            surprisal: as in `step`.

        Returns:
            A prediction for each token; their t are the session's t + 1, + 2, ...

        Raises:
            BadToken: one of them cannot be a token.
            UnknownSession: there is no such session.
        """
        some = list(xs)  # making them may use the client
        return self._client._ask(lambda: self._core.peek(self._full, some, want, surprisal))

    def open(self, state: bytes | None = None, *, t: int | None = None) -> None:
        """Create it, at its initial state or from a snapshot.

        Args:
            state: what `snapshot` gave, of any session of the same model; None: the initial state, step 0.
            t: as in `reset`.

        Raises:
            Exists: it is open already.
            BadState: the snapshot is damaged, or of another model.
        """
        self._client._ask(lambda: self._core.change("open", self._full, t, state=state))

    def reset(self, *, t: int | None = None) -> None:
        """Put it at its initial state, step 0; creates it where there is none.

        Args:
            t: only if this is the step count that the session is to have next, as for a step; else `Conflict`.
        """
        self._client._ask(lambda: self._core.change("reset", self._full, t))

    def fork(self, to: str, *, t: int | None = None) -> Session:
        """Copy it, as it is now, to a new name; the two then go their own ways.

        Args:
            to: the name of the copy.
            t: as in `reset`.

        Returns:
            The copy.

        Raises:
            Exists: a session of that name is open.
            UnknownSession: there is no session to copy.
        """
        self._client._ask(lambda: self._core.fork(self._full, to, t))
        return self._client.session(to)

    def snapshot(self) -> bytes:
        """Its state as bytes, for `open` and `restore`; raises `UnknownSession` where there is none."""
        return self._client._ask(lambda: self._core.snapshot(self._full))

    def restore(self, state: bytes, *, t: int | None = None) -> None:
        """Put it, which is open, into the state and step count of a snapshot; changes nothing where that fails.

        Args:
            state: what `snapshot` gave, of any session of the same model.
            t: as in `reset`.

        Raises:
            BadState: the snapshot is damaged, or of another model.
            UnknownSession: there is no such session; see `open`.
        """
        self._client._ask(lambda: self._core.change("restore", self._full, t, state=state))

    def close(self, *, t: int | None = None) -> None:
        """Forget its state; steps get `UnknownSession` for a while, until a `reset` or `open`. For `t` see `reset`.

        Somebody else's is closed without a number. Where the reply to that is lost, `UnknownSession` with `why` "closed" may
        come of this very close.
        """
        self._client._ask(lambda: self._core.change("close", self._full, t))
