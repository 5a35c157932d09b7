"""Measures, on this machine, that a session has the same bits in every company. Pure: it gives back what it found.

Of a model that promises no bits (a batch in one call of another library), it measures how far they are apart.

B rows of a batch    S numbers of a state    T tokens of a session    R rows of a tile    K inputs    N outputs
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_info

from rnnstream.engine.engine import Engine
from rnnstream.model.blas import kernels, one_thread
from rnnstream.model.network import Network, measure_step
from rnnstream.model.step import StepModel
from rnnstream.model.tiles import Product, Tile, candidates, is_exact

Array = npt.NDArray[Any]

COMPANIES = (1, 2, 7, 8, 9, 64)  # sessions that run side by side: around the rows of the tiles, and many
PLAIN_ROWS = 64  # of the batch that shows what a product without tiles does
MOST_TOKENS = 32  # of each session
TOLERANCE = 1e-4  # of a model that promises no bits: float32 rounded in other ways over some dozen steps
WORK = 10_000_000_000  # multiplications that all companies together may take: some seconds of one thread


@dataclass(frozen=True)
class ProductFound:
    """One exact product of the model.

    Attributes:
        name: of its matrix.
        shape: (N, K).
        dtype: of its numbers.
        tried: the candidates in their order, and whether each is exact here.
        chosen: the tile that the model uses.
        plain: whether one product over all of 64 rows, without tiles, would be exact here; nothing depends on it.
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    tried: list[tuple[Tile, bool]]
    chosen: Tile
    plain: bool

    @property
    def passed(self) -> bool:
        """The tile in use is the first exact one."""
        return next((tile for tile, exact in self.tried if exact), None) == self.chosen


@dataclass(frozen=True)
class CompanyFound:
    """Sessions run side by side, held against each of them run alone as a whole sequence.

    Attributes:
        sessions: how many.
        beside: who else was in the batches.
        tokens: how many were compared, in all sessions.
        largest: rows of the largest batch.
        different: tokens whose outputs, and sessions whose last states, have other bits.
        largest_difference: between two numbers of them, relative where they are larger than 1.
        tolerance: up to which they may differ; 0 where the model promises equal bits.
    """

    sessions: int
    beside: str
    tokens: int
    largest: int
    different: int
    largest_difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """No bit differs; or none by more than was promised."""
        return self.largest_difference <= self.tolerance if self.tolerance else not self.different


class _Comparison:
    """Pairs of arrays that should be the same, and what they came to."""

    def __init__(self) -> None:
        self.different, self.largest = 0, 0.0

    def add(self, one: Array, other: Array) -> None:
        if one.tobytes() == other.tobytes():
            return
        self.different += 1
        same = (one == other) | (np.isnan(one) & np.isnan(other))
        with np.errstate(all="ignore"):
            apart = np.where(same, 0.0, np.abs(one - other) / np.maximum(1, np.abs(other)))
        self.largest = max(self.largest, float(np.nan_to_num(apart, nan=np.inf).max(initial=0)))


def tolerance(model: StepModel) -> float:
    """How far a row in company may be from the row alone: 0 for the built-in network, and for whoever promises `exact`."""
    return 0.0 if model.exact or isinstance(model, Network) else TOLERANCE


