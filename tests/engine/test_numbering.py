"""Numbering: every judgement, every bound."""

from __future__ import annotations

from typing import Any

import pytest

from rnnstream.engine.numbering import ENTRY_BYTES, JUDGEMENTS, ORDINARY_BYTES
from rnnstream.errors import Conflict, Gap, RequestError, Stale

from .counting import Counting

LARGE = ORDINARY_BYTES + 1


def counted(bounds: dict[str, Any] | None = None, **options: Any) -> Counting:
    """Producer p has sent 1 to 6 to the session s and acknowledged up to 3; `options` are of each turn."""
    counting = Counting(**bounds or {})
    for n in range(1, 7):
        counting.turn("s", "p", n, **{"request": f"r{n}", "reply": b"%d" % n, "ack": 3 if n == 6 else 0, **options})
    return counting


# Judgements -----------------------------------------------------------------------------------------------------------

TURNS: list[tuple[tuple[str, str], str, int, str, Any, str]] = [
    # row of the table, producer, n, request -> reply or error, its sentence
    (("last + 1", ""), "p", 7, "r", None, ""),
    (("last + 1", ""), "new", 1, "r", None, ""),
    (("at most last", "kept, same request"), "p", 6, "r6", b"6", ""),
    (("at most last", "kept, same request"), "p", 4, "r4", b"4", ""),
    (
        ("at most last", "kept, another request"),
        "p",
        6,
        "r5",
        Conflict("", field="n", t=7),
        "s: producer p sent n=6, which counted for another request; a repeat is the same request.",
    ),
    (
        ("at most last", "kept, another request"),
        "p",
        4,
        "r6",
        Conflict("", field="n", t=7),
        "s: producer p sent n=4, which counted for another request; a repeat is the same request.",
    ),
    (
        ("at most last", "no longer kept"),
        "p",
        3,
        "r3",
        Stale("", last=6),
        "s: producer p sent n=3 again: it has counted, but its reply is no longer kept; the last is 6.",
    ),
    (
        ("at most last", "no longer kept"),  # what it was is forgotten with the reply
        "p",
        1,
        "another",
        Stale("", last=6),
        "s: producer p sent n=1 again: it has counted, but its reply is no longer kept; the last is 6.",
    ),
    (("beyond last + 1", ""), "p", 8, "r", Gap("", expected=7), "s: producer p sent n=8, expected 7."),
    (("beyond last + 1", ""), "p", 2**64, "r", Gap("", expected=7), f"s: producer p sent n={2**64}, expected 7."),
    (("beyond last + 1", ""), "new", 2, "r", Gap("", expected=1), "s: producer new sent n=2, expected 1."),
]


@pytest.mark.parametrize(("row", "producer", "n", "request_", "expected", "sentence"), TURNS)
def test_a_number_is_judged_by_the_table(
    row: tuple[str, str], producer: str, n: int, request_: str, expected: Any, sentence: str
) -> None:
    names = {"applied": type(None), "again": bytes, "conflict": Conflict, "stale": Stale, "gap": Gap}
    assert isinstance(expected, names[JUDGEMENTS[row]])
    counting = counted()
    before = counting.kept("s", "p")
    if not isinstance(expected, RequestError):
        assert counting.turn("s", producer, n, request=request_, reply=b"new") == expected
        assert counting.sessions["s"][producer].last == (n if expected is None else 6)
        return
    with pytest.raises(type(expected)) as error:
        counting.turn("s", producer, n, request=request_)
    assert error.value.extra == expected.extra
    assert str(error.value) == sentence
    assert counting.kept("s", "p") == before == {4: b"4", 5: b"5", 6: b"6"}
    assert counting.sessions["s"].keys() == {"p"}


def test_every_row_of_the_table_is_tested() -> None:
    assert {row for row, *_ in TURNS} == set(JUDGEMENTS)


