"""Who is shut out of a worker with keys, for how long, and who is not: the counting, the system's filter, both in a worker."""

import contextlib
import ipaddress
import random
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnstream.worker import door as module
from rnnstream.worker.door import A_SECOND, ADDRESSES, AT_ONCE, MOST, MOST_SHUT, Door, network, peer_of, shut_out
from tests.engine.models import network as model

from .driving import codes, step
from .keyed import CONNECTED, Keyed, Keys
from .serving import deadline, serving

EVE, BOB = "10.0.0.1", "10.0.0.2"


def knock(door: Door, address: str, times: int, now: float = 0.0) -> None:
    for _ in range(times):
        door.knocked(address, now)
    door.look(now)


# Counting --------------------------------------------------------------------------------------------------------------


def test_whoever_shows_no_key_is_shut_out_and_let_in_again_a_few_at_a_time():
    door = Door()
    knock(door, EVE, MOST - 1)
    assert door.shut == set()
    knock(door, EVE, 1)
    assert door.shut == {EVE}
    again = door.look(0.0)
    assert again == pytest.approx(AT_ONCE / A_SECOND)
    assert door.look(again - 0.001) is not None
    assert door.shut == {EVE}
    assert door.look(again + 0.001) is None
    assert door.shut == set()
    knock(door, EVE, AT_ONCE, again + 0.001)
    assert door.shut == set()
    knock(door, EVE, 1, again + 0.001)
    assert door.shut == {EVE}


def test_others_are_not_shut_out_with_it():
    door = Door()
    knock(door, EVE, 10 * MOST)
    knock(door, BOB, MOST - 1)
    assert door.shut == {EVE}


def test_whoever_shows_a_key_gets_the_place_back():
    door = Door()
    for _ in range(10):
        knock(door, BOB, MOST - 1)
        for _ in range(MOST - 1):
            door.admitted(BOB)
    assert door.shut == set()
    knock(door, EVE, MOST)
    door.admitted(EVE)
    for _ in range(AT_ONCE):
        door.admitted(EVE)
    assert door.look(0.0) is None
    assert door.shut == set()


def test_keys_that_are_shown_buy_nothing_for_later():
    door = Door()
    for _ in range(2 * MOST):
        door.admitted(EVE)
    knock(door, EVE, MOST)
    assert door.shut == {EVE}


def test_a_flood_is_held_to_so_many_a_second():
    """A random walk: whoever knocks whenever the door is open, for 100 seconds."""
    door, chance = Door(), random.Random(1)
    now, got_in = 0.0, 0
    while now < 100.0:
        door.look(now)
        if EVE not in door.shut:
            door.knocked(EVE, now)
            got_in += 1
        now += chance.random() * 0.002
    assert MOST + 100 * A_SECOND - AT_ONCE <= got_in <= MOST + 100 * A_SECOND + 1


def test_what_is_remembered_is_bounded():
    door = Door()
    for number in range(ADDRESSES + 1000):
        door.knocked(f"10.1.{number >> 8}.{number & 255}", 0.0)
    assert len(door._clear_at) == ADDRESSES
    door.knocked(EVE, 1.0)  # the others are forgiven by then
    assert list(door._clear_at) == [EVE]
    for number in range(MOST_SHUT + 10):
        knock(door, f"10.2.{number >> 8}.{number & 255}", MOST, 1.0)
    assert len(door.shut) == MOST_SHUT


@pytest.mark.parametrize(
    ("address", "whose"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
    ],
)
def test_an_address_of_ipv6_stands_for_its_network(address, whose):
    assert network(address) == whose


# The system's filter ---------------------------------------------------------------------------------------------------

FAMILIES = [(socket.AF_INET, "127.0.0.1", "127.0.0.2", "127.0.0.2"), (socket.AF_INET6, "::1", "::1", "::")]
OTHERS = ["10.0.0.9", "127.0.0.9", "2001:db8:1:2::", "10.0.0.10"]
MANY_4 = [f"10.0.1.{number}" for number in range(MOST_SHUT - 1)]
MANY_6 = [f"2001:db8:0:{number:x}::" for number in range(MOST_SHUT - 1)]


