"""A worker on real sockets: envelopes, peers that misbehave, start and stop."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

import rnnstream
from rnnstream.errors import RnnstreamError
from rnnstream.wire.replies import decode
from rnnstream.worker import router as router_module
from rnnstream.worker import worker as worker_module
from rnnstream.worker.worker import Worker
from tests.engine.models import V, network

from .driving import codes, pack, step
from .serving import ANYWHERE, DEADLINE_S, Gate, Peer, deadline, serving

PING = pack([{"op": "ping"}])


class Stream:
    """A peer that streams into a session of its own and compares every reply."""

    def __init__(self, worker: Worker, session: str) -> None:
        self.peer, self.session, self.model = Peer(worker), session, worker.model
        self.a, self.t, self.rng = self.model.initial_state(), 0, np.random.default_rng(len(session))

    def go(self) -> None:
        x = int(self.rng.integers(V))
        self.a, y = self.model.step(self.a, x)
        self.t += 1
        (reply,) = self.peer.ask(step(self.session, x))
        assert reply.pop("opened", False) == (self.t == 1)
        assert reply == {"session": self.session, "t": self.t, "y": int(y.argmax()), "p": float(y.max())}

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.peer.close()


# Envelopes ------------------------------------------------------------------------------------------------------------


def test_a_req_gets_its_delimiter_back() -> None:
    with serving(network()) as worker, Peer(worker, zmq.REQ) as peer:
        for t in range(1, 5):
            assert codes(peer.ask(step("s", 1), step("s", 2))) == [2 * t - 1, 2 * t]


@pytest.mark.parametrize("envelope", [[b""], [b"a"], [b"\x00\x01", b"", b"b" * 255], [b"%d" % i for i in range(8)], [b""] * 8])
def test_an_envelope_comes_back_as_it_was(envelope: list[bytes]) -> None:
    with serving(network()) as worker, Peer(worker) as peer:
        for t in range(1, 4):
            peer.socket.send_multipart([*envelope, pack([step("s", 1)])])
            *frames, body = peer.socket.recv_multipart()
            assert frames == envelope
            assert codes(decode(body)) == [t]
        peer.socket.send_multipart([*envelope, b"\xc1"])
        *frames, body = peer.socket.recv_multipart()
        assert frames == envelope
        assert codes(decode(body)) == ["bad_message"]


@pytest.mark.parametrize("envelope", [[b""] * 9, [b"x"] * 100, [b"x" * 256], [b"", b"x" * 100_000, b""], [b"x" * 500_000] * 10])
def test_an_envelope_that_is_too_large_is_told_so_without_it(envelope: list[bytes]) -> None:
    with serving(network()) as worker, Peer(worker) as peer:
        peer.ask(step("s", 1))
        peer.socket.send_multipart([*envelope, pack([step("s", 1)])])
        (body,) = peer.socket.recv_multipart()
        assert codes(decode(body)) == ["bad_message"]
        assert codes(peer.ask(step("s", 1))) == [2]


def test_a_single_frame_is_a_body_even_an_empty_one() -> None:
    with serving(network()) as worker, Peer(worker) as peer:
        for body in (b"", b"\x00", worker._wake):
            peer.socket.send(body)
            assert codes(peer.recv())[-1] == "bad_message"  # the wake-up, random bytes, may begin like a map
        assert codes(peer.ask(step("s", 1))) == [1]


def test_envelopes_of_one_connection_are_answered_in_their_order() -> None:
    with serving(network()) as worker, Peer(worker) as peer:
        for i in range(300):
            session = f"s{i % 3}"
            body = [step(session, 1)] * (1 + 9 * (i % 7 == 0)) if i % 5 else [{"op": "ping"}]
            peer.socket.send_multipart([b"%d" % i] * (i % 4) + [pack([{**item, "id": i} for item in body])])
        for i in range(300):
            *frames, reply = peer.socket.recv_multipart()
            assert frames == [b"%d" % i] * (i % 4)
            assert {item["id"] for item in decode(reply)} == {i}


# Company --------------------------------------------------------------------------------------------------------------


def test_many_peers_have_their_own_bits_and_order() -> None:
    model = network("lstm")
    rng = np.random.default_rng(5)
    tokens = rng.integers(V, size=(8, 100)).tolist()
    with serving(model) as worker:
        peers = [Peer(worker) for _ in tokens]
        for t in range(0, 100, 10):
            for i, peer in enumerate(peers):
                xs = tokens[i][t : t + 10]
                if i % 2:
                    peer.send(*(step(f"s{i}", x) for x in xs))
                else:
                    for x in xs:
                        peer.send(step(f"s{i}", x))
        for i, peer in enumerate(peers):
            replies = [reply for _ in range(10 if i % 2 else 100) for reply in peer.recv()]
            ys = model.forward(tokens[i])
            assert [reply["t"] for reply in replies] == list(range(1, 101))
            assert [reply["y"] for reply in replies] == ys.argmax(axis=1).tolist()
            assert [reply["p"] for reply in replies] == ys.max(axis=1).tolist()
            peer.close()
        assert sorted(worker.engine.sessions()) == [f"s{i}" for i in range(8)]


def test_a_session_outlives_its_connections() -> None:
    model = network()
    with serving(model) as worker:
        for t in range(1, 5):
            with Peer(worker) as peer:
                assert codes(peer.ask(step("s", t))) == [t]
        worker.stop()
        assert worker.engine.state("s").tobytes() == model.run([1, 2, 3, 4]).tobytes()


def test_a_frame_over_the_limit_ends_its_connection_and_no_other() -> None:
    with serving(network()) as worker, Peer(worker) as giant, Stream(worker, "good") as stream:
        stream.go()
        limit = giant.ask({"op": "hello"})[0]["limits"]["frame_bytes"]
        giant.socket.send(b"\xc1" * limit)
        assert codes(giant.recv()) == ["bad_message"]
        events = giant.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        giant.socket.send(b"\xc1" * (limit + 1))
        for _ in deadline():
            stream.go()
            if events.poll(10):
                break
        giant.socket.disable_monitor()
        events.close()
        assert codes(giant.ask(step("again", 1))) == [1]  # on a connection of its own
        stream.go()


def test_whoever_connects_and_says_nothing_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_module, "HANDSHAKE_MS", 50)
    with serving(network()) as worker, Peer(worker) as peer:
        peer.ask({"op": "ping"})
        host, port = worker.addresses[0].removeprefix("tcp://").split(":")
        with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as silent:
            while silent.recv(100):  # its greeting
                pass
        assert codes(peer.ask(step("s", 1))) == [1]  # whoever has said who he is may be silent


def test_garbage_of_one_peer_harms_no_other() -> None:
    rng = np.random.default_rng(7)
    with serving(network()) as worker, Peer(worker) as bad, Stream(worker, "good") as stream:
        for i in range(300):
            frames = [rng.bytes(int(rng.integers(40))) for _ in range(1 + i % 3)]
            bad.socket.send_multipart(frames)
            stream.go()
            *envelope, body = bad.socket.recv_multipart()
            assert envelope == frames[:-1]
            assert "error" in decode(body)[-1]


# Peers that do not read, or are gone ------------------------------------------------------------------------------------


def test_a_peer_that_does_not_read_is_cut_off_and_no_other() -> None:
    layers = [{"kind": "onehot"}, {"kind": "rnn", "size": 3}, {"kind": "dense", "size": 2000}]
    with serving(network(layers=layers)) as worker, Peer(worker, RCVHWM=1, RCVBUF=4096, SNDHWM=100_000) as bad:
        assert worker._router is not None
        outbox = worker._router.outbox
        with Stream(worker, "good") as stream:
            sent = 0
            body = pack([step("bad", 1, want="probs")])  # 8 kB come back for each
            for _ in deadline():
                for _ in range(20):
                    bad.socket.send(body)
                    sent += 1
                stream.go()
                if outbox.cut:
                    break
                assert sent < 50_000
            with Peer(worker) as other:
                for _ in deadline():  # until all of its requests have been read
                    stream.go()
                    if other.ask({"op": "info", "session": "bad"})[0]["t"] == sent or not worker._router.core.waiting:
                        break
            bad.socket.setsockopt(zmq.RCVTIMEO, 300)
            seen = []
            try:
                while True:
                    (reply,) = bad.recv()
                    seen.append(reply["t"])
                    if len(seen) % 100 == 0:
                        bad.send(step("late", 1))  # not looked at any more
            except zmq.Again:
                pass
            assert seen == list(range(1, len(seen) + 1))  # nothing is missing in what it got
            assert 0 < len(seen) < sent
            assert outbox.dropped > 0
            for _ in range(20):
                stream.go()
            with Peer(worker) as other:
                (info,) = other.ask({"op": "info", "session": "bad"})
                assert len(seen) < info["t"] <= sent  # its session lives on, for a new connection
                assert codes(other.ask(step("bad", 1))) == [info["t"] + 1]
                assert other.ask({"op": "info", "session": "late"})[0]["why"] == "never"


@pytest.mark.parametrize("envelope", [[], [b"e"]])
def test_replies_that_wait_for_a_slow_reader_come_whole_and_in_order(envelope: list[bytes]) -> None:
    layers = [{"kind": "onehot"}, {"kind": "rnn", "size": 3}, {"kind": "dense", "size": 2000}]
    with serving(network(layers=layers)) as worker, Peer(worker, RCVHWM=1, RCVBUF=4096, SNDHWM=100_000) as slow:
        assert worker._router is not None
        outbox = worker._router.outbox
        with Stream(worker, "good") as stream:
            sent = 0
            for _ in deadline():
                slow.socket.send_multipart([*envelope, pack([step("slow", 1, want="probs")])])
                sent += 1
                stream.go()
                if outbox:
                    break
            for t in range(1, sent + 1):
                *frames, body = slow.socket.recv_multipart()
                assert frames == envelope
                assert codes(decode(body)) == [t]
            for _ in deadline():
                stream.go()
                if not outbox:
                    break
            assert (outbox.dropped, len(outbox.cut), outbox.waiting) == (0, 0, {})


def test_a_reply_to_a_peer_that_is_gone_is_dropped_and_counted() -> None:
    with serving(network()) as worker:
        assert worker._router is not None
        outbox = worker._router.outbox
        count = 0
        with Stream(worker, "good") as stream:
            for _ in deadline():
                with Peer(worker) as peer:
                    peer.ask({"op": "ping"})
                    peer.socket.setsockopt(zmq.LINGER, DEADLINE_S * 1000)
                    count += 1
                    peer.send(*[step(f"gone{count}", 1)] * 200)
                    peer.socket.close()
                stream.go()
                if outbox.dropped:
                    break
            with Peer(worker) as peer:
                for i in range(1, count + 1):  # behind what was sent, which has counted
                    assert peer.ask({"op": "info", "session": f"gone{i}"})[0]["t"] == 200
            assert not outbox


# Start and stop ---------------------------------------------------------------------------------------------------------


def test_stop_answers_what_was_read() -> None:
    model = Gate()
    with serving(model) as worker, Peer(worker) as peer:
        peer.ask(step("s", 1))
        router = worker._router
        assert router is not None
        model.reached.clear()
        model.gate.clear()
        peer.send(*[step("s", 1)] * 50)
        assert model.reached.wait(DEADLINE_S)
        stopper = threading.Thread(target=worker.stop)
        stopper.start()
        for _ in deadline():
            if router.stopping:
                break
        model.gate.set()
        assert codes(peer.recv()) == list(range(2, 52))
        stopper.join(DEADLINE_S)
        assert not stopper.is_alive()
        assert worker.addresses == []


def test_a_worker_can_be_started_again_and_its_sessions_live_on() -> None:
    model = network()
    worker = Worker(model, bind=ANYWHERE)
    ids = set()
    for i in range(3):
        worker.start()
        with Peer(worker) as peer:
            assert codes(peer.ask(step("s", 1), step("s", 2), step(f"s{i}", 3))) == [2 * i + 1, 2 * i + 2, 1]
            assert codes(peer.ask(step("s0", 1))) == [i + 2]
            ids.add(peer.ask({"op": "ping"})[0]["worker"])
        worker.stop()
        assert worker.addresses == []
    assert worker.engine.state("s").tobytes() == model.run([1, 2] * 3).tobytes()
    assert ids == {worker.id}


def test_an_address_that_is_taken() -> None:
    with serving(network()) as first:
        (address,) = first.addresses
        second = Worker(network(), bind=[ANYWHERE, address])
        for _ in range(2):
            with pytest.raises(RnnstreamError, match=f"Cannot listen at {address}: Address already in use"):
                second.start()
            assert second.addresses == []
        with Peer(first) as peer:
            assert peer.ask({"op": "ping"})[0]["ok"]
        second.stop()
    second.start()
    assert second.addresses[1] == address
    second.stop()


@pytest.mark.parametrize("address", ["nonsense", "tcp://no such host:5", "udp://127.0.0.1:5", ""])
def test_an_address_that_is_none(address: str) -> None:
    worker = Worker(network(), bind=address, insecure=True)
    for begin in (worker.start, worker.run):
        with pytest.raises(RnnstreamError, match="Cannot listen at"):
            begin()


@pytest.mark.parametrize("port", ["65536", "70000"])
def test_a_port_that_is_none(port: str) -> None:
    with pytest.raises(RnnstreamError, match="Cannot listen at"):
        Worker(network(), f"tcp://127.0.0.1:{port}").start()


@pytest.mark.parametrize("address", ["tcp://0.0.0.0:*", "tcp://*:*", "ipc://@rnnstream-test", "udp://127.0.0.1:5"])
def test_an_address_that_others_can_reach_is_refused_without_keys(address: str) -> None:
    with pytest.raises(ValueError, match="and without keys they could read and change every session") as caught:
        Worker(network(), bind=["tcp://127.0.0.1:*", address])
    assert str(caught.value).startswith(f"Others can reach {address}, ")


def test_insecure_binds_it_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with serving(network(), bind="tcp://0.0.0.0:*", insecure=True) as worker:
        (address,) = worker.addresses
        assert [record.getMessage() for record in caplog.records] == [
            f"INSECURE: anybody who reaches {address} can read, change and end every session"
        ]


def test_a_name_that_is_others_here_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "bind", lambda socket, address: "tcp://10.1.2.3:5555")  # what a hosts file could say
    worker = Worker(network(), bind="tcp://localhost:5555")
    with pytest.raises(RnnstreamError, match=r"tcp://localhost:5555 is tcp://10.1.2.3:5555 here, which others can reach"):
        worker.start()
    assert worker.addresses == []


def test_a_libzmq_with_known_faults_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(network(), bind=ANYWHERE)
    with monkeypatch.context() as patch:
        patch.setattr(zmq, "zmq_version_info", lambda: (4, 3, 4))
        patch.setattr(zmq, "zmq_version", lambda: "4.3.4")
        with pytest.raises(
            RnnstreamError, match=f"needs libzmq 4.3.5 or later, and pyzmq {zmq.__version__} is here with 4.3.4"
        ):
            worker.start()
    worker.start()
    worker.stop()


def test_keys_take_a_libzmq_that_has_curve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(zmq, "has", lambda name: False)
    worker = Worker(network(), bind=ANYWHERE, server_key=tmp_path / "k", allow=tmp_path)
    with pytest.raises(RnnstreamError, match="built here without CURVE, which keys need"):
        worker.start()


def test_the_file_of_an_ipc_address_is_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with serving(network(), bind=f"ipc://{tmp_path}/w") as worker, Peer(worker) as peer:
            assert (tmp_path / "w").stat().st_mode & 0o7777 == 0o600
            assert peer.ask({"op": "ping"})[0]["ok"]
            assert os.umask(0) == 0
    finally:
        os.umask(before)


def test_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    worker = Worker(network(), bind=["tcp://127.0.0.1:*", "tcp://[::1]:*"])
    worker.start()
    try:
        for address in worker.addresses:
            with rnnstream.Client(address) as client:
                assert client.session(address).step(1).t == 1
    finally:
        worker.stop()


def test_a_worker_runs_once_at_a_time() -> None:
    with serving(network()) as worker:
        for begin in (worker.start, worker.run):
            with pytest.raises(RnnstreamError, match="runs already"):
                begin()
        with Peer(worker) as peer:
            assert codes(peer.ask(step("s", 1))) == [1]


def test_run_serves_in_the_callers_thread_until_it_is_stopped(tmp_path: Path) -> None:
    worker = Worker(network(), bind=[ANYWHERE, f"ipc://{tmp_path}/w"])
    listening = threading.Event()
    thread = threading.Thread(target=worker.run, args=(listening.set,))
    thread.start()
    assert listening.wait(DEADLINE_S)
    assert worker.addresses[0].startswith("tcp://127.0.0.1:")
    assert worker.addresses[1] == f"ipc://{tmp_path}/w"
    for address in list(worker.addresses):
        worker.addresses = [address]
        with Peer(worker) as peer:
            assert peer.ask({"op": "ping"}) == [{"ok": True, "worker": worker.id}]
    worker.stop()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


def test_stop_is_harmless_at_any_time_and_from_anywhere() -> None:
    worker = Worker(network(), bind=ANYWHERE)
    worker.stop()
    problems: list[Any] = []

    def stop() -> None:
        try:
            worker.stop()
        except BaseException as problem:
            problems.append(problem)

    for _ in range(20):
        worker.start()
        threads = [threading.Thread(target=stop) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive()
        assert problems == []
        assert worker.addresses == []
    worker.stop()


def test_a_worker_is_stopped_from_within_its_own_thread() -> None:
    worker = Worker(network(), bind=ANYWHERE)
    done = threading.Event()

    def run() -> None:
        worker.run(worker.stop)
        done.set()

    threading.Thread(target=run).start()
    assert done.wait(DEADLINE_S)
