from __future__ import annotations

import contextlib
import functools
import json
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rnnstream import Client, NoReply
from rnnstream.cli.bench import _duration
from rnnstream.cli.driver import End
from rnnstream.cli.outcome import Outcome
from rnnstream.keys import write_pair
from tests.worker_process import serving

from .conftest import DEADLINE_S, lines, run

BENCH = sys.modules["rnnstream.cli.bench"]  # the name in the package is the command's
LEFT = r"Sessions whose names begin with bench-[0-9a-f]{8} may be left open there\."
Start = Callable[..., "subprocess.Popen[bytes]"]
SHORT = ("--seconds", 0.2)


@pytest.fixture
def measured(address: str, worker: Client) -> Callable[..., dict[str, Any]]:
    """What a bench says with --json, and how many tokens the worker has counted meanwhile."""

    def measured(*arguments: object) -> dict[str, Any]:
        before = worker.stats()["tokens"]
        [found] = lines(run("bench", "--connect", address, *arguments, "--json"))
        return found | {"worker_tokens": worker.stats()["tokens"] - before}

    return measured


def deadline() -> Iterator[None]:
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        yield
    raise AssertionError(f"nothing within {DEADLINE_S} s")


def test_a_closed_loop(measured: Any, worker: Client) -> None:
    found = measured(*SHORT, "--clients", 3, "--window", 4, "--sessions", 2)
    hello = worker.hello()
    assert (found["version"], found["model"]) == (hello["version"], "letters")
    assert found["numerics"] == hello["model"]["numerics"]
    warm, in_flight = 3 * 2, 3 * 4
    assert 0 < found["tokens"] <= found["worker_tokens"] - warm <= found["tokens"] + in_flight
    assert found["seconds"] >= 0.2
    assert found["tokens_per_s"] == pytest.approx(found["tokens"] / found["seconds"])
    latencies = [found["latencies_us"][key] for key in ("p50", "p90", "p99", "p99.9", "max")]
    assert latencies[0] > 0
    assert latencies == sorted(latencies)
    assert (found["rate"], found["late"], found["errors"]) == (None, 0, {})


def test_one_in_flight_is_never_more(measured: Any) -> None:
    found = measured(*SHORT, "--clients", 1, "--window", 1)
    assert found["sessions"] == 1
    assert found["tokens"] * found["latencies_us"]["p50"] <= 2.1e6 * found["seconds"], "half of them took at least p50, in turn"


@pytest.mark.parametrize("processes", [1, 2])
def test_an_open_loop_sends_all_that_is_due(measured: Any, processes: int) -> None:
    found = measured("--rate", 500, "--clients", 4, "--sessions", 3, "--seconds", 0.397, "--processes", processes)
    # Each connection has one every 8 ms, the first one 0, 2, 4 or 6 ms behind the begin: 50 + 50 + 50 + 49 in 397 ms.
    assert found["worker_tokens"] == 4 * 3 + 199
    assert (found["late"], found["errors"], found["rate"]) == (0, {}, 500)


def test_what_cannot_be_sent_is_late_and_its_wait_counts(measured: Any) -> None:
    found = measured(*SHORT, "--rate", 12.8e6, "--clients", 1, "--sessions", 64, "--body", 64, "--window", 64)
    due = round(12.8e6 * 0.2)
    assert found["late"] > due / 2
    assert abs(found["worker_tokens"] - 64 + found["late"] - due) <= 64
    assert found["latencies_us"]["p50"] > 40_000, "of those that were due in 0.2 s, most waited to the end"
    assert found["latencies_us"]["max"] < 1e6 * (found["seconds"] + 5)


def test_numbered_tokens_in_bodies(measured: Any, worker: Client) -> None:
    before = worker.stats()["numbered"]
    found = measured(*SHORT, "--numbered", "--body", 8, "--want", "2", "--clients", 2, "--sessions", 3)
    assert worker.stats()["numbered"] - before == 2 * 3, "a producer in each session"
    assert found["tokens"] > 0
    assert found["tokens"] % 8 == 0
    assert (found["window"], found["want"], found["errors"]) == (32, 2, {})


