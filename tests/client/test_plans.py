from __future__ import annotations

import random
from collections import deque
from collections.abc import Container, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnstream.client.core import Core
from rnnstream.client.plans import BODY, WINDOW, Pages, Stream, is_sequence
from rnnstream.errors import BadToken, NoReply, ProtocolError, RequestError, Stale
from rnnstream.wire import replies
from rnnstream.wire.limits import Limits

from .toy import BAD, Counting


class Following:
    """The loop of a client, over a worker that answers as late as it can: when the client waits.

    Attributes:
        taken: tokens that were taken from the source.
        most: most tokens that were in flight at a time.
        lose: numbers of bodies, from 0, whose replies are lost.
        now: the time.
    """

    def __init__(self, core: Core, worker: Counting) -> None:
        self.core, self.worker = core, worker
        self.line: deque[bytes] = deque()
        self.taken = self.most = 0
        self.lose: Container[int] = ()
        self.now = 0.0

    def follow(self, plan: Any, source: Iterable[Any] = ()) -> Iterator[Any]:
        tokens = iter(source)
        try:
            while True:
                while room := plan.room():
                    some = list(islice(tokens, room))
                    self.taken += len(some)
                    plan.put(some)
                    self.line.extend(self.core.outgoing(self.now))
                    self.most = max(self.most, getattr(plan, "_in_flight", 0))
                call = plan.waiting()
                if call is None:
                    return
                self.line.extend(self.core.outgoing(self.now))
                while not call.done:
                    if not self.line:
                        self.now = self.core.deadline() or self.now
                        self.core.expire(self.now)
                    else:
                        number = len(self.worker.bodies)
                        reply = self.worker.answer(self.line.popleft())
                        if number not in self.lose:
                            self.core.received(reply, self.now)
                    self.line.extend(self.core.outgoing(self.now))
                    self.core.check()
                yield from plan.results()
        finally:
            plan.abandon()
            self.core.check()


def a_following(*, outputs: int = 5, **limits: int) -> Following:
    some = {"frame_bytes": 1 << 20, "frame_requests": 1024, "waiting": 1024, "reply_bytes": 1 << 20, **limits}
    return Following(Core("tcp://toy:1", 10.0, "me"), Counting(Limits(**some), outputs))


def a_stream(core: Core, session: str = "s", **keys: Any) -> Stream:
    return Stream(core, session, **{"want": "argmax", "surprisal": False, "live": False, **keys})


def sizes(worker: Counting) -> list[int]:
    return [len(body) for body in worker.bodies if "x" in body[0]]


@settings(deadline=None)
@given(count=st.integers(0, 700), window=st.none() | st.integers(1, 400), most=st.integers(1, 300), waiting=st.integers(1, 500))
def test_a_sequence_comes_in_order_and_never_over_the_window(count: int, window: int | None, most: int, waiting: int) -> None:
    following = a_following(frame_requests=most, waiting=waiting)
    found = list(following.follow(a_stream(following.core, window=window), range(100, 100 + count)))
    assert [prediction.y for prediction in found] == list(range(100, 100 + count))
    assert [prediction.t for prediction in found] == list(range(1, count + 1))
    assert following.most <= min(window or WINDOW, waiting)
    assert all(size <= min(BODY, most) for size in sizes(following.worker))
    assert following.taken == count


def test_a_long_sequence_goes_in_full_bodies_several_at_a_time() -> None:
    following = a_following()
    assert len(list(following.follow(a_stream(following.core), range(1000)[14:]))) == 986
    assert following.worker.bodies[0][0]["op"] == "hello"
    assert sizes(following.worker) == [64] * 15 + [26]
    assert following.most == WINDOW


def test_a_small_window_is_shared_by_several_bodies() -> None:
    following = a_following()
    list(following.follow(a_stream(following.core, window=40), range(100, 200)))
    assert sizes(following.worker) == [10] * 10


def test_a_known_hello_is_not_asked_again() -> None:
    following = a_following()
    list(following.follow(a_stream(following.core), [1]))
    list(following.follow(a_stream(following.core), [1]))
    assert [body[0].get("op") for body in following.worker.bodies] == ["hello", None, None]


