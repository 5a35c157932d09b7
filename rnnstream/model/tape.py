"""Rows without NumPy's calls: what a network does for them is recorded once, and played by an extra in C.

The extra is rnnstream-kernel, in kernel/: it plays tapes, which are lists of operations on fixed buffers. It runs the same
loops and products that NumPy runs, and so has the same bits, and leaves out what NumPy's calls cost around them: of one row of
a vanilla network with 100 hidden numbers 1.9 us are left of 8.4. Batches are played some rows at a time.

To record a tape, the network is run on arrays that note what is done with them, of one row without the axis B or of `MANY`. A
network that does what cannot be noted is not played, nor is one whose tape is measured to give other bits.

    B rows of a batch    R rows of a tape    S numbers of a state    K inputs    N numbers of any    F features    V outputs
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rnnstream.model import blas
from rnnstream.model.blas import one_thread
from rnnstream.model.layers import Affine, Lookup
from rnnstream.model.outcomes import most_likely, most_likely_of_one
from rnnstream.model.tiles import Product

try:
    import rnnstream_kernel as kernel
except ImportError:
    kernel = None

if TYPE_CHECKING:
    from rnnstream.model.network import Network

log = logging.getLogger("rnnstream.model")

Array = npt.NDArray[Any]
VERSION = "0.2."  # of the extra, its beginning: what this module knows how to talk to
ROWS = 67  # that a tape is measured on
MANY = 8  # rows that are played at a time: a multiple of every tile's, and little enough for the first-level cache
# Numbers of all products: 4 MiB in float32, which a core finds in a cache, be it one that it shares. More than that is read
# once for all rows of a batch by NumPy, and once for each few of them by a tape.
MOST_WEIGHTS = 1 << 20
# What BLAS libraries call a function with 64-bit integers, or with others, which take half of each.
_CBLAS = ("scipy_cblas_{}64_", "cblas_{}64_", "scipy_cblas_{}", "cblas_{}")


@functools.cache
def player() -> str:
    """What plays tapes here, with its version, for fingerprints; "" if nothing does."""
    if kernel is None or not kernel.__version__.startswith(VERSION) or not blas.path():
        return ""
    try:
        library = ctypes.CDLL(blas.path())
    except OSError:
        return ""
    for form in _CBLAS:
        names = [form.format(name) for name in ("sgemm", "dgemm", "sgemv", "dgemv")]
        if all(hasattr(library, name) for name in names):
            kernel.use_blas(*(ctypes.cast(library[name], ctypes.c_void_p).value for name in names))
            return f"rnnstream-kernel {kernel.__version__}"
    return ""


class Unplayable(Exception):
    """What is recorded does something that a tape cannot hold."""


class Recorder:
    """Records a tape.

    Args:
        dtype: of all numbers.
        rows: of its buffers, [R, N]; None: one, [N].
    """

    def __init__(self, dtype: np.dtype[Any], rows: int | None = None) -> None:
        self.dtype, self._shape = dtype, () if rows is None else (rows,)
        self.tape = kernel.Tape(dtype, rows or 1)

    def buffer(self, n: int) -> Traced:  # -> [N] or [R, N]
        """A buffer whose numbers are what they will be when the tape is played."""
        return self._traced(np.zeros((*self._shape, n), self.dtype))

    def _traced(self, array: Array) -> Traced:
        traced = array.view(Traced)
        traced.recorder = self
        return traced

    def part(self, part: Product | Affine | Lookup) -> Callable[[Any], Traced]:
        """What `part` does, for the tape."""
        if isinstance(part, Lookup):
            return lambda id: self._row(part.table)
        if isinstance(part, Affine):
            return lambda x: self.elementwise(np.add, (self._product(part.product, x), part.b), None)
        return lambda x: self._product(part, x)

    def _row(self, table: Array) -> Traced:
        row = self.buffer(table.shape[1])
        self.tape.row(_plain(row), table)
        return row

    def _product(self, product: Product, x: Array) -> Traced:
        """As `Product`: in tiles, the last one of which may have more rows than there are."""
        (n, k), count, tile = product.shape, len(_rows(x)), product.tile
        rows = tile.few if count <= tile.few else tile.rows
        whole = -(-count // rows) * rows
        tiles, out = np.zeros((whole, k), self.dtype), np.zeros((whole, n), self.dtype)
        self.tape.copy(tiles[:count], _plain(x))
        for first in range(0, whole, rows):
            for panel, place in product.panels:
                self.tape.product(out[first : first + rows, place], tiles[first : first + rows], panel, first)
        return self._traced(out[:count] if self._shape else out[0])

    def elementwise(self, ufunc: np.ufunc, inputs: tuple[Any, ...], out: Traced | None) -> Traced:
        """One of NumPy's functions, done and noted."""
        plain = [_plain(x) if isinstance(x, np.ndarray) else np.array(x, self.dtype) for x in inputs]
        result = self.buffer(np.broadcast_shapes(*(x.shape for x in plain))[-1]) if out is None else out
        numbers = _plain(result)
        for x in plain:
            same = (x.ctypes.data, x.shape, x.strides) == (numbers.ctypes.data, numbers.shape, numbers.strides)
            if not same and np.shares_memory(x, numbers):
                raise Unplayable("arguments that overlap the result")
        self.tape.loop(ufunc, *plain, numbers)
        ufunc(*plain, out=numbers)
        return result

    def ends(self, state: Array, x: Array | None, *outputs: Array) -> None:
        """What the tape is given, x only if it is no id, and what comes out of it."""
        if not all(isinstance(output, Traced) for output in outputs):
            raise Unplayable("a result that came out unnoticed")
        self.tape.ends(_plain(state), None if x is None else _plain(x), *map(_plain, outputs))

    def concatenate(self, parts: list[Array]) -> Traced:
        """The numbers of each row behind each other."""
        whole, start = self.buffer(sum(part.shape[-1] for part in parts)), 0
        for part in parts:
            self.tape.copy(_plain(whole[..., start : start + part.shape[-1]]), _plain(part))
            start += part.shape[-1]
        return whole


