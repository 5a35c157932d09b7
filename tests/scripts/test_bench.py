"""The load generator of the benchmarks: it counts what it sends, and finds what is wrong with replies."""

import contextlib
import copy
import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zmq

from scripts.bench import latency, report, startup, wire
from scripts.bench.wire import Bench, Load, running

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")

COUNT = 192


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("bench"))


def generator(bench: Bench, address: str, *words: str) -> subprocess.CompletedProcess:
    command = [bench.generator, "--addr", address, "--count", str(COUNT), *words]
    return subprocess.run(command, capture_output=True, check=True, timeout=60)


def generate(bench: Bench, address: str, *words: str) -> dict:
    return json.loads(generator(bench, address, *words).stdout)


LOADS = (
    "",
    "--sessions 64 --window 64",
    "--clients 3 --sessions 2 --window 4",
    "--clients 2 --sessions 5 --window 2 --number",
    "--clients 2 --sessions 3 --window 2 --requests 8",
    "--requests 96 --window 2",
    "--clients 2 --sessions 2 --rate 2000 --parts 4",
)


@pytest.mark.parametrize("server", ["worker", "echo", "uvloop"])
def test_all_replies_are_right(bench, server):
    if server == "uvloop":
        pytest.importorskip("uvloop")
    with running(bench.command(server, "")) as (address, _):
        for name, arguments in zip("abcdefg", LOADS, strict=True):
            figures = generate(bench, address, "--name", name, *wire.WORDS.get(server, ()), *arguments.split())
            assert (figures["count"], figures["errors"]) == (COUNT, 0)
            assert 0 < figures["p50_us"] <= figures["p99_us"] <= figures["p999_us"] <= figures["max_us"]
            assert figures["per_second"] == pytest.approx(COUNT / figures["seconds"], rel=1e-3)
            assert len(figures.get("parts_p99_us", [])) == (4 if "parts" in arguments else 0)


def test_an_open_loop_keeps_to_its_rate(bench):
    """It never is ahead: the last token is due, and answered, after all those before it."""
    figures = bench.measure("echo", Load("", "--rate 1000", COUNT))
    assert figures["seconds"] >= (COUNT - 1) / 1000


def test_wrong_replies_are_counted(bench):
    with running(bench.command("worker", "")) as (address, _):
        assert generate(bench, address)["errors"] == 0
        assert generate(bench, address)["errors"] == COUNT  # t goes on from there
        assert (
            generate(bench, address, "--name", "o", "--vocab", "100000", "--requests", "8")["errors"] > COUNT // 2
        )  # bad tokens
    with running(bench.command("echo", "")) as (address, _):
        assert generate(bench, address)["errors"] == COUNT  # no t at all


RIGHT = b"\x82\xa7session\xaes-0000-0000000\xa1t\x01"


@pytest.mark.parametrize(
    ("reply", "errors"),
    [
        (RIGHT, 0),
        (RIGHT.replace(b"\x82", b"\x84") + b"\xa1y\x00\xa1p\xcb\x3f\xd0\0\0\0\0\0\0", 0),
        (RIGHT.replace(b"\x01", b"\xcd\0\x01"), 0),
        (RIGHT.replace(b"0000000", b"0000001"), 1),
        (RIGHT.replace(b"\x01", b"\x02"), 1),
        (RIGHT.replace(b"\x82", b"\x83") + b"\xa5error\xa4full", 1),
        (RIGHT + RIGHT, 1),
        (RIGHT[:-1], 1),
        (b"\x81" + RIGHT[1:24], 1),
        (b"\x81\xa1t\x01", 1),
        (b"", 1),
        (b"\xff", 1),
    ],
)
def test_what_is_wrong_with_a_reply(bench, reply, errors):
    assert json.loads(answered_with(bench, reply).stdout)["errors"] == errors


def test_a_bad_reply_is_shown_without_what_a_terminal_would_obey(bench):
    shown = answered_with(bench, b"\x81\xa5error\x1b[2J~ \x7f\n\xff").stderr
    assert shown == b"load: first bad reply, 0 of client 0: ..error.[2J~ ...\n"


