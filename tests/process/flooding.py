"""Producers that send as fast as a socket takes it, whatever comes back: each kind of flood, in a process of its own."""

from __future__ import annotations

import itertools
import os
import sys
from multiprocessing.synchronize import Event

import msgpack
import zmq

FLYING = 1000  # bodies in flight of a flood that reads; without a bound, a worker would cut it off at 8 MB of replies
BUSY = "a busy loop"  # no flood, but it takes as much of the processor
SINGLE = "tokens of one session"
LARGE = "bodies of 512 tokens of one session"
MANY = "tokens of 1,000 sessions"
QUESTIONS = "hello, ping and peek"
UNREAD = "tokens, replies never read"
KINDS = (BUSY, SINGLE, LARGE, MANY, QUESTIONS, UNREAD)

pack = msgpack.packb


def bodies_of(kind: str) -> list[bytes]:
    """What a flood of this kind sends, over and over."""
    if kind == LARGE:
        return [b"".join(pack({"session": "flood", "x": i % 50}) for i in range(512))]
    if kind == MANY:
        return [pack({"session": f"flood-{i}", "x": i % 50}) for i in range(1000)]
    if kind == QUESTIONS:
        return [pack({"op": "hello"}), pack({"op": "ping"}), pack({"op": "peek", "session": "flood", "xs": [1] * 16})]
    return [pack({"session": "flood", "x": i % 50}) for i in range(50)]


def flood(kind: str, address: str, begun: Event, processor: int | None = None) -> None:
    """Send as fast as the socket takes it, for ever; `begun` is set when it has."""
    if processor is not None:
        os.sched_setaffinity(0, {processor})
    os.nice(10)
    if kind == BUSY:
        begun.set()
        while True:
            pass
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    reads = kind != UNREAD
    socket.rcvhwm = 0 if reads else 1
    socket.connect(address)
    socket.send(pack({"session": "flood", "x": 1}))
    socket.recv()
    begun.set()
    bodies = bodies_of(kind)
    most = FLYING if reads else sys.maxsize
    endless = itertools.cycle(bodies)
    body, flying = next(endless), 0
    while True:
        try:
            for _ in range(min(50, most - flying)):
                socket.send(body, zmq.NOBLOCK)
                body = next(endless)
                flying += 1
            if flying >= most:
                raise zmq.Again
        except zmq.Again:
            socket.poll(100, (zmq.POLLIN if reads else 0) | (zmq.POLLOUT if flying < most else 0))
        try:
            while reads:
                socket.recv(zmq.NOBLOCK)
                flying -= 1
        except zmq.Again:
            pass
