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
# rows and panels of w: few where w stays in a core's cache, for each is a call. They go down a panel in steps of 256 bytes, and
# then down again beside that: where a panel is no wider, what they read lies in one piece, and is fetched ahead. One row of a
# matrix beyond the cache takes half of what it takes with panels of twice that. The other kernels pack, so that a small tile
# costs nearly as much as a large one, and one row (gemv) is fastest as long as w stays in the cache. Measured figures:
# docs/design.md.
_SMALL_MATRIX_KERNELS = ("SkylakeX", "Cooperlake", "SapphireRapids")
_SMALL_PRODUCT = 1_000_000  # R*K*N
_NEAR_NUMBERS = 1 << 18  # of w: 1 MiB in float32, the second-level cache of such a processor
_STEP_BYTES = 256
_CACHED_BYTES = 4 << 20  # of w: beyond it, reading w once a row costs more than padding a tile


@dataclass(frozen=True, slots=True)
class Tile:
    """The form of one product: `rows` at a time against panels of `columns` columns; up to `few` rows as a tile of so many."""

    rows: int
    columns: int
    few: int = 0

    def __str__(self) -> str:
        return f"{self.rows}{f' or {self.few}' if self.few else ''} x {self.columns}"


def candidates(k: int, n: int, itemsize: int, kernel: str) -> list[Tile]:
    """The forms that are tried for a [k, n] matrix, in this order; one row at a time is always among them."""
    if any(name in kernel for name in _SMALL_MATRIX_KERNELS):
        panel = min(n, _panel(k, n, itemsize))
        # Two rows have the bits of four nearly everywhere, and cost a third less: one row is what latency is about.
        order = [Tile(4, panel, few=2), Tile(4, panel), Tile(8, panel), Tile(2, n), Tile(1, n)]
    elif k * n * itemsize > _CACHED_BYTES:
        order = [Tile(8, n), Tile(4, n), Tile(2, n), Tile(1, n)]
    else:
        order = [Tile(1, n)]
    return order


def _panel(k: int, n: int, itemsize: int) -> int:
    """Columns of a panel, for the kernels that multiply small matrices without packing them."""
    panels = -(-4 * k * n // _SMALL_PRODUCT)
    # A last panel of a single column is multiplied by gemv, with other bits. There is one where there has been one, with panels
    # of so many columns, and nowhere else.
    former = 128 if k <= 1024 else 64
    if k * n > _NEAR_NUMBERS:
        narrow = _STEP_BYTES // itemsize
        return narrow if (n % narrow == 1) is (n % former == 1) else former
    if n % 128 == 1 and 4 * k * n > 300_000:
        return former
    # As many equal parts as it takes for small ones, each widened to whole 64 columns. That may be a little too much: k 2016
    # and n 130 make 128 + 2. The wide ones are then packed after all, which takes longer, and are measured like any other form.
    return n if panels == 1 else -(-n // (64 * panels)) * 64


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
        columns = self.tile.columns
        full = n // columns
        # [panels, K, columns]: all panels in one piece, but a narrower last one.
        self.full_panels = np.array(w[: full * columns].reshape(full, columns, k).transpose(0, 2, 1), order="C")
        self.panels = [  # [K, columns], and their place in the result
            (panel, slice(number * columns, (number + 1) * columns)) for number, panel in enumerate(self.full_panels)
        ]
        if n % columns:
            self.panels.append((np.array(w[full * columns :].T, order="C"), slice(full * columns, n)))
        self.shape = (n, k)

    def __call__(self, x: Array) -> Array:  # [B, K] -> [B, N]
        """The product of each row; the result is a new array.

        Must run under `one_thread`.
        """
        batch, rows = len(x), self.tile.rows
        if batch > rows:
            return self._stacked(x)
        if batch <= self.tile.few:
            rows = self.tile.few
        # One tile is no stack: a product of two plain matrices is the same call of BLAS, with 1 us less around it.
        if batch < rows:
            tile = np.zeros((rows, x.shape[1]), x.dtype)
            tile[:batch] = x
        else:
            tile = np.ascontiguousarray(x)
        if len(self.panels) == 1:
            out: Array = tile.dot(self.panels[0][0])
        else:
            # All panels in one call, for there may be a hundred, and each call costs 1 us. What comes out of it is small.
            full, _, columns = self.full_panels.shape
            out = np.empty((rows, self.shape[0]), x.dtype)
            out[:, : full * columns].reshape(rows, full, columns)[:] = np.matmul(tile, self.full_panels).transpose(1, 0, 2)
            for panel, place in self.panels[full:]:
                np.matmul(tile, panel, out=out[:, place])
        return out[:batch]

    def one(self, x: Array) -> Array:  # [K] -> [N]
        """The product of one row, as in a batch of one but with half as many of NumPy's calls; the result is a new array.

        Must run under `one_thread`.
        """
        if len(self.panels) > 1:
            return self(x[np.newaxis])[0]
        tile = np.zeros((self.tile.few or self.tile.rows, len(x)), x.dtype)
        tile[0] = x
        y: Array = tile.dot(self.panels[0][0])[0]
        return y

    def _stacked(self, x: Array) -> Array:  # [B, K] -> [B, N]
        """The product of more rows than a tile has: all tiles in one call for each panel."""
        (n, k), batch, rows = self.shape, len(x), self.tile.rows
        tiles = -(-batch // rows)
        if batch % rows:
            padded = np.zeros((tiles * rows, k), x.dtype)
            padded[:batch] = x
            x = padded
        stack = np.ascontiguousarray(x).reshape(tiles, rows, k)
        if len(self.panels) == 1:
            out: Array = np.matmul(stack, self.panels[0][0])
        else:
            out = np.empty((tiles, rows, n), x.dtype)
            for panel, place in self.panels:
                np.matmul(stack, panel, out=out[:, :, place])
        return out.reshape(tiles * rows, n)[:batch]


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
        one_tile = product(np.tile(row, (tile.rows, 1)))
        alone = product(row[np.newaxis])
        if (
            not (everywhere == alone).all()
            or not (one_tile == alone).all()
            or not np.array_equal(product.one(row), alone[0])
            or (probe < batch and not np.array_equal(among_others[place], alone[0]))
        ):
            return False
    # One full tile is another call of BLAS than a stack of them.
    if not np.array_equal(product(x[: tile.rows]), among_others[: tile.rows]):
        return False
    wild = x.copy()
    wild[1::2] = np.array([np.nan, np.inf, np.finfo(dtype).max, -np.inf], dtype)[np.arange(batch // 2) % 4, np.newaxis]
    if not np.array_equal(product(wild)[::2], among_others[::2]):
        return False
    return not tile.few or _few_are_exact(rng, product, dtype)


def _few_are_exact(rng: np.random.Generator, product: Product, dtype: str) -> bool:
    """Measure whether the tile for few rows gives the bits of the other one, in each of its places.

    They are two kernels, which may differ in the last columns alone, and there in some rows: so many rows are looked at.
    """
    few = product.tile.few
    x = _uniform(rng, (64 * few, product.shape[1]), dtype)
    expected = product(x)
    for start in range(0, len(x), few):
        rows = slice(start, start + few)
        if not np.array_equal(product(x[rows]), expected[rows]):
            return False
    wild = x[:few].copy()
    wild[1:] = np.nan
    return np.array_equal(product(wild)[:1], expected[:1])


def _uniform(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    return (rng.random(shape, np.dtype(dtype).type) - 0.5) * 2
