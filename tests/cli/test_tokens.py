from __future__ import annotations

import pytest

from rnnstream.cli.tokens import FORMS, Piece, Splitter, UnknownToken, form_for, misfit, read

TEXT = "aä b\n\n  \tcc\r\nd"
PIECES = {
    "chars": [Piece(char, line, column) for char, line, column in zip(TEXT, [1] * 5 + [2] + [3] * 7 + [4],
              [1, 2, 3, 4, 5, 1, 1, 2, 3, 4, 5, 6, 7, 1], strict=True)],
    "words": [Piece("aä", 1, 1), Piece("b", 1, 4), Piece("cc", 3, 4), Piece("d", 4, 1)],
    "ids": [Piece("aä", 1, 1), Piece("b", 1, 4), Piece("cc", 3, 4), Piece("d", 4, 1)],
    "lines": [Piece("aä b", 1, 1), Piece("", 2, 1), Piece("  \tcc", 3, 1), Piece("d", 4, 1)],
    "json": [Piece("aä b", 1, 1), Piece("  \tcc", 3, 1), Piece("d", 4, 1)],
    "csv": [Piece("aä b", 1, 1), Piece("  \tcc", 3, 1), Piece("d", 4, 1)],
}  # fmt: skip
TOKENS = {"input": {"kind": "token", "size": 7}, "vocabulary": True}
IDS = {"input": {"kind": "token", "size": 7}, "vocabulary": False}
ROWS = {"input": {"kind": "dense", "size": 2}, "vocabulary": False}


@pytest.mark.parametrize("form", FORMS)
def test_pieces_and_places_are_the_same_however_the_bytes_come(form: str) -> None:
    data = TEXT.encode()
    for first in range(len(data) + 1):
        for second in range(first, len(data) + 1):
            splitter = Splitter(form)
            found = splitter.split(data[:first]) + splitter.split(data[first:second]) + splitter.split(data[second:])
            assert found + splitter.split(b"", final=True) == PIECES[form]


def test_a_word_is_given_as_soon_as_it_has_ended() -> None:
    splitter = Splitter("words")
    assert splitter.split(b"one tw") == [Piece("one", 1, 1)]
    assert splitter.split(b"o ") == [Piece("two", 1, 5)]


def test_bytes_that_are_no_text_are_pieces_of_their_own() -> None:
    splitter = Splitter("chars")
    assert splitter.split(b"a\xff") == [Piece("a", 1, 1), Piece("\udcff", 1, 2)]
    assert splitter.split(b"\xc3", final=True) == [Piece("\udcc3", 1, 3)]


@pytest.mark.parametrize(
    ("text", "form", "model", "token"),
    [
        ("ab", "words", TOKENS, "ab"),
        ("006", "ids", IDS, 6),
        ('"ab"', "json", TOKENS, "ab"),
        (" 3", "json", TOKENS, 3),
        ("[1, 2.5]", "json", ROWS, [1, 2.5]),
        (" 1e3, -0.5", "csv", ROWS, [1000, -0.5]),
        ("3.4e38,0", "csv", ROWS, [3.4e38, 0]),
    ],
)
def test_tokens_are_read(text: str, form: str, model: dict[str, object], token: object) -> None:
    assert read(text, form, model) == token


@pytest.mark.parametrize(
    ("text", "form", "model", "sentence"),
    [
        ("1.5", "ids", IDS, "'1.5' is no id"),
        ("٣", "ids", IDS, "is no id"),
        ("1_0", "ids", IDS, "is no id"),
        ("{", "json", IDS, "is not JSON"),
        ("[" * 100_000, "json", ROWS, "is not JSON"),
        ("9" * 5000, "json", IDS, "is not JSON"),
        ("true", "json", IDS, "'true' is no token; this model takes ids"),
        ('"a"', "json", IDS, "is no token"),
        ("1.0", "json", TOKENS, "is no token; this model takes ids and entries of the vocabulary"),
        ("3", "json", ROWS, "'3' is no list; this model takes rows of 2 numbers"),
        ("[1]", "json", ROWS, "there are 1 numbers; this model takes 2"),
        ("[1, true]", "json", ROWS, "number 2 is True, no number"),
        ("[1, NaN]", "json", ROWS, "number 2 is NaN, infinite or beyond float32"),
        (f"[1, 1{'0' * 400}]", "json", ROWS, "number 2 is NaN, infinite or beyond float32"),
        ("1,3.41e38", "csv", ROWS, "number 2 is NaN, infinite or beyond float32"),
        ("1,-inf", "csv", ROWS, "number 2 is NaN, infinite or beyond float32"),
        ("time,2", "csv", ROWS, "field 1 is 'time', no number"),
    ],
)
def test_what_is_no_token_is_told(text: str, form: str, model: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        read(text, form, model)
    assert not isinstance(caught.value, UnknownToken)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(("text", "form"), [("7", "ids"), ("-1", "ids"), ("7", "json"), ("9" * 20, "ids")])
def test_an_id_out_of_range_is_unknown(text: str, form: str) -> None:
    with pytest.raises(UnknownToken, match="they go from 0 to 6"):
        read(text, form, IDS)


def test_forms_and_models() -> None:
    assert [form_for(model) for model in (TOKENS, IDS, ROWS)] == ["chars", "ids", "csv"]
    fits = {form: [not misfit(form, model) for model in (TOKENS, IDS, ROWS)] for form in FORMS}
    text = [True, False, False]
    assert fits == {
        "chars": text,
        "lines": text,
        "words": text,
        "ids": [True, True, False],
        "json": [True, True, True],
        "csv": [False, False, True],
    }
