"""The disk of a store is full, fails, or is held by somebody else, and recovers, while the worker runs."""

import contextlib
import random
import signal
import sqlite3
import subprocess
import sys

import pytest

from rnnstream import Client, UnknownSession, load
from tests.process import disk
from tests.process.crashes import counted, until
from tests.process.endless import producing
from tests.process.faults import ROOT, compare, compare_states, model_file
from tests.process.full import ERRORS, Counting, Failing, Limited, Small, mounted
from tests.process.place import placed
from tests.worker_process import DEADLINE_S

FILE_SYSTEM = 16 << 20
ROUNDS, BODIES = 3, 10  # so few that the log is not begun anew, in the room that it has already
TRIES = {"syncs": 25}  # that fail one after the other, in the first round: more than anything is put off for
CLIENTS = 4
WITHIN_S = 60


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The failing disk, or None."""
    return disk.build(tmp_path_factory.mktemp("disk"))


@contextlib.contextmanager
def on_disk(kind, path, library):
    """A worker on a disk of this kind: its place, the disk, and what has to be in its environment."""
    with contextlib.ExitStack() as stack:
        directory, environment = path.parent / "store", {}
        directory.mkdir()
        if kind == "small" and not stack.enter_context(mounted(directory, FILE_SYSTEM)):
            pytest.skip("no file system can be mounted here")
        if kind in ERRORS and library is None:
            pytest.skip("there is no C compiler")
        options = ["--max-resident", "3"] if kind in ("limited", "writes") else []
        options += ["--durability", "power"] if "syncs" in ERRORS.get(kind, ()) else []
        place = stack.enter_context(placed(path, directory, options))
        if kind in ERRORS:
            errors = disk.Errors(path.parent / "errors")
            stack.callback(errors.close)
            environment = disk.environment(library, place.store, errors=path.parent / "errors")
            where = Failing(errors, **ERRORS[kind])
        else:
            where = Small(directory) if kind == "small" else Limited(place)
        stack.callback(where.free)
        yield place, where, environment


@contextlib.contextmanager
def serving_and_counting(path):
    """A worker that has counted some tokens: its place, and the client that has sent them."""
    with placed(path, path.parent / "store") as place:
        place.start()
        place.ready()
        with contextlib.closing(Counting(place.address, 1)) as client:
            for _ in range(BODIES):
                assert set(client.say()) == {""}
            yield place, client


@pytest.mark.parametrize("kind", ["limited", "small", *ERRORS])
def test_what_gets_an_error_has_changed_nothing_and_what_was_acknowledged_is_kept(tmp_path, library, kind):
    path, chance = model_file(tmp_path, 0), random.Random(kind)
    with on_disk(kind, path, library) as (place, where, environment), contextlib.ExitStack() as stack:
        process = place.start(environment)
        place.ready()
        client = stack.enter_context(contextlib.closing(Counting(place.address, 1)))
        [hello] = client.ask({"op": "hello"})
        for number in range(ROUNDS):
            for _ in range(BODIES):
                assert set(client.say()) == {""}
            where.fill(chance)
            client.say_until("store_error")
            for _ in range(BODIES):
                client.say()
                ping, stats, again = client.ask({"op": "ping"}, {"op": "stats"}, {"op": "hello"})
                assert ping["ok"]
                assert stats["store"]["failures"] > 0
                assert ping["worker"] == stats["worker"] == again["worker"] == hello["worker"]
            failures = stats["store"]["failures"]
            while number == 0 and client.ask({"op": "stats"})[0]["store"]["failures"] < failures + TRIES.get(kind, 0):
                client.say()
            where.free()
            client.say_until("")  # the same worker
            assert process.poll() is None
            client.compare(load(path))
        for number in (signal.SIGKILL, signal.SIGTERM):
            if kind != "syncs":  # there, what was refused is in the file as a whole, and a worker that starts cannot tell
                where.fill(chance)
                client.say_until("store_error")
            place.end(number)
            where.free()
            place.start(environment)
            place.ready()
            assert client.compare(load(path)) > ROUNDS * BODIES
        place.end(signal.SIGTERM)


def test_a_full_disk_refuses_every_change(tmp_path):
    path = model_file(tmp_path, 0)
    with serving_and_counting(path) as (place, client), Client(place.address, timeout_s=DEADLINE_S) as asking:
        [kept] = client.ask({"op": "snapshot", "session": "numbered-0"})
        n = {name: len(session.counted) + 1 for name, session in client.sessions.items()}
        changes = [
            {"op": "open", "session": "new"},
            {"session": "newer", "x": 1},
            {"op": "close", "session": "numbered-0", "producer": "counting", "n": n["numbered-0"]},
            {"op": "reset", "session": "numbered-1", "producer": "counting", "n": n["numbered-1"]},
            {"op": "fork", "session": "numbered-2", "to": "copy", "producer": "counting", "n": n["numbered-2"]},
            {"op": "restore", "session": "numbered-3", "state": kept["state"], "producer": "counting", "n": n["numbered-3"]},
            {"op": "close", "session": "plain-0"},
        ]
        Limited(place).limit(1)
        for change in changes:
            [reply] = client.ask(change)
            assert reply["error"] == "store_error", reply
            assert 0 < reply["retry_after_ms"] <= 1000
        for reply in client.ask(*changes):
            assert reply["error"] == "store_error", reply
        Limited(place).free()
        client.say_until("")
        client.compare(load(path))
        assert sorted(asking.sessions()) == sorted(client.sessions)
        for name in ("new", "newer", "copy"):
            with pytest.raises(UnknownSession) as problem:
                asking.session(name).info()
            assert problem.value.why == "never"


def test_ordinary_clients_wait_for_the_disk(tmp_path):
    path = model_file(tmp_path, 0)
    with placed(path, tmp_path / "store") as place:
        place.start()
        place.ready()
        where, tokens, failures = Limited(place), 0, 0
        with producing(place.address, 1, CLIENTS) as at_work:
            for size in (1, 4096):
                stats = until(place.address, lambda stats, tokens=tokens: stats["tokens"] >= tokens + 500)
                tokens, failures = stats["tokens"], stats["store"]["failures"]
                where.limit(size)
                until(place.address, lambda stats, failures=failures: stats["store"]["failures"] > failures + 2)
                where.free()
            told = at_work.stop(WITHIN_S)
        assert len(told) == CLIENTS
        assert not any(one["lost"] for one in told)
        sessions = counted(told)
        assert compare(load(path), sessions, whole=True) > 1000
        with Client(place.address, timeout_s=DEADLINE_S) as client:
            compare_states(client, load(path), sessions)
        place.end(signal.SIGKILL)
        place.start()
        place.ready()
        with Client(place.address, timeout_s=DEADLINE_S) as client:
            compare_states(client, load(path), sessions)
        place.end(signal.SIGTERM)


def test_a_second_worker_on_the_same_store_ends_with_a_sentence(tmp_path):
    path = model_file(tmp_path, 0)
    with serving_and_counting(path) as (place, client):
        done = subprocess.run(
            [sys.executable, "-m", "rnnstream", "serve", path, "--store", place.store, "--bind", "tcp://127.0.0.1:*"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr == f"Error: The store {place.store} is in use by another worker.\n"
        assert set(client.say()) == {""}
        client.compare(load(path))
        place.end(signal.SIGTERM)


def test_requests_wait_for_nobody_who_holds_the_store(tmp_path):
    path = model_file(tmp_path, 0)
    with serving_and_counting(path) as (place, client):
        with contextlib.closing(sqlite3.connect(place.store, isolation_level=None)) as other:
            for _ in range(ROUNDS):
                other.execute("BEGIN IMMEDIATE")
                assert set(client.say()) == {"store_error"}
                assert client.ask({"op": "ping"})[0]["ok"]
                other.execute("COMMIT")
                client.say_until("")
        client.compare(load(path))
        place.end(signal.SIGTERM)