@pytest.mark.parametrize(
    ("want", "outputs", "limits", "size"),
    [
        ("probs", 900, {}, 64),
        ("probs", 10_000, {}, 6),  # 25 * 40 kB are reply_bytes, half of what a worker keeps; that is shared by 4 bodies
        ("logits", 200_000, {}, 1),
        ("argmax", 1_000_000, {}, 64),
        (100, 5, {"reply_bytes": 1 << 16}, 6),
        ("argmax", 5, {"frame_bytes": 4000}, 5),
    ],
)
def test_bodies_keep_well_within_the_limits(want: Any, outputs: int, limits: dict[str, int], size: int) -> None:
    following = a_following(outputs=outputs, **limits)
    deque(following.follow(a_stream(following.core, want=want), range(14, 84)), maxlen=0)
    assert sizes(following.worker)[0] == size


@pytest.mark.parametrize(("outputs", "body"), [(1000, 60), (20_000, 3), (200_000, 1)])
@pytest.mark.parametrize("lose", [range(1, 5), range(2, 40, 3)])
def test_large_replies_that_are_lost_are_still_kept(outputs: int, body: int, lose: Container[int]) -> None:
    following = a_following(outputs=outputs)
    following.worker.reply_bytes = 2 << 20
    following.lose = lose
    found = list(following.follow(a_stream(following.core, want="probs"), range(100, 160)))
    assert [(prediction.t, prediction.y) for prediction in found] == [(t, 99 + t) for t in range(1, 61)]
    assert max(sizes(following.worker)) == body


def test_feeding_counts_one_large_reply() -> None:
    following = a_following(outputs=10_000, reply_bytes=100_000)
    [last] = following.follow(a_stream(following.core, want="probs", only_last=True), range(14, 114))
    assert last.probs.size == 10_000
    assert sizes(following.worker) == [27, 28, 28, 17]  # 28 * 354 and 40,000 are about half of reply_bytes; one is held back


def test_dense_tokens_and_outputs_are_counted_too() -> None:
    following = a_following()
    hello = following.core.ask_hello()
    following.core.received(following.worker.answer(following.core.outgoing(0.0)[0]), 0.0)
    model = hello.result()["model"]
    assert following.core.hello is not None
    following.core.hello["model"] = {**model, "input": {"kind": "dense", "size": 10_000}}
    list(following.follow(a_stream(following.core), [np.ones(10_000)] * 20))
    assert sizes(following.worker) == [12, 8]
    following.core.hello["model"] = {**model, "output": {"kind": "linear", "size": 20_000}}
    list(following.follow(a_stream(following.core), [[1.0]] * 10))
    assert sizes(following.worker)[2:] == [3, 3, 3, 1]


def test_live_tokens_go_one_by_one_and_wait_for_the_one_before() -> None:
    following = a_following()
    seen: list[int] = []

    def tokens() -> Iterator[int]:
        for x in range(5):
            assert len(seen) == x, "the prediction before was handed on"
            yield x

    for prediction in following.follow(a_stream(following.core, live=True), tokens()):
        seen.append(prediction.t)
    assert seen == [1, 2, 3, 4, 5]
    assert sizes(following.worker) == [1] * 5
    assert not any("op" in body[0] for body in following.worker.bodies), "no limits are needed"


def test_live_tokens_with_a_window_are_sent_as_they_come() -> None:
    following = a_following()
    found = list(following.follow(a_stream(following.core, live=True, window=3), iter(range(10))))
    assert [prediction.t for prediction in found] == list(range(1, 11))
    assert following.most == 3
    assert sizes(following.worker) == [1] * 10


def test_with_live_tokens_what_has_come_is_handed_on_first() -> None:
    following = a_following()
    plan = a_stream(following.core, live=True, window=3)
    plan.put([1])
    assert plan.room() == 1
    following.core.received(following.worker.answer(following.core.outgoing(0.0)[0]), 0.0)
    assert plan.room() == 0
    plan.waiting()
    assert [prediction.y for prediction in plan.results()] == [1]
    assert plan.room() == 1


