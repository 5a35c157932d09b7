"""Who gets into a worker with keys, who stays, and whose replies go where: real sockets, in this process."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from rnnstream.errors import BadKey, RnnstreamError
from rnnstream.worker import guard as module
from rnnstream.worker import outbox as outbox_module
from rnnstream.worker import worker as worker_module
from rnnstream.worker.connections import Connections
from rnnstream.worker.guard import most_connections
from rnnstream.worker.quotas import Quotas
from rnnstream.worker.worker import Worker
from tests.engine.models import network
from tests.process import zmtp

from .driving import codes, pack, step
from .keyed import CONNECTED, DEADLINE_S, ENDED, REFUSED, Keyed, Keys, Pair
from .serving import ANYWHERE, Gate, Peer, deadline, serving

PING = {"op": "ping"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.02)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


class Served:
    """A worker with keys, and who connects to it."""

    def __init__(self, worker: Worker, keys: Keys, stack: contextlib.ExitStack) -> None:
        self.worker, self.keys, self._stack = worker, keys, stack

    def peer(self, pair: Pair, id: bytes | None = None, **options: int) -> Keyed:
        peer = Keyed(self.worker.addresses[0], self.keys.server[0], pair, id, **options)
        self._stack.callback(peer.close)
        return peer

    @property
    def connections(self) -> Connections:
        assert self.worker._router is not None
        assert self.worker._router._connections is not None
        return self.worker._router._connections

    def check(self) -> None:
        with self.connections.lock:
            self.connections.check()

    def wait(self, what: Callable[[], bool]) -> None:
        for _ in deadline():
            if what():
                return

    def ids(self) -> set[bytes]:
        with self.connections.lock:
            return {connection.caller.id for connection in self.connections._open.values() if connection.caller is not None}


@pytest.fixture
def serve(keys: Keys) -> Iterator[Callable[..., Served]]:
    with contextlib.ExitStack() as stack:

        def serve(model: Any = None, **options: Any) -> Served:
            worker = stack.enter_context(serving(model or network(), **keys.options, **options))
            served = Served(worker, keys, stack.enter_context(contextlib.ExitStack()))
            stack.callback(served.check)
            return served

        yield serve


def port(worker: Worker) -> int:
    return int(worker.addresses[0].rpartition(":")[2])


# Who gets in ----------------------------------------------------------------------------------------------------------


def test_a_key_that_is_admitted_is_served_and_has_its_own_sessions(keys: Keys, serve: Callable[..., Served]) -> None:
    alice, bob = keys.add("alice"), keys.add("bob")
    served = serve()
    with served.peer(alice) as one, served.peer(bob) as other:
        assert (one.event(), other.event()) == (CONNECTED, CONNECTED)
        assert codes(one.ask(step("s", 1), step("s", 2))) == [1, 2]
        assert codes(other.ask(step("s", 3))) == [1]
        one.socket.send_multipart([b"x", b"", pack([step("s", 4)])])
        assert one.socket.recv_multipart()[:2] == [b"x", b""]
        assert codes(one.ask(step("s", 1))) == [4]


@pytest.mark.parametrize("envelope", [[b""] * 9, [b"x" * 256]])
def test_an_envelope_that_is_too_large_is_told_so_to_whom_it_came_from(
    keys: Keys, serve: Callable[..., Served], envelope: list[bytes]
) -> None:
    alice = keys.add("alice")
    peer = serve().peer(alice)
    peer.socket.send_multipart([*envelope, pack([step("s", 1)])])
    assert codes(peer.recv()) == ["bad_message"]


def test_strangers_are_refused_and_counted(keys: Keys, serve: Callable[..., Served]) -> None:
    alice, eve = keys.add("alice"), keys.make("eve")
    served = serve()
    stranger = served.peer(eve, RECONNECT_IVL=-1)
    assert stranger.event() & REFUSED
    assert stranger.event() == ENDED
    deceived = Keyed(served.worker.addresses[0], eve[0], alice)  # as if another worker listened there
    with deceived:
        assert deceived.event() & REFUSED
    peer = served.peer(alice)
    served.wait(lambda: served.connections.refused == 2)
    keys.move("alice", "allow", "admin")
    served.wait(lambda: "refused" in peer.ask({"op": "stats"})[0])
    (told,) = peer.ask({"op": "stats"})
    assert (told["connections"], told["refused"]) == (1, 2)


@pytest.mark.parametrize("plain", [False, True])
def test_without_a_key_nobody_gets_in(keys: Keys, serve: Callable[..., Served], plain: bool) -> None:
    served = serve()
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.linger = 0
        if plain:
            peer.plain_username, peer.plain_password = b"admin", b"admin"
        events = peer.get_monitor_socket(REFUSED | CONNECTED)
        peer.connect(served.worker.addresses[0])
        with contextlib.suppress(zmq.Again):  # ZeroMQ may have given up
            peer.send(pack([step("s", 1)]), zmq.NOBLOCK)
        assert int.from_bytes(events.recv_multipart()[0][:2], "little") & REFUSED
        peer.disable_monitor()
        events.close()
        assert not peer.poll(0)
    assert served.worker.engine.sessions() == []


BODY = pack([step("s", 1)])
OLD = b"\xff" + bytes(8) + b"\x7f"  # how a greeting begins since ZMTP 2


@pytest.mark.parametrize(
    "said",
    [
        zmtp.GREETING + zmtp.ready(b"DEALER") + zmtp.frame(BODY),
        zmtp.GREETING.replace(b"NULL\0", b"CURVE") + zmtp.ready(b"DEALER") + zmtp.frame(BODY),
        zmtp.GREETING.replace(b"NULL\0", b"CURVE") + zmtp.frame(BODY),
        OLD + b"\x01\x05\x00\x00" + zmtp.frame(BODY),
        OLD + b"\x00\x05\x00\x00" + zmtp.frame(BODY),
        b"\x01\x00" + bytes([len(BODY) + 1, 0]) + BODY,
        b"GET / HTTP/1.1\r\n\r\n" * 5,
    ],
    ids=["no security", "CURVE in name", "no handshake", "ZMTP 2", "ZMTP 1", "ZMTP 1 without a version", "HTTP"],
)
def test_whoever_goes_past_the_handshake_is_cut(keys: Keys, serve: Callable[..., Served], said: bytes) -> None:
    alice = keys.add("alice")
    served = serve()
    with socket.create_connection(("127.0.0.1", port(served.worker)), timeout=DEADLINE_S) as raw:
        raw.sendall(said)
        with contextlib.suppress(ConnectionResetError):
            while raw.recv(1000):
                pass
    peer = served.peer(alice)
    assert codes(peer.ask(step("t", 1))) == [1]
    assert [str(name) for name in served.worker.engine.sessions()] == ["t"]


def test_the_zap_of_a_worker_refuses_all_but_curve(keys: Keys, serve: Callable[..., Served]) -> None:
    alice = keys.add("alice")
    context = serve().worker._context
    assert context is not None
    key = zmq.utils.z85.decode(alice[0])
    with context.socket(zmq.REQ) as asks:
        asks.rcvtimeo = DEADLINE_S * 1000
        asks.connect("inproc://zeromq.zap.01")
        told = []
        for domain, mechanism, credentials in [
            (b"rnnstream", b"CURVE", [key]),
            (b"rnnstream", b"NULL", []),
            (b"rnnstream", b"PLAIN", [b"admin", b"admin"]),
            (b"rnnstream", b"GSSAPI", [b"admin"]),
            (b"another", b"CURVE", [key]),
            (b"", b"CURVE", [key]),
            (b"rnnstream", b"CURVE", [bytes(32)]),
            (b"rnnstream", b"CURVE", [key, key]),
        ]:
            asks.send_multipart([b"1.0", b"7", domain, b"127.0.0.1", b"", mechanism, *credentials])
            told.append(asks.recv_multipart())
    assert [reply[2] for reply in told] == [b"200"] + [b"400"] * 7
    assert told[0][4].startswith(alice[0].encode() + b" ")


def test_keys_are_read_when_it_runs(keys: Keys) -> None:
    worker = Worker(network(), ANYWHERE, server_key=keys.directory / "nowhere", allow=keys.directory / "allow")
    with pytest.raises(BadKey, match="nowhere"):
        worker.start()
    assert worker.addresses == []
    worker.stop()


@pytest.mark.parametrize(
    "given",
    [
        {"server_key": "k"},
        {"allow": "d"},
        {"admin": "d"},
        {"server_key": "k", "admin": "d"},
        {"quotas": Quotas()},
        {"server_key": "k", "allow": "d", "insecure": True},
    ],
    ids=str,
)
def test_what_goes_with_a_server_key_and_what_does_not(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"go together|go with server_key|without keys"):
        Worker(network(), ANYWHERE, **given)


def test_quotas_are_the_cores(keys: Keys, serve: Callable[..., Served]) -> None:
    alice = keys.add("alice")
    served = serve(quotas=Quotas(sessions=1))
    assert codes(served.peer(alice).ask(step("s", 1), step("t", 1))) == [1, "denied"]


def retried(served: Served, pair: Pair) -> Keyed:
    """A peer that was connected at last; ZeroMQ gives a connection up that was refused."""
    for _ in deadline():
        peer = served.peer(pair)
        if peer.event() == CONNECTED:
            return peer
    raise AssertionError


# Keys that come and go ------------------------------------------------------------------------------------------------


def test_a_removed_key_is_cut_and_gets_nothing_and_the_others_go_on(keys: Keys, serve: Callable[..., Served]) -> None:
    alice, bob = keys.add("alice"), keys.add("bob")
    model = network()
    served = serve(model)
    removed, silent, stays = served.peer(alice), served.peer(alice), served.peer(bob)
    assert [peer.event() for peer in (removed, silent, stays)] == [CONNECTED] * 3
    assert codes(removed.ask(step("s", 1))) == [1]
    a = model.initial_state()
    expected = []
    for x in range(5):
        a, y = model.step(a, x)
        expected.append((x + 1, int(y.argmax()), float(y.max())))
    heard = stays.ask(step("s", 0), step("s", 1))
    keys.remove("alice")
    assert (removed.event(), silent.event()) == (ENDED, ENDED)  # the second had said nothing
    assert removed.event() & REFUSED  # it comes back, and is not admitted any more
    with contextlib.suppress(zmq.Again):  # ZeroMQ may have given up
        removed.socket.send(pack([step("s", 2)]), zmq.NOBLOCK)
    heard += stays.ask(step("s", 2), step("s", 3), step("s", 4))
    assert [(reply["t"], reply["y"], reply["p"]) for reply in heard] == expected
    assert not removed.socket.poll(100)
    assert codes(stays.ask(step("s", 0))) == [6]  # on the connection that it had
    keys.move("alice", "away", "allow")
    assert codes(retried(served, alice).ask(step("s", 2))) == [2]


def test_what_a_removed_key_has_waiting_is_carried_out_and_not_answered(keys: Keys, serve: Callable[..., Served]) -> None:
    alice = keys.add("alice")
    model = Gate()
    served = serve(model)
    peer = served.peer(alice, RECONNECT_IVL=-1)
    assert codes(peer.ask(step("s", 1))) == [1]
    model.reached.clear()
    model.gate.clear()
    for _ in range(10):
        peer.send(step("s", 1))
    assert model.reached.wait(DEADLINE_S)
    served.wait(lambda: served.worker._router.core.stats.bodies >= 1)  # type: ignore[union-attr]
    keys.remove("alice")
    assert (peer.event(), peer.event()) == (CONNECTED, ENDED)
    model.gate.set()
    keys.move("alice", "away", "allow")
    told = retried(served, alice).ask({"op": "info", "session": "s"})
    assert told[0]["t"] >= 2  # at least what was at the gate
    assert not peer.socket.poll(100)


def test_a_key_that_is_added_is_admitted_and_one_that_is_moved_stays_connected(
    keys: Keys, serve: Callable[..., Served]
) -> None:
    alice, bob = keys.add("alice"), keys.make("bob")
    served = serve()
    first, second = served.peer(alice), served.peer(bob)
    assert second.event() & REFUSED
    keys.move("bob", "away", "allow")
    assert codes(retried(served, bob).ask(step("s", 1))) == [1]
    assert codes(first.ask(step("t", 1), {"op": "sessions", "all": True})) == [1, "denied"]
    keys.move("alice", "allow", "admin")
    served.wait(lambda: codes(first.ask({"op": "sessions", "all": True})) != ["denied"])
    (told,) = first.ask({"op": "sessions", "all": True})
    assert dict(zip(told["sessions"], told["owners"], strict=True)) == {"s": bob[0], "t": alice[0]}
    assert first.event() == CONNECTED
    assert not first._events.poll(0)  # and has stayed so


# Routing ids ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", [b"mine", b"\0\0\0\0", b"\1\2\3\4\5"])
def test_a_routing_id_that_a_peer_has_chosen_is_denied(keys: Keys, serve: Callable[..., Served], id: bytes) -> None:
    alice = keys.add("alice")
    served = serve()
    peer = served.peer(alice, id)
    for _ in range(2):
        assert codes(peer.ask(step("s", 1), PING)) == ["denied", "denied"]
    assert served.worker.engine.sessions() == []


def test_a_routing_id_that_is_in_use_gets_nothing_for_good(keys: Keys, serve: Callable[..., Served]) -> None:
    alice, bob = keys.add("alice"), keys.add("bob")
    served = serve()
    victim = served.peer(alice)
    victim.ask(step("s", 1))
    (id,) = served.ids()
    taker = served.peer(bob, id, RECONNECT_IVL=-1)
    assert taker.event() == CONNECTED
    for x in range(20):
        taker.send(step("t", x))
        assert codes(victim.ask(step("s", 1))) == [x + 2]
    victim.close()
    served.wait(lambda: id not in served.ids())
    for x in range(20):
        taker.send(step("t", x))
    assert not taker.socket.poll(200)
    assert [str(name) for name in served.worker.engine.sessions()] == ["s"]


class Steps(Gate):
    """A network that makes so many steps and then waits for more to be let through."""

    def __init__(self) -> None:
        super().__init__()
        self.left = threading.Semaphore(0)

    def advance(self, states: Any, inputs: Any) -> Any:
        assert self.left.acquire(timeout=DEADLINE_S)
        return super().advance(states, inputs)

    def let(self, steps: int) -> None:
        self.left.release(steps)


def test_whoever_takes_over_a_routing_id_gets_no_reply_that_was_computed_for_another(
    keys: Keys, serve: Callable[..., Served]
) -> None:
    alice, bob = keys.add("alice"), keys.add("bob")
    model = Steps()
    served = serve(model)
    victim = served.peer(alice)
    model.let(1)
    assert codes(victim.ask(step("s", 1))) == [1]
    (id,) = served.ids()
    victim.send(*[step("s", 1, want="probs")] * 500)
    victim.close()
    served.wait(lambda: not served.ids())
    model.let(20)  # the loop goes round, and ZeroMQ lets go of the routing id
    for _ in deadline():
        with served.peer(bob, id, RECONNECT_IVL=-1) as taker:
            assert taker.event() == CONNECTED
            taker.send(PING)
            model.let(5)
            if taker._events.poll(100):
                assert taker.event() == ENDED  # cut: it had the routing id while the other one's reply was to come
                break
            assert not taker.socket.poll(0)
    model.let(1000)
    with served.peer(alice) as again:
        assert again.ask({"op": "info", "session": "s"})[0]["t"] == 501  # all was carried out
    assert taken_at_last(served, bob, id) == ["denied"]


def taken_at_last(served: Served, pair: Pair, id: bytes) -> list[Any]:
    """The first thing that whoever takes this routing id is told; ZeroMQ passes over those who come too early."""
    for _ in deadline():
        with served.peer(pair, id) as taker:
            assert taker.event() == CONNECTED
            taker.send(PING)
            if taker.socket.poll(50):
                return codes(taker.recv())
    raise AssertionError


def test_whoever_takes_over_a_routing_id_gets_no_reply_that_waited_for_another(
    keys: Keys, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WAITING_BYTES", "MOST_BYTES"):
        monkeypatch.setattr(outbox_module, name, 1 << 30)  # it is not cut off for what waits
    alice, bob = keys.add("alice"), keys.add("bob")
    layers = [{"kind": "onehot"}, {"kind": "rnn", "size": 3}, {"kind": "dense", "size": 2000}]
    served = serve(network(layers=layers))
    assert served.worker._router is not None
    outbox = served.worker._router.outbox
    victim = served.peer(alice, RCVHWM=1, RCVBUF=4096, SNDHWM=100_000)
    for _ in deadline():
        for _ in range(20):
            victim.send(step("s", 1, want="probs"))  # 8 kB come back for each
        if outbox:
            break
    (id,) = served.ids()
    victim.close()
    assert taken_at_last(served, bob, id) == ["denied"]
    served.wait(lambda: not outbox)
    assert outbox.dropped > 0
    assert outbox.cut_count == 0


def test_of_connections_that_have_ended_nothing_is_left(keys: Keys, serve: Callable[..., Served]) -> None:
    alice = keys.add("alice")
    served = serve()
    open_files = len(os.listdir("/proc/self/fd"))
    for i in range(20):
        with served.peer(alice) as peer:
            assert codes(peer.ask(step("s", 1))) == [i + 1]
    assert served.worker._router is not None
    stats = served.worker._router.core.stats
    served.wait(lambda: stats.connections == 0)
    assert len(served.connections) == 0
    served.wait(lambda: len(os.listdir("/proc/self/fd")) == open_files)


# The thread -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keyed", [False, True])
def test_a_worker_that_starts_and_stops_leaves_nothing_behind(keys: Keys, keyed: bool) -> None:
    alice = keys.add("alice")
    worker = Worker(network(), ANYWHERE, **(keys.options if keyed else {}))
    counts = set()
    for _ in range(20):
        worker.start()
        with Keyed(worker.addresses[0], keys.server[0], alice) if keyed else Peer(worker) as peer:
            assert codes(peer.ask(PING)) == ["?"]
        worker.stop()
        counts.add((threading.active_count(), len(os.listdir("/proc/self/fd"))))
    assert len(counts) == 1


def test_connections_beyond_the_limit_are_cut_and_those_there_go_on(
    keys: Keys, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "most_connections", lambda: 3)
    alice, bob, carol = (keys.add(name) for name in ("alice", "bob", "carol"))  # one for each: a key has a quarter, or one
    served = serve()
    there = [served.peer(key) for key in (alice, bob, carol)]
    for peer in there:
        assert codes(peer.ask(PING)) == ["?"]
    for _ in range(5):
        with (
            socket.create_connection(("127.0.0.1", port(served.worker)), timeout=DEADLINE_S) as raw,
            contextlib.suppress(OSError),
        ):
            while raw.recv(100):
                pass
    served.wait(lambda: len(served.connections) == 3)
    for peer in there:
        assert codes(peer.ask(PING)) == ["?"]
    there[0].close()
    served.wait(lambda: len(served.connections) == 2)
    with served.peer(alice) as peer:
        assert codes(peer.ask(PING)) == ["?"]


def test_an_open_worker_has_the_limit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "most_connections", lambda: 1)
    with serving(network()) as worker, Peer(worker) as peer:
        peer.ask(PING)
        with socket.create_connection(("127.0.0.1", port(worker)), timeout=DEADLINE_S) as raw, contextlib.suppress(OSError):
            while raw.recv(100):
                pass
        assert codes(peer.ask(PING)) == ["?"]


@pytest.mark.parametrize(
    ("files", "most"), [(1024, 832), (100, 24), (20, 1), (524_288, 10_000), (resource.RLIM_INFINITY, 10_000)]
)
def test_how_many_connections_there_may_be(monkeypatch: pytest.MonkeyPatch, files: int, most: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (files, files))
    assert most_connections() == most


def test_a_guard_that_fails_stops_the_worker_and_lets_nobody_in(
    keys: Keys, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: Any, descriptor: int, inode: int) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Connections, "accepted", fail)
    alice = keys.add("alice")
    worker = Worker(network(), ANYWHERE, **keys.options)
    listening, problems = threading.Event(), []

    def run() -> None:
        try:
            worker.run(listening.set)
        except RnnstreamError as problem:
            problems.append(str(problem))

    thread = threading.Thread(target=run)
    thread.start()
    assert listening.wait(DEADLINE_S)
    with Keyed(worker.addresses[0], keys.server[0], alice) as peer:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
        assert not peer.socket.poll(0)
        assert CONNECTED not in iter(lambda: peer.event() if peer._events.poll(0) else 0, 0)
    assert problems == [
        "The worker has stopped, for the thread that admits and cuts connections failed: RuntimeError('a bug')."
    ]
    assert "the guard of the connections failed" in caplog.text
    assert worker.addresses == []
