"""Producers, a worker, and a bad network between them; at the end, what they were told is what happened.

The worker has no store, so one that is started anew has lost its sessions. Each run of it has a model of its own whose
vocabulary says which run it is: so every reply tells who has given it.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from rnnstream import Client, StepModel, load
from rnnstream.engine import snapshot
from tests.process.producer import VOCABULARY, Orders, names
from tests.process.proxy import Faults, Proxy
from tests.worker_process import DEADLINE_S, random_model

ROOT = Path(__file__).parents[2]
PRODUCERS = 8
SHARED, PRIVATE = 16, 3  # sessions of several producers, and of each alone: 40


@dataclass
class Report:
    """What was seen.

    Attributes:
        acknowledged: tokens, by the worker's run.
        compared: predictions whose bits were compared, by run.
        sessions: whose final state was compared.
        lost: sessions that producers were told are lost.
        done: by the proxy, by kind.
        repeats: tokens that the last run answered again rather than count them twice.
        seconds: that it took.
    """

    acknowledged: Counter[int] = field(default_factory=Counter)
    compared: Counter[int] = field(default_factory=Counter)
    sessions: int = 0
    lost: int = 0
    done: dict[str, int] = field(default_factory=dict)
    repeats: int = 0
    seconds: float = 0.0


def model_file(directory: Path, run: int) -> Path:
    """A model whose labels say which run of the worker it is: "2:17" is id 17 in run 2."""
    return random_model(
        directory / f"run-{run}.safetensors",
        [{"kind": "onehot"}, {"kind": "rnn", "size": 100}, {"kind": "dense", "size": VOCABULARY}],
        size=VOCABULARY,
        input={"kind": "token", "size": VOCABULARY, "vocabulary": [f"{run}:{i}" for i in range(VOCABULARY)]},
    )


def start(path: Path, log: IO[str]) -> tuple[subprocess.Popen[str], str]:
    """A worker, and where it listens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rnnstream", "serve", str(path), "--bind", "tcp://127.0.0.1:*"],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("ready "):
        process.kill()
        process.communicate()
        raise AssertionError(f"the worker did not start: {line!r}")
    return process, line.split()[1]


