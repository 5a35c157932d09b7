from __future__ import annotations

import resource
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from rnnstream import Client, Denied, UnknownSession
from rnnstream.keys import read_public, write_pair
from tests.worker_process import serving

from .conftest import DEADLINE_S, run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_listens_and_ends_on_a_signal(
    start: Callable[..., subprocess.Popen[bytes]], files: dict[str, str], number: signal.Signals
) -> None:
    process = start("serve", files["letters"], "--bind", "tcp://127.0.0.1:*", "--bind", "tcp://127.0.0.1:*")
    assert process.stdout
    addresses = []
    for _ in range(2):
        ready, address = process.stdout.readline().decode().split()
        assert ready == "ready"
        addresses.append(address)
    assert len({*addresses, "tcp://127.0.0.1:*"}) == 3
    for t, address in enumerate(addresses, 1):
        with Client(address) as client:
            assert client.session("s").step("a").t == t
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, stdout) == (0, b"")
    assert b"1 sessions were open" in stderr
    assert b"Traceback" not in stderr


def test_an_address_in_use(files: dict[str, str], addresses: dict[str, str]) -> None:
    result = run("serve", files["letters"], "--bind", addresses["letters"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"Error: Cannot listen at {addresses['letters']}: Address already in use" in result.stderr
    assert result.stderr.count("\n") == 1


def test_wrong_use() -> None:
    assert run("serve", "--max-sessions", 0).exit_code == 2


def test_sessions_that_expire_and_names_that_a_token_does_not_open(files: dict[str, str]) -> None:
    with serving(files["letters"], "--idle-timeout", "0.001", "--explicit-open") as (address, _), Client(address) as client:
        session = client.session("s")
        with pytest.raises(UnknownSession) as caught:
            session.step("a")
        assert caught.value.why == "never"
        session.open()
        while "s" in client.sessions():
            pass
        with pytest.raises(UnknownSession) as caught:
            session.step("a")
        assert caught.value.why == "expired"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--server-key", "k"), "--server-key and --allow go together: the worker's key, and the directory of those admitted."),
        (("--allow", "d"), "--server-key and --allow go together"),
        (("--admin", "d"), "--admin and --quota-... go with --server-key and --allow: without keys, all users are the same."),
        (("--quota-sessions", 1), "--admin and --quota-... go with"),
        (("--quota-waiting", 1), "--admin and --quota-... go with"),
        (("--quota-rate", 1), "--admin and --quota-... go with"),
        (("--server-key", "k", "--allow", "d", "--insecure"), "--insecure is for a worker without keys; leave it, or"),
        (("--bind", "tcp://0.0.0.0:5555"), "Others can reach tcp://0.0.0.0:5555, and without keys they could read and change"),
        (("--bind", "tcp://127.0.0.1:*", "--bind", "ipc://@w"), "Others can reach ipc://@w, and without keys they could read"),
        (("--quota-rate", 0), "--quota-rate"),
        (("--quota-sessions", 0), "--quota-sessions"),
    ],
)
def test_wrong_use_of_keys(arguments: tuple[object, ...], sentence: str) -> None:
    result = run("serve", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert sentence in " ".join(result.stderr.split())


def test_keys_that_cannot_be_used(files: dict[str, str], tmp_path: Path) -> None:
    public, secret = write_pair(tmp_path / "worker")
    (tmp_path / "users").mkdir()
    for key, folder, sentence in [
        (tmp_path / "none", tmp_path / "users", "none cannot be read: No such file or directory."),
        (public, tmp_path / "users", "has no secret-key"),
        (secret, tmp_path / "nowhere", "nowhere cannot be read: No such file or directory."),
    ]:
        result = run("serve", files["letters"], "--server-key", key, "--allow", folder, "--bind", "tcp://127.0.0.1:*")
        assert (result.exit_code, result.stdout) == (1, "")
        assert sentence in result.stderr
        assert "Traceback" not in result.stderr


def test_it_serves_those_with_keys_and_says_so(
    start: Callable[..., subprocess.Popen[bytes]], files: dict[str, str], tmp_path: Path
) -> None:
    _, secret = write_pair(tmp_path / "worker")
    for folder, name in (("users", "alice"), ("admins", "root")):
        (tmp_path / folder).mkdir()
        write_pair(tmp_path / name)
        (tmp_path / f"{name}.key").rename(tmp_path / folder / f"{name}.key")
    options = ("--server-key", secret, "--allow", tmp_path / "users", "--admin", tmp_path / "admins", "--quota-sessions", 1)
    process = start("serve", files["letters"], "--bind", "tcp://0.0.0.0:*", *options)
    assert process.stdout
    _, bound = process.stdout.readline().decode().split()
    address = bound.replace("0.0.0.0", "127.0.0.1")
    keys = {"server_key": tmp_path / "worker.key"}
    with Client(address, client_key=tmp_path / "alice.key_secret", **keys) as client:
        assert client.session("s").step("a").t == 1
        with pytest.raises(Denied):
            client.session("t").step("a")
    with Client(address, client_key=tmp_path / "root.key_secret", **keys) as client:
        assert client.session("s").step("a").t == 1  # a session of his own
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    told = (
        f"CURVE at {bound}: 1 key admitted from {tmp_path}/users, 1 administrator from {tmp_path}/admins; the worker's key is "
    )
    assert told + read_public(tmp_path / "worker.key") in stderr.decode()
    assert b"2 sessions were open" in stderr


def test_it_says_who_can_reach_it(start: Callable[..., subprocess.Popen[bytes]], files: dict[str, str], tmp_path: Path) -> None:
    process = start(
        "serve", files["letters"], "--bind", "tcp://0.0.0.0:*", "--bind", f"ipc://{tmp_path}/w", "--bind", "tcp://127.0.0.1:*",
        "--insecure",
    )  # fmt: skip
    assert process.stdout
    addresses = [process.stdout.readline().decode().split()[1] for _ in range(3)]
    assert stat.S_IMODE((tmp_path / "w").stat().st_mode) == 0o600
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=DEADLINE_S)
    for line in (
        f"WARNING INSECURE: anybody who reaches {addresses[0]} can read, change and end every session",
        f"INFO open: this user's processes can use {addresses[1]}, and every session",
        f"INFO open: anybody on this machine can use {addresses[2]}, and every session",
    ):
        assert line in stderr.decode()


def test_it_takes_as_many_descriptors_as_it_may_have(
    start: Callable[..., subprocess.Popen[bytes]], files: dict[str, str]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 300:
        pytest.skip("this process may have few descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, soft), hard))  # inherited by what is started
    try:
        process = start("serve", files["letters"], "--bind", "tcp://127.0.0.1:*")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert process.stdout
    assert process.stdout.readline().startswith(b"ready")
    assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
