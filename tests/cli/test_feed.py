from __future__ import annotations

import math
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rnnstream import BadToken, Client, NoReply, NotFinite, Prediction, RnnstreamError, StepModel
from rnnstream.cli.feeder import Feeder
from rnnstream.cli.tokens import Splitter

from .conftest import DEADLINE_S, VOCABULARY, lines, run

Start = Callable[..., "subprocess.Popen[bytes]"]
TEXT = "abc a\ncab bc\n" * 100  # well beyond a window, so that it is pipelined


@pytest.fixture
def feed(addresses: dict[str, str], session: str) -> Callable[..., Any]:
    """Feeds the input to the worker of a model, in a session of this test's own."""

    def feed(*arguments: object, input: str | bytes, model: str = "letters") -> Any:
        return run("feed", "--session", session, "--connect", addresses[model], *arguments, input=input)

    return feed


def bits(model: StepModel, tokens: Any) -> float:
    """Mean surprisal from whole sequences: y<0> is the head on the initial state."""
    features = model.features(model.initial_state()[np.newaxis])
    assert features is not None
    first = model.output.g2(model.head(features))
    before = np.concatenate([first, model.forward(tokens)[:-1]])
    ids = [model.input.token(token) for token in tokens]
    return float(-np.log2(before[np.arange(len(ids)), ids]).mean())


def test_a_text_ends_with_one_line(feed: Any, client: Client, models: Any, session: str) -> None:
    result = feed(input=TEXT)
    assert (result.exit_code, result.stderr) == (0, "")
    [line] = result.stdout.splitlines()
    y = models["letters"].forward(TEXT)[-1]
    assert line.startswith(f"{len(TEXT):,} tokens in ")
    label = VOCABULARY[int(y.argmax())]
    assert f": t={len(TEXT)}, next {label!r} ({y.argmax()}) p={y.max():.3f}, " in line
    assert float(line.split(", ")[-1].removesuffix(" bits a token")) == pytest.approx(bits(models["letters"], TEXT), abs=1e-4)
    assert client.session(session).info()["t"] == len(TEXT)


def test_json_gives_each_token_its_prediction(feed: Any, models: Any) -> None:
    found = lines(feed("--json", input=TEXT))
    ys = models["letters"].forward(TEXT)
    assert [line["t"] for line in found] == list(range(1, len(TEXT) + 1))
    assert "".join(line["x"] for line in found) == TEXT
    assert [line["y"] for line in found] == ys.argmax(axis=1).tolist()
    assert [line["label"] for line in found] == [VOCABULARY[y] for y in ys.argmax(axis=1)]
    assert [np.float32(line["p"]) for line in found] == ys.max(axis=1).tolist()
    assert [line.get("opened", False) for line in found] == [True] + [False] * (len(TEXT) - 1)
    mean = sum(line["surprisal"] for line in found) / len(TEXT) / math.log(2)
    assert mean == pytest.approx(bits(models["letters"], TEXT), rel=1e-5)
    assert "top" not in found[0]


def test_top_gives_the_most_likely(feed: Any, models: Any) -> None:
    found = lines(feed("--json", "--top", 3, input="ab"))
    for line, y in zip(found, models["letters"].forward("ab"), strict=True):
        order = np.argsort(-y, kind="stable")[:3]
        assert line["top"] == [[id, float(y[id])] for id in order]


def test_top_for_people(feed: Any, models: Any) -> None:
    result = feed("--top", 1, input="b\n")
    before, y = models["letters"].forward("b\n")
    best, p = int(y.argmax()), f"{y.max():.3f}"
    expected = f"2 '\\n' {-np.log2(before[3]):.2f} bits next {VOCABULARY[best]!r} ({best}) p={p} [{best} {p}]"
    assert result.stdout.splitlines()[1].split() == expected.split()
    assert result.stderr.startswith("2 tokens in ")


def test_it_goes_on_where_the_session_is(feed: Any, models: Any) -> None:
    feed(input="abc")
    [line] = lines(feed("--json", input="a"))
    assert (line["t"], line["y"], "opened" in line) == (4, int(models["letters"].forward("abca")[-1].argmax()), False)


