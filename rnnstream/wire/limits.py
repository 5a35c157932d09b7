"""The bounds of the protocol, each with its reason. `hello` tells a client those that it must keep."""

from __future__ import annotations

from dataclasses import dataclass

PROTOCOL = 1
SESSION_BYTES = 200  # a name in UTF-8: fits any path or key that a user would name a stream by, and an error sentence
ID_BYTES = 64  # a request id comes back in its reply, so it must not be a way to make replies large
PRODUCER_BYTES = 64  # a producer's id: room for a UUID or a hash in hexadecimal
PEEK_TOKENS = 512  # of one peek: as many as a body has requests, and they take as many waves
PAGE = 1000  # session names a page at most: 200 kB of names
ENVELOPE_FRAMES = 8  # a REQ's delimiter and a few proxies
ENVELOPE_FRAME_BYTES = 255  # the longest routing id


@dataclass(frozen=True)
class Limits:
    """What one worker accepts, as it says in `hello`, which adds the bounds of numbering.

    Attributes:
        frame_bytes: largest frame that is read; the connection of a larger one is cut by the transport. A full body of
            tokens fits, whatever the length of the names.
        frame_requests: most maps in one body: 512 decode in a quarter of a millisecond, for which others have to wait.
        waiting: most requests of one session that wait their turn, beyond which it is `busy`; two bodies of full length.
        reply_bytes: largest body that is sent, so that a client that does not read holds a bounded amount of memory; a full
            body of requests fits when none of them wants more than a kilobyte.
    """

    frame_bytes: int = 1 << 20
    frame_requests: int = 512
    waiting: int = 1024
    reply_bytes: int = 512 << 10
