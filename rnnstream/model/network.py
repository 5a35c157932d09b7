"""The built-in step model: a chain of step layers from a specification and its tensors.

B rows of a batch    S numbers of a state    F features    V outputs
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rnnstream.errors import ModelError
from rnnstream.model import tape
from rnnstream.model.blas import fingerprint, one_thread
from rnnstream.model.cells import GRU, LSTM, RNN
from rnnstream.model.kinds import LAYERS
from rnnstream.model.layers import Activation, Dense, Embedding, LayerNorm, Scale, StepLayer
from rnnstream.model.spec import Layer, Spec, parse
from rnnstream.model.step import Input, Output, StepModel
from rnnstream.model.tiles import Product
from rnnstream.model.windows import Conv, Pool

Array = npt.NDArray[Any]

BUILDERS: dict[str, Callable[[Layer, dict[str, Array]], StepLayer]] = {
    "embedding": Embedding,
    "dense": Dense,
    "activation": Activation,
    "scale": Scale,
    "layernorm": LayerNorm,
    "conv": Conv,
    "pool": Pool,
    "rnn": RNN,
    "gru": GRU,
    "lstm": LSTM,
}  # all but onehot, which is nothing to do: the layer behind takes ids; and residual, which needs another layer's outputs


class _Stage(NamedTuple):
    """A layer in its place.

    Attributes:
        number: in the chain, from 1.
        layer: what it does; None for a residual.
        place: of its state in the state of the whole; None without memory.
        of: for a residual, the number of the layer that it adds, 0 for the input.
        added: a residual adds what this one gives out.
    """

    number: int
    layer: StepLayer | None
    place: slice | None
    of: int
    added: bool


class Network(StepModel):
    """A chain of layers in NumPy.

    The layers up to the last one with memory, and a residual behind it that reaches in front of it, are the recurrence; those
    behind are the head.

    Args:
        spec: the specification, as docs/model-format.md describes it, or already parsed.
        tensors: an array for each name in `Spec.shapes`, of the specification's dtype; copied.
        measure: False takes `exact` for granted; for the twin that the measurement itself is done on.
        play: False: it is never played from tapes, neither by rows nor in batches; likewise.

    Raises:
        ModelError: a specification or tensor that is not as it should be.
    """

    def __init__(
        self, spec: Spec | dict[str, Any], tensors: dict[str, Array], *, measure: bool = True, play: bool = True
    ) -> None:
        self.spec = spec = spec if isinstance(spec, Spec) else parse(spec)
        check_tensors(spec, tensors)
        self.name, self.dtype, self.state_size = spec.name, np.dtype(spec.dtype), spec.state_size
        token = spec.input_kind == "token"
        self.input = Input("token" if token else "dense", spec.input_size, spec.vocabulary)
        same_ids = spec.head == "categorical" and spec.output_size == spec.input_size
        self.output = Output(spec.head, spec.output_size, spec.vocabulary if same_ids else None)  # type: ignore[arg-type]
        self.layers = [_line(layer) for layer in spec.layers] + [f"{spec.head} head"]
        self.digest = digest(spec, tensors)
        self._a0 = tensors["a0"].copy() if spec.initial_state else np.zeros(spec.state_size, self.dtype)
        self._split = _split(spec.layers)
        with one_thread():
            self._take(list(_stages(spec, tensors)))
        self._widen = not token and self.dtype != np.float32  # dense tokens are float32, whatever the model computes in
        self.exact = not measure or measure_step(spec)
        self._play = play
        self._look_for_player()

    def _look_for_player(self) -> None:
        """Whether there is one is this machine's; a copy on another one looks again."""
        self._plays = self._play and self._takes_one() and _plays(self.spec.text())
        self.numerics = f"{fingerprint()}, {tape.player()}" if self._plays else fingerprint()

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._look_for_player()

    def _take(self, stages: list[_Stage]) -> None:
        """Have these as the layers."""
        self._stages = stages
        self._recurrence = [stage for stage in stages if stage.number <= self._split]
        self._behind = [stage for stage in stages if stage.number > self._split]
        # The usual network is one recurrent layer and one behind it: what both would do for a chain costs 2 us.
        self._cell = self._recurrence[0].layer if len(self._recurrence) == 1 and self._recurrence[0].place else None
        self._last = self._behind[0].layer if len(self._behind) == 1 else None

    @property
    def products(self) -> dict[str, Product]:
        """The exact products of all layers, by the name of their matrix in the file."""
        layers = [stage.layer for stage in self._stages if stage.layer]
        return {name: product for layer in layers for name, product in layer.products.items()}

    def initial_state(self) -> Array:  # -> [S]
        """a<0>: zero, or the tensor a0 of the file."""
        return self._a0.copy()

    def advance(self, states: Array, inputs: Array) -> tuple[Array, Array]:  # [B, S], [B] or [B, K] -> [B, S], [B, F]
        """The recurrence; the features are what its last layer gives out."""
        x = inputs.astype(self.dtype) if self._widen else inputs
        if self._cell is not None:
            return self._cell.step(states, x)
        new, x = self._through(self._recurrence, states, states[..., :0], x, {0: x})
        return (new[0] if len(new) == 1 else np.concatenate(new, axis=-1) if new else states), x

    def head(self, features: Array) -> Array:  # [B, F] -> [B, V]
        """The layers behind the recurrence."""
        nothing = features[..., :0]  # of ids too: a layer that takes those looks at no state
        if self._last is not None:
            return self._last.step(nothing, features)[1]
        return self._through(self._behind, nothing, nothing, features, {self._split: features})[1]

    def for_one(self) -> Network | None:
        """For one row at a time, where there is a recurrence and all layers have a twin for that."""
        if not self._takes_one():
            return None
        return Played(self) if self._plays else self.twin(attrgetter("one"))

    def for_many(self) -> Network:
        """For batches, with the same bits: itself, or a twin that is played from tapes."""
        return Played(self, tape.MANY) if self._plays and self._takes_one() and tape.plays_many(self) else self

    def _takes_one(self) -> bool:
        own = type(self).advance is Network.advance and type(self).head is Network.head
        return own and self._split > 0 and all(stage.layer is None or stage.layer.takes_one for stage in self._stages)

    def twin(self, one: Callable[[Any], Any]) -> Network:
        """A twin for one row, with its parts done in this way, see `StepLayer.for_one`."""
        twin = copy.copy(self)
        twin._take([stage._replace(layer=stage.layer and stage.layer.for_one(one)) for stage in self._stages])
        return twin

    def _through(
        self, stages: list[_Stage], states: Array, nothing: Array, x: Array, seen: dict[int, Array]
    ) -> tuple[list[Array], Array]:  # [B, S], [B, 0], [B] or [B, K] -> each [B, its S], [B, N]
        """One token through some layers: the new states of those with memory, and the outputs of the last one.

        `seen` is what residuals add, by the number of the layer that gave it.
        """
        new = []
        for number, layer, place, of, added in stages:
            if layer is None:
                x = x + seen[of]
            elif place is None:
                x = layer.step(nothing, x)[1]
            else:
                state, x = layer.step(states[..., place], x)
                new.append(state)
            if added:
                seen[number] = x
        return new, x

    def features(self, states: Array) -> Array | None:  # [B, S] -> [B, F]
        """What a recurrent layer at the end of the recurrence gives out: the first numbers of its state. Otherwise None."""
        if not self._split or not LAYERS[self.spec.layers[self._split - 1].kind].recurrent:
            return None
        last = self.spec.layers[self._split - 1]
        start = self.state_size - last.state_size
        return states[:, start : start + last.outputs]


