"""Tokens on their way out, and the predictions that come back for them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rnnstream.errors import BadToken, ProtocolError
from rnnstream.prediction import Prediction

Token: TypeAlias = int | str | bytes | Sequence[float] | npt.NDArray[Any] | np.integer[Any]


def read_prediction(reply: dict[str, Any]) -> Prediction:
    """The prediction in the reply to a step.

    Raises:
        ProtocolError: the reply has no `t`, or holds something that is not what the protocol says.
    """
    try:
        return Prediction.from_reply(reply)
    except (KeyError, TypeError, ValueError) as problem:
        raise ProtocolError(f"The reply to a step is not one ({problem!r:.120}); is this an rnnstream worker?") from None


def wire_token(x: object) -> int | float | str | bytes:
    """The token as the protocol carries it: ids and strings as they are, rows of numbers as little-endian float32.

    Only what cannot be written at all is refused here; which tokens a model takes, the worker says.

    Args:
        x: an id (int, or anything that says by `__index__` that it is one), a str, bytes that hold float32, or one
            row of numbers: a list, a tuple, or an array with one axis of NumPy or of another library that NumPy can
            read. A number that float32 does not reach becomes infinite, which the worker refuses.

    Raises:
        BadToken: with `field` "x".
    """
    kind = type(x)
    if kind is int or kind is str:
        return _writable(x)  # type: ignore[arg-type]
    if kind is bytes or kind is bool or kind is float:
        return x  # type: ignore[return-value]
    if isinstance(x, list | tuple | np.ndarray):
        return _row(x)
    if isinstance(x, bytearray | memoryview):
        return bytes(x)
    if isinstance(x, str):
        return _writable(str(x))
    try:
        return _writable(operator.index(x))  # type: ignore[arg-type]
    except TypeError:
        return _row(x)


def _writable(x: int | str) -> int | str:
    if isinstance(x, int):
        if -(1 << 63) <= x < 1 << 64:  # what MessagePack has integers for
            return x
        raise BadToken(f"x is an int of {x.bit_length()} bits; the protocol carries 64.", field="x")
    if not x.isascii():
        try:
            x.encode()
        except UnicodeEncodeError as problem:
            raise BadToken(f"x is {x!r:.60}, which is not Unicode text: {problem.reason}.", field="x") from None
    return x


def _row(x: object) -> int | float | str | bytes:
    try:
        row = np.asarray(x)
    except (TypeError, ValueError) as problem:
        raise BadToken(f"x is {x!r:.60}, which is no row of numbers: {problem!s:.120}", field="x") from None
    if row.dtype.kind not in "iuf":
        raise BadToken(f"x is {x!r:.60}; a token is an int, a str, bytes or a row of numbers.", field="x")
    if row.ndim == 0:
        return wire_token(row.item())
    if row.ndim != 1:
        raise BadToken(f"x has the shape {row.shape}; one token is one row. Use stream or feed for several.", field="x")
    with np.errstate(over="ignore"):  # the worker refuses infinities, with a sentence that names the place
        return row.astype("<f4").tobytes()
