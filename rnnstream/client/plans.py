"""Operations of more than one call: a stream of tokens, a listing in pages. No I/O and no clock, as in the core.

A loop follows a plan like this, and decides nothing::

    while True:
        while room := plan.room():
            plan.put(the next `room` tokens of the source, fewer where it ends), and send
        call = plan.waiting()
        if call is None: break
        wait until call.done
        yield each of plan.results()
    at last, however it ends: plan.abandon()
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from rnnstream.client.call import Call, Chain
from rnnstream.client.core import Core, step_keys
from rnnstream.client.token import read_prediction, wire_token
from rnnstream.errors import BadToken, ProtocolError, RequestError
from rnnstream.names import Name
from rnnstream.prediction import Prediction

T = TypeVar("T")
Result = TypeVar("Result", covariant=True)

WINDOW = 256  # tokens in flight: at 5 us a step a worker has a millisecond of work, more than a local round trip takes
BODY = 64  # tokens in a body: the cost of a message is spread thin enough; more only makes the first replies late
_BODIES = 4  # bodies that share the window, so that some are on their way while others are computed
_OVERHEAD = 350  # bytes: keys, numbers and a vocabulary entry of a request or reply, generously
_KEPT = 2  # times limits.reply_bytes: the replies that a worker keeps of a producer in a session
_SHARE = 2  # bodies and windows stay within this part of the worker's limits, the overhead being a guess


class Plan(Protocol[Result]):
    """What the loops of both clients can follow."""

    def room(self) -> int:
        """How many tokens to take from the source now; 0: none, go on to `waiting`."""

    def put(self, tokens: Sequence[Any]) -> None:
        """Take these tokens; fewer than `room` said: the source has ended."""

    def waiting(self) -> Call[Any] | None:
        """The call to wait for, or None: the plan is done."""

    def results(self) -> Iterator[Result]:
        """What came of the call that `waiting` returned; raises its error at its place."""

    def abandon(self) -> None:
        """Go no further: what is not sent stays unsent, what is in flight is received and dropped."""


def is_sequence(tokens: object) -> bool:
    """Whether all tokens are there already (a list, a str, an array); else they are live and may be slow to come."""
    return hasattr(tokens, "__len__") and hasattr(tokens, "__getitem__")


class _Calls(Generic[T]):
    """Calls in the order in which they are waited for."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._calls: deque[Call[Any]] = deque()

    def abandon(self) -> None:
        """See `Plan`."""
        for call in self._calls:
            self._core.give_up(call)
        self._calls.clear()


