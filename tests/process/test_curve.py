"""A worker with keys in a process of its own: who is served, who goes, and what a crowd of strangers can do."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zmq

from rnnstream import Client, RnnstreamError, load
from rnnstream.keys import read_pair, write_pair
from tests.process.exactness import VOCABULARY, token_model
from tests.worker_process import DEADLINE_S, serving


class Users:
    """Keys in files: of a worker, and of users in the folder that it admits."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.server, secret = write_pair(directory / "worker")
        self.folder = directory / "users"
        self.folder.mkdir()
        self.options = ("--server-key", secret, "--allow", self.folder)

    def add(self, name: str) -> Path:
        """A user who is admitted: the secret file."""
        public, secret = write_pair(self.directory / name)
        os.rename(public, self.folder / public.name)
        return secret

    def client(self, address: str, secret: Path, timeout_s: float = DEADLINE_S) -> Client:
        return Client(address, server_key=self.server, client_key=secret, timeout_s=timeout_s)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return token_model(tmp_path_factory.mktemp("models"))


@pytest.fixture
def users(tmp_path):
    return Users(tmp_path)


def deadline():
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        yield
    raise AssertionError(f"it has not happened in {DEADLINE_S} s")


def test_a_user_who_is_removed_gets_nothing_more_and_the_others_keep_their_bits(path, users):
    alice, bob = users.add("alice"), users.add("bob")
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, 400).tolist()
    with serving(path, *users.options) as (address, _), users.client(address, bob) as stays:
        heard = []
        with users.client(address, alice, timeout_s=1) as goes:
            session = goes.session("shared name")
            for x in tokens[:100]:
                heard.append(stays.session("shared name").step(x, want="probs").probs.tobytes())
                session.step(x)
            (users.folder / "alice.key").unlink()
            with pytest.raises(RnnstreamError):
                session.feed(step for step, _ in zip(itertools.repeat(0), deadline(), strict=False))
        for x in tokens[len(heard) :]:
            heard.append(stays.session("shared name").step(x, want="probs").probs.tobytes())
    assert heard == [y.astype("<f4").tobytes() for y in load(path).forward(tokens)]


def test_a_user_who_is_added_later_is_served(path, users):
    with serving(path, *users.options) as (address, _):
        bob = users.add("bob")
        for _ in deadline():
            with users.client(address, bob, timeout_s=1) as client, contextlib.suppress(RnnstreamError):
                assert client.session("s").step(1).t == 1
                break


def test_a_crowd_of_strangers_beyond_all_descriptors_harms_nobody(path, users):
    alice = users.add("alice")
    limit = 120
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, 100).tolist()

    def few_files():
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    command = [sys.executable, "-m", "rnnstream", "serve", path, "--bind", "tcp://127.0.0.1:*", *users.options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=few_files) as worker:
        try:
            assert worker.stdout is not None
            address = worker.stdout.readline().decode().split()[1]
            port = int(address.rpartition(":")[2])
            with users.client(address, alice) as client, contextlib.ExitStack() as crowd:
                heard = [client.session("s").step(x, want="probs").probs.tobytes() for x in tokens[:10]]
                strangers = [crowd.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(3 * limit)]
                heard += [client.session("s").step(x, want="probs").probs.tobytes() for x in tokens[10:50]]
                for stranger in strangers[:limit]:  # those who have been silent for longest are cut
                    stranger.settimeout(DEADLINE_S)
                    with contextlib.suppress(ConnectionError):
                        while stranger.recv(100):
                            pass
                heard += [client.session("s").step(x, want="probs").probs.tobytes() for x in tokens[50:]]
                assert len(os.listdir(f"/proc/{worker.pid}/fd")) < limit
            with users.client(address, alice) as client:
                assert client.session("s").info()["t"] == len(tokens)
        finally:
            worker.terminate()
            _, stderr = worker.communicate(timeout=DEADLINE_S)
    assert worker.returncode == 0
    assert stderr.count(b"as many as may be") >= 1
    assert b"Traceback" not in stderr
    assert heard == [y.astype("<f4").tobytes() for y in load(path).forward(tokens)]


def test_strangers_do_not_fill_the_log(path, users):
    server = read_pair(users.directory / "worker.key_secret")[0].encode()
    with serving(path, *users.options) as (address, process):
        began = time.monotonic()
        with zmq.Context() as context:
            for _ in range(60):
                with context.socket(zmq.DEALER) as stranger:
                    stranger.linger = 0
                    stranger.curve_serverkey = server
                    stranger.curve_publickey, stranger.curve_secretkey = zmq.curve_keypair()
                    events = stranger.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
                    stranger.connect(address)
                    events.recv_multipart()
                    stranger.disable_monitor()
                    events.close()
        seconds = time.monotonic() - began
        with open(f"/proc/{process.pid}/fd/2", "rb") as log:  # the file that it logs to
            lines = log.read().splitlines()
    refused = [line for line in lines if b"a key that is not admitted was refused: " in line]
    assert 1 <= len(refused) <= 10 * (int(seconds) + 2)
    if len(refused) < 60:
        assert any(b"held back" in line for line in lines)
