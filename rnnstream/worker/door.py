"""The door: how often an address may connect without coming to show a key that is admitted.

ZeroMQ accepts by itself, and does 0.3 ms of Curve25519 for whoever says HELLO, in the one thread that everybody's replies pass
through. The only one that can turn somebody away before is the system: a filter on the listening sockets drops the first packet
(SYN) of connections from addresses that are shut out. Connections that are open, also theirs, and whoever comes from elsewhere
notice nothing. The systems of those who are turned away try again by themselves, after 1, 3, 7, ... seconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import socket
import struct
from collections.abc import Iterable

# Of one address, connections that have not shown a key yet, or never did. Some 250 clients that come back at once from one
# address are not held up; of more, the last wait for some seconds, as ZeroMQ accepts faster than it makes handshakes.
MOST = 256
A_SECOND = 32  # how fast these are forgiven: 1 % of ZeroMQ's thread for HELLOs, 3 % for whole handshakes with a wrong key
AT_ONCE = 8  # as many are forgiven before a door opens again: 2.4 ms of HELLOs, if they all come in the same moment
ADDRESSES = 10_000  # that are remembered: 1 MB
MOST_SHUT = (
    100  # addresses in a filter. The system grants one 20 kB (net.core.optmem_max) as a rule; it takes up to 0.7 ms to set
)

ATTACH_FILTER, DETACH_FILTER = 26, 27  # SO_... of Linux, which Python does not name


class Door:
    """Who is shut out. No I/O, no clock.

    Each connection of an address costs it a place, until it has shown a key that is admitted, or until time has forgiven it.
    One that has ended before anybody could look whose it was costs nothing, so somewhat more than these get in.

    Attributes:
        shut: the addresses that are shut out, as `network` has them.
    """

    def __init__(self) -> None:
        self.shut: frozenset[str] = frozenset()
        self._clear_at: dict[str, float] = {}  # by address: when all of its connections will be forgiven
        self._heard: set[str] = set()  # that have knocked since the last look

    def knocked(self, address: str, now: float) -> None:
        """A connection was accepted from this address."""
        clear_at = self._clear_at
        if address not in clear_at and len(clear_at) >= ADDRESSES:
            for old in [old for old, at in clear_at.items() if at <= now] or [next(iter(clear_at))]:
                del clear_at[old]
        clear_at[address] = max(clear_at.get(address, now), now) + 1 / A_SECOND
        self._heard.add(address)

    def admitted(self, address: str) -> None:
        """One of its connections has shown a key that is admitted."""
        if address in self._clear_at:
            self._clear_at[address] -= 1 / A_SECOND

    def look(self, now: float) -> float | None:
        """Bring `shut` up to date; when to look again at the latest, None where nobody is shut out."""
        full, room = now + MOST / A_SECOND, now + (MOST - AT_ONCE) / A_SECOND
        clear_at = self._clear_at
        shut = [address for address in self.shut if clear_at.get(address, now) > room]
        shut += [address for address in self._heard - self.shut if clear_at.get(address, now) >= full]
        self._heard.clear()
        self.shut = frozenset(shut[:MOST_SHUT])
        return min((now + clear_at[address] - room for address in self.shut), default=None)


def network(address: str) -> str:
    """Whose address it is: itself, or of IPv6 the /64 that one machine has to itself as a rule.

    Raises:
        ValueError: it is none.
    """
    if ":" not in address:
        return address
    ip = ipaddress.IPv6Address(address.partition("%")[0])
    return str(ip.ipv4_mapped or ipaddress.IPv6Address(int(ip) >> 64 << 64))


def peer_of(descriptor: int) -> str | None:
    """The network that a connection comes from; None if it has ended already, or does not come over TCP."""
    try:
        copy = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, descriptor)  # whatever it is, nothing is looked up for it
        try:
            peer = copy.getpeername()
        finally:
            copy.detach()
    except OSError:
        return None
    return network(peer[0]) if isinstance(peer, tuple) else None


def shut_out(listener: int, networks: Iterable[str]) -> None:
    """Have the system drop new connections from these networks to a listening socket; nothing else is looked at.

    Raises:
        OSError: the system has no such filters, or refuses this one; then there is none.
    """
    instructions = _program(networks)
    code = ctypes.create_string_buffer(b"".join(instructions))
    copy = socket.socket(fileno=listener)
    try:
        with contextlib.suppress(FileNotFoundError):  # there is none
            copy.setsockopt(socket.SOL_SOCKET, DETACH_FILTER, 0)  # first, for what the system grants is for both together
        if instructions:
            copy.setsockopt(socket.SOL_SOCKET, ATTACH_FILTER, struct.pack("HP", len(instructions), ctypes.addressof(code)))
    finally:
        copy.detach()


# Instructions of the system's packet filters (classic BPF): what, jump if true, jump if false, a number. A filter on a TCP
# socket sees the packet from the TCP header on; what lies before is at offsets from NETWORK.
NETWORK = 0x1_0000_0000 - 0x10_0000  # SKF_NET_OFF
LOAD_WORD, LOAD_BYTE, AND, IF_EQUAL, JUMP, RETURN = 0x20, 0x30, 0x54, 0x15, 0x05, 0x06
PASS, DROP = 0xFFFF_FFFF, 0
FLAGS, SYN, ACK = 13, 0x02, 0x10
SOURCE = {4: (NETWORK + 12, 4), 6: (NETWORK + 8, 8)}  # where an address begins, and the bytes of it that count


def _program(networks: Iterable[str]) -> list[bytes]:
    """The filter; empty where there is nobody to drop.

    Children of a listening socket inherit it, so it passes on first of all what is no first packet of a connection.
    """
    ips = [ipaddress.ip_address(network) for network in networks]
    if not ips:
        return []
    drop = {version: [step for ip in ips if ip.version == version for step in _drop(ip)] for version in SOURCE}
    done = [_instruction(RETURN, 0, 0, PASS)]
    return [
        _instruction(LOAD_BYTE, 0, 0, FLAGS),
        _instruction(AND, 0, 0, SYN | ACK),
        _instruction(IF_EQUAL, 1, 0, SYN),
        *done,
        _instruction(LOAD_BYTE, 0, 0, NETWORK),
        _instruction(AND, 0, 0, 0xF0),
        _instruction(IF_EQUAL, 1, 0, 4 << 4),
        _instruction(JUMP, 0, 0, len(drop[4]) + 1),
        *drop[4],
        *done,
        *drop[6],
        *done,
    ]


def _drop(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> list[bytes]:
    """Drop what comes from here."""
    begin, size = SOURCE[ip.version]
    steps = []
    for at in range(0, size, 4):
        left = (size - at) // 4 - 1  # words to look at, two instructions each, and then there is the RETURN to pass over
        steps.append(_instruction(LOAD_WORD, 0, 0, begin + at))
        steps.append(_instruction(IF_EQUAL, 0, 2 * left + 1, int.from_bytes(ip.packed[at : at + 4])))
    return [*steps, _instruction(RETURN, 0, 0, DROP)]


def _instruction(code: int, if_true: int, if_false: int, number: int) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, number)
