"""Reply bodies: from replies to bytes (the worker's side) and from bytes to maps (the client's side)."""

from __future__ import annotations

import struct
from typing import Any

import msgpack

from rnnstream.errors import ProtocolError, RequestError
from rnnstream.wire.limits import SESSION_BYTES
from rnnstream.wire.requests import hold_whole

# A step's ordinary reply {"session": ..., "t": ..., "y": ..., "p": ...[, "label": ...]} is one `struct.pack`, and the label's
# bytes kept for each id: 163 ns, where packing a map takes 314 to 320. Its integers have a fixed width for that reason. With
# the bytes up to t kept for each session it would be 117 ns; but those are 72 bytes a session.
_T, _Y, _P = b"\xa1t\xce", b"\xa1y\xce", b"\xa1p\xcb"  # "t" and "y", uint 32, and "p", float 64
STEP_T = 0xFFFFFFFF  # the largest t that the fixed width holds; replies beyond it are packed as maps
MOST_KEYS = 1024  # of a map: the producers of a session, 256, and what is yet to come; int keys can be made to collide

encode = msgpack.Packer(autoreset=True).pack


def _heads(label: bool) -> list[bytes]:
    """The bytes in front of the session's name, by the bytes that the name has."""
    head = (b"\x85" if label else b"\x84") + b"\xa7session"
    return [head + (bytes((0xA0 | size,)) if size < 32 else bytes((0xD9, size))) for size in range(SESSION_BYTES + 1)]


_HEADS = {label: _heads(label) for label in (False, True)}
_PACKS = [struct.Struct(f">{len(head)}s{size}s3sI3sI3sd").pack for size, head in enumerate(_HEADS[False])]


def step_label(label: str) -> bytes:
    """The last bytes of a step's ordinary reply where there is a vocabulary."""
    return b"\xa5label" + encode(label)


def step_replies(
    sessions: list[bytes], ts: list[int], ys: list[int], ps: list[float], labels: list[bytes] | None
) -> list[bytes]:
    """The ordinary replies of a wave.

    Args:
        sessions: their names in UTF-8, each of at most `SESSION_BYTES` bytes.
        ts: step counts after the token, each at most `STEP_T`.
        ys: ids of the most likely next tokens.
        ps: their probabilities.
        labels: a `step_label` for each id of the vocabulary, where there is one.

    Raises:
        struct.error: a t beyond `STEP_T`.
    """
    packs, heads, t_key, y_key, p_key = _PACKS, _HEADS[labels is not None], _T, _Y, _P
    replies = [
        packs[size](heads[size], session, t_key, t, y_key, y, p_key, p)
        for size, session, t, y, p in zip(map(len, sessions), sessions, ts, ys, ps, strict=True)
    ]
    return replies if labels is None else [reply + labels[y] for reply, y in zip(replies, ys, strict=True)]


def step_reply(session: bytes, t: int, y: int, p: float, labels: list[bytes] | None) -> bytes:
    """`step_replies` for one."""
    size = len(session)
    reply = _PACKS[size](_HEADS[labels is not None][size], session, _T, t, _Y, y, _P, p)
    return reply if labels is None else reply + labels[y]


def with_id(reply: bytes, id: str | int | bytes) -> bytes:
    """A reply of few keys, an error too, with an id behind them: one more entry in a map whose first byte counts them."""
    return bytes((reply[0] + 1,)) + reply[1:] + b"\xa2id" + encode(id)


def with_again(reply: bytes) -> bytes:
    """A kept reply, likewise, marked as one."""
    return bytes((reply[0] + 1,)) + reply[1:] + b"\xa5again\xc3"


def error_map(error: RequestError, **echo: Any) -> dict[str, Any]:
    """The map that tells a client of an error; `echo` is the request's session and id, where they could be read."""
    return {"error": error.code, "message": str(error), **error.extra, **echo}


def decode(body: bytes) -> list[dict[str, Any]]:
    """The reply maps of a body.

    Raises:
        ProtocolError: the body is not whole MessagePack maps.
    """
    unpacker = msgpack.Unpacker(strict_map_key=False, max_map_len=MOST_KEYS, max_ext_len=0, max_buffer_size=len(body) + 1)
    unpacker.feed(body)
    try:
        if 0xDC in body or 0xDD in body:  # the first bytes of long arrays
            hold_whole(body, len(body))
        maps = list(unpacker)
        unpacker.feed(b"\xc0")  # comes out as nil only if no object before it was cut short
        whole = next(unpacker, "cut") is None
    except Exception as problem:  # not this protocol: msgpack raises half a dozen unrelated classes
        raise ProtocolError(f"The reply is not MessagePack ({problem!r:.120}); is this an rnnstream worker?") from None
    if not whole or not all(type(item) is dict and ("error" not in item or _is_error(item)) for item in maps):
        raise ProtocolError("The reply is not a row of whole MessagePack maps; is this an rnnstream worker?")
    return maps


def _is_error(item: dict[str, Any]) -> bool:
    return type(item["error"]) is type(item.get("message", "")) is str