class Traced(np.ndarray[Any, Any]):
    """A row, or some, that note what is done with them."""

    recorder: Recorder

    def __array_finalize__(self, source: Any) -> None:
        self.recorder = getattr(source, "recorder", None)  # type: ignore[assignment]

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, out: tuple[Any, ...] = (None,), **options: Any
    ) -> Any:
        """A function of each number; others cannot be noted."""
        if method != "__call__" or options:
            raise Unplayable(f"{ufunc.__name__}.{method}")
        recorder = next(x.recorder for x in (*inputs, *out) if isinstance(x, Traced))
        return recorder.elementwise(ufunc, inputs, out[0])

    def __array_function__(self, function: Callable[..., Any], types: Any, args: Any, options: Mapping[str, Any]) -> Any:
        """Two functions of whole rows."""
        if function is np.empty_like:
            return self.recorder.buffer(args[0].shape[-1])
        if function is np.concatenate:
            return self.recorder.concatenate(args[0])
        raise Unplayable(function.__name__)


def record(network: Network, rows: int | None = None) -> dict[str, Callable[..., Any]]:
    """What takes the place of a network's `advance` and `head` in a twin, for one row or for batches; and more.

    For one row, predict(a, x), for a state [S] and a token, gives the new state [S] and what `most_likely_of_one` gives for its
    logits; None if that state is not finite. For batches, likely(features) is `most_likely` of the logits of features [B, F].
    Neither is there for a vocabulary so large that NumPy is as fast.

    Args:
        network: anything whose layers have twins.
        rows: that are played at a time; None: one, without the axis B.

    Raises:
        Exception: of any kind: something in it cannot be played.
    """

    def recurrence(recorder: Recorder) -> tuple[Any, Any, Any, Any]:
        state = recorder.buffer(network.state_size)
        x: Any = None if network.input.kind == "token" else recorder.buffer(network.input.size)
        return state, x, *network.twin(recorder.part).advance(state, x)

    advance, head, both = (Recorder(network.dtype, rows) for _ in range(3))  # the last one is for one row alone
    few = network.output.size <= kernel.MOST_LOGITS
    try:
        state, x, new, features = recurrence(advance)
        advance.ends(state, x, new, features)
        features = head.buffer(features.shape[-1])
        head.ends(features, None, network.twin(head.part).head(features))
        if rows is not None:
            found = {"advance": advance.tape.play_many, "head": head.tape.play_many}
            return found | ({"likely": head.tape.likely} if few else {})
        found = {"advance": advance.tape.play, "head": head.tape.play}
        if few:
            state, x, new, features = recurrence(both)
            both.ends(state, x, new, network.twin(both.part).head(features))
            found["predict"] = both.tape.predict
        return found
    finally:  # a tape holds arrays, and these their recorder: the circle would never be let go of
        for recorder in (advance, head, both):
            recorder.tape = None