@contextlib.contextmanager
def producing(addresses: list[str], tokens: int, seed: int) -> Iterator[list[subprocess.Popen[str]]]:
    """The producers, at work."""
    processes = []
    try:
        for number, address in enumerate(addresses):
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.process.producer"], stdin=-1, stdout=-1, stderr=-1, text=True, cwd=ROOT
            )
            processes.append(process)
            orders = Orders(address, 1000 * seed + number, tokens, list(names(number, PRODUCERS, SHARED, PRIVATE)))
            assert process.stdin is not None
            process.stdin.write(json.dumps(asdict(orders)))
            process.stdin.close()
            process.stdin = None  # which communicate would try to close again
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def run(
    directory: Path,
    tokens: int,
    seed: int,
    *,
    restarts: tuple[signal.Signals, ...] = (),
    faults: Faults | None = None,
    within_s: float,
) -> Report:
    """Have the producers send so many tokens each, through all faults.

    Args:
        directory: for models and logs.
        tokens: of each producer.
        seed: of the tokens, of how they are sent, and of the faults.
        restarts: the signals that end the worker, each at its part of the way; a new one is started every time.
        faults: of the network; None: all.
        within_s: by when they are to be done.

    Raises:
        AssertionError: what they were told is not what happened.
    """
    began = time.monotonic()
    models = [model_file(directory, run) for run in range(len(restarts) + 1)]
    proxy = Proxy(PRODUCERS, faults or Faults(), seed)
    # Half the tokens come in bodies of up to 64, so that there are replies for more than a third.
    parts = [proxy.at(PRODUCERS * tokens * (i + 1) // (3 * (len(restarts) + 1))) for i in range(len(restarts))]
    report = Report()
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((directory / "worker.log").open("w+"))
        worker, address = start(models[0], log)
        stack.callback(lambda: (worker.kill(), worker.communicate()))
        proxy.aim(address)
        stack.callback(proxy.stop)
        proxy.start()
        processes = stack.enter_context(producing(proxy.addresses, tokens, seed))
        for part, number, path in zip(parts, restarts, models[1:], strict=True):
            assert part.wait(within_s), "the producers do not get on"
            proxy.aim(None)
            worker.send_signal(number)
            worker.communicate(timeout=DEADLINE_S)
            assert worker.returncode == (0 if number == signal.SIGTERM else -number)
            worker, address = start(path, log)
            proxy.aim(address)
        told = []
        for process in processes:
            out, errors = process.communicate(timeout=max(0.0, began + within_s - time.monotonic()))
            assert process.returncode == 0, errors
            told.append(json.loads(out))
        report.lost = sum(one["lost"] for one in told)
        report.done = dict(sorted(proxy.done.items()))
        runs = by_run([one["acknowledged"] for one in told], tokens)
        for number, sessions in runs.items():
            last = number == len(restarts)
            report.acknowledged[number] = sum(map(len, sessions.values()))
            report.compared[number] = compare(load(models[number]), sessions, whole=last)
        with Client(address) as client:
            report.sessions = compare_states(client, load(models[-1]), runs[len(restarts)])
            report.repeats = client.stats()["repeats"]
        worker.send_signal(signal.SIGTERM)
        worker.communicate(timeout=DEADLINE_S)
        assert worker.returncode == 0
        log.seek(0)
        assert "Traceback" not in (text := log.read()), text
    report.seconds = time.monotonic() - began
    return report


Counted = dict[str, dict[int, tuple[int, float]]]  # by session and t: the token and its prediction's p


def by_run(told: list[list[list]], tokens: int) -> dict[int, Counted]:
    """What was acknowledged, by the worker's run. Each token once, each t once, and each producer's in its order."""
    runs: dict[int, Counted] = defaultdict(lambda: defaultdict(dict))
    for mine in told:
        assert sorted(number for _, number, *_ in mine) == list(range(tokens)), "each token is acknowledged, and once"
        last: dict[tuple[int, str], int] = {}
        for session, _, x, t, label, p in mine:
            run = int(label.split(":")[0])
            assert t not in runs[run][session], f"{session}: t={t} is given twice in run {run}"
            assert t > last.get((run, session), 0), f"{session}: not in the order in which they were sent"
            last[run, session] = t
            runs[run][session][t] = x, p
    return runs


def compare(model: StepModel, sessions: Counted, *, whole: bool) -> int:
    """Hold predictions against the model over the tokens in the order in which they counted; how many.

    Args:
        model: of the run.
        sessions: what was acknowledged in it.
        whole: that is all that counted. In a run that was ended, it is so up to the first t that nobody was told of.
    """
    compared = 0
    for session, counted in sessions.items():
        end = next(t for t in range(1, len(counted) + 2) if t not in counted)
        assert end == len(counted) + 1 or not whole, f"{session}: nobody was told of t={end}, but of {max(counted)}"
        if end > 1:
            ys = model.forward([counted[t][0] for t in range(1, end)])
            assert [counted[t][1] for t in range(1, end)] == ys.max(axis=1).astype(float).tolist(), session
            compared += end - 1
    return compared


def compare_states(client: Client, model: StepModel, sessions: Counted) -> int:
    """Hold every session's state against the model over the tokens in the order in which they counted; how many."""
    assert sorted(client.sessions()) == sorted(sessions)
    for session, counted in sessions.items():
        data = client.session(session).snapshot()
        a, t = snapshot.decode(data, dtype=np.dtype(model.dtype), state_size=model.state_size, digest=model.digest)
        assert t == len(counted), f"{session}: {len(counted)} tokens were acknowledged, but t={t}"
        assert a.tobytes() == model.run([counted[i][0] for i in range(1, t + 1)]).tobytes(), session
    return len(sessions)
