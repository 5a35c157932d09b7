"""Keys in files: read when a worker starts, and again when something has changed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import zmq

from rnnstream.errors import BadKey
from rnnstream.keys import read_pair, write_pair
from rnnstream.worker import access as module
from rnnstream.worker.access import Access, Folder


def put(folder: Path, name: str) -> str:
    """A public key in a folder, written at once as a move does."""
    folder.mkdir(exist_ok=True)
    made = folder.parent / "made"
    made.mkdir(exist_ok=True)
    public, secret = write_pair(made / name)
    key, _ = read_pair(secret)
    os.rename(public, folder / public.name)
    return key


@pytest.fixture
def access(tmp_path: Path) -> Access:
    write_pair(tmp_path / "worker")
    for name in ("allow", "admin"):
        (tmp_path / name).mkdir()
    return Access(tmp_path / "worker.key_secret", tmp_path / "allow", tmp_path / "admin")


def secured(access: Access) -> dict[str, object]:
    """The options that the socket has got."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        access.secure(socket)
        names = ("MECHANISM", "CURVE_SERVER", "ZAP_DOMAIN")
        return {name: socket.getsockopt(getattr(zmq, name)) for name in names}


def settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the files be old."""
    monkeypatch.setattr(module, "SETTLED_NS", -(10**18))


def test_a_socket_speaks_curve_and_asks_for_each_key(access: Access) -> None:
    assert secured(access) == {"MECHANISM": zmq.CURVE, "CURVE_SERVER": 1, "ZAP_DOMAIN": b"rnnstream"}


def test_nobody_is_admitted_while_nobody_answers(access: Access, tmp_path: Path) -> None:
    alice = put(tmp_path / "allow", "alice")
    public, secret = read_pair(tmp_path / "made" / "alice.key_secret")
    assert public == alice
    with (
        zmq.Context() as context,
        context.socket(zmq.ROUTER) as router,
        zmq.Context() as other,
        other.socket(zmq.DEALER) as peer,
    ):
        access.secure(router)
        router.setsockopt(zmq.HANDSHAKE_IVL, 100)
        port = router.bind_to_random_port("tcp://127.0.0.1")
        peer.linger = 0
        peer.curve_serverkey = read_pair(tmp_path / "worker.key_secret")[0].encode()
        peer.curve_publickey, peer.curve_secretkey = public.encode(), secret.encode()
        events = peer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        peer.connect(f"tcp://127.0.0.1:{port}")
        peer.send(b"hello")
        event, _ = events.recv_multipart()
        assert int.from_bytes(event[:2], sys.byteorder) == zmq.EVENT_DISCONNECTED
        assert not router.poll(0)
        peer.disable_monitor()
        events.close()


def test_users_and_administrators_are_admitted(access: Access, tmp_path: Path) -> None:
    users = {put(tmp_path / "allow", name) for name in ("alice", "bob")}
    root = put(tmp_path / "admin", "root")
    secured(access)
    assert (access.keys, access.admins) == (users | {root}, {root})
    assert str(access) == f"2 keys admitted from {tmp_path}/allow, 1 administrator from {tmp_path}/admin"
    alone = Access(tmp_path / "worker.key_secret", tmp_path / "allow")
    secured(alone)
    assert (alone.keys, alone.admins, str(alone)) == (users, frozenset(), f"2 keys admitted from {tmp_path}/allow")


@pytest.mark.parametrize("missing", ["worker.key_secret", "allow", "admin"])
def test_what_cannot_be_read_at_the_start_is_told(access: Access, tmp_path: Path, missing: str) -> None:
    os.rename(tmp_path / missing, tmp_path / "away")
    with pytest.raises(BadKey, match=f"{missing} cannot be read|{missing}.*No such file"):
        secured(access)


def test_a_key_comes_goes_and_is_moved(access: Access, tmp_path: Path) -> None:
    alice = put(tmp_path / "allow", "alice")
    secured(access)
    assert not access.read_again()
    bob = put(tmp_path / "allow", "bob")
    assert access.read_again()
    assert (access.keys, access.admins) == ({alice, bob}, frozenset())
    os.rename(tmp_path / "allow" / "bob.key", tmp_path / "admin" / "bob.key")
    assert access.read_again()  # the same keys, but another administrator
    assert (access.keys, access.admins) == ({alice, bob}, {bob})
    (tmp_path / "allow" / "alice.key").unlink()
    assert access.read_again()
    assert (access.keys, access.admins) == ({bob}, {bob})
    assert not access.read_again()


def test_files_are_read_again_only_if_something_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "allow", "alice")
    folder = Folder(tmp_path / "allow")
    reads = []
    monkeypatch.setattr(module, "read_directory", lambda path: reads.append(path) or ({}, []))
    folder.read()
    folder.read_again()
    assert len(reads) == 2  # a file that was made just now may change once more within the tick of the clock
    settle(monkeypatch)
    folder.read_again()
    folder.read_again()
    assert len(reads) == 3
    path = tmp_path / "allow" / "alice.key"
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"#", b"%"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # the same size, the same time of modification
    folder.read_again()
    assert len(reads) == 4
    path.chmod(0o666)
    folder.read_again()
    assert len(reads) == 5
    (tmp_path / "allow" / "nowhere.key").symlink_to(tmp_path / "nowhere")
    for _ in range(2):
        folder.read_again()
    assert len(reads) == 6
    put(tmp_path, "nowhere")
    os.rename(tmp_path / "nowhere.key", tmp_path / "nowhere")
    folder.read_again()
    assert len(reads) == 7


def test_a_problem_is_told_once_and_again_when_it_comes_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    alice = put(tmp_path / "allow", "alice")
    bad = tmp_path / "allow" / "bad.key"
    folder = Folder(tmp_path / "allow")
    for _ in range(2):
        caplog.clear()
        bad.write_text("nothing")
        for _ in range(3):
            folder.read_again()
        (record,) = caplog.records
        assert record.getMessage().startswith(f"{bad} ")
        assert record.levelname == "WARNING"
        assert folder.keys == {alice}
        bad.unlink()
        folder.read_again()


def test_a_folder_that_vanishes_keeps_its_keys_and_is_told_of_as_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(monkeypatch)
    alice = put(tmp_path / "allow", "alice")
    folder = Folder(tmp_path / "allow")
    folder.read()
    os.rename(tmp_path / "allow", tmp_path / "away")
    for _ in range(3):
        folder.read_again()
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert f"{tmp_path}/allow" in record.getMessage()
    assert record.getMessage().endswith(". Nobody new is admitted; 1 key left of those before.")
    assert folder.keys == {alice}
    os.rename(tmp_path / "away", tmp_path / "allow")
    (tmp_path / "allow" / "alice.key").unlink()
    folder.read_again()
    assert folder.keys == frozenset()


def test_a_folder_that_others_can_write_to_lets_nobody_in_and_whose_file_is_gone_is_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(monkeypatch)
    alice, bob = put(tmp_path / "allow", "alice"), put(tmp_path / "allow", "bob")
    folder = Folder(tmp_path / "allow")
    folder.read()
    assert folder.keys == {alice, bob}
    carol = put(tmp_path / "allow", "carol")
    (tmp_path / "allow").chmod(0o777)
    (tmp_path / "allow" / "alice.key").unlink()
    folder.read_again()
    assert folder.keys == {bob}
    assert caplog.records[-1].levelname == "ERROR"
    (tmp_path / "allow").chmod(0o700)
    folder.read_again()
    assert folder.keys == {bob, carol}
