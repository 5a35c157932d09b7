"""The step-model interface: what rnnstream asks of a network, and what it offers on top of any of them.

    B rows of a batch    S numbers of a state    F features    V outputs    T tokens

A model is a pure function from states and tokens to new states and features (`advance`), and another one from features to
outputs (`head`), apart so that it can be skipped. It keeps no session; states are handed in and come back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rnnstream.errors import BadRequest, BadToken, ModelError
from rnnstream.model.activations import sigmoid, softmax
from rnnstream.model.blas import one_thread

Array = npt.NDArray[Any]
_NO_NUMBERS = (bool, np.timedelta64)  # which Python and NumPy count among the ints


@dataclass(frozen=True)
class Input:
    """Which tokens x<t> a model takes.

    Attributes:
        kind: "token" (ids from 0 to size - 1) or "dense" (vectors of `size` numbers).
        size: how many ids, or how long the vector.
        vocabulary: for tokens, a str for each id, or None.
    """

    kind: Literal["token", "dense"]
    size: int
    vocabulary: tuple[str, ...] | None = None
    ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_vocabulary(self.vocabulary, self.size)
        object.__setattr__(self, "ids", {entry: i for i, entry in enumerate(self.vocabulary or ())})

    def token(self, x: Any) -> Any:
        """The token that x stands for: an int id, or a float32 vector [size].

        Args:
            x: an int or, with a vocabulary, a str; for dense input a sequence of numbers or bytes of little-endian float32.

        Raises:
            BadToken: right type, wrong value: out of range, unknown, of the wrong length, NaN or infinite.
            BadRequest: wrong type; a bool is no number.
        """
        return self._id(x) if self.kind == "token" else self._vector(x)

    def tokens(self, xs: Iterable[Any]) -> list[Any]:
        """`token` of each; ids, the usual case, are checked in passing."""
        if self.kind == "token":
            check, size = self._id, self.size
            return [x if type(x) is int and 0 <= x < size else check(x) for x in xs]
        return [self._vector(x) for x in xs]

    def sample(self) -> Any:
        """Some checked token, for a step that is only tried: id 0, or zeros."""
        return 0 if self.kind == "token" else np.zeros(self.size, np.float32)

    def batch(self, tokens: Sequence[Any]) -> Array:  # -> [B] int or [B, size] float32
        """Checked tokens as the batch that `advance` takes."""
        return np.array(tokens, np.intp) if self.kind == "token" else np.stack(tokens)

    def _id(self, x: Any) -> int:
        if isinstance(x, str):
            if x in self.ids:
                return self.ids[x]
            has = f"the vocabulary of {self.size} entries does not have it" if self.ids else "this model has no vocabulary"
            raise BadToken(f"x is {x!r:.60}; {has}.", field="x")
        if isinstance(x, _NO_NUMBERS) or not isinstance(x, int | np.integer):
            kinds = "an int id or a str of the vocabulary" if self.ids else "an int id"
            raise BadRequest(f"x is a {type(x).__name__}; this model takes {kinds}.", field="x")
        if not 0 <= x < self.size:
            shown = x if abs(int(x)) < 1 << 64 else f"an int of {int(x).bit_length()} bits"
            raise BadToken(f"x is {shown}; ids go from 0 to {self.size - 1}.", field="x")
        return int(x)

    def _vector(self, x: Any) -> Array:
        if isinstance(x, bytes):
            if len(x) != 4 * self.size:
                raise BadToken(f"x has {len(x)} bytes; {self.size} float32 numbers take {4 * self.size}.", field="x")
            vector = np.frombuffer(x, "<f4").astype(np.float32)
        elif isinstance(x, list | tuple) or (isinstance(x, np.ndarray) and x.ndim):
            if len(x) != self.size:
                raise BadToken(f"x has {len(x)} numbers; this model takes {self.size}.", field="x")
            for place, number in enumerate(x):
                if isinstance(number, _NO_NUMBERS) or not isinstance(number, int | float | np.integer | np.floating):
                    raise BadRequest(f"x[{place}] is a {type(number).__name__}; it is a number.", field="x")
            with np.errstate(over="ignore"):
                vector = np.array([float(number) if abs(number) < 1e39 else np.nan for number in x], np.float32)
        else:
            raise BadRequest(
                f"x is a {type(x).__name__}; this model takes a list of {self.size} numbers or bytes of float32.",
                field="x",
            )
        finite = np.isfinite(vector)
        if not finite.all():
            place = int(finite.argmin())
            raise BadToken(f"x[{place}] is NaN, infinite or beyond float32; it is a finite number.", field="x")
        return vector


@dataclass(frozen=True)
class Output:
    """What the outputs y<t> are.

    Attributes:
        kind: "categorical" (y = softmax of the logits: one of `size` ids comes next), "bernoulli" (y = sigmoid: `size`
            separate probabilities) or "linear" (y = the outputs as they are).
        size: V.
        vocabulary: a str for each id of a categorical output, or None.
    """

    kind: Literal["categorical", "bernoulli", "linear"]
    size: int
    vocabulary: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _check_vocabulary(self.vocabulary, self.size)

    def g2(self, logits: Array) -> Array:  # [B, V] -> [B, V]
        """y<t> of the logits, which stay as they are."""
        if self.kind == "linear":
            return logits.copy()
        z = np.ascontiguousarray(logits)  # a sum over another layout has other bits
        return softmax(z) if self.kind == "categorical" else sigmoid(z)


def _check_vocabulary(vocabulary: tuple[str, ...] | None, size: int) -> None:
    if vocabulary is not None and len(vocabulary) != size:
        raise ModelError(f"The vocabulary has {len(vocabulary)} entries; the size is {size}.")


class StepModel(ABC):
    """A network that can be run one token at a time; derive from it to bring your own.

    Attributes:
        name: for people.
        digest: a string that tells this model from any other; the built-in network's is a hex SHA-256.
        exact: the bits of a row do not depend on the other rows of its batch.
        numerics: fingerprint of what the bits depend on beside the model: kernels, library versions.
        dtype: of states, features and outputs.
        state_size: S.
        layers: a line for each layer, for people.
        input: which tokens it takes.
        output: what its outputs are.
    """

    name: str
    digest: str
    exact: bool
    numerics: str
    dtype: np.dtype[Any]
    state_size: int
    layers: list[str]
    input: Input
    output: Output

    @abstractmethod
    def initial_state(self) -> Array:  # -> [S]
        """a<0>, a new array."""

    @abstractmethod
    def advance(self, states: Array, inputs: Array) -> tuple[Array, Array]:  # [B, S], [B] or [B, K] -> [B, S], [B, F]
        """One step for each row: new states and features. The arguments stay as they are. Runs under `one_thread`."""

    @abstractmethod
    def head(self, features: Array) -> Array:  # [B, F] -> [B, V]
        """The logits: outputs before g2. Runs under `one_thread`."""

    def for_one(self) -> StepModel | None:
        """A twin for whoever moves one row at a time, with the same bits: its `advance` and `head` take it without the axis B.

        That is [S] and an id or [K] -> [S], [F], and [F] -> [V]. It saves what the calls for a batch of one cost. None,
        unless a class says otherwise: there is no such twin.
        """
        return None

    def features(self, states: Array) -> Array | None:  # [B, S] -> [B, F]
        """The features as a function of the state alone, or None for models whose outputs need the token too."""
        return None

    @property
    def surprisal(self) -> bool:
        """Whether a token can be scored by the outputs before it: it is one of the ids that the state alone predicts."""
        return (
            self.input.kind == "token"
            and self.output.kind == "categorical"
            and self.output.size == self.input.size
            and self.features(self.initial_state()[np.newaxis]) is not None
        )

    def step(self, a: Array, x: Any) -> tuple[Array, Array]:  # [S], token -> [S], [V]
        """One token: a<t> and y<t>, from a<t-1>, which stays as it is.

        Raises:
            ValueError: `a` is not a state of this model.
            BadToken, BadRequest: x is not a token of this model.
        """
        states = self._rows(a)
        with one_thread():
            states, features = self.advance(states, self.input.batch([self.input.token(x)]))
            return states[0], self.output.g2(self.head(features))[0]

    def forward(self, xs: Sequence[Any], a: Array | None = None) -> Array:  # T tokens -> [T, V]
        """A whole sequence: y<1> ... y<T>, from a<0> or from the state `a`; the same bits as its tokens one at a time.

        Raises:
            BadToken, BadRequest: one of xs is not a token of this model.
        """
        features = self._run(xs, a)[1]
        if not features:
            return np.empty((0, self.output.size), self.dtype)
        with one_thread():
            return self.output.g2(self.head(np.concatenate(features)))

    def run(self, xs: Sequence[Any], a: Array | None = None) -> Array:  # T tokens -> [S]
        """The state after a whole sequence, from a<0> or from the state `a`; no outputs are computed."""
        return self._run(xs, a)[0][0]

    def _rows(self, a: Array) -> Array:  # [S] -> [1, S]
        a = np.asarray(a, self.dtype)
        if a.shape != (self.state_size,):
            raise ValueError(f"The state has the shape {a.shape}; this model's has ({self.state_size},).")
        return a[np.newaxis]

    def _run(self, xs: Sequence[Any], a: Array | None) -> tuple[Array, list[Array]]:
        states = self._rows(self.initial_state() if a is None else a)
        features = []
        tokens = self.input.tokens(xs)
        with one_thread():
            for token in tokens:
                states, seen = self.advance(states, self.input.batch([token]))
                features.append(seen)
        return states, features


def try_out(model: Any, where: str) -> None:
    """Make one step on the initial state of somebody's own model, and hold what comes back against what the model says.

    Raises:
        ModelError: something is missing, or of another shape or dtype; the sentence begins with `where`.
    """
    asked = [name for name in (*StepModel.__annotations__, *vars(StepModel)) if not name.startswith("_")]
    missing = [name for name in asked if name != "surprisal" and not hasattr(model, name)]
    if missing:
        raise ModelError(f"{where} is no step model: it lacks {', '.join(missing)}; see rnnstream.StepModel.")
    if not isinstance(model.digest, str) or not model.digest:
        raise ModelError(f"{where}: digest is {model.digest!r:.60}; it is a str that tells this model from any other.")
    model.dtype = dtype = np.dtype(model.dtype)

    def hold(what: str, array: Any, shape: tuple[int, ...]) -> None:
        got = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else f"a {type(array).__name__}"
        if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
            raise ModelError(f"{where}: {what} gave {got}; by its dtype and sizes it is {dtype} {list(shape)}.")

    try:
        a = model.initial_state()
        hold("initial_state", a, (model.state_size,))
        with one_thread():
            states, features = model.advance(np.stack([a, a]), model.input.batch([model.input.sample()] * 2))
            hold("advance", states, (2, model.state_size))
            hold("head", model.head(features), (2, model.output.size))
    except ModelError:
        raise
    except Exception as problem:  # a user's own code: whatever it raises
        raise ModelError(f"{where}: a first step failed: {type(problem).__name__}: {problem}.") from problem
