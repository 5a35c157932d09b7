"""The operations beside step: open, fork, peek, snapshot, restore, stats; expiry; bounds on each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rnnstream.wire.limits import PEEK_TOKENS, Limits
from rnnstream.wire.replies import decode
from rnnstream.worker import peeks
from rnnstream.worker.stats import Stats
from tests.engine.models import SPOILED, V, network, relu

from .driving import Driver, codes, pack, step

Drive = Callable[..., Driver]
A, B = b"aaaaa", b"bbbbb"


def test_open(drive: Drive) -> None:
    driver = drive(network())
    assert driver.ask({"op": "open", "session": "s"}) == [{"session": "s", "t": 0, "opened": True}]
    (reply,) = driver.ask({"op": "open", "session": "s"})
    assert (reply["error"], reply["session"]) == ("exists", "s")
    assert "opened" not in driver.ask(step("s", 1))[0]


def test_open_from_a_snapshot_of_another_worker(drive: Drive) -> None:
    model, xs = network("lstm"), [3, 1, 4, 1, 5]
    first, second = drive(model), drive(model)
    first.ask(*(step("s", x) for x in xs))
    (snapshot,) = first.ask({"op": "snapshot", "session": "s"})
    assert (snapshot["session"], snapshot["t"]) == ("s", 5)
    assert second.ask({"op": "open", "session": "copy", "state": snapshot["state"]})[0]["t"] == 5
    second.ask(step("used", 2))
    assert second.ask({"op": "restore", "session": "used", "state": snapshot["state"]}) == [{"session": "used", "t": 5}]
    expected = first.ask(*(step("s", x, want="probs") for x in range(V)))
    for name in ("copy", "used"):
        found = second.ask(*(step(name, x, want="probs") for x in range(V)))
        assert [reply | {"session": "s"} for reply in found] == expected


def test_a_damaged_snapshot_changes_nothing(drive: Drive) -> None:
    driver = drive(network())
    (state,) = [reply["state"] for reply in driver.ask(step("s", 1), {"op": "snapshot", "session": "s"})[1:]]
    driver.ask(step("s", 2))
    before = driver.states()
    damaged = [state[:-1], state + b"x", b"", *(state[:i] + bytes((state[i] ^ 1,)) + state[i + 1 :] for i in range(len(state)))]
    for bad in damaged:
        replies = driver.ask({"op": "restore", "session": "s", "state": bad}, {"op": "open", "session": "new", "state": bad})
        assert codes(replies) == ["bad_state", "bad_state"]
    assert driver.states() == before
    assert driver.ask({"op": "restore", "session": "never", "state": state})[0]["error"] == "unknown_session"


def test_a_fork_and_its_origin_go_their_own_ways(drive: Drive) -> None:
    model = network()
    driver = drive(model)
    driver.ask(step("s", 1), step("s", 2))
    assert driver.ask({"op": "fork", "session": "s", "to": "copy"}) == [{"session": "s", "to": "copy", "t": 2}]
    driver.ask(step("s", 3), step("copy", 4), step("copy", 5))
    assert driver.states() == {"s": (3, model.run([1, 2, 3]).tobytes()), "copy": (4, model.run([1, 2, 4, 5]).tobytes())}
    assert codes(driver.ask({"op": "fork", "session": "s", "to": "copy"}, {"op": "fork", "session": "s", "to": "s"})) == (
        ["exists"] * 2
    )
    assert codes(driver.ask({"op": "fork", "session": "never", "to": "new"})) == ["unknown_session"]
    assert codes(driver.ask({"op": "fork", "session": "s", "to": "new", "t": 1})) == ["conflict"]


def test_a_fork_finds_no_room(drive: Drive) -> None:
    driver = drive(network(), max_sessions=1)
    driver.ask(step("s", 1))
    assert codes(driver.ask({"op": "fork", "session": "s", "to": "copy"})) == ["full"]
    assert set(driver.states()) == {"s"}


def test_a_fork_beside_the_first_token_of_its_new_name(drive: Drive) -> None:
    """In one wave: the copy comes first, whatever the order of arrival, and the token counts on it."""
    model = network()
    driver = drive(model)
    driver.ask(step("s", 1))
    driver.handle((A, [step("copy", 3)]), (B, [{"op": "fork", "session": "s", "to": "copy"}]))
    driver.finish()
    assert "opened" not in driver.replies[A][0][0]
    assert driver.states()["copy"] == (2, model.run([1, 3]).tobytes())


@pytest.mark.parametrize("want", ["argmax", "none", "probs", "logits", 3])
def test_peek_says_what_the_steps_then_say_and_moves_nothing(drive: Drive, want: Any) -> None:
    driver, xs = drive(network(vocabulary=True)), [3, "w1", 4]
    driver.ask(step("s", 5))
    before = driver.states()
    (peek,) = driver.ask({"op": "peek", "session": "s", "xs": xs, "want": want, "surprisal": True})
    assert driver.states() == before
    assert (peek["session"], peek["t"]) == ("s", 1)
    steps = driver.ask(*(step("s", x, want=want, surprisal=True) for x in xs))
    assert peek["ys"] == [{key: reply[key] for key in reply if key not in ("session", "t")} for reply in steps]


def test_peeks_take_a_token_a_wave_and_hold_nobody_up(drive: Drive) -> None:
    driver = drive(network())
    driver.ask(step("s", 1), step("t", 1))
    driver.handle((A, [{"op": "peek", "session": "s", "xs": [1] * 50}]), (B, [step("s", 2)]))
    driver.handle((B, [step("t", 3)]))
    assert not driver.replies[A]
    assert [reply["t"] for body in driver.replies[B] for reply in body] == [2, 2]
    driver.finish()
    assert len(driver.replies[A][0][0]["ys"]) == 50


def test_a_peek_that_would_spoil_the_state(drive: Drive) -> None:
    driver = drive(relu())
    driver.ask(step("s", 1))
    (reply,) = driver.ask({"op": "peek", "session": "s", "xs": [1, SPOILED, 2], "id": 5})
    assert (reply["error"], reply["id"]) == ("not_finite", 5)
    assert "xs[1]" in reply["message"]


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"xs": []}, "bad_request", "xs"),
        ({"xs": [1] * (PEEK_TOKENS + 1)}, "bad_request", "xs"),
        ({"xs": 5}, "bad_request", "xs"),
        ({"xs": [1, V]}, "bad_token", "xs"),
        ({"xs": [1, None]}, "bad_request", "xs"),
        ({"want": "nonsense"}, "bad_request", "want"),
        ({"x": 1}, "bad_request", "x"),
        ({"producer": "p", "n": 1}, "bad_request", "producer"),
    ],
)
def test_a_peek_that_is_wrong(drive: Drive, change: dict[str, Any], code: str, field: str) -> None:
    driver = drive(network())
    driver.ask(step("s", 1))
    (reply,) = driver.ask({"op": "peek", "session": "s", "xs": [1]} | change)
    assert (reply["error"], reply["field"]) == (code, field)


def test_a_peek_whose_reply_would_be_too_large(drive: Drive) -> None:
    driver = drive(network(), limits=Limits(reply_bytes=20_000))
    driver.ask(step("s", 1))
    for want, most in (("none", 130), ("argmax", 130), ("probs", 100), (9, 55)):
        for size, code in ((most, 1), (2 * most, "too_large")):
            ((_, reply),) = _answer(driver, {"op": "peek", "session": "s", "xs": [1] * size, "want": want, "surprisal": True})
            assert codes(decode(reply)) == [code]
            assert len(reply) <= 20_000


def _answer(driver: Driver, item: dict[str, Any]) -> list[Any]:
    out = driver.core.handle([A], [pack([item])], 0.0)
    while not out:
        out = driver.core.handle([], [], 0.0)
    return out


def test_a_bug_in_a_peek_is_told_and_the_worker_goes_on(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = drive(network())
    driver.ask(step("s", 1))
    with monkeypatch.context() as broken:
        broken.setattr(driver.engine, "likely", lambda *arguments: 1 / 0)
        (reply,) = driver.ask({"op": "peek", "session": "s", "xs": [1, 2], "id": 5})
        assert (reply["error"], reply["session"], reply["id"]) == ("internal", "s", 5)
    assert len(driver.ask({"op": "peek", "session": "s", "xs": [1, 2]})[0]["ys"]) == 2


def test_only_so_many_peeks_are_under_way(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peeks, "MOST_PEEKS", 3)
    driver = drive(network())
    driver.ask(*(step(name, 1) for name in "abcd"))
    replies = driver.ask(*({"op": "peek", "session": name, "xs": [1, 2]} for name in "abcd"))
    assert codes(replies) == [1, 1, 1, "busy"]
    assert replies[3]["retry_after_ms"] > 0


def test_sessions_expire_and_say_so(drive: Drive) -> None:
    driver = drive(network(), idle_timeout_s=10.0)
    driver.ask(step("idle", 1), step("busy", 1))
    for _ in range(15):
        driver.ask(step("busy", 1))
    assert driver.engine.sessions() == ["busy"]
    (reply,) = driver.ask(step("idle", 1))
    assert (reply["error"], reply["why"]) == ("unknown_session", "expired")
    assert "had been idle for too long" in reply["message"]
    (stats,) = driver.ask({"op": "stats"})
    assert (stats["expired"], stats["open"], stats["tombstones"]) == (1, 1, 1)
    assert driver.ask({"op": "open", "session": "idle"})[0]["t"] == 0


def test_what_waits_does_not_expire(drive: Drive) -> None:
    driver = drive(network(), idle_timeout_s=3.0)
    driver.handle((A, [step("s", 1)]))
    driver.handle((A, [{"op": "info", "session": "s"}] * 20))
    driver.finish()
    assert [reply.get("t") for reply in driver.replies[A][1]] == [1] * 20
    driver.handle()
    assert driver.engine.sessions() == []


def test_explicit_open(drive: Drive) -> None:
    driver = drive(network(), explicit_open=True)
    (reply,) = driver.ask(step("s", 1))
    assert (reply["error"], reply["why"]) == ("unknown_session", "never")
    assert codes(driver.ask({"op": "open", "session": "s"}, step("s", 1), {"op": "reset", "session": "r"}, step("r", 1))) == (
        [0, 1, 0, 1]
    )


def test_stats_count_what_happened(drive: Drive) -> None:
    driver = drive(relu())
    driver.handle((A, [step("a", 1), step("b", 1), step("a", 2), step("a", SPOILED)]))
    driver.finish()
    driver.handle((A, [step("a", 1)]), (B, [step("b", 99)]))
    driver.finish()
    (stats,) = driver.ask({"op": "stats", "id": 1})
    assert (stats["tokens"], stats["bodies"], stats["open"], stats["id"]) == (4, 4, 2, 1)
    assert stats["errors"] == {"not_finite": 1, "bad_token": 1}
    assert stats["batches"] == [[2, 3], [4, 1]], "three waves of one row, one of two"
    assert sum(count for _, count in stats["latencies_us"]) == 3
    assert stats["tokens_per_s"][-1] == [60.0, 4 / stats["uptime_s"]]
    assert stats["waiting"] == 0


def test_rates_are_those_of_the_last_seconds_also_after_silence() -> None:
    stats = Stats()

    def turn(now: float, tokens: int) -> None:
        stats.tokens += tokens
        stats.end(now)

    turn(100.0, 0)
    turn(100.1, 50)
    assert stats.rates(100.2) == [[1.0, pytest.approx(250)], [10.0, pytest.approx(250)], [60.0, pytest.approx(250)]]
    for i in range(200):  # a burst after a silence
        turn(115 + i / 1000, 10)
    assert [rate for _, rate in stats.rates(115.2)] == pytest.approx([2000, 200, 2050 / 15.2])
    assert [rate for _, rate in stats.rates(117.0)] == pytest.approx([0, 200, 2050 / 17])
    for i in range(10_000):  # 100 a second for 100 seconds
        turn(120 + i / 100, 1)
    assert [rate for _, rate in stats.rates(220.0)] == pytest.approx([100, 100, 100], rel=0.02)


def test_a_connection_with_too_much_unanswered_is_busy_and_no_other(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnnstream.worker.standing.CONNECTION_BYTES", 100_000)
    driver = drive(network())
    driver.ask(step("s", 1), step("other", 1))
    driver.handle((A, [step("s", 1, want="none")] * 60), *((A, [{"op": "hello"}]) for _ in range(100)))
    driver.handle((A, [{"op": "ping"}]), (B, [{"op": "ping"}]), (B, [step("other", 2)]))
    assert codes(reply for body in driver.replies[B] for reply in body) == ["?", 2]
    driver.finish()
    told = [body[0] for body in driver.replies[A]]
    assert told[0]["t"] == 2
    assert "protocol" in told[1]
    assert (told[-1]["error"], told[-1]["retry_after_ms"] > 0) == ("busy", True)
    assert "protocol" in driver.ask({"op": "hello"}, address=A)[0]
