"""Every parser against hostile bytes: the sentence that comes of them, the memory that they take, and nothing else.

scripts/fuzz_parsers.py does the same for as long as one likes.
"""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from rnnstream.engine.snapshot import decode as decode_snapshot
from rnnstream.errors import BadState, ModelError, ProtocolError
from rnnstream.model.file import MOST_TEXT, load_file, save
from rnnstream.store.records import unpack_entry, unpack_producers
from rnnstream.wire import replies, requests
from tests.fuzzing.mutations import Mutations
from tests.fuzzing.seeds import (
    HOSTILE_ANSWERS,
    HOSTILE_BODIES,
    HOSTILE_ENTRIES,
    HOSTILE_FILES,
    answers,
    bodies,
    entries,
    file,
    files,
    good,
    nested,
    snapshots,
)
from tests.fuzzing.targets import MOST_MAPS, TARGETS, networks
from tests.model.nets import dense_spec, embedding, pool, token_spec

MUTATIONS = {"decode": 2000, "answer": 2000, "model": 150, "restore": 300, "records": 2000}  # a second or less each

# What is taken ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", files())
def test_good_model_files_are_taken(data: bytes) -> None:
    assert TARGETS["model"](data) == ""


@pytest.mark.parametrize("place", range(3))
def test_good_snapshots_are_taken_by_their_models_alone(place: int) -> None:
    sentences = TARGETS["restore"](snapshots()[place]).split("\n")
    assert [sentence == "" for sentence in sentences] == [at % 3 == place for at in range(6)]


def test_good_bodies_and_entries_are_taken() -> None:
    for body in bodies():
        items, problem = requests.decode(body, 100)
        assert problem is None
        assert requests.encode(items) == body
    for body in answers():
        assert b"".join(map(replies.encode, replies.decode(body))) == body
    steps, empty = entries()[1], entries()[0]
    assert [len(batch.names) for batch in unpack_entry(steps)[1]] == [3, 1]
    assert unpack_entry(empty) == (1.5, [])
    assert [kept.producer for kept in unpack_producers(entries()[2])] == ["p", "q"]


# What is refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "data", "sentence"),
    [
        pytest.param(target, data, sentence, id=f"{target}: {name}")
        for target, table in (("decode", HOSTILE_BODIES), ("answer", HOSTILE_ANSWERS), ("model", HOSTILE_FILES))
        for name, (data, sentence) in table.items()
    ],
)
def test_hostile_bytes_get_their_sentence(target: str, data: bytes, sentence: str) -> None:
    told = TARGETS[target](data)
    assert told.startswith(sentence) if sentence else told == ""


@pytest.mark.parametrize("name", HOSTILE_ENTRIES)
def test_what_no_worker_has_written_into_a_store_is_not_decoded(name: str) -> None:
    refused_entry(HOSTILE_ENTRIES[name])
    refused_producers(HOSTILE_ENTRIES[name])


BATCH, NUMBERS, OWNERS = "it is no batch", "it numbers no steps of its own", "its owners are none"
WRONG_STEPS: dict[str, tuple[list[Any], str]] = {
    "too few lists": ([["a"]], "missing 1 required positional argument"),
    "names that are one text": (["a", [1], [], [], [], [], {}], BATCH),
    "fewer tokens": ([["a"], [], [], [], [], [], {}], BATCH),
    "a token of another type": ([["a"], [1.5], [], [], [], [], {}], BATCH),
    "true as a token": ([["a"], [True], [], [], [], [], {}], BATCH),
    "numbers without places": ([["a"], [1], [], ["p"], [1], [0], {}], NUMBERS),
    "a place twice": ([["a", "b"], [1, 2], [0, 0], ["p", "p"], [1, 2], [0, 0], {}], NUMBERS),
    "a producer that is a number": ([["a"], [1], [0], [5], [1], [0], {}], NUMBERS),
    "a number that is a text": ([["a"], [1], [0], ["p"], ["1"], [0], {}], NUMBERS),
    "wants as a list": ([["a"], [1], [0], ["p"], [1], [0], []], NUMBERS),
    "a want that is none": ([["a"], [1], [0], ["p"], [1], [0], {0: 5}], "cannot unpack non-iterable int"),
    "a want of another type": ([["a"], [1], [0], ["p"], [1], [0], {0: [1.5, True]}], NUMBERS),
    "a want for nobody": ([["a"], [1], [0], ["p"], [1], [0], {1: ["probs", True]}], NUMBERS),
    "an owner that is a number": ([["a"], [1], [], [], [], [], {}, [[5], [0]]], OWNERS),
    "an owner that is not there": ([["a"], [1], [], [], [], [], {}, [["k"], [1]]], "list index out of range"),
    "fewer owners": ([["a"], [1], [], [], [], [], {}, [["k"], []]], "is longer than argument 1"),
}


