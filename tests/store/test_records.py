"""Journal entries and producers as bytes, and back."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnstream.store.records import Batch, KeptProducer, pack_entry, pack_producers, unpack_entry, unpack_producers

EXAMPLES = settings(max_examples=50, deadline=None, derandomize=True)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SECONDS = st.floats(0, allow_infinity=False)
COUNTS = st.integers(0, (1 << 64) - 1)
REQUESTS = st.recursive(
    st.integers(-(1 << 63), (1 << 64) - 1) | st.binary(max_size=8),
    lambda parts: st.lists(parts, max_size=4).map(tuple),
    max_leaves=8,
)
PRODUCERS = st.builds(
    KeptProducer,
    producer=NAMES,
    last=COUNTS,
    heard_at=SECONDS,
    request=st.none() | REQUESTS,
    reply=st.none() | st.binary(max_size=8),
    more=st.lists(st.tuples(COUNTS, REQUESTS, st.binary(max_size=8)), max_size=3),
)


@dataclass
class Step:
    """A step of a batch; its number is (producer, n, ack)."""

    name: str
    x: Any
    number: tuple[str, int, int] | None
    want: tuple[str | int, bool] | None


STEPS = st.lists(
    st.builds(
        Step,
        name=NAMES,
        x=COUNTS | st.binary(max_size=8),
        number=st.none() | st.tuples(NAMES, COUNTS, COUNTS),
        want=st.none() | st.tuples(st.sampled_from(["none", "probs", "argmax"]) | st.integers(1, 1000), st.booleans()),
    ),
    max_size=9,
)


def batch_of(steps: list[Step]) -> Batch:
    batch = Batch([step.name for step in steps], [step.x for step in steps])
    for place, step in enumerate(steps):
        if step.number is not None:
            batch.number(place, *step.number)
        if step.want is not None:
            batch.wants[place] = step.want
    return batch


def steps_of(batch: Batch) -> list[Step]:
    numbers = dict(zip(batch.places, zip(batch.producers, batch.ns, batch.acks, strict=True), strict=True))
    wants = {place: (want, surprisal) for place, (want, surprisal) in batch.wants.items()}
    pairs = zip(batch.names, batch.xs, strict=True)
    steps = [Step(name, x, numbers.pop(place, None), wants.pop(place, None)) for place, (name, x) in enumerate(pairs)]
    assert (numbers, wants) == ({}, {})
    return steps


# -- batches


def test_a_batch_lists_what_its_steps_have() -> None:
    steps = [Step("a", 1, None, None), Step("b", b"\0\0", ("p", 7, 6), ("probs", True)), Step("c", 3, ("q", 1, 0), None)]
    batch = batch_of(steps)
    assert astuple(batch) == (["a", "b", "c"], [1, b"\0\0", 3], [1, 2], ["p", "q"], [7, 1], [6, 0], {1: ("probs", True)})
    assert batch.packed() == list(astuple(batch))
    only = batch.only([False, False, True])
    assert astuple(only) == (["c"], [3], [0], ["q"], [1], [0], {})
    assert astuple(batch.only([True, True, False])) == (["a", "b"], [1, b"\0\0"], [1], ["p"], [7], [6], {1: ("probs", True)})


@EXAMPLES
@given(STEPS, st.data())
def test_only_the_good_steps_stay_each_with_what_it_has(steps: list[Step], data: st.DataObject) -> None:
    good = data.draw(st.lists(st.booleans(), min_size=len(steps), max_size=len(steps)))
    batch = batch_of(steps)
    assert steps_of(batch.only(good)) == [step for step, is_good in zip(steps, good, strict=True) if is_good]
    assert batch == batch_of(steps)
    assert batch.only([True] * len(steps)) == batch
    assert batch.only([False] * len(steps)) == Batch([], [])


# -- entries


@EXAMPLES
@given(SECONDS, st.lists(STEPS, max_size=3))
def test_an_entry_gives_back_the_time_and_the_steps(now: float, batches: list[list[Step]]) -> None:
    found, given = unpack_entry(pack_entry(now, [batch_of(steps) for steps in batches]))
    assert found == now
    assert [steps_of(batch) for batch in given] == batches


@EXAMPLES
@given(SECONDS, STEPS, st.integers(0, 70_000))
def test_padding_makes_an_entry_longer_and_means_nothing(now: float, steps: list[Step], padding: int) -> None:
    batches = [batch_of(steps)]
    plain, padded = pack_entry(now, batches), pack_entry(now, batches, padding)
    assert padding <= len(padded) - len(plain) <= padding + 3
    assert unpack_entry(padded) == unpack_entry(plain)
    assert pack_entry(now, batches) == plain


def test_an_entry_without_steps_is_a_time() -> None:
    assert unpack_entry(pack_entry(1.5, [])) == (1.5, [])


def test_an_entry_can_be_read_by_any_messagepack() -> None:
    entry = pack_entry(2.5, [batch_of([Step("a", 1, ("p", 2, 1), (3, False))]), Batch(["b"], [b"\1"])], 2)
    assert msgpack.unpackb(entry, strict_map_key=False) == [
        2.5,
        b"\0\0",
        [["a"], [1], [0], ["p"], [2], [1], {0: [3, False]}],
        [["b"], [b"\1"], [], [], [], [], {}],
    ]


def test_what_cannot_be_packed_spoils_nothing_that_is_packed_later() -> None:
    with pytest.raises(TypeError):
        pack_entry(1.0, [Batch(["a"], [object()])])
    assert unpack_entry(pack_entry(2.0, [Batch(["b"], [1])])) == (2.0, [Batch(["b"], [1])])


# -- producers


@EXAMPLES
@given(st.lists(PRODUCERS, max_size=4))
def test_producers_are_given_back_as_they_were(producers: list[KeptProducer]) -> None:
    found = [replace(kept, more=list(kept.more)) for kept in unpack_producers(pack_producers(producers))]
    assert found == producers
    for kept, before in zip(found, producers, strict=True):
        assert kinds(kept.request) == kinds(before.request)
        assert [kinds(entry) for entry in kept.more] == [kinds(entry) for entry in before.more]
        assert hash(kept.request) == hash(before.request)


def kinds(value: Any) -> Any:
    """Which types it is made of; a tuple is another one than a list, though they may be packed alike."""
    return type(value), [kinds(part) for part in value] if isinstance(value, tuple | list) else None


def test_no_producers_are_no_bytes() -> None:
    assert pack_producers([]) == b""
    assert unpack_producers(b"") == []


def test_a_request_is_told_apart_from_others_that_look_alike() -> None:
    requests = [0, b"0", (), (0,), ((0,),), (b"0",), (0, b""), None, b"", (1, (2, b"x", (3,)))]
    producers = [KeptProducer("p", 1, 0.0, request, b"", [(1, request, b"")]) for request in requests]
    found = unpack_producers(pack_producers(producers))
    assert [kept.request for kept in found] == requests
    assert [request for kept in found for _, request, _ in kept.more] == requests
