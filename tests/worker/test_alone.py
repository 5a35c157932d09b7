"""The short ways: a token that is alone, and turns that have nothing but tokens that came alone."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest

from rnnstream.wire.replies import STEP_T
from tests.engine.models import SPOILED, network, relu

from .driving import Driver, codes, step

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
        broken.setattr(driver.engine._one, "head", lambda features: np.ones(3) / "x")
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
