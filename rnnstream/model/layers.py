"""The step layers: each owns its parameters, has a state size, and is a pure step for a batch of rows.

    B rows of a batch    V ids    H size of a recurrent layer    K inputs    N outputs

A layer without memory has a state size of 0. A layer with memory gives out the first N numbers of its new state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnstream.model.activations import ACTIVATIONS, sigmoid
from rnnstream.model.spec import Layer
from rnnstream.model.tiles import Product

Array = npt.NDArray[Any]
Transform = Callable[[Array], Array]


class StepLayer(ABC):
    """One layer of a chain.

    Attributes:
        products: its exact products by the name of their matrix, for whoever wants to look at the tiles.
    """

    state_size = 0
    products: dict[str, Product]

    @abstractmethod
    def step(self, state: Array, x: Array) -> tuple[Array, Array]:  # [B, S], [B, K] -> [B, S], [B, N]
        """One token for each row: the new states and the outputs. The arguments stay as they are."""


def input_transform(layer: Layer, w: Array, b: Array) -> Transform:  # w [N, K], b [N]
    """The function x -> w x + b, with x numbers [B, K] or, behind a one-hot layer, ids [B]."""
    return Columns(w, b) if layer.from_onehot else Affine(w, b)


class Affine:
    """x -> w x + b for numbers: an exact product."""

    def __init__(self, w: Array, b: Array) -> None:
        self.product, self.b = Product(w), b.copy()

    def __call__(self, x: Array) -> Array:  # [B, K] -> [B, N]
        """Of numbers."""
        z = self.product(x)
        z += self.b
        return z


class Columns:
    """x -> w x + b for one-hot x, given as ids: a column of w, never a product. b is added to the columns beforehand."""

    def __init__(self, w: Array, b: Array) -> None:
        self.columns = np.ascontiguousarray(w.T) + b  # [V, N]

    def __call__(self, ids: Array) -> Array:  # [B] -> [B, N]
        """Of ids."""
        return self.columns.take(ids, axis=0)


class OneHot(StepLayer):
    """Hands the ids on; the layer behind takes the column of its matrix that a one-hot vector would pick."""

    def __init__(self, layer: Layer, tensors: dict[str, Array]) -> None:
        self.products = {}

    def step(self, state: Array, x: Array) -> tuple[Array, Array]:  # [B, 0], [B] -> [B, 0], [B]
        """The ids as they are."""
        return state, x


class Embedding(StepLayer):
    """x -> e[x], the row of a table."""

    def __init__(self, layer: Layer, tensors: dict[str, Array]) -> None:
        self.table = np.array(tensors["e"], order="C")  # [V, N]
        self.products = {}

    def step(self, state: Array, x: Array) -> tuple[Array, Array]:  # [B, 0], [B] -> [B, 0], [B, N]
        """The rows of these ids."""
        return state, self.table.take(x, axis=0)


class Dense(StepLayer):
    """y = w x + b; the last one of a chain is wya a<t> + by."""

    def __init__(self, layer: Layer, tensors: dict[str, Array]) -> None:
        self.transform = input_transform(layer, tensors["w"], tensors["b"])
        self.products = products_of(layer, "w", self.transform)

    def step(self, state: Array, x: Array) -> tuple[Array, Array]:  # [B, 0], [B, K] -> [B, 0], [B, N]
        """The product plus the bias."""
        return state, self.transform(x)


class Activation(StepLayer):
    """y = g(x), one of `activations.ACTIVATIONS`."""

    def __init__(self, layer: Layer, tensors: dict[str, Array]) -> None:
        self.function = ACTIVATIONS[layer.keys["function"]]
        self.products = {}

    def step(self, state: Array, x: Array) -> tuple[Array, Array]:  # [B, 0], [B, N] -> [B, 0], [B, N]
        """The function of each row."""
        return state, self.function(x.copy(order="C"))


def products_of(layer: Layer, name: str, transform: Transform) -> dict[str, Product]:
    """The product of an input transform under its file name, if it is one."""
    return {layer.tensors[name]: transform.product} if isinstance(transform, Affine) else {}


class RNN(StepLayer):
    """The vanilla recurrence (Elman 1990), as in torch.nn.RNN and keras SimpleRNN with their two biases added up.

    ::

        a<t> = g1(waa a<t-1> + wax x<t> + ba)

    State: a, H numbers.
    """

    def __init__(self, layer: Layer, tensors: dict[str, Array]) -> None:
        self.state_size = layer.state_size
        self.drive = input_transform(layer, tensors["wax"], tensors["ba"])
        self.recur = Product(tensors["waa"])
        self.g1 = ACTIVATIONS[layer.keys["activation"]]
        self.products = {layer.tensors["waa"]: self.recur} | products_of(layer, "wax", self.drive)

    def step(self, state: Array, x: Array) -> tuple[Array, Array]:  # [B, H], [B, K] -> [B, H], [B, H]
        """a<t>, twice."""
        z = self.recur(state)
        z += self.drive(x)
        a = self.g1(z)
        return a, a


class GRU(StepLayer):
    """The gated recurrent unit (Cho et al. 2014, arXiv:1406.1078), in both ways to reset.

    Gates are stacked in the order r, z, n: `waa` [3H, H], `wax` [3H, K], `ba` [3H]. With reset "after" the recurrent product
    (torch.nn.GRU, keras reset_after=True, cuDNN) the candidate has a recurrent bias `bh` [H] of its own::

        r = sigmoid(waa_r a<t-1> + wax_r x<t> + ba_r)
        z = sigmoid(waa_z a<t-1> + wax_z x<t> + ba_z)
        n = tanh(r * (waa_n a<t-1> + bh) + wax_n x<t> + ba_n)        reset after
        n = tanh(waa_n (r * a<t-1>) + wax_n x<t> + ba_n)             reset before (the paper; keras reset_after=False)
        a<t> = n + z * (a<t-1> - n)                                  that is (1 - z) * n + z * a<t-1>

    State: a, H numbers.
    """

    def __init__(self, layer: Layer, tensors: dict[str, Array]) -> None:
        self.state_size = h = layer.state_size
        self.drive = input_transform(layer, tensors["wax"], tensors["ba"])
        waa, name = tensors["waa"], layer.tensors["waa"]
        if layer.keys["reset"] == "after":
            self.bh: Array | None = tensors["bh"].copy()
            self.recur = Product(waa)
            self.products = {name: self.recur}
        else:
            self.bh = None
            self.recur, self.recur_n = Product(waa[: 2 * h]), Product(waa[2 * h :])
            self.products = {f"{name} (r, z)": self.recur, f"{name} (n)": self.recur_n}
        self.products |= products_of(layer, "wax", self.drive)

    def step(self, state: Array, x: Array) -> tuple[Array, Array]:  # [B, H], [B, K] -> [B, H], [B, H]
        """a<t>, twice."""
        h = self.state_size
        drive, recur = self.drive(x), self.recur(state)
        gates = sigmoid(drive[:, : 2 * h] + recur[:, : 2 * h])
        r, z = gates[:, :h], gates[:, h:]
        if self.bh is not None:
            n = recur[:, 2 * h :] + self.bh
            n *= r
        else:
            n = self.recur_n(r * state)
        n += drive[:, 2 * h :]
        np.tanh(n, out=n)
        a = state - n
        a *= z
        a += n
        return a, a


class LSTM(StepLayer):
    """Long short-term memory with a forget gate (Gers et al. 2000), as in torch.nn.LSTM with its two biases added up.

    Gates are stacked in the order i, f, g, o: `waa` [4H, H], `wax` [4H, K], `ba` [4H]::

        i = sigmoid(waa_i a<t-1> + wax_i x<t> + ba_i)        g = tanh(waa_g a<t-1> + wax_g x<t> + ba_g)
        f = sigmoid(waa_f a<t-1> + wax_f x<t> + ba_f)        o = sigmoid(waa_o a<t-1> + wax_o x<t> + ba_o)
        c<t> = f * c<t-1> + i * g                            a<t> = o * tanh(c<t>)

    State: a then the cell c, 2H numbers.
    """

    def __init__(self, layer: Layer, tensors: dict[str, Array]) -> None:
        self.state_size, self.h = layer.state_size, layer.outputs
        self.drive = input_transform(layer, tensors["wax"], tensors["ba"])
        self.recur = Product(tensors["waa"])
        self.products = {layer.tensors["waa"]: self.recur} | products_of(layer, "wax", self.drive)

    def step(self, state: Array, x: Array) -> tuple[Array, Array]:  # [B, 2H], [B, K] -> [B, 2H], [B, H]
        """The new a and c, and a."""
        h = self.h
        s = self.recur(state[:, :h])
        s += self.drive(x)
        i_f = sigmoid(s[:, : 2 * h].copy())
        g = np.tanh(s[:, 2 * h : 3 * h])
        o = sigmoid(s[:, 3 * h :].copy())
        new = np.empty_like(state)
        a, c = new[:, :h], new[:, h:]
        np.multiply(i_f[:, h:], state[:, h:], out=c)
        g *= i_f[:, :h]
        c += g
        np.multiply(o, np.tanh(c), out=a)
        return new, a


BUILDERS: dict[str, Callable[[Layer, dict[str, Array]], StepLayer]] = {
    "onehot": OneHot,
    "embedding": Embedding,
    "dense": Dense,
    "activation": Activation,
    "rnn": RNN,
    "gru": GRU,
    "lstm": LSTM,
}


def build(layer: Layer, tensors: dict[str, Array]) -> StepLayer:
    """The step layer of an entry of the chain; `tensors` are the whole file's."""
    return BUILDERS[layer.kind](layer, {name: tensors[file_name] for name, file_name in layer.tensors.items()})