class Played(Network):
    """The twin of a network for one row or for batches, played from tapes.

    Args:
        network: the network.
        rows: that are played at a time; None: one, without the axis B.

    Attributes:
        predict, likely: see `tape.record`; None where there is none.

    Raises:
        Exception: of any kind: something in it cannot be played.
    """

    predict: Callable[[Array, Any], tuple[Array, int, float] | None] | None = None
    likely: Callable[[Array], tuple[Array, Array]] | None = None

    def __init__(self, network: Network, rows: int | None = None) -> None:
        self._network, self._rows_at_a_time = network, rows
        vars(self).update(vars(network) | tape.record(network, rows))

    def for_one(self) -> Network | None:
        """That of the network."""
        return self._network.for_one() if self._rows_at_a_time else self

    def for_many(self) -> Network:
        """That of the network."""
        return self if self._rows_at_a_time else self._network.for_many()

    def twin(self, one: Callable[[Any], Any]) -> Network:
        """That of the network."""
        return self._network.twin(one)

    def __reduce__(self) -> tuple[Callable[[Network], Network | None], tuple[Network]]:
        return Network.for_many if self._rows_at_a_time else Network.for_one, (self._network,)


def _stages(spec: Spec, tensors: dict[str, Array]) -> Iterable[_Stage]:
    """The layers that do something, each with the part of the state that is its own; `tensors` are the whole file's."""
    start, added = 0, {entry.keys["of"] for entry in spec.layers if entry.kind == "residual"}
    for number, entry in enumerate(spec.layers, 1):
        place = slice(start, start + entry.state_size) if entry.state_size else None
        start += entry.state_size
        if entry.kind == "residual":
            yield _Stage(number, None, None, entry.keys["of"], number in added)
        elif entry.kind != "onehot":
            own = {name: tensors[file_name] for name, file_name in entry.tensors.items()}
            yield _Stage(number, BUILDERS[entry.kind](entry, own), place, 0, number in added)