@pytest.mark.parametrize(
    ("text", "place", "t"),
    [
        ("é", "line 1, column 1: x is 'é'", 0),
        ("ab\ncé" + TEXT, "line 2, column 2: x is 'é'", 4),
        (TEXT + "abé" + TEXT, "line 201, column 3: x is 'é'", len(TEXT) + 2),
        (TEXT.encode() + b"\xff" + TEXT.encode(), "line 201, column 1: x is '\\udcff'", len(TEXT)),
    ],
)
def test_it_stops_exactly_at_an_unknown_character(
    feed: Any, client: Client, models: Any, session: str, text: Any, place: str, t: int
) -> None:
    result = feed("--json", input=text)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: standard input, {place}")
    assert len(result.stdout.splitlines()) == t
    assert (session in client.sessions()) == (t > 0)
    if t:
        assert result.stderr.endswith(f" The session is at t={t}.\n")
        assert client.session(session).info()["t"] == t
        known = TEXT + "ab" if isinstance(text, str) else TEXT
        after = client.session(session).step("c", want="probs").probs
        assert after is not None
        assert after.tobytes() == models["letters"].forward((known if t > 4 else "ab\nc") + "c")[-1].tobytes()


def test_unknown_characters_are_skipped_and_told(feed: Any, client: Client, session: str, models: Any) -> None:
    result = feed("--skip-unknown", input="aé\nb☃é" + TEXT + "é")
    assert result.exit_code == 0
    assert result.stderr == "Skipped: 4 tokens that the model does not have, 'é' (3), '☃' (1).\n"
    after = client.session(session).step("c", want="probs")
    assert after.probs is not None
    assert after.probs.tobytes() == models["letters"].forward("a\nb" + TEXT + "c")[-1].tobytes()
    assert after.t == len(TEXT) + 4


@pytest.mark.parametrize(
    ("form", "text", "tokens"),
    [
        ("words", "ab bc\n  a\tab", ["ab", "bc", "a", "ab"]),
        ("lines", "ab\n \r\nbc", ["ab", " ", "bc"]),
        ("ids", "5 6\n0", [5, 6, 0]),
        ("json", '"ab"\n\n6\n"\\n"\n', ["ab", 6, "\n"]),
    ],
)
def test_forms_of_tokens(feed: Any, models: Any, form: str, text: str, tokens: list[Any]) -> None:
    found = lines(feed("--json", "--as", form, input=text))
    assert [line["x"] for line in found] == tokens
    assert [line["y"] for line in found] == models["letters"].forward(tokens).argmax(axis=1).tolist()


def test_ids_are_the_default_without_a_vocabulary(feed: Any, models: Any) -> None:
    found = lines(feed("--json", input="1 6\n2", model="ids"))
    assert [line["y"] for line in found] == models["ids"].forward([1, 6, 2]).argmax(axis=1).tolist()
    assert "label" not in found[0]


@pytest.mark.parametrize(("wrong", "told"), [("7", "7 is no id of this model; they go from 0 to 6."), ("x", "'x' is no id")])
def test_ids_before_a_wrong_one_count_and_none_behind(
    feed: Any, addresses: dict[str, str], session: str, wrong: str, told: str
) -> None:
    result = feed(input="1 " * 600 + wrong + " 2" * 600, model="ids")
    assert result.exit_code == 1
    assert f"line 1, column 1201: {told}" in result.stderr
    with Client(addresses["ids"]) as client:
        assert client.session(session).info()["t"] == 600


def test_only_unknown_ids_are_skipped(feed: Any) -> None:
    result = feed("--skip-unknown", input="1 7 -1 7 2", model="ids")
    assert (result.exit_code, result.stdout[:8]) == (0, "2 tokens")
    assert result.stderr == "Skipped: 3 tokens that the model does not have, '7' (2), '-1' (1).\n"
    assert feed("--skip-unknown", input="1 x", model="ids").exit_code == 1


