"""What is read off the logits of a categorical head, for a batch of rows: the most likely token, its probability, surprisal.

All of it goes by the probabilities as they come out in the model's dtype, so that the id given as the most likely one is
the first maximum of the "probs" that the same request would get (where no logit is NaN or infinite).

    B rows of a batch    V ids of the vocabulary
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

TOP = 100  # the largest k of `top`: more than a person reads; whoever wants all asks for "probs"


def most_likely(logits: Array) -> tuple[Array, Array]:  # [B, V] -> [B], [B]
    """The id of the most likely token of each row, lowest id first among equals, and its probability."""
    largest = np.maximum.reduce(logits, axis=1, keepdims=True)
    e = np.subtract(logits, largest, order="C")  # a sum over another layout has other bits
    np.exp(e, out=e)
    # Not the largest logit's id: of those whose exp() is the same, the first. exp(0) / sum: bit for bit softmax's p at that id.
    return e.argmax(axis=1), np.reciprocal(np.add.reduce(e, axis=1))


def most_likely_of_one(logits: Array) -> tuple[int, float]:  # [V]
    """`most_likely` for one row, with the same bits: NumPy's calls on a vector cost half as much."""
    e = np.subtract(logits, logits[logits.argmax(), ...])  # an array without dimensions: 0.2 us less than a number
    np.exp(e, e)
    return int(e.argmax()), float(1 / np.add.reduce(e))


def top(probs: Array, k: int) -> list[tuple[int, float]]:  # [V] -> k pairs
    """The k most likely ids and their probabilities, most likely first, lowest id first among equals."""
    k = min(k, len(probs))
    least = np.partition(probs, -k)[-k]
    ids = np.flatnonzero(probs >= least)
    if len(ids) < k:  # NaN among them, which no comparison orders
        ids = np.arange(len(probs))
    order = ids[np.argsort(-probs[ids], kind="stable")][:k]
    return list(zip(order.tolist(), probs[order].tolist(), strict=True))


def surprisals(logits: Array, ids: Array) -> Array:  # [B, V], [B] -> [B]
    """-ln of the probability that each row gives to its id, in nats: the cross-entropy loss of one token.

    By the log of the sum, so that it is finite where the probability itself is rounded to zero.
    """
    z = logits - logits.max(axis=1, keepdims=True)
    return np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(ids)), ids]
