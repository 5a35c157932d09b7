"""Request bodies: from bytes to checked requests (the worker's side) and from requests to bytes (the client's side).

A body is one MessagePack map or several back to back. `OPS` is the whole table of which operation takes which keys.
"""

from __future__ import annotations

import hashlib
import reprlib
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgpack

from rnnstream.errors import BadMessage, BadRequest
from rnnstream.names import Name
from rnnstream.wire.limits import ID_BYTES, PAGE, PEEK_TOKENS, PRODUCER_BYTES, SESSION_BYTES

COMMON = ("op", "id")  # keys that every operation takes
NUMBERING = ("t", "producer", "n", "ack")  # keys of the operations that change a session
OPS: dict[str, tuple[str, ...]] = {  # the further keys of each; those with "session" name one and wait their turn in it
    "step": ("session", "x", "want", "surprisal", *NUMBERING),
    "open": ("session", "state", *NUMBERING),
    "reset": ("session", *NUMBERING),
    "close": ("session", "owner", *NUMBERING),
    "fork": ("session", "to", *NUMBERING),
    "restore": ("session", "state", *NUMBERING),
    "peek": ("session", "xs", "want", "surprisal"),
    "snapshot": ("session",),
    "info": ("session", "owner"),
    "hello": (),
    "ping": (),
    "sessions": ("prefix", "after", "limit", "all"),
    "stats": (),
}
MOST_KEYS = 16  # of a map: no operation takes as many
REQUIRED = ("session", "x", "xs", "to", "state")  # where an operation takes them at all
OPTIONAL = (("open", "state"),)  # but for these
OWNER_CHARACTERS = 40  # of a public key in Z85

_pack = msgpack.Packer(autoreset=True).pack  # half the time of packb, which makes a packer each time
_REPR = reprlib.Repr()  # of bounded length and depth
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother, _REPR.maxlong = 2, 60, 60, 60


@dataclass(slots=True)
class Request:
    """One checked request. `x` and `xs` are as they came: only the model knows which tokens it takes.

    `session` and `to` become the owner's where the worker knows its users by their keys. Keys that were absent have their
    defaults; `id`, `t`, `state`, `producer` and `ack` are None then.
    """

    op: str = "step"
    session: Name = ""
    x: Any = None
    want: str | int = "argmax"
    surprisal: bool = False
    t: int | None = None
    producer: str | None = None
    n: int = 0
    ack: int | None = None
    to: Name = ""
    state: bytes | None = None
    xs: Any = None
    id: str | int | bytes | None = None
    prefix: str = ""
    after: int = 0
    limit: int = 100
    owner: str | None = None
    all: bool = False
    _identity: Any = None

    def identity(self) -> Any:
        """What makes a repeat the same request: its op and what it was given, small whatever its size.

        `x` has to be resolved: an id, or an array.
        """
        if self._identity is None:
            if self.op == "step":
                self._identity = self.x if type(self.x) is int else _fingerprint(self.x.tobytes())
            else:
                self._identity = self.op, str(self.to), None if self.state is None else _fingerprint(self.state)
        return self._identity


