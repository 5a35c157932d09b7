"""The short ways: a token that is alone, and turns that have nothing but tokens that came alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rnnstream.wire.replies import STEP_T, decode
from tests.engine.models import SPOILED, V, network, relu

from .driving import Driver, codes, pack, step

Drive = Callable[..., Driver]


@pytest.mark.parametrize("vocabulary", [False, True])
def test_a_token_alone_gets_the_reply_that_it_gets_in_company(drive: Drive, vocabulary: bool) -> None:
    alone, company = drive(network(vocabulary=vocabulary)), drive(network(vocabulary=vocabulary))
    for turn in range(10):
        requests = [step(f"s{i}", (turn + i) % 7, id=turn) for i in range(4)]
        company.handle(*((f"peer {i}".encode(), [request]) for i, request in enumerate(requests)))
        for i, request in enumerate(requests):
            address = f"peer {i}".encode()
            assert alone.ask(request, address=address) == company.replies[address].pop()
        assert alone.states() == company.states()


@pytest.mark.parametrize("shape", ["plain", "id", "numbered", "both"])
@pytest.mark.parametrize("vocabulary", [False, True])
def test_the_straight_way_gives_the_replies_of_the_other(drive: Drive, vocabulary: bool, shape: str) -> None:
    straight, other = drive(network(vocabulary=vocabulary)), drive(network(vocabulary=vocabulary))
    alone = straight.core.alone
    assert alone is not None
    straight.core.alone = other.core.alone = None

    def request(n: int) -> dict[str, Any]:
        numbered = {"producer": "p", "n": n} if shape in ("numbered", "both") else {}
        return step("s", n % 7, **numbered, **({"id": n} if shape in ("id", "both") else {}))

    for driver in (straight, other):
        for n in range(1, 10):  # it opens the session, and its parts are met
            driver.ask(request(n))
    for n in range(10, 40):
        reply = alone.answer(pack([request(n)]), 50.0 + n)
        assert reply is not None
        assert decode(reply) == other.ask(request(n))
        assert straight.states() == other.states()
        assert straight.engine.table.moved_at[0] == 50.0 + n
    straight.check()
    before = straight.states()
    nothing = [step("new", 1), step("s", V), step("s", 1, want="none"), step("s", 1, producer="new", n=1), step("s", 1, id="a")]
    nothing += [step("s", 1, producer="p", n=n) for n in (0, 38, 39, 41)]
    for one in nothing:
        assert alone.answer(pack([one]), 90.0) is None
    assert alone.answer(b"", 90.0) is None
    straight.engine.table.t[0] = STEP_T
    assert alone.answer(pack([request(40)]), 90.0) is None
    straight.engine.table.t[0] = before["s"][0]
    assert straight.states() == before
    assert straight.ask(request(39), request(40)) == other.ask(request(39), request(40))  # with numbers, a repeat and the next
    assert straight.engine.info("s") | {"idle_s": 0, "age_s": 0} == other.engine.info("s") | {"idle_s": 0, "age_s": 0}


def test_the_straight_way_leaves_what_goes_wrong_to_the_other(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = drive(relu())
    alone = driver.core.alone
    assert alone is not None
    for x in (1, 1, SPOILED):
        driver.ask(step("s", x))
    before = driver.states()
    assert alone.answer(pack([step("s", SPOILED)]), 0.0) is None
    with monkeypatch.context() as broken:
        broken.setattr(driver.engine, "predict_one", lambda row, token: 1 / 0)
        assert alone.answer(pack([step("s", 1)]), 0.0) is None
    assert driver.states() == before
    assert alone.answer(pack([step("s", 1)]), 0.0) is not None


def test_where_sessions_expire_or_are_kept_there_is_no_straight_way(drive: Drive) -> None:
    assert drive(network(), idle_timeout_s=1.0).core.alone is None
    assert drive(network()).core.alone is not None


@pytest.mark.parametrize("t", [STEP_T - 1, STEP_T])
def test_a_step_count_of_more_than_32_bits(drive: Drive, t: int) -> None:
    driver = drive(network())
    driver.ask(step("s", 1))
    driver.engine.table.t[driver.engine.table.rows["s"]] = t
    (peeked,) = driver.ask({"op": "peek", "session": "s", "xs": [2]})
    assert driver.ask(step("s", 2)) == [{"session": "s", "t": t + 1} | peeked["ys"][0]]


def test_a_state_that_would_not_be_finite_uses_no_number(drive: Drive) -> None:
    driver = drive(relu())
    driver.ask(step("s", 1, producer="p", n=1))
    before = driver.states()
    assert codes(driver.ask(step("s", SPOILED, producer="p", n=2))) == ["not_finite"]
    assert driver.states() == before
    assert codes(driver.ask(step("s", 1, producer="p", n=2))) == [2]


def test_a_twin_that_fails_is_told_of_and_logged(
    drive: Drive, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    driver = drive(network())
    driver.ask(step("s", 1))
    before = driver.states()
    with monkeypatch.context() as broken, caplog.at_level(logging.ERROR, "rnnstream.worker"):
        broken.setattr(driver.engine, "predict_one", lambda row, token: np.ones(3) / "x")
        assert codes(driver.ask(step("s", 1))) == ["internal"]
    assert driver.states() == before
    assert "a wave of 1 tokens failed" in caplog.text
    assert codes(driver.ask(step("s", 1))) == [2]


def test_each_answer_counts_once_with_its_time(drive: Drive) -> None:
    driver = drive(network())
    driver.ask(step("s", 1))
    (before,) = driver.ask({"op": "stats"})
    for _ in range(20):
        driver.handle((b"a", [step("s", 1)]))  # a second passes between them, and none within one
    (after,) = driver.ask({"op": "stats"})
    counted = {bound: count - dict(before["latencies_us"]).get(bound, 0) for bound, count in after["latencies_us"]}
    assert {bound: count for bound, count in counted.items() if count} == {1: 21}  # with the first `stats` itself
    assert after["tokens"] - before["tokens"] == 20
    assert after["bodies"] - before["bodies"] == 21


def test_peeks_go_on_beside_tokens_alone(drive: Drive) -> None:
    driver = drive(network())
    driver.ask(step("s", 1), step("other", 1))
    driver.handle((b"peeker", [{"op": "peek", "session": "s", "xs": [1, 2, 3, 4]}]))
    for _ in range(4):
        driver.handle((b"a", [step("other", 1)]))
    assert len(driver.replies[b"peeker"].pop()[0]["ys"]) == 4