def test_producers_and_sessions_count_apart() -> None:
    counting = counted()
    for session, producer in (("s", "q"), ("other", "p")):
        assert counting.turn(session, producer, 1, request="r1", reply=b"mine") is None
        assert counting.turn(session, producer, 1, request="r1") == b"mine"
    assert counting.turn("s", "p", 6, request="r6") == b"6"
    assert counting.numbering.count == 3


def test_a_request_that_is_refused_has_used_no_number() -> None:
    counting = counted()
    for _ in range(2):
        assert counting.turn("s", "p", 7, request="bad", counts=False) is None
        assert counting.turn("s", "new", 1, counts=False) is None
    with pytest.raises(Gap):
        counting.turn("s", "p", 8)
    assert counting.sessions["s"].keys() == {"p"}
    assert counting.turn("s", "p", 7, request="next", reply=b"7") is None
    assert counting.turn("s", "p", 7, request="next") == b"7"


# Acknowledged ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("acks", "kept"),
    [
        ([0, 0, 0, 0, 0], [1, 2, 3, 4, 5]),
        ([0, 0, 0, 0, 2], [3, 4, 5]),
        ([0, 0, 2, 0, 1], [3, 4, 5]),  # never back
        ([0, 1, 2, 3, 4], [5]),
        ([0, 0, 0, 0, 4], [5]),
        ([0, 0, 0, 0, 5], [5]),  # the request's own reply stays all the same: nobody can have it yet
        ([9, 9, 9, 9, 9], [5]),
        ([0, 0, 0, 3, 0], [4, 5]),
    ],
)
def test_replies_are_dropped_up_to_ack(acks: list[int], kept: list[int]) -> None:
    counting = Counting()
    for n, ack in enumerate(acks, 1):
        counting.turn("s", "p", n, reply=b"%d" % n, ack=ack)
    assert counting.kept("s", "p") == {n: b"%d" % n for n in kept}
    assert counting.numbering.held_bytes == sum(1 + ENTRY_BYTES for _ in kept[:-1])


def test_ack_alone_drops_the_others_but_not_an_ordinary_last_reply() -> None:
    counting = counted()
    mine = counting.sessions["s"]["p"]
    for ack, kept in ((0, [4, 5, 6]), (4, [5, 6]), (2, [5, 6]), (6, [6]), (99, [6])):
        counting.numbering.acknowledge(mine, ack)
        counting.check()
        assert list(counting.kept("s", "p")) == kept


def test_a_large_last_reply_is_kept_out_of_the_budget_and_goes_with_its_ack() -> None:
    counting = Counting()
    for n, size in enumerate((ORDINARY_BYTES, LARGE, 1, LARGE), 1):
        counting.turn("s", "p", n, reply=bytes(size))
        assert counting.turn("s", "p", n) == bytes(size)
    assert {n: len(reply) for n, reply in counting.kept("s", "p").items()} == {1: ORDINARY_BYTES, 2: LARGE, 3: 1, 4: LARGE}
    assert counting.numbering.held_bytes == ORDINARY_BYTES + 2 * LARGE + 1 + 4 * ENTRY_BYTES
    counting.numbering.acknowledge(counting.sessions["s"]["p"], 4)
    assert counting.kept("s", "p") == {}
    assert counting.numbering.held_bytes == 0
    with pytest.raises(Stale, match="the last is 4"):
        counting.turn("s", "p", 4)
    assert counting.turn("s", "p", 5, reply=b"5") is None
    assert counting.kept("s", "p") == {5: b"5"}


# Bounds of a producer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("replies", [1, 2, 5])
def test_the_latest_replies_of_a_producer_are_kept_up_to_a_number(replies: int) -> None:
    counting = Counting(replies=replies)
    for n in range(1, 12):
        counting.turn("s", "p", n, reply=b"%d" % n)
        assert list(counting.kept("s", "p")) == list(range(max(1, n - replies + 1), n + 1))


