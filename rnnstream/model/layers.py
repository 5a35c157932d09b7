"""The step layers: each owns its parameters, has a state size, and is a pure step for a batch of rows.

    B rows of a batch    V ids    K inputs    N outputs    S numbers of a layer's state

Here are the interface and the layers without memory, whose state size is 0; `cells` and `windows` have the others.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from operator import attrgetter
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from rnnstream.model.activations import ACTIVATIONS, OVER_A_ROW
from rnnstream.model.spec import Layer
from rnnstream.model.tiles import Product

Array = npt.NDArray[Any]
Transform = Callable[[Array], Array]


class StepLayer(ABC):
    """One layer of a chain.

    Attributes:
        products: its exact products by the name of their matrix, for whoever wants to look at the tiles.
        takes_one: `step` also takes one row without the axis B, once the transforms do: [S] and an id or [K] -> [S], [N].
    """

    state_size = 0
    takes_one = False
    products: dict[str, Product]

    @abstractmethod
    def step(self, state: Array, x: Array) -> tuple[Array, Array]:  # [B, S], [B, K] -> [B, S], [B, N]
        """One token for each row: the new states and the outputs. The arguments stay as they are."""

    def for_one(self, one: Callable[[Any], Callable[..., Array]] = attrgetter("one")) -> Self:
        """A twin that takes one row at a time, without the axis B: the same bits with half as many of NumPy's calls.

        Only where `takes_one` is true.

        Args:
            one: from a `Product`, an `Affine` or a `Lookup` to what does the same for one row.
        """
        twin = copy.copy(self)
        for name, part in vars(self).items():
            if isinstance(part, Product | Affine | Lookup):
                setattr(twin, name, one(part))
        return twin


def input_transform(layer: Layer, w: Array, b: Array) -> Transform:  # w [N, K], b [N]
    """The function x -> w x + b, with x numbers [B, K] or, behind a one-hot layer, ids [B]."""
    if layer.from_onehot:  # a column of w for each id, never a product; b is added beforehand
        return Lookup(np.ascontiguousarray(w.T) + b)
    return Affine(w, b)


def products_of(layer: Layer, name: str, transform: Transform) -> dict[str, Product]:
    """The product of an input transform under its file name, if it is one."""
    return {layer.tensors[name]: transform.product} if isinstance(transform, Affine) else {}


class Affine:
    """x -> w x + b for numbers: an exact product."""

    def __init__(self, w: Array, b: Array) -> None:
        self.product = Product(w)
        self.b = b.copy()

    def __call__(self, x: Array) -> Array:  # [B, K] -> [B, N]
        """Of numbers."""
        z = self.product(x)
        z += self.b
        return z

    def one(self, x: Array) -> Array:  # [K] -> [N]
        """Of one row; see `Product.one`."""
        z = self.product.one(x)
        z += self.b
        return z


class Lookup:
    """id -> the row of a table."""

    def __init__(self, table: Array) -> None:
        self.table = table  # [V, N]

    def __call__(self, ids: Array) -> Array:  # [B] -> [B, N]
        """Of ids."""
        return self.table.take(ids, axis=0)

    def one(self, id: Any) -> Array:  # -> [N]
        """Of one id: a view."""
        row: Array = self.table[id]
        return row


class Embedding(StepLayer):
    """x -> e[x], the row of a table."""

    takes_one = True

    def __init__(self, layer: Layer, tensors: dict[str, Array]) -> None:
        self.lookup = Lookup(np.array(tensors["e"], order="C"))
        self.products = {}

    def step(self, state: Array, x: Array) -> tuple[Array, Array]:  # [B, 0], [B] -> [B, 0], [B, N]
        """The rows of these ids."""
        return state, self.lookup(x)


class Dense(StepLayer):
    """y = w x + b; the last one of a chain is wya a<t> + by."""

    takes_one = True

    def __init__(self, layer: Layer, tensors: dict[str, Array]) -> None:
        self.transform = input_transform(layer, tensors["w"], tensors["b"])
        self.products = products_of(layer, "w", self.transform)

    def step(self, state: Array, x: Array) -> tuple[Array, Array]:  # [B, 0], [B, K] -> [B, 0], [B, N]
        """The product plus the bias."""
        return state, self.transform(x)


class Activation(StepLayer):
    """y = g(x), one of `activations.ACTIVATIONS`."""

    takes_one = True

    def __init__(self, layer: Layer, tensors: dict[str, Array]) -> None:
        self.function = ACTIVATIONS[layer.keys["function"]]
        self.over_a_row = layer.keys["function"] in OVER_A_ROW
        self.products = {}

    def step(self, state: Array, x: Array) -> tuple[Array, Array]:  # [B, 0], [B, K] -> [B, 0], [B, K]
        """The function of each row."""
        if self.over_a_row:
            x = np.ascontiguousarray(x)  # a sum over another layout has other bits
        return state, self.function(x)


class Scale(StepLayer):
    """y = s * x + b, number by number: batch normalisation (Ioffe and Szegedy 2015) with its statistics folded in.

    ::

        s = gamma / sqrt(variance + epsilon)        b = beta - mean * s
    """

    takes_one = True

    def __init__(self, layer: Layer, tensors: dict[str, Array]) -> None:
        self.s, self.b = tensors["s"].copy(), tensors["b"].copy()
        self.products = {}

    def step(self, state: Array, x: Array) -> tuple[Array, Array]:  # [B, 0], [B, K] -> [B, 0], [B, K]
        """Scaled and shifted."""
        y = x * self.s
        y += self.b
        return state, y


class LayerNorm(StepLayer):
    """Layer normalisation over the K features of a token (Ba et al. 2016), as in torch.nn.LayerNorm and Keras.

    ::

        m = sum_k x_k / K        v = sum_k (x_k - m)^2 / K        y = s * (x - m) / sqrt(v + epsilon) + b
    """

    takes_one = True

    def __init__(self, layer: Layer, tensors: dict[str, Array]) -> None:
        self.s, self.b = tensors["s"].copy(), tensors["b"].copy()
        self.epsilon: float = layer.keys["epsilon"]
        self.products = {}

    def step(self, state: Array, x: Array) -> tuple[Array, Array]:  # [B, 0], [B, K] -> [B, 0], [B, K]
        """Normalised, scaled and shifted."""
        x = np.ascontiguousarray(x)  # a sum over another layout has other bits
        y = x - x.mean(axis=-1, keepdims=True)
        y /= np.sqrt((y * y).mean(axis=-1, keepdims=True) + self.epsilon)
        y *= self.s
        y += self.b
        return state, y
