"""Every exception of rnnstream, in one tree, split by whose fault it is.

::

    RnnstreamError
    ├── RequestError                    the request: what a worker answers with an "error" map (code, message, extra keys)
    │   ├── BadMessage     bad_message      the body is not MessagePack maps
    │   ├── BadRequest     bad_request      an unknown op or key, a wrong type, a key missing      .field
    │   ├── BadToken       bad_token        a token that this model cannot take                     .field
    │   ├── UnknownSession unknown_session  no such session: never, closed, expired                 .why
    │   ├── Exists         exists           open or fork onto a session that is open
    │   ├── Gap            gap              a number beyond the next one                            .expected
    │   ├── Stale          stale            the number counted, its reply is no longer kept         .last
    │   ├── Conflict       conflict         `t` does not hold, or the number was another request's  .field .t
    │   ├── NotFinite      not_finite       the token would make the state NaN or infinite
    │   ├── Busy           busy             the session has too many requests waiting               .retry_after_ms
    │   ├── Full           full             no room for another session, or another producer in it
    │   ├── BadState       bad_state        a snapshot that is damaged, or of another model
    │   ├── StoreError     store_error      it could not be kept, or read: disk full, I/O error     .retry_after_ms
    │   ├── Denied         denied           this key may not do this
    │   ├── TooLarge       too_large        the reply would be over the limit                       .limit
    │   └── Internal       internal         a bug in the worker
    ├── ConnectionFailed                the transport: what a client raises by itself
    │   ├── NoReply                         nothing came back in time (also a TimeoutError)
    │   └── ProtocolError                   what came back is not this protocol
    ├── SessionLost                         the worker no longer has the session that this client was feeding
    ├── BadStore                            the store's file cannot be used: another model's, damaged, in use
    ├── BadKey                              a key file cannot be used: no key in it, or others can read it
    └── ModelError                      the model file or specification cannot be used (also a ValueError)

A request that gets a `RequestError` has changed nothing. The same classes serve on both sides: the engine raises them, the
worker writes them as maps, the client reads the maps and raises them again.
"""

from __future__ import annotations

from typing import Any, ClassVar


class RnnstreamError(Exception):
    """The root of the tree."""


class RequestError(RnnstreamError):
    """A request was refused; the session is as it was.

    Attributes:
        code: the word under the key "error" of the reply.
        extra: the reply's further keys, such as `field` or `why`; each can be read as an attribute.
    """

    code: str = "error"

    def __init__(self, message: str, **extra: Any) -> None:
        super().__init__(message)
        self.extra = extra

    def __getattr__(self, name: str) -> Any:
        extra = self.__dict__.get("extra", {})
        if name in extra:
            return extra[name]
        raise AttributeError(f"{type(self).__name__} has no {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), str(self), self.extra, self.code)

    by_code: ClassVar[dict[str, type[RequestError]]] = {}

    def __init_subclass__(cls) -> None:
        RequestError.by_code[cls.code] = cls

    @staticmethod
    def from_reply(reply: dict[str, Any]) -> RequestError:
        """The exception that an error map stands for; a code of a newer worker becomes a plain `RequestError`."""
        extra = {str(key): value for key, value in reply.items() if key not in ("error", "message", "id")}
        code = str(reply["error"])
        return _rebuild(RequestError.by_code.get(code, RequestError), str(reply.get("message", "")), extra, code)


def _rebuild(cls: type[RequestError], message: str, extra: dict[str, Any], code: str) -> RequestError:
    error = cls(message)
    error.extra, error.code = extra, code
    return error


class BadMessage(RequestError):
    """The body is not MessagePack, not a map, or holds too many maps; what stood before in the body was answered."""

    code = "bad_message"


class BadRequest(RequestError):
    """An unknown op or key, a key that the op does not take, a wrong type or a missing key; `field` names it."""

    code = "bad_request"


class BadToken(RequestError):
    """The token is out of range, not in the vocabulary, of the wrong length, NaN or infinite; `field` names it."""

    code = "bad_token"


class UnknownSession(RequestError):
    """No such session; `why` is "never", "closed" or "expired"."""

    code = "unknown_session"


class Exists(RequestError):
    """A session of this name is open already."""

    code = "exists"


class Gap(RequestError):
    """The number is beyond the next one of its producer in this session, which is `expected`."""

    code = "gap"


class Stale(RequestError):
    """The number counted, but its reply is no longer kept; `last` is the last number that counted."""

    code = "stale"


class Conflict(RequestError):
    """`field` "t": the precondition does not hold. "n": the number was another request's. `t`: the session's step count."""

    code = "conflict"


class NotFinite(RequestError):
    """This token would have made the state NaN or infinite; the session keeps its last finite state."""

    code = "not_finite"


class Busy(RequestError):
    """The session has too many requests waiting; ask again after `retry_after_ms`."""

    code = "busy"


class Full(RequestError):
    """There is no room for another session, or for another producer in this one."""

    code = "full"


class BadState(RequestError):
    """The snapshot is damaged, of another format, or of another model; nothing was changed."""

    code = "bad_state"


class StoreError(RequestError):
    """The store could not keep what the request would have changed, or read its session; ask again after `retry_after_ms`."""

    code = "store_error"


class Denied(RequestError):
    """This key may not do this; the sentence says what, and which limit there is."""

    code = "denied"


class TooLarge(RequestError):
    """The reply would be larger than `limit` bytes; nothing was done."""

    code = "too_large"


class Internal(RequestError):
    """A bug in the worker: it has logged a traceback and goes on."""

    code = "internal"


class ConnectionFailed(RnnstreamError):
    """The client could not get an answer, or could not read it."""


class NoReply(ConnectionFailed, TimeoutError):
    """Nothing came back in time; whether the requests in flight were applied is not known."""


class ProtocolError(ConnectionFailed):
    """What came back is not this protocol: another service, or a version that this client does not speak."""


class SessionLost(RnnstreamError):
    """The worker no longer has the session that this client was feeding: it was restarted, or has forgotten it.

    What was streamed is gone. `reset` starts over; `open` with a snapshot goes on from that, or `restore` where `counted`.

    Attributes:
        counted: the request has counted, as the first of a session that the worker opened anew, or behind it. Else it has
            not, and the session is not open.
    """

    def __init__(self, message: str, *, counted: bool = False) -> None:
        super().__init__(message)
        self.counted = counted


class BadStore(RnnstreamError):
    """A store that cannot be used: another model's, of another format, damaged, or in use; the sentence says which."""


class BadKey(RnnstreamError):
    """A key file that cannot be used; the sentence says why, and what to do."""


class ModelError(RnnstreamError, ValueError):
    """A model file or specification that cannot be used; the sentence says what is wrong in it."""