def test_the_latest_replies_of_a_producer_are_kept_up_to_bytes() -> None:
    size = 100
    counting = Counting(reply_bytes=3 * (size + ENTRY_BYTES))
    for n in range(1, 12):
        counting.turn("s", "p", n, reply=bytes(size))
        assert list(counting.kept("s", "p")) == list(range(max(1, n - 3), n + 1))  # three, and the last
    counting.turn("s", "p", 12, reply=bytes(LARGE))  # larger than all together
    assert counting.kept("s", "p") == {}
    with pytest.raises(Stale):
        counting.turn("s", "p", 12)


# The shared budget ----------------------------------------------------------------------------------------------------


def test_those_who_have_kept_the_least_lately_pay_for_the_shared_budget() -> None:
    size = 100
    counting = Counting(most_bytes=4 * (size + ENTRY_BYTES))
    for producer in "abc":
        counting.turn("s", producer, 1, reply=bytes(size))
        counting.turn("other", producer, 1, reply=bytes(size))
    assert counting.numbering.held_bytes == 0
    held = counting.kept
    for session, producer, n in (("s", "a", 2), ("other", "b", 2), ("s", "c", 2), ("s", "a", 3)):
        counting.turn(session, producer, n, reply=bytes(size))
    assert counting.numbering.held_bytes == counting.numbering.most_bytes
    counting.turn("other", "c", 2, reply=bytes(size))  # b was the first to keep, and a has kept since
    assert (list(held("s", "a")), list(held("other", "b")), list(held("s", "c"))) == ([1, 2, 3], [2], [1, 2])
    counting.turn("other", "c", 3, reply=bytes(size))
    assert (list(held("s", "a")), list(held("s", "c")), list(held("other", "c"))) == ([1, 2, 3], [2], [1, 2, 3])
    counting.turn("other", "c", 4, reply=bytes(size))  # one of the two of a: its oldest
    assert (list(held("s", "a")), list(held("other", "c"))) == ([2, 3], [1, 2, 3, 4])
    for session in counting.sessions:
        for producer, mine in counting.sessions[session].items():
            assert mine.last in held(session, producer)


def test_an_ordinary_last_reply_never_goes() -> None:
    counting = Counting(most_bytes=0, replies=3)
    for n in range(1, 5):
        for producer in "abc":
            counting.turn("s", producer, n, reply=bytes(ORDINARY_BYTES))
            assert list(counting.kept("s", producer)) == [n]
    counting.turn("s", "a", 5, reply=bytes(LARGE))
    assert counting.kept("s", "a") == {}
    assert list(counting.kept("s", "b")) == [4]


def test_what_a_session_held_is_free_when_it_is_forgotten() -> None:
    counting = counted()
    counting.turn("other", "p", 1, reply=bytes(LARGE))
    counting.forget("s")
    assert (counting.numbering.count, counting.numbering.held_bytes) == (1, LARGE + ENTRY_BYTES)
    counting.forget("other")
    assert (counting.numbering.count, counting.numbering.held_bytes) == (0, 0)
    assert counting.turn("s", "p", 1) is None


@pytest.mark.parametrize("size", [10, ORDINARY_BYTES, ORDINARY_BYTES + 1])
def test_many_that_came_alone_are_kept_as_each_of_them_would_be(size: int) -> None:
    one, many = Counting(replies=3, most_bytes=5000), Counting(replies=3, most_bytes=5000)
    for counting in (one, many):
        for producer in "pqr":
            counting.turn("s", producer, 1)
            counting.turn("s", producer, 2, ack=0)
    replies = [bytes([i]) * size for i in range(3)]
    for producer, reply in zip("pr", (replies[0], replies[2]), strict=True):
        one.turn("s", producer, 3, request=producer, reply=reply, ack=2)
    producers = many.sessions["s"]
    marks = [(place, producers[producer], 3, producer) for place, producer in enumerate("pqr")]
    many.numbering.keep_all(marks, [*"pqr"], replies, [1])
    many.check()
    for producer in "pqr":
        assert many.kept("s", producer) == one.kept("s", producer)
        assert producers[producer].last == one.sessions["s"][producer].last
    assert many.numbering.held_bytes == one.numbering.held_bytes
