"""The built-in step model: a chain of step layers from a specification and its tensors.

B rows of a batch    S numbers of a state    F features    V outputs
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnstream.errors import ModelError
from rnnstream.model.blas import fingerprint, one_thread
from rnnstream.model.layers import build
from rnnstream.model.spec import Layer, Spec, parse
from rnnstream.model.step import Input, Output, StepModel
from rnnstream.model.tiles import Product

Array = npt.NDArray[Any]


class Network(StepModel):
    """A chain of layers in NumPy.

    The layers up to the last one with memory are the recurrence; those behind it are the head.

    Args:
        spec: the specification, as docs/model-format.md describes it, or already parsed.
        tensors: an array for each name in `Spec.shapes`, of the specification's dtype; copied.
        measure: False takes `exact` for granted; for the twin that the measurement itself is done on.

    Raises:
        ModelError: a specification or tensor that is not as it should be.
    """

    def __init__(self, spec: Spec | dict[str, Any], tensors: dict[str, Array], *, measure: bool = True) -> None:
        self.spec = spec = spec if isinstance(spec, Spec) else parse(spec)
        check_tensors(spec, tensors)
        self.name, self.dtype, self.state_size = spec.name, np.dtype(spec.dtype), spec.state_size
        token = spec.input_kind == "token"
        self.input = Input("token" if token else "dense", spec.input_size, spec.vocabulary)
        same_ids = spec.head == "categorical" and spec.output_size == spec.input_size
        self.output = Output(spec.head, spec.output_size, spec.vocabulary if same_ids else None)  # type: ignore[arg-type]
        self.layers = [_line(layer) for layer in spec.layers] + [f"{spec.head} head"]
        self.digest = digest(spec, tensors)
        self.numerics = fingerprint()
        self._a0 = tensors["a0"].copy() if spec.initial_state else np.zeros(spec.state_size, self.dtype)
        with one_thread():
            self._chain = [build(layer, tensors) for layer in spec.layers]
        self._places: list[slice] = []  # of each layer's state
        start = 0
        for layer in self._chain:
            self._places.append(slice(start, start + layer.state_size))
            start += layer.state_size
        with_memory = [place for place, layer in enumerate(self._chain) if layer.state_size]
        self._split = with_memory[-1] + 1 if with_memory else 0
        self._widen = not token and self.dtype != np.float32  # dense tokens are float32, whatever the model computes in
        self.exact = not measure or measure_step(spec)

    @property
    def products(self) -> dict[str, Product]:
        """The exact products of all layers, by the name of their matrix in the file."""
        return {name: product for layer in self._chain for name, product in layer.products.items()}

    def initial_state(self) -> Array:  # -> [S]
        """a<0>: zero, or the tensor a0 of the file."""
        return self._a0.copy()

    def advance(self, states: Array, inputs: Array) -> tuple[Array, Array]:  # [B, S], [B] or [B, K] -> [B, S], [B, F]
        """The recurrence; the features are what its last layer gives out."""
        x, new = inputs.astype(self.dtype) if self._widen else inputs, []
        for layer, place in zip(self._chain[: self._split], self._places, strict=False):
            state, x = layer.step(states[:, place], x)
            if layer.state_size:
                new.append(state)
        return (new[0] if len(new) == 1 else np.concatenate(new, axis=1) if new else states), x

    def head(self, features: Array) -> Array:  # [B, F] -> [B, V]
        """The layers behind the recurrence."""
        nothing = features[:, :0] if features.ndim == 2 else np.empty((len(features), 0), self.dtype)
        for layer in self._chain[self._split :]:
            features = layer.step(nothing, features)[1]
        return features

    def features(self, states: Array) -> Array | None:  # [B, S] -> [B, F]
        """What the last layer with memory gives out: the first numbers of its state. None without memory."""
        if not self._split:
            return None
        start = self._places[self._split - 1].start
        return states[:, start : start + self.spec.layers[self._split - 1].outputs]


def _line(layer: Layer) -> str:
    keys = " ".join(f"{value}" for key, value in layer.keys.items() if key != "size")
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


def random_network(spec: Spec, seed: int = 0) -> Network:
    """A network of this specification with random weights of full mantissa, uniform in +-sqrt(1 / inputs)."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(spec.dtype)
    tensors = {
        name: ((rng.random(shape, dtype.type) - 0.5) * (2 / max(shape[-1], 1) ** 0.5)).astype(dtype)
        for name, shape in spec.shapes.items()
    }
    return Network(spec, tensors, measure=False)


def measure_step(spec: Spec) -> bool:
    """Measure that a row's whole step, head and g2 included, has the same bits alone and in every company.

    Done on a twin with random weights, for a model's own may hide a difference: among neighbours, at every position of a
    batch of equal rows, and beside rows that are NaN, infinite and huge. It takes a few steps' time.
    """
    twin = random_network(spec)
    rng = np.random.default_rng(1)
    rows = 2 * max([product.tile.rows for product in twin.products.values()], default=1) + 1
    states = ((rng.random((rows, twin.state_size)) - 0.5) * 2).astype(twin.dtype)
    inputs = (
        rng.integers(0, twin.input.size, rows)
        if twin.input.kind == "token"
        else ((rng.random((rows, twin.input.size)) - 0.5) * 2).astype(np.float32)
    )

    def step(states: Array, inputs: Array) -> list[Array]:
        new, features = twin.advance(states, inputs)
        logits = twin.head(features)
        return [new, logits, twin.output.g2(logits)]

    def same(some: list[Array], others: list[Array]) -> bool:
        return all(np.array_equal(one, other) for one, other in zip(some, others, strict=True))

    with one_thread():
        together = step(states, inputs)
        for row in range(rows):
            mine = slice(row, row + 1)
            alone = step(states[mine], inputs[mine])
            if not same(alone, [bits[mine] for bits in together]):
                return False
            equal = step(np.repeat(states[mine], rows, axis=0), np.repeat(inputs[mine], rows, axis=0))
            if not same(equal, [np.repeat(bits, rows, axis=0) for bits in alone]):
                return False
        wild = states.copy()
        wild[1::2] = np.array([np.nan, np.inf, np.finfo(twin.dtype).max], twin.dtype)[np.arange(rows // 2) % 3, np.newaxis]
        return same([bits[::2] for bits in step(wild, inputs)], [bits[::2] for bits in together])
