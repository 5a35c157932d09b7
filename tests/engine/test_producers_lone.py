"""The producers of one session: what holds one without a dict is a mapping like any other."""

from __future__ import annotations

import random
import sys

import pytest

from rnnstream.engine.numbering import IDS
from rnnstream.engine.producers import Producer, Producers

from .counting import Counting


@pytest.mark.parametrize("seed", range(5))
def test_producers_are_what_a_dict_would_be(seed: int) -> None:
    rng = random.Random(seed)
    known, model = Producers(), dict[str, Producer]()
    sizes = set()
    for _ in range(400):
        producer = rng.choice("abc")
        if rng.random() < 0.5:
            known[producer] = model[producer] = Producer()
        elif producer in model:
            del known[producer], model[producer]
        else:
            with pytest.raises(KeyError):
                del known[producer]
            with pytest.raises(KeyError):
                known[producer]
        assert dict(known) == model
        assert list(known) == list(model)
        assert len(known) == len(model)
        assert [known.get(name) for name in "abc"] == [model.get(name) for name in "abc"]
        only = next(iter(model.items())) if len(model) == 1 else (None, None)
        assert (known.id, known.lone) == only
        sizes.add(len(model))
    known.clear()
    assert (len(known), known.id, known.lone) == (0, None, None)
    assert sizes == {0, 1, 2, 3}


def test_one_producer_takes_no_dict() -> None:
    lone, two = Producers([("p", Producer())]), Producers([("p", Producer()), ("q", Producer())])
    assert sys.getsizeof(lone) == sys.getsizeof(two) < sys.getsizeof({"p": None}) - 100
    assert not any(isinstance(getattr(lone, slot), dict) for slot in lone.__slots__)
    assert list(two) == ["p", "q"]


def test_a_producer_of_many_sessions_has_one_id_in_all_of_them() -> None:
    counting = Counting()
    for i in range(3):
        counting.turn(f"s{i}", "".join(["pro", "ducer"]), 1)
    assert len({id(name) for known in counting.sessions.values() for name in known}) == 1
    numbering, known = counting.numbering, counting.sessions["s0"]
    numbering.producers = 4 * IDS
    for i in range(2 * IDS):
        numbering.keep(known, f"p{i}", 1, "step", b"", 0, 0.0)
        assert len(numbering._ids) <= IDS
    counting.check()
