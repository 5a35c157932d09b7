"""`rnnstream serve`: a worker in this process."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import resource
import signal
import threading

import click

from rnnstream.cli.options import load_model
from rnnstream.store.sqlite import Durability
from rnnstream.worker.addresses import exposed
from rnnstream.worker.quotas import WAITING, Quotas
from rnnstream.worker.worker import DEFAULT_BIND, Worker

log = logging.getLogger("rnnstream")


@click.command()
@click.argument("model", required=False)
@click.option(
    "--bind", multiple=True, default=(DEFAULT_BIND,), show_default=True, help="Address to listen at; may be repeated."
)
@click.option("--max-sessions", type=click.IntRange(1), help="Most sessions at a time; 1,000,000, or with a store, no bound.")
@click.option("--idle-timeout", type=click.FloatRange(0, min_open=True), help="Seconds after which an idle session expires.")
@click.option("--explicit-open", is_flag=True, help="Refuse tokens to names that were never open; open and reset open them.")
@click.option("--store", type=click.Path(dir_okay=False), help="File in which the sessions outlive the worker; SQLite.")
@click.option(
    "--durability",
    type=click.Choice(["process", "power"]),
    help="What an acknowledged token outlives: the end of the process (the default), or a loss of power too.",
)
@click.option("--max-resident", type=click.IntRange(1), help="With a store: most sessions in memory; 1,000,000 unless given.")
@click.option(
    "--server-key",
    type=click.Path(dir_okay=False),
    help="Secret key file of this worker (see keygen): only admitted keys are served, encrypted, and sessions belong to keys.",
)
@click.option("--allow", type=click.Path(file_okay=False), help="Directory of the public keys that are admitted.")
@click.option("--admin", type=click.Path(file_okay=False), help="Directory of public keys that may look at all sessions.")
@click.option("--insecure", is_flag=True, help="Without keys, listen also where others than this machine's can connect.")
@click.option("--quota-sessions", type=click.IntRange(1), help="Most open sessions of a key; a quarter of all unless given.")
@click.option("--quota-waiting", type=click.IntRange(1), help=f"Most requests of a key that wait; {WAITING:,} unless given.")
@click.option(
    "--quota-rate", type=click.FloatRange(0, min_open=True), help="Most requests of a key a second; no bound unless given."
)
def serve(
    model: str | None,
    bind: tuple[str, ...],
    max_sessions: int | None,
    idle_timeout: float | None,
    explicit_open: bool,
    store: str | None,
    durability: Durability | None,
    max_resident: int | None,
    server_key: str | None,
    allow: str | None,
    admin: str | None,
    insecure: bool,
    quota_sessions: int | None,
    quota_waiting: int | None,
    quota_rate: float | None,
) -> None:
    """Serve MODEL until SIGTERM or Ctrl-C.

    MODEL is a model file, another framework's file (see convert), module:attribute for a Python object with the step-model
    interface, or an entry point of another package; absent, the model that ships with the package. A line "ready ADDRESS" on
    stdout says for each address that it is listened at: with port *, the real one.
    """
    if store is None and max_resident is not None:
        raise click.UsageError("--max-resident goes with --store: without one, sessions have nowhere else to be.")
    if store is None and durability is not None:
        raise click.UsageError("--durability goes with --store: without one, nothing is kept.")
    if (server_key is None) != (allow is None):
        raise click.UsageError("--server-key and --allow go together: the worker's key, and the directory of those admitted.")
    given = quota_sessions, quota_waiting, quota_rate
    if server_key is None and (admin is not None or given != (None, None, None)):
        raise click.UsageError(
            "--admin and --quota-... go with --server-key and --allow: without keys, all users are the same."
        )
    if server_key is None and not insecure and (others := exposed(bind)):
        raise click.UsageError(
            f"Others can reach {others[0]}, and without keys they could read and change every session. Give --server-key and "
            "--allow, bind tcp://127.0.0.1:PORT, or say --insecure."
        )
    if server_key is not None and insecure:
        raise click.UsageError("--insecure is for a worker without keys; leave it, or --server-key and --allow, out.")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    network = load_model(model)
    worker = Worker(
        network,
        bind=bind,
        max_sessions=max_sessions,
        explicit_open=explicit_open,
        idle_timeout_s=idle_timeout,
        store=store,
        durability=durability,
        max_resident=max_resident,
        server_key=server_key,
        allow=allow,
        admin=admin,
        insecure=insecure,
        quotas=None if server_key is None else Quotas(quota_sessions, quota_waiting or WAITING, quota_rate),
    )

    def ready() -> None:
        stop_on_signals(worker)  # not before there is a loop that can be stopped
        log.info("%s: %s", network.name or model, "; ".join(network.layers))
        if not network.exact:
            log.warning("with this model the last bits of a token may depend on its company: see rnnstream selftest")
        for address in worker.addresses:
            click.echo(f"ready {address}")

    allow_many_files()
    keep_memory()
    gc.freeze()  # the model stays: a full collection need not look at it again
    # What waits is no garbage. A look takes up to 0.2 us for each new object, twice in its life: some 40 ms at most where
    # sessions with producers are opened. All of millions, which would take 0.4 s, are hardly ever looked at.
    gc.set_threshold(100_000, 0, 1000)
    worker.run(ready)
    table = worker.engine.table
    count = table.open_count + table.absent
    log.info("stopped; %d sessions %s", count, f"are kept in {store}" if store else "were open")


def allow_many_files() -> None:
    """Take as many descriptors as this process may have: each connection needs one, and the usual 1,024 are few."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # a system that names more than it gives
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def keep_memory() -> None:
    """Have the allocator keep what a wave has used for the next one.

    glibc gives the end of the heap back to the system as soon as 128 KiB of it are free, and the next wave's arrays fault it in
    again, page by page: 0.6 of 2.2 us a token at 256 rows of hidden 100. A C library without mallopt is left as it is.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, 64 << 20)
        libc.mallopt(mmap_threshold, 32 << 20)  # the largest that glibc takes


def stop_on_signals(worker: Worker) -> None:
    """Have SIGTERM and SIGINT stop the worker.

    By a pipe and a thread: a handler runs only when the main thread comes back to Python, and a signal that falls between the
    loop's last instruction and its wait inside ZeroMQ would not bring it back.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: None)
    signal.set_wakeup_fd(writer)

    def wait() -> None:
        os.read(reader, 1)
        worker.stop()

    threading.Thread(target=wait, name="rnnstream-signals", daemon=True).start()