class Stream(_Calls[Prediction]):
    """Tokens of one session, several in flight.

    A sequence is pipelined: at most `window` tokens sent and not yet handed on, in bodies of up to `BODY`, sized by
    the limits in the worker's `hello`, which is asked for first where it is not known. A live source goes token by
    token, each in a body of its own, and what has come back is handed on before the next one is taken. Behind a token
    that is refused none counts, also if it was sent.

    Args:
        core: of the client.
        session: its name.
        want: as in the protocol.
        surprisal: likewise.
        live: whether the tokens come one by one.
        window: most tokens in flight; None: `WINDOW`, or 1 for a live source.
        only_last: hand on the prediction of the last token only, and ask for no others; one token is held back until
            it is known whether it is the last.

    Raises:
        ValueError: the window is not an int above 0; or from `put`, with `only_last`, when there was no token at all.
    """

    def __init__(
        self,
        core: Core,
        session: Name,
        *,
        want: str | int,
        surprisal: bool,
        live: bool,
        window: int | None = None,
        only_last: bool = False,
    ) -> None:
        super().__init__(core)
        if window is not None and (type(window) is not int or window < 1):
            raise ValueError(f"window is {window!r}; it is an int of tokens, from 1.")
        self._session = session
        self._want = want
        self._request = step_keys(session, want, surprisal)
        self._earlier = step_keys(session, "none", False) if only_last else self._request
        self._held: list[Any] = []  # with only_last: the token that may be the last
        self._only_last = only_last
        self._live = live
        self._window = window or (1 if live else WINDOW)
        self._body = 1 if live else 0  # tokens a body; 0: not known before hello
        self._chain = Chain()  # none of the tokens behind one that was refused counts
        self._in_flight = 0  # tokens
        self._ended = False
        self._failure: BadToken | None = None

    def room(self) -> int:
        """See `Plan`."""
        if not self._body and self._core.hello is not None:
            self._size(self._core.hello)
        if self._ended or self._in_flight + self._body > self._window:
            return 0
        if self._live and self._calls and self._calls[0].done:
            return 0
        return self._body

    def _size(self, hello: dict[str, Any]) -> None:
        limits, model = hello["limits"], hello["model"]
        request = _request_bytes(self._session, model)
        last = _reply_bytes(self._session, self._want, model)
        reply = _reply_bytes(self._session, self._earlier.get("want", self._want), model)
        kept = _KEPT * limits["reply_bytes"] // _SHARE // reply  # what is lost must be there to be repeated
        self._window = max(1, min(self._window, limits["waiting"], limits["replies"], kept))
        self._body = max(
            1,
            min(
                BODY,
                self._window // _BODIES,
                limits["frame_requests"],
                limits["frame_bytes"] // _SHARE // request,
                1 + (limits["reply_bytes"] // _SHARE - last) // reply,
            ),
        )

    def put(self, tokens: Sequence[Any]) -> None:
        """See `Plan`. A token that cannot be written ends it: the error is raised behind the results before it."""
        self._ended = len(tokens) < self._body
        maps: list[dict[str, Any]] = []
        request = self._earlier
        if self._only_last:
            tokens = [*self._held, *tokens]
            if self._ended and not tokens:
                raise ValueError("There is no token to feed, and so no last prediction.")
            self._held = [] if self._ended else [tokens[-1]]
            tokens = tokens if self._ended else tokens[:-1]
        try:
            for x in tokens:
                maps.append({**request, "x": wire_token(x)})
        except BadToken as problem:
            self._failure, self._ended = problem, True
        else:
            if self._only_last and self._ended:
                maps[-1] = {**self._request, "x": maps[-1]["x"]}
        if maps:
            self._in_flight += len(maps)
            self._calls.append(self._core.ask(maps, read_prediction, self._chain))

    def waiting(self) -> Call[Any] | None:
        """See `Plan`."""
        if not self._calls:
            if self._failure is not None:
                raise self._failure
            if self._ended:
                return None
            assert not self._body, "with nothing in flight there is room"
            self._calls.append(self._core.ask_hello())
        return self._calls[0]

    def results(self) -> Iterator[Prediction]:
        """See `Plan`."""
        call = self._calls.popleft()
        if not self._body:
            call.result()  # hello
            return
        self._in_flight -= len(call.requests)
        silent = self._only_last and bool(self._calls or not self._ended)
        last = len(call.requests) - 1
        for place, reply in enumerate(call.replies):
            hand_on = not self._only_last or (place == last and not silent)
            if "error" in reply and (hand_on or reply["error"] != "stale"):  # a stale one counted, and nobody asks what it said
                raise RequestError.from_reply(reply)
            if hand_on:
                yield read_prediction(reply)
        if call.error is not None:
            raise call.error


class _Listing(_Calls[T]):
    """A listing of sessions, page after page."""

    def __init__(self, core: Core, **keys: Any) -> None:
        super().__init__(core)
        self._next: dict[str, Any] | None = {"op": "sessions", **keys}

    def room(self) -> int:
        """See `Plan`; it takes no tokens."""
        return 0

    def put(self, tokens: Sequence[Any]) -> None:
        """See `Plan`; never called."""

    def waiting(self) -> Call[Any] | None:
        """See `Plan`."""
        if not self._calls and self._next is not None:
            self._calls.append(self._core.ask([self._next], dict))
        return self._calls[0] if self._calls else None

    def _page(self) -> dict[str, Any]:
        """The page that has come; the next one is to be asked for, if there is one."""
        call = self._calls.popleft()
        request, self._next = call.requests[0], None
        page: dict[str, Any] = call.result()
        if page.get("next") is not None:
            self._next = {**request, "after": page["next"]}
        if type(page.get("sessions")) is not list:
            raise ProtocolError(f"{self._core.address} answered a listing without sessions; is this an rnnstream worker?")
        return page


class Pages(_Listing[str]):
    """The names of the sessions that begin with a prefix."""

    def __init__(self, core: Core, prefix: str) -> None:
        super().__init__(core, prefix=prefix)

    def results(self) -> Iterator[str]:
        """See `Plan`."""
        yield from self._page()["sessions"]


class AllPages(_Listing[tuple[str, str]]):
    """The owners and names of everybody's sessions that begin with a prefix."""

    def __init__(self, core: Core, prefix: str) -> None:
        super().__init__(core, prefix=prefix, all=True)

    def results(self) -> Iterator[tuple[str, str]]:
        """See `Plan`."""
        page = self._page()
        owners = page.get("owners")
        if type(owners) is not list or len(owners) != len(page["sessions"]):
            raise ProtocolError(f"{self._core.address} did not answer a listing with an owner for each session.")
        yield from zip(owners, page["sessions"], strict=True)


def _request_bytes(session: Name, model: dict[str, Any]) -> int:
    """About how many bytes a step's request has, rather too many."""
    row = 4 * model["input"]["size"] if model["input"].get("kind") == "dense" else 0
    return _OVERHEAD + 4 * len(str(session)) + row  # a character has at most 4 bytes of UTF-8, a number of a row 4


def _reply_bytes(session: Name, want: str | int, model: dict[str, Any]) -> int:
    """About how many bytes the reply to a step has, rather too many."""
    row = 4 * model["output"]["size"]
    size = _OVERHEAD + 4 * len(str(session))
    if want in ("probs", "logits"):
        size += row
    elif type(want) is int:
        size += 20 * want  # an [id, p]
    if want != "none" and model["output"].get("kind") != "categorical":
        size += row  # y
    return size