@pytest.fixture(params=FAMILIES, ids=["IPv4", "IPv6"])
def listener(request):
    family, host, source, whose = request.param
    with socket.socket(family) as listener:
        try:
            listener.bind((host, 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        listener.listen(64)
        yield listener, source, whose


def connected(listener: socket.socket, source: str) -> socket.socket | None:
    """A connection from this address, if it is taken."""
    peer = socket.socket(listener.family)
    peer.bind((source, 0))
    peer.settimeout(0.2)
    try:
        peer.connect(listener.getsockname()[:2])
    except TimeoutError:
        peer.close()
        return None
    return peer


def test_new_connections_are_dropped_and_open_ones_go_on(listener):
    listener, source, whose = listener
    with contextlib.ExitStack() as stack:
        peer = stack.enter_context(connected(listener, source))
        ours = stack.enter_context(listener.accept()[0])
        assert peer_of(ours.fileno()) == whose
        for networks in ([whose], [*OTHERS, whose], [*MANY_4, whose], [*MANY_6, whose], [*MANY_4[:50], *MANY_6[:49], whose]):
            assert len(networks) <= MOST_SHUT
            shut_out(listener.fileno(), networks)
            assert connected(listener, source) is None
            peer.sendall(b"on")
            assert ours.recv(9) == b"on"
            ours.sendall(b"we go")
            assert peer.recv(9) == b"we go"
        for networks in (OTHERS, []):
            shut_out(listener.fileno(), networks)
            stack.enter_context(connected(listener, source))
        shut_out(listener.fileno(), [])


def passes(program: list[bytes], network_header: bytes, flags: int) -> bool:
    """What the system makes of a filter, by the definition of its instructions."""
    packet = network_header, bytes(module.FLAGS) + bytes((flags, 0, 0, 0, 0))
    at = loaded = 0
    while True:
        code, if_true, if_false, number = struct.unpack("=HBBI", program[at])
        at += 1
        if code in (module.LOAD_BYTE, module.LOAD_WORD):
            header, offset = (packet[0], number - module.NETWORK) if number >= module.NETWORK else (packet[1], number)
            loaded = int.from_bytes(header[offset : offset + (1 if code == module.LOAD_BYTE else 4)])
        elif code == module.AND:
            loaded &= number
        elif code == module.IF_EQUAL:
            at += if_true if loaded == number else if_false
        elif code == module.JUMP:
            at += number
        else:
            return number == module.PASS


def header(ip: str) -> bytes:
    """As much of a packet's header as there is before the end of where it comes from."""
    packed = ipaddress.ip_address(ip).packed
    return bytes((0x45,)) + bytes(7) + b"\x40\x06\x12\x34" + packed if len(packed) == 4 else bytes((0x60,)) + bytes(7) + packed


SOURCES = ("198.51.100.9", "198.51.100.8", "2001:db8:c633:6409::1", "4006:1234:c633:6409::1", "2001:db8:c633:6408::9", "::1")


@given(
    st.lists(st.sampled_from(SOURCES), unique=True), st.sampled_from(SOURCES), st.sampled_from((0x02, 0x12, 0x10, 0x18, 0xC2))
)
def test_the_filter_drops_first_packets_from_these_networks_and_nothing_else(shut, source, flags):
    """Among them are addresses of each version that have the same bytes in the same place as one of the other."""
    program = module._program(map(network, shut))
    first = flags & 0x12 == 0x02
    assert (not program or passes(program, header(source), flags)) == (not first or source not in shut)


def test_from_elsewhere_one_still_gets_in():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        shut_out(listener.fileno(), ["127.0.0.2"])
        assert connected(listener, "127.0.0.2") is None
        with connected(listener, "127.0.0.3") as peer, listener.accept()[0] as ours:
            peer.sendall(b"hello")  # through the filter that it has inherited
            assert ours.recv(9) == b"hello"


def test_whoever_does_not_come_over_tcp_has_no_address(tmp_path):
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as other:
        one.bind(str(tmp_path / "s"))
        one.listen()
        other.connect(str(tmp_path / "s"))
        assert peer_of(other.fileno()) is None
    with socket.socket() as alone:
        assert peer_of(alone.fileno()) is None


# In a worker -----------------------------------------------------------------------------------------------------------


def test_a_worker_holds_up_who_shows_no_key_and_nobody_else(tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setattr(module, "MOST", 8)
    monkeypatch.setattr(module, "AT_ONCE", 4)
    monkeypatch.setattr(module, "A_SECOND", 1e-3)
    keys = Keys(tmp_path)
    alice = keys.add("alice")
    with serving(model(), **keys.options) as worker, contextlib.ExitStack() as stack:
        address = worker.addresses[0]
        place = ("127.0.0.1", int(address.rpartition(":")[2]))

        def stranger() -> bool:
            with socket.socket() as peer:
                peer.bind(("127.0.0.2", 0))
                peer.settimeout(0.2)
                try:
                    peer.connect(place)
                except TimeoutError:
                    return False
                return True

        before = stack.enter_context(Keyed(address, keys.server[0], alice))
        assert before.event() == CONNECTED
        for _ in deadline():
            if not stranger():
                break
        assert codes(before.ask(step("s", 1))) == [1]
        for _ in range(20):  # each of them shows a key, and so gets its place back
            with Keyed(address, keys.server[0], alice) as friend:
                assert friend.event() == CONNECTED
                assert friend.ask({"op": "ping"})[0]["ok"]
        assert not stranger()
        assert codes(before.ask(step("s", 1))) == [2]
        assert [text.split()[0] for text in caplog.messages if "held up" in text] == ["127.0.0.2"]
        monkeypatch.setattr(module, "MOST", 1e6)  # as if time had passed: the next look finds room for it
        for _ in deadline():
            if stranger():
                break


def test_a_worker_without_keys_shuts_nobody_out(monkeypatch):
    monkeypatch.setattr(module, "MOST", 1)
    with serving(model()) as worker:
        place = ("127.0.0.1", int(worker.addresses[0].rpartition(":")[2]))
        for _ in range(20):
            socket.create_connection(place, timeout=5).close()