def _fingerprint(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def encode(requests: list[dict[str, Any]]) -> bytes:
    """A body of these maps, back to back."""
    return b"".join([_pack(request) for request in requests])


def decode(body: bytes, most: int) -> tuple[list[dict[Any, Any]], BadMessage | None]:
    """The maps of a body, and what is wrong behind them, if anything is.

    Args:
        body: as it was received.
        most: how many maps it may hold.
    """
    items: list[Any] = []
    try:
        if 0xDC in body or 0xDD in body:  # the first bytes of long arrays
            hold_whole(body, most)
        unpacker = _unpacker(body)
        items = list(islice(unpacker, most))
        if _at_end(unpacker) and items and set(map(type, items)) == {dict}:
            return items, None
    except Exception:  # a peer's bytes: msgpack raises half a dozen unrelated classes for them
        pass
    del items  # which are made once more
    return _explained(body, most)


def hold_whole(body: bytes, most: int) -> None:
    """Look through the objects of a body, of which nothing is made: so many, and one more, which is told by its number alone.

    An array gets its place in memory where it begins. A thousand of them, each within the one before and as long as the body
    would just hold, take 80 MB and 100 ms of a body of 10 kB (8 GB of a megabyte with msgpack 1.1), though nothing is in them.
    Where each is as long as it says, all the arrays together are no longer than the body.

    Raises:
        Exception: whatever msgpack raises: one is cut short, nested too deeply, or no MessagePack.
    """
    ahead = _unpacker(body)
    for _ in range(most + 1):
        if ahead.tell() == len(body):
            break
        ahead.skip()


def _unpacker(body: bytes) -> msgpack.Unpacker:
    # The protocol has neither large maps nor extension types, and ints or timestamps as keys could be made to collide.
    unpacker = msgpack.Unpacker(strict_map_key=False, max_map_len=MOST_KEYS, max_ext_len=0, max_buffer_size=len(body) + 1)
    unpacker.feed(body)
    return unpacker


def _at_end(unpacker: msgpack.Unpacker) -> bool:
    """Whether everything was read. An iteration also ends, without a word, where an object is cut short.

    One nil more comes out as nil, and as the last object, only if nothing was left before it.
    """
    unpacker.feed(b"\xc0")
    return next(unpacker, unpacker) is None and next(unpacker, unpacker) is unpacker


def _explained(body: bytes, most: int) -> tuple[list[dict[Any, Any]], BadMessage]:
    """The maps of a body that is not right, and what is wrong behind them."""
    if not body:
        return [], BadMessage(
            "The body is empty, or stood behind more than 8 frames, or one of more than 255 bytes; send one MessagePack "
            "map, or several back to back."
        )
    items: list[Any] = []
    problem = "is cut short"
    ahead, unpacker = _unpacker(body), _unpacker(body)
    try:
        while True:
            ahead.skip()  # see `hold_whole`
            item = next(unpacker)
            if type(item) is not dict:
                problem = f"is of type {type(item).__name__}; a request is a map"
                break
            if len(items) == most:
                problem = f"is one more than the limit of {most} maps a body"
                break
            items.append(item)
    except msgpack.OutOfData:
        pass
    except Exception as error:  # see above
        problem = f"is not MessagePack: {str(error) or type(error).__name__:.100}"
    return items, BadMessage(f"Object {len(items) + 1} of the body {problem}; nothing from there on was read.")


def parse(item: dict[Any, Any]) -> Request:
    """Check one map against the table of operations.

    Raises:
        BadRequest: with `field`, for an unknown op or key, a wrong type or range, or a missing key.
    """
    op = item.get("op", "step")
    takes = OPS.get(op) if isinstance(op, str) else None
    if takes is None:
        raise BadRequest(f"op is {_show(op)}; it is one of {', '.join(OPS)}.", field="op")
    request = Request(op=op)
    for key, value in item.items():
        if key not in takes and key not in COMMON:
            raise BadRequest(
                f"{op} has no key {_show(key)}; it takes {', '.join((*takes, *COMMON))}.",
                field=key[:ID_BYTES] if isinstance(key, str) else _show(key),
            )
        if key in ("op", "x"):
            continue
        problem = _problem(key, value)
        if problem:
            raise BadRequest(f"{key} is {_show(value)}; {problem}.", field=key)
        setattr(request, key, value)
    for key in REQUIRED:
        if key in takes and key not in item and (op, key) not in OPTIONAL:
            raise BadRequest(f"{op} needs the key {key!r}.", field=key)
    numbering = [key for key in ("producer", "n", "ack") if key in item]
    if numbering and numbering[:2] != ["producer", "n"]:
        raise BadRequest(f"{op} has {numbering[0]}; producer and n come together, and ack only with them.", field=numbering[0])
    request.x = item.get("x")
    return request


def readable(item: Any) -> dict[str, Any]:
    """The `session` and `id` of a map that may be wrong elsewhere, for its error reply: only those that are valid."""
    found: dict[str, Any] = {}
    if isinstance(item, dict):
        for key in ("session", "id"):
            if key in item and not _problem(key, item[key]):
                found[key] = item[key]
    return found


def _problem(key: str, value: Any) -> str:
    """What the value of this key should have been, or "" if it is right."""
    whole = type(value) is int
    match key:
        case "session" | "to" | "prefix":
            least = 0 if key == "prefix" else 1
            if isinstance(value, str) and least <= _utf8_size(value) <= SESSION_BYTES:
                return ""
            return f"it is a str of {least} to {SESSION_BYTES} bytes in UTF-8"
        case "id":
            size = _utf8_size(value) if isinstance(value, str) else len(value) if isinstance(value, bytes) else 0
            if whole or (isinstance(value, str | bytes) and size <= ID_BYTES):
                return ""
            return f"it is an int, or a str or bytes of at most {ID_BYTES} bytes"
        case "want":
            return "" if whole or isinstance(value, str) else "it is a str or an int"  # which of them, the model decides
        case "owner":
            if isinstance(value, str) and value.isascii() and len(value) in (0, OWNER_CHARACTERS):
                return ""
            return f'it is a public key, {OWNER_CHARACTERS} characters of Z85, or "" for what is nobody\'s'
        case "surprisal" | "all":
            return "" if isinstance(value, bool) else "it is true or false"
        case "t" | "after" | "ack":
            return "" if whole and value >= 0 else "it is an int, from 0"
        case "n":
            return "" if whole and value >= 1 else "it is an int, from 1"
        case "producer":
            if isinstance(value, str) and 1 <= _utf8_size(value) <= PRODUCER_BYTES:
                return ""
            return f"it is a str of 1 to {PRODUCER_BYTES} bytes in UTF-8"
        case "state":
            return "" if isinstance(value, bytes) else "it is bin, as snapshot gives it"
        case "xs":
            if isinstance(value, list) and 1 <= len(value) <= PEEK_TOKENS:
                return ""
            return f"it is a list of 1 to {PEEK_TOKENS} tokens"
        case _:  # limit
            return "" if whole and 1 <= value <= PAGE else f"it is an int from 1 to {PAGE}"


def _utf8_size(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:  # half of a surrogate pair: not UTF-8 of any size that is allowed
        return SESSION_BYTES + 1


def _show(value: Any) -> str:
    """The value as it goes into a sentence: short, whatever a peer has sent."""
    text = _REPR.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
