"""What both clients do with keys, over real sockets: one suite, run over each."""

from __future__ import annotations

import gc
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import zmq

from rnnstream.client import AsyncClient, Client, handshakes
from rnnstream.client.link import _OPTIONS, Link
from rnnstream.errors import BadKey, ConnectionFailed, NoReply

from .curve import CurveToy
from .toy import DEADLINE_S

SOON_S = 0.3  # a timeout that a test waits for: several handshakes fail in it
CURVE_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE" + bytes(15) + b"\x01" + bytes(31)
Connect = Callable[..., Any]


@pytest.fixture
def alice(curve: CurveToy) -> dict[str, Path]:
    """The keys of a client that is admitted."""
    public, secret = curve.pair("alice")
    curve.admit(public)
    return {"server_key": curve.public, "client_key": secret}


@pytest.fixture
def eve(curve: CurveToy, alice: dict[str, Path]) -> dict[str, Path]:
    """The keys of a client that is not."""
    return {"server_key": curve.public, "client_key": curve.pair("eve")[1]}


@contextmanager
def peer(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of somebody who talks so on each connection, one after the other."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    talk(connection)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def a_worker_with_keys(connection: socket.socket) -> None:
    """The beginning of one, that waits until the other side has given up."""
    connection.sendall(CURVE_GREETING)
    while connection.recv(1000):
        pass


def no_reply(client: Any) -> str:
    with pytest.raises(NoReply) as caught:
        client.ping()
    return str(caught.value)


def test_a_client_with_keys(connect: Connect, curve: CurveToy, alice: dict[str, Path]) -> None:
    client = connect(curve.address, **alice)
    assert client.ping() == {"ok": True, "worker": "toy"}
    session = client.session("s")
    assert session.step(17).y == 17
    assert [prediction.y for prediction in session.stream(range(100, 1100))] == list(range(100, 1100))


def test_paths_may_be_strings(connect: Connect, curve: CurveToy, alice: dict[str, Path]) -> None:
    assert connect(curve.address, **{key: str(path) for key, path in alice.items()}).ping()["ok"]


def test_keys_are_read_once_and_kept_over_reconnections(connect: Connect, curve: CurveToy, alice: dict[str, Path]) -> None:
    client = connect(curve.address, **alice)
    session = client.session("s")
    assert session.step(20).t == 1
    for path in alice.values():
        path.unlink()
    kept = curve.model
    for t in (2, 3):
        curve.stop()
        curve.start()
        curve.model = kept
        assert session.step(20).t == t
        client._link.drop()
        client._core._patience._quiet_since -= 1000.0
        assert client.ping()["ok"]


def test_keys_are_read_at_the_first_connection(connect: Connect, curve: CurveToy, alice: dict[str, Path]) -> None:
    secret = alice["client_key"]
    moved = secret.rename(secret.with_name("moved"))
    client = connect(curve.address, **alice)
    session = client.session("s")
    for use in (client.ping, lambda: session.step(20), lambda: list(session.stream([20]))):
        with pytest.raises(BadKey, match=f"The key file {secret} cannot be read: No such file"):
            use()
    moved.rename(secret)
    secret.chmod(0o644)
    with pytest.raises(BadKey, match=f"chmod 600 {secret}"):
        client.ping()
    secret.chmod(0o600)
    assert session.step(30).t == 1
    assert curve.model.applied == {"s": [30]}


def test_the_public_half_is_no_key_of_a_client(connect: Connect, curve: CurveToy, alice: dict[str, Path]) -> None:
    client = connect(curve.address, server_key=curve.public, client_key=curve.public)
    with pytest.raises(BadKey, match="it is a public key file"):
        client.ping()


@pytest.mark.parametrize("kind", [Client, AsyncClient, Link])
def test_one_key_needs_the_other(kind: Any) -> None:
    with pytest.raises(ValueError, match="server_key is given without client_key; a connection with keys needs both"):
        kind("tcp://127.0.0.1:1", server_key="a.key")
    with pytest.raises(ValueError, match="client_key is given without server_key"):
        kind("tcp://127.0.0.1:1", client_key="a.key_secret")


def test_a_key_that_is_not_admitted(connect: Connect, curve: CurveToy, eve: dict[str, Path]) -> None:
    client = connect(curve.address, timeout_s=SOON_S, **eve)
    with pytest.raises(NoReply) as caught:
        client.session("s").step(1)
    assert str(caught.value) == (
        f"No reply from {curve.address} within 0.3 s: the worker refused this key (is its public half in the worker's --allow "
        "folder?). The request is not sent any more; if it is on its way, it may still count: the session's info tells its t."
    )
    curve.admit(eve["client_key"].with_name("eve.key"))
    client._core.timeout_s = DEADLINE_S
    assert client.session("s").step(2).t == 1, "whoever is admitted later needs no new client"
    assert curve.model.applied == {"s": [2]}


def test_what_is_refused_is_told_no_more_when_it_is_over(connect: Connect, curve: CurveToy, eve: dict[str, Path]) -> None:
    client = connect(curve.address, timeout_s=SOON_S, **eve)
    assert "refused this key" in no_reply(client)
    curve.admit(eve["client_key"].with_name("eve.key"))
    client._core.timeout_s = DEADLINE_S
    assert client.ping()["ok"]
    client._core.timeout_s = SOON_S
    curve.reply = lambda maps, reply: None
    assert no_reply(client) == f"No reply from {curve.address} within 0.3 s."


def test_a_key_that_is_withdrawn(connect: Connect, curve: CurveToy, alice: dict[str, Path]) -> None:
    client = connect(curve.address, **alice)
    assert client.ping()["ok"]
    curve.stop()
    curve.admit()
    curve.start()
    client._core.timeout_s = SOON_S
    assert "refused this key" in no_reply(client)


def test_another_workers_key(connect: Connect, curve: CurveToy, alice: dict[str, Path]) -> None:
    client = connect(curve.address, timeout_s=SOON_S, **alice | {"server_key": curve.pair("another")[0]})
    told = no_reply(client)
    assert told.startswith(f"No reply from {curve.address} within 0.3 s: the handshake failed ")
    assert told.endswith(" times (is server_key the worker's, and does it use CURVE?).")
    assert curve.model.bodies == []


def test_a_client_with_keys_tells_an_open_worker_nothing(connect: Connect, curve: CurveToy, alice: dict[str, Path]) -> None:
    curve.stop()
    curve.curve = False
    curve.start()
    client = connect(curve.address, timeout_s=SOON_S, **alice)
    assert "CURVE" in no_reply(client)
    assert curve.model.bodies == []
    assert connect(curve.address).ping()["ok"]


def test_an_open_peer_that_listens_on_is_told_as_such(connect: Connect, alice: dict[str, Path]) -> None:
    def an_open_worker(connection: socket.socket) -> None:
        connection.sendall(CURVE_GREETING.replace(b"CURVE", b"NULL\0"))
        while connection.recv(1000):
            pass

    with peer(an_open_worker) as address:
        told = no_reply(connect(address, timeout_s=SOON_S, **alice))
    why = "what listens there does not use CURVE (was the worker started with --server-key?)"
    assert told == f"No reply from {address} within 0.3 s: {why}."


def test_a_worker_with_keys_is_told_nothing_without(connect: Connect, curve: CurveToy) -> None:
    no_reply(connect(curve.address, timeout_s=SOON_S))
    assert curve.model.bodies == []


def test_whoever_has_no_keys_is_told_that_a_worker_may_ask_for_them(connect: Connect) -> None:
    with peer(a_worker_with_keys) as address:
        told = no_reply(connect(address, timeout_s=SOON_S))
    why = "this worker may ask for keys (server_key and client_key; --server-key and --key of a command)"
    assert told == f"No reply from {address} within 0.3 s: {why}."


def test_nobody_there_is_told_with_keys_too(connect: Connect, curve: CurveToy, alice: dict[str, Path]) -> None:
    curve.stop()
    told = no_reply(connect(curve.address, timeout_s=SOON_S, **alice))
    assert told == f"Nobody has answered at {curve.address} within 0.3 s; is a worker running there?"


@pytest.mark.parametrize("keys", [False, True])
def test_sending_where_libzmq_has_given_up_is_no_error(eve: dict[str, Path], curve: CurveToy, keys: bool) -> None:
    with peer(a_worker_with_keys) as other, closing(Link(curve.address, **eve) if keys else Link(other)) as link:
        link.open()
        link.send(b"first")
        deadline = time.monotonic() + DEADLINE_S
        assert link._socket is not None
        while link._socket.get(zmq.EVENTS) & zmq.POLLOUT:
            link._socket.poll(5)
            assert time.monotonic() < deadline
        link.send(b"second")
        assert link.receive(0.0) is None


@pytest.mark.parametrize("address", ["nowhere", "tcp://127.0.0.1"])
def test_an_address_that_is_none(connect: Connect, alice: dict[str, Path], address: str) -> None:
    client = connect(address, **alice)
    for _ in range(2):
        with pytest.raises(ConnectionFailed, match=f"Cannot connect to '{address}'"):
            client.ping()
    assert client._link._monitor is None


def test_nothing_is_left_open(connect: Connect, curve: CurveToy, eve: dict[str, Path]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    client = connect(curve.address, timeout_s=SOON_S, **eve)
    no_reply(client)
    assert client._link._monitor is not None
    client.close()
    assert client._link._monitor is None
    gc.collect()  # a socket that was not closed would be warned of
    deadline = time.monotonic() + DEADLINE_S
    while len(os.listdir("/proc/self/fd")) > before + 3:  # of the loop of asyncio
        assert time.monotonic() < deadline


def test_a_client_that_nobody_used_for_long_can_be_closed(alice: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Unread, the monitor is full after 2,000 events, and libzmq's thread waits; whoever then disables it waits for ever."""
    monkeypatch.setitem(_OPTIONS, zmq.RECONNECT_IVL, 1)
    monkeypatch.setattr(handshakes, "EVENTS", zmq.EVENT_ALL)  # five a try, so that it is soon full
    server = socket.create_server(("127.0.0.1", 0))
    with server, closing(Link(f"tcp://127.0.0.1:{server.getsockname()[1]}", **alice)) as link:
        link.open()
        server.settimeout(0.5)  # much longer than between two tries
        came = 0
        with suppress(TimeoutError):
            while came < 1000:
                server.accept()[0].close()
                came += 1
        assert 300 < came < 600, "then it tries no more"
