"""Exact products: right numbers, the same bits in every company; and forms that are not exact are found out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnstream.model import tiles
from rnnstream.model.blas import kernels, one_thread
from rnnstream.model.tiles import Product, Tile, candidates, exact_tile, is_exact

DTYPES = ["float32", "float64"]
KERNELS = ["openblas 0.3.31 SkylakeX", "openblas 0.3.31 Haswell", "unknown"]


def uniform(shape, dtype, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(dtype)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    k=st.integers(1, 300),
    n=st.integers(1, 300),
    batch=st.integers(0, 100),
    dtype=st.sampled_from(DTYPES),
    fortran=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape(k, n, batch, dtype, fortran, seed):
    w, x = uniform((n, k), dtype, seed), uniform((batch, k), dtype, seed + 1)
    with one_thread():
        product = Product(w)
        together = product(x)
        assert together.shape == (batch, n)
        assert together.dtype == dtype
        exact = x.astype(float) @ w.T.astype(float)
        assert np.abs(together - exact).max(initial=0) < (1e-4 if dtype == "float32" else 1e-12)
        for row in range(batch):
            assert product(x[row : row + 1]).tobytes() == together[row].tobytes()
        start, stop = sorted((seed % (batch + 1), (7 * seed) % (batch + 1)))
        assert product(x[start:stop]).tobytes() == together[start:stop].tobytes()
        # Neither the layout of w nor that of x is part of the bits.
        other = Product(np.asfortranarray(w) if fortran else np.repeat(w, 2, axis=1)[:, ::2])
        wide = np.zeros((batch, 2 * k + 1), dtype)
        wide[:, k : 2 * k] = x
        assert other(wide[:, k : 2 * k]).tobytes() == together.tobytes()


@pytest.mark.parametrize("tile", [Tile(1, 7), Tile(4, 3), Tile(4, 7), Tile(3, 2), Tile(8, 1), Tile(4, 3, few=2)])
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 8, 9, 13])
def test_panels_and_padding_put_every_number_in_its_place(tile, batch):
    w, x = np.arange(35.0).reshape(7, 5), np.arange(batch * 5.0).reshape(batch, 5)
    with one_thread():
        got = Product(w, tile)(x)
    expected = [[sum(w[j, i] * x[b, i] for i in range(5)) for j in range(7)] for b in range(batch)]
    assert got.tolist() == expected  # small integers: exact in any order


@pytest.mark.parametrize("shape", [(7, 5), (1, 5), (7, 1)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_matrix_is_copied(shape, order):
    w = np.array(uniform(shape, "float32"), order=order)
    product, x = Product(w), uniform((3, shape[1]), "float32", 1)
    with one_thread():
        before = product(x)
        w += 1
        assert product(x).tobytes() == before.tobytes()


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 12, 16, 24, 48])
@pytest.mark.parametrize(
    ("k", "n", "dtype"), [(100, 100, "float32"), (37, 64, "float32"), (100, 100, "float64"), (200, 9, "float32")]
)
def test_what_is_called_exact_is_exact(rows, k, n, dtype):
    """On every kernel: where the measurement says yes, no row of much other data differs in any place."""
    tile = Tile(rows, n)
    with one_thread():
        if not is_exact(k, n, dtype, tile):
            assert rows > 1
            return
        product = Product(uniform((n, k), dtype, 8), tile)
        x = uniform((4 * rows + 1, k), dtype, 9)
        alone = np.concatenate([product(x[i : i + 1]) for i in range(len(x))])
        rng = np.random.default_rng(3)
        for _ in range(5):
            order = rng.permutation(len(x))
            assert product(x[order]).tobytes() == alone[order].tobytes()


def ulp_by_position(out, x):
    out[2:] = np.nextafter(out[2:], np.inf, dtype=out.dtype)


def ulp_in_the_last_row(out, x):
    if len(out) > 1:
        out[-1, -1] = np.nextafter(out[-1, -1], np.inf, dtype=out.dtype)


def ulp_in_company(out, x):
    if len(out) > 1:
        out[:, :1] = np.nextafter(out[:, :1], np.inf, dtype=out.dtype)


def ulp_by_neighbour(out, x):
    if len(out) > 1 and (x[0] != x[1]).any():
        out[0] = np.nextafter(out[0], np.inf, dtype=out.dtype)


def leaks_nan(out, x):
    out += 0 * x.max()


FAULTS = [ulp_by_position, ulp_in_the_last_row, ulp_in_company, ulp_by_neighbour, leaks_nan]


def broken(monkeypatch, fault):
    """Product with a fault: `fault(out, x)` spoils the result."""
    right = Product.__call__

    def wrong(self, x):
        out = right(self, x)
        fault(out, x)
        return out

    monkeypatch.setattr(Product, "__call__", wrong)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tile", [Tile(1, 40), Tile(4, 40), Tile(8, 16)])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_product_that_is_not_exact_is_found_out(monkeypatch, fault, tile, dtype):
    with one_thread():
        assert is_exact(30, 40, dtype, Tile(1, 40))
        broken(monkeypatch, fault)
        assert not is_exact(30, 40, dtype, tile)


def ulp_of_one(out, x):
    if len(out) == 1:
        out[:] = np.nextafter(out, np.inf, dtype=out.dtype)


def ulp_in_the_second_of_two(out, x):
    if len(out) == 2:
        out[1, -1] = np.nextafter(out[1, -1], np.inf, dtype=out.dtype)


def ulp_by_the_other_of_two(out, x):
    if len(out) == 2 and (x[0] != x[1]).any():
        out[0, 0] = np.nextafter(out[0, 0], np.inf, dtype=out.dtype)


def leaks_nan_to_the_other_of_two(out, x):
    if len(out) == 2:
        out += 0 * x.max()


@pytest.mark.parametrize(
    "fault", [ulp_of_one, ulp_in_the_second_of_two, ulp_by_the_other_of_two, leaks_nan_to_the_other_of_two]
)
def test_a_form_for_few_rows_that_has_other_bits_is_found_out(monkeypatch, fault):
    with one_thread():
        assert is_exact(8, 40, "float32", Tile(4, 40, few=2)) or not kernels().endswith("SkylakeX")
        broken(monkeypatch, fault)
        assert not is_exact(8, 40, "float32", Tile(4, 40, few=2))


def ulp_in_one_tile(out, x):
    if 3 <= len(out) <= 4:
        out[-1, -1] = np.nextafter(out[-1, -1], np.inf, dtype=out.dtype)


def ulp_by_a_neighbour_in_one_tile(out, x):
    if 3 <= len(out) <= 4 and (x[0] != x[1]).any():
        out[0, 0] = np.nextafter(out[0, 0], np.inf, dtype=out.dtype)


@pytest.mark.parametrize("tile", [Tile(4, 40), Tile(4, 40, few=2), Tile(4, 16), Tile(4, 16, few=2)])
@pytest.mark.parametrize("fault", [ulp_in_one_tile, ulp_by_a_neighbour_in_one_tile])
def test_one_tile_that_has_other_bits_than_a_stack_is_found_out(monkeypatch, fault, tile):
    """Three and four rows are neither stacked nor few."""
    with one_thread():
        assert is_exact(8, 40, "float32", tile) or not kernels().endswith("SkylakeX")
        broken(monkeypatch, fault)
        assert not is_exact(8, 40, "float32", tile)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_narrow_product_is_probed_often(monkeypatch, n):
    """A head of one number differs only in some rows; here in one of sixteen."""

    def rarely(out, x):
        if len(out) > 1:
            hit = (x[:, 0].view(np.uint32) % 16 == 0)[:, np.newaxis]
            out[...] = np.where(hit, np.nextafter(out, np.inf, dtype=out.dtype), out)

    with one_thread():
        broken(monkeypatch, rarely)
        assert not is_exact(50, n, "float32", Tile(4, n))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_one_tile_of_a_narrow_product_is_probed_often(monkeypatch, n):
    def rarely(out, x):
        if 3 <= len(out) <= 4:
            hit = (x[:, 0].view(np.uint32) % 16 == 0)[:, np.newaxis]
            out[...] = np.where(hit, np.nextafter(out, np.inf, dtype=out.dtype), out)

    with one_thread():
        broken(monkeypatch, rarely)
        assert not is_exact(50, n, "float32", Tile(4, n))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("itemsize", [4, 8])
def test_one_row_at_a_time_is_always_a_candidate(kernel, itemsize):
    for k in (1, 10, 100, 1000, 5000):
        for n in (1, 10, 100, 1000, 5000):
            order = candidates(k, n, itemsize, kernel)
            assert order[-1] == Tile(1, n)
            assert len(set(order)) == len(order)
            assert all(tile.rows >= 1 and 1 <= tile.columns <= n for tile in order)
            assert order == candidates(k, n, itemsize, kernel)


@pytest.mark.parametrize(
    ("k", "n", "columns"),
    [
        (100, 100, 100),
        (256, 768, 768),  # whole: 4 rows are a small product, and it stays in the cache
        (256, 1024, 512),  # in as few equal parts as are small
        (512, 512, 256),
        (333, 700, 700),
        (1024, 100, 100),
        (1024, 1024, 64),  # narrow: it does not stay in the cache
        (100, 10_000, 64),
        (2048, 2048, 64),
        (300, 961, 128),  # whose last column would be a panel of its own
        (501, 257, 128),  # whose last column is a panel of its own, as ever
        (256, 257, 257),  # not here
    ],
)
def test_the_panels_of_kernels_that_multiply_small_matrices_without_packing(k, n, columns):
    """What is chosen is part of the bits of stored sessions: whoever changes it, changes them."""
    assert candidates(k, n, 4, KERNELS[0])[:2] == [Tile(4, columns, few=2), Tile(4, columns)]
    assert candidates(k, n, 8, KERNELS[0])[0].columns == (columns if columns > 64 else 32)
    assert 4 * k * columns <= 1_000_000


@pytest.mark.parametrize(
    ("k", "n"),
    [
        (256, 768),
        (256, 1024),
        (512, 512),
        (130, 700),
        (501, 257),
        (333, 300),
        (1024, 1024),
        (300, 961),
        (512, 547),
        (300, 1025),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_width_of_the_panels_is_not_seen_in_the_bits(k, n, dtype):
    """Of the kernels with which there are panels at all: fewer calls for the same numbers, where w stays in the cache."""
    if not kernels().endswith("SkylakeX"):
        pytest.skip("these kernels have no panels")
    w, x = uniform((n, k), dtype), uniform((9, k), dtype, 1)
    with one_thread():
        chosen, narrow = Product(w), Product(w, Tile(4, 128))
        assert len(chosen.panels) < len(narrow.panels) or n == 257 or k * n > 1 << 18
        assert chosen(x).tobytes() == narrow(x).tobytes()


@pytest.mark.parametrize(("good", "expected"), [({1, 2, 4, 8}, 4), ({1, 2, 8}, 8), ({1, 2}, 2), ({1}, 1), (set(), 1)])
def test_the_first_candidate_that_passes_is_taken(monkeypatch, good, expected):
    """By a fixed order and by what passes alone: no clock is looked at."""
    asked = []

    def measured(k, n, dtype, tile):
        asked.append(tile)
        return tile.rows in good

    monkeypatch.setattr(tiles, "kernels", lambda: KERNELS[0])
    monkeypatch.setattr(tiles, "is_exact", measured)
    assert exact_tile.__wrapped__(100, 100, "<f4").rows == expected
    order = candidates(100, 100, 4, KERNELS[0])
    assert asked == order[: len(asked)]
    assert not hasattr(tiles, "time")


def test_the_choice_is_the_same_when_it_is_measured_again():
    for k, n, dtype in [(64, 192, "<f4"), (100, 30, "<f8"), (1, 1, "<f4")]:
        assert len({exact_tile.__wrapped__(k, n, dtype) for _ in range(3)}) == 1


def test_a_tile_says_its_form():
    assert str(Tile(4, 128)) == "4 x 128"
    assert str(Tile(4, 128, few=2)) == "4 or 2 x 128"
