"""Which rows are behind, and since when."""

from __future__ import annotations

import random

import numpy as np

from rnnstream.worker.arrears import Arrears


def marked(*entries: tuple[int, list[int]], work: int = 10) -> Arrears:
    """Each entry, (id, rows), was so much work."""
    arrears = Arrears()
    for id, rows in entries:
        mark(arrears, rows, id, work)
    return arrears


def mark(arrears: Arrears, rows: list[int], id: int, work: int = 10) -> None:
    arrears.reach(max(rows) + 1)
    arrears.mark(np.array(rows), id)
    arrears.work += work


def test_a_new_one_has_nobody_behind() -> None:
    arrears = Arrears()
    assert arrears.oldest() is None
    assert arrears.overdue(-1, 10) == []
    assert not arrears.behind(0)
    arrears.settle(5)
    arrears.reach(3)
    assert not arrears.behind(2)


def test_a_row_is_behind_since_the_first_entry_that_is_not_saved() -> None:
    arrears = marked((3, [0, 1]), (4, [1, 2]), (7, [0]))
    assert [arrears.behind(row) for row in range(4)] == [True, True, True, False]
    assert arrears.oldest() == 3
    arrears.settle(0)
    assert arrears.oldest() == 3
    arrears.settle(1)
    assert arrears.oldest() == 4
    mark(arrears, [1], 8)
    arrears.settle(2)
    assert arrears.oldest() == 8
    arrears.settle(1)
    assert arrears.oldest() is None
    assert not any(arrears.behind(row) for row in range(4))


def test_those_are_overdue_behind_which_much_work_has_been_done() -> None:
    arrears = marked((1, [5, 4]), (2, [3]), (3, [2, 1]))
    assert arrears.overdue(-1, 10) == [5, 4, 3, 2, 1]
    assert arrears.overdue(10, 10) == [5, 4, 3]
    assert arrears.overdue(19, 10) == [5, 4, 3]
    assert arrears.overdue(20, 10) == [5, 4]
    assert arrears.overdue(29, 10) == [5, 4]
    assert arrears.overdue(30, 10) == []
    assert arrears.overdue(-1, 4) == [5, 4, 3, 2]
    assert arrears.overdue(-1, 1) == [5]
    assert arrears.overdue(-1, 0) == []
    arrears.settle(5)
    assert arrears.overdue(-1, 1) == [4]
    assert arrears.overdue(-1, 3) == [4, 3, 2]


def test_a_row_that_was_settled_and_moves_again_in_the_same_entry_is_behind_once() -> None:
    arrears = marked((1, [0, 1]))
    arrears.settle(0)
    mark(arrears, [0], 1)
    assert sorted(set(arrears.overdue(-1, 10))) == [0, 1]
    arrears.settle(0)
    assert arrears.overdue(-1, 10) == [1]


def test_places_are_made_without_losing_any() -> None:
    arrears = marked((1, [0, 63]))
    arrears.reach(1000)
    arrears.reach(10)
    assert [row for row in range(1000) if arrears.behind(row)] == [0, 63]
    mark(arrears, [999, 63], 2)
    assert arrears.overdue(-1, 10) == [0, 63, 999]


def test_what_was_settled_is_not_kept_for_ever() -> None:
    arrears = Arrears()
    for id in range(1, 1000):
        mark(arrears, [id % 7], id)
        arrears.settle(id % 7)
        assert arrears.oldest() is None
    assert len(arrears._parts) == 0
    mark(arrears, list(range(500)), 1000)
    for row in range(1, 500):
        arrears.settle(row)
        assert arrears.oldest() == 1000
    arrears.settle(0)
    assert arrears.oldest() is None
    assert len(arrears._parts) == 0


def test_a_walk_says_what_a_dictionary_says() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        arrears = Arrears()
        since: dict[int, tuple[int, int]] = {}  # by row, in their order: (id, work before)
        for id in range(1, 300):
            work = rng.randint(1, 30)
            for row in (rows := rng.sample(range(20), rng.randint(1, 6))):
                since.setdefault(row, (id, arrears.work))
            mark(arrears, rows, id, work)
            for row in rng.sample(range(25), rng.randint(0, 9)):
                arrears.settle(row)
                since.pop(row, None)
            assert arrears.oldest() == min((first for first, _ in since.values()), default=None)
            assert [row for row in range(25) if arrears.behind(row)] == sorted(since)
            most, limit = rng.randint(-1, 200), rng.randint(0, 20)
            late = [row for row, (_, before) in since.items() if arrears.work - before > most]
            assert arrears.overdue(most, limit) == late[:limit]
