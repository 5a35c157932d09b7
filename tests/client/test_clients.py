"""What both clients do, over a real socket: one suite, run over each."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np
import pytest

from rnnstream.errors import (
    BadRequest,
    BadState,
    BadToken,
    Conflict,
    ConnectionFailed,
    Denied,
    Exists,
    NoReply,
    ProtocolError,
    RequestError,
    SessionLost,
    UnknownSession,
)
from rnnstream.wire import replies, requests

from .toy import DEADLINE_S, ToyWorker

SOON_S = 0.1  # a timeout that a test waits for


def test_one_token(client: Any) -> None:
    session = client.session("s")
    assert session.name == "s"
    first, second = session.step(17), session.step(np.int64(4), want=2, surprisal=True)
    assert (first.t, first.y, first.p, first.label, first.opened, first.top) == (1, 17, 0.25, "la", True, None)
    assert (second.t, second.y, second.surprisal, second.opened) == (2, 4, 0.5, False)
    assert second.top == [(0, 0.5), (1, 1 / 3)]


def test_rows_go_and_come_as_float32(client: Any) -> None:
    session = client.session("s")
    assert session.step([0.5, 1]).y.tolist() == [0.5, 1]
    assert session.step(np.array([0.25, 2.0]), want="probs").probs.tolist() == [0, 1, 2, 3, 4]
    assert session.step(np.ones(3), want="logits").logits.dtype == np.float32


def test_t_is_a_precondition(client: Any) -> None:
    session = client.session("s")
    session.step(1, t=1)
    with pytest.raises(Conflict) as caught:
        session.step(1, t=1)
    assert caught.value.t == 1
    assert session.info()["t"] == 1


def test_the_operations(client: Any) -> None:
    hello = client.hello()
    assert (hello["protocol"], hello["worker"]) == (1, "toy")
    assert "id" not in hello
    assert client.ping() == {"ok": True, "worker": "toy"}
    session = client.session("s")
    session.step(1)
    assert session.info() == {"session": "s", "t": 1, "idle_s": 0.5}
    assert session.reset() is None
    assert session.info()["t"] == 0
    assert session.close() is None
    with pytest.raises(UnknownSession) as caught:
        session.step(1)
    assert caught.value.why == "closed"
    with pytest.raises(RequestError):
        client.session("").step(1)


def test_sessions_are_listed_page_after_page(client: Any) -> None:
    names = [f"s{number}" for number in range(8)] + ["t"]
    for name in names:
        client.session(name).reset()
    assert sorted(client.sessions()) == names
    assert list(client.sessions("t")) == ["t"]
    assert list(client.sessions(prefix="u")) == []


def test_everybodys_sessions(client: Any, toy: ToyWorker) -> None:
    """For admins."""
    alice = "A" * 40
    with pytest.raises(Denied, match="no admin's"):
        list(client.all_sessions())
    others = {(owner, f"s{number}"): number for number in range(4) for owner in ("", alice)} | {(alice, "t"): 9}
    toy.model.others = dict(others)
    assert sorted(client.all_sessions()) == sorted(others)
    assert list(client.all_sessions("t")) == [(alice, "t")]
    assert list(client.all_sessions(prefix="u")) == []
    session = client.session("t", owner=alice)
    assert (session.name, session.owner, client.session("t").owner) == ("t", alice, None)
    assert session.info() == {"session": "t", "t": 9}
    assert client.session("s3", owner="").info()["t"] == 3
    assert session.close() is None
    assert (alice, "t") not in list(client.all_sessions())
    with pytest.raises(UnknownSession):
        session.info()
    with pytest.raises(UnknownSession):
        client.session("s3").info()
    for use in (session.step, session.stream, session.feed, session.peek):
        with pytest.raises(ValueError, match="'t' is somebody else's session"):
            use([20])
    for use in (session.open, session.reset, session.snapshot, lambda: session.fork("u"), lambda: session.restore(b"1")):
        with pytest.raises(ValueError, match="'t' is somebody else's session"):
            use()


@pytest.mark.parametrize("owners", [None, [], ["A", "B", "C"]])
def test_a_listing_without_its_owners_is_none(client: Any, toy: ToyWorker, owners: Any) -> None:
    toy.reply = lambda maps, reply: replies.encode({"sessions": ["s", "t"], "owners": owners, "id": maps[0]["id"]})
    with pytest.raises(ProtocolError, match="did not answer a listing with an owner for each session"):
        list(client.all_sessions())


def test_a_sequence_is_streamed_through_a_window(client: Any, toy: ToyWorker) -> None:
    tokens = np.arange(100, 1100)
    found = list(client.session("s").stream(tokens))
    assert [(prediction.t, prediction.y) for prediction in found] == [(t, 99 + t) for t in range(1, 1001)]
    assert max(len(body) for body in toy.model.bodies) == 64


def test_a_str_is_streamed_by_character(client: Any) -> None:
    assert [prediction.y for prediction in client.session("s").stream("aä")] == [97, 228]


def test_live_tokens_may_depend_on_the_prediction_before(client: Any, toy: ToyWorker) -> None:
    last = [100]

    def tokens() -> Iterator[int]:
        while last[-1] < 150:
            yield last[-1] + 1

    for prediction in client.session("s").stream(tokens()):
        last.append(prediction.y)
    assert last == list(range(100, 151))
    assert all(len(body) == 1 for body in toy.model.bodies)


def test_live_tokens_with_a_window(client: Any) -> None:
    found = client.session("s").stream(iter(range(100, 200)), window=7)
    assert [prediction.y for prediction in found] == list(range(100, 200))


def test_live_tokens_leave_before_the_next_is_taken(client: Any, toy: ToyWorker) -> None:
    came = threading.Event()
    toy.reply = lambda maps, reply: came.set() or reply  # type: ignore[func-returns-value]

    def tokens() -> Iterator[int]:
        yield 1
        assert came.wait(DEADLINE_S)
        yield 2

    assert [prediction.t for prediction in client.session("s").stream(tokens(), window=2)] == [1, 2]


def test_streams_take_the_keys_of_a_step(client: Any) -> None:
    found = list(client.session("s").stream([1, 2], want="none", surprisal=True))
    assert [(prediction.y, prediction.surprisal) for prediction in found] == [(None, 0.5)] * 2


def test_a_bad_window_is_refused_at_once(client: Any) -> None:
    with pytest.raises(ValueError, match="window"):
        client.session("s").stream([1], window=0)


def test_feeding(client: Any, toy: ToyWorker) -> None:
    session = client.session("s")
    last = session.feed(range(100, 300))
    assert (last.t, last.y) == (200, 299)
    assert session.feed(iter([7]), want=1, surprisal=True).top == [(0, 0.5)]
    assert [item.get("want") for item in toy.model.steps()] == ["none"] * 199 + [None, 1]
    with pytest.raises(ValueError, match="no token"):
        session.feed([])


def test_an_error_in_a_stream_comes_at_its_place_and_the_client_goes_on(client: Any) -> None:
    session = client.session("s")
    found = []
    with pytest.raises(BadToken):  # noqa: PT012
        for prediction in session.stream([20] * 100 + [13] + [20] * 400):
            found.append(prediction.t)
    assert found == list(range(1, 101))
    assert session.info()["t"] == 100, "none behind it has counted"
    assert session.step(1).t == 101


def test_a_stream_that_is_left_in_the_middle(client: Any) -> None:
    session = client.session("s")
    stream = session.stream(range(100, 5000))
    assert [prediction.t for prediction in islice(stream, 100)] == list(range(1, 101))
    stream.close()
    after = session.step(7)
    assert after.y == 7
    assert after.t <= 100 + 256 + 1
    assert [prediction.y for prediction in session.stream([8, 9])] == [8, 9]


def test_two_streams_at_a_time(client: Any) -> None:
    one, other = client.session("one").stream(range(100, 400)), client.session("other").stream(range(400, 700))
    for left, right in zip(one, other, strict=True):
        assert (right.t, right.y) == (left.t, left.y + 300)


def test_silence_is_no_reply_and_the_next_call_works(connect: Callable[..., Any], toy: ToyWorker) -> None:
    client = connect(timeout_s=SOON_S)
    session = client.session("s")
    toy.reply = lambda maps, reply: None
    with pytest.raises(NoReply, match=rf"{toy.address} within {SOON_S} s.*may still count.*info"):
        session.step(2)
    client._core.timeout_s = DEADLINE_S
    toy.reply = lambda maps, reply: reply
    session.reset()
    assert session.step(3).t == 1


def test_nothing_unsent_is_delivered_late(connect: Callable[..., Any], toy: ToyWorker) -> None:
    toy.stop()
    client = connect(timeout_s=SOON_S)
    for _ in range(3):
        with pytest.raises(NoReply):
            client.session("s").step(1)
    toy.start()
    client._core.timeout_s = DEADLINE_S
    assert client.session("s").step(1).t == 1
    client.close()
    assert connect().ping()["ok"]
    assert len(toy.model.steps()) == 1


def test_a_client_may_be_there_before_its_worker(connect: Callable[..., Any], toy: ToyWorker) -> None:
    toy.stop()
    client = connect()

    def tokens() -> Iterator[int]:
        yield 1
        toy.start()
        yield 2

    assert [prediction.t for prediction in client.session("s").stream(tokens(), window=2)] == [1, 2]


def test_a_worker_that_comes_back_without_its_sessions_is_connected_to_again_and_that_is_said(
    client: Any, toy: ToyWorker
) -> None:
    session = client.session("s")
    assert [session.step(1).t, session.step(1).t] == [1, 2]
    toy.stop()
    toy.start()
    with pytest.raises(SessionLost, match="no longer knows what this client sent to s"):
        session.step(1)
    assert toy.model.ts == {}
    after = session.step(1)
    assert (after.t, after.opened) == (1, True)


def test_a_worker_that_comes_back_with_its_sessions_is_only_waited_for(client: Any, toy: ToyWorker) -> None:
    session = client.session("s")
    kept = toy.model
    stream = session.stream(range(100, 900))
    assert next(stream).t == 1
    toy.stop()
    toy.start()
    toy.model = kept
    assert [prediction.y for prediction in stream] == list(range(101, 900))
    assert kept.applied["s"] == list(range(100, 900))


def test_lost_replies_are_only_time(client: Any, toy: ToyWorker) -> None:
    client.hello()
    lost: list[int] = []

    def sometimes(maps: list[dict[str, Any]], reply: bytes) -> bytes | None:
        lost.append(1)
        return None if len(lost) % 3 == 0 else reply

    toy.reply = sometimes
    found = list(client.session("s").stream(range(100, 1000)))
    assert [(prediction.t, prediction.y) for prediction in found] == [(t, 99 + t) for t in range(1, 901)]
    assert client.session("s").feed(range(100, 200)).t == 1000
    assert toy.model.applied["s"] == [*range(100, 1000), *range(100, 200)]
    assert client.ping()["ok"]


def test_a_busy_worker_is_only_time(client: Any, toy: ToyWorker) -> None:
    busy = replies.encode({"error": "busy", "message": "later", "retry_after_ms": 1})
    answer, chance = toy.model.answer, random.Random(1)

    def moody(body: bytes) -> bytes:
        maps, _ = requests.decode(body, 1000)
        if chance.random() < 0.7 or "session" not in maps[0]:
            return answer(body)
        toy.model.bodies.append(maps)
        return replies.with_id(busy, maps[0]["id"]) + busy * (len(maps) - 1)

    toy.model.answer = moody  # type: ignore[method-assign]
    session = client.session("s")
    assert [session.step(x).t for x in range(20, 30)] == list(range(1, 11))
    assert session.peek([1, 2])[1].t == 12
    assert [prediction.y for prediction in session.stream(range(100, 900))] == list(range(100, 900))
    assert toy.model.applied["s"] == [*range(20, 30), *range(100, 900)]


def test_copies_of_a_session(client: Any) -> None:
    session = client.session("s")
    session.open()
    with pytest.raises(Exists):
        session.open()
    session.feed([1, 2, 3])
    state = session.snapshot()
    other = session.fork("other", t=4)
    assert other.name == "other"
    assert (other.step(7).t, session.info()["t"]) == (4, 3)
    with pytest.raises(Exists):
        session.fork("other")
    other.restore(state)
    assert other.step(7).t == 4
    again = client.session("again")
    again.open(state)
    assert again.step(7).t == 4
    with pytest.raises(BadState):
        again.restore(b"nonsense")
    assert again.step(7).t == 5
    with pytest.raises(UnknownSession):
        client.session("none").restore(state)


def test_peeking_moves_nothing(client: Any) -> None:
    session = client.session("s")
    session.step(1)
    found = session.peek([20, np.int64(21)], want=1, surprisal=True)
    assert [(prediction.t, prediction.y, prediction.surprisal) for prediction in found] == [(2, 20, 0.5), (3, 21, 0.5)]
    assert found[0].top == [(0, 0.5)]
    assert session.step(2).t == 2
    with pytest.raises(BadToken):
        session.peek([object()])
    with pytest.raises(BadRequest, match="1 to 512"):
        session.peek(range(600))


def test_stats(client: Any) -> None:
    assert client.stats() == {"bodies": 1}


def test_another_service_is_a_protocol_error_and_later_a_worker_is_welcome(client: Any, toy: ToyWorker) -> None:
    for nonsense in (b"\xc1", b"", b"\x80", b"hello?"):
        toy.reply = lambda maps, reply, nonsense=nonsense: nonsense  # type: ignore[misc]
        with pytest.raises(ProtocolError, match="rnnstream worker"):
            client.ping()
    toy.reply = lambda maps, reply: reply
    assert client.ping()["ok"]


def test_an_address_that_is_none(connect: Callable[..., Any]) -> None:
    for address in ("127.0.0.1", "tcp://127.0.0.1", "carrier-pigeon://roof"):
        client = connect(address)
        for _ in range(2):
            with pytest.raises(ConnectionFailed, match=f"Cannot connect to '{address}'"):
                client.ping()
            with pytest.raises(ConnectionFailed):
                client.session("s").step(1)
        assert not client._core._new
        assert not client._core._lanes["s"].waiting


def test_ipv6(connect: Callable[..., Any]) -> None:
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError as problem:
        pytest.skip(f"no IPv6 here: {problem}")
    with server:
        server.settimeout(DEADLINE_S)
        client = connect(f"tcp://[::1]:{server.getsockname()[1]}", timeout_s=SOON_S)
        with pytest.raises(NoReply):
            client.ping()
        server.accept()[0].close()


def test_a_constructor_touches_nothing(connect: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        client = connect(f"tcp://127.0.0.1:{server.getsockname()[1]}", timeout_s=SOON_S)
        client.session("s").stream([1])
        with pytest.raises(BlockingIOError):
            server.accept()
        with pytest.raises(NoReply):
            client.ping()
        server.accept()[0].close()


def test_a_closed_client_says_so(client: Any) -> None:
    stream = client.session("s").stream(range(100, 1000))
    next(stream)
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.ping()
    with pytest.raises(RuntimeError, match="closed"):
        list(stream)
    assert client._link._socket is None


@pytest.mark.parametrize("more", [0, 9])
def test_a_stream_that_goes_on_after_the_end_opens_nothing(client: Any, toy: ToyWorker, more: int) -> None:
    stream = client.session("s").stream(iter(range(100, 103 + more)), window=3)
    next(stream)
    client.close()
    with suppress(RuntimeError, ConnectionFailed):  # where not all replies had come
        list(stream)
    assert client._link._socket is None
    assert client._link._context is None


def test_a_client_made_before_a_fork_is_not_the_childs(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session = client.session("s")
    with monkeypatch.context() as patch:
        patch.setattr("os.getpid", lambda: 1)
        with pytest.raises(RuntimeError, match="make a new one in the child"):
            session.step(1)
    assert session.step(1).t == 1


def test_a_fork_needs_a_client_of_its_own(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client.hello()
    session = client.session("s")
    with monkeypatch.context() as patch:
        patch.setattr("os.getpid", lambda: 1)
        for use in (lambda: session.step(1), lambda: list(session.stream([2, 3])), lambda: list(session.stream(iter([4])))):
            with pytest.raises(RuntimeError, match="process"):
                use()
    assert session.step(5).t == 1, "nothing of it was kept to be sent later"


def let_time_pass(client: Any) -> None:
    """As if nobody had looked for long."""
    client._core._patience._quiet_since -= 1000.0
    for call in client._core._pending:
        call.deadline -= 1000.0


def test_a_long_pause_in_a_stream_is_no_timeout(client: Any, toy: ToyWorker) -> None:
    """While nobody asks, replies lie in the socket past their deadline; they are read before they are missed."""
    go = threading.Event()
    toy.reply = lambda maps, reply: reply if maps[0].get("x") != 8 or go.wait(DEADLINE_S) else None
    stream = client.session("s").stream([7, 8, 9], window=2)
    assert next(stream).y == 7
    go.set()
    assert client._link._socket.poll(DEADLINE_S * 1000), "the reply to 8"
    let_time_pass(client)
    assert [prediction.y for prediction in stream] == [8, 9]
    assert [item["x"] for item in toy.model.steps()] == [7, 8, 9], "nothing was sent again"


def test_replies_that_never_come_to_a_stream_that_was_left_do_not_harm_the_next_call(client: Any, toy: ToyWorker) -> None:
    client.hello()
    toy.reply = lambda maps, reply: None if maps[0]["x"] > 100 else reply
    stream = client.session("s").stream(range(100, 1000))
    next(stream)
    stream.close()
    let_time_pass(client)
    assert client.session("t").step(1).t == 1
    assert len({item["x"] for item in toy.model.steps()}) == len(toy.model.steps()), "nothing of it was sent again"
