from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable

import pytest

from rnnstream import Client, UnknownSession
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
