"""From the bytes of a file or pipe to tokens, each with its place. No I/O."""

from __future__ import annotations

import codecs
import json
import re
from typing import Any, NamedTuple

from rnnstream.client import Token

FORMS = ("chars", "lines", "words", "ids", "json", "csv")
TEXT_FORMS = ("chars", "lines", "words")

_WORD = re.compile(r"\n|\S+")
_ID = re.compile(r"[+-]?[0-9]{1,20}")
_LARGEST = float.fromhex("0x1.ffffffp127")  # from here on a number rounds to infinity in float32


class Piece(NamedTuple):
    """The text of one token, and where it begins: line and column, from 1, the column in characters."""

    text: str
    line: int
    column: int


class UnknownToken(ValueError):
    """A token that is written as it should be, but that the model does not have."""


class Splitter:
    """Cuts bytes that come in chunks into pieces; a piece that may go on in the next chunk is held back.

    The bytes are UTF-8. What is not becomes lone surrogates, one a byte, which no vocabulary has: it is reported, with its
    place, as any unknown token.

    Args:
        form: one of `FORMS`.
    """

    def __init__(self, form: str) -> None:
        self._form = form
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._held = ""
        self._line, self._column = 1, 1  # where `_held` begins

    def split(self, data: bytes, *, final: bool = False) -> list[Piece]:
        """The pieces that are whole by now.

        Args:
            data: the next chunk.
            final: it is the last one.
        """
        text = self._held + self._decoder.decode(data, final)
        if self._form == "chars":
            return self._chars(text)
        if self._form in ("words", "ids"):
            return self._words(text, final)
        return self._lines(text, final)

    def _chars(self, text: str) -> list[Piece]:
        pieces, line, column = [], self._line, self._column
        for char in text:
            pieces.append(Piece(char, line, column))
            column += 1
            if char == "\n":
                line, column = line + 1, 1
        self._line, self._column = line, column
        return pieces

    def _words(self, text: str, final: bool) -> list[Piece]:
        end = len(text) if final else len(text) - len(_last_word(text))
        pieces, start = [], 1 - self._column  # start: where in `text` the line begins
        for found in _WORD.finditer(text, 0, end):
            if found[0] == "\n":
                self._line, start = self._line + 1, found.end()
            else:
                pieces.append(Piece(found[0], self._line, found.start() - start + 1))
        self._column = end - start + 1
        self._held = text[end:]
        return pieces

    def _lines(self, text: str, final: bool) -> list[Piece]:
        lines = text.split("\n")
        self._held = lines.pop()
        if final and self._held:
            lines.append(self._held)
        pieces = [Piece(line.removesuffix("\r"), number, 1) for number, line in enumerate(lines, self._line)]
        self._line += len(lines)
        return pieces if self._form == "lines" else [piece for piece in pieces if piece.text.strip()]


def _last_word(text: str) -> str:
    """What stands behind the last white space."""
    return "" if not text or text[-1].isspace() else text.rsplit(None, 1)[-1]


def form_for(model: dict[str, Any]) -> str:
    """The form that suits a model, as `hello` describes it: chars, ids or csv."""
    if model["input"]["kind"] == "dense":
        return "csv"
    return "chars" if model["vocabulary"] else "ids"


def misfit(form: str, model: dict[str, Any]) -> str:
    """Why a model cannot be fed in this form, or "" if it can."""
    size = model["input"]["size"]
    if model["input"]["kind"] == "dense":
        return "" if form in ("csv", "json") else f"this model takes rows of {size} numbers: csv or json"
    if form == "csv":
        return f"this model takes tokens, {size} of them, and no rows of numbers"
    return "this model has no vocabulary: ids or json" if form in TEXT_FORMS and not model["vocabulary"] else ""


def read(text: str, form: str, model: dict[str, Any]) -> Token:
    """The token that a piece stands for, checked as far as it can be without the vocabulary.

    Raises:
        UnknownToken: an id out of range.
        ValueError: it is not written in this form, or no token of this model; the sentence says why.
    """
    if form in TEXT_FORMS:
        return text
    dense, size = model["input"]["kind"] == "dense", model["input"]["size"]
    if form == "ids":
        if not _ID.fullmatch(text):
            raise ValueError(f"{text!r:.60} is no id, which is a whole number.")
        return _id(int(text), size)
    if form == "csv":
        return _row([_number(field, place) for place, field in enumerate(text.split(","))], size)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"{text!r:.60} is not JSON: {problem!s:.120}.") from None
    if dense:
        if not isinstance(value, list):
            raise ValueError(f"{text!r:.60} is no list; this model takes rows of {size} numbers.")
        return _row(value, size)
    if isinstance(value, str) and model["vocabulary"]:
        return value
    if type(value) is not int:
        kinds = "ids and entries of the vocabulary" if model["vocabulary"] else "ids"
        raise ValueError(f"{text!r:.60} is no token; this model takes {kinds}.")
    return _id(value, size)


def _id(value: int, size: int) -> int:
    if not 0 <= value < size:
        raise UnknownToken(f"{value!s:.60} is no id of this model; they go from 0 to {size - 1}.")
    return value


def _number(field: str, place: int) -> float:
    try:
        return float(field)
    except ValueError:
        raise ValueError(f"field {place + 1} is {field!r:.60}, no number.") from None


def _row(values: list[Any], size: int) -> list[float]:
    if len(values) != size:
        raise ValueError(f"there are {len(values)} numbers; this model takes {size}.")
    for place, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"number {place + 1} is {value!r:.60}, no number.")
        if not abs(value) < _LARGEST:  # nor is NaN
            raise ValueError(f"number {place + 1} is NaN, infinite or beyond float32.")
    return values
