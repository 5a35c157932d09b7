"""Reply bodies: from replies to bytes (the worker's side) and from bytes to maps (the client's side)."""

from __future__ import annotations

import struct
from typing import Any

import msgpack

from rnnstream.errors import ProtocolError, RequestError
from rnnstream.wire.requests import hold_whole

# A step's ordinary reply {"session": ..., "t": ..., "y": ..., "p": ...[, "label": ...]} is put together from a head kept for
# the session, one `struct.pack`, and the label's bytes kept for each id: 170 ns, where packing a map takes 520. Its
# integers have a fixed width for that reason.
_TAIL = struct.Struct(">I3sI3sd")
_Y = b"\xa1y\xce"  # "y", uint 32
_P = b"\xa1p\xcb"  # "p", float 64
STEP_T = 0xFFFFFFFF  # the largest t that the fixed width holds; replies beyond it are packed as maps
MOST_KEYS = 1024  # of a map: the producers of a session, 256, and what is yet to come; int keys can be made to collide

encode = msgpack.Packer(autoreset=True).pack


def step_head(session: str, label: bool) -> bytes:
    """The bytes of a step's ordinary reply up to the number behind "t"."""
    return (b"\x85" if label else b"\x84") + b"\xa7session" + encode(session) + b"\xa1t\xce"


def step_label(label: str) -> bytes:
    """The last bytes of a step's ordinary reply where there is a vocabulary."""
    return b"\xa5label" + encode(label)


def step_replies(heads: list[bytes], ts: list[int], ys: list[int], ps: list[float], labels: list[bytes] | None) -> list[bytes]:
    """The ordinary replies of a wave.

    Args:
        heads: one `step_head` for each reply.
        ts: step counts after the token, each at most `STEP_T`.
        ys: ids of the most likely next tokens.
        ps: their probabilities.
        labels: a `step_label` for each id of the vocabulary, where there is one.

    Raises:
        struct.error: a t beyond `STEP_T`.
    """
    pack, y_key, p_key = _TAIL.pack, _Y, _P
    if labels is None:
        return [head + pack(t, y_key, y, p_key, p) for head, t, y, p in zip(heads, ts, ys, ps, strict=True)]
    return [head + pack(t, y_key, y, p_key, p) + labels[y] for head, t, y, p in zip(heads, ts, ys, ps, strict=True)]


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
