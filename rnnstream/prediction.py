"""What comes back for a token, from an engine in process or through a client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(slots=True)
class Prediction:
    """The session after one token, and what the model expects next.

    Attributes:
        t: the session's step count after this token.
        y: categorical output: the id of the most likely next token, the lowest among equals; other outputs: y<t>, float32
            [V]. None with want "none".
        p: categorical: the probability of `y`.
        label: categorical: the vocabulary's entry for `y`, where there is a vocabulary.
        surprisal: where asked for: -ln of the probability that y<t-1> gave to this token, in nats.
        top: with an int as `want`: [(id, p), ...], most likely first.
        probs: with want "probs": y<t>, float32 [V].
        logits: with want "logits": the outputs before g2, float32 [V].
        opened: this token opened the session.
    """

    t: int
    y: int | Array | None = None
    p: float | None = None
    label: str | None = None
    surprisal: float | None = None
    top: list[tuple[int, float]] | None = None
    probs: Array | None = None
    logits: Array | None = None
    opened: bool = False

    @classmethod
    def from_reply(cls, reply: dict[str, Any]) -> Prediction:
        """The prediction in a step's reply map; keys that this version does not know are passed over."""
        get = reply.get
        y, top, probs, logits = get("y"), get("top"), get("probs"), get("logits")
        return cls(
            reply["t"],
            np.frombuffer(y, "<f4") if type(y) is bytes else y,
            get("p"),
            get("label"),
            get("surprisal"),
            None if top is None else [(id, p) for id, p in top],
            None if probs is None else np.frombuffer(probs, "<f4"),
            None if logits is None else np.frombuffer(logits, "<f4"),
            get("opened", False),
        )