@pytest.mark.parametrize(("form", "row"), [("csv", "{}, {},{}\n"), ("json", "[{}, {}, {}]\n")])
def test_rows_of_numbers(feed: Any, models: Any, form: str, row: str) -> None:
    rows = np.random.default_rng(3).standard_normal((700, 3)).astype(np.float32)
    text = "".join(row.format(*numbers.tolist()) for numbers in rows)
    found = lines(feed("--json", "--as", form, input=text, model="rows"))
    assert np.array([line["y"] for line in found], np.float32).tobytes() == models["rows"].forward(list(rows)).tobytes()
    assert found[1]["x"] == rows[1].tolist()


def test_rows_end_with_a_line_too(feed: Any, models: Any) -> None:
    y = models["rows"].forward([[1, 2, 3]])[0]
    assert feed(input="1,2,3", model="rows").stdout.endswith(f": t=1, y = {y[0]:.4g} {y[1]:.4g}\n")


def test_rows_before_a_wrong_one_count(feed: Any, addresses: dict[str, str], session: str) -> None:
    result = feed(input="1,2,3\n\n" * 300 + "1,nan,3\n" + "1,2,3\n" * 300, model="rows")
    assert result.exit_code == 1
    assert "line 601, column 1: number 2 is NaN, infinite or beyond float32." in result.stderr
    with Client(addresses["rows"]) as client:
        assert client.session(session).info()["t"] == 300


@pytest.mark.parametrize(
    ("model", "arguments", "told"),
    [
        ("rows", ["--as", "chars"], "this model takes rows of 3 numbers: csv or json"),
        ("ids", ["--as", "words"], "this model has no vocabulary: ids or json"),
        ("ids", ["--as", "csv"], "this model takes tokens, 7 of them, and no rows of numbers"),
        ("rows", ["--top", "2"], "its output is linear"),
        ("ids", ["--top", "0"], "--top"),
        ("ids", ["--session", ""], "it has 0 bytes; a session's name has 1 to 200"),
        ("ids", ["--session", "é" * 101], "it has 202 bytes"),
        ("ids", ["/does/not/exist"], "does not exist"),
        ("ids", ["--as", "bytes"], "--as"),
    ],
)
def test_wrong_use(feed: Any, model: str, arguments: list[str], told: str) -> None:
    result = feed(*arguments, input="", model=model)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in " ".join(result.stderr.split())


def test_nothing_to_feed_opens_nothing(feed: Any, client: Client, session: str) -> None:
    result = feed(input="")
    assert result.exit_code == 0
    assert result.stdout.startswith("0 tokens in ")
    assert session not in client.sessions()


def test_a_closed_session_is_told(feed: Any, client: Client, session: str) -> None:
    client.session(session).reset()
    client.session(session).close()
    result = feed(input="ab")
    assert (result.exit_code, result.stdout) == (1, "")
    assert (
        result.stderr
        == f"Error: standard input, line 1, column 1: The session {session} was closed; open or reset starts it anew.\n"
    )


class Toy:
    """A session whose worker does what a test says: each answer is a prediction or an error; `asked` is what it was asked."""

    name = "toy"

    def __init__(self, answers: list[Any], t: int) -> None:
        self._answers, self._t = iter(answers), t
        self.asked: list[Any] = []

    def stream(self, tokens: list[Any], **keys: object) -> Iterator[Any]:
        if tokens:
            self.asked.append(tokens)
        return self._stream(tokens)

    def _stream(self, tokens: list[Any]) -> Iterator[Any]:
        for _ in tokens:
            answer = next(self._answers)
            if isinstance(answer, Exception):
                raise answer
            yield answer

    def info(self) -> dict[str, int]:
        return {"t": self._t}


def feeder(answers: list[Any], t: int) -> Feeder:
    model = {"input": {"kind": "token", "size": 9}, "vocabulary": False, "surprisal": False}
    toy: Any = Toy(answers, t)
    return Feeder(toy, model, form="ids", source="here", want="argmax", skip_unknown=False)