@pytest.mark.parametrize("name", WRONG_STEPS)
def test_steps_that_no_worker_has_written_are_not_decoded(name: str) -> None:
    steps, told = WRONG_STEPS[name]
    with pytest.raises(ValueError, match=told):
        unpack_entry(msgpack.packb([1.0, b"", steps]))
    right = [["a"], [1], [0], ["p"], [1], [0], {0: ["probs", True]}]
    assert len(unpack_entry(msgpack.packb([1.0, b"", right]))[1]) == 1


RIGHT_PRODUCER = ["p", 3, 1.5, 7, b"reply", [[2, 7, b"r"]]]


@pytest.mark.parametrize(
    ("at", "value"), [(0, 5), (0, b"p"), (1, "3"), (1, True), (2, "now"), (2, None), (4, 5), (5, 5), (5, [5])]
)
def test_producers_that_no_worker_has_written_are_not_decoded(at: int, value: Any) -> None:
    assert len(unpack_producers(msgpack.packb([RIGHT_PRODUCER]))) == 1
    wrong = [*RIGHT_PRODUCER[:at], value, *RIGHT_PRODUCER[at + 1 :]]
    with pytest.raises((ValueError, TypeError)):
        unpack_producers(msgpack.packb([RIGHT_PRODUCER, wrong]))


@pytest.mark.parametrize("target", TARGETS)
def test_whatever_bytes_are_changed_what_comes_of_them_is_as_promised(target: str) -> None:
    seeds, chance = good(target), random.Random(3)
    mutations = Mutations(target, chance, seeds)
    told: set[str] = set()
    for _ in range(MUTATIONS[target]):
        told |= set(TARGETS[target](mutations.changed(chance.choice(seeds))).split("\n"))
    assert "" in told, "some are still good"
    assert target == "records" or len(told) > 10, "and others are refused, for many reasons"


# What it takes ------------------------------------------------------------------------------------------------------------

