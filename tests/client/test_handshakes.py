from __future__ import annotations

import struct

import pytest
import zmq

from rnnstream.client.handshakes import EVENTS, OPEN, REFUSED, Handshakes

FAILED = (zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, 32)
ADMITTED = (zmq.EVENT_HANDSHAKE_SUCCEEDED, 0)
AUTH = (zmq.EVENT_HANDSHAKE_FAILED_AUTH, 400)
MISMATCH = (zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)
CRYPTO = (zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC)
QUESTION = "(is server_key the worker's, and does it use CURVE?)"


@pytest.mark.parametrize(
    ("events", "trouble"),
    [
        ([], ""),
        ([ADMITTED], ""),
        ([FAILED], f"the handshake failed once {QUESTION}"),
        ([FAILED, CRYPTO, FAILED], f"the handshake failed 3 times {QUESTION}"),
        ([FAILED] * 1234, f"the handshake failed 1,234 times {QUESTION}"),
        ([AUTH], REFUSED),
        ([FAILED, MISMATCH, FAILED], OPEN),
        ([MISMATCH, AUTH, FAILED, CRYPTO], REFUSED),
        ([AUTH, MISMATCH], OPEN),
        ([AUTH, FAILED, ADMITTED], ""),
        ([AUTH, FAILED, ADMITTED, FAILED], f"the handshake failed once {QUESTION}"),
    ],
)
def test_what_the_events_come_to(events: list[tuple[int, int]], trouble: str) -> None:
    handshakes = Handshakes()
    for number, value in events:
        assert number & EVENTS
        handshakes.take(struct.pack("=HI", number, value))
    assert handshakes.trouble() == trouble
