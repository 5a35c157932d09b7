"""One row without NumPy's calls: what a network does for it is recorded once, and played by an extra in C.

The extra is rnnstream-kernel, in kernel/: it plays tapes, which are lists of operations on fixed buffers. It runs the same
loops and products that NumPy runs, and so has the same bits, and leaves out what NumPy's calls cost around them: of a vanilla
network with 100 hidden numbers 1.9 us are left of 8.4.

To record a tape, the network's twin for one row is run on arrays that note what is done with them. A network that does what
cannot be noted keeps that twin, and so does one whose tape is measured to give other bits.

    S numbers of a state    K inputs    N numbers of any    F features    V outputs
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
from rnnstream.model.outcomes import most_likely_of_one
from rnnstream.model.tiles import Product

try:
    import rnnstream_kernel as kernel
except ImportError:
    kernel = None

if TYPE_CHECKING:
    from rnnstream.model.network import Network

log = logging.getLogger("rnnstream.model")

Array = npt.NDArray[Any]
ROWS = 67  # that a tape is measured on
# What BLAS libraries call a function with 64-bit integers, or with others, which take half of each.
_CBLAS = ("scipy_cblas_{}64_", "cblas_{}64_", "scipy_cblas_{}", "cblas_{}")


@functools.cache
def player() -> str:
    """What plays tapes here, with its version, for fingerprints; "" if nothing does."""
    if kernel is None or not blas.path():
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
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self.tape = kernel.Tape(dtype)

    def vector(self, n: int) -> Traced:  # -> [N]
        """A buffer whose numbers are what they will be when the tape is played."""
        return self._traced(np.zeros(n, self.dtype))

    def _traced(self, array: Array) -> Traced:
        traced = array.view(Traced)
        traced.recorder = self
        return traced

    def one(self, part: Product | Affine | Lookup) -> Callable[[Any], Traced]:
        """What `part.one` does, for the tape."""
        if isinstance(part, Lookup):
            return lambda id: self._row(part.table)
        if isinstance(part, Affine):
            return lambda x: self.elementwise(np.add, (self._product(part.product, x), part.b), None)
        return lambda x: self._product(part, x)

    def _row(self, table: Array) -> Traced:
        row = self.vector(table.shape[1])
        self.tape.row(_plain(row), table)
        return row

    def _product(self, product: Product, x: Array) -> Traced:
        """As `Product.one`: the row is the first one of a tile."""
        n, k = product.shape
        rows = product.tile.few or product.tile.rows
        tile, out = np.zeros((rows, k), self.dtype), np.zeros((rows, n), self.dtype)
        self.tape.copy(tile[0], _plain(x))
        for panel, place in product.panels:
            self.tape.product(out[:, place], tile, panel)
        return self._traced(out[0])

    def elementwise(self, ufunc: np.ufunc, inputs: tuple[Any, ...], out: Traced | None) -> Traced:
        """One of NumPy's functions, done and noted."""
        plain = [_plain(x) if isinstance(x, np.ndarray) else np.array(x, self.dtype) for x in inputs]
        result = self.vector(max(x.size for x in plain)) if out is None else out
        numbers = _plain(result)
        for x in plain:
            if x.ctypes.data != numbers.ctypes.data and np.may_share_memory(x, numbers):
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
        """Vectors behind each other."""
        whole, start = self.vector(sum(len(part) for part in parts)), 0
        for part in parts:
            self.tape.copy(_plain(whole[start : start + len(part)]), _plain(part))
            start += len(part)
        return whole


class Traced(np.ndarray[Any, Any]):
    """A vector that notes what is done with it."""

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
        """Two functions of whole vectors."""
        if function is np.empty_like:
            return self.recorder.vector(len(args[0]))
        if function is np.concatenate:
            return self.recorder.concatenate(args[0])
        raise Unplayable(function.__name__)


def record(network: Network) -> dict[str, Callable[..., Any]]:
    """What takes the place of a network's `advance` and `head` in a twin for one row, and `predict`, which is both and more.

    predict(a, x), for a state [S] and a token, gives the new state [S] and what `most_likely_of_one` gives for its logits; None
    if that state is not finite. It is not there for a vocabulary so large that NumPy is as fast.

    Raises:
        Exception: of any kind: something in it cannot be played.
    """

    def recurrence(recorder: Recorder) -> tuple[Any, Any, Any, Any]:
        state = recorder.vector(network.state_size)
        x: Any = None if network.input.kind == "token" else recorder.vector(network.input.size)
        return state, x, *network.twin(recorder.one).advance(state, x)

    advance, head, both = (Recorder(network.dtype) for _ in range(3))
    try:
        state, x, new, features = recurrence(advance)
        advance.ends(state, x, new, features)
        features = head.vector(len(features))
        head.ends(features, None, network.twin(head.one).head(features))
        found = {"advance": advance.tape.play, "head": head.tape.play}
        if network.output.size <= kernel.MOST_LOGITS:
            state, x, new, features = recurrence(both)
            both.ends(state, x, new, network.twin(both.one).head(features))
            found["predict"] = both.tape.predict
        return found
    finally:  # a tape holds arrays, and these their recorder: the circle would never be let go of
        for recorder in (advance, head, both):
            recorder.tape = None


def is_exact(network: Network) -> bool:
    """Measure whether a network's tapes have the bits of its twin for one row: in random states, and some that are not finite.

    Args:
        network: with random weights, for a model's own may hide a difference.
    """
    rng = np.random.default_rng(2)
    states = ((rng.random((ROWS, network.state_size)) - 0.5) * 2).astype(network.dtype)
    states[-3:] = np.array([[np.nan], [np.inf], [np.finfo(network.dtype).max]])
    xs: Any = rng.random((ROWS, network.input.size), np.float32)
    if network.input.kind == "token":
        xs = rng.integers(0, network.input.size, ROWS).tolist()
    try:
        played, twin = record(network), network.twin(attrgetter("one"))
        with one_thread():
            return all(_same(played, twin, state, x) for state, x in zip(states, xs, strict=True))
    except Exception as problem:
        log.debug("%s is not played: %r", network.name, problem)
        return False


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


def _plain(array: Array) -> Array:
    """The numbers of a traced vector."""
    return array.view(np.ndarray)
