"""The rows of one key, in an order that is its own: what others take and give back leaves no trace in it."""

from __future__ import annotations

from bisect import bisect_right

SLACK = 64  # places of rows that were given back, beside as many as there are rows, before the list of places is made anew


class OwnRows:
    """The rows of a key's names, each with a place: how many rows the key had taken by then."""

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}  # by place, ascending
        self._place: dict[int, int] = {}  # by row
        self._places: list[int] = []  # ascending; of rows that were given back, too
        self._last = 0

    def add(self, row: int) -> None:
        """A row was taken."""
        self._last += 1
        self._rows[self._last] = row
        self._place[row] = self._last
        self._places.append(self._last)

    def remove(self, row: int) -> None:
        """A row was given back."""
        del self._rows[self._place.pop(row)]
        if len(self._places) > 2 * len(self._rows) + SLACK:
            self._places = list(self._rows)

    @property
    def empty(self) -> bool:
        """Whether the key has no row."""
        return not self._rows

    def __len__(self) -> int:
        """How many places there are; the rows of some may have been given back."""
        return len(self._places)

    def behind(self, place: int) -> int:
        """Where among the places those begin that are behind this one. O(log n)."""
        return bisect_right(self._places, place)

    def at(self, index: int) -> tuple[int, int]:
        """The place there, and its row; -1 where that was given back."""
        place = self._places[index]
        return place, self._rows.get(place, -1)

    def check(self, rows: set[int]) -> None:
        """Assert what always holds between calls; `rows` are those of the key's names."""
        assert self._place == {row: place for place, row in self._rows.items()}
        assert self._place.keys() == rows
        assert list(self._rows) == sorted(self._rows)
        assert self._places == sorted(set(self._places))
        assert self._rows.keys() <= set(self._places) <= set(range(1, self._last + 1))
        assert len(self._places) <= 2 * len(self._rows) + SLACK