def answered_with(bench: Bench, reply: bytes) -> subprocess.CompletedProcess:
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    port = socket.bind_to_random_port("tcp://127.0.0.1")

    def answer() -> None:
        for _ in range(2):  # the ping, and the token
            peer, _ = socket.recv_multipart()
            socket.send_multipart([peer, reply])

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(answer)
        completed = generator(bench, f"tcp://127.0.0.1:{port}", "--count", "1")
        done.result(10)
    context.destroy()
    return completed


STUBBORN = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.alarm(60)
print("ready here", flush=True)
signal.pause()
"""


def test_a_server_that_does_not_end_when_it_is_told_to_is_killed(monkeypatch):
    killed = []

    def kill(process: subprocess.Popen) -> None:
        killed.append(process.pid)
        process.send_signal(signal.SIGKILL)

    monkeypatch.setattr(wire, "PATIENCE_S", 0.1)
    monkeypatch.setattr(subprocess.Popen, "kill", kill)
    with running([sys.executable, "-c", STUBBORN]) as (address, pid):
        assert address == "here"
        assert not killed
    assert killed == [pid]


@pytest.mark.parametrize(
    "words", ["wire --quick --loads 16", "latency --rates 1000 --seconds 0.1 --rounds 1000"], ids=["wire", "latency"]
)
def test_sigterm_leaves_no_server_running(words):
    command = [sys.executable, "-m", *f"scripts.bench.{words}".split()]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline().startswith("round 0: ")  # a run has ended, and there are others
            process.terminate()
            assert process.wait(60) == 143
            with pytest.raises(ProcessLookupError):
                os.killpg(process.pid, 0)  # the generator and the servers are of its group
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_a_worker_that_does_not_start_is_a_sentence():
    with pytest.raises(SystemExit, match=r"-m rnnstream serve .* does not run\."):
        startup.first_answer("-c", "pass")


def failing_after(rows: int):
    done = []

    def measure(self, server, load):
        if len(done) == rows:
            raise SystemExit("no more")
        done.append(server)
        return {"per_second": 500.0, "p50_us": 1.0, "p99_us": 1.0}

    return measure


def test_a_run_that_fails_takes_only_its_round_with_it(bench, monkeypatch, tmp_path: Path):
    path = tmp_path / "rows.json"
    for compare in (
        lambda: wire.compare(bench, [Load("one", "", COUNT)], 9, path),
        lambda: latency.measure(bench, [500], 9, 1, path),
    ):
        monkeypatch.setattr(Bench, "measure", failing_after(5))
        with pytest.raises(SystemExit, match="no more"):
            compare()
        assert [(row["round"], row["server"]) for row in report.read_json(path)[1]] in (
            [(0, "echo"), (0, "worker"), (1, "worker"), (1, "echo")],
            [(0, "worker"), (0, "echo"), (1, "echo"), (1, "worker")],
        )
        path.unlink()


def test_a_quick_look_leaves_the_loads_as_they_are(monkeypatch):
    before, run = copy.deepcopy(wire.LOADS), []
    monkeypatch.setattr(sys, "argv", ["wire", "--quick"])
    monkeypatch.setattr(wire, "compare", lambda bench, loads, rounds, path: run.extend(loads))
    for name in ("Bench", "end_on_sigterm", "summary", "table"):
        monkeypatch.setattr(wire, name, lambda *args, **more: None)
    wire.main()
    assert [load.count for load in run] == [load.count // 100 for load in before]
    assert before == wire.LOADS


def test_a_run_with_wrong_replies_is_no_figure(bench, monkeypatch):
    monkeypatch.setattr(wire, "VOCABULARY", 1000)
    with pytest.raises(SystemExit, match="replies are not right"):
        bench.measure("worker", Load("bad tokens", "", COUNT))


def test_the_servers_of_a_load_take_turns(bench, monkeypatch):
    numbered = []
    really = Bench._generate
    monkeypatch.setattr(Bench, "_generate", lambda *a: numbered.append("--number" in a[-1]) or really(*a))
    loads = [Load("one", "", COUNT, ratio=1e-9), Load("numbered", "--number", COUNT, against="unnumbered", ratio=1e9, rounds=3)]
    rows = wire.compare(bench, loads, 2)
    assert [(row["round"], row["load"], row["server"]) for row in rows] == [
        (0, "one", "echo"), (0, "one", "worker"), (0, "numbered", "unnumbered"), (0, "numbered", "worker"),
        (1, "one", "worker"), (1, "one", "echo"), (1, "numbered", "worker"), (1, "numbered", "unnumbered"),
        (2, "numbered", "unnumbered"), (2, "numbered", "worker"),
    ]  # fmt: skip
    assert numbered[::2] == numbered[1::2] == [False, False, False, True, False, False, True, False, False, True]
    lines = [wire.summary(load, rows) for load in loads]
    assert [(line["to"], line["rounds"], line["reached"]) for line in lines] == [("echo", 2, "yes"), ("unnumbered", 3, "no")]


def test_a_summary_has_the_medians_of_ratios():
    rows = []
    for worker, echo in ((100, 200), (10, 10), (300, 400)):
        for server, us in (("worker", worker), ("echo", echo)):
            row = {"load": "l", "server": server, "p50_us": us, "p99_us": us, "per_second": us, "processor_us": us}
            rows.append(row)
    line = wire.summary(Load("l", "", 1, "p99_us", ratio=0.75), rows)
    assert (line["ratio"], line["tokens/s"], line["reached"]) == (0.75, 100, "yes")
    line = wire.summary(Load("l", "", 1, "p99_us", ratio=0.74), rows)
    assert (line["target"], line["reached"]) == ("at most 0.74", "no")
    line = wire.summary(Load("l", "", 1, ratio=0.7, per_second=101), rows)
    assert (line["target"], line["reached"]) == ("101/s, at least 0.70", "no")


def test_latency_stops_where_a_server_is_behind(bench):
    rows = latency.measure(bench, [500, 10_000_000, 20_000_000], 1, COUNT / 10_000_000)
    assert {row["offered_per_second"] for row in rows if not row["kept_up"]} <= {500, 10_000_000}
    assert 20_000_000 not in {row["offered_per_second"] for row in rows}


def test_a_file_of_rows(tmp_path: Path):
    report.write_json(tmp_path / "rows.json", [{"a": 1.5}])
    machine, rows = report.read_json(tmp_path / "rows.json")
    assert rows == [{"a": 1.5}]
    assert machine == report.machine()
    assert machine["kernels"]


def test_what_the_pictures_show(tmp_path: Path, monkeypatch):
    pytest.importorskip("matplotlib")
    from scripts.bench import plots

    drawn = {}
    draw = plots.draw

    def keep(path: Path, lines: dict, *args, **more) -> None:
        drawn[path.name] = lines
        draw(path, lines, *args, **more)
        assert more["x"] in path.read_text()

    monkeypatch.setattr(plots, "draw", keep)
    latencies = [
        {
            "server": server,
            "offered_per_second": rate,
            "kept_up": server == "echo" or rate < 3,
            "p50_us": rate,
            "p99_us": 9 * rate,
        }
        for rate in (1, 2, 3)
        for server in ("worker", "echo")
    ]
    sessions = [{"sessions": n, "alone, tokens/s": 5.0 * n, "alone, ratio": 1.0} for n in (1000, 2000)]
    steps = [
        {"cell": "gru", "hidden": h, "vocabulary": 7, "rows": rows, "engine": h / rows, "network": 1.0 * h, "free": 0.5 * h}
        for h in (100, 200)
        for rows in (1, 4)
    ]
    for name, rows in (("latency", latencies), ("sessions", sessions), ("steps", steps)):
        report.write_json(tmp_path / f"{name}.json", rows)
    plots.main([*(str(tmp_path / f"{name}.json") for name in ("latency", "sessions", "steps")), "--to", str(tmp_path)])
    assert drawn == {
        "latency.svg": {
            "worker p50": {1: [1], 2: [2]},
            "worker p99": {1: [9], 2: [18]},
            "echo p50": {1: [1], 2: [2], 3: [3]},
            "echo p99": {1: [9], 2: [18], 3: [27]},
        },
        "sessions.svg": {"alone": {1000: [5000], 2000: [10_000]}},
        "steps-hidden.svg": {"gru": {100: [40_000], 200: [20_000]}},
        "steps-rows.svg": {"gru exact": {1: [10_000], 4: [10_000]}, "gru free": {1: [20_000], 4: [20_000]}},
    }
    assert [plots.short(n) for n in (5, 0.5, 1024, 20_000, 1_500_000)] == ["5", "0.5", "1,024", "20k", "1.5M"]