def plays_many(network: Network) -> bool:
    """Whether batches of a network that is played are, too: if its weights stay in the cache meanwhile."""
    products = network.products.values()
    return sum(n * k for n, k in (product.shape for product in products)) <= MOST_WEIGHTS and all(
        MANY % product.tile.rows == 0 for product in products
    )


def is_exact(network: Network) -> bool:
    """Measure whether a network's tapes have its bits, alone and in batches, in random states and some that are not finite.

    Args:
        network: with random weights, for a model's own may hide a difference.
    """
    rng = np.random.default_rng(2)
    states = ((rng.random((ROWS, network.state_size)) - 0.5) * 2).astype(network.dtype)
    states[-3:] = np.array([[np.nan], [np.inf], [np.finfo(network.dtype).max]])
    token = network.input.kind == "token"
    xs: Any = rng.integers(0, network.input.size, ROWS) if token else rng.random((ROWS, network.input.size), np.float32)
    try:
        played, twin = record(network), network.twin(attrgetter("one"))
        with one_thread():
            return all(map(functools.partial(_same, played, twin), states, xs.tolist() if token else xs)) and (
                not plays_many(network) or _same_many(record(network, MANY), network, states, xs)
            )
    except Exception as problem:
        log.debug("%s is not played: %r", network.name, problem)
        return False


def _same_many(played: dict[str, Callable[..., Any]], network: Network, states: Array, xs: Array) -> bool:
    """Whether batches of all sizes have their bits, the states that are not finite now here and now there."""
    for rows in range(1, len(states) + 1):
        places = np.arange(rows) * 5 % len(states)
        new, features = network.advance(states[places], xs[places])
        logits = network.head(features)
        expected, got = [new, features, logits], [*played["advance"](states[places], xs[places]), played["head"](features)]
        if "likely" in played:
            expected += most_likely(logits)
            got += played["likely"](features)
        if not all(np.array_equal(some, others, equal_nan=True) for some, others in zip(expected, got, strict=True)):
            return False
    return True


def _same(played: dict[str, Callable[..., Any]], twin: Network, state: Array, x: Any) -> bool:
    new, features = twin.advance(state, x)
    logits = twin.head(features)
    expected: list[Any] = [new, features, logits]
    got: list[Any] = [*played["advance"](state, x), played["head"](features)]
    if "predict" in played:
        predicted = played["predict"](state, x)
        if (predicted is None) is bool(np.isfinite(new).all()):
            return False
        if predicted is not None:
            got += predicted
            expected += [new, *most_likely_of_one(logits)]
    return all(np.array_equal(some, others, equal_nan=True) for some, others in zip(expected, got, strict=True))


def _rows(x: Array) -> Array:  # [N] or [R, N] -> [R, N]
    return x if x.ndim > 1 else x[np.newaxis]


def _plain(array: Array) -> Array:
    """The numbers of a traced vector."""
    return array.view(np.ndarray)
