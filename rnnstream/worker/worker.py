"""`Worker`: a model behind ROUTER addresses, run in the caller's thread or in one of its own."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import zmq

from rnnstream.engine.engine import MAX_SESSIONS, Engine
from rnnstream.engine.numbering import Numbering
from rnnstream.engine.snapshot import snapshot_bytes
from rnnstream.errors import RnnstreamError, StoreError
from rnnstream.model.blas import one_thread
from rnnstream.model.step import StepModel
from rnnstream.store.interface import Identity, Store
from rnnstream.store.sqlite import Durability, SQLiteStore
from rnnstream.wire.limits import Limits
from rnnstream.worker.access import Access
from rnnstream.worker.addresses import bind, exposed, log_reach
from rnnstream.worker.answers import reply_bytes
from rnnstream.worker.connections import Connections
from rnnstream.worker.core import Core
from rnnstream.worker.guard import Guard, most_connections
from rnnstream.worker.intake import MOST_WAITING
from rnnstream.worker.keeper import JOURNAL_TOKENS, Keeper
from rnnstream.worker.logs import PeerLog
from rnnstream.worker.quotas import Quotas
from rnnstream.worker.router import Router, socket_for

log = logging.getLogger("rnnstream.worker")

DEFAULT_BIND = "tcp://127.0.0.1:5555"
UNBOUNDED = 1 << 62  # sessions
LIBZMQ = (4, 3, 5)  # the wheels of pyzmq 26 and later have it; the faults of earlier ones are known to peers
# How long a reply waits for those of the next waves, where more wait, so that one write keeps them all: some writes' length.
HOLD_S = {"process": 0.5e-3, "power": 2e-3}


def limits_for(model: StepModel) -> Limits:
    """The protocol's limits, with room for this model's largest token, largest reply and snapshots."""
    default, state = Limits(), snapshot_bytes(model.state_size, model.dtype.itemsize)
    token = 9 * model.input.size if model.input.kind == "dense" else 0
    return Limits(
        frame_bytes=max(default.frame_bytes, token + 4096, state + 4096),
        reply_bytes=max(
            default.reply_bytes, default.frame_requests * reply_bytes(model), 8 * model.output.size + 4096, state + 4096
        ),
    )


class Worker:
    """Serves a model.

    While it runs, BLAS is held to one thread in the whole process; whoever sets the number meanwhile breaks exactness.

    Args:
        model: anything with the step-model interface.
        bind: one address or several, such as "tcp://127.0.0.1:5555" or "ipc:///tmp/worker"; port * takes a free one.
        max_sessions: most sessions at a time.
        explicit_open: a step to a name that was never open is refused; `open` and `reset` open it.
        idle_timeout_s: seconds after which a session that has not moved expires; None: none does.
        store: path of a file in which the sessions outlive the worker, made if it is not there, or a `Store`; None: they live
            in memory alone.
        durability: of that file. "process" (None): what was acknowledged outlives the process, whatever ends it; after a loss
            of power the last of it may be missing. "power": nothing is acknowledged before it is on the disk.
        max_resident: with a store, most sessions in memory; those least recently used leave it, and come back at their next
            request. None: a million.
        journal_tokens: how much may have to be replayed after a crash, in tokens of 100 numbers of state.
        server_key: path of the worker's secret key file. With it, connections are encrypted (CURVE), only those with an
            admitted key are served, and sessions belong to keys. Goes with `allow`.
        allow: directory of the public key files of the users; read again when something in it changes.
        admin: directory of those of the administrators, who are admitted too.
        insecure: without keys, listen also where others than this machine's can connect.
        quotas: what each key may have.

    Attributes:
        addresses: where it listens, with the real ports; empty while it does not run.
        engine: the sessions in memory. With a store, it is another one for each run.
        id: of this worker, as `hello` says it. Without a store its sessions end with it, not with `stop`.
        replayed: how many steps of the store's journal were made again when it was started last.
    """

    def __init__(
        self,
        model: StepModel,
        bind: str | Sequence[str] = DEFAULT_BIND,
        *,
        max_sessions: int | None = None,
        explicit_open: bool = False,
        idle_timeout_s: float | None = None,
        store: str | Path | Store | None = None,
        durability: Durability | None = None,
        max_resident: int | None = None,
        journal_tokens: int = JOURNAL_TOKENS,
        server_key: str | Path | None = None,
        allow: str | Path | None = None,
        admin: str | Path | None = None,
        insecure: bool = False,
        quotas: Quotas | None = None,
    ) -> None:
        if store is None and max_resident is not None:
            raise ValueError("max_resident goes with a store: without one, sessions have nowhere else to be.")
        if durability is not None and not isinstance(store, str | Path):
            raise ValueError("durability goes with the path of a store: without one, nothing is kept.")
        if (server_key is None) != (allow is None):
            raise ValueError("server_key and allow go together: a worker's key, and the directory of those that are admitted.")
        if server_key is None and (admin is not None or quotas is not None):
            raise ValueError("admin and quotas go with server_key and allow: without keys, all users are the same.")
        if server_key is not None and insecure:
            raise ValueError("insecure is for a worker without keys; leave it, or server_key and allow, out.")
        self._bind = [bind] if isinstance(bind, str) else list(bind)
        if server_key is None and not insecure and (others := exposed(self._bind)):
            raise ValueError(
                f"Others can reach {others[0]}, and without keys they could read and change every session. Give server_key and "
                "allow, bind tcp://127.0.0.1:PORT, or say insecure=True."
            )
        self.model = model
        self.replayed = 0
        self._limits = limits_for(model)
        self._max_resident = max_resident or MAX_SESSIONS
        self._journal_tokens = journal_tokens
        self._store = SQLiteStore(store, durability or "process") if isinstance(store, str | Path) else store
        self._options: dict[str, Any] = {"explicit_open": explicit_open, "idle_timeout_s": idle_timeout_s}
        if self._store is None:
            self._options["max_sessions"] = max_sessions or MAX_SESSIONS
        else:
            self._options["max_sessions"] = max_sessions or UNBOUNDED
            self._options["max_rows"] = self._max_resident + 2 * MOST_WAITING  # those that are waited for come on top
        self.engine = self._new_engine()
        self.id = os.urandom(8).hex()
        self.addresses: list[str] = []
        self._access = Access(server_key, allow, admin) if server_key is not None and allow is not None else None
        self._insecure, self._quotas = insecure, quotas
        self._wake = os.urandom(16)
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._router: Router | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._lock = threading.RLock()

    def _new_engine(self) -> Engine:
        numbering = Numbering(reply_bytes=2 * self._limits.reply_bytes)  # as much as a client has in flight
        return Engine(self.model, numbering=numbering, **self._options)

    def run(self, ready: Callable[[], None] | None = None) -> None:
        """Serve in this thread until `stop` is called from another one.

        Args:
            ready: called once, when it listens.

        Raises:
            RnnstreamError: an address cannot be bound, or it runs already.
            BadKey: a key file or a directory of keys cannot be used.
            BadStore: the store is another model's, damaged, or in use.
        """
        with self._serving() as router:
            if ready:
                ready()
            self._loop(router)

    def start(self) -> None:
        """Serve in a thread of its own; returns once it listens.

        Raises:
            RnnstreamError: an address cannot be bound, or it runs already.
            BadKey: a key file or a directory of keys cannot be used.
            BadStore: the store is another model's, damaged, or in use.
        """
        serving = contextlib.ExitStack()
        router = serving.enter_context(self._serving())

        def work() -> None:
            with serving:
                self._loop(router)

        self._thread = threading.Thread(target=work, name="rnnstream-worker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop reading, answer what was read, and end; after `start` this waits for the end. Harmless when it does not run."""
        self._end()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _end(self) -> None:
        """Have the loop end, whichever thread this is."""
        with self._lock:
            self._stopping = True
            if self._router is not None:
                self._router.stopping = True
                with contextlib.suppress(zmq.Again):  # it has been woken a thousand times
                    self._waker.send(self._wake, zmq.NOBLOCK)  # the loop waits in a read: give it something to read

    def _let_go(self) -> None:
        """Nobody wakes the loop from here on."""
        with self._lock:
            self._router = None

    @property
    def _inproc(self) -> str:
        return f"inproc://rnnstream-{self.id}"

    def _loop(self, router: Router) -> None:
        with one_thread():
            router.run()

    @contextlib.contextmanager
    def _serving(self) -> Iterator[Router]:
        """A bound router, and everything closed behind it."""
        if zmq.zmq_version_info() < LIBZMQ:
            raise RnnstreamError(
                f"A worker needs libzmq {'.'.join(map(str, LIBZMQ))} or later, and pyzmq {zmq.__version__} is here with "
                f"{zmq.zmq_version()}; pip install --force-reinstall --only-binary pyzmq pyzmq brings one with it."
            )
        with self._lock:
            if self._context is not None:
                raise RnnstreamError("This worker runs already.")
            self._context = zmq.Context()
            self._stopping = False
        try:
            with contextlib.ExitStack() as stack:
                peer_log = PeerLog()
                log.addFilter(peer_log)
                stack.callback(log.removeFilter, peer_log)
                access = self._access
                keeper = self._open_store(stack) if self._store is not None else None
                socket = stack.enter_context(socket_for(self._context, frame_bytes=self._limits.frame_bytes))
                connections = Connections(most_connections())
                if access is not None:
                    access.secure(socket)
                    connections.set_keys(access.keys)
                core = Core(
                    self.engine,
                    worker=self.id,
                    version=importlib.metadata.version("rnnstream"),
                    limits=self._limits,
                    keeper=keeper,
                    hold_s=HOLD_S.get(self._store.durability, 0.0) if self._store is not None else 0.0,
                    quotas=self._quotas,
                    is_admin=lambda key: access is not None and key in access.admins,
                    secret=b"" if access is None else access.secret,
                )
                stack.enter_context(Guard(socket, connections, stats=core.stats, access=access, stop=self._end))
                socket.bind(self._inproc)
                # Made before it is needed: when there are no descriptors left, the worker can still be stopped.
                self._waker = stack.enter_context(self._context.socket(zmq.DEALER))
                self._waker.connect(self._inproc)
                self._waker.send(b"")
                first, _ = socket.recv_multipart()  # before anybody else can connect: a routing id that ZeroMQ has made
                for address in self._bind:
                    self.addresses.append(bind(socket, address))
                    if access is None and not self._insecure and exposed(self.addresses):
                        raise RnnstreamError(f"{address} is {self.addresses[-1]} here, which others can reach; bind 127.0.0.1.")
                if access is not None:
                    log.info("CURVE at %s: %s; the worker's key is %s", ", ".join(self.addresses), access, access.public)
                else:
                    log_reach(self.addresses)
                clock = time.monotonic if keeper is None else stack.enter_context(self._kept(core, keeper))
                router = Router(
                    socket,
                    core,
                    wake=self._wake,
                    clock=clock,
                    connections=None if access is None else connections,
                    first=first if access is None else None,
                )
                with self._lock:
                    self._router, router.stopping = router, self._stopping
                stack.callback(self._let_go)
                yield router
        finally:
            self.addresses = []
            self._context.term()
            self._context = None

    def _open_store(self, stack: contextlib.ExitStack) -> Keeper:
        """Take hold of the store, for an engine that has nothing in it yet."""
        assert self._store is not None
        model = self.model
        dtype = model.dtype.newbyteorder("<").str
        found = self._store.open(Identity(model.digest, model.name, dtype, model.state_size, model.numerics))
        stack.callback(self._store.close)
        self.engine = self._new_engine()
        return Keeper(self.engine, self._store, found, max_resident=self._max_resident, journal_tokens=self._journal_tokens)

    @contextlib.contextmanager
    def _kept(self, core: Core, keeper: Keeper) -> Iterator[Callable[[], float]]:
        """Put the sessions together that the store keeps, and save them all at the end. The clock of the store, going on."""
        assert self._store is not None
        with one_thread():
            self.replayed, last = core.begin(self._store)
        table = self.engine.table
        log.info("the store has %d sessions open", table.open_count + table.absent)
        if self.replayed:
            log.info(
                "%d tokens of the store's journal replayed: the worker before this one did not end by itself", self.replayed
            )
        if keeper.other_numerics:
            log.warning(
                "the store was written on other kernels (%s; here %s): its states go on with other last bits",
                keeper.other_numerics,
                self.model.numerics,
            )
        began = time.monotonic() - last

        def clock() -> float:
            return time.monotonic() - began

        if keeper.other_numerics:
            keeper.finish(clock())  # so that nothing is replayed once more on other kernels still
        yield clock
        try:
            keeper.finish(clock())
        except StoreError as error:
            log.error("not all sessions could be saved at the end; what was acknowledged is in the journal: %s", error)