def test_keys_are_sent_with_each_token() -> None:
    following = a_following()
    found = list(following.follow(a_stream(following.core, want=2, surprisal=True), "ab"))
    first, second = following.worker.steps()
    keys = {"session": "s", "want": 2, "surprisal": True, "producer": "me"}
    assert {**first, "id": 0} == {**keys, "x": "a", "n": 1, "ack": 0, "id": 0}
    assert second == {**keys, "x": "b", "n": 2}
    assert [prediction.top for prediction in found] == [[(0, 0.5), (1, 1 / 3)]] * 2


@settings(deadline=None)
@given(count=st.integers(1, 400), most=st.integers(1, 100))
def test_feeding_asks_for_the_last_prediction_only(count: int, most: int) -> None:
    following = a_following(frame_requests=most)
    plan = a_stream(following.core, want=2, surprisal=True, only_last=True)
    [last] = following.follow(plan, iter(range(100, 100 + count)))
    assert (last.t, last.y, last.surprisal, len(last.top)) == (count, 99 + count, 0.5, 2)
    steps = following.worker.steps()
    assert [item["x"] for item in steps] == list(range(100, 100 + count))
    assert [item["want"] for item in steps] == ["none"] * (count - 1) + [2]
    assert [item.get("surprisal", False) for item in steps] == [False] * (count - 1) + [True]
    assert following.most <= WINDOW


def test_feeding_with_want_none_still_tells_t() -> None:
    following = a_following()
    [last] = following.follow(a_stream(following.core, want="none", only_last=True), [1, 2])
    assert (last.t, last.y) == (2, None)


def test_feeding_nothing_is_a_mistake() -> None:
    following = a_following()
    with pytest.raises(ValueError, match="no token"):
        list(following.follow(a_stream(following.core, only_last=True), []))
    assert following.worker.steps() == []


@pytest.mark.parametrize("place", [0, 1, 63, 64, 100, 299])
def test_a_refused_token_is_an_error_at_its_place(place: int) -> None:
    following = a_following()
    tokens = [20] * 300
    tokens[place] = BAD
    found = []
    with pytest.raises(BadToken, match="not with us"):  # noqa: PT012
        for prediction in following.follow(a_stream(following.core), tokens):
            found.append(prediction.t)
    assert found == list(range(1, place + 1))


@pytest.mark.parametrize("place", [0, 1, 63, 64, 100, 299])
@pytest.mark.parametrize("live", [False, True])
def test_a_token_that_cannot_be_written_is_an_error_at_its_place(place: int, live: bool) -> None:
    following = a_following()
    tokens: list[Any] = [20] * 300
    tokens[place] = object()
    found = []
    with pytest.raises(BadToken, match="object"):  # noqa: PT012
        for prediction in following.follow(a_stream(following.core, live=live), tokens):
            found.append(prediction.t)
    assert found == list(range(1, place + 1))
    assert len(following.worker.steps()) == place, "nothing behind it was sent"


@pytest.mark.parametrize("token", [BAD, None])
def test_feeding_stops_at_an_error(token: Any) -> None:
    following = a_following()
    with pytest.raises(BadToken):
        list(following.follow(a_stream(following.core, only_last=True), [*range(20, 90), token, 20]))


@pytest.mark.parametrize("lose", [{0}, {2}, {1, 2, 3, 4}, range(0, 30, 3)])
def test_what_is_lost_is_sent_again_and_nobody_sees_it(lose: Container[int]) -> None:
    following = a_following()
    following.lose = lose
    found = list(following.follow(a_stream(following.core), range(100, 600)))
    assert [(prediction.t, prediction.y) for prediction in found] == [(t, 99 + t) for t in range(1, 501)]
    assert following.worker.applied["s"] == list(range(100, 600))


def test_silence_ends_a_stream_at_its_place() -> None:
    following = a_following()
    following.lose = range(2, 10_000)
    found = []
    with pytest.raises(NoReply, match="within 10 s"):  # noqa: PT012
        for prediction in following.follow(a_stream(following.core), range(100, 200)):
            found.append(prediction.t)
    assert found == list(range(1, 65))
    assert following.now == 10.0


def test_none_of_the_tokens_behind_a_refused_one_counts() -> None:
    following = a_following()
    with pytest.raises(BadToken):
        list(following.follow(a_stream(following.core), [*range(100, 150), BAD, *range(150, 400)]))
    [after] = following.follow(a_stream(following.core, live=True), [7])
    assert after.t == 51
    assert following.worker.applied["s"] == [*range(100, 150), 7]
    assert len(following.worker.numbers) == 1, "no further producer id was needed"