def blas_threads() -> tuple[int, int]:
    """How many threads BLAS has here (0: none was found), and how many while the model steps, in this thread or another."""

    def threads() -> int:
        return max((info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"), default=0)

    def held() -> int:
        with one_thread():
            return threads()

    before = threads()
    with ThreadPoolExecutor(1) as other:
        return before, max(held(), other.submit(held).result())


def look_at(name: str, product: Product, dtype: str) -> ProductFound:
    """Measure all candidates for one product anew."""
    n, k = product.shape
    with one_thread():
        tried = [(tile, is_exact(k, n, dtype, tile)) for tile in candidates(k, n, np.dtype(dtype).itemsize, kernels())]
        plain = is_exact(k, n, dtype, Tile(PLAIN_ROWS, n))
    return ProductFound(name, (n, k), np.dtype(dtype).name, tried, product.tile, plain)


def products(model: StepModel) -> list[ProductFound]:
    """Measure the products of the built-in network; of another model nothing is known."""
    if not isinstance(model, Network):
        return []
    return [look_at(name, product, model.dtype.str) for name, product in model.products.items()]


def whole_step(model: StepModel) -> bool | None:
    """Measure a row's whole step, on a twin with random weights; None for models that have no specification."""
    return measure_step(model.spec) if isinstance(model, Network) else None


def length(model: StepModel) -> int:
    """T: how many tokens each session gets, so that a large model is done in seconds too."""
    cost = sum(n * k for n, k in (product.shape for product in model.products.values())) if isinstance(model, Network) else 0
    return max(3, min(MOST_TOKENS, WORK // (5 * sum(COMPANIES) * max(cost, 1))))


def company(model: StepModel, sessions: int, seed: int = 0) -> CompanyFound:
    """Feed sessions through an `Engine` in a random interleaving; outputs and last states against `forward` and `run`."""
    rng = np.random.default_rng([seed, sessions])
    engine, total = Engine(model, max_sessions=sessions), length(model)
    tokens = [_tokens(model, total, rng) for _ in range(sessions)]
    outputs: list[list[Array]] = [[] for _ in range(sessions)]
    want = "argmax" if model.output.kind == "linear" else "probs"
    largest = 0
    while left := [s for s in range(sessions) if len(outputs[s]) < total]:
        most = rng.integers(1, len(left) + 1) if largest else sessions  # all of them once, then any number
        chosen = [left[i] for i in rng.permutation(len(left))[:most]]
        largest = max(largest, len(chosen))
        predictions = engine.step([(str(s), tokens[s][len(outputs[s])]) for s in chosen], want=want)
        for s, prediction in zip(chosen, predictions, strict=True):
            y = prediction.y if want == "argmax" else prediction.probs
            assert isinstance(y, np.ndarray)
            outputs[s].append(y.copy())
    found = _Comparison()
    for s in range(sessions):
        for one, alone in zip(outputs[s], model.forward(tokens[s]).astype("<f4"), strict=True):
            found.add(one, alone)
        found.add(engine.state(str(s)), model.run(tokens[s]))
    return CompanyFound(sessions, "each other", sessions * total, largest, found.different, found.largest, tolerance(model))


def wild_company(model: StepModel, sessions: int, seed: int = 0) -> CompanyFound | None:
    """The same with a row of NaN, infinite or huge numbers behind each session's; None for models without a state.

    An engine lets no such state come about, so here the model's own steps are called.
    """
    if not model.state_size:
        return None
    rng = np.random.default_rng([seed, sessions])
    total = length(model)
    tokens = [_tokens(model, total, rng) for _ in range(sessions)]
    wild = np.array([np.nan, np.inf, np.finfo(model.dtype).max, -np.inf], model.dtype)[np.arange(sessions) % 4, np.newaxis]
    states = np.repeat(model.initial_state()[np.newaxis], 2 * sessions, axis=0)
    outputs: list[list[Array]] = [[] for _ in range(sessions)]
    for t in range(total):
        states[1::2] = wild
        inputs = [model.input.token(tokens[row // 2][t]) for row in range(2 * sessions)]
        with one_thread():
            moved, features = model.advance(states, model.input.batch(inputs))
            y = model.output.g2(model.head(features))
        states = moved.copy()
        for s in range(sessions):
            outputs[s].append(y[2 * s])
    found = _Comparison()
    for s in range(sessions):
        for one, alone in zip(outputs[s], model.forward(tokens[s]), strict=True):
            found.add(one, alone)
        found.add(states[2 * s], model.run(tokens[s]))
    beside = "NaN, infinite and huge states"
    return CompanyFound(sessions, beside, sessions * total, 2 * sessions, found.different, found.largest, tolerance(model))


def _tokens(model: StepModel, total: int, rng: np.random.Generator) -> list[Any]:
    if model.input.kind == "token":
        return rng.integers(0, model.input.size, total).tolist()
    return list((rng.random((total, model.input.size), np.float32) - 0.5) * 2)