def test_all_is_pipelined_and_goes_on_behind_a_token_that_is_passed_over() -> None:
    unknown = BadToken("x is 'é'.", field="x")
    toy: Any = Toy([Prediction(1), Prediction(2), Prediction(3), unknown, *map(Prediction, range(4, 9))], 8)
    model = {"input": {"kind": "token", "size": 9}, "vocabulary": True, "surprisal": False}
    feeding = Feeder(toy, model, form="chars", source="here", want="argmax", skip_unknown=True)
    fed = list(feeding.feed(Splitter("chars").split("aabéaébbcéa".encode())))
    assert [token for token, _ in fed] == [*"aababbca"]
    assert [prediction.t for _, prediction in fed] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert toy.asked == [[*"aabéaébbcéa"], [*"abbca"]]
    assert feeding.skipped == {"é": 3}


def test_an_error_tells_how_many_tokens_beyond_it_counted() -> None:
    fed = feeder([Prediction(1), NotFinite("too large.")], 3).feed(Splitter("ids").split(b"1 2 3 4 "))
    next(fed)
    with pytest.raises(RnnstreamError, match=r"column 3: too large\. The session is at t=3, 2 tokens beyond that place\.$"):
        next(fed)


def test_no_reply_is_not_asked_about() -> None:
    fed = feeder([Prediction(1), NoReply("nothing came.")], 3).feed(Splitter("ids").split(b"1 2 "))
    next(fed)
    with pytest.raises(RnnstreamError, match=r"column 3: nothing came\.$"):
        next(fed)


def test_a_live_pipe_is_fed_as_it_comes(start: Start, addresses: dict[str, str], session: str) -> None:
    process = start("feed", "--session", session, "--connect", addresses["letters"], "--json")
    assert process.stdin
    assert process.stdout
    for t, char in enumerate("abc", 1):
        process.stdin.write(char.encode())
        process.stdin.flush()
        assert process.stdout.readline().startswith(f'{{"t": {t}, "x": "{char}"'.encode())
    _, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert stderr.startswith(b"3 tokens in ")


def test_a_growing_file_is_followed_until_interrupted(
    start: Start, addresses: dict[str, str], session: str, tmp_path: Path
) -> None:
    path = tmp_path / "grows.txt"
    path.write_text("a")
    process = start("feed", path, "--session", session, "--connect", addresses["letters"], "--json", "--follow")
    assert process.stdout
    assert process.stdout.readline().startswith(b'{"t": 1, "x": "a"')
    with path.open("a") as file:
        file.write("b")
    assert process.stdout.readline().startswith(b'{"t": 2, "x": "b"')
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, stdout) == (130, b"")
    assert stderr.startswith(b"2 tokens in ")
    assert stderr.endswith(b"\nInterrupted.\n")


def test_a_followed_file_that_shrinks_is_an_error(
    start: Start, addresses: dict[str, str], session: str, tmp_path: Path
) -> None:
    path = tmp_path / "shrinks.txt"
    path.write_text("ab")
    process = start("feed", path, "--session", session, "--connect", addresses["letters"], "--json", "--follow")
    assert process.stdout
    assert process.stdout.readline()
    path.write_text("")
    _, stderr = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, stderr.count(b"\n")) == (1, 1)
    assert b"shrinks.txt has become shorter" in stderr


def test_a_reader_that_goes_ends_it_quietly(start: Start, addresses: dict[str, str], session: str, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text(TEXT * 10)
    process = start("feed", path, "--session", session, "--connect", addresses["letters"], "--json")
    assert process.stdout
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr
    assert process.stderr.read() == b""
    assert process.wait(DEADLINE_S) == 1


def test_a_bar_is_drawn_on_a_terminal_only_on_stderr(
    start: Start, addresses: dict[str, str], session: str, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    terminal, end = os.openpty()
    process = start("feed", path, "--session", session, "--connect", addresses["letters"], stderr=end)
    stdout, _ = process.communicate(timeout=DEADLINE_S)
    os.close(end)
    drawn = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert process.returncode == 0
    assert stdout.startswith(b"1,300 tokens in ")
    assert b"\x1b" not in stdout
    assert "100%" in drawn
    assert "1,300 tokens" in drawn
