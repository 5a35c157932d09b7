"""Promise 5 against clients that vanish without having read a reply; scripts/killed_clients.py kills more of them."""

from tests.process.killed import KILLED, RESET, run

ROUNDS = 4  # of 500 clients: what those of a round take at a time stays with the worker, whatever comes after
LEAK = 16 << 10  # bytes a client: less than libzmq has for a connection


def test_killed_clients_leave_nothing_behind_and_a_polite_one_keeps_its_bits(tmp_path):
    report = run(tmp_path, 1, warm_up=1, go_on=lambda rounds: rounds < ROUNDS)
    assert report.clients == ROUNDS * (RESET + KILLED)
    assert KILLED < report.sessions <= RESET + KILLED + 1
    assert report.grown < LEAK * report.clients
    assert report.checked > 0
