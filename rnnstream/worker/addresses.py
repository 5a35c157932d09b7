"""Addresses to listen at: who can reach them, and how they are bound."""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Iterable

import zmq

from rnnstream.errors import RnnstreamError

log = logging.getLogger("rnnstream.worker")

OWN = "this user's processes"  # and root's
MACHINE = "anybody on this machine"
OTHERS = "anybody who reaches"


def reach(address: str) -> str:
    """Who can connect to an address: `OWN`, `MACHINE` or `OTHERS`, where that is not certain too.

    A file of ipc:// is this user's (`bind` sees to its mode), a name of ipc://@ is the whole machine's and has no mode. Of tcp://,
    127.0.0.0/8, [::1] and localhost are this machine's; the names of interfaces are not looked up.
    """
    transport, _, rest = address.partition("://")
    if transport == "inproc" or (transport == "ipc" and not rest.startswith("@")):
        return OWN
    return MACHINE if transport == "tcp" and _loopback(rest.rpartition(":")[0]) else OTHERS


def _loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        ip = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        return False
    return ip.is_loopback and bracketed == (ip.version == 6)


def exposed(addresses: Iterable[str]) -> list[str]:
    """Those that need keys: others could connect, or there is no telling. What is no address is left to `bind` to refuse."""
    return [address for address in addresses if "://" in address and reach(address) == OTHERS]


def log_reach(addresses: Iterable[str]) -> None:
    """Say who can use the addresses of a worker without keys."""
    for address in addresses:
        who = reach(address)
        if who == OTHERS:
            log.warning("INSECURE: %s %s can read, change and end every session", who, address)
        else:
            log.info("open: %s can use %s, and every session", who, address)


def bind(socket: zmq.Socket[bytes], address: str) -> str:
    """Bind, and say where: the address with the real port.

    A file of ipc:// is its owner's alone from the first moment. That takes the umask of the whole process while it binds: what
    other threads make meanwhile is their owner's alone too.

    Raises:
        RnnstreamError: it cannot be bound.
    """
    # With ipc://* ZeroMQ makes a directory first, which needs its x.
    before = os.umask(0o077 if address == "ipc://*" else 0o177) if address.startswith("ipc:") else None
    try:
        socket.setsockopt(zmq.IPV6, int("[" in address))
        socket.bind(address)
    except zmq.ZMQError as problem:
        form = "" if "://" in address else " An address looks like tcp://127.0.0.1:5555."
        raise RnnstreamError(f"Cannot listen at {address}: {problem}.{form}") from None
    finally:
        if before is not None:
            os.umask(before)
    real = socket.getsockopt_string(zmq.LAST_ENDPOINT)
    port = address.rpartition(":")[2]
    if address.startswith("tcp:") and port not in ("*", "0") and port != real.rpartition(":")[2]:
        raise RnnstreamError(f"Cannot listen at {address}: a port is a number from 1 to 65535, or * for a free one.")
    return real
