"""What a core lets a peer make it do and keep: queues, reply sizes, sessions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rnnstream.wire.limits import Limits
from rnnstream.worker import order
from tests.engine.models import network

from .driving import Driver, codes, pack, step
from .moody import Moody

Drive = Callable[..., Driver]
A, B, C = b"aaaaa", b"bbbbb", b"ccccc"


def hello(driver: Driver) -> dict[str, Any]:
    return driver.ask({"op": "hello"}, address=b"hello")[0]


SMALL = Limits(frame_requests=10, waiting=10)
KINDS: dict[str, dict[str, Any]] = {"ordinary": {}, "with more": {"id": 1}}


@pytest.mark.parametrize("kind", KINDS)
def test_a_body_that_would_make_a_queue_too_long_is_busy_as_one(drive: Drive, kind: str) -> None:
    driver, more = drive(network(), limits=SMALL), KINDS[kind]
    driver.ask(step("s", 1), step("t", 1))
    driver.handle((A, [step("s", 1, **more)] * 8))  # 7 wait behind the one that ran
    driver.handle((B, [step("t", 1), *[step("s", 2, **more)] * 4, step("t", 2)]))
    driver.handle((C, [step("s", 3, **more)] * 4))  # 6 waited when it came
    driver.finish()
    assert codes(driver.replies[A][0]) == list(range(2, 10))
    assert codes(driver.replies[B][0]) == [2, "busy", "busy", "busy", "busy", 3]
    assert codes(driver.replies[C][0]) == [10, 11, 12, 13]
    for reply in driver.replies[B][0][1:5]:
        assert reply["retry_after_ms"] > 0
        assert {key: reply[key] for key in more} == more
    assert driver.states()["s"] == (13, driver.engine.model.run([1] * 9 + [3] * 4).tobytes())


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_queue_takes_any_body(drive: Drive, kind: str) -> None:
    driver = drive(network(), limits=SMALL)
    for first in (1, 11):
        replies = driver.ask(*[step("s", 1, **KINDS[kind])] * 10)
        assert codes(replies) == list(range(first, first + 10))


@pytest.mark.parametrize(
    "refused",
    [step("s", 99), step("s", 1, want="nonsense"), {"op": "nonsense", "session": "s"}, step("s", True), {"session": "s"}],
)
def test_a_refused_request_does_not_hold_the_door_open_for_those_behind_it(drive: Drive, refused: dict[str, Any]) -> None:
    driver = drive(network(), limits=SMALL)
    driver.ask(step("s", 1))
    for peer in (A, B, C):
        driver.handle((peer, [refused, *[step("s", 1, id=1)] * 8]))
        assert driver.depth("s") <= SMALL.waiting
    driver.finish()
    assert codes(driver.replies[A][0])[1:] == list(range(2, 10))
    assert codes(driver.replies[B][0])[1:] == ["busy"] * 8


def test_a_busy_session_leaves_the_others_of_the_body_alone(drive: Drive) -> None:
    driver = drive(network(), limits=SMALL)
    driver.handle((A, [step("s", 1)] * 10))
    driver.handle((B, [step(name, 1) for name in "sabsc"]))
    driver.finish()
    assert codes(driver.replies[B][0]) == ["busy", 1, 1, "busy", 1]


@pytest.mark.parametrize("want", ["probs", "logits", 100])
def test_too_large_is_decided_before_anything_is_done(drive: Drive, want: str | int) -> None:
    layers = [{"kind": "onehot"}, {"kind": "rnn", "size": 3}, {"kind": "dense", "size": 2000}]
    driver = drive(network(layers=layers))
    limit = hello(driver)["limits"]["reply_bytes"]
    requests = [step(f"s{i}", 1, want=want, id="i" * 64) for i in range(500)]
    replies = driver.ask(*requests)
    assert len(pack(replies)) <= limit
    refused = [reply for reply in replies if "error" in reply]
    assert {(reply["error"], reply["limit"], reply["id"]) for reply in refused} == {("too_large", limit, "i" * 64)}
    names = {reply["session"] for reply in refused}
    assert set(driver.engine.sessions()) == {f"s{i}" for i in range(500)} - names
    assert 0 < len(names) < 500
    assert codes(driver.ask(*(step(name, 1) for name in names))) == [1] * len(names)


def test_no_reply_body_is_larger_than_hello_says(drive: Drive) -> None:
    driver = drive(network(vocabulary=True))
    limit = hello(driver)["limits"]["reply_bytes"]
    wide = "𝄞" * 50
    most = driver.limits.frame_requests
    names = [f"{i:04}".ljust(200, "n") for i in range(most)]
    driver.ask(*(step(name, 1) for name in names))
    long, id = "n" * 200, "𝄞" * 16
    bodies: list[list[dict[str, Any]]] = [
        [{"op": "hello", "id": id}] * most,
        [{"op": "sessions", "limit": 1000, "id": id}] * most,
        [{"op": "sessions", "id": id}] * most,
        [step(name, 1, id=id) for name in names],
        [step(name, 1, want=100, id=id, surprisal=True) for name in names],
        [step(name, 1, want="probs", id=id) for name in names],
        [step(long, wide * 10, id=id)] * most,
        [step(long, 1, id=id, **{wide * 4: 1})] * most,
        [step(long, 1, id=id, want=wide * 4)] * most,
        [{"op": wide * 4, "session": wide, "id": id}] * most,
        [{"op": "info", "session": wide, "id": id}] * most,
        [step(long, 1, t=2**63, id=id)] * most,
        [{"op": "ping", "k" * 400_000: 1}] * 2,
        [step(long, 1, want="w" * 400_000)] * 2,
        [step(long, 1, want=-(2**63)), *[{"op": "sessions", "limit": 1000}] * (most - 1)],
    ]
    for body in bodies:
        driver.handle((A, pack(body)))
        driver.finish()
        replies = driver.replies[A].pop()
        assert len(replies) == len(body)
        assert len(pack(replies)) <= limit, body[0]


@pytest.mark.parametrize("extreme", [-(2**63), -1, 2**64 - 1])
@pytest.mark.usefixtures("a_wave_a_turn")
def test_what_waits_is_not_miscounted_for_a_request_that_is_refused(drive: Drive, extreme: int) -> None:
    driver = drive(network())
    driver.ask(step("s", 1))
    refused = [step("s", 1, want=extreme), *[{"op": "sessions", "limit": 1000}] * 500]
    driver.handle((A, [step("s", 1), step("s", 1), *refused]))
    assert not driver.replies[A]
    assert not driver.core.full
    assert 0 <= driver.core._intake.order.bytes <= 2 * driver.limits.reply_bytes
    driver.finish()
    assert driver.core._intake.order.bytes == 0
    assert codes(driver.replies[A][0])[:3] == [2, 3, "bad_request"]


def test_answers_that_wait_behind_others_are_counted_until_they_are_gone(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnnstream.worker.intake.MOST_HELD_BYTES", 100_000)
    driver = drive(network())
    driver.handle((A, [step("slow", 1)] * 50))
    for _ in range(40):
        if driver.core.full:
            break
        driver.handle((A, [{"op": "ping"}] * 512))
    assert driver.core.full
    assert driver.core.waiting
    driver.finish()
    assert not driver.core.full
    assert codes(driver.replies[A][0]) == list(range(1, 51))


def test_refusals_are_counted_as_what_they_are(drive: Drive) -> None:
    """A flood of bodies for one session does not fill the bound in all, which would stop the reading for everybody."""
    driver = drive(network())
    for _ in range(200):
        driver.handle((A, [step("s", 1)] * 512))
    assert not driver.core.full
    driver.finish()
    replies = [codes(body) for body in driver.replies[A]]
    assert replies[:2] == [list(range(1, 513)), list(range(513, 1025))]
    assert ["busy"] * 512 in replies


def test_a_connection_that_goes_on_though_it_is_busy_is_cut_off(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnnstream.worker.standing.CONNECTION_BYTES", 250_000)
    monkeypatch.setattr("rnnstream.worker.intake.CROWDED_BYTES", 300_000)
    driver = drive(network())
    driver.ask(step("s", 1))
    driver.handle((A, [step("s", 1, want="none")] * 200), (B, [{"op": "ping"}]))
    sent = 0
    while not (crowded := driver.core.take_crowded()):
        driver.handle((A, [step("s", 1, id=i) for i in range(10)]))
        sent += 1
        assert sent < 100
    assert crowded == {A}
    assert driver.core.take_crowded() == set()
    driver.unanswered[A].pop()  # the last body was not looked at
    driver.finish()
    assert codes(driver.replies[A][0]) == list(range(2, 202))
    assert codes(driver.replies[A][-1]) == ["busy"] * 10


def test_what_waited_behind_a_slow_answer_leaves_a_part_a_turn(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "LEAVING", 10)
    driver = drive(network())
    driver.handle((A, [step("s", 1)] * 3), *((A, [{"op": "ping"}]) for _ in range(35)), (B, [step("t", 1)] * 3))
    driver.handle()
    assert not driver.replies[A]
    sizes = []
    while driver.core.waiting:
        sizes.append(len(driver.handle()))
        if len(sizes) == 2:
            sizes[-1] += len(driver.handle((A, [{"op": "ping"}])))
    assert sizes == [10 + 1, 20, 7]
    assert codes(driver.replies[A][0]) == [1, 2, 3]


def test_a_repeat_of_a_large_reply_is_held_to_the_size_of_a_body(drive: Drive) -> None:
    driver = drive(network(), limits=Limits(reply_bytes=10_000))
    large = {"session": "s", "x": 1, "producer": "p", "n": 1}
    driver.ask(large | {"want": "logits"})
    mine = driver.engine.producers("s")["p"]
    assert mine.reply is not None
    mine.reply += bytes(4000)  # as if it had been that large
    item = pack([large])
    for body, good in ((item, 1), (item * 3, 2)):
        ((_, reply),) = (
            driver.core.handle([A], [body], 0.0) or driver.core.handle([], [], 0.0) or (driver.core.handle([], [], 0.0))
        )
        assert reply.count(b"again") == good
        assert (b"too_large" in reply) == (good == 2)
        assert len(reply) <= 10_000


def test_requests_that_wait_are_counted_until_they_are_done(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnnstream.worker.intake.MOST_WAITING", 100)
    driver = drive(network())
    driver.handle((A, [step("s", 1)] * 100))
    assert (driver.core.waiting, driver.core.full) == (99, False)
    driver.handle((B, [step("s", 1), step("t", 1, id=1), step("t", 1), step("t", 1)]))
    assert (driver.core.waiting, driver.core.full) == (101, True)
    driver.finish()
    assert (driver.core.waiting, driver.core.full) == (0, False)


def test_pings_that_come_together_cost_one_step(drive: Drive) -> None:
    class Counted(Moody):
        steps = 0

        def advance(self, states: Any, inputs: Any) -> Any:
            self.steps += 1
            return super().advance(states, inputs)

    model = Counted()
    driver = drive(model)
    for calls in range(1, 4):
        driver.handle((A, [{"op": "ping"}] * 300), (B, [{"op": "ping"}]))
        assert model.steps == calls
    assert all(reply["ok"] for body in driver.replies[A] + driver.replies[B] for reply in body)


def test_listings_that_come_together_share_a_bound(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnnstream.worker.answers.SCAN", 100)
    driver = drive(network())
    names = {f"s{i}" for i in range(150)}
    driver.ask(*(step(name, 1) for name in names))
    for _ in range(2):  # in each call anew
        pages = driver.ask(*[{"op": "sessions", "limit": 60, "prefix": prefix} for prefix in ("s", "s", "none", "s", "none")])
        assert [page["next"] for page in pages] == [60, 40, 1, 1, 1]
    found: set[str] = set()
    after: int | None = 0
    while after is not None:
        first, *_, last = driver.ask(*[{"op": "sessions", "after": after}] * 5)
        assert len(last["sessions"]) <= 1
        found |= set(first["sessions"])
        after = first.get("next")
    assert found == names


def test_a_full_worker_opens_no_more_and_knows_what_it_knew(drive: Drive) -> None:
    driver = drive(network(), max_sessions=3)
    driver.ask(*(step(name, 1) for name in "abx"), {"op": "close", "session": "x"})
    driver.ask(step("c", 1))
    before = driver.states()
    new = [step("d", 1), step("e", 1, want="none"), {"op": "reset", "session": "f"}, {"op": "reset", "session": "x"}]
    assert codes(driver.ask(*new)) == ["full"] * 4
    assert driver.states() == before
    known = driver.ask(
        {"op": "info", "session": "d"}, {"op": "close", "session": "d"}, step("x", 1), {"op": "info", "session": "x"}
    )
    assert codes(known) == ["unknown_session"] * 4
    assert [reply["why"] for reply in known] == ["never", "never", "closed", "closed"]
    assert codes(driver.ask(step("a", 2), step("b", 2), step("c", 2))) == [2, 2, 2]
    driver.ask({"op": "close", "session": "a"})
    assert codes(driver.ask(step("d", 1))) == [1]