def _split(layers: tuple[Layer, ...]) -> int:
    """How many layers the recurrence has: up to the last one with memory, or with a residual that reaches in front of that."""
    split = 0
    for number, layer in enumerate(layers, 1):
        if layer.state_size or (split and layer.kind == "residual" and layer.keys["of"] < split):
            split = number
    return split


def _line(layer: Layer) -> str:
    given = {key: value for key, value in layer.keys.items() if key != "size"}
    keys = ", ".join(value if isinstance(value, str) else f"{key} {value}" for key, value in given.items())
    return f"{layer.kind} {layer.inputs} -> {layer.outputs}" + (f" ({keys})" if keys else "")


def check_tensors(spec: Spec, tensors: dict[str, Array]) -> None:
    """Hold the tensors against the specification.

    Raises:
        ModelError: one is missing or not asked for, of another shape or dtype, or not finite.
    """
    for name in sorted(set(spec.shapes) | set(tensors)):
        if name not in tensors:
            raise ModelError(f"The tensor {name} {list(spec.shapes[name])} is missing.")
        if name not in spec.shapes:
            raise ModelError(f"The tensor {name} is not asked for; these are: {', '.join(sorted(spec.shapes))}.")
        tensor, shape = tensors[name], spec.shapes[name]
        if tensor.shape != shape or tensor.dtype != spec.dtype:
            raise ModelError(
                f"The tensor {name} is {tensor.dtype} {list(tensor.shape)}; by the specification {spec.dtype} {list(shape)}."
            )
        if not np.isfinite(tensor).all():
            raise ModelError(f"The tensor {name} holds NaN or infinity.")


def digest(spec: Spec, tensors: dict[str, Array]) -> str:
    """Hex SHA-256 over the specification and the tensors by name."""
    hasher = hashlib.sha256(spec.text().encode())
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name], tensors[name].dtype.newbyteorder("<"))
        hasher.update(f"\0{name}\0{tensor.dtype.str}\0{tensor.shape}\0".encode())
        hasher.update(tensor.data)
    return hasher.hexdigest()


def random_network(spec: Spec, seed: int = 0, *, play: bool = True) -> Network:
    """A network of this specification with random weights of full mantissa, uniform in +-sqrt(1 / inputs)."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(spec.dtype)
    tensors = {
        name: ((rng.random(shape, dtype.type) - 0.5) * (2 / max(shape[-1], 1) ** 0.5)).astype(dtype)
        for name, shape in spec.shapes.items()
    }
    return Network(spec, tensors, measure=False, play=play)


def measure_step(spec: Spec) -> bool:
    """Measure that a row's whole step, head and g2 included, has the same bits alone and in every company.

    Done on a twin with random weights, for a model's own may hide a difference: among neighbours, at every position of a
    batch of equal rows, and beside rows that are NaN, infinite and huge. It takes a few steps' time.
    """
    twin = random_network(spec)
    one, rng = twin.for_one(), np.random.default_rng(1)
    rows = 2 * max([product.tile.rows for product in twin.products.values()], default=1) + 1
    states = ((rng.random((rows, twin.state_size)) - 0.5) * 2).astype(twin.dtype)
    inputs = (
        rng.integers(0, twin.input.size, rows)
        if twin.input.kind == "token"
        else ((rng.random((rows, twin.input.size)) - 0.5) * 2).astype(np.float32)
    )

    def step(states: Array, inputs: Any, twin: Network = twin) -> list[Array]:
        new, features = twin.advance(states, inputs)
        logits = twin.head(features)
        return [new, logits, twin.output.g2(logits)]

    def same(some: list[Array], others: list[Array]) -> bool:
        return all(np.array_equal(one, other, equal_nan=True) for one, other in zip(some, others, strict=True))

    with one_thread():
        together = step(states, inputs)
        for row in range(rows):
            mine = slice(row, row + 1)
            alone = step(states[mine], inputs[mine])
            if not same(alone, [bits[mine] for bits in together]):
                return False
            if one is not None and not same(step(states[row], inputs[row], one), [bits[row] for bits in together]):
                return False
            equal = step(np.repeat(states[mine], rows, axis=0), np.repeat(inputs[mine], rows, axis=0))
            if not same(equal, [np.repeat(bits, rows, axis=0) for bits in alone]):
                return False
        if not same(step(states[:2], inputs[:2]), [bits[:2] for bits in together]):
            return False
        wild = states.copy()
        wild[1::2] = np.array([np.nan, np.inf, np.finfo(twin.dtype).max], twin.dtype)[np.arange(rows // 2) % 3, np.newaxis]
        return same([bits[::2] for bits in step(wild, inputs)], [bits[::2] for bits in together])


@functools.cache
def _plays(text: str) -> bool:
    """Whether networks of this specification, as `Spec.text` has it, are played: measured on one with random weights."""
    return bool(tape.player()) and tape.is_exact(random_network(parse(json.loads(text)), play=False))