SIZE = 1 << 16  # of a body: large enough that little else counts
LONG = b"\x81\xa1x\xdd" + (SIZE - 20).to_bytes(4, "big")
SMALL_OBJECTS = {  # the most that Python makes of a byte
    "lists": LONG + b"\x90" * (SIZE - 20),
    "dicts": LONG + b"\x80" * (SIZE - 20),
    "ints": LONG + b"\x01" * (SIZE - 20),
    "maps": b"\x80" * SIZE,
    "a long text": b"\x81\xa1x\xdb" + (SIZE - 8).to_bytes(4, "big") + b"x" * (SIZE - 8),
}
CLAIMS = {  # of which next to nothing is there
    "an array of 2**32": b"\x81\xa1x\xdd\xff\xff\xff\xff",
    "a map of 2**32": b"\xdf\xff\xff\xff\xff",
    "a text of 4 GB": b"\x81\xa1x\xdb\xff\xff\xff\xff",
    "4 GB of bytes": b"\x81\xa1x\xc6\xff\xff\xff\xff",
    "4 GB of an extension": b"\x81\xa1x\xc9\xff\xff\xff\xff\x05",
    "arrays in arrays": nested(1000, 10_000, 10_020),
    "arrays in arrays, and the last is there": (nested(1000, SIZE - 6000, 0)).ljust(SIZE, b"\0"),
    "arrays in arrays without an end": nested(SIZE // 5 - 10, SIZE - 100, 0),
    "maps in maps": b"\x8f\xa1x" * (SIZE // 4),
    "depth": b"\x81\xa1x" + b"\x91" * SIZE,
}


def peak(take: Callable[[], object]) -> int:
    """The most bytes that Python and NumPy hold while this runs, beyond those before."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        take()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def decode_request(body: bytes) -> None:
    requests.decode(body, 512)


def answered(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        replies.decode(body)


def refused_entry(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        unpack_entry(data)


def refused_producers(data: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        unpack_producers(data)


@pytest.mark.parametrize("name", CLAIMS)
@pytest.mark.parametrize("take", [decode_request, answered, refused_entry, refused_producers])
def test_what_is_claimed_and_not_there_takes_no_memory(take: Callable[[bytes], object], name: str) -> None:
    body = CLAIMS[name]
    assert peak(lambda: take(body)) < 4 * len(body) + 500_000


@pytest.mark.parametrize("name", SMALL_OBJECTS)
@pytest.mark.parametrize("decode", [decode_request, replies.decode])
def test_what_is_there_takes_what_python_makes_of_it(decode: Callable[[bytes], object], name: str) -> None:
    body = SMALL_OBJECTS[name]
    assert peak(lambda: decode(body)) < 90 * len(body) + 500_000


def test_a_body_that_is_wrong_at_its_end_is_not_held_twice() -> None:
    body = SMALL_OBJECTS["lists"] + b"\x05"
    assert peak(lambda: decode_request(body)) < 90 * len(body) + 500_000


@pytest.mark.parametrize("name", [name for name, (_, sentence) in HOSTILE_FILES.items() if sentence])
def test_a_model_file_that_is_refused_takes_no_more_than_its_text(name: str) -> None:
    data, _ = HOSTILE_FILES[name]
    TARGETS["model"](data)  # what is made once is no part of it
    assert peak(lambda: TARGETS["model"](data)) < 30 * len(data) + 500_000


def test_the_most_that_a_model_file_may_ask_for_is_bounded() -> None:
    data, _ = HOSTILE_FILES["as much as there may be"]
    assert peak(lambda: TARGETS["model"](data)) < 64 << 20


def test_a_text_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "long.safetensors"
    path.write_bytes(file("[" * (MOST_TEXT + 1)))
    with pytest.raises(ModelError, match="'rnnstream' has 16,777,217 characters; 16,777,216 are the most"):
        load_file(path)


def test_nothing_is_saved_that_could_not_be_loaded(tmp_path: Path) -> None:
    path, size = tmp_path / "new.safetensors", MOST_TEXT // 990
    words = token_spec(embedding(1), size=size) | {
        "input": {"kind": "token", "size": size, "vocabulary": [f"{place:990}" for place in range(size)]}
    }
    for spec, tensors, told in (
        (dense_spec(pool("max", 1 << 24), size=1), {}, "come to 16,777,217 numbers a token"),
        (words, {"e1": np.zeros((size, 1), "f4")}, "characters; 16,777,216 are the most"),
    ):
        with pytest.raises(ModelError, match=told):
            save(path, spec, tensors)
        assert list(tmp_path.iterdir()) == []


def test_a_snapshot_takes_no_more_than_itself_whatever_it_claims() -> None:
    network, size = networks()[0], 10 << 20
    head = snapshots()[0][:26] + b"\xff" * 8 + snapshots()[0][34:74]

    def take() -> None:
        with pytest.raises(BadState, match="one of this model has 102"):
            decode_snapshot(data, dtype=network.dtype, state_size=network.state_size, digest=network.digest)

    data = head.ljust(size, b"\0")
    assert peak(take) < 500_000


def test_a_body_of_as_many_maps_as_there_may_be_is_looked_at_no_further() -> None:
    body = msgpack.packb({"session": "s", "x": [0] * 20}) * MOST_MAPS + b"\xdd\xff\xff\xff\xff" * 100_000
    items, problem = requests.decode(body, MOST_MAPS)
    assert len(items) == MOST_MAPS
    assert f"Object {MOST_MAPS + 1} of the body" in str(problem)