def test_busy_is_counted_and_shown(address: str, worker: Client) -> None:
    result = run("bench", "--connect", address, *SHORT, "--clients", 1, "--sessions", 1, "--body", 512, "--window", 4096)
    assert result.exit_code == 0
    shown = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert shown["model"].startswith("letters: onehot 7 -> 7; rnn 7 -> 12 (tanh);")
    assert shown["worker"] == f"{worker.hello()['version']} at {address}"
    assert float(shown["tokens/s"].replace(",", "")) > 0
    [told] = [line for line in result.stdout.splitlines() if line.startswith("error busy")]
    assert "first: 1024 requests of a session may wait" in told
    assert "errors" not in shown


def test_the_first_message_of_each_error_is_in_the_json(measured: Any) -> None:
    found = measured(*SHORT, "--clients", 1, "--sessions", 1, "--body", 512, "--window", 4096)
    assert found["errors"].keys() == found["messages"].keys() == {"busy"}
    assert found["messages"]["busy"].startswith("1024 requests of a session may wait")


def test_a_model_of_vectors_that_asks_for_open(files: dict[str, str]) -> None:
    with serving(files["rows"], "--explicit-open") as (address, _):
        [found] = lines(run("bench", "--connect", address, *SHORT, "--json"))
        assert found["tokens"] > 0
        assert (found["model"], found["errors"]) == ("rows", {})
        refused = run("bench", "--connect", address, *SHORT, "--want", "3")
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert refused.stderr.startswith("Error: The worker refuses these tokens: want is 3")
        with Client(address) as client:
            assert list(client.sessions()) == []


def test_keys(files: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "allow").mkdir()
    public, secret = write_pair(tmp_path / "worker")
    mine = write_pair(tmp_path / "allow" / "me")[1].rename(tmp_path / "me.key_secret")
    with serving(files["ids"], "--server-key", secret, "--allow", tmp_path / "allow") as (address, _):
        [found] = lines(run("bench", "--connect", address, "--server-key", public, "--key", mine, *SHORT, "--json"))
        assert found["tokens"] > 0
        with Client(address, server_key=public, client_key=mine) as client:
            assert list(client.sessions()) == []
    assert "--server-key and --key go together" in run("bench", "--key", mine).stderr


def streaming(worker: Client) -> None:
    """Return when a bench sends."""
    before = worker.stats()["tokens"]
    next(None for _ in deadline() if list(worker.sessions("bench-")) and worker.stats()["tokens"] > before + 1000)


def test_an_interrupt_ends_it_with_what_was_measured(address: str, worker: Client) -> None:
    arguments = ["bench", "--connect", address, "--seconds", "1000", "--json", "--processes", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "rnnstream", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0
    )
    try:
        streaming(worker)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
        stdout, stderr = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, stderr) == (130, b"Interrupted.\n")
    assert list(worker.sessions()) == [], "it ends when its sessions are closed"
    found = json.loads(stdout)
    assert 0 < found["seconds"] < 900
    assert found["tokens"] > 0


def test_its_sessions_are_closed_when_it_is_killed(start: Start, address: str, worker: Client) -> None:
    process = start("bench", "--connect", address, "--seconds", 1000, stderr=subprocess.DEVNULL)
    streaming(worker)
    process.kill()
    next(None for _ in deadline() if not list(worker.sessions()))


