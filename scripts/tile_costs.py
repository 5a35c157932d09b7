"""What the forms of an exact product cost on this machine: the table of docs/design.md.

    python scripts/tile_costs.py
    OPENBLAS_CORETYPE=Haswell python scripts/tile_costs.py

For square matrices in float32, µs a row at 64 rows / µs for one row alone, medians of 7; "!" marks a form that is not exact
here, and "free" is the plain product of all 64 rows, which is not exact either.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table

from rnnstream.model.blas import kernels, one_thread
from rnnstream.model.tiles import Product, Tile, exact_tile, is_exact

SIZES = (100, 256, 512, 1024)
FORMS = (
    (1, None),
    (2, None),
    (4, None),
    (8, None),
    (16, None),
    (4, 256),
    (4, 128),
    (4, 64),
    (8, 64),
)  # rows, columns of a panel
ROWS = 64


def microseconds(work: Callable[[], object], flops: float) -> float:
    """Median time of a call, from 7 runs of some milliseconds."""
    calls = max(10, int(1e8 / flops))
    work()
    times = []
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(calls):
            work()
        times.append((time.perf_counter() - start) / calls * 1e6)
    return statistics.median(times)


def main() -> None:
    """Print the table."""
    rng = np.random.default_rng(0)
    table = Table(title=f"{kernels()}: µs a row at {ROWS} rows / µs for one row")
    for column in ("size", "free", *(f"{rows} x {columns or 'all'}" for rows, columns in FORMS), "in use"):
        table.add_column(column, justify="right", no_wrap=True)
    with one_thread():
        for size in SIZES:
            w, x = (rng.uniform(-1, 1, shape).astype(np.float32) for shape in ((size, size), (ROWS, size)))
            cells = [str(size), f"{microseconds(lambda w=w, x=x: x @ w, ROWS * size**2) / ROWS:.2f}"]
            for rows, columns in FORMS:
                if columns and columns >= size:
                    cells.append("")
                    continue
                tile = Tile(rows, columns or size)
                product = Product(w, tile)
                many = microseconds(lambda product=product, x=x: product(x), ROWS * size**2) / ROWS
                one = microseconds(lambda product=product, x=x: product(x[:1]), rows * size**2)
                mark = "" if is_exact(size, size, "<f4", tile) else "!"
                cells.append(f"{many:.2f} / {one:.1f}{mark}")
            used = exact_tile(size, size, "<f4")
            product = Product(w, used)
            many = microseconds(lambda product=product, x=x: product(x), ROWS * size**2) / ROWS
            one = microseconds(lambda product=product, x=x: product(x[:1]), used.rows * size**2)
            table.add_row(*cells, f"{used}: {many:.2f} / {one:.1f}")
    Console(width=210).print(table)


if __name__ == "__main__":
    main()
