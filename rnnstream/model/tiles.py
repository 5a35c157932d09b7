"""Exact products: every row's bits depend on that row alone.

A batched product x w is not exact by itself: BLAS picks its kernel by the number of rows, and past a few rows the bits of
one row depend on its place among the others. Here rows are multiplied in tiles of a fixed number of rows, all in one
stacked `matmul`; the last tile is padded with zeros. The form of the tile is the first of a fixed list that is *measured* to
make the bits of a row independent of its position and its neighbours. It is never chosen by time, for it is part of the
bits: the same shape, dtype and kernels always give the same form.

    B rows of a batch    R rows of a tile    K inputs    N outputs
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnstream.model.blas import kernels, one_thread

Array = npt.NDArray[Any]

# OpenBLAS's kernels for AVX-512 multiply small matrices (R*K*N up to 1e6) without packing them first, and are fastest on four
# rows and narrow panels of w. The others pack, so that a small tile costs nearly as much as a large one, and one row (gemv)
# is fastest as long as w stays in the cache. Measured figures: docs/design.md.
_SMALL_MATRIX_KERNELS = ("SkylakeX", "Cooperlake", "SapphireRapids")
_SMALL_PRODUCT = 300_000  # R*K*N up to which a panel is not worth its call
_CACHED_BYTES = 4 << 20  # of w: beyond it, reading w once a row costs more than padding a tile


@dataclass(frozen=True, slots=True)
class Tile:
    """The form of one product: `rows` at a time against panels of `columns` columns."""

    rows: int
    columns: int

    def __str__(self) -> str:
        return f"{self.rows} x {self.columns}"


def candidates(k: int, n: int, itemsize: int, kernel: str) -> list[Tile]:
    """The forms that are tried for a [k, n] matrix, in this order; one row at a time is always among them."""
    panel = n if 4 * k * n <= _SMALL_PRODUCT else 128 if k <= 1024 else 64
    if any(name in kernel for name in _SMALL_MATRIX_KERNELS):
        order = [Tile(4, min(panel, n)), Tile(8, min(panel, n)), Tile(2, n), Tile(1, n)]
    elif k * n * itemsize > _CACHED_BYTES:
        order = [Tile(8, n), Tile(4, n), Tile(2, n), Tile(1, n)]
    else:
        order = [Tile(1, n)]
    return order


class Product:
    """x -> x w^T, exact, for a matrix w as the equations have it.

    Args:
        w: [N, K], float32 or float64; copied.
        tile: the form; measured when absent.
    """

    def __init__(self, w: Array, tile: Tile | None = None) -> None:
        n, k = w.shape
        self.tile = tile or exact_tile(k, n, w.dtype.str)
        # The layout of w decides which kernel runs, so it is the same whatever came in.
        self.panels = [  # [K, columns]
            np.array(w[start : start + self.tile.columns].T, order="C") for start in range(0, n, self.tile.columns)
        ]
        self.shape = (n, k)

    def __call__(self, x: Array) -> Array:  # [B, K] -> [B, N]
        """The product of each row; the result is a new array.

        Must run under `one_thread`.
        """
        n, k = self.shape
        rows = self.tile.rows
        tiles, over = divmod(len(x), rows)
        if over:
            tiles += 1
            padded = np.zeros((tiles * rows, k), x.dtype)
            padded[: len(x)] = x
            stack = padded.reshape(tiles, rows, k)
        else:
            stack = np.ascontiguousarray(x).reshape(tiles, rows, k)
        if len(self.panels) == 1:
            out = np.matmul(stack, self.panels[0])
        else:
            out = np.empty((tiles, rows, n), x.dtype)
            start = 0
            for panel in self.panels:
                stop = start + panel.shape[1]
                np.matmul(stack, panel, out=out[:, :, start:stop])
                start = stop
        result = out.reshape(tiles * rows, n)
        return result[: len(x)] if over else result


@functools.cache
def exact_tile(k: int, n: int, dtype: str) -> Tile:
    """The first candidate for a [k, n] matrix that is measured to be exact with this machine's kernels."""
    with one_thread():
        for tile in candidates(k, n, np.dtype(dtype).itemsize, kernels()):
            if is_exact(k, n, dtype, tile):
                return tile
    return Tile(1, n)


def is_exact(k: int, n: int, dtype: str, tile: Tile) -> bool:
    """Measure whether a row's bits depend on its position in the batch or on its neighbours.

    The data are random with full mantissas: with zeros, one-hot rows, small integers or a model's own weights a form that is
    known to be wrong has been seen to show no difference.
    """
    rng = np.random.default_rng(k * 1_000_003 + n)
    product = Product(_uniform(rng, (n, k), dtype), tile)
    batch = 3 * tile.rows + (tile.rows > 1)  # three tiles and one row that has to be padded
    x = _uniform(rng, (batch, k), dtype)
    among_others = product(x)
    probes = max(2, -(-256 // n))  # a narrow matrix shows a difference only in some rows: look at 256 numbers at least
    for probe in range(probes):
        place = probe % batch
        row = x[place] if probe < batch else _uniform(rng, (k,), dtype)
        everywhere = product(np.tile(row, (batch, 1)))  # one product of equal rows tests all positions at once
        alone = product(row[np.newaxis])
        if not (everywhere == alone).all() or (probe < batch and not np.array_equal(among_others[place], alone[0])):
            return False
    wild = x.copy()
    wild[1::2] = np.array([np.nan, np.inf, np.finfo(dtype).max, -np.inf], dtype)[np.arange(batch // 2) % 4, np.newaxis]
    return np.array_equal(product(wild)[::2], among_others[::2])


def _uniform(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    return (rng.random(shape, np.dtype(dtype).type) - 0.5) * 2
