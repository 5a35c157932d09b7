"""`Worker`: a model behind ROUTER addresses, run in the caller's thread or in one of its own."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import threading
from collections.abc import Callable, Iterator, Sequence

import zmq

from rnnstream.engine.engine import MAX_SESSIONS, Engine
from rnnstream.engine.numbering import Numbering
from rnnstream.engine.snapshot import snapshot_bytes
from rnnstream.errors import RnnstreamError
from rnnstream.model.blas import one_thread
from rnnstream.model.step import StepModel
from rnnstream.wire.limits import Limits
from rnnstream.worker.answers import reply_bytes
from rnnstream.worker.core import Core
from rnnstream.worker.router import Router, socket_for

DEFAULT_BIND = "tcp://127.0.0.1:5555"


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

    Attributes:
        addresses: where it listens, with the real ports; empty while it does not run.
        id: of this worker, as `hello` says it; its sessions end with it, not with `stop`.
    """

    def __init__(
        self,
        model: StepModel,
        bind: str | Sequence[str] = DEFAULT_BIND,
        *,
        max_sessions: int = MAX_SESSIONS,
        explicit_open: bool = False,
        idle_timeout_s: float | None = None,
    ) -> None:
        self.model = model
        self._limits = limits_for(model)
        self.engine = Engine(
            model,
            max_sessions=max_sessions,
            explicit_open=explicit_open,
            idle_timeout_s=idle_timeout_s,
            numbering=Numbering(reply_bytes=2 * self._limits.reply_bytes),  # as much as a client has in flight
        )
        self.id = os.urandom(8).hex()
        self.addresses: list[str] = []
        self._bind = [bind] if isinstance(bind, str) else list(bind)
        self._wake = os.urandom(16)
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._router: Router | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._lock = threading.RLock()

    def run(self, ready: Callable[[], None] | None = None) -> None:
        """Serve in this thread until `stop` is called from another one.

        Args:
            ready: called once, when it listens.

        Raises:
            RnnstreamError: an address cannot be bound, or it runs already.
        """
        with self._serving() as router:
            if ready:
                ready()
            self._loop(router)

    def start(self) -> None:
        """Serve in a thread of its own; returns once it listens.

        Raises:
            RnnstreamError: an address cannot be bound, or it runs already.
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
        with self._lock:
            self._stopping = True
            if self._router is not None and self._context is not None:
                self._router.stopping = True
                with self._context.socket(zmq.DEALER) as socket:  # the loop waits in a read: give it something to read
                    socket.setsockopt(zmq.LINGER, 1000)
                    socket.connect(self._inproc)
                    socket.send(self._wake)
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    @property
    def _inproc(self) -> str:
        return f"inproc://rnnstream-{self.id}"

    def _loop(self, router: Router) -> None:
        with one_thread():
            router.run()

    @contextlib.contextmanager
    def _serving(self) -> Iterator[Router]:
        """A bound router, and everything closed behind it."""
        with self._lock:
            if self._context is not None:
                raise RnnstreamError("This worker runs already.")
            self._context = zmq.Context()
            self._stopping = False
        socket = None
        try:
            socket = socket_for(self._context, frame_bytes=self._limits.frame_bytes)
            socket.bind(self._inproc)
            for address in self._bind:
                self.addresses.append(_bind(socket, address))
            core = Core(self.engine, worker=self.id, version=importlib.metadata.version("rnnstream"), limits=self._limits)
            router = Router(socket, core, wake=self._wake)
            with self._lock:
                self._router, router.stopping = router, self._stopping
            yield router
        finally:
            with self._lock:  # nobody wakes it from here on
                self._router = None
            self.addresses = []
            if socket is not None:
                socket.close()
            self._context.term()
            self._context = None


def _bind(socket: zmq.Socket[bytes], address: str) -> str:
    """Bind, and say where: the address with the real port."""
    try:
        socket.setsockopt(zmq.IPV6, int("[" in address))
        socket.bind(address)
    except zmq.ZMQError as problem:
        form = "" if "://" in address else " An address looks like tcp://127.0.0.1:5555."
        raise RnnstreamError(f"Cannot listen at {address}: {problem}.{form}") from None
    real = socket.getsockopt_string(zmq.LAST_ENDPOINT)
    port = address.rpartition(":")[2]
    if address.startswith("tcp:") and port not in ("*", "0") and port != real.rpartition(":")[2]:
        raise RnnstreamError(f"Cannot listen at {address}: a port is a number from 1 to 65535, or * for a free one.")
    return real
