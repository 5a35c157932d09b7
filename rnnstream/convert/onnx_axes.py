"""Which axis of a tensor is what, followed from node to node, and never guessed.

    T tokens    B rows of a batch    F features

An axis is the group of the input's axes that it holds, in the order of memory: () is an axis of size 1, (x0,) the input's
first one, (x0, x1) the first two in one; "F" are features that a layer made. What x0, x1, ... are is told by the nodes that
work on them: a recurrent node takes [T, B, F], a convolution goes along T, a matrix is multiplied with F.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Axis = tuple[tuple[str, int], ...]  # pairs of a name and its size, which is more than 1
Axes = tuple[Axis, ...]
FEATURES = "F"


def of_input(shape: Sequence[int]) -> Axes:
    """The axes of the input."""
    return tuple(((f"x{place}", size),) if size > 1 else () for place, size in enumerate(shape))


def features(size: int) -> Axis:
    """An axis of features that a layer made."""
    return ((FEATURES, size),) if size > 1 else ()


def regrouped(axes: Axes, shape: Sequence[int]) -> Axes | None:
    """The axes after the numbers were given another shape, their order in memory the same; None where one is cut in two."""
    pairs = [pair for axis in axes for pair in axis]
    found = []
    for size in shape:
        axis: list[tuple[str, int]] = []
        whole = 1
        while pairs and whole < size:
            axis.append(pairs.pop(0))
            whole *= axis[-1][1]
        if whole != size:
            return None
        found.append(tuple(axis))
    return None if pairs else tuple(found)


@dataclass(frozen=True)
class Place:
    """Where in the chain a tensor stands.

    Attributes:
        point: how many parts lead to it.
        axes: what its axes are.
        lead: tokens that were put in front of the first, by a padding that waits for its convolution.
        tail: tokens behind the last, that are to be cut off again.
        last: only the last token is left.
    """

    point: int
    axes: Axes
    lead: int = 0
    tail: int = 0
    last: bool = False


@dataclass
class Roles:
    """What the input's axes have turned out to be.

    Attributes:
        tokens: the axis of T; "" where it is of size 1; None: not told yet.
        features: the axis of F, likewise.
        rows: the axes of B.
    """

    tokens: str | None = None
    features: str | None = None
    rows: set[str] = field(default_factory=set)

    def is_features(self, axes: Axes, place: int) -> bool:
        """Whether this axis is F; if nothing says otherwise, from now on it is."""
        names = _names(axes[place])
        if not names:
            elsewhere = {name for axis in axes for name in _names(axis)}
            if elsewhere & {FEATURES, self.features}:
                return False
            self.features = self.features or ""
            return True
        if names == [FEATURES] or names == [self.features]:
            return True
        if self.features is not None or len(names) > 1 or names[0] in self.rows | {self.tokens}:
            return False
        self.features = names[0]
        return True

    def is_tokens(self, axes: Axes, place: int) -> bool:
        """Whether this axis is T; if nothing says otherwise, from now on it is."""
        names = _names(axes[place])
        if not names:
            self.tokens = self.tokens or ""
            return self.tokens == ""
        if names == [self.tokens]:
            return True
        if self.tokens is not None or len(names) > 1 or names[0] in self.rows | {self.features, FEATURES}:
            return False
        self.tokens = names[0]
        return True

    def is_rows(self, axes: Axes, place: int) -> bool:
        """Whether this axis is B; if nothing says otherwise, from now on it is."""
        names = set(_names(axes[place]))
        if names & {FEATURES, self.features, self.tokens}:
            return False
        self.rows |= names
        return True

    def named(self, axes: Axes) -> Axes:
        """The axes, with the features of the input under the name that those of the layers have."""
        return tuple(tuple((FEATURES if name == self.features else name, size) for name, size in axis) for axis in axes)

    def size(self, axes: Axes) -> int:
        """How many features."""
        return next((size for axis in axes for name, size in axis if name in (FEATURES, self.features)), 1)


def _names(axis: Axis) -> list[str]:
    return [name for name, _ in axis]
