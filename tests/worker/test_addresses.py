"""Who can reach an address, and how it is bound."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from rnnstream.errors import RnnstreamError
from rnnstream.worker.addresses import MACHINE, OTHERS, OWN, bind, exposed, log_reach, reach

LOCAL = [
    "tcp://127.0.0.1:5555",
    "tcp://127.0.0.1:*",
    "tcp://127.3.2.1:0",
    "tcp://[::1]:5",
    "tcp://[0:0::1]:5",
    "tcp://localhost:*",
]
OPEN = [
    "tcp://*:5555",
    "tcp://0.0.0.0:5555",
    "tcp://[::]:5555",
    "tcp://192.168.0.7:5555",
    "tcp://eth0:5555",
    "tcp://lo:5555",
    "tcp://example.org:5555",
    "tcp://localhost.example.org:5555",
    "tcp://127.0.0.1.example.org:5555",
    "tcp://127.0.0.1@example.org:5555",
    "tcp://127.0.0.1",
    "tcp://128.0.0.1:5555",
    "tcp://[::ffff:127.0.0.1]:5555",
    "tcp://[127.0.0.1]:5555",
    "tcp://::1:5555",
    "tcp://[::1:5555",
    "tcp://0.0.0.0;127.0.0.1:5555",
    "tcp://:5555",
    "tcp://",
    "ipc://@worker",
    "ipc://@",
    "TCP://127.0.0.1:5555",
    "ws://127.0.0.1:5555",
    "tipc://{1,0}",
    "udp://127.0.0.1:5555",
    "pgm://127.0.0.1:5555",
    "://127.0.0.1:5555",
]


@pytest.mark.parametrize("address", LOCAL)
def test_loopback_is_this_machines(address: str) -> None:
    assert reach(address) == MACHINE
    assert exposed([address]) == []


@pytest.mark.parametrize("address", ["ipc:///tmp/worker", "ipc://worker", "ipc://*", "inproc://worker"])
def test_a_file_is_its_owners(address: str) -> None:
    assert reach(address) == OWN
    assert exposed([address]) == []


@pytest.mark.parametrize("address", OPEN)
def test_everything_else_may_be_reached_by_others(address: str) -> None:
    assert reach(address) == OTHERS
    assert exposed(["tcp://127.0.0.1:5555", address]) == [address]


def test_what_is_no_address_is_left_to_bind() -> None:
    assert exposed(["nonsense", "", "127.0.0.1:5555", "tcp:/127.0.0.1:5555"]) == []


@pytest.fixture
def router() -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.linger = 0
        yield socket


@pytest.mark.parametrize("address", [*LOCAL, "tcp://0.0.0.0:*"])
def test_what_is_bound_is_what_was_judged(router: zmq.Socket[bytes], address: str) -> None:
    if "[" in address:
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("this machine has no IPv6")
    real = bind(router, address.rpartition(":")[0] + ":*")
    assert reach(real) == reach(address)
    assert not real.endswith(":*")


def test_the_file_of_a_socket_is_its_owners_alone(router: zmq.Socket[bytes], tmp_path: Path) -> None:
    modes = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            modes.extend(path.stat().st_mode for path in tmp_path.glob("w*"))

    before = os.umask(0)
    try:
        watcher = threading.Thread(target=watch)
        watcher.start()
        for i in range(20):
            assert bind(router, f"ipc://{tmp_path}/w{i}") == f"ipc://{tmp_path}/w{i}"
        done.set()
        watcher.join()
        assert os.umask(0) == 0  # as it was
        watch_once = [path.stat().st_mode for path in tmp_path.glob("w*")]
    finally:
        os.umask(before)
    assert {stat.S_IMODE(mode) for mode in modes + watch_once} == {0o600}
    assert all(stat.S_ISSOCK(mode) for mode in watch_once)


def test_the_umask_is_put_back_when_binding_fails(router: zmq.Socket[bytes], tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        with pytest.raises(RnnstreamError, match="Cannot listen at ipc://"):
            bind(router, f"ipc://{tmp_path}/no/such/folder")
        assert os.umask(0o002) == 0o002
    finally:
        os.umask(before)


def test_a_file_of_zeromqs_own_choice_can_be_reached(
    router: zmq.Socket[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(bind(router, "ipc://*").removeprefix("ipc://"))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path))


def test_the_log_says_who_can_do_what(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    log_reach(["tcp://127.0.0.1:5555", "ipc:///tmp/w", "tcp://0.0.0.0:5555"])
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "open: anybody on this machine can use tcp://127.0.0.1:5555, and every session"),
        ("INFO", "open: this user's processes can use ipc:///tmp/w, and every session"),
        (
            "WARNING",
            "INSECURE: anybody who reaches tcp://0.0.0.0:5555 can read, change and end every session",
        ),
    ]
