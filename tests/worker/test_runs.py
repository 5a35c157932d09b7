"""Waves in which one session is alone: several run in one turn, and come out as if each had run by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rnnstream.model.step import StepModel
from rnnstream.worker import waves
from rnnstream.worker.waves import RUN
from tests.engine.models import HUGE, SPOILED, V, network, relu

from .driving import Driver, codes, step
from .moody import Moody

Drive = Callable[..., Driver]
A, B = b"aaaaa", b"bbbbb"
LONG = 3 * RUN + 5
XS = [(7 * i) % (V - 2) for i in range(LONG)]


def turns(driver: Driver) -> int:
    """How many turns it takes until nothing waits."""
    before = driver.calls
    driver.finish()
    return driver.calls - before


def numbered(xs: list[int], n: int = 1, **more: Any) -> list[dict[str, Any]]:
    return [step("s", x, producer="p", n=n + i, **more) for i, x in enumerate(xs)]


@pytest.mark.parametrize("make", [network, relu])
@pytest.mark.parametrize("count", ["numbered", "with ids", "plain"])
def test_tokens_of_one_session_run_together_with_the_bits_of_the_whole_sequence(
    drive: Drive, make: Callable[[], StepModel], count: str
) -> None:
    model = make()
    driver = drive(model)
    driver.ask(step("s", 1, **({"producer": "p", "n": 1} if count == "numbered" else {})))
    body = (
        numbered(XS, 2)
        if count == "numbered"
        else [step("s", x, **({"id": i} if "ids" in count else {})) for i, x in enumerate(XS)]
    )
    driver.handle((A, body))
    assert turns(driver) == -(-LONG // RUN) - 1  # and one that took it in
    (replies,) = driver.replies[A]
    ys = model.forward([1, *XS])[1:]
    assert [(reply["t"], reply["y"], reply["p"]) for reply in replies] == [
        (t, int(y.argmax()), float(y.max())) for t, y in enumerate(ys, 2)
    ]
    assert [reply.get("id") for reply in replies] == [i if "ids" in count else None for i in range(LONG)]
    assert driver.states()["s"] == (LONG + 1, model.run([1, *XS]).tobytes())
    assert driver.core.stats.tokens == LONG + 1
    if count == "numbered":
        again = driver.ask(*numbered(XS[-3:], LONG - 1))
        assert [reply.pop("again") for reply in again] == [True] * 3
        assert again == replies[-3:]


def test_it_is_the_same_as_a_wave_a_turn(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands between the tokens: other sessions, other requests, repeats, gaps, states that would not be finite."""
    bodies = [
        [step("s", x) for x in XS],
        [
            step("s", HUGE),
            *(step("s", HUGE) for _ in range(5)),
            step("s", SPOILED),
            *(step("s", x) for x in XS[:9]),
            step("r", 1),
        ],
        numbered(XS[:20]),
        [*numbered(XS[15:25], 16), *numbered(XS[:3], 40), *(step("s", x) for x in XS[:5])],
        [*(step("s", x) for x in XS[:20]), {"op": "info", "session": "s"}, *(step("s", x) for x in XS[:20])],
        [*(step("s", x) for x in XS[:20]), {"op": "close", "session": "s"}, *(step("s", x) for x in XS[:3])],
    ]
    found = []
    for run in (RUN, 1):
        monkeypatch.setattr(waves, "RUN", run)
        driver = drive(relu())
        driver.ask(step("s", 1), step("r", 2))
        for body in bodies:
            driver.handle((A, body))
            driver.finish()
        (info,) = driver.ask({"op": "info", "session": "r"})
        found.append((driver.replies[A], driver.states(), driver.core.stats.tokens, driver.core.stats.errors, info["t"]))
    for replies in (found[0][0], found[1][0]):
        for reply in (reply for body in replies for reply in body):
            for key in ("age_s", "idle_s"):
                reply.pop(key, None)  # turns are the time here
    assert found[0] == found[1]
    assert "not_finite" in codes(found[0][0][1])
    assert "gap" in codes(found[0][0][3])


def test_others_are_not_held_up_by_more_than_a_run(drive: Drive) -> None:
    driver = drive(network())
    driver.ask(step("s", 1), step("r", 1))
    driver.handle((A, [step("s", 1)] * LONG))
    driver.handle((B, [step("r", 1)]))
    assert codes(driver.replies[B][0]) == [2]
    assert driver.depth("s") == LONG - RUN - 1  # the wave that both were in was one by itself


def test_tokens_that_came_one_by_one_do_not_run_together(drive: Drive) -> None:
    driver = drive(network())
    driver.ask(step("s", 1))
    driver.handle(*((A, [step("s", x)]) for x in XS[:10]))
    assert driver.depth("s") == 9
    assert turns(driver) == 9
    assert [codes(replies) for replies in driver.replies[A]] == [[t] for t in range(2, 12)]


@pytest.mark.parametrize("mood", ["advance", "head"])
def test_a_step_that_fails_costs_its_own_token_alone(drive: Drive, mood: str) -> None:
    model = Moody()
    driver = drive(model)
    driver.ask(step("s", 1))
    model.mood = mood
    driver.handle((A, [step("s", x) for x in (1, 2, 3, 1, 2)]))
    driver.finish()
    assert codes(driver.replies[A][0]) == [2, 3, "internal", 4, 5]