def test_a_second_interrupt_ends_it_at_once(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    processes: set[multiprocessing.process.BaseProcess] = set()
    with serving(files["letters"]) as (address, served):

        def tell(*_: object) -> None:
            processes.update(multiprocessing.active_children())
            os.kill(served.pid, signal.SIGSTOP)
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(BENCH, "_progress", lambda seconds: contextlib.nullcontext(tell))
        try:
            result = run("bench", "--connect", address, "--seconds", 1000, "--processes", 2)
        finally:
            os.kill(served.pid, signal.SIGCONT)
    assert (result.exit_code, result.stdout) == (130, "")
    assert re.fullmatch(LEFT + r"\nInterrupted\.\n", result.stderr)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert [process.exitcode for process in processes] == [-signal.SIGKILL] * 2


def test_a_process_that_is_killed(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = functools.cache(lambda: multiprocessing.active_children()[0].kill())  # once
    monkeypatch.setattr(BENCH, "_progress", lambda seconds: contextlib.nullcontext(lambda *_: killed()))
    result = run("bench", "--connect", address, "--seconds", 1000, "--clients", 2, "--sessions", 3, "--processes", 2)
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.fullmatch(r"Error: A process of the load has ended before its time\. " + LEFT + r"\n", result.stderr)
    with Client(address) as client:
        left = list(client.sessions("bench-"))
        assert len(left) == 3, "the other one has closed its own"
        for name in left:
            client.session(name).close()


@pytest.mark.parametrize("interrupted", [False, True])
def test_what_was_measured_is_shown_though_sessions_are_left(
    worker: Client, address: str, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    found = Outcome(seconds=2.0, tokens=5, busy=0.95)
    end = End(found, None if interrupted else NoReply("No reply from there."), closed=False, interrupted=interrupted)
    monkeypatch.setattr(BENCH, "drive", lambda *_: end)
    result = run("bench", "--connect", address)
    shown = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert (shown["tokens"], shown["tokens/s"]) == ("5 in 2.00 s", "2")
    assert re.search(r"^latency p99\.9 +-$", result.stdout, re.M), "nothing was counted"
    busy = r"The load took all of a processor: more --processes may find more\.\n"
    told = LEFT + r"\nInterrupted\.\n" if interrupted else r"Error: No reply from there\. " + LEFT + r"\n"
    assert re.fullmatch(busy + told, result.stderr)
    assert result.exit_code == (130 if interrupted else 1)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "0.00 µs"),
        (12.34e-6, "12.3 µs"),
        (999.4e-6, "999 µs"),
        (999.6e-6, "1.00 ms"),
        (9.996e-3, "10.0 ms"),
        (99.96e-3, "100 ms"),
        (0.9996, "1.00 s"),
        (123456.0, "123456 s"),
        (math.nan, "-"),
    ],
)
def test_a_duration_has_three_digits(seconds: float, shown: str) -> None:
    assert _duration(seconds) == shown


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BENCH, "Client", functools.partial(Client, timeout_s=0.1))
    result = run("bench", "--connect", "tcp://127.0.0.1:9")
    told = "Nobody has answered at tcp://127.0.0.1:9 within 0.1 s; is a worker running there?"
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"Error: {told}\n")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--clients", 2, "--processes", 3], "--processes 3 have no more than --clients 2 to share."),
        (["--clients", 801, "--processes", 2], "--clients 801 are too many for --processes 2; 400 each at most."),
        (["--window", 7, "--body", 8], "--window 7 has no room for a body of 8."),
        (["--body", 513], "--body 513 is more than the 512 that this worker reads."),
        (["--want", "101"], "it is one of argmax, none, probs, logits, or a number from 1 to 100."),
        (["--rate", 0], "--rate"),
        (["--rate", "1.1e9"], "--rate"),
        (["--rate", "nan"], "'nan' is no number."),
        (["--rate", 9.9, "--body", 10, "--seconds", 1], "--rate 9.9 is less than one body of 10 in --seconds 1."),
        (["--seconds", "nan"], "'nan' is no number."),
        (["--seconds", "inf"], "--seconds"),
        (["--seconds", 0.0009], "--seconds"),
    ],
)
def test_wrong_use(address: str, arguments: list[object], told: str) -> None:
    result = run("bench", "--connect", address, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in " ".join(result.stderr.split())


def test_a_bar_is_drawn_on_a_terminal_only_on_stderr(start: Start, address: str, worker: Client) -> None:
    terminal, end = os.openpty()
    process = start("bench", "--connect", address, "--seconds", 0.5, stderr=end)
    stdout, _ = process.communicate(timeout=DEADLINE_S)
    os.close(end)
    drawn = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert process.returncode == 0
    assert b"\x1b" not in stdout
    assert "of 0.5 s" in drawn
    assert " tokens" in drawn
