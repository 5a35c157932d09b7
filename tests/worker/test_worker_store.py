"""`Worker` with a store, in this process: what is there when it is started again, and when it cannot be started."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rnnstream
from rnnstream.errors import BadStore, RnnstreamError, UnknownSession
from rnnstream.store.memory import MemoryStore
from rnnstream.store.sqlite import SQLiteStore
from tests.engine.models import V, network

from .keeping import copied, numbered
from .serving import ANYWHERE, Peer, serving


@contextlib.contextmanager
def client(worker: rnnstream.Worker) -> Iterator[rnnstream.Client]:
    with rnnstream.Client(worker.addresses[0]) as client:
        yield client


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_sessions_outlive_their_worker(tmp_path: Path) -> None:
    model, path = network(), tmp_path / "s.db"
    worker = rnnstream.Worker(model, ANYWHERE, store=str(path))
    told: list[Any] = []
    for round in range(3):
        worker.start()
        assert worker.replayed == 0
        with client(worker) as c:
            assert sorted(c.sessions()) == ([] if not round else ["s", "t"])
            told += [c.session("s").step((3 * round + x) % V) for x in range(3)]
            if not round:
                c.session("t").open()
                c.session("gone").open()
                c.session("gone").close()
            elif round == 2:
                with pytest.raises(UnknownSession) as problem:
                    c.session("gone").step(1)
                assert problem.value.extra["why"] == "closed"
            assert c.hello()["store"] == {"durability": "process", "replayed": 0}
        worker.stop()
    assert [prediction.t for prediction in told] == list(range(1, 10))
    with serving(model, store=SQLiteStore(path)) as other, client(other) as c:
        assert c.session("s").snapshot() == rnnstream_snapshot(model, [i % V for i in range(9)])


def rnnstream_snapshot(model: Any, xs: list[int]) -> bytes:
    """Of a session without a store."""
    with serving(model) as worker, client(worker) as c:
        c.session("s").feed(xs)
        return c.session("s").snapshot()


@pytest.mark.parametrize("durability", ["process", "power"])
def test_a_worker_that_ends_at_any_time_is_replayed(tmp_path: Path, durability: Any) -> None:
    model = network()
    with serving(model, store=tmp_path / "s.db", durability=durability) as worker, Peer(worker) as peer:
        assert peer.ask(numbered(1, 3))[0]["opened"]
        told = peer.ask(*[numbered(n, n % V, ack=1) for n in range(2, 40)])
        peer.ask({"session": "other", "x": 1})
        copied(worker._store.path, tmp_path / "copy.db")  # type: ignore[union-attr]
    assert worker.replayed == 0
    with serving(model, store=tmp_path / "copy.db", durability=durability) as worker, Peer(worker) as peer:
        assert worker.replayed == 40
        assert peer.ask({"op": "hello"})[0]["store"] == {"durability": durability, "replayed": 40}
        assert peer.ask(*[numbered(n, n % V, ack=1) for n in range(2, 40)]) == [reply | {"again": True} for reply in told]
        assert peer.ask({"session": "other", "x": 1})[0]["t"] == 2
        worker.stop()
        assert worker.replayed == 40
        worker.start()
        assert worker.replayed == 0


def test_a_store_may_be_an_object() -> None:
    store = MemoryStore()
    with serving(network(), store=store, max_resident=1) as worker, client(worker) as c:
        for name in "abc":
            c.session(name).step(1)
        assert c.hello()["store"] == {"durability": "memory", "replayed": 0}
        assert (c.stats()["open"], c.stats()["store"]["resident"]) == (3, 1)
    with serving(network(), store=store) as worker, client(worker) as c:
        assert sorted(c.sessions()) == ["a", "b", "c"]
        assert c.session("a").step(1).t == 2
        assert c.stats()["store"]["resident"] == 1
    with serving(network(), store=MemoryStore()) as worker, client(worker) as c:
        assert list(c.sessions()) == []


def test_max_resident_goes_with_a_store() -> None:
    with pytest.raises(ValueError, match="max_resident goes with a store"):
        rnnstream.Worker(network(), ANYWHERE, max_resident=5)


def test_max_sessions_holds_for_those_in_the_store(tmp_path: Path) -> None:
    with serving(network(), store=tmp_path / "s.db", max_resident=1, max_sessions=2) as worker, Peer(worker) as peer:
        told = peer.ask(*[{"session": name, "x": 1} for name in "abc"])
        assert [reply.get("error") for reply in told] == [None, None, "full"]
        assert worker.engine.table.max_rows > 1


def test_a_file_has_one_worker_and_that_one_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    second = rnnstream.Worker(network(), ANYWHERE, store=path)
    with serving(network(), store=path) as first, client(first) as c:
        assert c.session("s").step(1).t == 1
        for _ in range(2):
            with pytest.raises(BadStore, match="in use"):
                second.start()
            assert second.addresses == []
            assert c.session("s").step(1).t >= 2
        assert not c.stats()["store"]["failing"]
    second.start()  # now it can
    with client(second) as c:
        assert c.session("s").info()["t"] == 3
    second.stop()


def test_the_store_of_another_model_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with serving(network(), store=path) as worker, client(worker) as c:
        c.session("s").step(1)
    before = digest(path)
    other = rnnstream.Worker(network(seed=1), ANYWHERE, store=path)
    with pytest.raises(BadStore, match="another model"):
        other.start()
    assert digest(path) == before
    with serving(network(), store=path) as worker, client(worker) as c:
        assert (worker.replayed, c.session("s").step(1).t) == (0, 2)


def test_a_worker_that_could_not_listen_can_be_started_again(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with serving(network()) as taken:
        worker = rnnstream.Worker(network(), taken.addresses[0], store=path)
        for _ in range(2):
            with pytest.raises(RnnstreamError, match="Cannot listen"):
                worker.start()
        with serving(network(), store=path) as another, client(another) as c:  # the file is free
            c.session("s").step(1)
    worker.start()
    with client(worker) as c:
        assert c.session("s").step(1).t == 2
    worker.stop()


def test_a_damaged_file_is_refused_and_works_when_it_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    path.write_bytes(b"this is no database, for sure" * 100)
    worker = rnnstream.Worker(network(), ANYWHERE, store=path)
    with pytest.raises(BadStore):
        worker.start()
    assert path.read_bytes() == b"this is no database, for sure" * 100
    path.unlink()
    worker.start()
    with client(worker) as c:
        assert c.session("s").step(1).t == 1
    worker.stop()


def test_what_was_replayed_on_other_kernels_is_saved_at_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    with serving(model, store=tmp_path / "s.db") as worker, Peer(worker) as peer:
        peer.ask(numbered(1, 3), numbered(2, 4))
        copied(worker._store.path, tmp_path / "copy.db")  # type: ignore[union-attr]
    before, model.numerics = model.numerics, "other kernels"
    with serving(model, store=tmp_path / "copy.db") as worker, Peer(worker) as peer:
        assert peer.ask({"op": "hello"})[0]["store"] == {"durability": "process", "replayed": 2, "numerics": before}
        copied(worker._store.path, tmp_path / "third.db")  # type: ignore[union-attr]
    assert "written on other kernels" in caplog.text
    with serving(model, store=tmp_path / "third.db") as worker, Peer(worker) as peer:
        assert peer.ask({"op": "hello"})[0]["store"] == {"durability": "process", "replayed": 0}
        assert peer.ask(numbered(2, 4))[0]["again"]


def test_time_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """The clock of a store runs only while a worker does."""
    path = tmp_path / "s.db"
    with serving(network(), store=path) as worker, client(worker) as c:
        c.session("s").step(1)
        first = c.session("s").info()
    with serving(network(), store=path, idle_timeout_s=1000.0) as worker, client(worker) as c:
        second = c.session("s").info()
    assert 0 <= first["age_s"] <= second["age_s"] < 60
    assert second["idle_s"] == second["age_s"]