def test_feeding_needs_no_reply_but_the_last() -> None:
    following = a_following()
    stale = {"error": "stale", "message": "counted", "last": 3}
    plan = a_stream(following.core, only_last=True)
    plan._body = 3
    plan.put([1, 2, 3])
    plan.put([4])
    following.core.outgoing(0.0)
    following.core.received(replies.encode({**stale, "id": 1}) + replies.encode(stale), 0.0)
    following.core.received(replies.encode({"t": 3, "id": 2}) + replies.encode({"t": 4, "y": 4}), 0.0)
    plan.waiting()
    assert list(plan.results()) == []
    plan.waiting()
    assert [prediction.t for prediction in plan.results()] == [4]
    plan = a_stream(following.core, live=True)
    plan.put([5])
    following.core.outgoing(0.0)
    following.core.received(replies.encode({**stale, "id": 3}), 0.0)
    plan.waiting()
    with pytest.raises(Stale, match="counted"):
        list(plan.results())


def test_an_error_of_hello_is_the_error_of_the_stream() -> None:
    following = a_following()
    following.lose = range(10_000)
    with pytest.raises(NoReply):
        list(following.follow(a_stream(following.core), [1]))
    following.lose = ()
    core = following.core
    following.worker._hello = lambda request: {"protocol": 1}  # type: ignore[method-assign]
    with pytest.raises(ProtocolError, match="hello without"):
        list(following.follow(a_stream(core), [1]))


def test_a_stream_that_is_left_in_the_middle_owes_nothing() -> None:
    following = a_following()
    predictions = following.follow(a_stream(following.core), range(100, 1000))
    assert [next(predictions).y for _ in range(70)] == list(range(100, 170))
    predictions.close()  # type: ignore[attr-defined]
    [after] = following.follow(a_stream(following.core, live=True), [7])
    assert after.y == 7
    assert after.t == following.taken


def test_two_streams_share_a_connection() -> None:
    following = a_following()
    streams = [following.follow(a_stream(following.core, name), range(100, 500)) for name in ("a", "b")]
    chance = random.Random(1)
    found: list[list[Any]] = [[], []]
    while len(found[0]) + len(found[1]) < 800:
        which = chance.randint(0, 1)
        found[which] += list(islice(streams[which], chance.randint(1, 50)))
    for predictions in found:
        assert [(prediction.t, prediction.y) for prediction in predictions] == [(t, 99 + t) for t in range(1, 401)]


@pytest.mark.parametrize("window", [0, -1, 2.5, True, "3"])
def test_a_window_is_an_int_from_1(window: Any) -> None:
    with pytest.raises(ValueError, match="window"):
        a_stream(a_following().core, window=window)


@pytest.mark.parametrize("tokens", [[1], (1,), "ab", range(3), b"ab", np.arange(3), deque([1])])
def test_what_can_be_indexed_is_a_sequence(tokens: Any) -> None:
    assert is_sequence(tokens)


@pytest.mark.parametrize("tokens", [iter([1]), (x for x in [1]), map(int, "1"), {1, 2}])
def test_the_rest_is_live(tokens: Any) -> None:
    assert not is_sequence(tokens)


def test_pages_are_followed() -> None:
    following = a_following()
    following.worker.ts = {f"{letter}{number}": 1 for letter in "ab" for number in range(4)}
    assert list(following.follow(Pages(following.core, ""))) == sorted(following.worker.ts)
    assert list(following.follow(Pages(following.core, "b"))) == ["b0", "b1", "b2", "b3"], "past a page without names"
    assert list(following.follow(Pages(following.core, "c"))) == []


def test_a_listing_that_is_none_is_an_error() -> None:
    following = a_following()
    following.worker._sessions = lambda request: {"ok": True}  # type: ignore[method-assign]
    with pytest.raises(ProtocolError, match="without sessions"):
        list(following.follow(Pages(following.core, "")))
    with pytest.raises(RequestError, match="prefix"):
        list(following.follow(Pages(following.core, "x" * 201)))
